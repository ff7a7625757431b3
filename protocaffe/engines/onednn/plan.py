"""Turns a net's layers into bound oneDNN primitives over blocked memory.

Layouts propagate forward: the kernel that produces a blob chooses the layout of its data, its
diff has the same, and a consumer that wants another one gets a reordered copy (made once per
pass, however many consumers share it). Layers without a kernel run their own code on host
arrays; a blob in plain layout is one memory for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat, TypeVar

import numpy as np

from protocaffe.blob import Blob, Storage, Truth
from protocaffe.engines.base import (
    LayerNode,
    Plan,
    PlanBytes,
    Work,
    forced_own_code,
    own_backward,
    own_forward,
)
from protocaffe.engines.onednn import library as dnn
from protocaffe.engines.onednn.pool import ENOUGH, Buffer, Pool
from protocaffe.engines.onednn.primitives import (
    Layout,
    NativeArray,
    Operation,
    Primitive,
    Runtime,
    can_describe,
    reorder,
    summation,
)
from protocaffe.engines.onednn.steps import Step, straightened
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
class Gradient:
    """Where a gradient is: the storage it was computed for, and its array."""

    storage: Storage
    array: NativeArray


@dataclass
class Progress:
    """What a plan knows when it comes to a layer that may change shapes in mid-pass."""

    copies: dict[int, list[NativeArray]]
    versions: dict[int, NativeArray]
    fused: set[int]
    absorbed: set[int]
    own: set[int]


AT_HOME = (Truth.HOST, Truth.BOTH)
"""Where the truth is on the host, too."""

Transient = dict[int, Storage]
"""Storages by identity."""


class OneDnnPlan(Plan):
    """A plan whose kernels are oneDNN primitives.

    Args:
        runtime: the library.
        nodes: the net's layers with their blobs, shapes known.
        fuses: whether layers may be run as one (see :meth:`Engine.plan`).
        dtype: the type of what kernels pass on between them, ``F32`` or ``BF16``.
        reuses_memory: see :meth:`Engine.plan`.
    """

    def __init__(
        self,
        runtime: Runtime,
        nodes: Sequence[LayerNode[Layer]],
        fuses: bool = True,
        dtype: int = dnn.F32,
        reuses_memory: bool = False,
    ) -> None:
        self.runtime = runtime
        self.dtype = dtype
        self.fuses = fuses
        self.reuses_memory = reuses_memory
        self.pool = Pool(ENOUGH)
        self._gradients: dict[int, Gradient] = {}
        self._lost: tuple[list[Storage], list[Storage]] = ([], [])
        self._backward_to_bind: list[tuple[LayerNode[Layer], Callable[[], None]]] = []
        self._copies: dict[int, list[NativeArray]] = {}
        self._versions: dict[int, NativeArray] = {}
        self._fused: set[int] = set()
        self._absorbed: set[int] = set()
        self._own: set[int] = set()
        self._progress: dict[int, Progress] = {}
        self._straight: list[Work] | None = None
        _leave_pools(nodes)
        super().__init__(nodes)
        self._bind_all_backward()
        self._first_backward = min((n.index for n in nodes if n.needs_backward), default=0)
        self._transient = self._share_memory() if reuses_memory else ({}, {})

    def add(self, node: LayerNode[Layer]) -> None:
        """Bind one layer's work: its kernel if there is one for it, else its own code."""
        if node.layer.dynamic:
            self._progress[node.index] = self._note_progress()
        if node.index in self._absorbed:
            return
        build = kernels.get(type(node.layer))
        blobs = [*node.bottoms, *node.tops]
        if (
            build is None
            or forced_own_code(node.layer)
            or not all(blob.count and blob.dtype == np.float32 for blob in blobs)
            or not all(can_describe(blob.shape) for blob in blobs)
            or not build(self, node)
        ):
            self._settle_versions(node)
            self.forward[node.index].append(own_forward(node))
            self._forget_copies([top.data_storage for top in node.tops])
            self._own.add(node.index)
            if node.needs_backward:
                self.bind_backward(node, lambda: self._add_own_backward(node))

    def follow(self, start: int) -> None:
        """Bind the layers from ``start`` on again (see :meth:`Plan.follow`)."""
        known = self._progress[start]
        self._copies, self._versions = known.copies, known.versions
        self._fused, self._absorbed, self._own = known.fused, known.absorbed, known.own
        self.joined = [group for group in self.joined if min(group) < start]
        super().follow(start)
        self._bind_all_backward()

    def _note_progress(self) -> Progress:
        return Progress(
            {key: [*copies] for key, copies in self._copies.items()},
            {**self._versions},
            *({*self._fused}, {*self._absorbed}, {*self._own}),
        )

    def _bind_all_backward(self) -> None:
        for _, bind in reversed(self._backward_to_bind):
            bind()
        self._backward_to_bind.clear()

    def _add_own_backward(self, node: LayerNode[Layer]) -> None:
        for top in node.tops:
            self.settle_gradient(node, top)
        self.backward[node.index].append(own_backward(node))

    def forward_all(self) -> list[SupportsFloat]:
        """Run all forward work without looking at layers; return what has a share of the loss."""
        weighted = [node for node in self.nodes if any(node.layer.loss_weights)]
        if any(self.next_reader(node, top) for node in weighted for top in node.tops):
            return super().forward_all()
        if self._straight is None:
            self._straight = straightened(work for works in self.forward for work in works)
        self.begin()
        for work in self._straight:
            work()
        self._retire(self._transient[0])
        return self.losses()

    def forward_layer(self, index: int) -> None:
        """Run one layer's forward work."""
        if index == 0:
            self.begin()
        super().forward_layer(index)
        if index == len(self.nodes) - 1:
            self._retire(self._transient[0])

    def backward_layer(self, index: int) -> None:
        """Run one layer's backward work."""
        super().backward_layer(index)
        if index == self._first_backward:
            self._retire(self._transient[1])

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
        return self._versions.setdefault(id(storage), self.memory(layout))

    def uses(self, blob: Blob) -> list[int]:
        """Return the places of the layers that read or write the blob's data."""
        storage = blob.data_storage
        return [
            node.index
            for node in self.nodes
            if any(each.data_storage is storage for each in (*node.bottoms, *node.tops))
        ]

    def may_place(self, blob: Blob) -> bool:
        """Whether it is open where the blob's data will be, and it may be lost after the pass."""
        native = blob.data_storage.native
        own = id(blob.data_storage) not in self._versions
        return own and isinstance(native, NativeArray) and not native.buffer.has_memory

    def take_over(self, top: Blob, blob: Blob) -> NativeArray:
        """Let a top's data be where a blob's is that nothing needs any more."""
        array = self._array(blob.data_storage, blob)
        top.data_storage.bind(array)
        self.lose(blob)
        return array

    def become_part(self, blob: Blob, whole: NativeArray, start: int) -> None:
        """Let a blob's data that nothing needs any more be a part of later data, from ``start``."""
        self._array(blob.data_storage, blob).buffer.become_part(whole.buffer, start)
        self.lose(blob)

    def lose(self, blob: Blob) -> None:
        """Note that the blob's data cannot be read after a pass."""
        self._lost[0].append(blob.data_storage)

    def diff(self, blob: Blob) -> NativeArray:
        """Return the memory of a blob's own diff, in the layout of its data."""
        return self._bound(blob.diff_storage, self.layout(blob))

    def memory(self, layout: Layout, opaque: bool = False) -> NativeArray:
        """Return new memory, which others may use when no work of the plan needs it.

        Memory with padding is kept apart, because its zeros have to stay; ``opaque`` memory is
        a primitive's own affair and has none.
        """
        if not self.reuses_memory or (layout.has_padding and not opaque):
            return NativeArray(layout)
        return NativeArray(layout, Buffer(layout.size))

    def bind_backward(self, node: LayerNode[Layer], bind: Callable[[], None]) -> None:
        """Have a layer's backward work added when that of all later layers has been."""
        self._backward_to_bind.append((node, bind))

    def share_gradient(self, node: LayerNode[Layer], bottom: Blob) -> bool:
        """Let a bottom's gradient be its layer's top's, without a copy.

        Only where memory is reused anyway: nobody is to look at the bottom's own diff then.
        """
        top = node.tops[0]
        if not self.reuses_memory or self.layout(bottom) != self.layout(top):
            return False
        self._gradients[id(bottom.diff_storage)] = self._gradient(top)
        self._lost[1].append(bottom.diff_storage)
        return True

    def settle_gradient(self, node: LayerNode[Layer], top: Blob) -> None:
        """Bring a shared gradient into the top's own diff, for code that reads it there."""
        gradient = self._gradient(top)
        if gradient.storage is not top.diff_storage:
            copy = reorder(gradient.array, self.diff(top))
            self.backward[node.index].append(Step(copy, (gradient.storage,), (top.diff_storage,)))
            del self._gradients[id(top.diff_storage)]

    def _gradient(self, blob: Blob) -> Gradient:
        """Where the gradient is that a layer finds at its top."""
        storage = blob.diff_storage
        return self._gradients.get(id(storage)) or Gradient(storage, self.diff(blob))

    def parameter(self, blob: Blob, layout: Layout) -> NativeArray:
        """Return a learnable blob's memory; the first plan that uses it settles its layout."""
        native = blob.data_storage.native
        if isinstance(native, NativeArray):
            return native
        return self._bound(blob.data_storage, layout, lasting=True)

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
        copy = self.memory(layout)
        for work in self._transfers(array, copy):
            self.forward[node.index].append(Step(work, (storage,), ()))
        self._copies[id(storage)].append(copy)
        return copy

    def gradient_in(self, node: LayerNode[Layer], blob: Blob, layout: Layout) -> NativeArray:
        """Return a top's diff in the wanted layout, reordered in the backward pass if needed."""
        gradient = self._gradient(blob)
        same = _same_memory(gradient.array, layout)
        if same is not None:
            return same
        copy = self.memory(layout)
        for work in self._transfers(gradient.array, copy):
            self.backward[node.index].append(Step(work, (gradient.storage,), ()))
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
        reads = [blob.data_storage for blob in data]
        reads += [self._gradient(blob).storage for blob in diffs]
        step = Step(run, reads, [blob.diff_storage for blob in writes])
        self.backward[node.index].append(step)
        for blob in writes:
            self._gradients.pop(id(blob.diff_storage), None)

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
        else:
            copy = self.memory(layout)
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
                unwanted[index] = self.memory(layout)
                continue
            native = blob.data_storage.native
            own = native.layout if isinstance(native, NativeArray) else layout
            targets.append(self._bound(blob.diff_storage, own, lasting=True))
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
        copy = self.memory(result.layout)
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

    # -- what people ask for ---------------------------------------------------------------

    def begin(self) -> None:
        """Forget that blobs were lost: the pass writes them anew."""
        for storage in self._transient[1].values():
            if storage.truth is Truth.LOST:
                storage.truth = Truth.ZERO

    def describe(self, work: Work) -> str:
        """Say which code of oneDNN does it; reorders tell from which layout to which."""
        primitives = _primitives(work)
        title: str = getattr(work.run, "title", "") if isinstance(work, Step) else ""
        return title or ", ".join(each.title for each in primitives) or super().describe(work)

    @property
    def bytes(self) -> PlanBytes:
        """The memory of all arrays that the plan's work uses, without parameters."""
        parameters = {
            id(storage.native.buffer.whole)
            for node in self.nodes
            for blob in node.layer.blobs
            for storage in (blob.data_storage, blob.diff_storage)
            if isinstance(storage.native, NativeArray)
        }
        buffers = {
            id(array.buffer.whole): array.buffer.whole
            for works in (*self.forward, *self.backward)
            for work in works
            for array in operands(work)
        }
        for node in self.nodes:
            for storage in (*_storages(node)[0], *_storages(node)[1]):
                if isinstance(storage.native, NativeArray):
                    whole = storage.native.buffer.whole
                    buffers[id(whole)] = whole
        apart = parameters | set(self.pool.lives)
        rest = sum(buffer.size for key, buffer in buffers.items() if key not in apart)
        return PlanBytes(4 * (rest + self.pool.size), 4 * (rest + self.pool.unshared))

    # -- memory --------------------------------------------------------------------------

    def _bound(self, storage: Storage, layout: Layout, lasting: bool = False) -> NativeArray:
        native = storage.native
        same = _same_memory(native, layout) if isinstance(native, NativeArray) else None
        if same is None:
            # Where the layout is the host's, one memory serves both sides.
            if layout.is_plain:
                same = NativeArray(layout, storage.host_memory())
            else:
                same = NativeArray(layout) if lasting else self.memory(layout)
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
        if target.is_plain:
            return [reorder(source, target.seen_as(Layout.plain(runtime, shapes[0])))]
        works: list[Work] = []
        if not source.is_plain:
            flat = self.memory(Layout.plain(runtime, shapes[0]))
            works.append(reorder(source, flat))
            source = flat
        return [*works, reorder(source.seen_as(Layout.plain(runtime, shapes[1])), target)]

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

    def _share_memory(self) -> tuple[Transient, Transient]:
        """Place all buffers; return the storages that are lost after forward, and backward."""
        last = 2 * len(self.nodes)
        storages: tuple[Transient, Transient] = ({}, {})
        for node in self.nodes:
            times = (node.index, last - node.index)
            data, diffs = _storages(node)
            self._note_uses(self.forward[node.index], data, times[0])
            self._note_uses(self.backward[node.index], diffs, times[1])
            if node.needs_backward and node.index in self._own:
                self._note_uses((), data, times[1])
            for top in node.tops:
                if self.next_reader(node, top) is None:
                    self._note_uses((), [top.data_storage, top.diff_storage], last)
                    # A loss weight stands there from one pass to the next.
                    self._note_uses((), [top.diff_storage], 0)
            storages[0].update((id(each), each) for each in data)
            storages[1].update((id(each), each) for each in diffs)
        self.pool.place()
        lost: tuple[Transient, Transient] = ({}, {})
        for storage in (*storages[0].values(), *storages[1].values()):
            native = storage.native
            if not isinstance(native, NativeArray):
                continue
            life = self.pool.lives.get(id(native.buffer.whole))
            if life is not None and life.last < last:
                lost[life.last >= len(self.nodes)][id(storage)] = storage
        for known, more in zip(lost, self._lost, strict=True):
            known.update((id(storage), storage) for storage in more)
        lost[1].update(lost[0])
        return lost

    def _note_uses(self, works: Iterable[Work], storages: Iterable[Storage], time: int) -> None:
        for work in works:
            for array in operands(work):
                self.pool.use(array.buffer, time)
        for storage in storages:
            if isinstance(storage.native, NativeArray):
                self.pool.use(storage.native.buffer, time)

    def _retire(self, storages: Transient) -> None:
        for storage in storages.values():
            storage.truth = Truth.HOST if storage.truth in AT_HOME else Truth.LOST


def _same_memory(array: NativeArray, layout: Layout) -> NativeArray | None:
    """Return the array's memory seen in the layout, if that needs no copy."""
    if array.layout == layout:
        return array
    if array.is_plain and layout.is_plain:
        return array.seen_as(layout)
    return None


def _leave_pools(nodes: Sequence[LayerNode[Layer]]) -> None:
    """Part blobs from memory that an earlier plan shared among them."""
    for node in nodes:
        for blob in (*node.bottoms, *node.tops):
            for storage in (blob.data_storage, blob.diff_storage):
                if isinstance(storage.native, NativeArray) and storage.native.buffer.is_pooled:
                    storage.leave_native()


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
        self.primitives = self._overwriting()
        self._add: list[Primitive] | None = None

    def __call__(self) -> None:
        """Overwrite cleared diffs, or add to others."""
        fresh = all(storage.truth is Truth.ZERO for storage in self._storages)
        if not fresh:
            for storage in self._storages:
                storage.native_read()
        for primitive in self.primitives if fresh else self._adding():
            primitive()
        for storage in self._storages:
            storage.native_overwrite()

    def _overwriting(self) -> list[Primitive]:
        if self._same:
            return [self._make(list(self._targets))]
        scratch = self._scratch()
        copies = [reorder(s, t) for s, t in zip(scratch, self._targets, strict=True)]
        return [self._make(scratch), *copies]

    def _adding(self) -> list[Primitive]:
        if self._add is None:
            scratch = self._scratch()
            pairs = zip(self._targets, scratch, strict=True)
            self._add = [self._make(scratch), *(summation([t, s], t) for t, s in pairs)]
        return self._add

    def _scratch(self) -> list[NativeArray]:
        return [NativeArray(layout) for layout in self._layouts]


def workspace(plan: OneDnnPlan, made: Operation) -> NativeArray | None:
    """Return memory for what forward notes down for backward (None where nothing is noted)."""
    layout = made.layout(dnn.QUERY_WORKSPACE, ())
    return plan.memory(layout, opaque=True) if layout.size else None


def _primitives(work: Work) -> Sequence[Primitive]:
    """Return the primitives that a piece of work is known to run."""
    run = work.run if isinstance(work, Step) else work
    known: Sequence[Primitive] = getattr(run, "primitives", ())
    return known


def operands(work: Work) -> list[NativeArray]:
    """Return the arrays that a piece of work is known to use."""
    return [array for primitive in _primitives(work) for array in primitive.operands]


def _storages(node: LayerNode[Layer]) -> tuple[list[Storage], list[Storage]]:
    """The data and the diff storages of a layer's blobs."""
    blobs = (*node.bottoms, *node.tops)
    return [blob.data_storage for blob in blobs], [blob.diff_storage for blob in blobs]


def elementwise_layouts(plan: OneDnnPlan, node: LayerNode[Layer]) -> Layout | None:
    """Return the one layout that all bottoms of a layer have, or None if they differ."""
    first = plan.layout(node.bottoms[0])
    same = all(plan.layout(bottom) == first for bottom in node.bottoms[1:])
    return first if same else None
