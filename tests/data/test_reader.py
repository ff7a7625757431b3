import cv2
import numpy as np
import pytest

from protocaffe.data.entries import Entry
from protocaffe.data.reader import ImageError, ImageReader, read_image
from protocaffe.errors import DataError
from tests.data.samples import png, random_images

PIXELS = random_images((20, 30, 3), 1)[0]
JPEG = cv2.imencode(".jpg", PIXELS)[1].tobytes()


@pytest.fixture
def folder(tmp_path):
    """Files of which two are images, with their entries as a list gives them."""
    (tmp_path / "good.png").write_bytes(png(PIXELS))
    (tmp_path / "bad.jpg").write_bytes(JPEG[:-100])
    (tmp_path / "folder.png").mkdir()
    return tmp_path


NAMES = ["bad.jpg", "good.png", "none.png", "folder.png", "good.png"]
ENTRIES = [Entry(name, label, f"list.txt:{label + 1}") for label, name in enumerate(NAMES)]


def size(path, label):
    return label, len(read_image(path))


def test_bad_files_are_skipped_and_named_in_the_log(folder, caplog):
    reader = ImageReader(f"{folder}/", ENTRIES, size)
    length = (folder / "good.png").stat().st_size
    assert list(reader.results()) == [(1, ENTRIES[1], (1, length)), (4, ENTRIES[4], (4, length))]
    assert reader.conversion.written == 2
    assert reader.conversion.skipped == [f"{folder}/{NAMES[number]}" for number in (0, 2, 3)]
    said = [record.message.partition(f"file {folder}/")[2] for record in caplog.records]
    assert said == [
        "bad.jpg (list.txt:1: the JPEG file is cut off)",
        "none.png (list.txt:3: No such file or directory)",
        "folder.png (list.txt:4: Is a directory)",
    ]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (ENTRIES, "list.txt:1: image '{}/bad.jpg': the JPEG file is cut off"),
        (ENTRIES[1:], "list.txt:3: image '{}/none.png': No such file or directory"),
        ([Entry("none.png", 0)], "image '{}/none.png': No such file or directory"),
    ],
)
def test_the_first_bad_file_stops_a_strict_reader(folder, entries, message):
    reader = ImageReader(f"{folder}/", entries, size, strict=True)
    with pytest.raises(DataError) as caught:
        list(reader.results())
    assert str(caught.value) == message.format(folder)


def test_no_file_that_can_be_read(folder):
    reader = ImageReader(str(folder), ENTRIES, size)
    with pytest.raises(
        DataError, match=r"none of the 5 files could be read, .*end it with a slash"
    ):
        list(reader.results())


def test_other_errors_are_not_skipped(folder):
    def fail(path, label):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(ImageReader(f"{folder}/", ENTRIES, fail).results())


@pytest.mark.parametrize("left", [1, 2, 50, 500])
def test_jpegs_that_are_cut_off(tmp_path, left):
    path = tmp_path / "x.jpg"
    path.write_bytes(JPEG[:-left])
    with pytest.raises(ImageError, match="cut off"):
        read_image(path)


@pytest.mark.parametrize("rest", [b"", bytes(100), b"notes"])
def test_whole_jpegs_pass_whatever_follows(tmp_path, rest):
    path = tmp_path / "x.jpg"
    path.write_bytes(JPEG + rest)
    assert read_image(path) == JPEG + rest


def test_a_thumbnail_is_not_the_end(tmp_path):
    """Cameras put a small JPEG file, with an end of its own, before the large image."""
    small = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    notes = b"\xff\xe1" + (len(small) + 2).to_bytes(2, "big") + small
    path = tmp_path / "x.jpg"
    path.write_bytes(JPEG[:2] + notes + JPEG[2:])
    assert len(read_image(path)) == len(JPEG) + len(notes)
    path.write_bytes(JPEG[:2] + notes + JPEG[2:-50])
    with pytest.raises(ImageError, match="cut off"):
        read_image(path)
