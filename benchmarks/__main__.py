"""``python -m benchmarks``: compare nets with PyTorch; flags go to ``compare_torch``."""

import sys

from benchmarks.compare_torch import main

if __name__ == "__main__":
    sys.exit(main())
