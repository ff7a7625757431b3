"""Make tables of the log of a training, for plotting.

protocaffe parse_log LOG [DIR] writes DIR/LOG.train and DIR/LOG.test: CSV with the columns
NumIters, Seconds (since solving began), LearningRate, and one per output of the net.
"""

from __future__ import annotations

import os
from argparse import Namespace

from protocaffe.cli.flags import Flag
from protocaffe.errors import UsageError
from protocaffe.parse_log import parse_log, write_table
from protocaffe.proto.text import read_text

FLAGS = [
    Flag("log", "the log of a training", required=True, positional=True),
    Flag("dir", "the folder to write to", ".", positional=True),
    Flag("delimiter", "what stands between the columns", ","),
    Flag("verbose", "say which files were written", default=False),
]


def run(flags: Namespace) -> int:
    """Write the tables."""
    if len(flags.delimiter) != 1:
        raise UsageError(f"--delimiter: expected one character, got '{flags.delimiter}'")
    tables = parse_log(read_text(flags.log).splitlines(), flags.log)
    for part, rows in zip(("train", "test"), tables, strict=True):
        path = os.path.join(flags.dir, f"{os.path.basename(flags.log)}.{part}")
        write_table(path, rows, flags.delimiter)
        if flags.verbose:
            print(f"Wrote {len(rows)} rows to {path}")
    return 0
