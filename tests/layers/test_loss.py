import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocaffe.errors import LayerError
from protocaffe.proto.binary import array_to_blob, write_atomic
from tests.layers.gradient_check import Runner, check_gradients, spaced

MODES = ["VALID", "FULL", "BATCH_SIZE", "NONE"]


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def divisor(mode, counted, total, batch):
    return max(1, {"VALID": counted, "FULL": total, "BATCH_SIZE": batch, "NONE": 1}[mode])


@st.composite
def scores(draw):
    """Draw scores, where their classes are, labels (some -1, to be ignored) and loss_param."""
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=2, max_size=4)))
    axis = draw(st.integers(1, len(shape) - 1))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    places = (*shape[:axis], *shape[axis + 1 :])
    mode = draw(st.sampled_from(MODES))
    ignore = draw(st.booleans())
    labels = rng.integers(-1 if ignore else 0, shape[axis], places)
    text = f"loss_param {{ normalization: {mode} {'ignore_label: -1' if ignore else ''} }}"
    return rng.normal(size=shape), axis, labels, mode, text, rng


def naive_scores(x, axis, labels, mode, of_label):
    """Sum a function of (probabilities, label) over all positions, and normalise."""
    columns = np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])
    batch = math.prod(x.shape[:axis])
    losses = [
        of_label(softmax(column), label)
        for column, label in zip(columns, labels.ravel(), strict=True)
        if label != -1
    ]
    return sum(losses) / divisor(mode, len(losses), labels.size, batch)


@given(scores())
@settings(deadline=None, max_examples=50)
def test_softmax_with_loss(case):
    x, axis, labels, mode, text, rng = case
    text = f'type: "SoftmaxWithLoss" softmax_param {{ axis: {axis} }} {text}'
    runner = Runner(text, x, labels)
    expected = naive_scores(x, axis, labels, mode, lambda p, label: -math.log(p[label]))
    assert runner.forward()[0] == pytest.approx(expected)
    check_gradients(runner, rng, bottoms=[0])


@given(case=scores(), from_file=st.booleans())
@settings(deadline=None, max_examples=50)
def test_infogain_loss(case, from_file, tmp_path_factory):
    x, axis, labels, mode, text, rng = case
    matrix = rng.normal(size=(x.shape[axis],) * 2).astype(np.float32).astype(np.float64)
    bottoms = [x, labels]
    param = f"axis: {axis}"
    if from_file:
        path = tmp_path_factory.mktemp("infogain") / "matrix.binaryproto"
        write_atomic(path, array_to_blob(matrix.astype(np.float32)).SerializeToString())
        param += f' source: "{path}"'
    else:
        bottoms.append(matrix)
    runner = Runner(f'type: "InfogainLoss" infogain_loss_param {{ {param} }} {text}', *bottoms)

    def of_label(p, label):
        return -sum(h * math.log(each) for h, each in zip(matrix[label], p, strict=True))

    assert runner.forward()[0] == pytest.approx(naive_scores(x, axis, labels, mode, of_label))
    check_gradients(runner, rng, bottoms=[0])


@pytest.mark.parametrize("kind", ["SoftmaxWithLoss", "InfogainLoss"])
def test_the_second_top_has_the_probabilities(kind):
    x = np.random.default_rng(0).normal(size=(2, 3))
    bottoms = [x, [0, 2]] + ([np.eye(3)] if kind == "InfogainLoss" else [])
    runner = Runner(f'type: "{kind}"', *bottoms, tops=2)
    np.testing.assert_allclose(runner.forward()[1], [softmax(row) for row in x])


@pytest.mark.parametrize(
    ("loss_param", "expected"),
    [
        ("", 3),
        ("normalize: true", 3),
        ("normalize: false", 2),
        ("normalize: false normalization: FULL", 4),
    ],
)
def test_the_old_normalize_flag_counts_only_without_normalization(loss_param, expected):
    labels = np.array([[0, 1], [7, 0]])
    runner = Runner(
        f'type: "SoftmaxWithLoss" loss_param {{ ignore_label: 7 {loss_param} }}',
        np.zeros((2, 2, 2)),
        labels,
    )
    assert runner.forward()[0] == pytest.approx(3 * math.log(2) / expected)


def test_all_ignored_is_no_loss_and_no_gradient():
    text = 'type: "SoftmaxWithLoss" loss_param { ignore_label: 255 }'
    runner = Runner(text, np.ones((2, 3)), [255, 255])
    assert runner.forward()[0] == 0
    assert not runner.backward(1, propagate_down=[True, False])[0].any()


def test_a_hopeless_score_costs_the_logarithm_of_the_least_float():
    runner = Runner('type: "SoftmaxWithLoss"', np.array([[0.0, 1000.0]]), [0])
    assert runner.forward()[0] == pytest.approx(-math.log(np.finfo(np.float32).tiny))
    np.testing.assert_allclose(runner.backward(1, propagate_down=[True, False])[0], [[-1, 1]])


def test_labels_are_cut_to_whole_numbers():
    x = np.random.default_rng(0).normal(size=(2, 3))
    cut, whole = (
        Runner('type: "SoftmaxWithLoss"', x, labels).forward()[0]
        for labels in ([1.9, -0.5], [1, 0])
    )
    assert cut == whole


@pytest.mark.parametrize("kind", ["SoftmaxWithLoss", "HingeLoss", "MultinomialLogisticLoss"])
@pytest.mark.parametrize("bad", [3, -1, math.nan, math.inf, 1e30])
def test_a_wrong_label_is_named(kind, bad):
    runner = Runner(f'type: "{kind}" bottom: "score" bottom: "truth"', np.ones((2, 3)), [0, bad])
    with pytest.raises(LayerError) as caught:
        runner.forward()
    message = str(caught.value)
    assert f"label {bad:g} of sample 1 is out of range" in message
    assert "blob 'truth' at [1]" in message
    assert "whole numbers from 0 to 2" in message


def test_a_wrong_label_of_a_pixel_is_placed():
    labels = np.zeros((2, 1, 2, 2))
    labels[1, 0, 1, 0] = 9
    text = 'type: "SoftmaxWithLoss" loss_param { ignore_label: 255 }'
    runner = Runner(text, np.ones((2, 3, 2, 2)), labels)
    with pytest.raises(LayerError, match=r"sample 1 .*\[1, 0, 1, 0\].* 0 to 2, and 255 to ignore"):
        runner.forward()


@given(
    shape=st.lists(st.integers(1, 3), min_size=1, max_size=5).map(tuple),
    mode=st.sampled_from([*MODES, None]),
    ignore=st.sampled_from([None, 0, 1]),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=50)
def test_sigmoid_cross_entropy_loss(shape, mode, ignore, seed):
    rng = np.random.default_rng(seed)
    x, target = rng.normal(size=shape), rng.uniform(-0.5, 1.5, shape)
    param = (f"normalization: {mode} " if mode else "") + (
        f"ignore_label: {ignore}" if ignore is not None else ""
    )
    runner = Runner(f'type: "SigmoidCrossEntropyLoss" loss_param {{ {param} }}', x, target)
    losses = [
        math.log(1 + math.exp(each)) - each * t
        for each, t in zip(x.ravel(), target.ravel(), strict=True)
        if ignore is None or int(t) != ignore
    ]
    expected = sum(losses) / divisor(mode or "BATCH_SIZE", len(losses), x.size, shape[0])
    assert runner.forward()[0] == pytest.approx(expected)
    check_gradients(runner, rng, bottoms=[0])


def test_sigmoid_cross_entropy_of_large_scores_is_finite():
    x = np.array([[1000.0], [-1000.0]])
    runner = Runner('type: "SigmoidCrossEntropyLoss"', x, [[0.0], [1.0]])
    assert runner.forward()[0] == 1000
    np.testing.assert_allclose(runner.backward(1, propagate_down=[True, False])[0], [[0.5], [-0.5]])


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple), st.integers(0, 999))
@settings(deadline=None, max_examples=30)
def test_euclidean_loss(shape, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, *shape))
    runner = Runner('type: "EuclideanLoss"', a, b.reshape(shape[0], -1))
    expected = sum((p - q) ** 2 for p, q in zip(a.ravel(), b.ravel(), strict=True)) / 2 / shape[0]
    assert runner.forward()[0] == pytest.approx(expected)
    check_gradients(runner, rng)


@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from(["L1", "L2"]), st.integers(0, 999))
@settings(deadline=None, max_examples=30)
def test_hinge_loss(n, classes, norm, seed):
    rng = np.random.default_rng(seed)
    x, labels = spaced(rng, (n, classes)), rng.integers(0, classes, n)
    runner = Runner(f'type: "HingeLoss" hinge_loss_param {{ norm: {norm} }}', x, labels)
    margins = [
        max(0, 1 + each * (-1 if c == labels[i] else 1)) for (i, c), each in np.ndenumerate(x)
    ]
    expected = sum(m if norm == "L1" else m * m for m in margins) / n
    assert runner.forward()[0] == pytest.approx(expected)
    check_gradients(runner, rng, bottoms=[0])


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 999))
@settings(deadline=None, max_examples=20)
def test_multinomial_logistic_loss(n, classes, seed):
    rng = np.random.default_rng(seed)
    p, labels = rng.uniform(0.1, 1, (n, classes)), rng.integers(0, classes, n)
    runner = Runner('type: "MultinomialLogisticLoss"', p, labels)
    expected = -sum(math.log(row[label]) for row, label in zip(p, labels, strict=True)) / n
    assert runner.forward()[0] == pytest.approx(expected)
    check_gradients(runner, rng, bottoms=[0])


def test_multinomial_logistic_loss_of_nothing_is_cut():
    runner = Runner('type: "MultinomialLogisticLoss"', np.array([[0.0, 1.0]]), [0])
    assert runner.forward()[0] == pytest.approx(-math.log(1e-20))
    np.testing.assert_allclose(runner.backward(1, propagate_down=[True, False])[0], [[-1e20, 0]])


@given(
    n=st.integers(1, 4),
    width=st.integers(1, 4),
    four_axes=st.booleans(),
    margin=st.sampled_from([0.55, 2.1]),
    legacy=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=40)
def test_contrastive_loss(n, width, four_axes, margin, legacy, seed):
    rng = np.random.default_rng(seed)
    shape = (n, width, 1, 1) if four_axes else (n, width)
    a = rng.normal(size=shape)
    b = a + spaced(rng, shape, gap=0.4)  # no distance is near 0 or the margin
    similar = rng.integers(0, 2, n)
    text = (
        f'type: "ContrastiveLoss" contrastive_loss_param {{ margin: {margin} '
        f"legacy_version: {str(legacy).lower()} }}"
    )
    runner = Runner(text, a, b, similar)
    expected = 0
    for p, q, same in zip(a.reshape(n, -1), b.reshape(n, -1), similar, strict=True):
        square = sum((u - v) ** 2 for u, v in zip(p, q, strict=True))
        apart = max(margin - square, 0) if legacy else max(margin - math.sqrt(square), 0) ** 2
        expected += square if same else apart
    assert runner.forward()[0] == pytest.approx(expected / 2 / n)
    # Caffe adds 1e-4 to the distance it divides by.
    check_gradients(runner, rng, bottoms=[0, 1], rtol=1e-3, atol=1e-6)


def test_identical_dissimilar_pairs_have_a_finite_gradient():
    same = np.ones((1, 2))
    runner = Runner('type: "ContrastiveLoss"', same, same, [0])
    assert runner.forward()[0] == 0.5
    assert not np.any(runner.backward(1, propagate_down=[True, True, False])[:2])


LABELLED = [
    ("SoftmaxWithLoss", [np.ones((2, 3)), [0, 1]]),
    ("InfogainLoss", [np.ones((2, 3)), [0, 1], np.eye(3)]),
    ("HingeLoss", [np.ones((2, 3)), [0, 1]]),
    ("MultinomialLogisticLoss", [np.ones((2, 3)), [0, 1]]),
    ("SigmoidCrossEntropyLoss", [np.ones((2, 3)), np.ones((2, 3))]),
    ("ContrastiveLoss", [np.ones((2, 3)), np.ones((2, 3)), [0, 1]]),
]


@pytest.mark.parametrize(("kind", "bottoms"), LABELLED, ids=[kind for kind, _ in LABELLED])
def test_labels_have_no_gradient(kind, bottoms):
    names = " ".join(f'bottom: "b{index}"' for index in range(len(bottoms)))
    runner = Runner(f'type: "{kind}" {names}', *bottoms)
    label = 2 if kind == "ContrastiveLoss" else 1
    assert not runner.layer.allow_force_backward(label)
    runner.forward()
    with pytest.raises(LayerError, match=f"cannot compute a gradient for 'b{label}'"):
        runner.backward(1)


@pytest.mark.parametrize(("kind", "bottoms"), LABELLED, ids=[kind for kind, _ in LABELLED])
def test_the_weight_is_in_the_tops_diff(kind, bottoms):
    rng = np.random.default_rng(0)
    runner = Runner(f'type: "{kind}"', rng.normal(size=(2, 3)) + 3, *bottoms[1:])
    wanted = [True] + [False] * (len(bottoms) - 1)
    runner.forward()
    once, thrice = (runner.backward(w, propagate_down=wanted)[0] for w in (1, 3))
    np.testing.assert_allclose(3 * once, thrice)


@pytest.mark.parametrize(
    ("kind", "shapes", "message"),
    [
        ("SoftmaxWithLoss", [(2, 3, 2), (2,)], r"need 4 label\(s\)"),
        ("SoftmaxWithLoss", [(2, 3), (3,)], "need the same first extent"),
        ("SoftmaxWithLoss", [(2, 3), ()], "need the same first extent"),
        ("HingeLoss", [(2, 3), (2, 2)], "one label per sample"),
        ("MultinomialLogisticLoss", [(2, 3), (2, 2)], "one label per sample"),
        ("SigmoidCrossEntropyLoss", [(2, 3), (2, 2)], "one target per score"),
        ("EuclideanLoss", [(2, 3), (2, 4)], "as many numbers per sample"),
        ("ContrastiveLoss", [(2, 3), (2, 4), (2,)], r"must both be \(N, C\)"),
        ("ContrastiveLoss", [(2, 3, 2), (2, 3, 2), (2,)], r"must both be \(N, C\)"),
        ("ContrastiveLoss", [(2, 3), (2, 3), (3,)], "one similarity per pair"),
        ("InfogainLoss", [(2, 3), (2,), (2, 2)], "must be 3 x 3"),
        ("InfogainLoss", [(2, 3), (2,)], "third bottom or a file named by source"),
    ],
)
def test_refuses(kind, shapes, message):
    with pytest.raises(LayerError, match=message):
        Runner(f'type: "{kind}"', *(np.zeros(shape) for shape in shapes))


def test_infogain_loss_refuses_the_old_normalize_flag():
    with pytest.raises(LayerError, match="give normalization"):
        Runner(
            'type: "InfogainLoss" loss_param { normalize: true }',
            np.ones((1, 2)),
            [0],
            np.eye(2),
        )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sigma", [1, 3, 0.5])
def test_smooth_l1_loss(sigma, weighted):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 4)) * 2
    weights = rng.uniform(0, 2, (2, 3, 4)) if weighted else ()
    text = f'type: "SmoothL1Loss" smooth_l1_loss_param {{ sigma: {sigma} }}'
    runner = Runner(text, a, b, *weights)
    total = 0
    for place in np.ndindex(a.shape):
        inner, outer = (each[place] for each in weights) if weighted else (1, 1)
        d = abs(inner * (a[place] - b[place]))
        total += outer * ((sigma * d) ** 2 / 2 if d < 1 / sigma**2 else d - 1 / (2 * sigma**2))
    assert runner.forward()[0] == pytest.approx(total / 3)
    check_gradients(runner, rng, bottoms=[0, 1])
    if weighted:
        assert not any(gradient.any() for gradient in runner.backward(1)[2:])


def test_smooth_l1_loss_refuses():
    with pytest.raises(LayerError, match="needs the outer weights too"):
        Runner('type: "SmoothL1Loss"', *np.ones((3, 2, 2)))
    with pytest.raises(LayerError, match="all bottoms need as many numbers"):
        Runner('type: "SmoothL1Loss"', np.ones((2, 2)), np.ones((2, 3)))
