import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocaffe.errors import LayerError
from tests.layers.gradient_check import Runner, check_gradients

quick = settings(max_examples=25, deadline=None)


def numbered(shape):
    return np.arange(np.prod(shape), dtype=float).reshape(shape)


def orders(text):
    return " ".join(f"order: {axis}" for axis in text)


@st.composite
def permutations(draw):
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    order = draw(st.permutations(range(len(shape))))
    return tuple(shape), order, draw(st.integers(0, len(shape)))


@quick
@given(permutations())
def test_permute(case):
    shape, order, given_axes = case
    x = numbered(shape)
    text = f'type: "Permute" permute_param {{ {orders(order[:given_axes])} }}'
    (y,) = Runner(text, x).forward()
    full = [*order[:given_axes], *sorted(order[given_axes:])]
    assert y.shape == tuple(shape[axis] for axis in full)
    for place in itertools.product(*map(range, y.shape)):
        source = [0] * len(shape)
        for axis, index in zip(full, place, strict=True):
            source[axis] = index
        assert y[place] == x[tuple(source)]


@quick
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_shuffle_channel(n, group, column, width):
    x = numbered((n, group * column, width, 2))
    text = f'type: "ShuffleChannel" shuffle_channel_param {{ group: {group} }}'
    (y,) = Runner(text, x).forward()
    for i, j in itertools.product(range(group), range(column)):
        np.testing.assert_array_equal(y[:, j * group + i], x[:, i * column + j])


def darknet(x, stride, reverse):
    """What darknet's reorg_cpu does, index by index."""
    n, c, h, w = x.shape
    planes = c // stride**2
    flat, out = x.ravel(), np.empty(x.size)
    for b, k, j, i in itertools.product(range(n), range(c), range(h), range(w)):
        plain = i + w * (j + h * (k + c * b))
        offset, plane = divmod(k, planes)
        row, column = j * stride + offset // stride, i * stride + offset % stride
        image = column + w * stride * (row + h * stride * (plane + planes * b))
        if reverse:
            out[image] = flat[plain]
        else:
            out[plain] = flat[image]
    return out


@quick
@given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_reorg(n, stride, height, width, reverse):
    x = numbered((n, 2 * stride**2, height * stride, width * stride))
    text = f"reorg_param {{ stride: {stride} reverse: {str(reverse).lower()} }}"
    (y,) = Runner(f'type: "Reorg" {text}', x).forward()
    s = 1 / stride if reverse else stride
    assert y.shape == (n, x.shape[1] * s * s, x.shape[2] / s, x.shape[3] / s)
    np.testing.assert_array_equal(y.ravel(), darknet(x, stride, reverse))


@pytest.mark.parametrize(
    "text",
    [
        'type: "Permute" permute_param { order: 0 order: 2 order: 3 order: 1 }',
        'type: "ShuffleChannel" shuffle_channel_param { group: 4 }',
        'type: "Reorg" reorg_param { stride: 2 }',
        'type: "Reorg" reorg_param { stride: 2 reverse: true }',
    ],
)
def test_gradient(text):
    rng = np.random.default_rng(0)
    check_gradients(Runner(text, rng.normal(size=(2, 8, 2, 4))), rng)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('type: "Permute" permute_param { order: 4 }', "order must name axes 0 to 3"),
        ('type: "Permute" permute_param { order: 1 order: 1 }', "each once at most; got 1, 1"),
        ('type: "ShuffleChannel" shuffle_channel_param { group: 3 }', "3 does not divide .* 8"),
        ('type: "ShuffleChannel" shuffle_channel_param { group: 0 }', "0 does not divide"),
        ('type: "Reorg"', "stride is missing"),
        ('type: "Reorg" reorg_param { stride: 3 }', "a multiple of 9 channels"),
        ('type: "Reorg" reorg_param { stride: 2 }', "does not divide the height and width"),
    ],
)
def test_refuses(text, message):
    with pytest.raises(LayerError, match=message):
        Runner(text, np.ones((2, 8, 3, 4)))
