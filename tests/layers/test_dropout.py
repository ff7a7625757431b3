import math

import numpy as np
import pytest

from protocaffe.errors import LayerError
from protocaffe.proto import caffe_pb2
from tests.layers.gradient_check import Runner


@pytest.mark.parametrize("in_place", [False, True])
def test_keeps_the_share_and_scales(in_place):
    x = np.full((100, 100), 2.0)
    text = 'type: "Dropout" dropout_param { dropout_ratio: 0.3 }'
    runner = Runner(text, x, in_place=in_place)
    (y,) = runner.forward()
    kept = y != 0
    np.testing.assert_allclose(y[kept], 2 / 0.7, rtol=1e-6)
    assert kept.mean() == pytest.approx(0.7, abs=5 * math.sqrt(0.21 / x.size))
    dy = np.arange(x.size, dtype=float).reshape(x.shape)
    np.testing.assert_allclose(runner.backward(dy)[0], dy * kept / 0.7, rtol=1e-6)


@pytest.mark.parametrize("in_place", [False, True])
def test_does_nothing_in_the_test_phase(in_place):
    x = np.arange(6.0).reshape(2, 3)
    runner = Runner('type: "Dropout"', x, phase=caffe_pb2.TEST, in_place=in_place)
    np.testing.assert_array_equal(runner.forward()[0], x)
    np.testing.assert_array_equal(runner.backward(x)[0], x)


def test_draws_a_new_mask_every_time():
    runner = Runner('type: "Dropout"', np.ones(1000))
    runner.forward()
    masks = []
    for _ in range(2):
        runner.layer.forward(runner.bottom, runner.top)
        masks.append(runner.top[0].data.copy())
    assert (masks[0] != masks[1]).any()


@pytest.mark.parametrize("ratio", [-0.5, 1])
def test_refuses(ratio):
    with pytest.raises(LayerError, match="at least 0 and below 1"):
        Runner(f'type: "Dropout" dropout_param {{ dropout_ratio: {ratio} }}', np.ones(2))


def test_scaling_in_testing_instead_of_training():
    x = np.full((100, 100), 2.0)
    text = 'type: "Dropout" dropout_param { dropout_ratio: 0.25 scale_train: false }'
    assert set(np.unique(Runner(text, x).forward()[0])) == {0, 2}
    for in_place in (False, True):
        tested = Runner(text, x, phase=caffe_pb2.TEST, in_place=in_place)
        np.testing.assert_array_equal(tested.forward()[0], 1.5)
        np.testing.assert_array_equal(tested.backward(np.ones(x.shape))[0], 0.75)


def test_dropping_in_testing_too():
    text = 'type: "Dropout" dropout_param { dropout_ratio: 0.25 sample_weights_test: true }'
    values = Runner(text, np.ones((100, 100)), phase=caffe_pb2.TEST).forward()[0]
    np.testing.assert_allclose(np.unique(values), [0, 4 / 3], rtol=1e-6)
