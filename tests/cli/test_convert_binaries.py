"""convert_mnist_data and convert_cifar_data as commands and as scripts."""

import subprocess
import sys
from pathlib import Path

import pytest

from protocaffe.data.database import open_database
from tests.cli.caffe_log import PREFIX

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def folder(tmp_path):
    """Two digits of 2 x 2 pixels as idx files, and pictures as CIFAR-10 files of one each."""
    (tmp_path / "images").write_bytes(bytes([0, 0, 8, 3, *(0, 0, 0, 2) * 3]) + bytes(8))
    (tmp_path / "labels").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 3]))
    (tmp_path / "cifar").mkdir()
    for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
        (tmp_path / "cifar" / name).write_bytes(bytes(3073))
    return tmp_path


def messages(done):
    return [PREFIX.match(line)["message"] for line in done.stderr.splitlines()]


def test_mnist(run_protocaffe, folder):
    done = run_protocaffe("convert_mnist_data", "images", "labels", "db")
    assert (done.returncode, done.stdout) == (0, "")
    assert messages(done) == [
        "A total of 2 items.",
        "Rows: 2 Cols: 2",
        "Opened lmdb db",
        "Processed 2 files.",
    ]


def test_cifar(run_protocaffe, folder):
    done = run_protocaffe("convert_cifar_data", "cifar", ".", "lmdb")
    assert (done.returncode, done.stdout) == (0, "")
    assert messages(done) == [
        "Opened lmdb cifar10_train_lmdb",
        "Opened lmdb cifar10_test_lmdb",
        "Writing Training data",
        "Writing Testing data",
    ]
    assert {path.name for path in folder.glob("cifar10*")} == {
        "cifar10_train_lmdb",
        "cifar10_test_lmdb",
    }


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["convert_mnist_data", "labels", "images", "db"], 1, "are the two files in each other's"),
        (["convert_mnist_data", "image", "labels", "db"], 1, "did you mean 'images'?"),
        (["convert_mnist_data", "images", "labels"], 2, "db"),
        (["convert_mnist_data", "images", "labels", "none/db"], 1, "there is no folder 'none'"),
        (["convert_mnist_data", "--backend=hdf5", "images", "labels", "db"], 2, "leveldb"),
        (["convert_cifar_data", "cifa", "."], 1, "no such file"),
        (["convert_cifar_data", "cifar", ".", "rocksdb"], 2, "leveldb"),
    ],
)
def test_mistakes(run_protocaffe, folder, words, code, message):
    before = sorted(folder.iterdir())
    done = run_protocaffe(*words)
    assert done.returncode == code
    assert message in done.stderr.partition(f"protocaffe {words[0]}: ")[2]
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "database", "count"),
    [
        (["convert_mnist_data", "images", "labels", "db"], "db", 2),
        (["convert_cifar_data", "cifar", "."], "cifar10_train_lmdb", 5),
    ],
)
def test_the_scripts_are_the_same(folder, words, database, count):
    script = [sys.executable, SCRIPTS / f"{words[0]}.py"]
    subprocess.run([*script, *words[1:]], cwd=folder, check=True, capture_output=True)
    with open_database(folder / database) as records:
        assert len(records) == count
