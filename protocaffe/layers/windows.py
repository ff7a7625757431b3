"""Where a sliding window meets its image, one axis and one kernel offset at a time.

Convolution, pooling and local normalisation all visit, for a fixed offset within the window,
every position of the output at once. That is one strided slice of the image and one slice of
the output, so the Python loop runs over the kernel only.
"""

from __future__ import annotations

from typing import NamedTuple


class Offset(NamedTuple):
    """One offset within the window: ``grid`` and ``image`` are slices of equal length."""

    element: int
    """Which element of the kernel."""
    grid: slice
    """The output positions whose window element lies inside the image."""
    image: slice
    """The image positions that these elements fall on."""


def window_offsets(
    image: int, grid: int, kernel: int, stride: int = 1, pad: int = 0, dilation: int = 1
) -> list[Offset]:
    """Return the offsets of a window along one axis, without those that meet only padding.

    Output position p and kernel element k fall on image position
    p * stride + k * dilation - pad.

    Args:
        image: extent of the image.
        grid: extent of the output.
        kernel: extent of the window.
        stride: steps between windows.
        pad: positions added before the image.
        dilation: steps between elements of one window.
    """
    offsets = []
    for element in range(kernel):
        start = element * dilation - pad
        first = max(0, -(start // stride))
        last = min(grid - 1, (image - 1 - start) // stride)
        if first <= last:
            begin, end = first * stride + start, last * stride + start
            offsets.append(Offset(element, slice(first, last + 1), slice(begin, end + 1, stride)))
    return offsets
