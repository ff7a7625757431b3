"""Make a database of image files: the same as ``protocaffe convert_imageset``."""

import sys

from protocaffe.cli import main

sys.exit(main(["convert_imageset", *sys.argv[1:]]))
