import gzip

import numpy as np
import pytest

from protocaffe.data.binaries import IDX_IMAGES, IDX_LABELS, convert_cifar, convert_mnist, read_idx
from protocaffe.data.database import open_database
from protocaffe.errors import DataError, FileError
from protocaffe.proto.caffe_pb2 import Datum
from tests.data.samples import random_images

DIGITS = random_images((4, 5), 12)
LABELS = np.arange(12, dtype=np.uint8) % 10
PICTURES = random_images((3, 32, 32), 8)


def idx(values):
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    return header + values.tobytes()


def records(path, backend="lmdb"):
    with open_database(path, backend) as database:
        return [(key.decode(), Datum.FromString(value)) for key, value in database.records()]


@pytest.fixture
def mnist(tmp_path):
    (tmp_path / "images").write_bytes(idx(DIGITS))
    (tmp_path / "labels").write_bytes(idx(LABELS))
    return tmp_path


@pytest.fixture
def cifar(tmp_path):
    """Five files of one image and a test file of three, in the order of PICTURES."""
    folder = tmp_path / "batches"
    folder.mkdir()
    rows = [bytes([number]) + image.tobytes() for number, image in enumerate(PICTURES)]
    for number in range(5):
        (folder / f"data_batch_{number + 1}.bin").write_bytes(rows[number])
    (folder / "test_batch.bin").write_bytes(b"".join(rows[5:]))
    return folder


@pytest.mark.parametrize("backend", ["lmdb", "leveldb"])
def test_mnist(mnist, backend):
    if backend == "leveldb":
        pytest.importorskip("plyvel", reason="LevelDB databases need plyvel")
    done = []
    words = mnist / "images", mnist / "labels", mnist / "db"
    assert convert_mnist(*words, backend=backend, progress=done.append) == 12
    assert done == [12]
    found = records(mnist / "db", backend)
    assert [key for key, _ in found] == [f"{number:08}" for number in range(12)]
    for (_, datum), pixels, label in zip(found, DIGITS, LABELS, strict=True):
        assert datum == Datum(channels=1, height=4, width=5, data=pixels.tobytes(), label=label)
        assert not datum.HasField("encoded")  # nor has it from Caffe


def test_compressed_idx_files(mnist):
    for name in ("images", "labels"):
        (mnist / f"{name}.gz").write_bytes(gzip.compress((mnist / name).read_bytes()))
    convert_mnist(mnist / "images.gz", mnist / "labels.gz", mnist / "db")
    convert_mnist(mnist / "images", mnist / "labels", mnist / "other")
    assert records(mnist / "db") == records(mnist / "other")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(LABELS), "expected an idx file of images, which begins with 2051, got 2049; are the"),
        (b"\x89PNG", "expected an idx file of images, which begins with 2051, got 2303741511"),
        (b"", "expected an idx file of images"),
        (idx(DIGITS)[:-1], "has 255 bytes, but its header says 256; it is damaged"),
        (idx(DIGITS) + b"x", "has 257 bytes, but its header says 256; it is damaged"),
        (idx(DIGITS)[:9], "has 9 bytes, but its header says"),
        (idx(DIGITS[:0]), "has nothing in it"),
        (idx(DIGITS[:5]), "has 5 images, but {labels} has 12 labels; they are not of one set"),
        (gzip.compress(idx(DIGITS))[:-20], "cannot be unpacked: "),
        (gzip.compress(idx(DIGITS))[:12] + bytes(40), "cannot be unpacked: "),
    ],
)
def test_bad_idx_files(mnist, content, message):
    path = mnist / "images"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        convert_mnist(path, mnist / "labels", mnist / "db")
    expected = message.format(labels=mnist / "labels")
    assert str(caught.value).startswith(f"{path}: {expected}")
    assert not (mnist / "db").exists()


def test_idx_headers_that_claim_too_much(tmp_path):
    path = tmp_path / "images"
    path.write_bytes(bytes([0, 0, 8, 3]) + b"\xff" * 12)
    with pytest.raises(DataError, match="damaged"):
        read_idx(path, IDX_IMAGES)


def test_a_missing_file(mnist):
    with pytest.raises(FileError, match="no such file; did you mean 'labels'"):
        read_idx(mnist / "label", IDX_LABELS)


@pytest.mark.parametrize("backend", ["lmdb", "leveldb"])
def test_cifar(cifar, tmp_path, backend):
    if backend == "leveldb":
        pytest.importorskip("plyvel", reason="LevelDB databases need plyvel")
    done = []
    assert convert_cifar(cifar, tmp_path, backend=backend, progress=done.append) == (5, 3)
    assert done == [5, 8]
    train = records(tmp_path / f"cifar10_train_{backend}", backend)
    test = records(tmp_path / f"cifar10_test_{backend}", backend)
    assert [key for key, _ in train] == [f"{number:05}" for number in range(5)]
    assert [key for key, _ in test] == ["00000", "00001", "00002"]
    for number, (_, datum) in enumerate(train + test):
        data = PICTURES[number].tobytes()
        assert datum == Datum(channels=3, height=32, width=32, data=data, label=number)
    assert not (tmp_path / f"cifar10_train_{backend}" / "labels.txt").exists()


def test_class_names_of_cifar(cifar, tmp_path):
    (cifar / "batches.meta.txt").write_text("airplane\nautomobile\n\n")
    convert_cifar(cifar, tmp_path)
    for part in ("train", "test"):
        names = tmp_path / f"cifar10_{part}_lmdb" / "labels.txt"
        assert names.read_text() == "airplane\nautomobile\n"


def shorten(folder):
    path = folder / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:-1])


def relabel(folder):
    path = folder / "test_batch.bin"
    rows = np.frombuffer(path.read_bytes(), np.uint8).reshape(3, -1).copy()
    rows[1, 0] = 10
    path.write_bytes(rows.tobytes())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shorten, "data_batch_2.bin: has 3072 bytes, no multiple of 3073"),
        (relabel, "test_batch.bin: image 1 has the label 10; legal are 0 to 9"),
        (lambda folder: (folder / "test_batch.bin").unlink(), "test_batch.bin: no such file"),
        (lambda folder: (folder / "data_batch_5.bin").write_bytes(b""), "has 0 bytes"),
        (
            lambda folder: (folder / "data_batch_1.bin").rename(folder / "data_batch_1"),
            "has no data_batch_1.bin; this is CIFAR-10 for Python",
        ),
    ],
)
def test_bad_files_of_cifar(cifar, tmp_path, spoil, message):
    spoil(cifar)
    with pytest.raises((DataError, FileError), match=message):
        convert_cifar(cifar, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["batches"]


def test_both_databases_of_cifar_or_none(cifar, tmp_path):
    (tmp_path / "cifar10_test_lmdb").mkdir()
    with pytest.raises(DataError, match="cifar10_test_lmdb' exists already"):
        convert_cifar(cifar, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["batches", "cifar10_test_lmdb"]
    convert_cifar(cifar, tmp_path, force=True)
    assert len(records(tmp_path / "cifar10_test_lmdb")) == 3
