"""Layers with kernels of the engine's own instead of their own code.

An override has a layer's two passes, over the same blobs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from protocaffe.blob import Blob
from protocaffe.engines.base import LayerNode
from protocaffe.engines.cuda.device import Device
from protocaffe.engines.cuda.forms import Form
from protocaffe.layers import Layer
from protocaffe.layers.activation import ReLU

AnyLayer = TypeVar("AnyLayer", bound=Layer)


class Override(Generic[AnyLayer]):
    """What runs a layer in place of its own code.

    Args:
        device: the GPU.
        node: the layer with its blobs, shapes known; all float32, none empty.

    Attributes:
        layer: the layer.
    """

    captures: ClassVar[bool] = True
    """Whether the passes only queue work on the device, so that they can be part of a graph."""

    def __init__(self, device: Device, node: LayerNode[AnyLayer]) -> None:
        self.device = device
        self.xp = device.xp
        self.layer: AnyLayer = node.layer

    @classmethod
    def fits(cls, device: Device, node: LayerNode[AnyLayer]) -> bool:
        """Whether it can run the layer with these settings and shapes."""
        return True

    @classmethod
    def top_form(cls, device: Device, node: LayerNode[AnyLayer]) -> Form:
        """How the tops are to lie; those of bottoms are settled."""
        return None

    @classmethod
    def top_forms(cls, device: Device, node: LayerNode[AnyLayer]) -> Sequence[Form]:
        """How each top is to lie, where they differ."""
        return [cls.top_form(device, node)] * len(node.tops)

    def look_ahead(self, later: Sequence[LayerNode[Layer]]) -> None:
        """Note what the layers behind do to the bottoms; called once, before all else."""

    def absorb(self, node: LayerNode[Any]) -> bool:
        """Do the work of the layer behind as well, from now on; False if that cannot be.

        Args:
            node: it works in place on this one's only top, and wants backward if this one does.
        """
        return False

    def data(self, blob: Blob, form: Form) -> Any:
        """Return a blob's data on the device in a form, flat."""
        return self.device.serve(blob.data_storage, form)

    def diff(self, blob: Blob, form: Form, overwrites: bool = False) -> Any:
        """Return a blob's diff on the device in a form, flat; unless plain, it is scaled.

        Args:
            blob: whose.
            form: the form.
            overwrites: whether all of it will be written, whatever is there.
        """
        scale = self.device.diff_scale(form)
        return self.device.serve(blob.diff_storage, form, scale, overwrites)

    def unscale(self, form: Form) -> float:
        """Return what a gradient in a form is multiplied by where it becomes a plain one."""
        return 1 / self.device.diff_scale(form)

    def prepare(self) -> None:
        """Do on the host what every forward pass needs, also one that is a graph."""

    def explain(self) -> None:
        """Raise an error if the layer was given numbers that make its loss NaN."""

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Compute the tops' data; see :meth:`protocaffe.Layer.forward`."""
        raise NotImplementedError

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        """Compute gradients; see :meth:`protocaffe.Layer.backward`."""
        raise NotImplementedError


class OfOneForm(Override[AnyLayer]):
    """What runs a layer whose tops lie as its first bottom does.

    Attributes:
        form: how.
    """

    def __init__(self, device: Device, node: LayerNode[AnyLayer]) -> None:
        super().__init__(device, node)
        self.form = self.top_form(device, node)

    @classmethod
    def top_form(cls, device: Device, node: LayerNode[AnyLayer]) -> Form:
        return device.form(node.bottoms[0].data_storage)


def telling_slope(layer: Layer) -> float | None:
    """Return the slope of a ReLU whose output tells the sign of its input; None for others.

    With a negative slope it does not.
    """
    if type(layer) is not ReLU or layer.negative_slope < 0:
        return None
    return float(layer.negative_slope)


_overrides: dict[type[Layer], type[Override[Any]]] = {}
AnyOverride = TypeVar("AnyOverride", bound=type[Override[Any]])


def override(*layer_classes: type[Layer]) -> Callable[[AnyOverride], AnyOverride]:
    """Class decorator: it runs layers of these classes (not of their subclasses)."""

    def decorate(made: AnyOverride) -> AnyOverride:
        _overrides.update((each, made) for each in layer_classes)
        return made

    return decorate


def find_override(device: Device, node: LayerNode[Layer]) -> Override[Any] | None:
    """Return what runs a layer, None for its own code."""
    made = _overrides.get(type(node.layer))
    blobs = [*node.bottoms, *node.tops]
    plain = all(blob.dtype == np.float32 and blob.count for blob in blobs)
    if made is None or not plain or not made.fits(device, node):
        return None
    for top, form in zip(node.tops, made.top_forms(device, node), strict=True):
        if form is not None:
            device.assign(top, form)
    return made(device, node)
