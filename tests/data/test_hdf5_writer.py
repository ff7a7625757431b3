import errno
import os

import h5py
import numpy as np
import pytest

from protocaffe.data.hdf5 import HDF5Rows
from protocaffe.data.hdf5_writer import HDF5Writer, rows_per_file
from protocaffe.errors import DataError
from protocaffe.proto import hdf5

ROWS = np.arange(60, dtype=np.float32).reshape(10, 2, 3)
LABELS = np.arange(10, dtype=np.float32)


def test_rows_are_split_over_files_and_come_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with HDF5Writer("set/", file_size=4 * 7 * 4) as writer:
        for start, end in ((0, 3), (3, 9), (9, 10)):
            writer.put({"data": ROWS[start:end], "label": LABELS[start:end]})
    assert (writer.rows, writer.files) == (10, 3)
    assert sorted(os.listdir("set")) == ["list.txt", *(f"part_00{i}.h5" for i in range(3))]
    rows = HDF5Rows("set/list.txt", ["data", "label"])
    assert len(rows) == 10
    data, label = np.empty((10, 2, 3)), np.empty(10)
    rows.read(0, [data, label])
    np.testing.assert_array_equal(data, ROWS)
    np.testing.assert_array_equal(label, LABELS)


def test_types_are_kept(tmp_path):
    with HDF5Writer(tmp_path / "set") as writer:
        writer.put({"data": ROWS.astype(np.uint8), "label": LABELS})
    with h5py.File(tmp_path / "set" / "part_000.h5") as file:
        assert (file["data"].dtype, file["label"].dtype) == (np.uint8, np.float32)


@pytest.mark.parametrize(
    ("shapes", "size", "rows"),
    [
        ([(3, 256, 256), ()], 2**31 - 1, 2730),
        ([(1, 28, 28), ()], 2**20, 333),
        ([(1000,)], 100, 1),
        ([(2**31,)], 2**31 - 1, 1),
    ],
)
def test_how_many_rows_fit(shapes, size, rows):
    assert rows_per_file(shapes, size) == rows


def test_names_with_spaces_are_refused(tmp_path):
    with pytest.raises(DataError, match="my set' has white space in it"):
        HDF5Writer(tmp_path / "my set")


def write_and_fail(path, **options):
    with HDF5Writer(path, **options) as writer:
        writer.put({"data": ROWS})
        raise KeyboardInterrupt


def test_an_error_leaves_nothing_or_what_was_there(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write_and_fail(tmp_path / "set")
    assert os.listdir(tmp_path) == []
    with HDF5Writer(tmp_path / "set"):
        pass
    with pytest.raises(KeyboardInterrupt):
        write_and_fail(tmp_path / "set", force=True)
    assert os.listdir(tmp_path) == ["set"]
    with pytest.raises(DataError, match="exists already"):
        HDF5Writer(tmp_path / "set")


def test_a_full_disk(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(hdf5.os, "posix_fallocate", full)
    message = "set' cannot be written: No space left on device$"
    with pytest.raises(DataError, match=message), HDF5Writer(tmp_path / "set") as writer:
        writer.put({"data": ROWS})
    assert not os.listdir(tmp_path)
