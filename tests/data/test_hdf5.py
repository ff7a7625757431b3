from pathlib import Path

import h5py
import numpy as np
import pytest

from protocaffe.data.hdf5 import HDF5Rows, write_rows
from protocaffe.errors import DataError, FileError, ProtocaffeError


def write(folder, *lengths, width=2, **extra):
    """Files of rows that count through them all, and the list that names them."""
    start = 0
    for number, length in enumerate(lengths):
        x = np.arange(start, start + length)[:, None] + np.zeros((1, width))
        with h5py.File(folder / f"{number}.h5", "w") as file:
            file["x"] = x
            file["n"] = np.arange(start, start + length)
            for name, value in extra.items():
                file[name] = value
        start += length
    names = [str(folder / f"{number}.h5") for number in range(len(lengths))]
    (folder / "list.txt").write_text("  ".join(names[:2]) + "\n" + "\n".join(names[2:]))
    return folder / "list.txt"


def read(rows, position, count):
    out = [np.empty((count, *shape), np.float32) for shape in rows.row_shapes]
    rows.read(position, out)
    return out


def test_rows_run_through_the_files_and_around(tmp_path):
    rows = HDF5Rows(write(tmp_path, 3, 2, 4), ["x", "n"])
    assert rows.row_shapes == [(2,), ()]
    x, n = read(rows, 0, 25)
    assert n.tolist() == [i % 9 for i in range(25)]
    assert (x == n[:, None]).all()
    assert read(rows, 13, 4)[1].tolist() == [4, 5, 6, 7]


def test_shuffling_reads_every_row_once_a_round_file_by_file(tmp_path):
    source = write(tmp_path, 3, 2, 4)
    rows = HDF5Rows(source, ["n"], shuffle=True, seed=1)
    (n,) = read(rows, 0, 90)
    rounds = n.reshape(10, 9)
    assert (np.sort(rounds) == np.arange(9)).all()
    assert len({tuple(each) for each in rounds}) > 1
    of_file = np.searchsorted([3, 5, 9], rounds, side="right")
    assert (np.count_nonzero(np.diff(of_file), axis=1) == 2).all()
    assert read(HDF5Rows(source, ["n"], shuffle=True, seed=1), 40, 7)[0].tolist() == list(n[40:47])
    assert (read(HDF5Rows(source, ["n"], shuffle=True, seed=2), 0, 90)[0] != n).any()


def missing_file(folder):
    write(folder, 3, 2)
    (folder / "1.h5").unlink()


def not_hdf5(folder):
    write(folder, 3, 2)
    (folder / "1.h5").write_bytes(b"no")


def other_width(folder):
    write(folder, 3, 2)
    with h5py.File(folder / "1.h5", "a") as file:
        del file["x"]
        file["x"] = np.zeros((2, 5))


def never_written(folder):
    write(folder, 3)
    with h5py.File(folder / "0.h5", "a") as file:
        file.create_dataset("z", (10**9, 10**6), "f4", chunks=(1, 1000))


@pytest.mark.parametrize(
    ("make", "names", "message"),
    [
        (missing_file, ["x"], r"1\.h5: no such file$"),
        (not_hdf5, ["x"], r"1\.h5: cannot be read as an HDF5 file"),
        (other_width, ["x"], r"1\.h5: rows of data set 'x' have shape \(5,\), but \(2,\) in"),
        (lambda folder: write(folder, 3), ["y"], r"has no data set 'y' \(it has: n, x\)"),
        (lambda folder: write(folder, 0), ["x"], "data set 'x' has no rows"),
        (lambda folder: write(folder, 3, z=[1, 2]), ["x", "z"], "'z' has 2 rows, but 'x' 3"),
        (lambda folder: write(folder, 3, z=1), ["z"], "single value"),
        (lambda folder: write(folder, 3, z=[b"a"]), ["z"], "'z' has no floats or integers"),
        (lambda folder: write(folder), ["x"], "empty file"),
        (never_written, ["z"], "the file is too small for"),
        (lambda folder: None, ["x"], r"list\.txt: no such file"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, make, names, message):
    make(tmp_path)
    with pytest.raises(ProtocaffeError, match=message):
        HDF5Rows(tmp_path / "list.txt", names)


def test_a_file_that_vanishes_later_is_named(tmp_path):
    rows = HDF5Rows(write(tmp_path, 3, 2), ["x"])
    read(rows, 0, 3)
    (tmp_path / "1.h5").unlink()
    with pytest.raises(FileError, match=r"1\.h5"):
        read(rows, 3, 1)


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(FileError, match=r"nowhere/out\.h5: cannot be written"):
        write_rows(tmp_path / "nowhere" / "out.h5", {"x": np.zeros(1)})


def test_a_file_of_the_list_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows("part.h5", {"data": np.zeros((1, 2))})
    Path("list.txt").write_text("part.h5\nprat.h5\n")
    message = r"list.txt:2: prat.h5: no such file; did you mean 'part.h5'\?"
    with pytest.raises(DataError, match=message):
        HDF5Rows("list.txt", ["data"])
    Path("list.txt").write_text("part.h5\n")
    with pytest.raises(DataError, match=r"no data set 'dat'; did you mean 'data'\?"):
        HDF5Rows("list.txt", ["dat"])
