"""Turns a net's layers into bound oneDNN primitives over blocked memory.

Layouts propagate forward: the kernel that produces a blob chooses the layout of its data, its
diff has the same, and a consumer that wants another one gets a reordered copy (made once per
pass, however many consumers share it). Layers without a kernel run their own code on host
arrays; a blob in plain layout is one memory for both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from protocaffe.blob import Blob, Storage, Truth
from protocaffe.engines.base import LayerNode, Plan, Work
from protocaffe.engines.onednn import library as dnn
from protocaffe.engines.onednn.primitives import (
    Layout,
    NativeArray,
    Operation,
    Primitive,
    Runtime,
    reorder,
    summation,
)
from protocaffe.layers import Layer

AnyLayer = TypeVar("AnyLayer", bound=Layer)
Kernel = Callable[["OneDnnPlan", LayerNode[AnyLayer]], bool]
"""Adds a layer's work to the plan, or returns False to leave the layer to its own code."""

kernels: dict[type[Layer], Kernel[Any]] = {}
keeps_input: dict[type[Layer], Callable[[OneDnnPlan, LayerNode[Any]], bool]] = {}
"""Whether a layer's kernel needs its bottom's data again in backward, in place too."""


def kernel(
    layer_class: type[AnyLayer],
) -> Callable[[Kernel[AnyLayer]], Kernel[AnyLayer]]:
    """Decorator: the function builds the work of this layer class (not of its subclasses)."""

    def decorate(build: Kernel[AnyLayer]) -> Kernel[AnyLayer]:
        kernels[layer_class] = build
        return build

    return decorate


@dataclass
class Step:
    """A primitive between storages: brings what it reads to the engine, marks what it writes."""

    run: Callable[[], None]
    reads: Sequence[Storage]
    writes: Sequence[Storage]

    def __call__(self) -> None:
        """Run it, with the storages' truth brought and noted."""
        for storage in self.reads:
            storage.native_read()
        self.run()
        for storage in self.writes:
            storage.truth = Truth.NATIVE


class OneDnnPlan(Plan):
    """A plan whose kernels are oneDNN primitives.

    Args:
        runtime: the library.
        nodes: the net's layers with their blobs, shapes known.
        fuses: whether layers may be run as one (see :meth:`Engine.plan`).
        dtype: the type of what kernels pass on between them, ``F32`` or ``BF16``.
    """

    def __init__(
        self,
        runtime: Runtime,
        nodes: Sequence[LayerNode[Layer]],
        fuses: bool = True,
        dtype: int = dnn.F32,
    ) -> None:
        self.runtime = runtime
        self.dtype = dtype
        self.fuses = fuses
        self._copies: dict[int, list[NativeArray]] = {}
        self._versions: dict[int, NativeArray] = {}
        self._fused: set[int] = set()
        self._absorbed: set[int] = set()
        super().__init__(nodes)

    def add(self, node: LayerNode[Layer]) -> None:
        """Bind one layer's work: its kernel if there is one for it, else its own code."""
        if node.index in self._absorbed:
            return
        build = kernels.get(type(node.layer))
        blobs = [*node.bottoms, *node.tops]
        if (
            build is None
            or forced_own_code(node.layer)
            or any(blob.count == 0 or blob.dtype != np.float32 for blob in blobs)
            or not build(self, node)
        ):
            self._settle_versions(node)
            super().add(node)
            self._forget_copies([top.data_storage for top in node.tops])

    # -- what kernels ask for ------------------------------------------------------------

    def layout(self, blob: Blob) -> Layout:
        """Return the layout the blob's data (and diff) has; plain unless a kernel chose one."""
        layout = self._array(blob.data_storage, blob).layout
        return layout if layout.shape == blob.shape else Layout.plain(self.runtime, blob.shape)

    def top(
        self, node: LayerNode[Layer], index: int, layout: Layout, keep: bool = False
    ) -> NativeArray:
        """Return the memory for a top's data in the layout its producer chose.

        Where the next layer overwrites the blob in place although what it reads is needed
        again in backward, the data goes to private memory and only that layer sees it (without
        fusing, whoever needs it makes a copy).
        Kernels that may work in place ask for their source before their top.

        Args:
            node: the producer.
            index: which top.
            layout: how the data lies.
            keep: whether the producer itself needs the data in backward.
        """
        blob = node.tops[index]
        storage = blob.data_storage
        self._versions.pop(id(storage), None)
        bound = self._bound(storage, layout)
        reader = self._overwriter(node, blob)
        if reader is None or not self.fuses:
            return bound
        needs = keeps_input.get(type(reader.layer))
        if not keep and (needs is None or not needs(self, reader)):
            return bound
        return self._versions.setdefault(id(storage), NativeArray(layout))

    def diff(self, blob: Blob) -> NativeArray:
        """Return the memory of a blob's diff, in the layout of its data."""
        return self._bound(blob.diff_storage, self.layout(blob))

    def parameter(self, blob: Blob, layout: Layout) -> NativeArray:
        """Return a learnable blob's memory; the first plan that uses it settles its layout."""
        native = blob.data_storage.native
        if isinstance(native, NativeArray):
            return native
        return self._bound(blob.data_storage, layout)

    def source(self, node: LayerNode[Layer], blob: Blob, layout: Layout) -> NativeArray:
        """Return the blob's data in the wanted layout, reordered in the forward pass if needed."""
        storage = blob.data_storage
        array = self._versions.get(id(storage)) or self._array(storage, blob)
        same = _same_memory(array, layout)
        if same is not None:
            return same
        for copy in self._copies.setdefault(id(storage), []):
            if self.fuses and copy.layout == layout:
                return copy
        copy = NativeArray(layout)
        for work in self._transfers(array, copy):
            self.forward[node.index].append(Step(work, (storage,), ()))
        self._copies[id(storage)].append(copy)
        return copy

    def gradient_in(self, node: LayerNode[Layer], blob: Blob, layout: Layout) -> NativeArray:
        """Return a top's diff in the wanted layout, reordered in the backward pass if needed."""
        array = self.diff(blob)
        same = _same_memory(array, layout)
        if same is not None:
            return same
        copy = NativeArray(layout)
        for work in self._transfers(array, copy):
            self.backward[node.index].append(Step(work, (blob.diff_storage,), ()))
        return copy

    def add_forward(
        self, node: LayerNode[Layer], run: Work, reads: Sequence[Blob], writes: Sequence[Blob]
    ) -> None:
        """Append a piece of forward work over the data of these blobs."""
        written = [blob.data_storage for blob in writes]
        step = Step(run, [blob.data_storage for blob in reads], written)
        self.forward[node.index].append(step)
        self._forget_copies(written)

    def add_backward(
        self,
        node: LayerNode[Layer],
        run: Work,
        data: Sequence[Blob] = (),
        diffs: Sequence[Blob] = (),
        writes: Sequence[Blob] = (),
    ) -> None:
        """Append backward work that reads data and diffs and writes the diffs of ``writes``."""
        reads = [blob.data_storage for blob in data] + [blob.diff_storage for blob in diffs]
        step = Step(run, reads, [blob.diff_storage for blob in writes])
        self.backward[node.index].append(step)

    def add_bottom_gradient(
        self,
        node: LayerNode[Layer],
        make: Callable[[NativeArray], Primitive],
        layout: Layout,
        data: Sequence[Blob] = (),
        index: int = 0,
    ) -> None:
        """Append the work that computes one bottom's diff from the tops' diffs.

        Args:
            node: the layer.
            make: binds the primitive to the memory the diff goes to.
            layout: the layout the primitive writes.
            data: blobs whose data the primitive reads.
            index: which bottom.
        """
        bottom = node.bottoms[index]
        target = self.diff(bottom)
        direct = _same_memory(target, layout)
        if direct is not None:
            self.add_backward(node, make(direct), data, node.tops, (bottom,))
            return
        copy = NativeArray(layout)
        self.add_backward(node, make(copy), data, node.tops)
        *first, last = self._transfers(copy, target)
        for work in first:
            self.add_backward(node, work)
        self.add_backward(node, last, writes=(bottom,))

    def add_parameter_gradients(
        self,
        node: LayerNode[Layer],
        make: Callable[[list[NativeArray]], Primitive],
        blobs: Sequence[Blob],
        layouts: Sequence[Layout],
        data: Sequence[Blob],
        writes: Sequence[Blob] = (),
    ) -> None:
        """Append the work that adds to the diffs of a layer's parameters.

        Args:
            node: the layer.
            make: binds the primitive to the memories that it overwrites, one per blob.
            blobs: the parameters.
            layouts: the layouts the primitive writes.
            data: blobs whose data the primitive reads.
            writes: bottoms whose diff the primitive overwrites by the way.
        """
        targets, wanted, wanted_layouts = [], [], []
        unwanted: dict[int, NativeArray] = {}
        for index, (blob, layout) in enumerate(zip(blobs, layouts, strict=True)):
            if not node.layer.param_propagate_down[node.layer.blobs.index(blob)]:
                unwanted[index] = NativeArray(layout)
                continue
            native = blob.data_storage.native
            own = native.layout if isinstance(native, NativeArray) else layout
            targets.append(self._bound(blob.diff_storage, own))
            wanted.append(blob.diff_storage)
            wanted_layouts.append(layout)

        def make_all(into: list[NativeArray]) -> Primitive:
            rest = iter(into)
            return make([unwanted.get(i) or next(rest) for i in range(len(blobs))])

        work = Accumulation(wanted, targets, wanted_layouts, make_all)
        self.add_backward(node, work, data, node.tops, writes)

    def fusable_relu(self, node: LayerNode[Layer]) -> LayerNode[Layer] | None:
        """Return the in-place ReLU that alone reads the layer's top, if it can be fused.

        Nobody can see the difference: the blob holds the ReLU's result either way.
        """
        if not self.fuses:
            return None
        top = node.tops[0]
        reader = self.next_reader(node, top)
        fits = (
            reader is not None
            and reader.layer.type in ("ReLU", "ReLU6")
            and reader.tops[0] is top
            and reader.layer.param.relu_param.negative_slope >= 0
            and not forced_own_code(reader.layer)
            and not any(node.layer.loss_weights)
        )
        return reader if fits else None

    def next_reader(self, node: LayerNode[Layer], blob: Blob) -> LayerNode[Layer] | None:
        """Return the first later layer that reads the blob."""
        later = self.nodes[node.index + 1 :]
        return next((each for each in later if any(b is blob for b in each.bottoms)), None)

    def kept_result(self, node: LayerNode[Layer], result: NativeArray) -> NativeArray:
        """Return the layer's result as its own backward needs it, once its forward was added.

        Where layers are fused, ``top(..., keep=True)`` has seen to that without a copy.
        """
        if self.fuses or self._overwriter(node, node.tops[0]) is None:
            return result
        copy = NativeArray(result.layout)
        self.add_forward(node, reorder(result, copy), node.tops, ())
        return copy

    def fuse(self, node: LayerNode[Layer], backward: bool = False) -> None:
        """Note that an earlier kernel does this layer's forward, and maybe its backward too."""
        self._fused.add(node.index)
        if backward:
            self._absorbed.add(node.index)

    def is_fused(self, node: LayerNode[Layer]) -> bool:
        """Whether an earlier kernel already does this layer's forward."""
        return node.index in self._fused

    # -- memory --------------------------------------------------------------------------

    def _bound(self, storage: Storage, layout: Layout) -> NativeArray:
        native = storage.native
        same = _same_memory(native, layout) if isinstance(native, NativeArray) else None
        if same is None:
            # Where the layout is the host's, one memory serves both sides.
            same = NativeArray(layout, storage.host_memory() if layout.is_plain else None)
            storage.bind(same)
        return same

    def _array(self, storage: Storage, blob: Blob) -> NativeArray:
        native = storage.native
        if isinstance(native, NativeArray):
            return native
        return self._bound(storage, Layout.plain(self.runtime, blob.shape))

    def _transfers(self, source: NativeArray, target: NativeArray) -> list[Work]:
        """Return the copies that bring source into target, whose shapes may differ.

        Equal counts in plain order are the same numbers under any shape (Flatten, Reshape,
        an inner product's view of its input), so a reshaping goes through plain memory.
        """
        runtime, shapes = self.runtime, (source.layout.shape, target.layout.shape)
        if shapes[0] == shapes[1]:
            return [reorder(source, target)]
        if target.host_view() is not None:
            return [reorder(source, NativeArray(Layout.plain(runtime, shapes[0]), target.values))]
        works: list[Work] = []
        if source.host_view() is None:
            flat = NativeArray(Layout.plain(runtime, shapes[0]))
            works.append(reorder(source, flat))
            source = flat
        alias = NativeArray(Layout.plain(runtime, shapes[1]), source.values)
        return [*works, reorder(alias, target)]

    def _overwriter(self, node: LayerNode[Layer], blob: Blob) -> LayerNode[Layer] | None:
        """Return the first later layer that reads the blob, if it works in place."""
        reader = self.next_reader(node, blob)
        in_place = reader is not None and any(top is blob for top in reader.tops)
        return reader if in_place else None

    def _settle_versions(self, node: LayerNode[Layer]) -> None:
        """Bring private versions into the blobs that own code is about to read."""
        for blob in node.bottoms:
            version = self._versions.pop(id(blob.data_storage), None)
            if version is not None:
                copy = reorder(version, self._array(blob.data_storage, blob))
                self.add_forward(node, copy, (), (blob,))

    def _forget_copies(self, storages: Sequence[Storage]) -> None:
        for storage in storages:
            self._copies.pop(id(storage), None)


def _same_memory(array: NativeArray, layout: Layout) -> NativeArray | None:
    """Return the array's memory seen in the layout, if that needs no copy."""
    if array.layout == layout:
        return array
    if array.host_view() is not None and layout.is_plain:
        return NativeArray(layout, array.values)
    return None


class Accumulation:
    """Adds a primitive's results to parameter diffs (Caffe's parameter diffs add up).

    The common case, diffs that were just cleared, writes straight into them.
    """

    def __init__(
        self,
        storages: Sequence[Storage],
        targets: Sequence[NativeArray],
        layouts: Sequence[Layout],
        make: Callable[[list[NativeArray]], Primitive],
    ) -> None:
        self._storages = storages
        self._targets = targets
        self._layouts = layouts
        self._make = make
        self._same = all(t.layout == wanted for t, wanted in zip(targets, layouts, strict=True))
        self._overwrite: list[Primitive] | None = None
        self._add: list[Primitive] | None = None

    def __call__(self) -> None:
        """Overwrite cleared diffs, or add to others."""
        fresh = all(storage.truth is Truth.ZERO for storage in self._storages)
        if not fresh:
            for storage in self._storages:
                storage.native_read()
        for primitive in self._overwriting() if fresh else self._adding():
            primitive()
        for storage in self._storages:
            storage.truth = Truth.NATIVE

    def _overwriting(self) -> list[Primitive]:
        if self._overwrite is None:
            if self._same:
                self._overwrite = [self._make(list(self._targets))]
            else:
                scratch = self._scratch()
                copies = [reorder(s, t) for s, t in zip(scratch, self._targets, strict=True)]
                self._overwrite = [self._make(scratch), *copies]
        return self._overwrite

    def _adding(self) -> list[Primitive]:
        if self._add is None:
            scratch = self._scratch()
            pairs = zip(self._targets, scratch, strict=True)
            self._add = [self._make(scratch), *(summation([t, s], t) for t, s in pairs)]
        return self._add

    def _scratch(self) -> list[NativeArray]:
        return [NativeArray(layout) for layout in self._layouts]


def workspace(made: Operation) -> NativeArray | None:
    """Return memory for what forward notes down for backward (None where nothing is noted)."""
    layout = made.layout(dnn.QUERY_WORKSPACE, ())
    return NativeArray(layout) if layout.size else None


def forced_own_code(layer: Layer) -> bool:
    """Whether the prototxt says ``engine: CAFFE`` for this layer."""
    for field, message in layer.param.ListFields():
        has_engine = field.name.endswith("_param") and "engine" in getattr(
            field.message_type, "fields_by_name", ()
        )
        if has_engine and message.engine == message.CAFFE:
            return True
    return False


def elementwise_layouts(plan: OneDnnPlan, node: LayerNode[Layer]) -> Layout | None:
    """Return the one layout that all bottoms of a layer have, or None if they differ."""
    first = plan.layout(node.bottoms[0])
    same = all(plan.layout(bottom) == first for bottom in node.bottoms[1:])
    return first if same else None
