import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocaffe.errors import LayerError, NetError
from tests.layers.gradient_check import Runner, check_gradients

shapes = st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple)


def axis_of(data, shape):
    return data.draw(st.integers(-len(shape), len(shape) - 1))


@given(shape=shapes, data=st.data(), sizes=st.lists(st.integers(1, 3), min_size=1, max_size=4))
@settings(deadline=None, max_examples=40)
def test_concat(shape, data, sizes):
    axis = axis_of(data, shape)
    old = axis >= 0 and data.draw(st.booleans())
    rng = np.random.default_rng(0)
    parts = []
    for size in sizes:
        extents = list(shape)
        extents[axis] = size
        parts.append(rng.normal(size=extents))
    name = "concat_dim" if old else "axis"
    runner = Runner(f'type: "Concat" concat_param {{ {name}: {axis} }}', *parts)
    np.testing.assert_array_equal(runner.forward()[0], np.concatenate(parts, axis=axis))
    if len(parts) > 1:
        check_gradients(runner, rng)


@pytest.mark.parametrize("kind", ["Concat", "Slice"])
def test_one_part_shares_data_and_diff(kind):
    runner = Runner(f'type: "{kind}"', np.ones((2, 3)))
    assert runner.top[0].data_storage is runner.bottom[0].data_storage
    assert runner.top[0].diff_storage is runner.bottom[0].diff_storage
    np.testing.assert_array_equal(runner.forward()[0], runner.values[0])
    runner.top[0].diff[...] = 5
    runner.layer.backward(runner.top, [True], runner.bottom)
    assert (runner.bottom[0].diff == 5).all()


@given(shape=shapes, data=st.data(), sizes=st.lists(st.integers(1, 3), min_size=2, max_size=4))
@settings(deadline=None, max_examples=40)
def test_slice(shape, data, sizes):
    axis = axis_of(data, shape)
    name = "slice_dim" if axis >= 0 and data.draw(st.booleans()) else "axis"
    equal = data.draw(st.booleans())
    sizes = sizes[:1] * len(sizes) if equal else sizes
    extents = list(shape)
    extents[axis] = sum(sizes)
    rng = np.random.default_rng(0)
    x = rng.normal(size=extents)
    points = np.cumsum(sizes)[:-1]
    text = "" if equal else "".join(f"slice_point: {each} " for each in points)
    runner = Runner(f'type: "Slice" slice_param {{ {name}: {axis} {text} }}', x, tops=len(sizes))
    for mine, expected in zip(runner.forward(), np.split(x, points, axis=axis), strict=True):
        np.testing.assert_array_equal(mine, expected)
    check_gradients(runner, rng)


def test_split():
    rng = np.random.default_rng(0)
    runner = Runner('type: "Split"', rng.normal(size=(2, 3)), tops=3)
    assert all(top.data_storage is runner.bottom[0].data_storage for top in runner.top)
    for y in runner.forward():
        np.testing.assert_array_equal(y, runner.values[0])
    check_gradients(runner, rng)


def test_silence_writes_zeros():
    runner = Runner('type: "Silence"', np.ones(3), np.ones((2, 2)), tops=0)
    assert runner.forward() == []
    first, second = runner.backward(propagate_down=[True, False])
    assert not first.any()
    assert second is None


@given(shape=shapes, data=st.data())
@settings(deadline=None, max_examples=30)
def test_flatten(shape, data):
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(shape) - 1)] * 2)))
    end -= data.draw(st.sampled_from([0, len(shape)]))
    x = np.arange(float(math.prod(shape))).reshape(shape)
    runner = Runner(f'type: "Flatten" flatten_param {{ axis: {start} end_axis: {end} }}', x)
    end %= len(shape)
    expected = (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])
    (y,) = runner.forward()
    assert y.shape == expected
    assert runner.top[0].data_storage is runner.bottom[0].data_storage
    check_gradients(runner, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("param", "expected"),
    [
        ("shape { dim: [6, 4] }", (6, 4)),
        ("shape { dim: [0, -1] }", (2, 12)),
        ("shape { dim: [-1] }", (24,)),
        ("shape { dim: [0, 0, 2, 2] }", (2, 3, 2, 2)),
        ("axis: 1 shape { dim: [-1] }", (2, 12)),
        ("axis: 1 shape { dim: [0, 2, -1] }", (2, 3, 2, 2)),
        ("axis: 1 num_axes: 1 shape { dim: [3, 1] }", (2, 3, 1, 4)),
        ("axis: 1 num_axes: 0 shape { dim: [1, 1] }", (2, 1, 1, 3, 4)),
        ("axis: -1 shape { dim: [1, 1] }", (2, 3, 4, 1, 1)),
        ("axis: -2 shape { dim: [2, 2] }", (2, 3, 2, 2)),
        ("axis: 3 shape { dim: 1 }", (2, 3, 4, 1)),
        ("axis: -4 num_axes: 2 shape { dim: -1 }", (6, 4)),
    ],
)
def test_reshape(param, expected):
    x = np.arange(24.0).reshape(2, 3, 4)
    runner = Runner(f'type: "Reshape" reshape_param {{ {param} }}', x)
    (y,) = runner.forward()
    assert y.shape == expected
    assert y.ravel().tolist() == x.ravel().tolist()
    assert runner.top[0].data_storage is runner.bottom[0].data_storage
    check_gradients(runner, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("param", "message"),
    [
        ("shape { dim: [-1, -1] }", "only one extent may be -1"),
        ("shape { dim: -2 }", "extents, 0 and -1 only"),
        ("shape { dim: [5, -1] }", "instead of 24"),
        ("axis: 1 shape { dim: [2, 0, -1] }", r"\(2, 2, 4, 1\), 16 numbers instead of 24"),
        ("shape { dim: [2, 3] }", "6 numbers instead of 24"),
        ("shape { dim: [0, 0, 0, 0] }", "copies axis 3 of the bottom"),
        ("axis: 4 shape { dim: 1 }", "legal are -4 to 3"),
        ("axis: -5 shape { dim: 1 }", "legal are -4 to 3"),
        ("axis: 2 num_axes: 2 shape { dim: 1 }", "num_axes 2 from axis 2 on does not fit"),
        ("num_axes: -2 shape { dim: 1 }", "num_axes -2 from axis 0 on does not fit"),
    ],
)
def test_reshape_refuses(param, message):
    with pytest.raises(LayerError, match=message):
        Runner(f'type: "Reshape" reshape_param {{ {param} }}', np.ones((2, 3, 4)))


@given(shape=shapes, data=st.data(), tiles=st.integers(1, 3))
@settings(deadline=None, max_examples=30)
def test_tile(shape, data, tiles):
    axis = axis_of(data, shape)
    rng = np.random.default_rng(0)
    runner = Runner(
        f'type: "Tile" tile_param {{ axis: {axis} tiles: {tiles} }}', rng.normal(size=shape)
    )
    expected = np.concatenate([runner.values[0]] * tiles, axis=axis)
    np.testing.assert_array_equal(runner.forward()[0], expected)
    check_gradients(runner, rng)


@given(shape=shapes, data=st.data())
@settings(deadline=None, max_examples=40)
def test_crop(shape, data):
    axis = data.draw(st.integers(0, len(shape) - 1))
    wanted = [data.draw(st.integers(1, extent)) for extent in shape]
    room = [shape[i] - wanted[i] for i in range(axis, len(shape))]
    style = data.draw(st.sampled_from(["none", "one", "each"]))
    if style == "one":
        offsets = [data.draw(st.integers(0, min(room)))]
    else:
        offsets = [data.draw(st.integers(0, each)) for each in room] if style == "each" else []
    param = f"axis: {axis - len(shape)} " + "".join(f"offset: {each} " for each in offsets)
    rng = np.random.default_rng(0)
    runner = Runner(
        f'type: "Crop" crop_param {{ {param} }}', rng.normal(size=shape), np.zeros(wanted)
    )
    full = offsets if style == "each" else (offsets or [0]) * len(room)
    part = (slice(None),) * axis + tuple(
        slice(offset, offset + wanted[axis + i]) for i, offset in enumerate(full)
    )
    np.testing.assert_array_equal(runner.forward()[0], runner.values[0][part])
    check_gradients(runner, rng, bottoms=[0])


def test_crop_never_writes_the_second_diff():
    runner = Runner('type: "Crop"', np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2)))
    (y,) = runner.forward()
    assert np.isnan(runner.backward(np.ones_like(y))[1]).all()


@pytest.mark.parametrize(
    ("text", "bottom_shapes", "tops", "message"),
    [
        ('type: "Concat"', [(2, 3), (3, 3)], 1, "one shape but for axis 1"),
        ('type: "Concat"', [(2, 3), (2, 3, 1)], 1, "one shape but for axis 1"),
        ('type: "Concat" concat_param { axis: 1 concat_dim: 1 }', [(2, 3)], 1, "not both"),
        ('type: "Concat" concat_param { concat_dim: 2 }', [(2, 3)], 1, "concat_dim 2 is out of"),
        ('type: "Slice"', [(2, 3)], 2, "cannot cut 3 along axis 1 into 2 equal parts"),
        ('type: "Slice" slice_param { slice_point: 1 }', [(2, 3)], 3, "need 2 slice_point"),
        ('type: "Slice" slice_param { slice_point: [2, 2] }', [(2, 3)], 3, "rise strictly"),
        ('type: "Slice" slice_param { slice_point: 3 }', [(2, 3)], 2, "rise strictly"),
        ('type: "Slice" slice_param { axis: 1 slice_dim: 1 }', [(2, 2)], 2, "not both"),
        ('type: "Flatten" flatten_param { axis: 1 end_axis: 0 }', [(2, 3)], 1, "comes after"),
        ('type: "Flatten" flatten_param { end_axis: 2 }', [(2, 3)], 1, "end_axis 2 is out of"),
        ('type: "Tile"', [(2, 3)], 1, "tiles must be given"),
        ('type: "Crop"', [(1, 1, 3, 3), (1, 1, 4, 2)], 1, "cannot take 4 from offset 0"),
        ('type: "Crop" crop_param { offset: 2 }', [(1, 1, 3, 3), (1, 1, 2, 2)], 1, "offset 2"),
        (
            'type: "Crop" crop_param { axis: 0 offset: [0, 0] }',
            [(1, 1, 3, 3), (1, 1, 2, 2)],
            1,
            "once per cropped axis",
        ),
        ('type: "Crop"', [(1, 1, 3, 3), (2, 2)], 1, "has fewer axes"),
    ],
)
def test_refuses(text, bottom_shapes, tops, message):
    with pytest.raises(NetError, match=message):
        Runner(text, *(np.zeros(shape) for shape in bottom_shapes), tops=tops)


@pytest.mark.parametrize("kind", ["Split", "Flatten", "Reshape"])
def test_sharing_layers_refuse_in_place(kind):
    param = "reshape_param { shape { dim: [2, 3] } }" if kind == "Reshape" else ""
    assert not Runner(f'type: "{kind}" {param}', np.ones((2, 3))).layer.in_place
