"""The mean image of a database: what ``compute_image_mean`` does."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from protocaffe.data.database import Database
from protocaffe.data.datum import Array, read_record, record_error
from protocaffe.log import log
from protocaffe.proto.binary import array_to_blob, write_atomic

Mean = npt.NDArray[np.float32]

CHUNK = 250
"""Records that are added up together."""
LOG_EVERY = 10000


def image_mean(database: Database, progress: Callable[[int], None] | None = None) -> Mean:
    """Return the mean of all images, shape (channels, height, width).

    Pixels are added up as whole numbers, so the sum is exact whatever the number of records.

    Args:
        database: of Datums; encoded ones are decoded to the channels they have.
        progress: called now and then with the number of records done so far.

    Raises:
        DataError: a record cannot be read or has another size than the first.
    """
    records = database.records()
    total: npt.NDArray[Any] | None = None
    count = 0
    while chunk := list(islice(records, CHUNK)):
        images = [read_record(record, database.path)[1] for record in chunk]
        if total is None:
            total = np.zeros(images[0].shape, _sum_type(images[0]))
        for record, image in zip(chunk, images, strict=True):
            if image.shape != total.shape:
                raise record_error(
                    record,
                    database.path,
                    f"has shape {image.shape}, the first record {total.shape}; a mean image "
                    f"needs images of one size, so resize them when the database is made",
                )
        total += np.sum(images, axis=0, dtype=_sum_type(images[0]))
        count += len(chunk)
        if progress:
            progress(count)
        if count % LOG_EVERY == 0:
            log.info("Processed %d files.", count)
    assert total is not None  # no database is empty
    if count % LOG_EVERY:
        log.info("Processed %d files.", count)
    return (total / count).astype(np.float32)


def write_mean(path: str | os.PathLike[str], mean: Mean) -> None:
    """Write a mean image as a BlobProto of the old four-axes kind, all or nothing.

    Raises:
        FileError: the file cannot be written.
    """
    blob = array_to_blob(mean)
    blob.ClearField("shape")
    blob.num = 1
    blob.channels, blob.height, blob.width = mean.shape
    write_atomic(os.fspath(path), blob.SerializeToString())


def channel_means(mean: Mean) -> list[float]:
    """Return the mean of every channel, to be used as ``mean_value``."""
    return [float(value) for value in mean.mean(axis=(1, 2), dtype=np.float64)]


def _sum_type(image: Array) -> type[np.generic]:
    return np.int64 if image.dtype == np.uint8 else np.float64
