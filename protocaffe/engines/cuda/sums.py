"""Sums over each channel's numbers, in two stages and always in the same order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from protocaffe.engines.cuda.device import BLOCK, Device
from protocaffe.engines.cuda.forms import Form

BLOCKS = 1056
"""At most, 8 for each of an H100's 132 multiprocessors; of channels alone there may be more."""

AHEAD = 4
"""How many groups of numbers a thread reads before it looks at the first, as in channels.cu."""

LANES = 32
"""Threads for neighbouring channels, at most: a warp then reads one piece of memory."""

FEWEST_SLICES = 4
"""Fewer than that are not worth a second kernel."""


@dataclass(frozen=True)
class Slicing:
    """How channels' numbers are divided among blocks; see kernels/channels.cu.

    Attributes:
        images, channels, area: the extents.
        lanes: threads for neighbouring channels; 0 where those are in Caffe's order.
        width: how many numbers a thread reads at once.
        slices: blocks that have a part of the same channel.
        share: groups of numbers (with channels last: pixels) in a slice.
        blocks: how many there are in all.
    """

    images: int
    channels: int
    area: int
    lanes: int
    width: int
    slices: int
    share: int
    blocks: int

    @property
    def extents(self) -> tuple[int, ...]:
        """What a kernel takes."""
        shape = (self.images, self.channels, self.area)
        return (*shape, self.lanes, self.width, self.slices, self.share)

    @property
    def numbers(self) -> int:
        """How many numbers a channel has in a slice that is full."""
        return self.share * (1 if self.lanes else self.width)


def slice_channels(shape: Sequence[int], channels_last: bool, itemsize: int) -> Slicing:
    """Divide the work of a sum over channels.

    Args:
        shape: images, channels and any further axes.
        channels_last: whether the channels lie last.
        itemsize: bytes of a number.
    """
    images, channels, area = shape[0], shape[1], math.prod(shape[2:])
    last = channels_last or area == 1  # then both orders are the same
    group = 16 // itemsize
    width = group if (channels if last else area) % group == 0 else 1
    if last:
        across = channels // width
        tiles = -(-across // LANES)
        lanes = -(-across // tiles)
        units, together = images * area, BLOCK // lanes
    else:
        tiles, lanes = channels, 0
        units, together = images * area // width, BLOCK
    slices = min(BLOCKS // tiles, units // (AHEAD * together))
    share = units if slices < FEWEST_SLICES else -(-units // slices)
    slices = -(-units // share)
    return Slicing(images, channels, area, lanes, width, slices, share, tiles * slices)


def add_channel_sums(
    device: Device, array: Any, shape: Sequence[int], form: Form, out: Any, factor: float = 1.0
) -> None:
    """Add ``factor`` times the sum of each channel's numbers.

    Args:
        device: the GPU.
        array: the numbers, flat, of any type that activations have.
        shape: images, channels and any further axes.
        form: how the numbers lie.
        out: what to add to, one float32 for each channel.
        factor: what the sums are multiplied by.
    """
    add_sums(device, "channel_sums", (array,), shape, form, (out, factor))


def rectify_and_add_sums(
    device: Device,
    y: Any,
    dy: Any,
    slope: float,
    shape: Sequence[int],
    form: Form,
    out: Any,
    factor: float = 1.0,
) -> None:
    """Pass a gradient back through a ReLU, in place, and add the sum of each channel's numbers.

    Args:
        device: the GPU.
        y: the ReLU's output, flat, of any type that activations have.
        dy: the gradient, like it; in the end that of the ReLU's input.
        slope: the ReLU's for numbers below 0.
        shape, form, out, factor: see :func:`add_channel_sums`.
    """
    add_sums(device, "rectified_sums", (y, dy, slope), shape, form, (out, factor))


def add_sums(
    device: Device,
    kernel: str,
    arguments: tuple[Any, ...],
    shape: Sequence[int],
    form: Form,
    sums: tuple[Any, float],
) -> None:
    """Run a kernel that makes sums of slices, and add those up.

    Args:
        device: the GPU.
        kernel: its name; it has the arguments of ``channel_sums`` but for the array.
        arguments: what it has instead.
        shape, form: see :func:`add_channel_sums`.
        sums: what to add to, and what the sums are multiplied by.
    """
    out, factor = sums
    slicing = slice_channels(shape, form is not None, arguments[0].dtype.itemsize)
    if slicing.slices == 1:
        device.run_blocks(kernel, slicing.blocks, *arguments, out, factor, True, *slicing.extents)
        return
    parts = device.xp.empty(slicing.channels * slicing.slices, out.dtype)
    device.run_blocks(kernel, slicing.blocks, *arguments, parts, 1.0, False, *slicing.extents)
    merged = merge_slices(slicing)
    device.run_blocks("channel_sums", merged.blocks, parts, out, factor, True, *merged.extents)


def merge_slices(slicing: Slicing) -> Slicing:
    """Return how the parts of a sum are added up: one block per channel."""
    channels, slices = slicing.channels, slicing.slices
    return Slicing(1, channels, slices, 0, 1, 1, slices, channels)
