import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocaffe.errors import LayerError
from tests.layers.gradient_check import Runner, check_gradients


@given(
    shape=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    data=st.data(),
    transpose=st.booleans(),
    bias=st.booleans(),
    outputs=st.integers(1, 3),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=40)
def test_is_the_naive_product_and_has_its_gradients(shape, data, transpose, bias, outputs, seed):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    rng = np.random.default_rng(seed)
    runner = Runner(
        f'type: "InnerProduct" inner_product_param {{ num_output: {outputs} axis: {axis} '
        f"transpose: {str(transpose).lower()} bias_term: {str(bias).lower()} }}",
        rng.normal(size=shape),
    ).fill_blobs(rng)
    weights, *biases = (blob.data for blob in runner.layer.blobs)
    if transpose:
        weights = weights.T
    (y,) = runner.forward()
    assert y.shape == (*shape[: axis % len(shape)], outputs)
    rows = runner.values[0].reshape(-1, weights.shape[1])
    for index, row in np.ndenumerate(y.reshape(-1, outputs)):
        m, n = index
        expected = sum(a * w for a, w in zip(rows[m], weights[n], strict=True))
        assert row == pytest.approx(expected + (biases[0][n] if biases else 0))
    check_gradients(runner, rng)


def test_frozen_parameters_get_no_gradient():
    runner = Runner('type: "InnerProduct" inner_product_param { num_output: 2 }', np.ones((2, 3)))
    runner.layer.param_propagate_down = [False, False]
    (y,) = runner.forward()
    runner.backward(np.ones_like(y))
    assert not any(blob.diff.any() for blob in runner.layer.blobs)


def test_refuses_what_does_not_fit():
    with pytest.raises(LayerError, match="num_output must be at least 1"):
        Runner('type: "InnerProduct"', np.ones((2, 3)))
    runner = Runner('type: "InnerProduct" inner_product_param { num_output: 2 }', np.ones((2, 3)))
    runner.bottom[0].reshape(2, 4)
    with pytest.raises(LayerError, match="was set up for 3 inputs from axis 1 on"):
        runner.layer.reshape(runner.bottom, runner.top)
