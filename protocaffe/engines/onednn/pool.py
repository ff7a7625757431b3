"""One memory for all activations and gradients of a net that are not needed at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from protocaffe.blob import ALIGNMENT, Array, aligned_empty


class Buffer:
    """Floats that arrays in one or several layouts share.

    Memory is allocated when somebody asks for the values, or given by a :class:`Pool` before.

    Args:
        size: how many floats.
        values: flat memory to use.
    """

    def __init__(self, size: int, values: Array | None = None) -> None:
        self.size = size
        self._is_pooled = False
        self._whole: Buffer | None = None
        self._values = values
        self._listeners: list[Callable[[Array], None]] = []

    @property
    def has_memory(self) -> bool:
        """Whether it is settled where the values are."""
        return self._values is not None

    @property
    def whole(self) -> Buffer:
        """The buffer that this one is a part of, else itself."""
        return self if self._whole is None else self._whole.whole

    @property
    def is_pooled(self) -> bool:
        """Whether a pool has placed it."""
        return self.whole._is_pooled

    def become_part(self, whole: Buffer, start: int) -> None:
        """Lie in another buffer from now on, as its floats from ``start`` on."""
        self._whole = whole
        whole.when_placed(lambda values: self.place(values[start : start + self.size]))

    @property
    def values(self) -> Array:
        """The flat values; those of a pool are only there while the plan needs them."""
        if self._values is None:
            self.whole.place(aligned_empty(self.whole.size, np.float32))
        assert self._values is not None
        return self._values

    def place(self, values: Array, pooled: bool = False) -> None:
        """Settle where the values are, and tell everybody who asked to know."""
        self._values, self._is_pooled = values, pooled
        for listener in self._listeners:
            listener(values)
        self._listeners.clear()

    def when_placed(self, listener: Callable[[Array], None]) -> None:
        """Call with the values when it is known where they are, which may be now."""
        if self._values is None:
            self._listeners.append(listener)
        else:
            listener(self._values)


ENOUGH = 2**23
"""What the last cache of a processor holds, in floats (32 MiB).

Buffers that fit in are a tenth faster apart: a core that writes where another one has just written
something else has to fetch every cache line from there first.
"""


@dataclass
class Life:
    """When a buffer is needed, in steps of the plan, and where its place begins."""

    buffer: Buffer
    first: int
    last: int
    start: int = 0

    def overlaps(self, other: Life) -> bool:
        """Whether both are needed at some time."""
        return self.first <= other.last and other.first <= self.last


@dataclass
class Pool:
    """Places buffers so that those needed at different times share memory.

    Attributes:
        enough: up to how many floats nothing is shared.
        size: how many floats all buffers together take.
        unshared: how many they would take if each had its own memory.
    """

    enough: int = 0
    lives: dict[int, Life] = field(default_factory=dict)
    size: int = 0
    unshared: int = 0

    def use(self, buffer: Buffer, time: int) -> None:
        """Note that a buffer is needed at a time; those that have memory are left alone."""
        buffer = buffer.whole
        if buffer.has_memory:
            return
        life = self.lives.setdefault(id(buffer), Life(buffer, time, time))
        life.first, life.last = min(life.first, time), max(life.last, time)

    def place(self) -> None:
        """Give every buffer its part of one memory: the largest first, each as low as it fits.

        The rule is greedy and near the optimum for nets: the plan of TensorFlow Lite
        ("Efficient Memory Management for Deep Neural Net Inference", 2020) uses it as well.
        """
        placed: list[Life] = []
        self.unshared = sum(_rounded(life.buffer.size) for life in self.lives.values())
        ample = self.unshared <= self.enough
        for life in sorted(self.lives.values(), key=lambda life: -life.buffer.size):
            neighbours = [other for other in placed if ample or other.overlaps(life)]
            life.start = _lowest_gap(neighbours, _rounded(life.buffer.size))
            placed.append(life)
        self.size = max((life.start + _rounded(life.buffer.size) for life in placed), default=0)
        memory = aligned_empty(self.size, np.float32)
        for life in placed:
            life.buffer.place(memory[life.start : life.start + life.buffer.size], pooled=True)


def _lowest_gap(neighbours: Iterable[Life], size: int) -> int:
    start = 0
    for other in sorted(neighbours, key=lambda life: life.start):
        if start + size <= other.start:
            break
        start = max(start, other.start + _rounded(other.buffer.size))
    return start


def _rounded(size: int) -> int:
    """Whole cache lines, so that every buffer is aligned."""
    line = ALIGNMENT // 4
    return -(-size // line) * line
