"""Get a model's published weights: the same as ``protocaffe zoo download FOLDER``."""

import sys

from protocaffe.cli import main

sys.exit(main(["zoo", "download", *sys.argv[1:]]))
