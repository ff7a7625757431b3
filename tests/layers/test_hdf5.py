import errno
import json
import os

import h5py
import numpy as np
import pytest

from protocaffe.blob import Blob
from protocaffe.errors import LayerError
from protocaffe.layers.hdf5 import HDF5Data
from protocaffe.net import Net
from protocaffe.proto import files
from protocaffe.proto.caffe_pb2 import LayerParameter, NetParameter
from protocaffe.proto.text import parse_text
from tests.data.samples import GOLDEN


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        with h5py.File(f"{number}.h5", "w") as file:
            file["x"] = np.arange(5 * number, 5 * number + 5)
    (tmp_path / "list.txt").write_text("0.h5\n1.h5\n")
    return tmp_path


def data_layer(*, seed=0, top=("x",), transform=None, **options):
    options = {"source": "list.txt", "batch_size": 4, **options}
    param = LayerParameter(
        name="rows", type="HDF5Data", top=top, hdf5_data_param=options, transform_param=transform
    )
    layer = HDF5Data(param, rng=np.random.default_rng(seed), where="net.prototxt:7")
    tops = [Blob() for _ in top]
    layer.setup([], tops)
    layer.reshape([], tops)
    return layer, tops


def batches(layer, tops, count):
    found = []
    for _ in range(count):
        layer.forward([], tops)
        found.append(tops[0].data.tolist())
    return found


@pytest.mark.parametrize("case", ["hdf5_one_file", "hdf5_two_files"])
def test_batches_are_those_of_caffe(case, monkeypatch):
    monkeypatch.chdir(GOLDEN / "layers" / case)
    meta = json.loads((GOLDEN / "layers" / case / "meta.json").read_text())
    expected = np.load("batches.npz")
    net = Net("net.prototxt")
    for number in range(meta["batches"]):
        net.forward()
        for name, blob in net.blobs.items():
            np.testing.assert_array_equal(blob.data, expected[f"batch{number}/{name}"])


def test_seek_goes_on_as_if_there_had_been_no_break(folder):
    layer, tops = data_layer(shuffle=True)
    whole = batches(layer, tops, 9)
    assert layer.position == 36
    layer.seek(20)
    assert batches(layer, tops, 4) == whole[5:]


def test_a_seed_repeats_the_order(folder):
    runs = [batches(*data_layer(seed=seed, shuffle=True), 5) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size of at least 1"),
        ({"source": ""}, "needs a source"),
        ({"source": "lst.txt"}, r"lst\.txt: no such file; did you mean 'list\.txt'"),
        ({"top": ["y"]}, "no data set 'y'"),
        ({"transform": {"scale": 2}}, "takes no transform_param"),
    ],
)
def test_mistakes_name_the_layer(folder, options, message):
    with pytest.raises(LayerError, match=message) as caught:
        data_layer(**options)
    assert str(caught.value).startswith("net.prototxt:7: layer 'rows' (HDF5Data): ")


def test_a_file_that_vanishes_names_the_layer(folder):
    layer, tops = data_layer()
    layer.forward([], tops)
    (folder / "1.h5").unlink()
    with pytest.raises(LayerError, match=r"layer 'rows'.*1\.h5: no such file"):
        layer.forward([], tops)


def recorded_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = GOLDEN / "layers" / "hdf5_output"
    net = Net(folder / "net.prototxt")
    fed = np.load(folder / "batches.npz")
    for name in ("a", "b"):
        net.blobs[name].data[...] = fed[f"fed/{name}"]
    return net, folder / "out.h5"


def test_output_is_what_caffe_writes(tmp_path, monkeypatch):
    net, expected = recorded_output(tmp_path, monkeypatch)
    with h5py.File("out.h5") as made:
        assert not list(made)
    net.forward()
    with h5py.File("out.h5") as ours, h5py.File(expected) as theirs:
        assert list(ours) == list(theirs)
        for name, values in theirs.items():
            assert ours[name].dtype == values.dtype
            np.testing.assert_array_equal(ours[name], values)


def test_a_second_output_is_refused(tmp_path, monkeypatch):
    net, _ = recorded_output(tmp_path, monkeypatch)
    net.forward()
    with pytest.raises(
        LayerError, match=r"'save'.*out\.h5: holds the batch of one forward pass already"
    ):
        net.forward()


def test_what_is_there_stays_until_the_output_is_whole(tmp_path, monkeypatch):
    (tmp_path / "out.h5").write_text("as it was")
    net, _ = recorded_output(tmp_path, monkeypatch)
    assert (tmp_path / "out.h5").read_text() == "as it was"
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", no_space)
        with pytest.raises(LayerError, match=r"'save'.*No space left"):
            net.forward()
    assert [path.name for path in tmp_path.iterdir()] == ["out.h5"]
    assert (tmp_path / "out.h5").read_text() == "as it was"
    net.forward()
    with h5py.File("out.h5") as made:
        assert list(made) == ["data", "label"]


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("shapes", "file_name", "message"),
    [
        (((2, 3), (3,)), "out.h5", "same num"),
        (((2, 1, 1, 1, 1), (2,)), "out.h5", "up to 4 axes"),
        (((2,), (2,)), "", "needs a file_name"),
        (((2,), (2,)), "nowhere/out.h5", "cannot be written"),
    ],
)
def test_output_mistakes_name_the_layer(tmp_path, monkeypatch, shapes, file_name, message):
    monkeypatch.chdir(tmp_path)
    text = f"""
        layer {{ name: "in" type: "Input" top: "a" top: "b"
                input_param {{ shape {{ dim: {list(shapes[0])} }}
                               shape {{ dim: {list(shapes[1])} }} }} }}
        layer {{ name: "save" type: "HDF5Output" bottom: "a" bottom: "b"
                hdf5_output_param {{ file_name: "{file_name}" }} }}"""
    with pytest.raises(LayerError, match=f"layer 'save'.*{message}"):
        Net(parse_text(text, NetParameter()))
