"""Every layer: one small class each, registered under its prototxt name."""

from protocaffe.layers.base import Layer, create_layer, layer_types, register

__all__ = ["Layer", "create_layer", "layer_types", "register"]
