import inspect
import re
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from protocaffe.errors import NetError
from protocaffe.layers import layer_types
from protocaffe.layers.base import layer_class
from protocaffe.layers.describe import describe, describe_message, inner_messages
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import parse_text

GOLDEN = Path(__file__).parents[1] / "golden"
SHAPES = {
    "label": (2,),
    "fc8": (2, 10),
    "prob": (2, 10),
    "infogain": (1, 1, 10, 10),
    "features": (2, 12),
    "feature_a": (2, 12),
    "feature_b": (2, 12),
    "similar": (2,),
    "index": (3,),
    "selector": (2,),
    "words": (4,),
    "upscore": (2, 6, 10, 10),
    "sequence": (5, 2, 12),
    "cont": (5, 2),
    "c_0": (1, 2, 4),
    "gates": (1, 2, 16),
    "cont_1": (1, 2),
    "gate": (2, 6),
    "loc": (2, 8),
    "conf": (2, 42),
    "priors": (1, 2, 8),
    "rois": (2, 5),
    "rfcn_cls": (2, 1029, 8, 8),
    "conv21": (2, 4, 8, 8),
}
"""Of the bottoms in the examples; the others are images."""
IMAGES = (2, 6, 8, 8)
OVERRIDDEN = {
    "InfogainLoss": {"softmax_param"},
    "BN": {"batch_norm_param"},
    "SyncBN": {"batch_norm_param"},
}
"""What a parent reads where these types have code of their own."""


@pytest.fixture
def example_files(tmp_path, monkeypatch):
    """The data that the examples name, in the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(GOLDEN / "data/dbs/gray_16x16_lmdb", "train_lmdb")
    with h5py.File("train.h5", "w") as file:
        file["data"] = np.ones((3, 4), np.float32)
        file["label"] = np.ones(3, np.float32)
    Path("train_list.txt").write_text("train.h5\n")
    shutil.copytree(GOLDEN / "data/images", "images")
    shutil.copy(GOLDEN / "data/list.txt", "images.txt")
    windows = ["# 0", "im00.jpg", "3", "32", "32", "2", "1 0.9 4 4 20 20", "1 0.1 0 0 9 9"]
    Path("windows.txt").write_text("\n".join(windows))
    Path("my_layers.py").write_text(
        "from protocaffe import Layer\n"
        "class Multiply(Layer):\n"
        "    def reshape(self, bottom, top):\n"
        "        top[0].reshape(*bottom[0].shape)\n"
        "    def forward(self, bottom, top):\n"
        "        top[0].data[...] = bottom[0].data * float(self.param_str)\n"
    )
    yield
    sys.modules.pop("my_layers", None)


@pytest.mark.parametrize("name", layer_types())
def test_example_is_a_layer_that_runs(name, example_files):
    net = parse_text(describe(name).example, caffe_pb2.NetParameter())
    (layer,) = net.layer
    assert layer.type == name
    phase = layer.include[0].phase if layer.include else caffe_pb2.TRAIN
    inputs = [
        caffe_pb2.LayerParameter(
            name=bottom,
            type="Input",
            top=[bottom],
            input_param={"shape": [{"dim": SHAPES.get(bottom, IMAGES)}]},
        )
        for bottom in layer.bottom
    ]
    built = Net(caffe_pb2.NetParameter(layer=[*inputs, layer]), phase, engine="numpy")
    for bottom in layer.bottom:
        built.blobs[bottom].data[...] = 1
    if name == "MemoryData":
        built.layers[-1].reset(np.ones((2, 3, 8, 8)), [0, 1])
    built.forward()
    built.close()
    assert built.layer_names[-1] == layer.name


@pytest.mark.parametrize("name", layer_types())
def test_docstring_says_what_goes_in_and_out_and_where_it_comes_from(name):
    assert {"Bottoms", "Tops", "Reference"} <= describe(name).facts.keys()


@pytest.mark.parametrize("name", layer_types())
def test_settings_are_all_that_the_class_reads(name):
    source = "".join(inspect.getsource(each) for each in layer_class(name).__mro__[:-2])
    read = set(re.findall(r"self\.param\.(\w+_param)\b", source))
    described = {settings.name for settings in describe(name).settings}
    assert read - OVERRIDDEN.get(name, set()) <= described


def test_description_of_a_layer():
    pooling = describe("Pooling")
    assert pooling.summary.startswith("The maximum, the average or a random pixel")
    assert pooling.text[0].startswith("Output extent: ceil(")
    assert pooling.facts["Tops"].startswith("y (N, C, H', W'); with MAX")
    assert pooling.facts["Reference"].startswith("Caffe's PoolingLayer (there")
    (settings,) = pooling.settings
    assert (settings.name, settings.message) == ("pooling_param", "PoolingParameter")
    fields = {field.name: field for field in settings.fields}
    assert (fields["pool"].type, fields["pool"].default) == ("MAX|AVE|STOCHASTIC", "MAX")
    assert (fields["stride"].type, fields["stride"].default) == ("uint32", "1")
    assert fields["global_pooling"].comment == "The window is the whole image."


def test_settings_in_several_messages_and_messages_inside():
    assert [each.name for each in describe("SoftmaxWithLoss").settings] == [
        "softmax_param",
        "loss_param",
    ]
    assert inner_messages(describe("Convolution").settings) == ["FillerParameter"]


def test_labels_and_short_defaults():
    fields = {field.name: field for field in describe_message("ClipParameter").fields}
    assert fields["min"].label == "required"
    fields = {field.name: field for field in describe_message("BatchNormParameter").fields}
    assert fields["eps"].default == "1e-05"
    assert fields["moving_average_fraction"].default == "0.999"


def test_unknown_type_gets_the_nearest():
    with pytest.raises(NetError, match="did you mean 'Pooling'"):
        describe("Poling")
