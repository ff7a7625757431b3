"""The ONNX graph that layers are added to, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from protocaffe.blob import Array, Blob
from protocaffe.errors import LayerError
from protocaffe.layers import Layer

BATCH = "N"
"""The name of the batch axis where it may have any extent."""


class FixedBatchError(LayerError):
    """A layer whose export depends on the number of images."""


@dataclass
class Step:
    """A layer that is exported.

    Attributes:
        layer: the layer.
        bottoms: the blobs it reads.
        tops: the blobs it writes.
        x: the names of the bottoms' values in the ONNX graph.
        parameters: its parameters, perhaps with other layers folded into them.
    """

    layer: Any
    bottoms: list[Blob]
    tops: list[Blob]
    x: list[str]
    parameters: list[Array]


Converter = Callable[["OnnxGraph", Step], list[str]]
"""Adds a layer's operators and returns the names of its tops' values."""

AnyConverter = TypeVar("AnyConverter", bound=Converter)

_converters: dict[type[Layer], Converter] = {}


def converts(*layer_classes: type[Layer]) -> Callable[[AnyConverter], AnyConverter]:
    """Function decorator: this is how layers of exactly these classes are exported.

    Children may compute something else.
    """

    def decorate(converter: AnyConverter) -> AnyConverter:
        _converters.update(dict.fromkeys(layer_classes, converter))
        return converter

    return decorate


def converter_of(layer: Layer) -> Converter | None:
    """Return how a layer is exported, or None if it cannot be."""
    return _converters.get(type(layer))


@dataclass
class OnnxGraph:
    """Operators and constants in the making.

    Attributes:
        dynamic: the blobs whose first axis is the batch and may have any extent.
        nodes: ``NodeProto`` messages in order.
        open_axes: by blob, the axis whose extent depends on the values.
        initializers: ``TensorProto`` messages by name.
        layer: name of the layer being exported, for names.
    """

    dynamic: set[Blob] = field(default_factory=set)
    open_axes: dict[Blob, int] = field(default_factory=dict)
    nodes: list[Any] = field(default_factory=list)
    initializers: dict[str, Any] = field(default_factory=dict)
    layer: str = ""
    _taken: set[str] = field(default_factory=set)

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator with one output and return that value's name."""
        return self.ops(kind, *inputs, outputs=1, **attributes)[0]

    def ops(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Add an operator with several outputs and return their values' names."""
        from onnx import helper

        name = self.new_name(self.layer)
        values = [self.new_name(f"{name}:{index}") for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), values, name=name, **attributes))
        return values

    def new_name(self, wanted: str) -> str:
        """Return the name, with a number behind it if it is taken."""
        name, number = wanted, 1
        while name in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name)
        return name

    def constant(self, values: Any, hint: str = "constant", dtype: Any = np.float32) -> str:
        """Add a constant of a type, float32 by default, and return its name."""
        from onnx import numpy_helper

        array = np.ascontiguousarray(np.asarray(values, dtype)).reshape(np.shape(values))
        name = self.new_name(f"{self.layer}.{hint}")
        self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def integers(self, values: Sequence[int], hint: str = "numbers") -> str:
        """Add a list of int64 numbers and return its name."""
        return self.constant(np.asarray(values, np.int64), hint, np.int64)

    def shape(self, blob: Blob) -> list[int]:
        """Return a blob's shape, with -1 for a batch of any extent."""
        return [-1, *blob.shape[1:]] if blob in self.dynamic else list(blob.shape)

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        """Give a value another shape, in which -1 is what remains."""
        return self.op("Reshape", x, self.integers(shape, "shape"))

    def scaled(self, x: str, factor: float) -> str:
        """Multiply by a number."""
        return x if factor == 1 else self.op("Mul", x, self.constant(factor))

    def shifted(self, x: str, summand: float) -> str:
        """Add a number."""
        return x if summand == 0 else self.op("Add", x, self.constant(summand))

    def fixed_batch(self, step: Step, blob: Blob, reason: str) -> None:
        """Refuse a blob whose first axis may have any extent.

        Raises:
            FixedBatchError: it may; the message names the layer and the reason.
        """
        if blob in self.dynamic:
            raise FixedBatchError(str(step.layer.error(reason)))

    def rename(self, names: Mapping[str, str]) -> None:
        """Give values other names everywhere."""
        for node in self.nodes:
            for values in (node.input, node.output):
                values[:] = [names.get(value, value) for value in values]
