"""Make HDF5 files of images, tables or arrays: the same as ``protocaffe convert_hdf5``."""

import sys

from protocaffe.cli import main

sys.exit(main(["convert_hdf5", *sys.argv[1:]]))
