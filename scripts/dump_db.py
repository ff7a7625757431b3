"""Look inside a database: the same as ``protocaffe dump_db``."""

import sys

from protocaffe.cli import main

sys.exit(main(["dump_db", *sys.argv[1:]]))
