"""Folders of images, one folder per class, to what is learned from and what is tested on."""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from protocaffe.data.entries import Entry, scan_classes, shuffled
from protocaffe.errors import DataError
from protocaffe.log import log
from protocaffe.proto.files import StrPath

TRAIN = "train"
TEST = ("test", "val", "valid", "validation")
"""Names of the parts of a data set."""


@dataclass
class Part:
    """Some of the images.

    Attributes:
        root: the folder they are in, with a slash at its end.
        entries: paths below it and labels.
    """

    root: str
    entries: list[Entry]


@dataclass
class Images:
    """A data set.

    Attributes:
        classes: names of the classes; their places are the labels.
        train: what is learned from, in random order.
        test: what is tested on.
    """

    classes: list[str]
    train: Part
    test: Part


def find_images(folder: StrPath, test_share: float = 0.2, seed: int = 1) -> Images:
    """Take the images of ``train/`` and ``test/`` (or ``val/``), or divide those of one folder.

    Args:
        folder: with a folder per class, or with parts that have one.
        test_share: of each class, what share is tested on if there are no parts: at least one
            image, at most all but one.
        seed: of the division and the order.

    Raises:
        DataError: the folder is not like that, has only one class, or the parts differ in theirs.
    """
    top = Path(folder)
    if not top.is_dir():
        raise DataError(f"{folder}: there is no such folder; expected one with a folder per class")
    parts = [name for name in TEST if (top / name).is_dir()]
    if (top / TRAIN).is_dir() and parts:
        train, test = top / TRAIN, top / parts[0]
        entries, classes = _scan(train)
        tested, tested_classes = scan_classes(test)
        if classes != tested_classes:
            raise DataError(_differing(train, classes, test, tested_classes))
    elif (top / TRAIN).is_dir():
        return find_images(top / TRAIN, test_share, seed)
    else:
        train = test = top
        everything, classes = _scan(top)
        entries, tested = _divided(everything, classes, test_share, seed)
    if not tested:
        raise DataError(f"{top}: one image per class is not enough: some must be left to test on")
    return Images(classes, _part(train, shuffled(entries, seed)), _part(test, tested))


def _scan(folder: Path) -> tuple[list[Entry], list[str]]:
    entries, classes = scan_classes(folder)
    if len(classes) < 2:
        raise DataError(
            f"{folder}: has one class only, '{classes[0]}'; expected two folders of images at least"
        )
    return entries, classes


def _part(folder: Path, entries: list[Entry]) -> Part:
    return Part(os.path.join(folder, ""), entries)


def _divided(
    entries: list[Entry], classes: list[str], share: float, seed: int
) -> tuple[list[Entry], list[Entry]]:
    train: list[Entry] = []
    test: list[Entry] = []
    for label, name in enumerate(classes):
        own = [entry for entry in entries if entry.label == label]
        random.Random(f"{seed} {name}").shuffle(own)
        if len(own) == 1:
            log.warning("Class '%s' has one image only: it is learned from, never tested", name)
        count = min(max(1, round(share * len(own))), len(own) - 1)
        test += own[:count]
        train += own[count:]
    return train, sorted(test)


def _differing(train: Path, classes: list[str], test: Path, others: list[str]) -> str:
    missing = ", ".join(sorted({*classes} - {*others})) or "none"
    new = ", ".join(sorted({*others} - {*classes})) or "none"
    return (
        f"{train} and {test} must have the same class folders; only the first has: {missing}; "
        f"only the second has: {new}"
    )


def check_readable(part: Part, skipped: list[str], classes: list[str]) -> None:
    """Refuse a class none of whose images could be read.

    Raises:
        DataError: there is one.
    """
    unread = set(skipped)
    left = Counter(entry.label for entry in part.entries if part.root + entry.path not in unread)
    for label, count in Counter(entry.label for entry in part.entries).items():
        if not left[label]:
            raise DataError(
                f"{part.root}{classes[label]}: none of {count} image(s) can be read; the log "
                f"says why"
            )
