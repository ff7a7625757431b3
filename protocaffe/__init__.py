"""Caffe reborn for Python: train deep networks from two text files."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protocaffe.layers.base import Layer

__all__ = ["Layer"]


def __getattr__(name: str) -> object:
    """Import what this package offers when somebody asks for it, not before."""
    if name == "Layer":
        from protocaffe.layers.base import Layer

        return Layer
    raise AttributeError(f"module 'protocaffe' has no attribute '{name}'")
