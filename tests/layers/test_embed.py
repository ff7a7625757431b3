import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocaffe.errors import LayerError
from tests.layers.gradient_check import Runner, check_gradients


@given(
    shape=st.lists(st.integers(1, 3), max_size=3).map(tuple),
    bias=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=30)
def test_looks_up_rows(shape, bias, seed):
    rng = np.random.default_rng(seed)
    index = rng.integers(0, 4, shape)
    param = f"input_dim: 4 num_output: 3 bias_term: {str(bias).lower()}"
    runner = Runner(f'type: "Embed" embed_param {{ {param} }}', index).fill_blobs(rng)
    weights, *biases = (blob.data for blob in runner.layer.blobs)
    (y,) = runner.forward()
    assert y.shape == (*shape, 3)
    for place in np.ndindex(*shape):
        row = weights[index[place]] + (biases[0] if bias else 0)
        np.testing.assert_allclose(y[place], row)
    check_gradients(runner, rng, bottoms=[])


def test_has_a_bias_by_default_and_cuts_the_index():
    runner = Runner('type: "Embed" embed_param { input_dim: 2 num_output: 1 }', [1.9])
    assert len(runner.layer.blobs) == 2
    runner.layer.blobs[0].data[...] = [[5], [7]]
    assert runner.forward()[0].tolist() == [[7]]


def test_frozen_parameters_get_no_gradient():
    runner = Runner('type: "Embed" embed_param { input_dim: 2 num_output: 1 }', [1])
    runner.layer.param_propagate_down = [False, False]
    runner.forward()
    runner.backward(1, propagate_down=[False])
    assert not any(blob.diff.any() for blob in runner.layer.blobs)


def test_refuses():
    with pytest.raises(LayerError, match="num_output and input_dim must be at least 1"):
        Runner('type: "Embed" embed_param { input_dim: 2 }', [1])
    runner = Runner('type: "Embed" embed_param { input_dim: 2 num_output: 1 }', [0, 2])
    with pytest.raises(LayerError, match="index 2 of sample 1 is out of range"):
        runner.forward()
    with pytest.raises(LayerError, match="has no gradient for the index"):
        runner.backward(1)
