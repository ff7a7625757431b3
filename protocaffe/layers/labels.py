"""Labels and indices: whole numbers that arrive as floats."""

from __future__ import annotations

from typing import Any

import numpy as np

from protocaffe.blob import Array
from protocaffe.layers.base import Layer


def bottom_name(layer: Layer, index: int) -> str:
    """Return a bottom's name for messages."""
    names = layer.written_bottoms
    return f"'{names[index]}'" if index < len(names) else f"bottom {index}"


def whole_numbers(
    layer: Layer,
    values: Array,
    limit: int,
    *,
    bottom_index: int = 1,
    what: str = "label",
    ignore: int | None = None,
) -> tuple[Array, Array]:
    """Cut values to whole numbers and check that they are 0 .. limit - 1.

    Args:
        layer: names itself in the error.
        values: floats; fractions are cut off as C does.
        limit: the number of legal values.
        bottom_index: which bottom the values are.
        what: what the values are called.
        ignore: a value that is let through, whatever the limit.

    Returns:
        The whole numbers (0 where ignored), and a mask of those not ignored.

    Raises:
        LayerError: a value is out of range or no number; the message says which and where.
    """
    xp = layer.xp
    whole = xp.trunc(values)
    counted = whole != ignore if ignore is not None else xp.ones(values.shape, bool)
    wrong = counted & ~((whole >= 0) & (whole < limit))
    if wrong.any():
        flat = int(wrong.ravel().argmax())
        value = float(values.ravel()[flat])
        index = [int(each) for each in np.unravel_index(flat, values.shape)]
        where = ", ".join(str(each) for each in index)
        raise layer.error(
            f"{what} {value:g} of sample {index[0] if index else 0} is out of range "
            f"(blob {bottom_name(layer, bottom_index)} at [{where}]); "
            f"legal are whole numbers from 0 to {limit - 1}"
            + (f", and {ignore} to ignore" if ignore is not None else "")
        )
    return xp.where(counted, whole, 0).astype(xp.int64), counted


def add_rows(xp: Any, sums: Array, index: Array, rows: Array) -> None:
    """Add rows[i] to sums[index[i]] for every i, also where several go to one place.

    The first rows of all places are added at once, then the second ones, and so on: ``add.at``
    goes number by number.
    """
    order = xp.argsort(index, kind="stable")
    places = index[order]
    turn = xp.arange(len(order)) - xp.searchsorted(places, places)
    order = order[xp.argsort(turn, kind="stable")]
    start = 0
    for count in xp.bincount(turn).tolist():
        chosen = order[start : start + count]
        sums[index[chosen]] += rows[chosen]
        start += count
