import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import lmdb
import numpy as np
import pytest

from protocaffe.data.datum import datum_array, parse_datum
from protocaffe.proto import caffe_pb2
from protocaffe.proto.binary import blob_to_array, read_binary

SCRIPTS = Path(__file__).parents[2] / "scripts"


def run(script, *words):
    return subprocess.run(
        [sys.executable, SCRIPTS / script, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
    )


def records(database):
    with lmdb.open(str(database), readonly=True, lock=False) as handle, handle.begin() as reader:
        return [parse_datum(value) for _, value in reader.cursor()]


@pytest.fixture
def tree(tmp_path):
    """Small images of one colour each, three for training and two to test, of two classes."""
    import cv2

    for part, count in (("train", 3), ("test", 2)):
        for label, name in enumerate(("ant", "bee")):
            folder = tmp_path / "set" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.full((4, 5, 3), 100 * label + 10 * index, np.uint8)
                cv2.imwrite(str(folder / f"{index}.png"), pixels)
    return tmp_path / "set"


def check_databases(out, channels):
    train, test = records(out / "train_lmdb"), records(out / "test_lmdb")
    assert sorted(datum.label for datum in train) == [0, 0, 0, 1, 1, 1]
    assert [datum.label for datum in test] == [0, 0, 1, 1]
    assert {datum_array(each).shape for each in train + test} == {(channels, 4, 5)}
    assert (out / "train_lmdb" / "labels.txt").read_text() == "ant\nbee\n"
    return train


def test_mnist_databases_from_a_folder(tree, tmp_path):
    done = run("create_mnist.py", tree, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    check_databases(tmp_path / "out", channels=1)


def test_cifar10_databases_and_mean_from_a_zip_file(tree, tmp_path):
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in tree.rglob("*.png"):
            file.write(path, path.relative_to(tmp_path))
    for _ in range(2):  # the second time in place of the first
        done = run("create_cifar10.py", archive, "--out", tmp_path / "out")
        assert done.returncode == 0, done.stderr
    train = check_databases(tmp_path / "out", channels=3)
    mean = blob_to_array(read_binary(tmp_path / "out" / "mean.binaryproto", caffe_pb2.BlobProto()))
    expected = np.mean([datum_array(each) for each in train], axis=0)
    np.testing.assert_allclose(mean.reshape(3, 4, 5), expected)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda tree: (tree / "test" / "bee").rename(tree / "test" / "cat"),
            "train has the classes",
        ),
        (lambda tree: (tree / "train").rename(tree / "training"), "has no folder 'train'"),
        (lambda tree: tree.rename(tree.with_name("other")), "expected a folder or a zip file"),
    ],
)
def test_other_folders_are_refused(tree, tmp_path, spoil, message):
    spoil(tree)
    done = run("create_mnist.py", tree, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_digits_are_split_evenly(tmp_path):
    done = run("make_digits.py", tmp_path)
    assert done.returncode == 0, done.stderr
    counts = {
        part: np.array([len(list((tmp_path / part / str(i)).glob("*.png"))) for i in range(10)])
        for part in ("train", "test")
    }
    assert counts["train"].sum() == 1437
    assert counts["test"].sum() == 360
    shares = counts["test"] / (counts["train"] + counts["test"])
    np.testing.assert_allclose(shares, 0.2, atol=0.005)


def test_page_about_layers_is_up_to_date():
    spec = importlib.util.spec_from_file_location("page", SCRIPTS / "make_layers_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.page(), "run make docs"
