"""Average the images of a database: the same as ``protocaffe compute_image_mean``."""

import sys

from protocaffe.cli import main

sys.exit(main(["compute_image_mean", *sys.argv[1:]]))
