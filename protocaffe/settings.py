"""Settings of the whole program: the device, random numbers, the log, several processes."""

from __future__ import annotations

import logging
import operator
import warnings

import numpy as np

from protocaffe.errors import UsageError
from protocaffe.log import init_log as write_log
from protocaffe.log import log

_seeds: np.random.SeedSequence | None = None
_rank = 0

uses_gpu = False
"""Whether :func:`set_mode_gpu` was called last."""
gpu = 0
"""The number of the GPU that :func:`set_device` chose."""
gpu_precision = "float32"
"""What :func:`set_mode_gpu` has it compute with."""


def set_mode_cpu() -> None:
    """Run the nets and solvers that are made from now on, on the CPU; so it is at the start."""
    global uses_gpu
    uses_gpu = False


def set_mode_gpu(precision: str = "float32") -> None:
    """Run the nets and solvers that are made from now on, on the GPU.

    Where there is none that can be used, it warns, and they run on the CPU.

    Args:
        precision: what to compute with: ``float32``, ``tf32``, ``fp16`` or ``bf16``; see
            :func:`protocaffe.engines.get_engine`.

    Raises:
        UsageError: no such precision.
    """
    global uses_gpu, gpu_precision
    from protocaffe.engines import check_precision, get_engine

    check_precision(precision)
    try:
        get_engine("cuda", precision)
        uses_gpu, gpu_precision = True, precision
    except UsageError as reason:
        warnings.warn(
            f"{reason}; nets run on the CPU, with the same results",
            RuntimeWarning,
            stacklevel=2,
        )


def set_device(device: int) -> None:
    """Choose by number the GPU that :func:`set_mode_gpu` has nets run on; 0 at the start.

    Raises:
        UsageError: not a number of a GPU.
    """
    global gpu
    if operator.index(device) < 0:
        raise UsageError(f"set_device takes the number of a GPU, 0 or higher, not {device}")
    gpu = operator.index(device)


def set_random_seed(seed: int) -> None:
    """Make the nets and solvers that are built from now on the same in every run.

    It counts for those that are given no seed of their own (``Net(..., seed=1)``,
    ``random_seed: 1`` in a solver's prototxt).

    Raises:
        UsageError: the seed is negative.
    """
    global _seeds
    if operator.index(seed) < 0:
        raise UsageError(f"a random seed is 0 or higher, not {seed}")
    _seeds = np.random.SeedSequence(seed)


def next_seed() -> np.random.SeedSequence | None:
    """Return the seed of the next net, None for a random one."""
    return None if _seeds is None else _seeds.spawn(1)[0]


def init_log(level: int = 0, stderr: bool = True) -> None:
    """Write the log, in glog's format, to the standard error stream.

    Args:
        level: the lowest that is written: 0 information, 1 warnings, 2 errors.
        stderr: for pycaffe's scripts; there is no other place.
    """
    write_log(level=logging.INFO + 10 * level)


def set_logging_disabled(disabled: bool = True) -> None:
    """Switch the whole log off (or on again), whatever :func:`init_log` said."""
    log.disabled = disabled


def has_nccl() -> bool:
    """Whether several GPUs can train together; not in this version."""
    return False


def solver_count() -> int:
    """Return how many solvers train together: 1."""
    return 1


def set_solver_count(count: int) -> None:
    """Say how many solvers train together.

    Raises:
        UsageError: more than one.
    """
    if count != 1:
        raise UsageError(f"this version trains with one solver; set_solver_count({count})")


def solver_rank() -> int:
    """Return the place of this process among those that train together."""
    return _rank


def set_solver_rank(rank: int) -> None:
    """Say which of the processes that train together this is; only rank 0 writes the log."""
    global _rank
    _rank = rank
    set_logging_disabled(rank != 0)


def set_multiprocess(multiprocess: bool) -> None:
    """Say whether the solvers are in processes of their own; of no effect with one solver."""


class NCCL:
    """What pycaffe shares gradients between GPUs with.

    Raises:
        UsageError: always; this version trains in one process.
    """

    def __init__(self, *_: object) -> None:
        raise UsageError(NO_NCCL)

    @staticmethod
    def new_uid() -> str:
        """Refuse, as the class does."""
        raise UsageError(NO_NCCL)


NO_NCCL = (
    "this version has no NCCL: it trains on the CPU, in one process; "
    "use solver.solve() or solver.step(n) without it"
)
