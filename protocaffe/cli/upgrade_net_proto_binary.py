"""Bring a binary net, such as a .caffemodel, to the current format.

protocaffe upgrade_net_proto_binary IN OUT reads a file of any age and writes a current one, with
the same weights. What was changed is logged.
"""

from __future__ import annotations

from argparse import Namespace

from protocaffe.cli.upgrading import FILES, log_written
from protocaffe.proto.binary import read_binary, write_atomic
from protocaffe.proto.caffe_pb2 import NetParameter
from protocaffe.proto.upgrade import upgrade_net

FLAGS = FILES


def run(flags: Namespace) -> int:
    """Upgrade the file that the flags name."""
    net = read_binary(flags.input, NetParameter())
    upgrade_net(net, flags.input)
    write_atomic(flags.output, net.SerializePartialToString())
    log_written(flags.output)
    return 0
