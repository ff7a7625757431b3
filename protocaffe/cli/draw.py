"""Draw a net: its layers with their settings, and its blobs with their shapes.

protocaffe draw NET OUT makes a picture with Graphviz, whose program dot must be installed, in the
format that OUT's ending names: png, svg, pdf and more. An ending of .dot or .gv writes the text
that Graphviz reads, which needs no program. Layers that work in place are rows of one box.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace

from protocaffe.cli.common import log_warnings_only
from protocaffe.cli.flags import Flag
from protocaffe.draw import RANKDIRS, NoGraphvizError, draw_net_to_file, extension
from protocaffe.errors import FileError
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import read_net

FLAGS = [
    Flag("net", "the net prototxt", required=True, positional=True),
    Flag("out", "the picture to write", required=True, positional=True),
    Flag("rankdir", "where arrows point: TB is top to bottom", "TB", choices=RANKDIRS),
    Flag("phase", "whose layers to draw", "ALL", choices=("TRAIN", "TEST", "ALL")),
    Flag("display_lrm", "show the factors on the learning rate", default=False),
    Flag("force", "replace OUT if it exists", default=False),
]


def run(flags: Namespace) -> int:
    """Draw as the flags say."""
    log_warnings_only()
    extension(flags.out)
    try:
        _draw(flags, flags.out)
    except NoGraphvizError as error:
        _draw_text(flags, str(error))
        return 1
    return 0


def _draw_text(flags: Namespace, reason: str) -> None:
    """Write the text beside where the picture should be, and say how to go on."""
    ext, text = extension(flags.out), f"{os.path.splitext(flags.out)[0]}.dot"
    try:
        _draw(flags, text)
    except FileError as error:
        raise FileError(f"{reason}; the text for it cannot be written either: {error}") from None
    print(
        f"protocaffe draw: {reason}; wrote {text} instead, of which "
        f"'dot -T{ext} {text} -o {flags.out}' makes the picture",
        file=sys.stderr,
    )


def _draw(flags: Namespace, out: str) -> None:
    if os.path.exists(out) and not flags.force:
        raise FileError(f"{out} exists already; --force replaces it")
    net, source = read_net(flags.net)
    phase = None if flags.phase == "ALL" else caffe_pb2.Phase.Value(flags.phase)
    draw_net_to_file(net, out, flags.rankdir, phase, flags.display_lrm, source)
