"""Compare fine-tuning with training from random weights, on few images of MNIST.

``python -m benchmarks.finetune MNIST`` takes the digits 0, 2, 4, 6 and 8 of a folder with
``train/<digit>/*.png`` and ``test/<digit>/*.png``, and runs ``protocaffe finetune`` with the
weights of ``cifar10_quick`` and with random ones: equal images, iterations and settings, each at
the best of several learning rates. It prints the mean accuracy over the seeds, and the range.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

DIGITS = "02468"
TEST_IMAGES = 200
"""Of every digit; the same for every run."""
WAYS = ("fine-tuned", "from scratch")
RATES = (0.0001, 0.0003, 0.001, 0.003)


def make_subset(source: Path, folder: Path, images: int, seed: int) -> None:
    """Link some training images of every digit, chosen by the seed, and the first test images."""
    for digit in DIGITS:
        train = sorted((source / "train" / digit).iterdir())
        test = sorted((source / "test" / digit).iterdir())[:TEST_IMAGES]
        chosen = random.Random(seed).sample(train, images)
        for part, paths in (("train", chosen), ("test", test)):
            place = folder / part / digit
            place.mkdir(parents=True)
            for path in paths:
                os.symlink(path.resolve(), place / path.name)


def accuracy(data: Path, out: Path, way: str, rate: float, iterations: int, seed: int) -> float:
    """Run the command once and return the accuracy that it prints, in per cent."""
    words = ["--model=cifar10_quick", f"--data={data}", f"--out={out}", "--force"]
    words += [f"--base_lr={rate}", f"--iterations={iterations}", f"--seed={seed}"]
    words += ["--scratch"] if way == "from scratch" else []
    done = subprocess.run(
        [sys.executable, "-m", "protocaffe", "finetune", *words],
        capture_output=True,
        text=True,
    )
    found = re.search(r"Accuracy: ([\d.]+) %", done.stdout)
    if not found:
        sys.exit("\n".join(done.stderr.splitlines()[-20:]))
    return float(found[1])


def main() -> None:
    """Run all and print a line for each number of images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="folder with train/<digit> and test/<digit>")
    parser.add_argument("--images", type=int, nargs="+", default=[5, 20, 80], help="per digit")
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    print(f"{given.iterations} iterations, {given.seeds} seeds, {5 * TEST_IMAGES} test images")
    for images in given.images:
        for way in WAYS:
            results: dict[float, list[float]] = {rate: [] for rate in RATES}
            for seed in range(1, given.seeds + 1):
                with tempfile.TemporaryDirectory() as scratch:
                    data = Path(scratch, "digits")
                    make_subset(given.source, data, images, seed)
                    for rate, found in results.items():
                        out = Path(scratch, "out")
                        found.append(accuracy(data, out, way, rate, given.iterations, seed))
            rate, best = max(results.items(), key=lambda item: mean(item[1]))
            print(
                f"{images:>4} images per digit, {way:<12} (base_lr {rate:g}): "
                f"{mean(best):.1f} % ({min(best):.1f} to {max(best):.1f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
