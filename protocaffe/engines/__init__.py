"""What makes nets fast: engines run a net's layers over memory they own.

``numpy`` runs every layer as written, ``onednn`` has kernels for the hot layers.
"""

from __future__ import annotations

from functools import cache

from protocaffe.engines.base import Engine, LayerNode, Plan
from protocaffe.errors import UsageError, did_you_mean
from protocaffe.log import log

__all__ = ["Engine", "LayerNode", "Plan", "get_engine"]

ENGINES = ("numpy", "onednn")


def get_engine(name: str | Engine | None = None) -> Engine:
    """Return an engine by name; without one, ``onednn``, or ``numpy`` where oneDNN is missing.

    Raises:
        UsageError: no such engine, or it was asked for by name and cannot run here.
    """
    if isinstance(name, Engine):
        return name
    if name is None:
        return _default_engine()
    if name not in ENGINES:
        raise UsageError(
            f"unknown engine '{name}'{did_you_mean(name, ENGINES)} (engines: {', '.join(ENGINES)})"
        )
    return _numpy_engine() if name == "numpy" else _onednn_engine()


@cache
def _numpy_engine() -> Engine:
    return Engine()


@cache
def _onednn_engine() -> Engine:
    from protocaffe.engines.onednn.engine import OneDnnEngine
    from protocaffe.engines.onednn.library import UnavailableError

    try:
        return OneDnnEngine()
    except UnavailableError as reason:
        raise UsageError(f"the onednn engine cannot run here: {reason}") from None


@cache
def _default_engine() -> Engine:
    try:
        return _onednn_engine()
    except UsageError as reason:
        log.warning("%s; using the numpy engine, slower", reason)
        return _numpy_engine()
