import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from protocaffe.data.hdf5 import HDF5Rows
from tests.data.samples import GOLDEN

SIZE = ["--resize_height=12", "--resize_width=14"]


@pytest.fixture
def folder(tmp_path):
    """Images in a list and in class folders, a table, arrays, and a mean."""
    shutil.copytree(GOLDEN / "images", tmp_path / "images")
    shutil.copy(GOLDEN / "list.txt", tmp_path)
    shutil.copy(GOLDEN / "color_20x24_lmdb.mean.binaryproto", tmp_path / "mean")
    for number, name in enumerate(["dog", "cat"]):
        (tmp_path / "classes" / name).mkdir(parents=True)
        shutil.copy(tmp_path / "images" / f"im0{number}.jpg", tmp_path / "classes" / name)
    (tmp_path / "t.csv").write_text("a,b,label\n1,2,0\n3,4,1\n")
    np.save(tmp_path / "x.npy", np.arange(6).reshape(3, 2))
    np.save(tmp_path / "y.npy", np.arange(3))
    np.savez(tmp_path / "z.npz", x=np.arange(6).reshape(3, 2), y=np.arange(3))
    return tmp_path


def read(folder, names=("data", "label"), out="out"):
    before = os.getcwd()
    os.chdir(folder)
    try:
        rows = HDF5Rows(f"{out}/list.txt", names)
        arrays = [np.empty((len(rows), *shape), np.float32) for shape in rows.row_shapes]
        rows.read(0, arrays)
    finally:
        os.chdir(before)
    return arrays


def golden_pixels():
    """What Caffe stored of the images in the size 12 x 14, from its LevelDB as recorded."""
    import cv2

    from protocaffe.data.entries import read_list

    entries = read_list(GOLDEN / "list.txt")
    images = [cv2.imread(str(GOLDEN / "images" / entry.path)) for entry in entries]
    small = [cv2.resize(image, (14, 12)) for image in images]
    return np.stack(small).transpose(0, 3, 1, 2), [entry.label for entry in entries]


def test_images_of_a_list(run_protocaffe, folder):
    done = run_protocaffe("convert_hdf5", *SIZE, "images/", "list.txt", "out", cwd=folder)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.endswith('For an HDF5Data layer: source: "out/list.txt"\n')
    data, label = read(folder)
    pixels, labels = golden_pixels()
    np.testing.assert_array_equal(data, pixels)
    assert label.tolist() == labels
    with h5py.File(folder / "out" / "part_000.h5") as file:
        assert file["data"].dtype == np.uint8


def test_scaled_pixels_without_their_mean(run_protocaffe, folder):
    words = ["--mean_value=100,110,120", "--scale=0.5", "images/", "list.txt", "out"]
    assert run_protocaffe("convert_hdf5", *SIZE, *words, cwd=folder).returncode == 0
    pixels, _ = golden_pixels()
    mean = np.array([100, 110, 120]).reshape(3, 1, 1)
    np.testing.assert_array_equal(read(folder)[0], (pixels - mean) / 2)


def test_class_folders(run_protocaffe, folder):
    words = ["--gray", "--file_mb=1", "classes", "out"]
    assert run_protocaffe("convert_hdf5", *words, cwd=folder).returncode == 0
    data, label = read(folder)
    assert (data.shape, label.tolist()) == ((2, 1, 32, 32), [0, 1])
    assert (folder / "out" / "labels.txt").read_text() == "cat\ndog\n"


@pytest.mark.parametrize(
    ("words", "names", "values"),
    [
        (["t.csv"], ["data", "label"], [[[1, 2], [3, 4]], [0, 1]]),
        (["t.csv", "--label=a,b"], ["data", "label"], [[[0], [1]], [[1, 2], [3, 4]]]),
        (["x.npy", "y.npy"], ["data", "label"], [[[0, 1], [2, 3], [4, 5]], [0, 1, 2]]),
        (["z.npz"], ["x", "y"], [[[0, 1], [2, 3], [4, 5]], [0, 1, 2]]),
    ],
)
def test_tables(run_protocaffe, folder, words, names, values):
    done = run_protocaffe("convert_hdf5", *words, "out", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert [array.tolist() for array in read(folder, names)] == values


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["images/", "list.txt", "out"], 1, "list.txt:8: image 'images/im07.png' is 3 x 68 x 73"),
        (
            [*SIZE, "--mean_file=mean", "images/", "list.txt", "out"],
            1,
            "mean_file 'mean' has shape",
        ),
        (
            ["--mean_value=1,x", "images/", "list.txt", "out"],
            2,
            "expected numbers separated by commas",
        ),
        (["--mean_file=none", "images/", "list.txt", "out"], 1, "mean_file 'none' does not exist"),
        (["--scale=2", "t.csv", "out"], 2, "--scale is for images; t.csv is something else"),
        (["--label=a", "x.npy", "out"], 2, "--label is for CSV tables"),
        (["t.csv", "y.npy", "out"], 2, "'y.npy' is one word too many"),
        (["t.csv", "my out"], 1, "'my out' has white space in it"),
        (["t.csv", "classes"], 1, "'classes' exists already"),
        (["--label=lable", "t.csv", "out"], 1, "did you mean 'label'?"),
        (["t.cvs", "out"], 1, "t.cvs"),
        (["none.csv", "out"], 1, "none.csv: no such file"),
        (["t.csv"], 2, "out"),
    ],
)
def test_mistakes(run_protocaffe, folder, words, code, message):
    before = sorted(folder.iterdir())
    done = run_protocaffe("convert_hdf5", *words, cwd=folder)
    assert done.returncode == code
    assert message in done.stderr.partition("protocaffe convert_hdf5: ")[2]
    assert sorted(folder.iterdir()) == before


def test_the_script_is_the_same(folder):
    script = Path(__file__).parents[2] / "scripts" / "convert_hdf5.py"
    words = [sys.executable, script, "t.csv", "out"]
    subprocess.run(words, cwd=folder, check=True, capture_output=True)
    assert len(read(folder)[0]) == 2
