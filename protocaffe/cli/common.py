"""Flags and checks that several commands share."""

from __future__ import annotations

import logging
from argparse import Namespace
from typing import TYPE_CHECKING

from protocaffe.cli.flags import Flag
from protocaffe.engines import PRECISIONS, Engine, get_engine
from protocaffe.errors import UsageError
from protocaffe.log import init_log, log

if TYPE_CHECKING:
    from protocaffe.net import Net

GPU = Flag("gpu", "number of the GPU to run on; the same as --engine=cuda with that GPU")
LEVEL = Flag("level", "the net's level, for include and exclude rules", default=0)
STAGE = Flag("stage", "the net's stages, separated by commas, for include and exclude rules")
PHASE = Flag("phase", "the net's phase", default="TEST", choices=("TRAIN", "TEST"))
SHAPE = Flag(
    "shape",
    "shapes of inputs or data, instead of those of the file or database, such as "
    "data:1,3,224,224 (several separated by ;)",
)
ITERATIONS = Flag("iterations", "how many batches to run", default=50, at_least=1)
ENGINE = Flag(
    "engine",
    "what computes: onednn (fast), numpy (each layer's own code), or cuda (an NVIDIA GPU)",
    choices=("onednn", "numpy", "cuda"),
)
GRAPH = Flag("graph", "with a GPU, launch whole passes as CUDA graphs", default=True)


PRECISION = Flag(
    "precision",
    "what is multiplied: float32 numbers, bf16 (8 bits of precision; about twice as fast where the "
    "processor has such numbers, more on a GPU), or on a GPU fp16 (11 bits) or tf32 (float32 "
    "numbers rounded to 11 bits); sums and learned weights are float32 in all",
    default="float32",
    choices=PRECISIONS,
)
COMPUTING = (ENGINE, PRECISION, GPU, GRAPH)
"""The flags that :func:`chosen_engine` reads."""


def chosen_engine(flags: Namespace) -> Engine:
    """Return the engine the flags ask for, and log what computes.

    Raises:
        UsageError: ``--gpu`` is no number of a GPU, or the engine cannot run here.
    """
    if flags.gpu or flags.engine == "cuda":
        engine = get_engine("cuda", flags.precision, gpu=_gpu(flags), graphs=flags.graph)
        log.info("Use GPU %d.", _gpu(flags))
        return engine
    log.info("Use CPU.")
    return get_engine(flags.engine or None, flags.precision)


def _gpu(flags: Namespace) -> int:
    if flags.engine not in ("", "cuda"):
        raise UsageError(f"--gpu={flags.gpu} needs the cuda engine, not --engine={flags.engine}")
    if flags.gpu and not flags.gpu.isdecimal():
        raise UsageError(f"--gpu={flags.gpu}: expected the number of one GPU, such as 0")
    return int(flags.gpu or 0)


def stages(flag: str) -> list[str]:
    """Split ``--stage`` as Caffe does: without the flag there is one stage with no name."""
    return flag.split(",")


def shapes(flag: str) -> dict[str, tuple[int, ...]]:
    """Read ``--shape``.

    Raises:
        UsageError: it is not like ``data:1,3,224,224;label:1``.
    """
    result = {}
    for part in filter(None, flag.split(";")):
        name, _, extents = part.rpartition(":")
        try:
            result[name.strip()] = tuple(int(extent) for extent in extents.split(","))
        except ValueError:
            name = ""
        if not name or min(result[name.strip()]) < 1:
            raise UsageError(
                f"--shape: expected a blob and its extents, such as data:1,3,224,224, got '{part}'"
            )
    return result


def warn_of_inputs(net: Net) -> None:
    """Say in the log that a net runs on zeros, if it has nothing that fills its inputs."""
    if net.inputs:
        log.warning(
            "The net has no data of its own: its inputs (%s) are all 0 here. Give a net with a "
            "data layer, such as a train_val.prototxt.",
            ", ".join(net.inputs),
        )


def log_warnings_only() -> None:
    """Keep the log of a net's making out of what a command prints about the net."""
    init_log(level=logging.WARNING)


def whole_numbers(text: str, flag: str) -> tuple[int, ...]:
    """Return the numbers of a flag such as ``--channel_swap=2,1,0``.

    Raises:
        UsageError: it has something else.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"--{flag}={text}: expected whole numbers with commas between them"
        ) from None
