import numpy as np
import pytest

from benchmarks.problem import Problem, ProblemError, with_inputs, without_dropout
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import parse_text


def net(text: str) -> caffe_pb2.NetParameter:
    return parse_text(text, caffe_pb2.NetParameter())


def shapes(layer: caffe_pb2.LayerParameter) -> list[list[int]]:
    return [list(shape.dim) for shape in layer.input_param.shape]


DATA = """
layer {
  name: "mnist" type: "Data" top: "data" top: "label"
  include { phase: TRAIN }
  transform_param { scale: 0.00390625 }
  data_param { source: "train_lmdb" batch_size: 64 backend: LMDB }
}
"""


def test_a_data_layer_becomes_an_input_of_the_same_phase():
    result, spread = with_inputs(net(DATA), None, [1, 28, 28])
    (layer,) = result.layer
    assert (layer.type, layer.name, list(layer.top)) == ("Input", "mnist", ["data", "label"])
    assert layer.include[0].phase == caffe_pb2.TRAIN
    assert shapes(layer) == [[64, 1, 28, 28], [64]]
    assert not layer.HasField("data_param")
    assert spread["data"] == pytest.approx(60 / 256)


def test_a_crop_tells_the_size_of_colour_images():
    text = DATA.replace("scale: 0.00390625", "crop_size: 227")
    result, spread = with_inputs(net(text), 2, None)
    assert shapes(result.layer[0]) == [[2, 3, 227, 227], [2]]
    assert spread["data"] == 60


def test_without_a_size_the_message_names_the_layer_and_the_flag():
    with pytest.raises(ProblemError, match=r"'mnist' \(Data\).*--input-shape"):
        with_inputs(net(DATA), None, None)


def test_dummy_data_keeps_its_shapes_and_spread():
    text = """
    layer {
      name: "data" type: "DummyData" top: "data" top: "label"
      dummy_data_param {
        shape { dim: 5 dim: 3 dim: 8 dim: 8 } shape { dim: 5 }
        data_filler { type: "gaussian" std: 7 } data_filler { type: "constant" }
      }
    }
    """
    result, spread = with_inputs(net(text), 9, None)
    assert shapes(result.layer[0]) == [[9, 3, 8, 8], [9]]
    assert spread["data"] == 7


def test_the_net_given_stays_as_it_was():
    given = net(DATA)
    with_inputs(given, 3, [1, 2, 2])
    assert given == net(DATA)


def test_without_dropout_changes_the_ratios_only():
    text = """
    layer { name: "relu" type: "ReLU" bottom: "x" top: "x" }
    layer { name: "drop" type: "Dropout" bottom: "x" top: "x" dropout_param { dropout_ratio: %s } }
    """
    assert without_dropout(net(text % "0.4")) == net(text % "0")


def test_a_problem_is_read_as_it_was_written(tmp_path):
    weights = {"conv1/7x7": [np.ones((2, 3), np.float32), np.arange(2.0)], "fc": [np.zeros(1)]}
    inputs = {"data": np.full((1, 2), 0.5, np.float32), "label": np.array([3])}
    Problem(net(DATA), weights, inputs).save(tmp_path)
    read = Problem.load(tmp_path)
    assert read.net == net(DATA)
    assert read.weights.keys() == weights.keys()
    for name, arrays in weights.items():
        for got, want in zip(read.weights[name], arrays, strict=True):
            np.testing.assert_array_equal(got, want)
    for name, array in inputs.items():
        np.testing.assert_array_equal(read.inputs[name], array)
        assert read.inputs[name].dtype == array.dtype
