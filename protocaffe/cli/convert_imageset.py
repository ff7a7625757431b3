"""Make a database of image files, for Data layers to read.

protocaffe convert_imageset ROOT LIST DB takes the images from a list file with lines of "path
label"; ROOT is put in front of every path as it is, so mind the slash at its end. protocaffe
convert_imageset ROOT DB takes all images in ROOT/CLASS/ folders instead: the sorted names of the
folders become the labels 0, 1, ... and are written to DB/labels.txt.

DB appears when everything is done: an interrupted run leaves nothing behind.
"""

from __future__ import annotations

import os
from argparse import Namespace

from protocaffe.cli.counting import counting_progress
from protocaffe.cli.flags import Flag
from protocaffe.data.convert import ImageOptions, convert_images
from protocaffe.data.entries import Entry, read_list, scan_classes, shuffled
from protocaffe.data.reader import Conversion
from protocaffe.log import log

ROOT = Flag("root", "what to put in front of the paths", required=True, positional=True)
LIST = Flag("list", "the list file; left out, ROOT has one folder per class", positional=True)
IMAGES = [
    Flag("gray", "one channel instead of three", default=False),
    Flag("shuffle", "put the images in random order", default=False),
    Flag("seed", "of the random order: the same seed, the same order", default=0),
    Flag("resize_width", "width to resize to, in pixels; 0 keeps it", default=0, at_least=0),
    Flag("resize_height", "height to resize to, in pixels; 0 keeps it", default=0, at_least=0),
    Flag("strict", "stop at a file that cannot be read, instead of skipping it", default=False),
]
FLAGS = [
    ROOT,
    LIST,
    Flag("db", "the database to make", required=True, positional=True),
    *IMAGES,
    Flag("backend", "kind of database", default="lmdb", choices=("lmdb", "leveldb")),
    Flag("check_size", "refuse images of another size, or other channels, than the first", False),
    Flag("encoded", "store compressed images instead of pixels", default=False),
    Flag("encode_type", "how to compress: png, jpg ...; default: as the file is"),
    Flag("force", "replace DB if it exists", default=False),
]

PARTS = {"train", "training", "test", "testing", "val", "valid", "validation"}
"""Folders of these names are hardly classes."""


def run(flags: Namespace) -> int:
    """Convert as the flags say."""
    options = ImageOptions(
        gray=flags.gray,
        encoded=flags.encoded,
        encode_type=flags.encode_type,
        resize_height=flags.resize_height,
        resize_width=flags.resize_width,
    )
    if flags.encode_type and not flags.encoded:
        log.info("encode_type specified, assuming encoded=true.")
    root, entries, class_names = image_sources(flags.root, flags)
    with counting_progress(len(entries)) as progress:
        result = convert_images(
            root,
            entries,
            flags.db,
            options,
            backend=flags.backend,
            class_names=class_names,
            check_size=flags.check_size,
            strict=flags.strict,
            force=flags.force,
            progress=progress,
        )
    warn_of_skipped(result)
    return 0


def warn_of_skipped(result: Conversion) -> None:
    """Say in the log how many files could not be read."""
    skipped = len(result.skipped)
    if skipped:
        log.warning("%d of %d files were skipped.", skipped, skipped + result.written)


def image_sources(root: str, flags: Namespace) -> tuple[str, list[Entry], list[str]]:
    """Return the root, the images in the order they go in, and the class names if known."""
    class_names: list[str] = []
    if flags.list:
        entries = read_list(flags.list)
    else:
        entries, class_names = scan_classes(root)
        root = os.path.join(root, "")
        if PARTS.issuperset(class_names):
            log.warning(
                "The classes are %s. If these are parts of a data set, convert each by itself.",
                " and ".join(class_names),
            )
        if not flags.shuffle:
            log.warning("The images go in class by class; to train on them, give --shuffle.")
    if flags.shuffle:
        log.info("Shuffling data")
        entries = shuffled(entries, flags.seed)
    log.info("A total of %d images.", len(entries))
    return root, entries, class_names
