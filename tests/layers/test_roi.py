import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocaffe.errors import LayerError
from tests.layers.gradient_check import Runner, check_gradients, spaced

quick = settings(max_examples=25, deadline=None)
SCALE = 0.25


def away_from_zero(value):
    return math.copysign(math.floor(abs(value) + 0.5), value)


def roi_pool(x, regions, rows, columns):
    """ROIPooling, bin by bin, in single precision where the layer has it."""
    f = np.float32
    y = np.zeros((len(regions), x.shape[1], rows, columns), x.dtype)
    for r, region in enumerate(regions):
        left, top, right, bottom = (away_from_zero(each * f(SCALE)) for each in region[1:])
        high = f(max(bottom - top + 1, 1)) / f(rows)
        wide = f(max(right - left + 1, 1)) / f(columns)
        for i, j in np.ndindex(rows, columns):
            first = int(np.clip(math.floor(f(i) * high) + top, 0, x.shape[2]))
            last = int(np.clip(math.ceil(f(i + 1) * high) + top, 0, x.shape[2]))
            start = int(np.clip(math.floor(f(j) * wide) + left, 0, x.shape[3]))
            end = int(np.clip(math.ceil(f(j + 1) * wide) + left, 0, x.shape[3]))
            if last > first and end > start:
                window = x[int(region[0]), :, first:last, start:end]
                y[r, :, i, j] = window.max(axis=(1, 2))
    return y


def psroi_pool(x, regions, dim, group):
    """PSROIPooling, bin by bin."""
    f = np.float32
    y = np.zeros((len(regions), dim, group, group))
    for r, region in enumerate(regions):
        left, top = (f(away_from_zero(each)) * f(SCALE) for each in region[1:3])
        right, bottom = (f(away_from_zero(each) + 1) * f(SCALE) for each in region[3:])
        high, wide = (
            max(extent, f(0.1)) / f(group) for extent in (f(bottom - top), f(right - left))
        )
        for c, i, j in np.ndindex(dim, group, group):
            first = int(np.clip(math.floor(f(i) * high + top), 0, x.shape[2]))
            last = int(np.clip(math.ceil(f(i + 1) * high + top), 0, x.shape[2]))
            start = int(np.clip(math.floor(f(j) * wide + left), 0, x.shape[3]))
            end = int(np.clip(math.ceil(f(j + 1) * wide + left), 0, x.shape[3]))
            if last > first and end > start:
                channel = (c * group + i) * group + j
                y[r, c, i, j] = x[int(region[0]), channel, first:last, start:end].mean()
    return y


corners = st.floats(-20, 60, width=32)
regions = st.lists(
    st.tuples(st.integers(0, 1), corners, corners, corners, corners), min_size=1, max_size=5
).map(lambda rows: np.array(rows, np.float32))


def roi(x, regions, rows=3, columns=2, dtype=np.float64):
    text = f"pooled_h: {rows} pooled_w: {columns} spatial_scale: {SCALE}"
    return Runner(f'type: "ROIPooling" roi_pooling_param {{ {text} }}', x, regions, dtype=dtype)


def psroi(x, regions, dim=2, group=2, dtype=np.float64):
    text = f"output_dim: {dim} group_size: {group} spatial_scale: {SCALE}"
    return Runner(f'type: "PSROIPooling" psroi_pooling_param {{ {text} }}', x, regions, dtype=dtype)


@quick
@given(regions, st.integers(1, 4), st.integers(1, 7))
def test_roi_pooling(boxes, rows, columns):
    x = np.random.default_rng(0).normal(size=(2, 3, 11, 13)).astype(np.float32)
    (y,) = roi(x, boxes, rows, columns, np.float32).forward()
    np.testing.assert_array_equal(y, roi_pool(x, boxes, rows, columns))


@quick
@given(regions, st.integers(1, 3), st.integers(1, 4))
def test_psroi_pooling(boxes, dim, group):
    x = np.random.default_rng(0).normal(size=(2, dim * group**2, 11, 13)).astype(np.float32)
    (y,) = psroi(x, boxes, dim, group, np.float32).forward()
    np.testing.assert_allclose(y, psroi_pool(x, boxes, dim, group), rtol=1e-5, atol=1e-6)


BOXES = np.array(
    [[0, 0, 0, 30, 30], [1, 10, 5, 20, 40], [0, -20, -20, -9, -9], [1, 33, 3, 30, 1]], float
)


def test_gradients():
    rng = np.random.default_rng(0)
    check_gradients(roi(spaced(rng, (2, 3, 9, 8)), BOXES), rng, bottoms=[0])
    check_gradients(psroi(rng.normal(size=(2, 8, 9, 8)), BOXES), rng, bottoms=[0])


def test_regions_have_gradient_zero():
    for runner in (roi(np.ones((2, 1, 9, 8)), BOXES), psroi(np.ones((2, 8, 9, 8)), BOXES)):
        (y,) = runner.forward()
        assert not runner.backward(np.ones(y.shape))[1].any()
        assert not runner.layer.allow_force_backward(1)


def test_of_equal_maxima_the_first_gets_the_gradient():
    runner = roi(np.zeros((1, 1, 4, 4)), np.array([[0, 4, 4, 12, 12]]), 1, 1)
    runner.forward()
    gradient = runner.backward(np.ones((1, 1, 1, 1)), propagate_down=[True, False])[0]
    assert np.argwhere(gradient).tolist() == [[0, 0, 1, 1]]


def test_outside_the_image_is_zero_and_has_no_gradient():
    for runner in (
        roi(np.ones((1, 1, 4, 4)), np.array([[0, 100, 100, 120, 120]])),
        psroi(np.ones((1, 8, 4, 4)), np.array([[0, 100, 100, 120, 120]])),
    ):
        (y,) = runner.forward()
        assert not y.any()
        assert not runner.backward(np.ones(y.shape))[0].any()


def test_pooled_size_is_both():
    text = 'type: "ROIPooling" roi_pooling_param { pooled_size: 3 }'
    assert Runner(text, np.ones((1, 2, 4, 4)), np.zeros((5, 5))).top[0].shape == (5, 2, 3, 3)


def test_many_regions_are_pooled_piece_by_piece():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 256, 20, 20)).astype(np.float32)
    boxes = np.concatenate([np.zeros((40, 1)), np.sort(rng.uniform(0, 79, (40, 4)), axis=1)], 1)
    (y,) = roi(x, boxes.astype(np.float32), 7, 7, np.float32).forward()
    np.testing.assert_array_equal(y, roi_pool(x, boxes.astype(np.float32), 7, 7))


@pytest.mark.parametrize(
    ("text", "shapes", "message"),
    [
        ('type: "ROIPooling"', [(1, 8, 4, 4), (2, 5)], "pooled_h and pooled_w must be"),
        (
            'type: "ROIPooling" roi_pooling_param { pooled_size: 2 }',
            [(8, 4, 4), (2, 5)],
            "bottom 0 must have 4 axes",
        ),
        (
            'type: "ROIPooling" roi_pooling_param { pooled_size: 2 }',
            [(1, 8, 4, 4), (2, 4)],
            "rows of 5 numbers",
        ),
        (
            'type: "PSROIPooling" psroi_pooling_param { spatial_scale: 1 output_dim: 2 '
            "group_size: 3 }",
            [(1, 8, 4, 4), (2, 5)],
            "need 18 channels, got 8",
        ),
        (
            'type: "PSROIPooling" psroi_pooling_param { spatial_scale: 1 output_dim: 0 '
            "group_size: 3 }",
            [(1, 8, 4, 4), (2, 5)],
            "must be at least 1",
        ),
    ],
)
def test_refuses(text, shapes, message):
    with pytest.raises(LayerError, match=message):
        Runner(text, *(np.zeros(shape) for shape in shapes))


def test_refuses_a_region_of_an_image_that_is_not_there():
    with pytest.raises(LayerError, match="image 2 of sample 0 is out of range"):
        roi(np.zeros((2, 1, 4, 4)), np.array([[2, 0, 0, 1, 1]])).forward()
