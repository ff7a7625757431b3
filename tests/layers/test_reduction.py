import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocaffe.errors import LayerError
from tests.layers.gradient_check import Runner, check_gradients, spaced

OPERATIONS = {
    "SUM": sum,
    "ASUM": lambda xs: sum(abs(x) for x in xs),
    "SUMSQ": lambda xs: sum(x * x for x in xs),
    "MEAN": lambda xs: sum(xs) / len(xs),
}


@given(
    shape=st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple),
    data=st.data(),
    operation=st.sampled_from(sorted(OPERATIONS)),
    coeff=st.sampled_from([1.0, -0.5]),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=40)
def test_reduces_the_tail(shape, data, operation, coeff, seed):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    rng = np.random.default_rng(seed)
    param = f"operation: {operation} axis: {axis} coeff: {coeff}"
    runner = Runner(f'type: "Reduction" reduction_param {{ {param} }}', spaced(rng, shape))
    (y,) = runner.forward()
    assert y.shape == shape[: axis % len(shape)]
    for xs, result in zip(runner.values[0].reshape(max(1, y.size), -1), y.ravel(), strict=True):
        assert result == pytest.approx(coeff * OPERATIONS[operation](xs.tolist()))
    check_gradients(runner, rng)


def test_the_absolute_sum_has_slope_0_at_0():
    runner = Runner('type: "Reduction" reduction_param { operation: ASUM }', np.zeros(1))
    runner.forward()
    assert runner.backward(3)[0] == 0


def test_refuses_a_scalar():
    with pytest.raises(LayerError, match="axis 0 is out of range for a blob with 0 axes"):
        Runner('type: "Reduction"', np.ones(()))
