"""Draw the progress of trainings: the same as ``protocaffe plot_training_log``."""

import sys

from protocaffe.cli import main

sys.exit(main(["plot_training_log", *sys.argv[1:]]))
