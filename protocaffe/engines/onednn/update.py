"""Weight updates as element-wise primitives, a chunk of memory at a time.

The primitives of one chunk follow each other while it is in the cache, so an update costs about
one pass over memory. Rates that change are read from one-element arrays at each call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from protocaffe.blob import Array, Storage
from protocaffe.engines.base import AdamSettings, AdamUpdate, Engine, MomentumUpdate
from protocaffe.engines.onednn import library as dnn
from protocaffe.engines.onednn.primitives import (
    Attributes,
    Layout,
    NativeArray,
    OneDnnError,
    Primitive,
    Runtime,
    operation,
)

SMALL = 1 << 14
"""Below this, waking the worker threads costs more than the update."""

CHUNK = 1 << 19
"""Floats per chunk: its arrays stay in the third-level cache together."""


class Chunks:
    """Primitives over the chunks of several flat arrays, bound anew when an array moved.

    Args:
        runtime: the library.
        bind: makes the primitives of one chunk from its parts of the arrays.
    """

    def __init__(
        self, runtime: Runtime, bind: Callable[[Layout, Sequence[NativeArray]], list[Primitive]]
    ) -> None:
        self._runtime = runtime
        self._bind = bind
        self._views: list[Array] = []
        self._primitives: list[Primitive] = []

    def run(self, views: list[Array]) -> None:
        """Run all primitives over these arrays."""
        same = len(views) == len(self._views) and all(map(_is, views, self._views))
        if not same:
            self._views = views
            self._primitives = [each for start in self._starts() for each in self._chunk(start)]
        for primitive in self._primitives:
            primitive()

    def _starts(self) -> range:
        return range(0, self._views[0].size, CHUNK)

    def _chunk(self, start: int) -> list[Primitive]:
        parts = [view[start : start + CHUNK] for view in self._views]
        layout = Layout.plain(self._runtime, (parts[0].size,))
        return self._bind(layout, [NativeArray(layout, part) for part in parts])


def _is(one: Array, other: Array) -> bool:
    return one is other


class OneDnnMomentumUpdate(MomentumUpdate):
    """``h = gradient_scale * g + weight_scale * w + momentum * h`` and ``w = w - h``."""

    def __init__(
        self, engine: Engine, weight: Storage, diff: Storage, history: Storage, momentum: float
    ) -> None:
        super().__init__(engine, weight, diff, history, momentum)
        runtime: Runtime = engine.runtime  # type: ignore[attr-defined]
        self._gradient_scale, self._weight_scale = _scalar(runtime), _scalar(runtime)
        self._chunks = Chunks(runtime, self._bind)

    def __call__(self, gradient_scale: float, weight_scale: float) -> None:
        """Update the parameter once."""
        self._gradient_scale.values[0] = gradient_scale
        self._weight_scale.values[0] = weight_scale
        self._chunks.run(self._engine.flat_views(*self._storages))

    def _bind(self, layout: Layout, arrays: Sequence[NativeArray]) -> list[Primitive]:
        w, g, h = arrays
        blend = Attributes(layout.runtime).accumulate(self._momentum)
        scaled = _scaled_sum(layout, blend, (w, self._weight_scale), (g, self._gradient_scale), h)
        arguments = {dnn.ARG_SRC: w, dnn.ARG_SRC_1: h, dnn.ARG_DST: w}
        return [scaled, _binary(dnn.BINARY_SUB, layout, layout, None, arguments)]


class OneDnnAdamUpdate(AdamUpdate):
    """Adam's formula in four steps per chunk; the gradient with its decay is the only scratch."""

    def __init__(
        self,
        engine: Engine,
        weight: Storage,
        diff: Storage,
        means: tuple[Storage, Storage],
        settings: AdamSettings,
    ) -> None:
        self._engine = engine
        self._storages = (weight, diff, *means)
        self._settings = settings
        runtime: Runtime = engine.runtime  # type: ignore[attr-defined]
        self._gradient_scale, self._weight_scale = _scalar(runtime), _scalar(runtime)
        self._step = _scalar(runtime)
        self._one = _scalar(runtime, 1.0)
        self._first = _scalar(runtime, 1 - settings.first)
        self._second = _scalar(runtime, 1 - settings.second)
        self._scratch: dict[int, NativeArray] = {}
        self._chunks = Chunks(runtime, self._bind)

    def __call__(self, gradient_scale: float, weight_scale: float, step: float) -> None:
        """Update the parameter once."""
        self._gradient_scale.values[0] = gradient_scale
        self._weight_scale.values[0] = weight_scale
        self._step.values[0] = -step
        self._chunks.run(self._engine.flat_views(*self._storages))

    def _bind(self, layout: Layout, arrays: Sequence[NativeArray]) -> list[Primitive]:
        w, g, m, v = arrays
        runtime, one = layout.runtime, self._one.layout
        size = layout.shape[0]
        if size not in self._scratch:
            self._scratch[size] = NativeArray(layout)
        t = self._scratch[size]
        scaled = _scaled_sum(
            layout, Attributes(runtime), (w, self._weight_scale), (g, self._gradient_scale), t
        )
        keep_first = Attributes(runtime).accumulate(self._settings.first)
        mean = {dnn.ARG_SRC: t, dnn.ARG_SRC_1: self._first, dnn.ARG_DST: m}
        keep_second = Attributes(runtime).accumulate(self._settings.second)
        keep_second.runtime_scales(dnn.ARG_SRC)
        square = {
            dnn.ARG_SRC: t,
            dnn.ARG_SRC_1: t,
            dnn.ARG_DST: v,
            dnn.ARG_ATTR_SCALES | dnn.ARG_SRC: self._second,
        }
        divide = (
            Attributes(runtime)
            .eltwise(dnn.ELTWISE_SQRT)
            .eltwise(dnn.ELTWISE_LINEAR, 1.0, self._settings.delta)
            .eltwise(dnn.ELTWISE_POW, 1.0, -1.0)
            .binary(dnn.BINARY_MUL, layout)
            .binary(dnn.BINARY_MUL, one)
            .accumulate(1.0)
        )
        move = {
            dnn.ARG_SRC: v,
            dnn.ARG_SRC_1: self._one,
            dnn.ARG_DST: w,
            dnn.ARG_POST_OP * 4 | dnn.ARG_SRC_1: m,
            dnn.ARG_POST_OP * 5 | dnn.ARG_SRC_1: self._step,
        }
        return [
            scaled,
            _binary(dnn.BINARY_MUL, layout, one, keep_first, mean),
            _binary(dnn.BINARY_MUL, layout, layout, keep_second, square),
            _binary(dnn.BINARY_MUL, layout, one, divide, move),
        ]


def _scalar(runtime: Runtime, value: float = 0.0) -> NativeArray:
    array = NativeArray(Layout.plain(runtime, (1,)))
    array.values[0] = value
    return array


def _scaled_sum(
    layout: Layout,
    attributes: Attributes,
    one: tuple[NativeArray, NativeArray],
    other: tuple[NativeArray, NativeArray],
    target: NativeArray,
) -> Primitive:
    """Return ``target = array * scale + array * scale``, blended as the attributes say."""
    attributes.runtime_scales(dnn.ARG_SRC).runtime_scales(dnn.ARG_SRC_1)
    arguments = {
        dnn.ARG_SRC: one[0],
        dnn.ARG_SRC_1: other[0],
        dnn.ARG_DST: target,
        dnn.ARG_ATTR_SCALES | dnn.ARG_SRC: one[1],
        dnn.ARG_ATTR_SCALES | dnn.ARG_SRC_1: other[1],
    }
    return _binary(dnn.BINARY_ADD, layout, layout, attributes, arguments)


def _binary(
    kind: int,
    layout: Layout,
    second: Layout,
    attributes: Attributes | None,
    arrays: dict[int, NativeArray],
) -> Primitive:
    made = operation(layout.runtime, "binary", kind, layout, second, layout, attributes)
    if made is None or made.is_reference:
        raise OneDnnError("no fast implementation of an element-wise update")
    return Primitive(made, arrays)
