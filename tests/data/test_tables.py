import numpy as np
import pytest

from protocaffe.data.hdf5 import HDF5Rows
from protocaffe.data.hdf5_writer import HDF5Writer
from protocaffe.data.tables import read_arrays, read_csv, write_arrays
from protocaffe.errors import DataError, FileError


@pytest.fixture
def table(tmp_path):
    def table(text, name="t.csv"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return table


@pytest.mark.parametrize(
    ("text", "options", "data", "label"),
    [
        ("1,2,0\n3,4,1\n", {}, [[1, 2], [3, 4]], [0, 1]),
        ("\ufeffa,b,c\r\n1,2,0\r\n\r\n3,-4e1,1", {}, [[1, 2], [3, -40]], [0, 1]),
        ("label,b,c\n1,2,0\n", {}, [[2, 0]], [1]),
        ("a,b,c\n1,2,0\n", {"labels": ["b"]}, [[1, 0]], [2]),
        ("1,2,0\n", {"labels": ["0"]}, [[2, 0]], [1]),
        ("1,2,0\n", {"labels": ["-1", "0"]}, [[2]], [[0, 1]]),
        ("1;2;0\n", {"delimiter": ";"}, [[1, 2]], [0]),
        ('"1", 2,"0"\n', {}, [[1, 2]], [0]),
    ],
)
def test_tables(table, text, options, data, label):
    found = read_csv(table(text), **options)
    np.testing.assert_array_equal(found["data"], np.array(data, np.float32), strict=True)
    np.testing.assert_array_equal(found["label"], np.array(label, np.float32), strict=True)


def test_tabs_stand_in_tsv_files(table):
    assert read_csv(table("1\t2\t3\n", "t.tsv"))["data"].tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("text", "labels", "message"),
    [
        ("1,2\n3,x\n", [], ":2: column 1: 'x' is no number"),
        ("a,b\n1,2\n,3\n", [], ":3: column 0 ('a'): '' is no number"),
        ("1,2\nnan,3\n", [], ":2: column 0: 'nan' is not finite"),
        ("1,2\n1e39,3\n", [], ":2: column 0: '1e39' is not finite"),
        ("1,2\n\n3\n", [], ":3: expected 2 values, as in the first line; got 1"),
        ("a,b\n1,2,3\n", [], ":2: expected 2 values, as in the first line; got 3"),
        ("", [], ": has no rows of numbers"),
        ("a,b\n", [], ": has no rows of numbers"),
        ("1\n2\n", [], ": has only one column; expected values and a label, separated by ','"),
        ("1;2\n2;3\n", [], ":2: column 0 ('1;2'): '2;3' is no number"),
        (
            "cat,dog\n1,2\n",
            ["cta"],
            ": has no column 'cta'; did you mean 'cat'? (it has: cat, dog)",
        ),
        ("1,2\n", ["cat"], ": has no column 'cat' (its first line is no header)"),
        ("1,2\n", ["2"], ": has no column 2; legal are -2 to 1"),
        ("1,2\n", ["0", "1"], ": all columns are labels, none is left for data"),
    ],
)
def test_bad_tables(table, text, labels, message):
    path = table(text)
    with pytest.raises(DataError) as caught:
        read_csv(path, labels)
    assert str(caught.value) == f"{path}{message}"


def test_numpy_files(tmp_path):
    data = np.arange(12).reshape(4, 3)
    np.save(tmp_path / "x.npy", data)
    np.save(tmp_path / "y.npy", np.arange(4))
    np.savez(tmp_path / "z.npz", left=data.astype(np.uint8), right=data / 2)
    found = read_arrays(tmp_path / "x.npy", tmp_path / "y.npy")
    assert {name: values.shape for name, values in found.items()} == {
        "data": (4, 3),
        "label": (4,),
    }
    found = read_arrays(tmp_path / "z.npz")
    assert list(found) == ["left", "right"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros((3, 2)), "b": np.zeros(4)}, "array 'b' has 4 rows, but 'a' 3"),
        ({"a": np.float32(1)}, "array 'a' of shape () has no rows"),
        ({"a": np.zeros((0, 3))}, "array 'a' of shape (0, 3) has no rows"),
        ({"a": np.array(["x"])}, "array 'a' holds <U1, not numbers"),
        ({"a": np.array([None])}, "cannot be read as NumPy's file"),
        ({}, "has no arrays in it"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path, arrays, message):
    np.savez(tmp_path / "z.npz", **arrays)
    with pytest.raises(DataError) as caught:
        read_arrays(tmp_path / "z.npz")
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no array", b"PK\x03\x04nothing", b"\x93NUMPY\x01"])
def test_files_that_are_not_numpys(tmp_path, content):
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.npy: cannot be read as NumPy's file"):
        read_arrays(path)


def test_a_missing_array(tmp_path):
    (tmp_path / "labels.npy").touch()
    with pytest.raises(FileError, match=r"did you mean 'labels.npy'"):
        read_arrays(tmp_path / "label.npy")


@pytest.mark.parametrize("shuffle", [False, True])
def test_written_rows_belong_together(tmp_path, shuffle):
    arrays = {"data": np.arange(6000).reshape(3000, 2), "label": np.arange(3000) * 2}
    done = []
    with HDF5Writer(tmp_path / "set", file_size=10000) as writer:
        write_arrays(writer, arrays, shuffle=shuffle, seed=1, progress=done.append)
    assert done == [1024, 2048, 3000]
    data, label = np.empty((3000, 2)), np.empty(3000)
    HDF5Rows(tmp_path / "set" / "list.txt", ["data", "label"]).read(0, [data, label])
    np.testing.assert_array_equal(data[:, 0], label)
    assert (label == arrays["label"]).all() == (not shuffle)
    np.testing.assert_array_equal(np.sort(label), arrays["label"])
