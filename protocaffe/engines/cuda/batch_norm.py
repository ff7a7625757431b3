"""BatchNorm on the device, as one with the Scale and the ReLU behind it."""

from __future__ import annotations

from typing import Any

import numpy as np

from protocaffe.engines.base import LayerNode
from protocaffe.engines.cuda.device import Device
from protocaffe.engines.cuda.overrides import override
from protocaffe.engines.cuda.scale import ChannelAffine, is_per_channel
from protocaffe.layers.normalization import BatchNorm
from protocaffe.layers.scale import Scale


@override(BatchNorm)
class CudaBatchNorm(ChannelAffine[BatchNorm]):
    """Reads x once for its statistics and once for y; by running statistics only for y."""

    def __init__(self, device: Device, node: LayerNode[BatchNorm]) -> None:
        super().__init__(device, node)
        self.follows_batch = not node.layer.use_global_stats
        self.middle, self.inverse, self._factor = self.xp.empty((3, self.shape[1]), np.float32)

    def absorb(self, node: LayerNode[Any]) -> bool:
        scales = type(node.layer) is Scale and is_per_channel(node)
        if scales and self._last is self.layer and self.may_absorb(node):
            self.learn(node.layer)
            return True
        return super().absorb(node)

    def factor(self) -> Any:
        return self._factor

    def measure(self, x: Any) -> None:
        sums = [blob.data for blob in self.layer.blobs]
        results = (self.gamma(), self.middle, self.inverse, self._factor)
        channels, eps = self.shape[1], self.layer.eps
        if not self.follows_batch:
            self.device.run("global_statistics", channels, *sums, eps, *results, channels)
            return
        slicing = self.slicing(x)
        parts = self.xp.empty((2, channels * slicing.slices), np.float32)
        self.device.run_blocks("channel_moments", slicing.blocks, x, *parts, *slicing.extents)
        settings = (slicing.slices, slicing.numbers, self.count, eps, self.layer.fraction)
        self.device.run_blocks("batch_statistics", channels, *parts, *settings, *sums, *results)
