"""BN: normalization with a scale and a shift of its own, of two kinds that forks of Caffe have."""

from __future__ import annotations

from protocaffe.blob import Array, Blob
from protocaffe.layers.base import Layer, register
from protocaffe.layers.normalization import ScaledBatchNorm
from protocaffe.proto import caffe_pb2
from protocaffe.proto.caffe_pb2 import BNParameter, LayerParameter


@register("BN")
class BN(ScaledBatchNorm):
    """y = slope (x - mean) / sqrt(variance + eps) + bias, per channel (axis 1).

    Of two kinds. TSN's and PSPNet's normalizes by the batch in TRAIN, unless ``frozen``, and by
    running statistics else; with every batch, running = momentum * running + (1 - momentum) *
    new. ``frozen`` keeps slope and bias as they are too. Fillers are constant 0 if absent.

    SegNet's, which ``bn_mode``, ``scale_filler`` or ``shift_filler`` tell: it has no running
    statistics. ``bn_mode: LEARN`` normalizes by the batch, in TEST too, with eps 1e-9;
    ``INFERENCE`` is y = slope x + bias, with the statistics worked into these two.

    Bottoms: x (N, C, ...). Tops: y, the same shape.
    Parameters: slope (1, C), bias (1, C), and never learned mean (1, C), variance (1, C);
    SegNet's: slope (1, C, 1, 1), bias (1, C, 1, 1).
    Reference: Ioffe & Szegedy, "Batch Normalization", ICML 2015; BNLayer of the forks of Caffe
    for TSN (Wang et al., ECCV 2016) and for SegNet (Badrinarayanan et al., PAMI 2017).

    Example:
        layer { name: "conv1/bn" type: "BN" bottom: "conv1" top: "conv1/bn"
            bn_param { slope_filler { value: 1 } bias_filler { value: 0 } momentum: 0.95 } }
    """

    settings = ("bn_param",)

    @classmethod
    def variant(cls, param: LayerParameter) -> type[Layer]:
        segnet = ("bn_mode", "scale_filler", "shift_filler")
        return SegNetBN if any(param.bn_param.HasField(name) for name in segnet) else cls

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.bn_param
        self.read_channels(bottom)
        self.eps, self.fraction = param.eps, param.momentum
        self.use_global_stats = param.frozen or self.phase == caffe_pb2.TEST
        shape = (1, self.channels)
        self.scale = self.add_blob(shape, param.slope_filler)
        self.bias = self.add_blob(shape, param.bias_filler)
        self.mean, self.variance = self.add_blob(shape), self.add_blob(shape)
        self.variance.data[...] = param.frozen
        while len(self.param.param) < len(self.blobs):
            self.param.param.add()
        for spec in list(self.param.param)[0 if param.frozen else 2 :]:
            spec.lr_mult = spec.decay_mult = 0

    def running_statistics(self) -> tuple[Array, Array]:
        return self.mean.data[0], self.variance.data[0]

    def update_running_statistics(self, mean: Array, variance: Array, count: int) -> None:
        for blob, new in ((self.mean, mean), (self.variance, variance)):
            blob.data[...] *= self.fraction
            blob.data[...] += (1 - self.fraction) * new


@register("SyncBN")
class SyncBN(BN):
    """BN, which in its own fork of Caffe takes a batch's statistics over several GPUs.

    Bottoms: x (N, C, ...). Tops: y, the same shape.
    Parameters: slope (1, C), bias (1, C), and never learned mean (1, C), variance (1, C).
    Reference: Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017; see BN.

    Example:
        layer { name: "conv1/bn" type: "SyncBN" bottom: "conv1" top: "conv1/bn"
            bn_param { slope_filler { value: 1 } bias_filler { value: 0 } } }
    """


class SegNetBN(ScaledBatchNorm):
    """SegNet's kind of :class:`BN`."""

    settings = ("bn_param",)

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.bn_param
        self.read_channels(bottom)
        # INFERENCE is normalization by mean 0 and variance 1, to the last bit.
        self.use_global_stats = param.bn_mode == BNParameter.INFERENCE
        self.eps = 1e-30 if self.use_global_stats else 1e-9
        shape = (1, self.channels, 1, 1)
        self.scale = self.add_blob(shape, param.scale_filler)
        self.bias = self.add_blob(shape, param.shift_filler)

    def running_statistics(self) -> tuple[Array, Array]:
        return self.xp.zeros(self.channels, self.dtype), self.xp.ones(self.channels, self.dtype)

    def update_running_statistics(self, mean: Array, variance: Array, count: int) -> None:
        """Keep none."""
