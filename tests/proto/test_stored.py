import struct
from pathlib import Path

import h5py
import numpy as np
import pytest

from protocaffe.errors import FileError
from protocaffe.proto.binary import array_to_blob
from protocaffe.proto.caffe_pb2 import NetParameter, SolverState
from protocaffe.proto.stored import stored_layers, stored_state
from protocaffe.proto.wire import delimited

GOLDEN = Path(__file__).parents[1] / "golden"
W = np.float32([[1, 2, 3], [4, 5, 6]])


def read(path):
    """Every blob of a model file."""
    with stored_layers(path) as layers:
        return {
            f"{layer.name}/{place}": blob.read()
            for layer in layers
            for place, blob in layer.blobs.items()
        }


def write(path, *parts):
    path.write_bytes(b"".join(parts))
    return path


def blob_of(*parts):
    """A model with one layer 'ip' of one blob, given by its wire form."""
    blob = delimited(7, b"".join(parts))
    return delimited(100, b"".join([*delimited(1, b"ip"), *blob]))


SHAPE = b"".join(delimited(7, *delimited(1, b"\x02\x03")))


@pytest.mark.parametrize(
    "net",
    [
        NetParameter(layer=[{"name": "ip", "blobs": [array_to_blob(W)]}]),
        NetParameter(layers=[{"name": "ip", "blobs": [array_to_blob(W)]}]),
        NetParameter(layers=[{"layer": {"name": "ip", "blobs": [array_to_blob(W)]}}]),
    ],
    ids=["current", "V1", "V0"],
)
def test_layers_of_every_age(tmp_path, net):
    found = read(write(tmp_path / "m", net.SerializeToString()))
    assert list(found) == ["ip/0"]
    np.testing.assert_array_equal(found["ip/0"], W)


@pytest.mark.parametrize(
    "parts",
    [
        delimited(8, W.astype("<f8").tobytes()),
        delimited(5, W[0].tobytes()) + delimited(5, W[1].tobytes()),
        [b"".join(b"\x2d" + struct.pack("<f", x) for x in W.flat)],
        [b"\x50\x02", *delimited(12, W.astype("<f2").tobytes())],
        [b"\x50\x01", *delimited(12, W.tobytes())],
    ],
    ids=["double_data", "in two pieces", "not packed", "raw half floats", "raw floats"],
)
def test_values_in_every_encoding(tmp_path, parts):
    found = read(write(tmp_path / "m", *blob_of(SHAPE, *parts)))
    np.testing.assert_array_equal(found["ip/0"], W)


def test_fields_that_forks_number_differently_do_not_matter(tmp_path):
    clash = delimited(148, b"\x0d" + struct.pack("<f", 3)) + delimited(121, b"\xff\xff")
    layer = [*delimited(1, b"ip"), *clash, *delimited(7, array_to_blob(W).SerializeToString())]
    found = read(write(tmp_path / "m", *delimited(100, *layer)))
    np.testing.assert_array_equal(found["ip/0"], W)


def test_hdf5_models_have_the_same_content():
    for case in ("model_current", "model_v1_legacy_shapes"):
        binary = read(GOLDEN / "files" / case / "resaved.caffemodel")
        hdf5 = read(GOLDEN / "files" / case / "resaved.caffemodel.h5")
        assert binary.keys() == hdf5.keys()
        for name, values in binary.items():
            np.testing.assert_array_equal(hdf5[name], values)


HUGE = b"".join(delimited(7, *delimited(1, b"\xff\xff\xff\xff\x7f" * 2)))
LONG = b"".join(delimited(7, *delimited(1, b"\x01" * 1000)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"name: 'x'", r"another kind \(it looks like a text file\)"),
        (SolverState(iter=3, learned_net="x").SerializeToString(), "of another kind"),
        (array_to_blob(W).SerializeToString(), "of another kind"),
        (b"".join(blob_of(SHAPE, *delimited(5, b"abc"))), "cut short"),
        (b"".join(blob_of(HUGE)), r"layer 'ip' blob 0: blob of shape \(34359738367, 34359738367\)"),
        (b"".join(blob_of(LONG)), "layer 'ip' blob 0: blob with more than 32 axes"),
        (b"".join(blob_of(SHAPE)), r"layer 'ip' blob 0: .* should hold 6 data values"),
        (b"".join(blob_of(SHAPE, *delimited(5, W.tobytes())))[:-3], "cut short"),
    ],
)
def test_damaged_models_are_refused(tmp_path, content, message):
    path = write(tmp_path / "m.caffemodel", content)
    with pytest.raises(FileError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (SolverState(iter=3), "names no model"),
        (SolverState(iter=-3, learned_net="m"), "impossible iteration"),
        (SolverState(learned_net="m", history=[{"shape": {"dim": [5]}}]), "history blob 0"),
        (NetParameter(name="n"), "another kind"),
    ],
)
def test_damaged_states_are_refused(tmp_path, state, message):
    path = write(tmp_path / "s.solverstate", state.SerializeToString())
    with pytest.raises(FileError, match=message), stored_state(path):
        pass


def test_hdf5_files_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file["data"] = W
    with pytest.raises(FileError, match="group 'data'"):
        read(path)
    with pytest.raises(FileError, match="expected a solver state"), stored_state(path):
        pass
    write(path, b"no HDF5")
    with pytest.raises(FileError, match="cannot be read as an HDF5 file"):
        read(path)
    with pytest.raises(FileError, match="no such file"):
        read(tmp_path / "none.h5")
