"""What makes nets fast: engines run a net's layers over memory they own.

``numpy`` runs every layer as written, ``onednn`` has kernels for the hot layers, ``cuda`` runs
them on an NVIDIA GPU.
"""

from __future__ import annotations

from functools import cache

from protocaffe import settings
from protocaffe.engines.base import Engine, LayerNode, Loss, Plan, WholeUpdate
from protocaffe.errors import UsageError, did_you_mean
from protocaffe.log import log

__all__ = ["Engine", "LayerNode", "Loss", "Plan", "WholeUpdate", "get_engine"]

ENGINES = ("numpy", "onednn", "cuda")

PRECISIONS = ("float32", "tf32", "fp16", "bf16")
"""What activations and their gradients can be; learned weights are float32 in all of them."""


def get_engine(
    name: str | Engine | None = None,
    precision: str | None = None,
    gpu: int | None = None,
    graphs: bool = True,
) -> Engine:
    """Return an engine by name; without one, the GPU's after :func:`protocaffe.set_mode_gpu`.

    Else ``onednn``, or ``numpy`` where oneDNN is missing.

    Args:
        name: ``onednn``, ``numpy``, ``cuda``, None, or an engine, which is returned as it is.
        precision: what convolutions and inner products multiply, and what activations and their
            gradients are stored as. ``float32``: 24 bits of precision in all. ``bf16``: 8 bits,
            range as float32's, on processors with instructions for it and on GPUs. The cuda
            engine also has ``fp16``: 11 bits, a smaller range, for which it scales gradients; and
            ``tf32``: float32 numbers, rounded to 11 bits where they are multiplied. Sums and
            learned weights are float32 in all of them. Where it cannot be, one line is logged and
            it is ``float32``. None: what :func:`protocaffe.set_mode_gpu` was given, else float32.
        gpu: the number of the cuda engine's GPU; the one of :func:`protocaffe.set_device`, or 0.
        graphs: whether the cuda engine may launch passes as CUDA graphs.

    Raises:
        UsageError: no such engine or precision, or the engine was asked for by name and cannot
            run here.
    """
    if isinstance(name, Engine):
        return name
    _check("engine", name or "onednn", ENGINES)
    if name is None and settings.uses_gpu:
        name, precision = "cuda", precision or settings.gpu_precision
    precision = precision or "float32"
    check_precision(precision)
    if name == "cuda":
        return _cuda(settings.gpu if gpu is None else gpu, precision, graphs)
    engine = _default() if name is None else _by_name(name)
    if precision in ("tf32", "fp16"):
        log.warning("precision %s is the cuda engine's; computing with float32", precision)
    return _with_bf16(engine) if precision == "bf16" else engine


@cache
def _cuda(number: int, precision: str, graphs: bool) -> Engine:
    from protocaffe.engines.cuda.engine import CudaEngine
    from protocaffe.engines.cuda.forms import PRECISIONS as KNOWN
    from protocaffe.engines.cuda.library import UnavailableError

    try:
        return CudaEngine.open(number, graphs, KNOWN[precision])
    except UnavailableError as reason:
        raise UsageError(f"the cuda engine cannot run here: {reason}") from None


def check_precision(name: str) -> None:
    """Raise a UsageError if there is no such precision."""
    _check("precision", name, PRECISIONS)


def _check(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise UsageError(
            f"unknown {what} '{name}'{did_you_mean(name, known)} ({what}s: {', '.join(known)})"
        )


@cache
def _by_name(name: str) -> Engine:
    if name == "numpy":
        return Engine()
    from protocaffe.engines.onednn.engine import OneDnnEngine
    from protocaffe.engines.onednn.library import UnavailableError

    try:
        return OneDnnEngine()
    except UnavailableError as reason:
        raise UsageError(f"the onednn engine cannot run here: {reason}") from None


@cache
def _default() -> Engine:
    try:
        return _by_name("onednn")
    except UsageError as reason:
        log.warning("%s; using the numpy engine, slower", reason)
        return _by_name("numpy")


@cache
def _with_bf16(engine: Engine) -> Engine:
    from protocaffe.engines.onednn.engine import OneDnnEngine
    from protocaffe.engines.onednn.library import BF16

    if not isinstance(engine, OneDnnEngine):
        log.warning("the %s engine computes with float32 only, and does", engine.name)
    elif not engine.has_bf16:
        log.warning("this processor has no bfloat16 instructions: computing with float32")
    else:
        return OneDnnEngine(BF16)
    return engine
