import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocaffe.errors import LayerError
from tests.layers.gradient_check import Runner, check_gradients


@st.composite
def operands(draw):
    """Draw a bottom's shape, the axis of the operand, its number of axes and its shape."""
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)))
    axis = draw(st.integers(0, len(shape) - 1))
    num_axes = draw(st.integers(-1, len(shape) - axis))
    covered = shape[axis:] if num_axes == -1 else shape[axis : axis + num_axes]
    return shape, draw(st.sampled_from([axis, axis - len(shape)])), num_axes, covered


def spread(operand, shape, axis):
    """Repeat an operand over the axes before and after it."""
    axis = axis % len(shape) if operand.ndim else 0
    after = (1,) * (len(shape) - axis - operand.ndim) if operand.ndim else ()
    return np.broadcast_to(operand.reshape(operand.shape + after), shape)


@given(operands(), st.booleans(), st.booleans(), st.booleans(), st.integers(0, 999))
@settings(deadline=None, max_examples=60)
def test_scale(case, learned, bias, in_place, seed):
    shape, axis, num_axes, covered = case
    rng = np.random.default_rng(seed)
    text = (
        f'type: "Scale" scale_param {{ axis: {axis} num_axes: {num_axes} '
        f"bias_term: {str(bias).lower()} }}"
    )
    bottoms = [rng.normal(size=shape)] + ([] if learned else [rng.normal(size=covered)])
    runner = Runner(text, *bottoms, in_place=in_place)
    assert [blob.shape for blob in runner.layer.blobs] == [covered] * (learned + bias)
    runner.fill_blobs(rng)
    factor = runner.layer.blobs[0].data if learned else runner.values[1]
    expected = runner.values[0] * spread(factor, shape, axis)
    if bias:
        expected = expected + spread(runner.layer.blobs[-1].data, shape, axis)
    np.testing.assert_allclose(runner.forward()[0], expected)
    if math.prod(shape) < 40:
        check_gradients(runner, rng)


@given(operands(), st.booleans(), st.booleans(), st.integers(0, 999))
@settings(deadline=None, max_examples=40)
def test_bias(case, learned, in_place, seed):
    shape, axis, num_axes, covered = case
    rng = np.random.default_rng(seed)
    text = f'type: "Bias" bias_param {{ axis: {axis} num_axes: {num_axes} }}'
    bottoms = [rng.normal(size=shape)] + ([] if learned else [rng.normal(size=covered)])
    runner = Runner(text, *bottoms, in_place=in_place).fill_blobs(rng)
    shift = runner.layer.blobs[0].data if learned else runner.values[1]
    np.testing.assert_allclose(runner.forward()[0], runner.values[0] + spread(shift, shape, axis))
    if math.prod(shape) < 40:
        check_gradients(runner, rng)


def test_default_fillers_change_nothing():
    x = np.arange(6.0).reshape(2, 3)
    for text in ('type: "Scale" scale_param { bias_term: true }', 'type: "Bias"'):
        np.testing.assert_array_equal(Runner(text, x).forward()[0], x)


def test_frozen_parameters_get_no_gradient():
    runner = Runner('type: "Scale" scale_param { bias_term: true }', np.ones((2, 3)))
    runner.layer.param_propagate_down = [False, False]
    runner.forward()
    runner.backward(np.ones((2, 3)))
    assert not any(blob.diff.any() for blob in runner.layer.blobs)


def test_the_operand_alone_may_want_its_gradient():
    x, a = np.arange(6.0).reshape(2, 3), np.ones(3)
    runner = Runner('type: "Scale"', x, a)
    runner.forward()
    nothing, da = runner.backward(np.ones((2, 3)), propagate_down=[False, True])
    assert nothing is None
    np.testing.assert_allclose(da, x.sum(axis=0))


@pytest.mark.parametrize(
    ("param", "shapes", "message"),
    [
        ("num_axes: -2", [(2, 3)], "num_axes must be -1 or more"),
        ("axis: 2", [(2, 3)], "axis 2 is out of range"),
        ("num_axes: 2", [(2, 3)], "reach beyond bottom 0"),
        ("", [(2, 3), (2,)], r"does not cover bottom 0 \(2, 3\) from axis 1 on"),
        ("", [(2, 3), (3, 1)], "reach beyond bottom 0"),
    ],
)
def test_refuses(param, shapes, message):
    with pytest.raises(LayerError, match=message):
        Runner(f'type: "Scale" scale_param {{ {param} }}', *(np.ones(shape) for shape in shapes))


@given(st.lists(st.integers(1, 3), min_size=2, max_size=4), st.booleans(), st.integers(0, 999))
@settings(deadline=None, max_examples=25)
def test_axpy(shape, padded, seed):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(*shape[:2], *[1] * (len(shape) - 2)) if padded else shape[:2])
    runner = Runner('type: "Axpy"', a, *rng.normal(size=(2, *shape)))
    (y,) = runner.forward()
    x, b = runner.values[1:]
    for place in np.ndindex(*shape):
        gate = a.reshape(shape[:2])[place[:2]]
        assert y[place] == pytest.approx(gate * x[place] + b[place])
    check_gradients(runner, rng)


@pytest.mark.parametrize(
    "shapes",
    [
        [(2, 3), (2, 3, 4), (2, 3, 5)],
        [(2, 2), (2, 3, 4), (2, 3, 4)],
        [(2, 3, 4), (2, 3, 4), (2, 3, 4)],
        [(2,), (2,), (2,)],
    ],
)
def test_axpy_refuses(shapes):
    with pytest.raises(LayerError, match=r"needs shapes \(N, C\), \(N, C, ...\) and the same"):
        Runner('type: "Axpy"', *(np.ones(shape) for shape in shapes))


def test_a_bias_keeps_the_shape_it_was_made_for():
    runner = Runner('type: "Scale" scale_param { bias_term: true }', np.ones((2, 3)), np.ones(3))
    for blob, shape in zip(runner.bottom, ((2, 4), (4,)), strict=True):
        blob.reshape(shape)
    with pytest.raises(LayerError, match=r"bias was set up for .*\(3,\); bottom 1 now .* \(4,\)"):
        runner.layer.reshape(runner.bottom, runner.top)
