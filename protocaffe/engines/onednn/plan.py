"""Turns a net's layers into bound oneDNN primitives over blocked memory.

Layouts propagate forward: the kernel that produces a blob chooses the layout of its data, its
diff has the same, and a consumer that wants another one gets a reordered copy (made once per
pass, however many consumers share it). Layers without a kernel run their own code on host
arrays; a blob in plain layout is one memory for both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from protocaffe.blob import Blob, Storage, Truth
from protocaffe.engines.base import LayerNode, Plan, Work
from protocaffe.engines.onednn.primitives import (
    Layout,
    NativeArray,
    Primitive,
    Runtime,
    reorder,
    summation,
)
from protocaffe.layers import Layer

Kernel = Callable[["OneDnnPlan", LayerNode], bool]
"""Adds a layer's work to the plan, or returns False to leave the layer to its own code."""

kernels: dict[type[Layer], Kernel] = {}


def kernel(layer_class: type[Layer]) -> Callable[[Kernel], Kernel]:
    """Decorator: the function builds the work of this layer class (not of its subclasses)."""

    def decorate(build: Kernel) -> Kernel:
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
    """

    def __init__(self, runtime: Runtime, nodes: Sequence[LayerNode]) -> None:
        self.runtime = runtime
        self._copies: dict[int, list[NativeArray]] = {}
        self._fused: set[int] = set()
        super().__init__(nodes)

    def add(self, node: LayerNode) -> None:
        """Bind one layer's work: its kernel if there is one for it, else its own code."""
        build = kernels.get(type(node.layer))
        blobs = [*node.bottoms, *node.tops]
        if (
            build is None
            or forced_own_code(node.layer)
            or any(blob.count == 0 or blob.dtype != np.float32 for blob in blobs)
            or not build(self, node)
        ):
            super().add(node)
            self._forget_copies([top.data_storage for top in node.tops])

    # -- what kernels ask for ------------------------------------------------------------

    def layout(self, blob: Blob) -> Layout:
        """Return the layout the blob's data (and diff) has; plain unless a kernel chose one."""
        layout = self._array(blob.data_storage, blob).layout
        return layout if layout.shape == blob.shape else Layout.plain(self.runtime, blob.shape)

    def top(self, blob: Blob, layout: Layout) -> NativeArray:
        """Return the memory for a top's data in the layout its producer chose."""
        return self._bound(blob.data_storage, layout)

    def diff(self, blob: Blob) -> NativeArray:
        """Return the memory of a blob's diff, in the layout of its data."""
        return self._bound(blob.diff_storage, self.layout(blob))

    def parameter(self, blob: Blob, layout: Layout) -> NativeArray:
        """Return a learnable blob's memory; the first plan that uses it settles its layout."""
        native = blob.data_storage.native
        if isinstance(native, NativeArray):
            return native
        return self._bound(blob.data_storage, layout)

    def source(self, node: LayerNode, blob: Blob, layout: Layout) -> NativeArray:
        """Return the blob's data in the wanted layout, reordered in the forward pass if needed."""
        storage = blob.data_storage
        array = self._array(storage, blob)
        same = _same_memory(array, layout)
        if same is not None:
            return same
        for copy in self._copies.setdefault(id(storage), []):
            if copy.layout == layout:
                return copy
        copy = NativeArray(layout)
        for work in self._transfers(array, copy):
            self.forward[node.index].append(Step(work, (storage,), ()))
        self._copies[id(storage)].append(copy)
        return copy

    def gradient_in(self, node: LayerNode, blob: Blob, layout: Layout) -> NativeArray:
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
        self, node: LayerNode, run: Work, reads: Sequence[Blob], writes: Sequence[Blob]
    ) -> None:
        """Append a piece of forward work over the data of these blobs."""
        written = [blob.data_storage for blob in writes]
        step = Step(run, [blob.data_storage for blob in reads], written)
        self.forward[node.index].append(step)
        self._forget_copies(written)

    def add_backward(
        self,
        node: LayerNode,
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
        node: LayerNode,
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
        node: LayerNode,
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
        targets = []
        for blob, layout in zip(blobs, layouts, strict=True):
            native = blob.data_storage.native
            own = native.layout if isinstance(native, NativeArray) else layout
            targets.append(self._bound(blob.diff_storage, own))
        storages = [blob.diff_storage for blob in blobs]
        work = Accumulation(storages, targets, layouts, make)
        self.add_backward(node, work, data, node.tops, writes)

    def fusable_relu(self, node: LayerNode) -> LayerNode | None:
        """Return the in-place ReLU that alone reads the layer's top, if it can be fused.

        Nobody can see the difference: the blob holds the ReLU's result either way.
        """
        top = node.tops[0]
        for later in self.nodes[node.index + 1 :]:
            if not any(blob is top for blob in later.bottoms):
                continue
            layer = later.layer
            fits = (
                layer.type == "ReLU"
                and later.tops[0] is top
                and layer.param.relu_param.negative_slope >= 0
                and not forced_own_code(layer)
                and not any(node.layer.loss_weights)
            )
            return later if fits else None
        return None

    def fuse(self, relu: LayerNode) -> None:
        """Note that a layer's forward is done by an earlier layer's kernel."""
        self._fused.add(relu.index)

    def is_fused(self, node: LayerNode) -> bool:
        """Whether an earlier kernel already does this layer's forward."""
        return node.index in self._fused

    # -- memory --------------------------------------------------------------------------

    def _bound(self, storage: Storage, layout: Layout) -> NativeArray:
        native = storage.native
        if not isinstance(native, NativeArray) or native.layout != layout:
            native = NativeArray(layout)
            storage.bind(native)
        return native

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


def forced_own_code(layer: Layer) -> bool:
    """Whether the prototxt says ``engine: CAFFE`` for this layer."""
    for field, message in layer.param.ListFields():
        has_engine = field.name.endswith("_param") and "engine" in getattr(
            field.message_type, "fields_by_name", ()
        )
        if has_engine and message.engine == message.CAFFE:
            return True
    return False


def elementwise_layouts(plan: OneDnnPlan, node: LayerNode) -> Layout | None:
    """Return the one layout that all bottoms of a layer have, or None if they differ."""
    first = plan.layout(node.bottoms[0])
    same = all(plan.layout(bottom) == first for bottom in node.bottoms[1:])
    return first if same else None
