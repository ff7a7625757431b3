"""Layers that feed a net from databases and image files, read ahead by threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from protocaffe.blob import Blob
from protocaffe.data.augment import augmentations
from protocaffe.data.batches import (
    Batch,
    DatumFiller,
    RawBatch,
    database_rounds,
    empty_bytes,
    read_batches,
)
from protocaffe.data.database import open_database
from protocaffe.data.images import ImageFiller, ImageList
from protocaffe.data.prefetch import Prefetcher
from protocaffe.data.transformer import Transformer
from protocaffe.data.windows import CHANNELS, WindowFiller, read_windows, window_batches
from protocaffe.errors import DataError
from protocaffe.layers.base import Layer, register
from protocaffe.log import log
from protocaffe.proto import caffe_pb2


class Filler(Protocol):
    """Makes a batch of what stands for it; its random choices follow from the seed."""

    seed: int

    def __call__(self, raw: Any, batch: Batch, /) -> None:
        """Fill the batch."""


class PrefetchingLayer(Layer):
    """A layer whose batches are made ahead by threads, ``data_param.prefetch`` deep.

    A child class sets ``batch_size``, ``_shape`` and ``_filler`` in its ``setup``, which calls
    this one's first, and says in ``_raw_batches`` what the filler gets.

    Attributes:
        position: how many images ``forward`` has given out so far.
        host_memory: makes the memory of batches, from a number of bytes.
    """

    bottoms = (0, 0)
    dynamic = True
    settings = ("transform_param", "data_param")

    _filler: Filler
    _shape: tuple[int, ...]
    """Of one image, as it goes into the net."""

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        self.position = 0
        self.batch_size = 0
        self.host_memory = empty_bytes
        self._prefetcher: Prefetcher[RawBatch[Any], Batch] | None = None

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        top[0].reshape(self.batch_size, *self._shape)
        if len(top) > 1:
            top[1].reshape(self.batch_size)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        batch = self.take_batch(bottom, top)
        batch.copy_to(top[0].data, self.xp)
        if len(top) > 1:
            top[1].data[...] = self.xp.asarray(batch.labels)
        if self._prefetcher is not None:
            self._prefetcher.release()

    def take_batch(self, bottom: list[Blob], top: list[Blob]) -> Batch:
        """Return the next batch, for which the tops get their shapes; it stays until the next."""
        batch = self._next_batch()
        for _ in range(batch.wraps):
            log.info("Restarting data prefetching from start.")
        if batch.data.shape != top[0].shape:
            self._shape = batch.data.shape[1:]
            self.reshape(bottom, top)
        self.position += self.batch_size
        return batch

    def seek(self, position: int) -> None:
        """Go on as if ``position`` images had been given out since the set-up.

        A run that is resumed so sees the images, and the random crops and mirrorings, that it
        would have seen without a break.
        """
        self._stop()
        self.position = position

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), "position": self.position, "seed": self._filler.seed}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self._filler.seed = state["seed"]
        self.seek(state["position"])

    def close(self) -> None:
        self._stop()

    def _raw_batches(self) -> Iterator[RawBatch[Any]]:
        """Return what the filler gets from ``position`` on."""
        raise NotImplementedError

    def _log_size(self) -> None:
        size = ",".join(str(extent) for extent in (self.batch_size, *self._shape))
        log.info("output data size: %s", size)

    def _next_batch(self) -> Batch:
        if self._prefetcher is None:
            buffers = [Batch(self.host_memory) for _ in range(self.param.data_param.prefetch + 1)]
            self._prefetcher = Prefetcher(self._raw_batches(), self._filler, buffers)
        try:
            return self._prefetcher.next()
        except DataError as error:
            raise self.error(str(error)) from None

    def _stop(self) -> None:
        if self._prefetcher is not None:
            self._prefetcher.close()
            self._prefetcher = None


@register("Data")
class Data(PrefetchingLayer):
    """Images and labels from an LMDB or LevelDB database of Datums, a batch at a time.

    Records come in key order, or with ``shuffle`` in a new random order in every round; after the
    last one the next round follows, in the middle of a batch if need be. Each batch takes its
    shape from its first record, so with ``batch_size: 1`` images of any size follow each other.
    ``transform_param`` says what happens to the images on the way; the fields of that kind inside
    ``data_param``, and ``rand_skip``, are of old files and have no effect. Reading, decoding and
    transforming run ahead in threads, ``prefetch`` batches deep. Which records and random changes
    come follows from the net's seed alone, and a resumed run goes on with those that it would
    have seen.

    In TRAIN, ``transform_param`` can also augment the images; without these fields nothing of
    this happens. The order is: ``rotation`` of the whole image; the crop, which is a
    ``random_resized_crop`` of ``crop_size``, or a part of the image with ``crop_padding``, or
    Caffe's own; ``mirror``; ``color_jitter``; mean and scale; ``cutout``. Where there are no
    pixels the batch is 0, the mean. In TEST the same settings give the crop at the centre. The
    example shows a recipe for small images (for CIFAR, ``crop_size: 32 crop_padding: 4`` and a
    cutout of 16), that of ImageData one for photos.

    Bottoms: none. Tops: the images, (batch, channels, height, width), and optionally the labels,
    (batch,); a record without label reads 0.
    Reference: Caffe's DataLayer and DataTransformer.

    Example:
        layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN }
            transform_param { mean_value: 128 mirror: true crop_size: 4 crop_padding: 1
                cutout { size: 2 probability: 0.5 } }
            data_param { source: "train_lmdb" batch_size: 2 backend: LMDB shuffle: true } }

    Attributes:
        position: how many records ``forward`` has given out so far.
    """

    tops = (1, 2)

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        super().setup(bottom, top)
        options = self.param.data_param
        self.batch_size = options.batch_size
        if self.batch_size < 1:
            raise self.error("data_param needs a batch_size of at least 1")
        if not options.source:
            raise self.error("data_param needs a source: the folder of the database")
        lmdb = options.backend == caffe_pb2.DataParameter.LMDB
        seed = int(self.rng.integers(2**63))
        try:
            transformer = Transformer(self.param.transform_param, self.phase)
            self._database = open_database(options.source, "lmdb" if lmdb else "leveldb")
            self._filler = filler = DatumFiller(options.source, transformer, seed)
            self._shape = filler.output_shape(next(self._database.records()))
        except DataError as error:
            raise self.error(str(error)) from None
        self._log_size()

    def close(self) -> None:
        super().close()
        self._database.close()

    def _raw_batches(self) -> Iterator[RawBatch[Any]]:
        seed = self._filler.seed if self.param.data_param.shuffle else None
        rounds = database_rounds(self._database, self.position, seed)
        return read_batches(rounds, self.batch_size, self.position)


@register("ImageData")
class ImageData(PrefetchingLayer):
    """Images and labels from image files that a list names, a batch at a time.

    Each line of ``source`` has a path, which ``root_folder`` is put in front of as it is, and a
    label, split at the last space. After the last image comes the first, in the middle of a batch
    if need be; ``shuffle`` takes a new random order in every round. ``rand_skip`` skips a random
    number of images below it at the very start. Each batch takes its shape from its first image:
    images of different sizes need ``new_height`` and ``new_width``, a ``crop_size``, or
    ``batch_size: 1``. Of ``data_param`` only ``prefetch`` counts: how many batches are read,
    decoded and transformed ahead, in threads. Training images can be augmented as in Data.

    Bottoms: none. Tops: the images, (batch, channels, height, width), with 3 channels in BGR
    order, or 1 without ``is_color``; the labels, (batch,).
    Reference: Caffe's ImageDataLayer and DataTransformer.

    Example:
        layer { name: "data" type: "ImageData" top: "data" top: "label" include { phase: TRAIN }
            transform_param { mean_value: 104 mean_value: 117 mean_value: 124 mirror: true
                crop_size: 12 random_resized_crop { min_area: 0.25 }
                rotation { max_degrees: 10 probability: 0.5 }
                color_jitter { brightness: 0.4 contrast: 0.4 saturation: 0.4 hue: 0.05 } }
            image_data_param { source: "images.txt" root_folder: "images/" batch_size: 2
                new_height: 16 new_width: 16 shuffle: true } }

    Attributes:
        position: how many images ``forward`` has given out so far.
    """

    tops = (2, 2)

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        super().setup(bottom, top)
        options = self.param.image_data_param
        self.batch_size = options.batch_size
        if self.batch_size < 1:
            raise self.error("image_data_param needs a batch_size of at least 1")
        if not options.source:
            raise self.error("image_data_param needs a source: a list of images and labels")
        size = options.new_height, options.new_width
        if (size[0] == 0) != (size[1] == 0):
            raise self.error(
                f"new_height {size[0]} and new_width {size[1]} make no size; give both or neither"
            )
        seed = int(self.rng.integers(2**63))
        try:
            self._images = self._open_list(seed)
            self._skipped = self._choose_skip()
            self._filler = filler = ImageFiller(
                options.source,
                Transformer(self.param.transform_param, self.phase),
                seed,
                color=options.is_color,
                size=size if size[0] else None,
            )
            self._shape = filler.output_shape(next(next(self._images.rounds(self._skipped))))
        except DataError as error:
            raise self.error(str(error)) from None
        self._log_size()

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), "skipped": self._skipped}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self._images.seed = state["seed"]
        self._skipped = state["skipped"]

    def _raw_batches(self) -> Iterator[RawBatch[Any]]:
        start = self._skipped + self.position
        return read_batches(self._images.rounds(start), self.batch_size, start)

    def _open_list(self, seed: int) -> ImageList:
        options = self.param.image_data_param
        log.info("Opening file %s", options.source)
        images = ImageList(options.source, options.root_folder, shuffle=options.shuffle, seed=seed)
        if options.shuffle:
            log.info("Shuffling data")
        log.info("A total of %d images.", len(images))
        return images

    def _choose_skip(self) -> int:
        """Return how many images to skip at the start."""
        limit = self.param.image_data_param.rand_skip
        if limit > len(self._images):
            raise self.error(
                f"rand_skip {limit} may skip the whole list, which has {len(self._images)} "
                f"image(s); give {len(self._images)} at most"
            )
        if not limit:
            return 0
        skipped = int(self.rng.integers(limit))
        log.info("Skipping first %d data points.", skipped)
        return skipped


@register("WindowData")
class WindowData(PrefetchingLayer):
    """Windows of images, drawn at random for each batch: background first, then foreground.

    The windows file ``source`` has for each image the lines ``# index``, path, channels (3),
    height, width and number of windows, and then one line per window: label, overlap with an
    object, x1, y1, x2, y2, corners included. An overlap of at least ``fg_threshold`` makes a
    window foreground; below ``bg_threshold`` it is background with label 0; others are dropped.

    A window is resized to ``crop_size``. With ``context_pad`` it is grown first, so that
    this many pixels of the crop on each side show surroundings; what lies outside the image is 0.
    The mean, ``mirror`` and ``crop_size`` come from ``transform_param``, ``scale`` from
    ``window_data_param``. Of ``data_param`` only ``prefetch`` counts: how many batches are made
    ahead, in threads. Of the augmentations of Data there are ``color_jitter`` and ``cutout``.

    Bottoms: none. Tops: the windows, (batch, 3, crop_size, crop_size), in BGR order; the labels,
    (batch,).
    Reference: Caffe's WindowDataLayer.

    Example:
        layer { name: "data" type: "WindowData" top: "data" top: "label"
            transform_param { crop_size: 12 mean_value: 128 mirror: true }
            window_data_param { source: "windows.txt" root_folder: "images/" batch_size: 4
                fg_fraction: 0.25 context_pad: 2 } }

    Attributes:
        position: how many windows ``forward`` has given out so far.
    """

    tops = (2, 2)

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        super().setup(bottom, top)
        options = self.param.window_data_param
        self.batch_size = options.batch_size
        if self.batch_size < 1:
            raise self.error("window_data_param needs a batch_size of at least 1")
        if not options.source:
            raise self.error("window_data_param needs a source: a list of images and windows")
        for name in augmentations(self.param.transform_param):
            if name not in ("color_jitter", "cutout"):
                raise self.error(
                    f"draws its windows by itself and takes no {name}; of the augmentations it "
                    f"knows color_jitter and cutout"
                )
        seed = int(self.rng.integers(2**63))
        try:
            transformer = Transformer(self.param.transform_param, self.phase)
            windows = read_windows(options.source, options.fg_threshold, options.bg_threshold)
            self._filler = WindowFiller(windows, options, transformer, seed)
        except DataError as error:
            raise self.error(str(error)) from None
        log.info("Number of images: %d", len(windows.images))
        self._shape = CHANNELS, transformer.crop_size, transformer.crop_size
        self._log_size()

    def _raw_batches(self) -> Iterator[RawBatch[Any]]:
        return window_batches(self.batch_size, self.position)
