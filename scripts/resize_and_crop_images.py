"""Make squares of a folder of images: the same as ``protocaffe resize_and_crop_images``."""

import sys

from protocaffe.cli import main

sys.exit(main(["resize_and_crop_images", *sys.argv[1:]]))
