"""Folding layers that scale and shift channels into the weights before them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from protocaffe.blob import Array, Blob
from protocaffe.layers import Layer
from protocaffe.layers.convolution import ConvolutionBase, Deconvolution
from protocaffe.layers.inner_product import InnerProduct
from protocaffe.layers.normalization import BatchNorm, ScaledBatchNorm
from protocaffe.layers.scale import Bias, Scale
from protocaffe.net import Net

Vector = npt.NDArray[np.float64]


def fold_parameters(net: Net) -> tuple[dict[int, list[Array]], set[int]]:
    """Fold every BatchNorm, Scale and Bias that directly follows weights into these.

    Returns:
        By index of the layer, its new parameters; and the indices of the layers that became
        part of them and do nothing any more.
    """
    changed: dict[int, list[Array]] = {}
    folded: set[int] = set()
    for index, layer in enumerate(net.layers):
        if not _gives_channels(layer) or len(net.tops[index]) != 1:
            continue
        reader = _reader(net, index)
        while reader is not None:
            affine = _affine(net.layers[reader], net.tops[index][0].shape[1])
            if affine is None:
                break
            parameters = changed.get(index) or [values(blob) for blob in layer.blobs]
            changed[index] = _scaled(layer, parameters, *affine)
            folded.add(reader)
            reader = _reader(net, reader)
    return changed, folded


def values(blob: Blob) -> Array:
    """Return a blob's data without giving up an engine's own copy."""
    return blob.data_storage.host_read().reshape(blob.shape)


def _gives_channels(layer: Layer) -> bool:
    """Tell whether a layer has weights and makes channels at axis 1."""
    if isinstance(layer, ConvolutionBase):
        return layer.geometry.channel_axis == 1
    return isinstance(layer, InnerProduct) and layer.axis == 1


def _reader(net: Net, index: int) -> int | None:
    """Return the one layer that reads a layer's top; Split layers are readers, too."""
    (top,) = net.graph.nodes[index].tops
    later = range(index + 1, len(net.layers))
    return next((each for each in later if top in net.graph.nodes[each].bottoms), None)


def _affine(layer: Layer, channels: int) -> tuple[Vector, Vector] | None:
    """Return scale and shift per channel, or None if that is not what the layer does."""
    if isinstance(layer, BatchNorm):
        return _normalization(layer)
    blobs = [values(blob).astype(np.float64) for blob in layer.blobs]
    per_channel = isinstance(layer, (Scale, Bias)) and layer.axis == 1
    if not per_channel or len(layer.param.bottom) > 1 or blobs[0].shape != (channels,):
        return None
    if isinstance(layer, Bias):
        return np.ones(channels), blobs[0]
    return blobs[0], blobs[1] if len(blobs) > 1 else np.zeros(channels)


def _normalization(layer: BatchNorm) -> tuple[Vector, Vector] | None:
    own, shift = (each.astype(np.float64) for each in own_scale(layer))
    if not layer.use_global_stats:
        return None
    mean, variance = layer.running_statistics()
    scale = own / np.sqrt(variance.astype(np.float64) + layer.eps)
    return scale, shift - mean * scale


def own_scale(layer: BatchNorm) -> tuple[Array, Array]:
    """Return the scale and bias (C) of kinds that have them, else ones and zeros."""
    if isinstance(layer, ScaledBatchNorm):
        return values(layer.scale).ravel(), values(layer.bias).ravel()
    return np.ones(layer.channels, np.float32), np.zeros(layer.channels, np.float32)


def _scaled(layer: Layer, parameters: list[Array], scale: Vector, shift: Vector) -> list[Array]:
    """Return weights and bias that give the old result times scale plus shift."""
    weights, *biases = (each.astype(np.float64) for each in parameters)
    bias = biases[0] if biases else np.zeros(len(scale))
    if isinstance(layer, Deconvolution):  # (channels, num_output / group, *kernel)
        group = layer.geometry.group
        rows = weights.reshape(group, len(weights) // group, weights.shape[1], -1)
        new = (rows * scale.reshape(group, 1, -1, 1)).reshape(weights.shape)
    elif isinstance(layer, InnerProduct) and layer.transpose:
        new = weights * scale
    else:
        new = weights * scale.reshape(-1, *(1,) * (weights.ndim - 1))
    return [new, bias * scale + shift]
