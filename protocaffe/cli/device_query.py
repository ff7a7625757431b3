"""Print what this machine can compute with: processor, memory, engines and GPUs."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from protocaffe.cli.flags import Flag
from protocaffe.engines.cuda.forms import PRECISIONS
from protocaffe.engines.cuda.library import UnavailableError as GpuUnavailableError
from protocaffe.engines.cuda.library import capability, load_cudnn, load_cupy
from protocaffe.engines.onednn.library import UnavailableError, load, version

FLAGS: list[Flag] = []

INSTRUCTION_SETS = (
    *("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16"),
    *("avx512_fp16", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8"),
)
"""Those that make a difference to the engines, as /proc/cpuinfo spells them."""


def run(flags: Namespace) -> int:
    """Print one row per fact."""
    rows = [*_processor(), *_memory(), ("engine onednn", _onednn()), _numpy(), *_gpus()]
    for name, fact in rows:
        print(f"{name + ':':<18}{fact}")
    return 0


def _processor() -> Iterator[tuple[str, str]]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    pairs = [(key.strip(), value.strip()) for key, _, value in (x.partition(":") for x in lines)]
    facts = dict(reversed(pairs))  # of each key, the first processor's value
    usable = len(os.sched_getaffinity(0))
    flags = facts.get("flags", "").split()
    yield "processor", facts.get("model name", "unknown")
    yield "cores", f"{usable} usable of {os.cpu_count()}"
    yield "instruction sets", " ".join(name for name in INSTRUCTION_SETS if name in flags)


def _memory() -> Iterator[tuple[str, str]]:
    lines = Path("/proc/meminfo").read_text().splitlines()
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    total, free = (kib[name] / 2**20 for name in ("MemTotal", "MemAvailable"))
    yield "memory", f"{total:.1f} GiB, {free:.1f} GiB free"


def _onednn() -> str:
    try:
        library = load()
    except UnavailableError as reason:
        return f"not available: {reason}"
    return f"oneDNN {'.'.join(map(str, version(library)))} ({library.path})"


def _numpy() -> tuple[str, str]:
    return "engine numpy", f"NumPy {np.__version__}"


def _gpus() -> Iterator[tuple[str, str]]:
    try:
        cupy = load_cupy(0)
    except GpuUnavailableError as reason:
        yield "engine cuda", f"not available: {reason}"
        return
    yield "engine cuda", f"CuPy {cupy.__version__}, {_cudnn()}"
    for index in range(cupy.cuda.runtime.getDeviceCount()):
        properties = cupy.cuda.runtime.getDeviceProperties(index)
        size = properties["totalGlobalMem"] / 2**30
        there = capability(cupy, index)
        fitting = " ".join(each.name for each in PRECISIONS.values() if each.capability <= there)
        yield (
            f"GPU {index}",
            f"{properties['name'].decode()}, {size:.1f} GiB, compute capability "
            f"{'.'.join(map(str, there))}: {fitting}",
        )


def _cudnn() -> str:
    try:
        return f"cuDNN {load_cudnn().backend_version()}"
    except GpuUnavailableError as reason:
        return f"not available: {reason}"
