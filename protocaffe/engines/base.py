"""What every engine offers, and the plan that runs layers by their own code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, SupportsFloat, TypeVar

import numpy as np

from protocaffe.assembly import LearnableParam
from protocaffe.blob import Array, Blob, Storage, Truth
from protocaffe.layers import Layer
from protocaffe.parallel import elementwise, one_blas_thread
from protocaffe.proto.caffe_pb2 import SolverParameter

Work = Callable[[], None]
AnyLayer = TypeVar("AnyLayer", bound=Layer, covariant=True)


@dataclass
class LayerNode(Generic[AnyLayer]):
    """A layer with the blobs it is wired to and what backward wants of it.

    Attributes:
        index: place in the net.
        layer: the layer, set up and shaped.
        bottoms: the blobs it reads.
        tops: the blobs it writes.
        propagate_down: per bottom, whether its gradient is wanted.
        needs_backward: whether backward runs at all.
    """

    index: int
    layer: AnyLayer
    bottoms: list[Blob]
    tops: list[Blob]
    propagate_down: list[bool]
    needs_backward: bool


@dataclass(frozen=True)
class PlanBytes:
    """Memory of a plan's activations and gradients.

    Attributes:
        taken: bytes they take.
        unshared: what they would take if nothing shared memory.
    """

    taken: int
    unshared: int


class Loss:
    """A sum of numbers, some of which may still be on their way; ``float(loss)`` waits for them.

    Args:
        divisor: what the sum is divided by.
    """

    def __init__(self, divisor: float = 1.0) -> None:
        self._parts: list[SupportsFloat] = []
        self._divisor = divisor
        self._value: float | None = None

    def add(self, part: SupportsFloat) -> None:
        """Add a number."""
        self._parts.append(part)

    def __float__(self) -> float:
        if self._value is None:
            self._value = sum(map(float, self._parts)) / self._divisor
            self._parts = []
        return self._value


class Plan:
    """The work of every layer, bound once and run many times.

    Attributes:
        forward: per layer, the pieces of work of its forward pass, in order.
        backward: per layer, those of its backward pass.
        joined: groups of layers (their places in the net) whose backward is one piece of work.
    """

    def __init__(self, nodes: Sequence[LayerNode[Layer]]) -> None:
        self.nodes = nodes
        self.joined: list[set[int]] = []
        self.forward: list[list[Work]] = [[] for _ in nodes]
        self.backward: list[list[Work]] = [[] for _ in nodes]
        for node in nodes:
            self.add(node)

    def add(self, node: LayerNode[Layer]) -> None:
        """Bind one layer's work; here, its own code."""
        self.forward[node.index].append(own_forward(node))
        if node.needs_backward:
            self.backward[node.index].append(own_backward(node))

    def follow(self, start: int) -> None:
        """Bind the layers from ``start`` on again: in mid-pass, that one gave its tops new shapes.

        What the layers before it have noted down for their backward stays theirs.
        """
        for node in self.nodes[start:]:
            self.forward[node.index].clear()
            self.backward[node.index].clear()
            self.add(node)

    def forward_all(self) -> list[SupportsFloat]:
        """Run all layers' forward work; return the shares of those that have one in the loss."""
        losses = []
        for node in self.nodes:
            self.forward_layer(node.index)
            if any(node.layer.loss_weights):
                losses.append(self.loss(node.index))
        return losses

    def forward_layer(self, index: int) -> None:
        """Run one layer's forward work."""
        for work in self.forward[index]:
            work()

    def backward_layer(self, index: int) -> None:
        """Run one layer's backward work."""
        for work in self.backward[index]:
            work()

    def backward_all(self) -> None:
        """Run the backward work of all layers that have some."""
        for node in reversed(self.nodes):
            if node.needs_backward:
                self.backward_layer(node.index)

    def whole_step(self, update: WholeUpdate) -> Work | None:
        """Return one piece of work for a training step, None if there is none.

        That is forward of all layers but those without bottoms, backward, and the update.
        """
        return None

    def loss(self, index: int) -> SupportsFloat:
        """Return one layer's share of the loss, from its tops."""
        node, loss = self.nodes[index], 0.0
        for top, weight in zip(node.tops, node.layer.loss_weights, strict=True):
            if weight:
                values, weights = top.data_storage.host_read(), top.diff_storage.host_read()
                loss += float(np.dot(values, weights))
        return loss

    def losses(self) -> list[SupportsFloat]:
        """Return the shares of all layers that have one in the loss, from their tops."""
        return [self.loss(node.index) for node in self.nodes if any(node.layer.loss_weights)]

    def cut(self, first: int, last: int) -> None:
        """Get ready for a backward pass over the layers from ``first`` down to ``last`` only.

        It cuts through none of the groups in :attr:`joined`.
        """

    def begin(self) -> None:
        """Note that a forward pass begins; running the first layer does so by itself."""

    def describe(self, work: Work) -> str:
        """Say in a few words what a piece of work is."""
        return "own code"

    def doer(self, index: int, works: Sequence[Sequence[Work]]) -> int:
        """Return the place of the layer where one layer's work is, as far as the plan knows.

        Args:
            index: the layer.
            works: :attr:`forward` or :attr:`backward`.
        """
        return index

    @property
    def bytes(self) -> PlanBytes:
        """The memory of the net's blobs, without parameters."""
        sizes: dict[int, int] = {}
        for node in self.nodes:
            for blob in (*node.bottoms, *node.tops):
                storages = [blob.data_storage, *[blob.diff_storage][: node.needs_backward]]
                sizes.update((id(each), each.count * each.dtype.itemsize) for each in storages)
        total = sum(sizes.values())
        return PlanBytes(total, total)


class Engine:
    """Runs nets: owns memory, kernels and the plan. This one runs every layer's own code.

    Attributes:
        name: what ``--engine`` calls it.
        xp: the array module that layers compute with.
    """

    name: ClassVar[str] = "numpy"
    xp: Any = np

    def plan(
        self, nodes: Sequence[LayerNode[Layer]], fuse: bool = True, reuse_memory: bool = False
    ) -> Plan:
        """Bind the work of a net whose blobs have their shapes.

        Args:
            nodes: the layers.
            fuse: whether layers may be run as one where nobody sees between them after a whole
                pass. Without it every layer reads and writes its own blobs, so that a pass may
                begin and end anywhere.
            reuse_memory: whether activations and gradients may share memory where they are not
                needed at the same time, and so be lost after a pass; the net's outputs stay.
        """
        return Plan(nodes)

    def flat_views(self, leader: Storage, *followers: Storage) -> list[Array]:
        """Return the storages' numbers as flat arrays that share one element order.

        All are up to date and may be written to. The order is the leader's own and unknown
        to the caller, who can therefore only do element-wise work (and sums) with them.
        """
        return [storage.host_write() for storage in (leader, *followers)]

    def momentum_update(
        self, weight: Storage, diff: Storage, history: Storage, momentum: float
    ) -> MomentumUpdate:
        """Return the SGD update of one parameter, to be called once per iteration."""
        return MomentumUpdate(self, weight, diff, history, momentum)

    def sum_of_squares(self, storages: Sequence[Storage]) -> float:
        """Return the sum of the squares of all numbers."""
        views = (self.flat_views(storage)[0] for storage in storages)
        return sum(float(np.dot(view, view)) for view in views)

    def whole_update(
        self,
        rule: str,
        param: SolverParameter,
        learnable: Sequence[LearnableParam],
        history: Sequence[Blob],
    ) -> WholeUpdate | None:
        """Return a kernel that updates all parameters at once, or None for one after the other.

        Args:
            rule: the solver's type, such as ``SGD``; empty for one that no engine knows.
            param: has the rule's numbers.
            learnable: the parameters.
            history: what the rule remembers, see :class:`~protocaffe.solvers.Solver`.
        """
        return None

    def active(self) -> AbstractContextManager[None]:
        """Return a context in which layers may be made and shaped, with arrays of ``xp``."""
        return nullcontext()

    def synchronize(self) -> None:
        """Wait until all work that was asked for is done."""

    def adam_update(
        self, weight: Storage, diff: Storage, means: tuple[Storage, Storage], settings: AdamSettings
    ) -> AdamUpdate | None:
        """Return a kernel for Adam's update of one parameter, or None for the solver's own."""
        return None


@dataclass(frozen=True)
class AdamSettings:
    """What stays the same in Adam's formula: the two decay rates, and delta beside the root."""

    first: float
    second: float
    delta: float


class AdamUpdate:
    """Adam's update of one parameter, where an engine has a kernel for it."""

    def __call__(self, gradient_scale: float, weight_scale: float, step: float) -> None:
        """Update the parameter once.

        ``t = gradient_scale * g + weight_scale * w;  m = first * m + (1 - first) * t;``
        ``v = second * v + (1 - second) * t^2;  w = w - step * m / (sqrt(v) + delta)``
        """
        raise NotImplementedError


class WholeUpdate:
    """The update of all parameters of a net, where an engine has a kernel for it."""

    def set(
        self, rate: float, factor: float, decay: float, by_sign: bool, keeps_update: bool
    ) -> None:
        """Say what the next update computes with.

        Args:
            rate: the learning rate, before the parameters' own multipliers.
            factor: what gradients are multiplied by first.
            decay: the weight decay, before the parameters' own multipliers.
            by_sign: whether it pulls by the weights' signs.
            keeps_update: whether gradients are overwritten with what was subtracted.
        """
        raise NotImplementedError

    def __call__(self) -> None:
        """Update every parameter once."""
        raise NotImplementedError


class MomentumUpdate:
    """``h = gradient_scale * g + weight_scale * w + momentum * h;  w = w - h``.

    Works through memory in chunks that stay in the cache, so it costs about one read of all
    three arrays and one write of two.

    Args:
        engine: owner of the arrays.
        weight: the parameter w.
        diff: its gradient g, left as it is.
        history: its momentum h.
        momentum: the factor on h.
    """

    def __init__(
        self, engine: Engine, weight: Storage, diff: Storage, history: Storage, momentum: float
    ) -> None:
        self._engine = engine
        self._storages = (weight, diff, history)
        self._momentum = momentum

    def __call__(self, gradient_scale: float, weight_scale: float) -> None:
        """Update the parameter once."""

        def update(w: Array, g: Array, h: Array) -> None:
            h *= self._momentum
            h += g * gradient_scale
            if weight_scale:
                h += w * weight_scale
            w -= h

        elementwise(self._engine.xp, update, *self._engine.flat_views(*self._storages))


def quiet() -> np.errstate:
    """Let a diverging net show inf and NaN in its loss, as Caffe does, and not as warnings."""
    return np.errstate(all="ignore")


def own_forward(node: LayerNode[Layer]) -> Work:
    """The layer's own forward over host arrays."""
    layer, bottoms, tops = node.layer, node.bottoms, node.tops
    written = [top.data_storage for top in tops]
    only_read = without([b.data_storage for b in bottoms], written)
    # Sources multiply no matrices, and BLAS takes longer to count its threads than some to read.
    threads = one_blas_thread if bottoms else nullcontext()

    def run() -> None:
        agreed = _bring_to_host(only_read)
        _take_from_holders(written)
        with quiet(), threads:
            layer.forward(bottoms, tops)
        for storage in agreed:
            storage.truth = Truth.BOTH

    return run


def own_backward(node: LayerNode[Layer]) -> Work:
    """The layer's own backward over host arrays."""
    layer, bottoms, tops, wanted = node.layer, node.bottoms, node.tops, node.propagate_down
    written = [b.diff_storage for b, want in zip(bottoms, wanted, strict=True) if want]
    read = [blob.data_storage for blob in (*bottoms, *tops)]
    read += without([top.diff_storage for top in tops], written)
    written += [blob.diff_storage for blob in layer.blobs]

    def run() -> None:
        agreed = _bring_to_host(read)
        _take_from_holders(written)
        with quiet(), one_blas_thread:
            layer.backward(tops, wanted, bottoms)
        for storage in agreed:
            storage.truth = Truth.BOTH

    return run


def forced_own_code(layer: Layer) -> bool:
    """Whether the prototxt says ``engine: CAFFE`` for this layer."""
    for field, message in layer.param.ListFields():
        fields = getattr(field.message_type, "fields_by_name", {})
        if field.name.endswith("_param") and "engine" in fields:
            caffe = fields["engine"].enum_type.values_by_name["CAFFE"].number
            if message.engine == caffe:
                return True
    return False


def without(storages: Sequence[Storage], others: Sequence[Storage]) -> list[Storage]:
    """Return those that are not among the others."""
    return [each for each in storages if not any(each is other for other in others)]


def _take_from_holders(storages: Sequence[Storage]) -> None:
    """Make the arrays that a layer keeps from one call to the next the place that counts."""
    for storage in storages:
        storage.take_from_holders()


def _bring_to_host(storages: Sequence[Storage]) -> list[Storage]:
    """Bring storages to the host; return those whose engine copy stays good.

    ``blob.data`` cannot know that a layer only reads it and gives up the engine's copy; a
    layer's contract (bottoms are not written) lets the caller restore it.
    """
    for storage in storages:
        storage.host_read()
    return [storage for storage in storages if storage.truth is Truth.BOTH]
