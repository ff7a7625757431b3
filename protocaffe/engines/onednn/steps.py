"""Pieces of work between storages: one by one, or many of them in a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from protocaffe.blob import Storage
from protocaffe.engines.base import Work
from protocaffe.engines.onednn.primitives import OneDnnError, Primitive


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
            storage.native_overwrite()


class Segment:
    """Steps without a layer's own code between them, with as little Python as can be.

    Between two primitives the caches are full of numbers, and every line of Python takes several
    times as long as elsewhere. So what the steps read from outside is brought before the first.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        written: dict[int, Storage] = {}
        read: dict[int, Storage] = {}
        for step in steps:
            read.update((id(each), each) for each in step.reads if id(each) not in written)
            written.update((id(each), each) for each in step.writes)
        self._read, self._written = list(read.values()), list(written.values())
        self._steps = steps  # which own what the calls use
        self._calls = [
            step.run.call if isinstance(step.run, Primitive) else step.run for step in steps
        ]

    def __call__(self) -> None:
        """Run all steps."""
        for storage in self._read:
            storage.native_read()
        for storage in self._written:
            storage.native_overwrite()
        for call in self._calls:
            if call():
                raise OneDnnError("dnnl_primitive_execute failed")


def straightened(works: Iterable[Work]) -> list[Work]:
    """Return the same work with consecutive steps joined."""
    result: list[Work] = []
    steps: list[Step] = []
    for work in works:
        if isinstance(work, Step):
            steps.append(work)
        else:
            result += [Segment(steps), work]
            steps = []
    return [*result, Segment(steps)]
