import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocaffe.errors import LayerError
from protocaffe.layers.detection import suppress
from protocaffe.proto.caffe_pb2 import NonMaximumSuppressionParameter
from tests.layers.gradient_check import Runner

quick = settings(max_examples=25, deadline=None)


# -- PriorBox ----------------------------------------------------------------------------


def priors(text, feature=(1, 4, 2, 3), image=(1, 3, 40, 60), dtype=np.float32):
    return Runner(
        f'type: "PriorBox" prior_box_param {{ {text} }}',
        np.ones(feature),
        np.ones(image),
        dtype=dtype,
    )


def boxes_of(runner):
    return runner.forward()[0][0, 0].reshape(-1, 4)


def test_priors_of_one_size():
    runner = priors("min_size: 20")
    values = runner.forward()[0]
    assert values.shape == (1, 2, 2 * 3 * 1 * 4)
    expected = [
        [(x - 10) / 60, (y - 10) / 40, (x + 10) / 60, (y + 10) / 40]
        for y in (10, 30)
        for x in (10, 30, 50)
    ]
    np.testing.assert_allclose(boxes_of(runner), expected, rtol=1e-6)
    np.testing.assert_array_equal(values[0, 1], np.float32(0.1))


def test_priors_order_of_sizes_and_ratios():
    text = "min_size: 8 min_size: 12 max_size: 18 max_size: 27 aspect_ratio: 2 aspect_ratio: 3"
    boxes = boxes_of(priors(text, feature=(1, 4, 1, 1)))
    widths, heights = (boxes[:, 2] - boxes[:, 0]) * 60, (boxes[:, 3] - boxes[:, 1]) * 40
    expected = []
    for small, large in ((8, 18), (12, 27)):
        expected += [(small, small), (math.sqrt(small * large),) * 2]
        for ratio in (2, 1 / 2, 3, 1 / 3):
            expected.append((small * math.sqrt(ratio), small / math.sqrt(ratio)))
    np.testing.assert_allclose(np.stack([widths, heights], axis=1), expected, rtol=1e-5)
    np.testing.assert_allclose((boxes[:, 0] + boxes[:, 2]) / 2, 0.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("ratios", "count"),
    [
        ("", 1),
        ("aspect_ratio: 1", 1),
        ("aspect_ratio: 2", 3),
        ("aspect_ratio: 2 aspect_ratio: 0.5", 3),
        ("aspect_ratio: 2 aspect_ratio: 2", 3),
        ("aspect_ratio: 2 aspect_ratio: 0.5 flip: false", 3),
        ("aspect_ratio: 2 flip: false", 2),
        ("aspect_ratio: 2 max_size: 30", 4),
    ],
)
def test_priors_count(ratios, count):
    assert len(boxes_of(priors(f"min_size: 20 {ratios}"))) == 2 * 3 * count


def test_priors_sizes_lose_their_decimals():
    whole, broken = (boxes_of(priors(f"min_size: {size}")) for size in (20, 20.9))
    np.testing.assert_array_equal(whole, broken)


def test_priors_clip_step_offset_and_image_size():
    assert boxes_of(priors("min_size: 50")).min() < 0
    clipped = boxes_of(priors("min_size: 50 clip: true"))
    assert (clipped.min(), clipped.max()) == (0, 1)
    steps = "step: 8 offset: 0.25 img_h: 100 img_w: 200"
    first, second = boxes_of(priors(f"min_size: 10 {steps}"))[:2]
    np.testing.assert_allclose(first, [(2 - 5) / 200, (2 - 5) / 100, 7 / 200, 7 / 100], rtol=1e-6)
    np.testing.assert_allclose(second[0], (10 - 5) / 200, rtol=1e-6)
    both = boxes_of(priors("min_size: 10 step_h: 8 step_w: 8 img_size: 100"))
    np.testing.assert_array_equal(both, boxes_of(priors("min_size: 10 step: 8 img_size: 100")))


def test_priors_variances():
    values = priors("min_size: 20 variance: 0.1 variance: 0.2 variance: 0.3 variance: 0.4")
    np.testing.assert_allclose(values.forward()[0][0, 1].reshape(-1, 4)[3], [0.1, 0.2, 0.3, 0.4])


def test_priors_follow_the_shapes_and_have_gradient_zero():
    runner = priors("min_size: 20")
    runner.bottom[0].reshape(1, 4, 5, 6)
    runner.layer.reshape(runner.bottom, runner.top)
    assert runner.top[0].shape == (1, 2, 5 * 6 * 4)
    runner = priors("min_size: 20")
    (y,) = runner.forward()
    assert not any(gradient.any() for gradient in runner.backward(np.ones(y.shape)))
    assert not runner.layer.allow_force_backward(0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one min_size"),
        ("min_size: 0", "positive ones"),
        ("min_size: 20 max_size: 20", "max_size 20 must be larger than min_size 20"),
        ("min_size: 2 min_size: 3 max_size: 9", r"2 min_size\(s\) and 1 max_size\(s\)"),
        ("min_size: 2 variance: 1 variance: 1", "one variance or four"),
        ("min_size: 2 variance: -1", "all positive"),
        ("min_size: 2 aspect_ratio: 0", "aspect_ratio must be positive"),
        ("min_size: 2 img_h: 3", "img_h and img_w must be given and positive"),
        ("min_size: 2 step: 3 step_h: 3 step_w: 3", "give either step or step_h and step_w"),
    ],
)
def test_priors_refuse(text, message):
    with pytest.raises(LayerError, match=message):
        priors(text)


# -- DetectionOutput ---------------------------------------------------------------------


def decode(code, prior, variance, shift):
    """One box, number by number, as SSD's sources have it."""
    x0, y0, x1, y1 = prior
    width, height = x1 - x0, y1 - y0
    a, b, c, d = (v * s for v, s in zip(variance, shift, strict=True))
    if code == "CORNER":
        return [x0 + a, y0 + b, x1 + c, y1 + d]
    if code == "CORNER_SIZE":
        return [x0 + a * width, y0 + b * height, x1 + c * width, y1 + d * height]
    x, y = a * width + (x0 + x1) / 2, b * height + (y0 + y1) / 2
    wide, high = math.exp(c) * width, math.exp(d) * height
    return [x - wide / 2, y - high / 2, x + wide / 2, y + high / 2]


def overlap(a, b):
    """Intersection over union."""
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    if wide <= 0 or high <= 0:
        return 0.0
    areas = sum(max(0, e[2] - e[0]) * max(0, e[3] - e[1]) for e in (a, b))
    return wide * high / (areas - wide * high)


def keep_best(boxes, scores, threshold, top_k, eta):
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    kept = []
    for i in order[:top_k]:
        if all(overlap(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
            if eta < 1 and threshold > 0.5:
                threshold *= eta
    return kept


def detect(case, locations, scores, prior):
    """All rows that DetectionOutput should give, by loops."""
    rows = []
    for image in range(len(locations)):
        found = []
        for label in range(case["classes"]):
            if label == case["background"]:
                continue
            place = 0 if case["share"] else label
            boxes = [
                decode(
                    case["code"],
                    prior[0, p],
                    [1] * 4 if case["encoded"] else prior[1, p],
                    locations[image, p, place],
                )
                for p in range(prior.shape[1])
            ]
            above = [p for p in range(len(boxes)) if scores[image, p, label] > case["confidence"]]
            best = keep_best(
                [boxes[p] for p in above],
                [scores[image, p, label] for p in above],
                *(case["threshold"], case["top_k"], case["eta"]),
            )
            found += [
                [image, label, scores[image, above[i], label], *boxes[above[i]]] for i in best
            ]
        if case["keep"] >= 0:
            limit = sorted(-row[2] for row in found)[: case["keep"]]
            found = [row for row in found if limit and -row[2] <= limit[-1]]
        rows += found
    if not rows:
        return np.array([[image, *[-1] * 6] for image in range(len(locations))])
    return np.array(rows)


def output(case, locations, scores, prior, *more):
    text = f"""num_classes: {case["classes"]} share_location: {str(case["share"]).lower()}
        background_label_id: {case["background"]} code_type: {case["code"]}
        variance_encoded_in_target: {str(case["encoded"]).lower()} keep_top_k: {case["keep"]}
        confidence_threshold: {case["confidence"]}
        nms_param {{ nms_threshold: {case["threshold"]} top_k: {case["top_k"]}
            eta: {case["eta"]} }}"""
    runner = Runner(
        f'type: "DetectionOutput" detection_output_param {{ {text} }}',
        locations.reshape(len(locations), -1),
        scores.reshape(len(scores), -1),
        prior.reshape(1, 2, -1),
        *more,
    )
    return runner.forward()[0]


CASE = {
    "classes": 3,
    "share": True,
    "background": 0,
    "code": "CENTER_SIZE",
    "encoded": False,
    "keep": -1,
    "confidence": 0.2,
    "threshold": 0.5,
    "top_k": 400,
    "eta": 1,
}
cases = st.fixed_dictionaries(
    {
        "classes": st.integers(1, 4),
        "share": st.booleans(),
        "background": st.integers(-1, 2),
        "code": st.sampled_from(["CORNER", "CENTER_SIZE", "CORNER_SIZE"]),
        "encoded": st.booleans(),
        "keep": st.sampled_from([-1, 0, 1, 5]),
        "confidence": st.sampled_from([-1, 0.25, 0.75, 2]),
        "threshold": st.sampled_from([0, 0.125, 0.5, 0.75]),
        "top_k": st.sampled_from([1, 3, 100]),
        "eta": st.sampled_from([1, 0.75]),
    }
)


def drawn(case, seed, images=2, count=12):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.6, (count, 2))
    prior = np.stack(
        [
            np.concatenate([low, low + rng.uniform(0.2, 0.4, (count, 2))], axis=1),
            np.full((count, 4), 0.25),
        ]
    )
    places = 1 if case["share"] else case["classes"]
    locations = rng.normal(size=(images, count, places, 4)) * 0.5
    return (
        locations,
        rng.permutation(images * count * case["classes"]).reshape(images, count, case["classes"])
        / (images * count * case["classes"]),
        prior,
    )


@settings(max_examples=60, deadline=None)
@given(cases, st.integers(0, 999))
def test_detection_is_what_loops_give(case, seed):
    arrays = drawn(case, seed)
    found = output(case, *arrays)
    expected = detect(case, *arrays)
    assert found.shape == (1, 1, *expected.shape)
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-5, atol=1e-7)


def test_nothing_found_is_a_row_of_minus_one_per_image():
    case = {**CASE, "confidence": 2}
    rows = output(case, *drawn(case, 0, images=3))
    np.testing.assert_array_equal(rows[0, 0], [[image, *[-1] * 6] for image in range(3)])


def test_scores_without_a_threshold_all_count():
    runner = Runner(
        'type: "DetectionOutput" detection_output_param { num_classes: 2 code_type: CENTER_SIZE }',
        *(np.zeros((1, 8)), np.full((1, 4), -5.0), np.ones((1, 2, 8))),
    )
    assert runner.forward()[0].shape == (1, 1, 2, 7)


def test_of_equal_scores_the_first_prior_wins():
    prior = np.array([[[0, 0, 1, 1], [0, 0, 0.9, 1]], np.ones((2, 4))])
    case = {**CASE, "classes": 2, "code": "CORNER"}
    rows = output(case, np.zeros((1, 2, 1, 4)), np.full((1, 2, 2), 0.75), prior)
    np.testing.assert_array_equal(rows[0, 0], [[0, 1, 0.75, 0, 0, 1, 1]])


def test_boxes_turned_inside_out_overlap_nothing():
    boxes = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [0.5, 0.5, 0.5, 0.5]], float)
    param = NonMaximumSuppressionParameter(nms_threshold=0)
    assert suppress(boxes, np.array([3, 2, 1]), param).tolist() == [0, 1, 2]


def test_refinedet_moves_priors_and_drops_what_is_no_object():
    case = {**CASE, "confidence": 0.01}
    locations, scores, prior = drawn(case, 1)
    rng = np.random.default_rng(2)
    objects, first = rng.uniform(0, 0.02, (2, 12, 2)), rng.normal(size=(2, 12, 4)) * 0.3
    more = [each.reshape(2, -1) for each in (objects, first)]
    found = output(case, locations, scores, prior, *more)[0, 0]
    expected = []
    for image in range(2):
        moved = [decode(case["code"], *prior[:, p], first[image, p]) for p in range(12)]
        likely = np.where(objects[image, :, 1:] < 0.01, [1, 0, 0], scores[image])
        own = np.stack([np.array(moved), prior[1]])
        rows = detect(case, locations[image : image + 1], likely[None], own)
        rows[:, 0] = image
        expected.append(rows)
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-5, atol=1e-7)


def test_the_image_as_fourth_bottom_changes_nothing():
    arrays = drawn(CASE, 0)
    np.testing.assert_array_equal(
        output(CASE, *arrays), output(CASE, *arrays, np.ones((2, 3, 4, 4)))
    )


@pytest.mark.parametrize(
    ("text", "shapes", "message"),
    [
        ("", [(1, 8), (1, 4), (1, 2, 8)], "num_classes is missing"),
        ("num_classes: 2", [(1, 8), (2, 4), (1, 2, 8)], "not of one batch"),
        ("num_classes: 2", [(1, 8), (1, 4), (1, 1, 8)], r"shape \(1, 2, 4 per box\)"),
        ("num_classes: 2", [(1, 8), (1, 6), (1, 2, 8)], "2 priors need 4 numbers per image"),
        (
            "num_classes: 2 share_location: false",
            [(1, 8), (1, 4), (1, 2, 8)],
            "2 priors need 16 numbers per image",
        ),
        (
            "num_classes: 2 nms_param { eta: 0 }",
            [(1, 8), (1, 4), (1, 2, 8)],
            "eta must be above 0",
        ),
        (
            "num_classes: 2 nms_param { nms_threshold: -1 }",
            [(1, 8), (1, 4), (1, 2, 8)],
            "must not be negative",
        ),
    ],
)
def test_detection_refuses(text, shapes, message):
    with pytest.raises(LayerError, match=message):
        Runner(
            f'type: "DetectionOutput" detection_output_param {{ {text} }}',
            *(np.zeros(shape) for shape in shapes),
        )


def test_detection_has_no_gradient():
    runner = Runner(
        'type: "DetectionOutput" detection_output_param { num_classes: 2 }',
        *(np.zeros((1, 8)), np.zeros((1, 4)), np.zeros((1, 2, 8))),
    )
    rows = runner.forward()[0]
    with pytest.raises(LayerError, match="has no gradient"):
        runner.backward(np.ones(rows.shape))
