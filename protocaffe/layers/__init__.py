"""Every layer: one small class each, registered under its prototxt name."""

from protocaffe.layers import (  # noqa: F401  (importing registers the layers)
    accuracy,
    activation,
    bn,
    convolution,
    data,
    detection,
    dropout,
    eltwise,
    embed,
    hdf5,
    inner_product,
    input,  # noqa: A004
    loss,
    memory,
    normalization,
    permutation,
    pooling,
    python,
    recurrent,
    reduction,
    resize,
    roi,
    scale,
    selection,
    shape,
    softmax,
)
from protocaffe.layers.base import Layer, create_layer, layer_types, register

__all__ = ["Layer", "create_layer", "layer_types", "register"]


def __getattr__(name: str) -> object:
    """Make layers of nets written in Python: ``from protocaffe import layers as L``."""
    from protocaffe.net_spec import layers

    return getattr(layers, name)
