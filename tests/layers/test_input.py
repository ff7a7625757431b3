import numpy as np
import pytest

from protocaffe.errors import LayerError
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import parse_text
from tests.layers.gradient_check import Runner


def test_input_takes_one_shape_for_all_one_each_or_none():
    one = Runner('type: "Input" input_param { shape { dim: [2, 3] } }', tops=2)
    assert [blob.shape for blob in one.top] == [(2, 3), (2, 3)]
    each = Runner('type: "Input" input_param { shape { dim: 2 } shape { } }', tops=2)
    assert [blob.shape for blob in each.top] == [(2,), ()]
    none = Runner('type: "Input"')
    none.top[0].reshape(4)
    none.top[0].data[...] = 7
    none.layer.reshape(none.bottom, none.top)
    assert none.forward()[0].tolist() == [7] * 4


def test_input_refuses_another_number_of_shapes():
    with pytest.raises(LayerError, match=r"shape must be given once or once per top \(3\), got 2"):
        Runner('type: "Input" input_param { shape { dim: 2 } shape { dim: 3 } }', tops=3)


def test_dummy_data_refills_all_but_constants():
    runner = Runner(
        'type: "DummyData" dummy_data_param { shape { dim: [2, 3] } '
        'data_filler { value: 5 } data_filler { type: "gaussian" } }',
        tops=2,
    )
    constant, random = (blob.data.copy() for blob in runner.top)
    assert (constant == 5).all()
    runner.top[0].data[...] = 6
    after = runner.forward()
    assert (after[0] == 6).all()
    assert (after[1] != random).all()
    assert runner.backward(0, 0) == []


def test_dummy_data_knows_the_old_shapes():
    runner = Runner(
        'type: "DummyData" dummy_data_param { num: 2 num: 4 channels: 3 height: 1 width: 5 }',
        tops=2,
    )
    assert [blob.shape for blob in runner.top] == [(2, 3, 1, 5), (4, 3, 1, 5)]
    assert not any(y.any() for y in runner.forward())


@pytest.mark.parametrize(
    ("param", "tops", "message"),
    [
        ("shape { dim: 1 } num: 1", 1, "not both"),
        ("num: 1 channels: 2 height: 3", 1, "width must be given once"),
        ("shape { dim: 1 } data_filler { } data_filler { }", 1, "data_filler must be given once"),
        ('shape { dim: 1 } data_filler { type: "nosuch" }', 1, "unknown filler 'nosuch'"),
        ("", 1, "num must be given once"),
    ],
)
def test_dummy_data_refuses(param, tops, message):
    with pytest.raises(LayerError, match=message):
        Runner(f'type: "DummyData" dummy_data_param {{ {param} }}', tops=tops)


def test_parameter_is_its_top():
    runner = Runner('type: "Parameter" parameter_param { shape { dim: [2, 3] } }')
    blob = runner.layer.blobs[0]
    assert blob.shape == (2, 3)
    blob.data[...] = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(runner.forward()[0], blob.data)
    runner.top[0].diff[...] = 3
    runner.layer.backward(runner.top, [], [])
    assert (blob.diff == 3).all()


def test_a_shared_parameter_is_the_top_of_every_layer_that_shares_it():
    text = """
    layer { name: "p" type: "Parameter" top: "w" param { name: "w" }
            parameter_param { shape { dim: 2 } } }
    layer { name: "q" type: "Parameter" top: "v" param { name: "w" }
            parameter_param { shape { dim: 2 } } }
    """
    train = Net(parse_text(text, caffe_pb2.NetParameter()), caffe_pb2.TRAIN)
    test = Net(parse_text(text, caffe_pb2.NetParameter()), caffe_pb2.TEST, shared=train)
    train.params["p"][0].data[...] = [1, 2]
    for net in (train, test):
        net.forward()
        for name in ("w", "v"):
            assert net.blobs[name].data.tolist() == [1, 2]
