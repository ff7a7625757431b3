"""The layer that feeds a net from arrays of the program's."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from protocaffe.blob import Blob
from protocaffe.data.augment import augmentations
from protocaffe.layers.base import Layer, register
from protocaffe.log import log


@register("MemoryData")
class MemoryData(Layer):
    """Batches from arrays that the program gives with ``reset``, again and again.

    The net can run forward once they are there. ``batch_size``, ``channels``, ``height`` and
    ``width`` are needed; the arrays go in as they are: ``transform_param`` has no effect, and
    augmentations in it are refused.

    Bottoms: none. Tops: the data, (batch, channels, height, width); the labels, (batch,) until
    the first forward, then (batch, 1, 1, 1).
    Reference: Caffe's MemoryDataLayer.

    Example:
        layer { name: "data" type: "MemoryData" top: "data" top: "label"
            memory_data_param { batch_size: 2 channels: 3 height: 8 width: 8 } }

    Attributes:
        position: how many images ``forward`` has given out since ``reset``.
    """

    bottoms = (0, 0)
    tops = (2, 2)
    dynamic = True
    settings = ("transform_param",)

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        options = self.param.memory_data_param
        self.batch_size = options.batch_size
        self.image_shape = options.channels, options.height, options.width
        if min(self.batch_size, *self.image_shape) < 1:
            raise self.error(
                f"memory_data_param needs batch_size, channels, height and width of at least 1, "
                f"got {(self.batch_size, *self.image_shape)}"
            )
        if names := augmentations(self.param.transform_param):
            raise self.error(f"does not transform arrays, so it takes no {names[0]}")
        if self.param.HasField("transform_param"):
            log.warning("MemoryData does not transform arrays; transform_param has no effect")
        self.position = 0
        self._data: npt.NDArray[Any] | None = None
        self._labels: npt.NDArray[Any] | None = None

    def reset(self, data: npt.ArrayLike, labels: npt.ArrayLike) -> None:
        """Take new arrays, and begin at their start.

        They are not copied if they are C-contiguous and of the net's type, so what is written
        into them later is seen.

        Args:
            data: shape (n, channels, height, width), where n is a multiple of ``batch_size``.
            labels: n numbers, in any shape.

        Raises:
            LayerError: the shapes do not fit.
        """
        images = np.ascontiguousarray(data, self.dtype)
        numbers = np.ascontiguousarray(labels, self.dtype)
        if images.ndim != 4 or images.shape[1:] != self.image_shape:
            raise self.error(
                f"expected data of shape (n, {', '.join(map(str, self.image_shape))}), got "
                f"{images.shape}"
            )
        if not len(images) or len(images) % self.batch_size:
            raise self.error(
                f"expected a multiple of {self.batch_size} images, the batch_size, got "
                f"{len(images)}; give whole batches"
            )
        if numbers.size != len(images):
            raise self.error(
                f"expected one label per image, {len(images)}, got {numbers.size} "
                f"(shape {numbers.shape})"
            )
        self._data, self._labels = images, numbers.reshape(-1, 1, 1, 1)
        self.position = 0

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        top[0].reshape(self.batch_size, *self.image_shape)
        if self._labels is None:
            top[1].reshape(self.batch_size)
        else:
            top[1].reshape(self.batch_size, 1, 1, 1)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        if self._data is None or self._labels is None:
            raise self.error("has no data yet; give it: net.set_input_arrays(data, labels)")
        self.reshape(bottom, top)
        start = self.position % len(self._data)
        batch = slice(start, start + self.batch_size)
        top[0].data[...] = self.xp.asarray(self._data[batch])
        top[1].data[...] = self.xp.asarray(self._labels[batch])
        self.position += self.batch_size

    def seek(self, position: int) -> None:
        """Go on as if ``position`` images had been given out since ``reset``."""
        self.position = position

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), "position": self.position}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self.seek(state["position"])
