import os

import cv2
import numpy as np
import pytest

from protocaffe.data.entries import Entry
from protocaffe.data.thumbnails import listed_images, resize_and_crop
from protocaffe.errors import DataError
from tests.data.samples import png, random_images

WIDE = random_images((20, 41, 3), 1)[0]


@pytest.fixture
def folder(tmp_path):
    for name, image in (("a/wide.png", WIDE), ("a/b/tall.png", WIDE.transpose(1, 0, 2))):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image))
    (tmp_path / "in" / "gray.jpg").write_bytes(cv2.imencode(".jpg", WIDE[..., 0])[1].tobytes())
    (tmp_path / "in" / "bad.png").write_bytes(b"no image")
    return tmp_path


ENTRIES = [Entry(name, 0) for name in ("a/b/tall.png", "a/wide.png", "bad.png", "gray.jpg")]


@pytest.mark.parametrize("library", ["opencv", "pil"])
def test_squares(folder, library):
    if library == "pil":
        pytest.importorskip("PIL", reason="image_lib pil needs Pillow")
    done = []
    result = resize_and_crop(
        folder / "in", ENTRIES, folder / "out", 10, library=library, progress=done.append
    )
    assert (result.written, done) == (3, [4])
    assert result.skipped == [f"{folder}/in/bad.png"]
    assert sorted(os.listdir(folder)) == ["in", "out"]
    wide, tall, gray = (
        cv2.imread(str(folder / "out" / name))
        for name in ("a/wide.png", "a/b/tall.png", "gray.jpg")
    )
    assert wide.shape == tall.shape == gray.shape == (10, 10, 3)
    if library == "opencv":
        # 10 x 41 // 20 = 20 columns, of which those from 5 on are left
        expected = cv2.resize(WIDE, (20, 10))[:, 5:15]
        np.testing.assert_array_equal(wide, expected)
        np.testing.assert_array_equal(tall, cv2.resize(WIDE.transpose(1, 0, 2), (10, 20))[5:15])


def test_small_images_grow(folder):
    resize_and_crop(folder / "in", ENTRIES[:1], folder / "out", 50)
    assert cv2.imread(str(folder / "out" / "a" / "b" / "tall.png")).shape == (50, 50, 3)


@pytest.mark.parametrize("library", ["opencv", "pil"])
def test_strict(folder, library):
    if library == "pil":
        pytest.importorskip("PIL", reason="image_lib pil needs Pillow")
    with pytest.raises(DataError, match=r"image '.*/in/bad\.png': is no image, or a damaged one"):
        resize_and_crop(folder / "in", ENTRIES, folder / "out", 10, library=library, strict=True)
    assert os.listdir(folder) == ["in"]


@pytest.mark.parametrize("out", ["in", "."])
def test_the_images_are_not_replaced(folder, out):
    with pytest.raises(DataError, match="holds the images themselves"):
        resize_and_crop(folder / "in", ENTRIES, folder / out, 10, force=True)


def test_types_that_cannot_be_written(folder):
    (folder / "in" / "x.xyz").write_bytes(png(WIDE))
    with pytest.raises(DataError, match=r"cannot write images of the type '\.xyz'"):
        resize_and_crop(folder / "in", [Entry("x.xyz", 0)], folder / "out", 10)
    assert os.listdir(folder) == ["in"]


def test_lists(folder):
    path = folder / "list.txt"
    path.write_text(f"a/wide.png 3\n\n{folder}/in/my picture.jpg\na/./b.png\n")
    assert listed_images(path, folder / "in") == [
        ("a/wide.png", 0, f"{path}:1"),
        ("my picture.jpg", 0, f"{path}:3"),
        ("a/b.png", 0, f"{path}:4"),
    ]


@pytest.mark.parametrize("name", ["../x.png", "/etc/x.png"])
def test_paths_that_lead_elsewhere(folder, name):
    path = folder / "list.txt"
    path.write_text(f"a.png\n{name}\n")
    with pytest.raises(DataError, match=rf"list\.txt:2: '{name}' is not in the folder"):
        listed_images(path, folder / "in")


def test_an_empty_list(folder):
    (folder / "list.txt").write_text("\n")
    with pytest.raises(DataError, match="is empty"):
        listed_images(folder / "list.txt", folder / "in")
