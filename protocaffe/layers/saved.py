"""Keeping a bottom's values for backward when the layer overwrites them in place."""

from __future__ import annotations

from protocaffe.blob import Array, Blob


class SavedInput:
    """The bottom as it was before forward.

    That is the bottom itself, unless the layer works in place; then it is a copy.
    """

    def __init__(self) -> None:
        self._copy: Array | None = None

    def save(self, bottom: Blob, top: Blob) -> Array:
        """Return the bottom's data; call before the top is written."""
        data = bottom.data
        if top is not bottom:
            self._copy = None
        elif self._copy is not None and self._copy.shape == data.shape:
            self._copy[...] = data
        else:
            self._copy = data.copy()
        return data

    def load(self, bottom: Blob) -> Array:
        """Return the data that the last ``save`` saw."""
        return bottom.data if self._copy is None else self._copy
