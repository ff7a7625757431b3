"""Batches on their way to the device while it computes."""

from __future__ import annotations

from typing import Any

import numpy as np

from protocaffe.blob import Array, Blob
from protocaffe.data.batches import Batch
from protocaffe.data.transformer import normalize
from protocaffe.engines.base import LayerNode
from protocaffe.engines.cuda.device import Device
from protocaffe.engines.cuda.overrides import Override, override
from protocaffe.layers.data import Data, ImageData, PrefetchingLayer, WindowData


class Upload:
    """Device memory that host arrays are copied to on the copy stream, one after the other."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._memory: Any = device.xp.empty(0, np.uint8)
        self._copied = device.copies.record()
        self._read = device.stream.record()

    def wait(self) -> None:
        """Wait until the last host array has been copied and may be written to again."""
        self._copied.synchronize()

    def copy(self, host: Array) -> Any:
        """Queue a copy and return it; the stream of all work waits for it."""
        device = self._device
        if self._memory.size < host.nbytes:
            self._memory = device.xp.empty(host.nbytes, np.uint8)
            self._read = device.stream.record()  # work before may still use what was there
        array = self._memory[: host.nbytes].view(host.dtype).reshape(host.shape)
        device.copies.wait_event(self._read)
        array.set(host, stream=device.copies)
        self._copied = device.copies.record()
        device.stream.wait_event(self._copied)
        return array

    def done(self) -> None:
        """Note that the work queued so far is the last that reads the copy."""
        self._read = self._device.stream.record()


@override(Data, ImageData, WindowData)
class CudaData(Override[PrefetchingLayer]):
    """Pinned host memory, copied as it is (bytes if they are) and finished on the device.

    The copy of one batch runs while the device computes with the one before: only finishing it
    waits for that.
    """

    captures = False

    def __init__(self, device: Device, node: LayerNode[PrefetchingLayer]) -> None:
        super().__init__(device, node)
        node.layer.host_memory = device.pinned
        self._images, self._labels = Upload(device), Upload(device)
        self._mean: Any = None
        self._mean_place: tuple[object, ...] = ()

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        # The threads fill the last batch's memory again as soon as the next one is taken.
        for upload in (self._images, self._labels):
            upload.wait()
        batch = self.layer.take_batch(bottom, top)
        images = self._images.copy(batch.data)
        normalize(images, self._mean_of(batch), batch.scale, top[0].data)
        self._images.done()
        if len(top) > 1:
            top[1].data[...] = self._labels.copy(batch.labels)
            self._labels.done()

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        """Do nothing: there is nothing below."""

    def _mean_of(self, batch: Batch) -> Any:
        """Return the batch's mean on the device, copied there only when it is another one."""
        if batch.mean is None:
            return None
        one = batch.mean[:1]  # it is the same for all images
        place = (one.ctypes.data, one.shape)
        if place != self._mean_place:
            self._mean, self._mean_place = self.xp.asarray(one), place
        return self._mean
