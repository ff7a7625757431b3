"""``python -m benchmarks``: compare all nets with PyTorch; flags go to ``compare_torch``."""

import sys

from benchmarks.compare_torch import main
from benchmarks.nets import NETS

if __name__ == "__main__":
    sys.exit(main([*NETS, *sys.argv[1:]]))
