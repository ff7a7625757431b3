"""Draw a net: ``protocaffe draw`` as pycaffe's program, left to right and over older pictures."""

import sys

from protocaffe.cli import main

sys.exit(main(["draw", "--rankdir=LR", "--force", *sys.argv[1:]]))
