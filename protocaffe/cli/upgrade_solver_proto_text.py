"""Bring the text of a solver to the current format.

protocaffe upgrade_solver_proto_text IN OUT reads a prototxt of any age and writes a current one.
What was changed is logged; comments are not kept.
"""

from __future__ import annotations

from argparse import Namespace

from protocaffe.cli.upgrading import FILES, write_text
from protocaffe.proto.text import read_solver

FLAGS = FILES


def run(flags: Namespace) -> int:
    """Upgrade the file that the flags name."""
    solver, _ = read_solver(flags.input)
    write_text(flags.output, solver)
    return 0
