"""Folders of images to folders of squares: what ``resize_and_crop_images`` does."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from protocaffe.data.aside import FolderAside
from protocaffe.data.datum import Image, decode_image
from protocaffe.data.entries import Entry
from protocaffe.data.reader import Conversion, ImageError, ImageReader, Progress, read_image
from protocaffe.errors import DataError
from protocaffe.proto.files import StrPath, read_bytes

LIBRARIES = ("opencv", "pil")

Square = Callable[[bytes, int], Image]
"""Makes a square of an image file's bytes, (side, side, 3), blue first."""


def listed_images(list_file: StrPath, source: StrPath) -> list[Entry]:
    """Read a list of images, one a line; a label after the path is ignored.

    Args:
        list_file: its name.
        source: the folder of the images; paths are relative to it, or begin with it.

    Raises:
        FileError: the list is missing or cannot be read.
        DataError: it is empty, or a path lies elsewhere.
    """
    entries = []
    for number, line in enumerate(os.fsdecode(read_bytes(list_file)).splitlines(), 1):
        words, where = line.strip(), f"{os.fspath(list_file)}:{number}"
        if not words:
            continue
        path, space, label = words.rpartition(" ")
        if not (space and label.isdecimal()):
            path = words
        path = os.path.relpath(os.path.join(source, path), source)
        if path.startswith(os.path.join(os.pardir, "")):
            raise DataError(f"{where}: '{words}' is not in the folder '{os.fspath(source)}'")
        entries.append(Entry(path, 0, where))
    if not entries:
        raise DataError(f"list file '{os.fspath(list_file)}' is empty; expected paths of images")
    return entries


def resize_and_crop(
    source: StrPath,
    paths: Sequence[Entry],
    out: StrPath,
    side: int = 256,
    *,
    library: str = "opencv",
    strict: bool = False,
    force: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Resize images so that their shorter side fits, crop the centre, and store the squares.

    The squares have the names and the file types of the images, below another folder, which
    appears when all is done: an error or Ctrl-C leaves nothing behind. Files that cannot be read
    are named in the log and skipped.

    Args:
        source: the folder of the images.
        paths: the images, relative to it; labels do not matter.
        out: the folder to make.
        side: of the squares, in pixels.
        library: ``opencv`` resizes bilinearly without antialiasing, as Caffe's tools do; ``pil``
            with Pillow's Lanczos filter, which makes better small images.
        strict: whether to stop at a file that cannot be read.
        force: whether to replace an existing folder.
        threads: how many work; one per core, four at most, unless told otherwise.
        progress: called now and then with the number of files done so far.

    Raises:
        DataError: the folder exists already or cannot be written, no image could be read, or an
            image could not with ``strict``.
    """
    if Path(out).resolve() in (Path(source).resolve(), *Path(source).resolve().parents):
        raise DataError(f"'{os.fspath(out)}' holds the images themselves; choose another folder")
    square = _with_pillow() if library == "pil" else _with_opencv
    root = os.path.join(source, "")
    with FolderAside(out, force=force) as aside:

        def convert(path: str, label: int) -> None:
            image = square(read_image(path), side)
            name = os.path.relpath(path, root)
            aside.add_file(name, _coded(name, image))

        reader = ImageReader(root, paths, convert, strict=strict, threads=threads)
        with closing(reader.results(progress)) as results:
            for _ in results:
                pass
    return reader.conversion


def _with_opencv(content: bytes, side: int) -> Image:
    import cv2

    image = decode_image(content, color=True)
    if image is None:
        raise ImageError("is no image, or a damaged one")
    height, width = image.shape[:2]
    # Whole pixels, rounded down, as in Caffe's script
    new_height = max(side, side * height // width)
    new_width = max(side, side * width // height)
    resized = cv2.resize(image, (new_width, new_height))
    top, left = (new_height - side) // 2, (new_width - side) // 2
    return resized[top : top + side, left : left + side]  # type: ignore[return-value]


def _with_pillow() -> Square:
    try:
        from PIL import Image as Pillow
        from PIL import ImageOps
    except ImportError:
        raise DataError("image_lib pil needs Pillow: pip install pillow") from None
    from io import BytesIO

    def square(content: bytes, side: int) -> Image:
        try:
            with Pillow.open(BytesIO(content)) as image:
                fitted = ImageOps.fit(image.convert("RGB"), (side, side), Pillow.Resampling.LANCZOS)
        except (OSError, ValueError, SyntaxError):
            raise ImageError("is no image, or a damaged one") from None
        return np.asarray(fitted)[..., ::-1]

    return square


def _coded(path: str, image: Image) -> bytes:
    """Return the image as a file of the type that its name says."""
    import cv2

    suffix = os.path.splitext(path)[1]
    try:
        done, content = cv2.imencode(suffix, image)
    except cv2.error:
        done = False
    if not done:
        raise DataError(f"OpenCV cannot write images of the type '{suffix}', as '{path}' needs")
    return content.tobytes()
