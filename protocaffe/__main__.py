"""``python -m protocaffe``: the same as the ``protocaffe`` command."""

import sys

from protocaffe.cli import main

sys.exit(main())
