"""Make databases of CIFAR-10's original files: the same as ``protocaffe convert_cifar_data``."""

import sys

from protocaffe.cli import main

sys.exit(main(["convert_cifar_data", *sys.argv[1:]]))
