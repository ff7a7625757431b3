"""Batches of images: read in order, wrapped at the end, decoded and transformed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from protocaffe.data.database import Database, Record
from protocaffe.data.datum import Array, read_alike, read_record, record_error
from protocaffe.data.transformer import SMALL, Transformer
from protocaffe.errors import DataError
from protocaffe.log import log

Floats = npt.NDArray[np.float32]
Images = Sequence[Array] | Array
"""(channels, height, width) each, in a list or in one array."""
R = TypeVar("R")
"""What stands for an image before it is decoded, such as a record of a database."""


@dataclass
class RawBatch(Generic[R]):
    """Records as they are in the source.

    Attributes:
        position: how many records of the stream came before.
        records: one per image.
        wraps: how often the source ended and was begun again within this batch.
    """

    position: int
    records: list[R]
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


def database_rounds(
    database: Database, position: int = 0, shuffle_seed: int | None = None
) -> Iterator[Iterator[Record]]:
    """Yield the records of the database over and over, one iterator per round.

    The first round begins where the record at ``position`` of the stream is.

    Args:
        database: where they are.
        position: how many records of the stream came before.
        shuffle_seed: of a new random order in every round; None for the order of the keys.
    """
    if shuffle_seed is not None:
        keys = database.keys()
        for order in shuffled_rounds(len(keys), position, shuffle_seed):
            yield database.read(keys[place] for place in order)
    yield database.records(position % len(database) if position else 0)
    while True:
        yield database.records()


def shuffled_rounds(count: int, position: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield random orders of 0 to ``count - 1``, one per round, without end.

    The order of a round follows from the seed and the number of the round alone. The first one
    begins at ``position`` of the stream.
    """
    number, start = divmod(position, count)
    while True:
        yield np.random.default_rng((seed, number)).permutation(count)[start:]
        number, start = number + 1, 0


def read_batches(
    rounds: Iterator[Iterator[R]], batch_size: int, position: int = 0
) -> Iterator[RawBatch[R]]:
    """Yield batches without end; one round follows the other in the middle of a batch.

    Args:
        rounds: endless; what is left of the first one begins at ``position``.
        batch_size: records per batch.
        position: how many records of the stream came before.
    """
    records = next(rounds)
    while True:
        batch: RawBatch[R] = RawBatch(position, [], 0)
        while True:
            batch.records += islice(records, batch_size - len(batch.records))
            if len(batch.records) == batch_size:
                break
            records = next(rounds)
            batch.wraps += 1
        position += batch_size
        yield batch


class BatchFiller(ABC, Generic[R]):
    """Decodes and transforms raw batches; a child class knows what the records are.

    Args:
        transformer: what to do with each image.
        seed: of the random choices, 0 to 2**64 - 1.
    """

    def __init__(self, transformer: Transformer, seed: int) -> None:
        self.transformer = transformer
        self.seed = seed

    @abstractmethod
    def read(self, record: R) -> tuple[Array, int]:
        """Return the image, (channels, height, width), and the label of a record.

        Raises:
            DataError: it cannot be used; the message names it.
        """

    @abstractmethod
    def error(self, record: R, message: str) -> DataError:
        """Return an error that names the record."""

    def read_all(self, records: list[R]) -> tuple[Images, Sequence[int] | Array]:
        """Return the images and the labels of a batch; see :meth:`read`."""
        images, labels = zip(*(self.read(record) for record in records), strict=True)
        return images, labels

    def output_shape(self, record: R) -> tuple[int, int, int]:
        """Return (channels, height, width) of what the record becomes."""
        image, _ = self.read(record)
        return self._shape(record, image)

    def __call__(self, raw: RawBatch[R], batch: Batch) -> None:
        """Fill the batch from the records; the first one says which shape all must have.

        Raises:
            DataError: a record cannot be used; the message names it.
        """
        images, labels = self.read_all(raw.records)
        shape = self._common_shape(raw.records, images)
        batch.reshape(len(images), *shape)
        choices = self.transformer.choices(self.seed, raw.position, len(images))
        self.transformer(images, batch.data, choices)
        batch.labels[...] = labels
        batch.wraps = raw.wraps

    def _common_shape(self, records: list[R], images: Images) -> tuple[int, int, int]:
        """Return the shape that all images become."""
        common = self._shape(records[0], images[0])
        fitting = {images[0].shape}
        for record, image in zip(records, images, strict=True):
            if image.shape in fitting:
                continue
            shape = self._shape(record, image)
            if shape != common:
                raise self.error(
                    record,
                    f"has shape {shape}, but the first one of its batch {common}; "
                    f"images of different sizes need batch_size 1, a crop_size, or to be resized",
                )
            fitting.add(image.shape)
        return common

    def _shape(self, record: R, image: Array) -> tuple[int, int, int]:
        try:
            return self.transformer.output_shape(image.shape)
        except DataError as error:
            raise self.error(record, str(error)) from None


class DatumFiller(BatchFiller[Record]):
    """Fills batches from database records with Datums.

    Args:
        source: the database's path, for messages.
        transformer: what to do with each image.
        seed: of the random choices, 0 to 2**64 - 1.
    """

    def __init__(self, source: str, transformer: Transformer, seed: int) -> None:
        super().__init__(transformer, seed)
        self.source = source
        self._warned = False

    def read(self, record: Record) -> tuple[Array, int]:
        """Return the datum's image and label."""
        datum, image = read_record(record, self.source, self.transformer.color)
        if not datum.encoded:
            self._warn_of_force()
        return image, datum.label

    def read_all(self, records: list[Record]) -> tuple[Images, Sequence[int] | Array]:
        """Return the images and the labels of a batch; see :meth:`read`."""
        values = [value for _, value in records]
        alike = read_alike(values) if len(values[0]) <= SMALL else None
        if alike is None:
            return super().read_all(records)
        self._warn_of_force()
        return alike

    def error(self, record: Record, message: str) -> DataError:
        """Return an error that names the record's key and the database."""
        return record_error(record, self.source, message)

    def _warn_of_force(self) -> None:
        if self.transformer.color is not None and not self._warned:
            self._warned = True
            log.error("force_color and force_gray only work for encoded datums")
