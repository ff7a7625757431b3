"""Batches of datums: read in key order, wrapped at the end, decoded and transformed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from protocaffe.data.database import Database, Record
from protocaffe.data.datum import Array, read_record, record_error
from protocaffe.data.transformer import Transformer
from protocaffe.errors import DataError
from protocaffe.log import log
from protocaffe.proto import caffe_pb2

Floats = npt.NDArray[np.float32]


@dataclass
class RawBatch:
    """Records as they are in the database.

    Attributes:
        position: how many records of the stream came before.
        records: keys and values.
        wraps: how often the database ended and was begun again within this batch.
    """

    position: int
    records: list[Record]
    wraps: int


class Batch:
    """What a data layer puts in its tops; the memory is used again for the next batch.

    Attributes:
        data: the images, float32, shape (batch, channels, height, width).
        labels: float32, shape (batch,).
        wraps: see :class:`RawBatch`.
    """

    def __init__(self) -> None:
        self.data: Floats = np.empty((0, 0, 0, 0), np.float32)
        self.labels: Floats = np.empty(0, np.float32)
        self.wraps = 0
        self._memory: Floats = np.empty(0, np.float32)

    def reshape(self, *shape: int) -> None:
        """Give ``data`` and ``labels`` their shapes; the values are whatever was there."""
        count = int(np.prod(shape))
        if count > self._memory.size:
            self._memory = np.empty(count, np.float32)
        self.data = self._memory[:count].reshape(shape)
        if len(self.labels) != shape[0]:
            self.labels = np.empty(shape[0], np.float32)


def read_batches(database: Database, batch_size: int, position: int = 0) -> Iterator[RawBatch]:
    """Yield batches without end, from the record at ``position`` of the stream.

    The stream is the database over and over; it wraps in the middle of a batch.
    """
    records = database.records(position % len(database) if position else 0)
    while True:
        batch = RawBatch(position, [], 0)
        while True:
            batch.records += islice(records, batch_size - len(batch.records))
            if len(batch.records) == batch_size:
                break
            records = database.records()
            batch.wraps += 1
        position += batch_size
        yield batch


class BatchFiller:
    """Decodes and transforms raw batches.

    Args:
        source: the database's path, for messages.
        transformer: what to do with each image.
        seed: of the random choices, 0 to 2**64 - 1.
    """

    def __init__(self, source: str, transformer: Transformer, seed: int) -> None:
        self.source = source
        self.transformer = transformer
        self.seed = seed
        self._warned = False

    def output_shape(self, record: Record) -> tuple[int, int, int]:
        """Return (channels, height, width) of what the record becomes."""
        _, image = self._read(record)
        return self._shape(record, image)

    def __call__(self, raw: RawBatch, batch: Batch) -> None:
        """Fill the batch from the records; the first one says which shape all must have.

        Raises:
            DataError: a record cannot be used; the message has its key.
        """
        images = []
        for i, record in enumerate(raw.records):
            datum, image = self._read(record)
            shape = self._shape(record, image)
            if i == 0:
                batch.reshape(len(raw.records), *shape)
            elif shape != batch.data.shape[1:]:
                raise record_error(
                    record,
                    self.source,
                    f"has shape {shape}, but the first one of its batch {batch.data.shape[1:]}; "
                    f"images of different sizes need batch_size 1, a crop_size, or to be resized "
                    f"when the database is made",
                )
            batch.labels[i] = datum.label
            images.append(image)
        choices = self.transformer.choices(self.seed, raw.position, len(images))
        self.transformer(images, batch.data, choices)
        batch.wraps = raw.wraps

    def _read(self, record: Record) -> tuple[caffe_pb2.Datum, Array]:
        color = self.transformer.color
        datum, image = read_record(record, self.source, color)
        if color is not None and not datum.encoded and not self._warned:
            self._warned = True
            log.error("force_color and force_gray only work for encoded datums")
        return datum, image

    def _shape(self, record: Record, image: Array) -> tuple[int, int, int]:
        try:
            return self.transformer.output_shape(image.shape)
        except DataError as error:
            raise record_error(record, self.source, str(error)) from None
