"""Make HDF5 files of images or tables, for HDF5Data layers to read.

protocaffe convert_hdf5 ROOT [LIST] OUT takes images as convert_imageset does: from a list file, or
from folders ROOT/CLASS/. protocaffe convert_hdf5 TABLE.csv OUT takes rows of numbers, and
protocaffe convert_hdf5 DATA.npy [LABELS.npy] OUT, or ARRAYS.npz OUT, NumPy's arrays. The data sets
are called data and label, those of .npz files as the arrays.

OUT is a folder of files part_000.h5 and so on; OUT/list.txt names them and is the source of the
layer. HDF5Data takes no transform_param, so scale the images here. OUT appears when everything is
done: an interrupted run leaves nothing behind.
"""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

from protocaffe.cli.convert_imageset import IMAGES, image_sources, warn_of_skipped
from protocaffe.cli.counting import counting_progress
from protocaffe.cli.flags import Flag
from protocaffe.data.convert import CLASS_NAMES, ImageOptions, class_names_file, images_to_hdf5
from protocaffe.data.hdf5_writer import LIST, MAX_FILE, HDF5Writer
from protocaffe.data.tables import (
    ARRAY_SUFFIXES,
    CSV_DELIMITERS,
    read_arrays,
    read_csv,
    write_arrays,
)
from protocaffe.errors import UsageError
from protocaffe.log import log
from protocaffe.proto import caffe_pb2

FLAGS = [
    Flag("source", "the images or the table", required=True, positional=True),
    Flag("list", "the list file of images, or the .npy file of labels", positional=True),
    Flag("out", "the folder to make", required=True, positional=True),
    *IMAGES,
    Flag("scale", "what to multiply pixels with, such as 0.00390625", default=1.0),
    Flag("mean_file", "a mean image to take off before that"),
    Flag("mean_value", "values to take off instead, separated by commas: one, or one per channel"),
    Flag("label", "columns of a CSV table that are labels, separated by commas; names or numbers"),
    Flag("delimiter", "what stands between the columns; default: comma, in .tsv files tab"),
    Flag("file_mb", "megabytes that a file takes at most, as floats; up to 2047", 1024, at_least=1),
    Flag("force", "replace OUT if it exists", default=False),
]
FOR_IMAGES = ("gray", "resize_width", "resize_height", "strict", "scale", "mean_file", "mean_value")
FOR_CSV = ("label", "delimiter")


def run(flags: Namespace) -> int:
    """Convert as the flags say."""
    suffix = Path(flags.source).suffix.lower()
    is_csv, is_arrays = suffix in CSV_DELIMITERS, suffix in ARRAY_SUFFIXES
    if is_csv or is_arrays:
        _refuse(flags, FOR_IMAGES, "images")
    if not is_csv:
        _refuse(flags, FOR_CSV, "CSV tables")
    if (is_csv or suffix == ".npz") and flags.list:
        raise UsageError(f"'{flags.list}' is one word too many: {flags.source} has its labels")
    size = min(flags.file_mb << 20, MAX_FILE)
    with HDF5Writer(flags.out, force=flags.force, file_size=size) as writer:
        if is_csv or is_arrays:
            _convert_table(flags, writer, is_csv)
        else:
            _convert_images(flags, writer)
    log.info("Wrote %d rows to %d files", writer.rows, writer.files)
    log.info('For an HDF5Data layer: source: "%s"', os.path.join(flags.out, LIST))
    return 0


def _convert_table(flags: Namespace, writer: HDF5Writer, is_csv: bool) -> None:
    if is_csv:
        labels = flags.label.split(",") if flags.label else []
        arrays = read_csv(flags.source, labels, flags.delimiter)
    else:
        arrays = read_arrays(flags.source, flags.list or None)
    for name, values in arrays.items():
        log.info("%s: %s", name, " x ".join(map(str, values.shape)))
    with counting_progress(len(next(iter(arrays.values())))) as progress:
        write_arrays(writer, arrays, shuffle=flags.shuffle, seed=flags.seed, progress=progress)


def _convert_images(flags: Namespace, writer: HDF5Writer) -> None:
    param = caffe_pb2.TransformationParameter(
        scale=flags.scale, mean_file=flags.mean_file, mean_value=_mean_values(flags.mean_value)
    )
    options = ImageOptions(
        gray=flags.gray, resize_height=flags.resize_height, resize_width=flags.resize_width
    )
    root, entries, class_names = image_sources(flags.source, flags)
    if class_names:
        writer.add_file(CLASS_NAMES, class_names_file(class_names))
    with counting_progress(len(entries)) as progress:
        result = images_to_hdf5(
            root, entries, writer, options, param, strict=flags.strict, progress=progress
        )
    warn_of_skipped(result)


def _mean_values(text: str) -> list[float]:
    try:
        return [float(value) for value in text.split(",") if text]
    except ValueError:
        raise UsageError(
            f"--mean_value: expected numbers separated by commas, got '{text}'"
        ) from None


def _refuse(flags: Namespace, names: tuple[str, ...], kind: str) -> None:
    """Refuse flags that mean nothing for what is converted."""
    defaults = {flag.name: flag.default for flag in FLAGS}
    for name in names:
        if getattr(flags, name) != defaults[name]:
            raise UsageError(f"--{name} is for {kind}; {flags.source} is something else")
