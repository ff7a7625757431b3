import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocaffe.errors import LayerError
from tests.layers.gradient_check import Runner


@given(
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple),
    data=st.data(),
    ignore=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=60)
def test_accuracy(shape, data, ignore, seed):
    axis = data.draw(st.integers(0, len(shape) - 1))
    top_k = data.draw(st.integers(1, shape[axis]))
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 3, shape)  # ties are common
    labels = rng.integers(-1 if ignore else 0, shape[axis], (*shape[:axis], *shape[axis + 1 :]))
    param = f"axis: {axis} top_k: {top_k} {'ignore_label: -1' if ignore else ''}"
    runner = Runner(f'type: "Accuracy" accuracy_param {{ {param} }}', x, labels, tops=2)
    right, seen = np.zeros(shape[axis]), np.zeros(shape[axis])
    columns = np.moveaxis(x, axis, -1).reshape(-1, shape[axis])
    for column, label in zip(columns, labels.ravel(), strict=True):
        if label == -1:
            continue
        better = sum(s >= column[label] for c, s in enumerate(column) if c != label)
        seen[label] += 1
        right[label] += better < top_k
    accuracy, recall = runner.forward()
    assert accuracy == pytest.approx(right.sum() / max(1, seen.sum()))
    np.testing.assert_allclose(recall, right / np.maximum(seen, 1))


@pytest.mark.parametrize(
    ("param", "shapes", "message"),
    [
        ("top_k: 4", [(2, 3), (2,)], "top_k must be 1 to 3"),
        ("top_k: 0", [(2, 3), (2,)], "top_k must be 1 to 3"),
        ("axis: 2", [(2, 3), (2,)], "axis 2 is out of range"),
        ("", [(2, 3, 2), (2,)], r"need 4 label\(s\)"),
    ],
)
def test_accuracy_refuses(param, shapes, message):
    with pytest.raises(LayerError, match=message):
        Runner(f'type: "Accuracy" accuracy_param {{ {param} }}', *(np.zeros(s) for s in shapes))


def test_accuracy_names_a_wrong_label_and_has_no_gradient():
    runner = Runner('type: "Accuracy"', np.ones((2, 3)), [0, 5])
    with pytest.raises(LayerError, match="label 5 of sample 1 is out of range"):
        runner.forward()
    with pytest.raises(LayerError, match="has no gradient"):
        runner.backward(1)


def naive_best(values, top_k):
    """Return the indices of the largest values, larger index first on ties."""
    return sorted(range(len(values)), key=lambda i: (-values[i], -i))[:top_k]


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=5).map(tuple),
    data=st.data(),
    out_max_val=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=60)
def test_argmax(shape, data, out_max_val, seed):
    axis = data.draw(st.sampled_from([None, *range(-len(shape), len(shape))]))
    x = np.random.default_rng(seed).integers(0, 3, shape)
    size = x[0].size if axis is None else shape[axis]
    top_k = data.draw(st.integers(1, size))
    param = f"top_k: {top_k} out_max_val: {str(out_max_val).lower()}"
    if axis is not None:
        param += f" axis: {axis}"
    (y,) = Runner(f'type: "ArgMax" argmax_param {{ {param} }}', x).forward()
    if axis is None:
        assert y.shape == (shape[0], 1 + out_max_val, top_k) + (1,) * (len(shape) - 3)
        for values, rows in zip(x.reshape(len(x), -1), y.reshape(len(x), -1, top_k), strict=True):
            best = naive_best(values, top_k)
            assert rows[0].tolist() == best
            if out_max_val:
                assert rows[1].tolist() == values[best].tolist()
        return
    columns, chosen = (np.moveaxis(each, axis, -1) for each in (x, y))
    assert chosen.shape == (*columns.shape[:-1], top_k)
    for values, found in zip(columns.reshape(-1, size), chosen.reshape(-1, top_k), strict=True):
        best = naive_best(values, top_k)
        assert found.tolist() == (values[best].tolist() if out_max_val else best)


def test_argmax_refuses():
    with pytest.raises(LayerError, match="top_k must be 1 to 3"):
        Runner('type: "ArgMax" argmax_param { top_k: 4 }', np.ones((2, 3)))
    with pytest.raises(LayerError, match="at least one axis"):
        Runner('type: "ArgMax"', np.ones(()))
    with pytest.raises(LayerError, match="has no gradient"):
        Runner('type: "ArgMax"', np.ones((2, 3))).backward(1)
