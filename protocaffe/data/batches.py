"""Batches of images: read in order, wrapped at the end, decoded and transformed."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from protocaffe.data.database import Database, View
from protocaffe.data.datum import Array, read_alike, read_record, record_error
from protocaffe.data.transformer import SMALL, Transformer, images_together, normalize
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


def empty_bytes(size: int) -> Array:
    """Return memory with any content."""
    return np.empty(size, np.uint8)


class Batch:
    """What a data layer puts in its tops; the memory is used again for the next batch.

    Attributes:
        data: the images, shape (batch, channels, height, width); float32, or uint8 if mean and
            scale are still to be applied.
        labels: float32, shape (batch,).
        wraps: see :class:`RawBatch`.
        mean: what is still to be subtracted, from :meth:`Transformer.mean_of_batch`, or None.
        scale: what is still to be multiplied afterwards.

    Args:
        memory: makes the images' memory, from a number of bytes.
    """

    def __init__(self, memory: Callable[[int], Array] = empty_bytes) -> None:
        self.data: Array = np.empty((0, 0, 0, 0), np.float32)
        self.labels: Floats = np.empty(0, np.float32)
        self.wraps = 0
        self.mean: Array | None = None
        self.scale = np.float32(1)
        self._make_memory = memory
        self._memory = np.empty(0, np.uint8)

    def reshape(self, *shape: int, dtype: npt.DTypeLike = np.float32) -> None:
        """Give ``data`` and ``labels`` their shapes; the values are whatever was there."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size > self._memory.size:
            self._memory = self._make_memory(size)
        self.data = self._memory[:size].view(dtype).reshape(shape)
        if len(self.labels) != shape[0]:
            self.labels = np.empty(shape[0], np.float32)

    def take(self, images: Array) -> None:
        """Let these bytes be the images, without copying where any memory will do."""
        if self._make_memory is empty_bytes:
            self.data = images
        else:
            self.data[...] = images

    def copy_to(self, out: Array, xp: Any = np) -> None:
        """Write the finished images into an array of the module ``xp``."""
        step = images_together(out.shape[1:])
        for start in range(0, len(out), step):
            part = out[start : start + step]
            mean = None if self.mean is None else xp.asarray(self.mean[: len(part)])
            normalize(xp.asarray(self.data[start : start + step]), mean, self.scale, part)

    def finish(self) -> None:
        """Apply what is still to be applied."""
        if self.data.dtype == np.uint8:
            finished = np.empty(self.data.shape, np.float32)
            self.copy_to(finished)
            self.data, self.mean, self.scale = finished, None, np.float32(1)


def database_rounds(
    database: Database, position: int = 0, shuffle_seed: int | None = None
) -> Iterator[Iterator[View]]:
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
    yield database.views(position % len(database) if position else 0)
    while True:
        yield database.views()


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

    def read_alike(self, records: list[R]) -> tuple[Array, Array] | None:
        """Return the images, in one array, and the labels of a batch that can be read at once."""
        return None

    def output_shape(self, record: R) -> tuple[int, int, int]:
        """Return (channels, height, width) of what the record becomes."""
        image, _ = self.read(record)
        return self._shape(record, image)

    def __call__(self, raw: RawBatch[R], batch: Batch) -> None:
        """Fill the batch from the records; the first one says which shape all must have.

        Raises:
            DataError: a record cannot be used; the message names it.
        """
        alike = self.read_alike(raw.records)
        if alike is not None:
            self._fill_together(raw, batch, *alike)
            return
        first = self.read(raw.records[0])
        rest = map(self.read, raw.records[1:])
        if first[0].size <= SMALL:
            images, labels = zip(first, *rest, strict=True)
            self._fill_together(raw, batch, images, labels)
        else:
            self._fill_one_by_one(raw, batch, chain([first], rest))

    def _fill_together(
        self, raw: RawBatch[R], batch: Batch, images: Images, labels: Sequence[int] | Array
    ) -> None:
        common = self._shape(raw.records[0], images[0])
        if isinstance(images, np.ndarray):
            are_bytes = images.dtype == np.uint8
        else:
            are_bytes = all(image.dtype == np.uint8 for image in images)
            fitting = {images[0].shape}
            for record, image in zip(raw.records, images, strict=True):
                self._check_shape(record, image, common, fitting)
        self._prepare(raw, batch, common, are_bytes)
        choices = self.transformer.choices(self.seed, raw.position, len(images))
        if choices is None and isinstance(images, np.ndarray) and batch.data.dtype == np.uint8:
            batch.take(self.transformer.centre(images))
        else:
            self.transformer(images, batch.data, choices)
        batch.labels[...] = labels

    def _fill_one_by_one(
        self, raw: RawBatch[R], batch: Batch, reads: Iterator[tuple[Array, int]]
    ) -> None:
        """Fill the batch with large images: each is finished while it is in the cache."""
        common: tuple[int, int, int] | None = None
        fitting: set[tuple[int, ...]] = set()
        choices = self.transformer.choices(self.seed, raw.position, len(raw.records))
        for i, (record, (image, label)) in enumerate(zip(raw.records, reads, strict=True)):
            if common is None:
                common = self._shape(record, image)
                self._prepare(raw, batch, common, image.dtype == np.uint8)
            self._check_shape(record, image, common, fitting)
            if image.dtype != np.uint8:
                batch.finish()
            row = None if choices is None else choices[i].tolist()
            try:
                self.transformer.transform(image, batch.data[i], row)
            except DataError as error:
                raise self.error(record, str(error)) from None
            batch.labels[i] = label

    def _prepare(
        self, raw: RawBatch[R], batch: Batch, shape: tuple[int, int, int], are_bytes: bool
    ) -> None:
        """Give the batch its shape and type."""
        transformer = self.transformer
        stays = are_bytes and transformer.keeps_bytes
        batch.reshape(len(raw.records), *shape, dtype=np.uint8 if stays else np.float32)
        batch.mean = transformer.mean_of_batch(shape) if stays else None
        batch.scale = transformer.scale if stays else np.float32(1)
        batch.wraps = raw.wraps

    def _check_shape(
        self, record: R, image: Array, common: tuple[int, ...], fitting: set[tuple[int, ...]]
    ) -> None:
        """Refuse an image that becomes another shape; ``fitting`` are shapes known to fit."""
        if image.shape in fitting:
            return
        shape = self._shape(record, image)
        if shape != common:
            if shape[0] != common[0]:
                way_out = "force_color: true (or force_gray) makes encoded ones alike"
            else:
                way_out = "such images need batch_size 1, a crop_size, or to be resized"
            raise self.error(
                record, f"has shape {shape}, but the first one of its batch {common}; {way_out}"
            )
        fitting.add(image.shape)

    def _shape(self, record: R, image: Array) -> tuple[int, int, int]:
        try:
            return self.transformer.output_shape(image.shape)
        except DataError as error:
            raise self.error(record, str(error)) from None


class DatumFiller(BatchFiller[View]):
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

    def read(self, record: View) -> tuple[Array, int]:
        """Return the datum's image and label."""
        datum, image = read_record(record, self.source, self.transformer.color)
        if not datum.encoded:
            self._warn_of_force()
        return image, datum.label

    def read_alike(self, records: list[View]) -> tuple[Array, Array] | None:
        """Return the images, in one array, and the labels of small raw datums."""
        values = [value for _, value in records]
        alike = read_alike(values) if len(values[0]) <= SMALL else None
        if alike is not None:
            self._warn_of_force()
        return alike

    def error(self, record: View, message: str) -> DataError:
        """Return an error that names the record's key and the database."""
        return record_error(record, self.source, message)

    def _warn_of_force(self) -> None:
        if self.transformer.color is not None and not self._warned:
            self._warned = True
            log.error("force_color and force_gray only work for encoded datums")
