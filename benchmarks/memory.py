"""Compare how much memory training takes in protocaffe and in PyTorch.

``python -m benchmarks.memory resnet50`` prints, for each net, the peak resident memory of a
process that loads the same weights and batch and trains three steps; the libraries themselves
count. Every variant is a process of its own. Without names all nets are compared. With
``--device cuda`` it is the GPU's memory, which should serve nothing else then.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from itertools import product

from benchmarks.compare_torch import (
    LAYOUTS,
    BenchmarkError,
    add_device_flags,
    available_cores,
    batch_size,
    fill_in_defaults,
    lacks_torch,
    positive,
    started,
    torch_started,
)
from benchmarks.nets import NETS

STEPS = 3


def peaks(net: str, precision: str, options: argparse.Namespace) -> dict[str, float]:
    """Return the peak memory in MiB of protocaffe and of every layout of PyTorch."""
    threads, engine = options.threads, "cuda" if options.device == "cuda" else None
    with tempfile.TemporaryDirectory(prefix="memory") as folder:
        with started("benchmarks.protocaffe_worker", [folder], threads) as preparing:
            preparing.ask("prepare", net=net, batch=batch_size(net, options), image=None)
        with started("benchmarks.protocaffe_worker", [folder], threads) as worker:
            worker.ask("use", engine=engine, precision=precision)
            result = {"protocaffe": worker.ask("peak_memory", steps=STEPS)}
        for layout in LAYOUTS:
            with torch_started(folder, precision, options) as worker:
                result[layout] = worker.ask("peak_memory", layout=layout, steps=STEPS)
    return result


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("nets", nargs="*", choices=[[], *NETS], metavar="NET")
    add_device_flags(parser)
    parser.add_argument("--threads", type=positive, default=available_cores())
    options = parser.parse_args(arguments)
    fill_in_defaults(options, parser)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare every net asked for."""
    options = parse(arguments)
    if lacks_torch(options):
        return 1
    print(f"{'peak MiB':24} {'protocaffe':>10} {'PyTorch':>10} {'protocaffe / PyTorch':>22}")
    failed = False
    for net, precision in product(options.nets, options.precision):
        try:
            ours, *theirs = peaks(net, precision, options).values()
        except BenchmarkError as error:
            print(f"{net}, {precision}: {error}", file=sys.stderr)
            failed = True
            continue
        title, best = f"{net}, {precision}", min(theirs)
        print(f"{title:24} {ours:10.0f} {best:10.0f} {ours / best:21.2f}x", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
