"""Make tables of the log of a training: the same as ``protocaffe parse_log``."""

import sys

from protocaffe.cli import main

sys.exit(main(["parse_log", *sys.argv[1:]]))
