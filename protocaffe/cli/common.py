"""Flags and checks that train, test and time share."""

from __future__ import annotations

from protocaffe.cli.flags import Flag
from protocaffe.errors import ProtocaffeError
from protocaffe.log import log

GPU = Flag("gpu", "GPU to run on; this version has the CPU engines only")
LEVEL = Flag("level", "the net's level, for include and exclude rules", default=0)
STAGE = Flag("stage", "the net's stages, separated by commas, for include and exclude rules")
ITERATIONS = Flag("iterations", "how many batches to run", default=50, at_least=1)
ENGINE = Flag(
    "engine",
    "what computes: onednn (fast) or numpy (each layer's own code)",
    choices=("onednn", "numpy"),
)


def use_cpu(gpu: str) -> None:
    """Say that the CPU is used, or refuse a GPU.

    Raises:
        ProtocaffeError: ``--gpu`` names one.
    """
    if gpu:
        raise ProtocaffeError(
            f"--gpu={gpu}: this version has no GPU engine, only the CPU engines (onednn, numpy); "
            f"leave --gpu out"
        )
    log.info("Use CPU.")


def stages(flag: str) -> list[str]:
    """Split ``--stage`` as Caffe does: without the flag there is one stage with no name."""
    return flag.split(",")
