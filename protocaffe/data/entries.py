"""Which images make a data set: list files and folders of class folders."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from protocaffe.errors import DataError
from protocaffe.proto.files import StrPath, near_file

IMAGE_SUFFIXES = (
    *(".bmp", ".gif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"),
    *(".tif", ".tiff", ".webp"),
)
"""What counts as an image in a folder."""
MAX_LABEL = 2**31 - 1


class Entry(NamedTuple):
    """An image of a data set.

    Attributes:
        path: to be put after the root.
        label: its class.
        where: file and line that name it, ``list.txt:8``; empty if it was found in a folder.
    """

    path: str
    label: int
    where: str = ""


def read_list(path: StrPath) -> list[Entry]:
    """Read a list file: ``path label`` per line, split at the last space.

    Raises:
        DataError: the file cannot be read, is empty, or has a bad line (named with its number).
    """
    return [entry for _, entry in read_numbered_list(path)]


def read_numbered_list(path: StrPath, least_label: int = 0) -> list[tuple[int, Entry]]:
    """Read a list file as :func:`read_list` does, with the number of each entry's line.

    Raises:
        DataError: see :func:`read_list`.
    """
    entries = [
        (number, _entry(line, f"{os.fspath(path)}:{number}", least_label))
        for number, line in enumerate(_read_lines(path), 1)
        if line.strip()
    ]
    if not entries:
        raise DataError(f"list file '{os.fspath(path)}' is empty; expected lines of 'path label'")
    return entries


def scan_classes(root: StrPath) -> tuple[list[Entry], list[str]]:
    """List the images of a folder that holds one folder per class.

    Returns:
        The entries, in the order of classes and then of paths, and the class names: the sorted
        names of the folders, whose places are the labels.

    Raises:
        DataError: there is no such folder, or a folder inside it has no images.
    """
    try:
        with os.scandir(root) as found:
            names = sorted(each.name for each in found if each.is_dir() and each.name[0] != ".")
    except OSError as error:
        raise cannot_open("folder of images", root, error) from error
    if not names:
        raise DataError(
            f"'{os.fspath(root)}' has no folders in it; expected one folder of images per class, "
            f"as in '{os.path.join(root, 'cat', '1.jpg')}', or a list file"
        )
    entries: list[Entry] = []
    for label, name in enumerate(names):
        images = images_in(root, name)
        if not images:
            raise DataError(
                f"class folder '{os.path.join(root, name)}' has no images; remove it (it would "
                f"take label {label}), or put images in it: {' '.join(IMAGE_SUFFIXES)}"
            )
        entries += [Entry(path, label) for path in images]
    return entries, names


def images_in(root: StrPath, name: str = "") -> list[str]:
    """Return the images anywhere under ``root/name``, as sorted paths relative to the root."""

    def refuse(error: OSError) -> None:
        raise cannot_open("folder of images", error.filename, error) from error

    paths = []
    for folder, _, files in os.walk(os.path.join(root, name), onerror=refuse):
        relative = os.path.relpath(folder, root)
        paths += [
            os.path.normpath(os.path.join(relative, file))
            for file in files
            if os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES and file[0] != "."
        ]
    return sorted(paths)


def shuffled(entries: Sequence[Entry], seed: int | None = None) -> list[Entry]:
    """Return the entries in random order, the same each time for one seed."""
    result = list(entries)
    random.Random(seed).shuffle(result)
    return result


def cannot_open(what: str, path: StrPath, error: OSError) -> DataError:
    """Return the error for what cannot be read, with the nearest name if it is not there."""
    hint = near_file(path) if isinstance(error, FileNotFoundError) else ""
    return DataError(f"{what} '{os.fspath(path)}': {error.strerror}{hint}")


def _read_lines(path: StrPath) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            return file.read().split("\n")
    except OSError as error:
        raise cannot_open("list file", path, error) from error


def _entry(line: str, where: str, least_label: int) -> Entry:
    path, space, text = line.strip().rpartition(" ")
    if "\t" in text:
        path, space, text = line.strip().rpartition("\t")
    if not space:
        raise DataError(f"{where}: expected 'path label' with a space between, got '{line}'")
    if not re.fullmatch(r"[+-]?[0-9]{1,20}", text):
        raise DataError(f"{where}: label '{text}' is no whole number")
    label = int(text)
    if not least_label <= label <= MAX_LABEL:
        raise DataError(
            f"{where}: label {label} is out of range; legal are {least_label} to {MAX_LABEL}"
        )
    return Entry(path, label, where)
