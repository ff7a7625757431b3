"""Score windows of images: the same as ``protocaffe detect``."""

import sys

from protocaffe.cli import main

sys.exit(main(["detect", *sys.argv[1:]]))
