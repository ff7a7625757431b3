"""Compare how much memory training takes in protocaffe and in PyTorch.

``python -m benchmarks.memory resnet50`` prints, for each net, the peak resident memory of a
process that loads the same weights and batch and trains three steps; the libraries themselves
count. Every variant is a process of its own. Without names all nets are compared.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec

from benchmarks.compare_torch import LAYOUTS, BenchmarkError, available_cores, positive, started
from benchmarks.nets import NETS

STEPS = 3


def peaks(net: str, threads: int, batch: int | None) -> dict[str, float]:
    """Return the peak memory in MiB of protocaffe and of every layout of PyTorch."""
    with tempfile.TemporaryDirectory(prefix="memory") as folder:
        with started("benchmarks.protocaffe_worker", [folder], threads) as preparing:
            preparing.ask("prepare", net=net, batch=batch, image=None, engine=None)
        with started("benchmarks.protocaffe_worker", [folder], threads) as worker:
            result = {"protocaffe": worker.ask("peak_memory", steps=STEPS)}
        for layout in LAYOUTS:
            with started("benchmarks.torch_worker", [folder, str(threads)], threads) as worker:
                result[layout] = worker.ask("peak_memory", layout=layout, steps=STEPS)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare every net asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("nets", nargs="*", choices=[[], *NETS], metavar="NET")
    parser.add_argument("--batch", type=positive, help="batch size (default: the net's)")
    parser.add_argument("--threads", type=positive, default=available_cores())
    options = parser.parse_args(arguments)
    if find_spec("torch") is None:
        print("PyTorch is not installed; get it with: pip install -e '.[bench]'", file=sys.stderr)
        return 1
    print(f"{'peak MiB':15} {'protocaffe':>10} {'PyTorch':>10} {'protocaffe / PyTorch':>22}")
    for net in options.nets or NETS:
        try:
            ours, *theirs = peaks(net, options.threads, options.batch).values()
        except BenchmarkError as error:
            print(f"{net}: {error}", file=sys.stderr)
            return 1
        print(f"{net:15} {ours:10.0f} {min(theirs):10.0f} {ours / min(theirs):21.2f}x", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
