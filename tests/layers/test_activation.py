import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocaffe.errors import LayerError
from tests.layers.gradient_check import Runner, check_gradients, spaced


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


# Prototxt, and the function in plain Python.
FUNCTIONS = {
    "abs": ('type: "AbsVal"', abs),
    "bnll": ('type: "BNLL"', lambda x: math.log(1 + math.exp(x))),
    "clip": (
        'type: "Clip" clip_param { min: -0.5 max: 1.03125 }',
        lambda x: max(-0.5, min(1.03125, x)),
    ),
    "elu": (
        'type: "ELU" elu_param { alpha: 0.75 }',
        lambda x: x if x > 0 else 0.75 * (math.exp(x) - 1),
    ),
    "exp": ('type: "Exp" exp_param { scale: 0.5 shift: 0.25 }', lambda x: math.exp(0.25 + x / 2)),
    "exp of 2": (
        'type: "Exp" exp_param { base: 2 scale: 0.5 shift: 0.25 }',
        lambda x: 2 ** (0.25 + x / 2),
    ),
    "log": ('type: "Log" log_param { shift: 8 }', lambda x: math.log(8 + x)),
    "log of 2": (
        'type: "Log" log_param { base: 2 scale: 0.5 shift: 8 }',
        lambda x: math.log2(8 + x / 2),
    ),
    "power": (
        'type: "Power" power_param { power: 1.5 scale: 0.5 shift: 8 }',
        lambda x: (8 + x / 2) ** 1.5,
    ),
    "power without shift": ('type: "Power" power_param { power: 3 }', lambda x: x**3),
    "power 2": (
        'type: "Power" power_param { power: 2 scale: -3 shift: 1 }',
        lambda x: (1 - 3 * x) ** 2,
    ),
    "power 1": ('type: "Power" power_param { scale: -3 shift: 1 }', lambda x: 1 - 3 * x),
    "power 0": ('type: "Power" power_param { power: 0 }', lambda x: 1),
    "power of nothing": (
        'type: "Power" power_param { power: 3 scale: 0 shift: 2 }',
        lambda x: 8,
    ),
    "relu": ('type: "ReLU"', lambda x: max(x, 0)),
    "relu6": ('type: "ReLU6"', lambda x: min(max(x, 0), 6)),
    "leaky relu": (
        'type: "ReLU" relu_param { negative_slope: 0.25 }',
        lambda x: x if x > 0 else 0.25 * x,
    ),
    "sigmoid": ('type: "Sigmoid"', sigmoid),
    "swish": ('type: "Swish" swish_param { beta: 1.5 }', lambda x: x * sigmoid(1.5 * x)),
    "tanh": ('type: "TanH"', math.tanh),
    "threshold": ('type: "Threshold" threshold_param { threshold: 0.25 }', lambda x: x > 0.25),
}
shapes = st.lists(st.integers(0, 3), max_size=4).map(tuple)


@pytest.mark.parametrize("name", FUNCTIONS)
@given(shape=shapes, seed=st.integers(0, 999))
@settings(deadline=None, max_examples=10)
def test_is_the_function_of_every_number(name, shape, seed):
    text, function = FUNCTIONS[name]
    x = spaced(np.random.default_rng(seed), shape)
    (y,) = Runner(text, x).forward()
    assert y.shape == shape
    expected = np.array([function(each) for each in x.ravel()], float).reshape(shape)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - {"threshold"}))
def test_gradient(name):
    rng = np.random.default_rng(0)
    for shape in ((3, 2, 4), ()):
        check_gradients(Runner(FUNCTIONS[name][0], spaced(rng, shape)), rng)


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - {"abs", "threshold"}))
def test_in_place_gives_the_same(name):
    rng = np.random.default_rng(0)
    x, dy = spaced(rng, (3, 4)), rng.normal(size=(3, 4))
    apart, within = (Runner(FUNCTIONS[name][0], x, in_place=place) for place in (False, True))
    np.testing.assert_array_equal(apart.forward()[0], within.forward()[0])
    np.testing.assert_array_equal(apart.backward(dy)[0], within.backward(dy)[0])


@pytest.mark.parametrize("text", [text for text, _ in FUNCTIONS.values()])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_keeps_the_type(text, dtype):
    runner = Runner(text, np.ones((2, 2)), dtype=dtype)
    assert runner.forward()[0].dtype == dtype


def test_abs_refuses_in_place():
    assert not Runner('type: "AbsVal"', np.ones(2)).layer.in_place


@pytest.mark.parametrize("name", ["relu", "leaky relu", "elu", "abs", "clip"])
def test_the_gradient_at_the_kink(name):
    text = FUNCTIONS[name][0]
    x = [0.0, -0.5, 1.03125] if name == "clip" else [0.0]
    runner = Runner(text, np.array(x, np.float32), dtype=np.float32)
    runner.forward()
    at_kink = {"relu": [0], "leaky relu": [0.25], "elu": [0.75], "abs": [0], "clip": [1, 1, 1]}
    assert runner.backward(np.ones(len(x)))[0].tolist() == at_kink[name]


def test_large_numbers_stay_finite():
    x = np.array([-1000.0, 1000.0])
    for text, expected in (
        ('type: "Sigmoid"', [0, 1]),
        ('type: "BNLL"', [0, 1000]),
        ('type: "ELU"', [-1, 1000]),
        ('type: "Swish"', [0, 1000]),
    ):
        runner = Runner(text, x)
        np.testing.assert_allclose(runner.forward()[0], expected)
        assert np.isfinite(runner.backward(np.ones(2))[0]).all()


def test_what_has_no_value_is_nan_or_infinite_without_a_warning():
    (y,) = Runner('type: "Log"', np.array([0.0, -1.0])).forward()
    np.testing.assert_array_equal(y, [-np.inf, np.nan])
    runner = Runner('type: "Power" power_param { power: 0.5 }', np.array([0.0, 4.0]))
    runner.forward()
    np.testing.assert_array_equal(runner.backward(np.ones(2))[0], [np.nan, 0.25])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('type: "Exp" exp_param { base: 0 }', "base must be positive"),
        ('type: "Log" log_param { base: -2 }', "base must be positive"),
        ('type: "Log" log_param { base: 1 }', "base must not be 1"),
        ('type: "Clip"', "both min and max must be given"),
    ],
)
def test_refuses(text, message):
    with pytest.raises(LayerError, match=message):
        Runner(text, np.ones(2))


def test_threshold_has_no_gradient():
    runner = Runner('type: "Threshold"', np.ones(2))
    runner.forward()
    with pytest.raises(LayerError, match="has no gradient"):
        runner.backward(1)


@given(
    shape=st.lists(st.integers(1, 3), min_size=2, max_size=5).map(tuple),
    shared=st.booleans(),
    in_place=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=30)
def test_prelu(shape, shared, in_place, seed):
    rng = np.random.default_rng(seed)
    text = f'type: "PReLU" prelu_param {{ channel_shared: {str(shared).lower()} }}'
    runner = Runner(text, spaced(rng, shape), in_place=in_place)
    assert runner.layer.blobs[0].shape == (() if shared else (shape[1],))
    assert (runner.layer.blobs[0].data == 0.25).all()
    runner.fill_blobs(rng)
    (y,) = runner.forward()
    for index, x in np.ndenumerate(runner.values[0]):
        slope = runner.layer.blobs[0].data if shared else runner.layer.blobs[0].data[index[1]]
        assert y[index] == pytest.approx(x if x > 0 else slope * x)
    if math.prod(shape) < 40:
        check_gradients(runner, rng)


@pytest.mark.parametrize("slope", [-2.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("in_place", [False, True])
def test_bend_whatever_the_slope(slope, in_place):
    x = np.array([[-3.0, 0.0, 2.0]])
    expected = [[-3 * slope, 0, 2]]
    leaky = Runner(f'type: "ReLU" relu_param {{ negative_slope: {slope} }}', x, in_place=in_place)
    np.testing.assert_array_equal(leaky.forward()[0], expected)
    learned = Runner(
        f'type: "PReLU" prelu_param {{ filler {{ value: {slope} }} }}', x, in_place=in_place
    )
    np.testing.assert_array_equal(learned.forward()[0], expected)


def test_prelu_at_zero_uses_the_slope():
    runner = Runner('type: "PReLU"', np.zeros((1, 1)))
    runner.forward()
    assert runner.backward(2)[0].item() == 0.5


def test_prelu_refuses_a_bottom_without_channels():
    with pytest.raises(LayerError, match=r"needs a bottom \(N, C"):
        Runner('type: "PReLU"', np.ones(3))
    runner = Runner('type: "PReLU"', np.ones((1, 2)))
    runner.bottom[0].reshape(1, 3)
    with pytest.raises(LayerError, match="was set up for 2 channels"):
        runner.layer.reshape(runner.bottom, runner.top)


def test_relu6_has_two_kinks_and_no_slope_below():
    runner = Runner('type: "ReLU6"', np.array([-1.0, 0, 0.5, 5.5, 6, 7]))
    assert runner.forward()[0].tolist() == [0, 0, 0.5, 5.5, 6, 6]
    assert runner.backward(np.ones(6))[0].tolist() == [0, 0, 1, 1, 0, 0]
    with pytest.raises(LayerError, match="takes no negative_slope"):
        Runner('type: "ReLU6" relu6_param { negative_slope: 0.1 }', np.ones(2))
