"""The ``protocaffe`` command, also as ``python -m protocaffe``."""

import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # While modules are loaded Ctrl-C just ends the program; then the commands see to it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from protocaffe.cli import main

if __name__ == "__main__":
    sys.exit(main())
