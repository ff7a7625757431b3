"""Layers without bottoms whose tops are set from outside or by fillers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, TypeVar

from protocaffe.blob import Blob
from protocaffe.layers.base import Bounds, Layer, register
from protocaffe.proto.caffe_pb2 import DummyDataParameter, FillerParameter

T = TypeVar("T")


class Source(Layer):
    """A layer that other layers start from."""

    bottoms = (0, 0)
    tops: ClassVar[Bounds] = (1, None)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Leave the tops as ``setup`` or the user shaped them."""

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        """Do nothing: there is nothing below."""

    def one_per_top(self, what: str, given: Sequence[T], num_tops: int) -> list[T]:
        """Spread a setting that is given once or once per top."""
        if len(given) not in (1, num_tops):
            raise self.error(
                f"{what} must be given once or once per top ({num_tops}), got {len(given)}"
            )
        return list(given) * num_tops if len(given) == 1 else list(given)


@register("Input")
class Input(Source):
    """Blobs that the user writes to before forward.

    Bottoms: none. Tops: one or more, shaped by ``shape`` (once for all tops, once per top, or not
    at all; then the user reshapes them).
    Reference: Caffe's InputLayer.

    Example:
        layer { name: "data" type: "Input" top: "data"
            input_param { shape { dim: 1 dim: 3 dim: 224 dim: 224 } } }
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        shapes = self.param.input_param.shape
        if not shapes:
            return
        for blob, shape in zip(top, self.one_per_top("shape", shapes, len(top)), strict=True):
            blob.reshape(shape.dim)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Do nothing: the tops hold what the user wrote."""


@register("DummyData")
class DummyData(Source):
    """Blobs that fillers write to.

    Constant tops are filled once, at set-up; the others again in every forward.

    Bottoms: none. Tops: one or more, shaped by ``shape`` or by the older ``num``, ``channels``,
    ``height`` and ``width``, each once for all tops or once per top; ``data_filler`` likewise, or
    none for zeros.
    Reference: Caffe's DummyDataLayer.

    Example:
        layer { name: "noise" type: "DummyData" top: "noise"
            dummy_data_param { shape { dim: 2 dim: 100 } data_filler { type: "gaussian" std: 1 } } }
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.dummy_data_param
        fillers = self.one_per_top(
            "data_filler", param.data_filler or [FillerParameter()], len(top)
        )
        for blob, shape in zip(top, self._shapes(param, len(top)), strict=True):
            blob.reshape(shape)
        for blob, filler in zip(top, fillers, strict=True):
            self.fill_blob(blob, filler)
        self._refilled = [
            (index, filler) for index, filler in enumerate(fillers) if filler.type != "constant"
        ]

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        for index, filler in self._refilled:
            self.fill_blob(top[index], filler)

    def _shapes(self, param: DummyDataParameter, num_tops: int) -> list[tuple[int, ...]]:
        legacy = {name: getattr(param, name) for name in ("num", "channels", "height", "width")}
        if param.shape:
            if any(legacy.values()):
                raise self.error("give either shape or num, channels, height and width, not both")
            return [tuple(each.dim) for each in self.one_per_top("shape", param.shape, num_tops)]
        columns = [self.one_per_top(name, values, num_tops) for name, values in legacy.items()]
        return list(zip(*columns, strict=True))


@register("Parameter")
class Parameter(Source):
    """A learned blob as a top, to be used by layers that take it as a bottom.

    Bottoms: none. Tops: the parameter, of ``shape``, starting at 0; data and diff are the
    parameter's own.
    Reference: Caffe's ParameterLayer.

    Example:
        layer { name: "weights" type: "Parameter" top: "weights"
            parameter_param { shape { dim: 6 dim: 8 } } }
    """

    tops = (1, 1)

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        self.add_blob(self.param.parameter_param.shape.dim)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        top[0].reshape(self.blobs[0].shape)
        top[0].share_data(self.blobs[0])
        top[0].share_diff(self.blobs[0])

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Do nothing: the top is the parameter."""
