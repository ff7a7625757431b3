"""Write a trained net as an ONNX model, for other programs to run.

protocaffe export NET --weights=FILE --onnx=FILE takes a net with Input layers, such as a
deploy.prototxt, in phase TEST. The model computes what the net does, rounding apart, takes any
number of images where the layers allow it, and has opset 17. --fold makes BatchNorm, Scale and
Bias layers part of the weights before them. --verify runs the model, too, and compares; it needs
onnxruntime. Recurrent layers without expose_hidden start from zeros in every run.
"""

from __future__ import annotations

import os
from argparse import Namespace
from typing import Any

from protocaffe.cli.common import LEVEL, STAGE, log_warnings_only, stages
from protocaffe.cli.flags import Flag
from protocaffe.errors import FileError, ProtocaffeError, WeightsError
from protocaffe.export import Exported, compare, export_onnx
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.files import write_atomic
from protocaffe.proto.stored import stored_layers

FLAGS = [
    Flag("net", "the net prototxt, with Input layers", required=True, positional=True),
    Flag("weights", "its caffemodel, or several, separated by commas", required=True),
    Flag("onnx", "the ONNX file to write", required=True),
    Flag("fold", "make BatchNorm, Scale and Bias part of the weights before them", default=False),
    Flag("batch", "the only number of images the model shall take; 0 for any", 0, at_least=0),
    Flag("verify", "run the model with onnxruntime and compare", default=False),
    Flag("force", "replace a file that exists", default=False),
    LEVEL,
    STAGE,
]

TOLERANCE = 1e-4
"""The greatest difference, relative to the greatest value, that --verify lets pass."""


def run(flags: Namespace) -> int:
    """Export as the flags say."""
    log_warnings_only()
    if os.path.exists(flags.onnx) and not flags.force:
        raise FileError(f"{flags.onnx} exists already; --force replaces it")
    net = Net(
        flags.net,
        caffe_pb2.TEST,
        weights=flags.weights,
        level=flags.level,
        stages=stages(flags.stage),
        engine="numpy",
    )
    _check_all_loaded(net, flags.weights)
    exported = export_onnx(net, batch=flags.batch or None, fold=flags.fold)
    if flags.verify:
        _verify(net, exported)
    write_atomic(flags.onnx, exported.model.SerializeToString())
    _report(flags.onnx, exported)
    return 0


def _check_all_loaded(net: Net, weights: str) -> None:
    known: set[str] = set()
    for file in weights.split(","):
        with stored_layers(file) as layers:
            known.update(layer.name for layer in layers if layer.blobs)
    missing = [name for name in net.params if name not in known]
    if missing:
        raise WeightsError(
            f"{weights} has no weights for {', '.join(missing)}, which would be exported untrained"
        )


def _verify(net: Net, exported: Exported) -> None:
    differences = compare(net, exported.model)
    for name, difference in differences.items():
        print(f"{name}: greatest difference {difference:.1e} of the greatest value")
    worst = max(differences, key=lambda name: differences[name])
    if not differences[worst] <= TOLERANCE:
        raise ProtocaffeError(
            f"the model differs from the net by {differences[worst]:.1e} in '{worst}', more than "
            f"{TOLERANCE:g}; nothing was written"
        )


def _report(path: str, exported: Exported) -> None:
    for kind, values in (
        ("input", exported.model.graph.input),
        ("output", exported.model.graph.output),
    ):
        for value in values:
            extents = [each.dim_param or str(each.dim_value or "?") for each in _dims(value)]
            print(f"{kind} {value.name}: {'x'.join(extents) or '1 number'}")
    if exported.folded:
        print(f"folded {len(exported.folded)} layers into the weights before them")
    if exported.reason:
        print(f"takes batches of {exported.batch} only: {exported.reason}")
    print(f"wrote {path}")


def _dims(value: Any) -> Any:
    return value.type.tensor_type.shape.dim
