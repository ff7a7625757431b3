"""Databases from a data set that comes as folders of images; what the create_* scripts share."""

from __future__ import annotations

import argparse
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocaffe.data.convert import ImageOptions, convert_images
from protocaffe.data.database import open_database
from protocaffe.data.entries import scan_classes, shuffled
from protocaffe.data.mean import image_mean, write_mean
from protocaffe.errors import DataError, ProtocaffeError
from protocaffe.log import init_log


def run(description: str, out: str, options: ImageOptions, *, mean: bool = False) -> None:
    """Be a script: read the command line, make the databases, end with a message if that fails.

    Args:
        description: what the script says about itself.
        out: the folder that is written to unless ``--out`` names another.
        options: how images become datums.
        mean: whether to write the mean of the training images, too.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("source", type=Path, help="folder or zip file with train/ and test/")
    parser.add_argument(
        "--out", type=Path, default=Path(out), help="folder to write to (default: %(default)s)"
    )
    given = parser.parse_args()
    init_log()
    try:
        make_databases(given.source, given.out, options)
        if mean:
            make_mean(given.out)
    except ProtocaffeError as error:
        sys.exit(str(error))


def make_databases(source: Path, out: Path, options: ImageOptions) -> None:
    """Write ``train_lmdb`` and ``test_lmdb`` into a folder, in place of earlier ones.

    Training images are shuffled, always in the same way.

    Args:
        source: a folder, or a zip file of one, with ``train/<class>/`` and ``test/<class>/``.
        out: where to.
        options: how images become datums.

    Raises:
        DataError: the source is neither, or the two parts have different classes.
    """
    out.mkdir(parents=True, exist_ok=True)
    with _opened(source) as tree:
        train, names = scan_classes(tree / "train")
        test, test_names = scan_classes(tree / "test")
        if names != test_names:
            raise DataError(f"{source}: train has the classes {names}, but test has {test_names}")
        for part, entries in (("train", shuffled(train, seed=0)), ("test", test)):
            convert_images(
                f"{tree / part}/",
                entries,
                out / f"{part}_lmdb",
                options,
                class_names=names,
                force=True,
            )


def make_mean(out: Path) -> None:
    """Write ``mean.binaryproto``, the mean of the folder's training images."""
    write_mean(out / "mean.binaryproto", image_mean(open_database(out / "train_lmdb")))


@contextmanager
def _opened(source: Path) -> Iterator[Path]:
    """Give the folder that has train/ in it; a zip file is unpacked for the time being."""
    if source.is_dir():
        yield _top(source)
        return
    if not zipfile.is_zipfile(source):
        raise DataError(f"{source}: expected a folder or a zip file")
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(source) as archive:
        archive.extractall(folder)
        yield _top(Path(folder))


def _top(folder: Path) -> Path:
    for each in (folder, *sorted(folder.iterdir())):
        if (each / "train").is_dir():
            return each
    raise DataError(f"{folder}: has no folder 'train', nor has a folder in it")
