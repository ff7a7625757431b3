"""The layer that feeds a net from a database."""

from __future__ import annotations

from typing import Any

from protocaffe.blob import Blob
from protocaffe.data.batches import Batch, BatchFiller, RawBatch, read_batches
from protocaffe.data.database import open_database
from protocaffe.data.prefetch import Prefetcher
from protocaffe.data.transformer import Transformer
from protocaffe.errors import DataError
from protocaffe.layers.base import Layer, register
from protocaffe.log import log
from protocaffe.proto import caffe_pb2


@register("Data")
class Data(Layer):
    """Images and labels from an LMDB or LevelDB database of Datums, a batch at a time.

    Records come in key order; after the last one the first follows, in the middle of a batch if
    need be. Each batch takes its shape from its first record, so with ``batch_size: 1`` images
    of any size follow each other. ``transform_param`` says what happens to the images on the
    way; the fields of that kind inside
    ``data_param`` are of old files and have no effect. Reading, decoding and transforming run
    ahead in threads, ``prefetch`` batches deep.

    Bottoms: none. Tops: the images, (batch, channels, height, width), and optionally the labels,
    (batch,); a record without label reads 0.
    Reference: Caffe's DataLayer and DataTransformer.

    Example:
        layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN }
            transform_param { mirror: true crop_size: 4 mean_value: 128 }
            data_param { source: "train_lmdb" batch_size: 2 backend: LMDB } }

    Attributes:
        position: how many records ``forward`` has given out so far.
    """

    bottoms = (0, 0)
    tops = (1, 2)
    dynamic = True
    settings = ("transform_param",)

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        self.position = 0
        self._prefetcher: Prefetcher[RawBatch, Batch] | None = None
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
            self._filler = BatchFiller(options.source, transformer, seed)
            self._shape = self._filler.output_shape(next(self._database.records()))
        except DataError as error:
            raise self.error(str(error)) from None
        size = ",".join(str(extent) for extent in (self.batch_size, *self._shape))
        log.info("output data size: %s", size)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        top[0].reshape(self.batch_size, *self._shape)
        if len(top) > 1:
            top[1].reshape(self.batch_size)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        batch = self._next_batch()
        for _ in range(batch.wraps):
            log.info("Restarting data prefetching from start.")
        self._shape = batch.data.shape[1:]
        self.reshape(bottom, top)
        top[0].data[...] = self.xp.asarray(batch.data)
        if len(top) > 1:
            top[1].data[...] = self.xp.asarray(batch.labels)
        self.position += self.batch_size

    def seek(self, position: int) -> None:
        """Go on as if ``position`` records had been given out since the set-up.

        A run that is resumed so sees the records, and the random crops and mirrorings, that it
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
        self._database.close()

    def _next_batch(self) -> Batch:
        if self._prefetcher is None:
            raw = read_batches(self._database, self.batch_size, self.position)
            buffers = [Batch() for _ in range(self.param.data_param.prefetch + 2)]
            self._prefetcher = Prefetcher(raw, self._filler, buffers)
        try:
            return self._prefetcher.next()
        except DataError as error:
            raise self.error(str(error)) from None

    def _stop(self) -> None:
        if self._prefetcher is not None:
            self._prefetcher.close()
            self._prefetcher = None
