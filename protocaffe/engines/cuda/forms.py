"""How numbers lie on the device: plain, or as tensor cores like them best.

*Plain* is float32 in Caffe's order, images, channels, rows, columns. Where a net's precision lets
tensor cores multiply, the activations between convolutions lie with the channels last, in the
precision's own type; parameters, their gradients and everything else stay plain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """What convolutions and matrix products compute with.

    Attributes:
        name: what ``--precision`` calls it.
        channels_last: whether activations lie with the channels last.
        is_half: whether they have 16 bits.
        diff_scale: what their gradients are multiplied by, as long as they have 16 bits. A power
            of two, so that nothing is rounded by it.
        capability: the least compute capability of a GPU whose tensor cores multiply such numbers.
    """

    name: str
    channels_last: bool = True
    is_half: bool = False
    diff_scale: float = 1.0
    capability: tuple[int, int] = (0, 0)


FLOAT32 = Precision("float32", channels_last=False)

PRECISIONS = {
    each.name: each
    for each in (
        FLOAT32,
        Precision("tf32", capability=(8, 0)),
        # fp16 reaches from 2^-24 to 65504. Gradients are rather below that than above: with the
        # factor from 2^-31 to 511.
        Precision("fp16", is_half=True, diff_scale=128.0, capability=(7, 0)),
        Precision("bf16", is_half=True, capability=(8, 0)),
    )
}


@dataclass(frozen=True)
class ChannelsLast:
    """A form with the channels last, in the engine's precision.

    Attributes:
        images: how many.
        channels: of each.
        area: numbers per channel.
    """

    images: int
    channels: int
    area: int

    @classmethod
    def of(cls, shape: Sequence[int]) -> ChannelsLast:
        """Return the form of a blob with images on axis 0 and channels on axis 1."""
        return cls(shape[0], shape[1], math.prod(shape[2:]))

    @property
    def count(self) -> int:
        """How many numbers."""
        return self.images * self.channels * self.area

    @property
    def is_in_order(self) -> bool:
        """Whether the order is Caffe's, too."""
        return 1 in (self.channels, self.area)


Form = ChannelsLast | None
"""None is plain."""
