"""Loading and saving weights: what fits, what does not, and what is said about it."""

import logging
from pathlib import Path

import h5py
import numpy as np
import pytest

from protocaffe.errors import WeightsError
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.binary import blob_to_array, read_binary
from protocaffe.proto.text import parse_text

GOLDEN = Path(__file__).parent / "golden"

SHARED = """
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "one" type: "InnerProduct" bottom: "x" top: "a" param { name: "w" }
        inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "act" type: "ReLU" bottom: "a" top: "a" }
layer { name: "two" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" }
        inner_product_param { num_output: 3 bias_filler { type: "constant" value: 2 } } }
"""


def net(text=SHARED, **options):
    return Net(parse_text(text, caffe_pb2.NetParameter()), caffe_pb2.TRAIN, **options)


def parameters(built):
    return {f"{n}/{i}": b.data.copy() for n, bs in built.params.items() for i, b in enumerate(bs)}


@pytest.mark.parametrize("case", ["model_current", "model_v1_legacy_shapes"])
@pytest.mark.parametrize("file", ["model.caffemodel", "resaved.caffemodel.h5"])
def test_models_load_as_in_caffe(case, file):
    folder = GOLDEN / "files" / case
    built = Net(folder / "net.prototxt", weights=folder / file)
    for key, value in np.load(folder / "loaded.npz").items():
        if key.startswith("param/"):
            np.testing.assert_array_equal(parameters(built)[key.removeprefix("param/")], value)


@pytest.mark.parametrize("name", ["net.caffemodel", "net.caffemodel.h5"])
def test_weights_travel_through_a_file(tmp_path, name):
    one, two = net(seed=1), net(seed=2)
    one.save(tmp_path / name)
    two.copy_from(tmp_path / name)
    for key, value in parameters(one).items():
        assert (parameters(two)[key] == value).all()


def test_an_hdf5_model_has_shared_parameters_once_and_gradients_everywhere(tmp_path):
    built = net()
    built.params["one"][0].diff[...] = 7
    built.save(tmp_path / "net.h5", diff=True)
    with h5py.File(tmp_path / "net.h5") as file:
        assert {name: list(group) for name, group in file["data"].items()} == {
            "act": [],
            "in": [],
            "one": ["0", "1"],
            "two": ["1"],
        }
        assert list(file["diff/two"]) == ["0", "1"]
        assert (file["diff/two/0"][...] == 7).all()


def test_a_binary_model_has_everything(tmp_path):
    built = net()
    built.params["one"][0].diff[...] = 7
    built.save(tmp_path / "net.caffemodel", diff=True)
    message = read_binary(tmp_path / "net.caffemodel", caffe_pb2.NetParameter())
    assert message == built.to_proto(diff=True)
    assert [len(layer.blobs) for layer in message.layer] == [0, 2, 0, 2]
    assert (blob_to_array(message.layer[3].blobs[0], diff=True) == 7).all()


def test_what_was_loaded_is_told(tmp_path, caplog):
    net(SHARED.replace('"two"', '"old"')).save(tmp_path / "net.caffemodel")
    caplog.set_level(logging.INFO, "protocaffe")
    built = net(SHARED.replace('"two"', '"new"'))
    caplog.clear()
    built.copy_from(tmp_path / "net.caffemodel")
    assert caplog.messages == [
        f"Loaded the weights of 1 layer(s) from {tmp_path / 'net.caffemodel'}",
        "    left out (not in this net): old",
        "    fresh (not in the file): new",
    ]


@pytest.mark.parametrize("name", ["net.caffemodel", "net.h5"])
def test_every_layer_that_does_not_fit_is_named_and_nothing_changes(tmp_path, name):
    net(SHARED.replace("num_output: 3", "num_output: 3 bias_term: false")).save(tmp_path / name)
    built = net()
    before = parameters(built)
    with pytest.raises(WeightsError) as caught:
        built.copy_from(tmp_path / name)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("layer 'one' has 1 blob(s) there but 2 in the net")
    assert "layer 'two' has" in lines[1]
    assert lines[-1].startswith("rename a layer")
    for key, value in parameters(built).items():
        assert (before[key] == value).all()


@pytest.mark.parametrize("name", ["net.caffemodel", "net.h5"])
def test_values_that_are_not_finite_are_told(tmp_path, name, caplog):
    built = net()
    built.params["one"][0].data[0, :2] = np.nan, np.inf
    built.params["one"][1].data[:2] = np.inf, -np.inf
    built.save(tmp_path / name)
    built.copy_from(tmp_path / name)
    warnings = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert "layer 'one' blob 0 has 2 value(s) that are not finite" in warnings[0]
    assert "layer 'one' blob 1 has 2 value(s) that are not finite" in warnings[1]


def test_large_finite_values_are_fine(tmp_path, caplog):
    built = net()
    built.params["one"][0].data[...] = 3e38
    built.save(tmp_path / "net.caffemodel")
    built.copy_from(tmp_path / "net.caffemodel")
    assert not [each for each in caplog.records if each.levelname == "WARNING"]


def test_float64_weights_stay_exact(tmp_path):
    one = net(engine="numpy", dtype="float64", seed=1)
    one.save(tmp_path / "net.caffemodel")
    two = net(engine="numpy", dtype="float64", seed=2)
    two.copy_from(tmp_path / "net.caffemodel")
    assert (parameters(one)["one/0"] == parameters(two)["one/0"]).all()


TWICE = SHARED.replace('name: "two"', 'name: "one"').replace('param { name: "w" }', "")


@pytest.mark.parametrize("name", ["m.caffemodel", "m.caffemodel.h5"])
def test_layers_of_one_name_have_weights_of_their_own(tmp_path, name):
    saved, loaded, third = (net(TWICE, seed=seed) for seed in (1, 2, 3))
    saved.save(tmp_path / name)
    loaded.copy_from(tmp_path / name)
    third.share_with(saved)
    for other in (loaded, third):
        for mine, theirs in zip(saved.learnable, other.learnable, strict=True):
            np.testing.assert_array_equal(mine.blob.data, theirs.blob.data)
    for learnable in saved.learnable:
        learnable.blob.diff[...] = 1
    saved.clear_param_diffs()
    assert not any(learnable.blob.diff.any() for learnable in saved.learnable)


def test_layers_of_one_name_remember_their_own_random_numbers():
    drop = 'layer { name: "d" type: "Dropout" bottom: "x" top: "x" }'
    text = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 9 } } }'
    first, second = (net(text + drop + drop, seed=seed) for seed in (1, 2))
    second.set_state(first.get_state())
    for one, two in zip(first.layers, second.layers, strict=True):
        assert one.get_state() == two.get_state()


def test_a_file_with_one_of_two_layers_of_one_name_is_for_the_first(tmp_path):
    one = net(TWICE).to_proto()
    del one.layer[-1]
    target = net(TWICE, seed=5)
    second = target.layers[-1].blobs[0].data.copy()
    target.copy_from(one)
    np.testing.assert_array_equal(target.layers[1].blobs[1].data, 0)
    np.testing.assert_array_equal(target.layers[-1].blobs[0].data, second)
