import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.layers.gradient_check import Runner, check_gradients


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
    data=st.data(),
    in_place=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=40)
def test_softmax(shape, data, in_place, seed):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    rng = np.random.default_rng(seed)
    text = f'type: "Softmax" softmax_param {{ axis: {axis} }}'
    runner = Runner(text, rng.normal(size=shape), in_place=in_place)
    (y,) = runner.forward()
    columns = np.moveaxis(runner.values[0], axis, -1).reshape(-1, shape[axis])
    for x, row in zip(columns, np.moveaxis(y, axis, -1).reshape(columns.shape), strict=True):
        total = sum(math.exp(each) for each in x)
        np.testing.assert_allclose(row, [math.exp(each) / total for each in x])
    if math.prod(shape) < 40:
        check_gradients(runner, rng)


def test_large_scores_do_not_overflow():
    x = np.array([[1000.0, 999.0], [-1000.0, -1001.0]], np.float32)
    (y,) = Runner('type: "Softmax"', x, dtype=np.float32).forward()
    np.testing.assert_allclose(y, [[1 / (1 + math.exp(-1)), 1 / (1 + math.e)]] * 2, rtol=1e-6)
