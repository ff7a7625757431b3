from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protocaffe.errors import FileError
from protocaffe.proto.binary import array_to_blob, blob_to_array, read_binary
from protocaffe.proto.caffe_pb2 import BlobProto, NetParameter, SolverState

GOLDEN = Path(__file__).parents[1] / "golden" / "files"


def test_blobs_that_caffe_wrote():
    folder = GOLDEN / "blobproto"
    expected = np.load(folder / "value.npz")
    shaped = read_binary(folder / "shaped_with_diff.binaryproto", BlobProto())
    legacy = read_binary(folder / "legacy.binaryproto", BlobProto())
    assert blob_to_array(shaped).dtype == np.float32
    np.testing.assert_array_equal(blob_to_array(shaped), expected["data"])
    np.testing.assert_array_equal(blob_to_array(shaped, diff=True), expected["diff"])
    assert blob_to_array(legacy).shape == (legacy.num, legacy.channels, legacy.height, legacy.width)
    np.testing.assert_array_equal(blob_to_array(legacy).ravel(), expected["data"].ravel())


arrays = hnp.arrays(
    st.sampled_from([np.float32, np.float64]), hnp.array_shapes(min_dims=0, max_side=4)
)


@given(arrays)
def test_arrays_survive_the_round_trip(array):
    blob = array_to_blob(array, diff=-array)
    again = BlobProto.FromString(blob.SerializeToString())
    for values, expected in (
        (blob_to_array(again), array),
        (blob_to_array(again, diff=True), -array),
    ):
        assert values.dtype == array.dtype
        np.testing.assert_array_equal(values, expected)
        values[...] = 0  # the array is the caller's own


def test_values_are_stored_as_the_fields_say():
    blob = array_to_blob(np.arange(300).reshape(3, 100)[:, ::2], diff=np.ones((3, 50)))
    assert (list(blob.shape.dim), len(blob.data), list(blob.data[:3])) == ([3, 50], 150, [0, 2, 4])
    assert list(blob.diff) == [1] * 150
    assert not blob.double_data
    assert list(array_to_blob(np.float64([0.1])).double_data) == [0.1]


def test_blob_without_values():
    assert blob_to_array(array_to_blob(np.zeros((2, 0)))).shape == (2, 0)


def test_array_replaces_what_the_message_held():
    blob = BlobProto(num=1, channels=2, data=[1, 2, 3], diff=[1])
    assert array_to_blob(np.float32(7), blob) is blob
    assert blob == BlobProto(shape={}, data=[7])


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (BlobProto(shape={"dim": [2, 3]}, data=[1] * 5), r"shape \(2, 3\) should hold 6 data"),
        (BlobProto(num=2, channels=1, shape={"dim": [2]}, data=[1, 2]), r"\(2, 1, 0, 0\)"),
        (BlobProto(data=[1, 2]), r"shape \(\) should hold 1 data values, but holds 2"),
        (BlobProto(shape={"dim": [-1, -1]}, data=[1]), r"shape \(-1, -1\)"),
    ],
)
def test_wrong_number_of_values_is_refused(blob, message):
    with pytest.raises(FileError, match=message):
        blob_to_array(blob)


def test_missing_diff_is_refused():
    with pytest.raises(FileError, match="should hold 2 diff values, but holds 0"):
        blob_to_array(array_to_blob(np.zeros(2)), diff=True)


def test_reads_a_model():
    net = read_binary(GOLDEN / "model_current" / "model.caffemodel", NetParameter())
    assert net.layer


MODEL = (GOLDEN / "model_current" / "model.caffemodel").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty; expected a NetParameter message"),
        (MODEL[: len(MODEL) // 2], "is cut short, damaged or of another kind$"),
        (b'name: "net"\n', r"another kind \(it looks like a text file\)"),
        (b"\x89HDF\r\n\x1a\n", r"got an HDF5 file; name it \*\.h5"),
        (array_to_blob(np.float32([1, 2])).SerializeToString(), "got a file of another kind"),
        (
            SolverState(iter=3).SerializeToString(),
            r"\(as in a \.caffemodel\), got a file of another",
        ),
    ],
)
def test_wrong_files_are_refused(tmp_path, content, message):
    path = tmp_path / "f.caffemodel"
    path.write_bytes(content)
    with pytest.raises(FileError, match=message) as caught:
        read_binary(path, NetParameter())
    assert str(caught.value).startswith(f"{path}: ")


def test_missing_file_and_folder_are_refused(tmp_path):
    (tmp_path / "lenet_iter_100.caffemodel").touch()
    with pytest.raises(FileError, match=r"no such file; did you mean 'lenet_iter_100\.caffemodel'"):
        read_binary(tmp_path / "lenet_iter_1000.caffemodel", NetParameter())
    with pytest.raises(FileError, match="expected a file, got a folder"):
        read_binary(tmp_path, NetParameter())
