"""Bring the text of a net to the current format.

protocaffe upgrade_net_proto_text IN OUT reads a prototxt of any age and writes a current one.
What was changed is logged; comments are not kept.
"""

from __future__ import annotations

from argparse import Namespace

from protocaffe.cli.upgrading import FILES, write_text
from protocaffe.proto.text import read_net

FLAGS = FILES


def run(flags: Namespace) -> int:
    """Upgrade the file that the flags name."""
    net, _ = read_net(flags.input)
    write_text(flags.output, net)
    return 0
