"""Make a database of MNIST's original files: the same as ``protocaffe convert_mnist_data``."""

import sys

from protocaffe.cli import main

sys.exit(main(["convert_mnist_data", *sys.argv[1:]]))
