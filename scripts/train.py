"""Train a net: ``protocaffe train`` with the flags of pycaffe's program."""

import argparse
import sys

from protocaffe.cli import main


def words() -> list[str]:
    """Return the command line of ``protocaffe train`` that means the same as this one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--solver", required=True, help="the solver prototxt")
    parser.add_argument("--snapshot", help="a .solverstate to resume from")
    parser.add_argument("--gpus", nargs="+", help="not in this version: it trains on the CPU")
    parser.add_argument("--timing", action="store_true", help="see 'protocaffe time'")
    given = parser.parse_args()
    if given.timing:
        parser.error("--timing: 'protocaffe time --model=NET' measures every layer")
    found = [f"--solver={given.solver}"]
    if given.snapshot:
        found.append(f"--snapshot={given.snapshot}")
    if given.gpus:
        found.append(f"--gpu={','.join(given.gpus)}")
    return found


if __name__ == "__main__":
    sys.exit(main(["train", *words()]))
