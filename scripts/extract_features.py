"""Store what blobs of a net hold in databases: the same as ``protocaffe extract_features``."""

import sys

from protocaffe.cli import main

sys.exit(main(["extract_features", *sys.argv[1:]]))
