"""A net as an ONNX model.

The opset is 17, of 2022: everything that Caffe's layers need is in it, and ONNX Runtime from 1.12,
OpenVINO from 2022.3 and TensorRT from 8.5 read it. Later opsets would only leave older programs
behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from types import ModuleType
from typing import Any

import numpy as np

import protocaffe.export.detection
import protocaffe.export.elementwise
import protocaffe.export.image
import protocaffe.export.recurrent
import protocaffe.export.roi
import protocaffe.export.shape  # noqa: F401  (importing registers the converters)
from protocaffe.assembly import Assembly
from protocaffe.blob import Array, Blob
from protocaffe.errors import LayerError, NetError, ProtocaffeError, UsageError
from protocaffe.export.fold import fold_parameters, values
from protocaffe.export.graph import BATCH, FixedBatchError, OnnxGraph, Step, converter_of
from protocaffe.graph import build_graph
from protocaffe.layers import Layer
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2

OPSET = 17
IR_VERSION = 8
"""What came with that opset; without it the newest one would be written."""

FLOAT = 1
"""``TensorProto.FLOAT``."""

LABELS = "it compares with labels; leave it out with include { phase: TRAIN }"
DATA = "it reads data; export the deploy net, which has an Input layer instead"
REASONS = {
    "Accuracy": LABELS,
    "ContrastiveLoss": LABELS,
    "Data": DATA,
    "DummyData": DATA,
    "EuclideanLoss": LABELS,
    "Filter": "how many samples it lets pass depends on their values",
    "HDF5Data": DATA,
    "HDF5Output": "it writes a file",
    "HingeLoss": LABELS,
    "ImageData": DATA,
    "InfogainLoss": LABELS,
    "MemoryData": DATA,
    "MultinomialLogisticLoss": LABELS,
    "Python": "it is Python code",
    "SigmoidCrossEntropyLoss": LABELS,
    "SmoothL1Loss": LABELS,
    "SoftmaxWithLoss": LABELS,
    "WindowData": DATA,
}
"""Why layers of these types cannot be exported."""


@dataclass(frozen=True)
class Exported:
    """The outcome of an export.

    Attributes:
        model: the ``onnx.ModelProto``.
        batch: the number of images it takes; None for any.
        reason: why the batch is fixed although it was not asked for; else empty.
        folded: names of the layers that became part of others.
    """

    model: Any
    batch: int | None
    reason: str
    folded: list[str]


def export_onnx(net: Net, *, batch: int | None = None, fold: bool = False) -> Exported:
    """Return a net as an ONNX model of opset 17, in float32.

    Inputs are the tops of the Input layers, outputs the blobs that nobody reads, all under their
    names. The first axis of the inputs is the batch and may have any extent, unless a layer
    depends on it. Recurrent layers without ``expose_hidden`` start from zeros in every run.

    Args:
        net: of phase TEST, with its weights.
        batch: the only number of images that the model shall take; None for any.
        fold: whether BatchNorm, Scale and Bias layers that directly follow a Convolution,
            Deconvolution or InnerProduct become part of its weights.

    Raises:
        LayerError: some layers have no ONNX form; names all of them and says why.
        NetError: there are no Input layers, or no outputs.
        UsageError: the net is of phase TRAIN, or the ``onnx`` package is missing.
    """
    _import_onnx()
    if net.phase != caffe_pb2.TEST:
        raise UsageError("a net is exported in phase TEST, this one has phase TRAIN")
    _check_layers(net)
    if batch is not None:
        _set_batch(net, batch)
    folding = fold_parameters(net) if fold else ({}, set())
    reason, dynamic = "", set[Blob]()
    if batch is None:
        try:
            dynamic = _batch_blobs(net)
        except ProtocaffeError as error:
            reason = str(error)
    try:
        model = _convert(net, dynamic, *folding)
    except FixedBatchError as error:
        reason, dynamic = str(error), set()
        model = _convert(net, dynamic, *folding)
    fixed = None if dynamic else _batch(net)
    folded = [net.layer_names[index] for index in sorted(folding[1])]
    return Exported(model, fixed, reason, folded)


def compare(net: Net, model: Any, inputs: Mapping[str, Array] | None = None) -> dict[str, float]:
    """Run net and model on the same numbers and return their greatest differences.

    Args:
        net: what was exported.
        model: the ``onnx.ModelProto``.
        inputs: values by blob; drawn from N(0, 1), always the same ones, unless they are given.

    Returns:
        By output, the greatest difference relative to the greatest value.

    Raises:
        UsageError: the ``onnxruntime`` package is missing.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise UsageError(
            "comparing needs onnxruntime, which is not installed: pip install onnxruntime"
        ) from None
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feeds = dict(inputs or _random_inputs(net))
    for name, value in feeds.items():
        net.blobs[name].data[...] = value
    net.run_forward()
    names = [output.name for output in session.get_outputs()]
    results = session.run(names, feeds)
    return {
        name: _difference(values(net.blobs[blob]), result)
        for blob, name, result in zip(net.outputs, names, results, strict=True)
    }


def _random_inputs(net: Net) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(net.blobs[name].shape, np.float32) for name in net.inputs}


def _difference(ours: Array, theirs: Array) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    differing = ~((ours == theirs) | (np.isnan(ours) & np.isnan(theirs)))
    if not differing.any():
        return 0.0
    return float(np.abs(ours - theirs)[differing].max() / (np.abs(ours).max() or 1.0))


def _import_onnx() -> ModuleType:
    try:
        import onnx
    except ModuleNotFoundError:
        raise UsageError(
            "ONNX models need a package that is not installed: pip install 'protocaffe[onnx]'"
        ) from None
    return onnx


def _check_layers(net: Net) -> None:
    if not net.inputs:
        raise NetError(f"net '{net.name}' has no Input layer: {DATA.partition('; ')[2]}")
    refused = [
        str(layer.error(f"cannot be exported: {_reason(layer)}"))
        for layer in net.layers
        if layer.type != "Input" and converter_of(layer) is None
    ]
    if refused:
        raise LayerError("\n".join(refused))
    if not net.outputs:
        raise NetError(f"net '{net.name}' has no outputs: all its blobs are read by layers")


def _reason(layer: Layer) -> str:
    return REASONS.get(layer.type, "there is no ONNX form of this type yet")


def _batch(net: Net) -> int:
    return net.blobs[net.inputs[0]].shape[0]


def _set_batch(net: Net, batch: int) -> None:
    if batch < 1:
        raise UsageError(f"batch must be at least 1, got {batch}")
    for name in net.inputs:
        blob = net.blobs[name]
        blob.reshape(batch, *blob.shape[1:])
    net.reshape()


def _batch_blobs(net: Net) -> set[Blob]:
    """Return the blobs whose first axis grows with the batch.

    Raises:
        ProtocaffeError: the net takes no other batch.
    """
    assembly = Assembly(dry=True)
    for node in build_graph(_doubled(net), net.graph.state).nodes:
        assembly.add(node)
    grown = set()
    for layer, other, tops, other_tops in zip(
        net.layers, assembly.layers, net.tops, assembly.tops, strict=True
    ):
        if [blob.shape for blob in layer.blobs] != [blob.shape for blob in other.blobs]:
            raise layer.error("has weights for one number of images only")
        for top, twice in zip(tops, other_tops, strict=True):
            if twice.shape == top.shape:
                continue
            if twice.shape != (2 * top.shape[0], *top.shape[1:]):
                raise layer.error(
                    f"with twice the images its top has shape {twice.shape} instead of "
                    f"{top.shape}, so the batch is more than its first axis"
                )
            grown.add(top)
    return grown


def _doubled(net: Net) -> caffe_pb2.NetParameter:
    """Return the net's message with twice the images in every input."""
    param = caffe_pb2.NetParameter()
    param.CopyFrom(net.graph.param)
    for layer in param.layer:
        if layer.type == "Input":
            del layer.input_param.shape[:]
            for top in layer.top:
                shape = net.blobs[top].shape
                layer.input_param.shape.add(dim=[2 * extent for extent in shape[:1]])
                layer.input_param.shape[-1].dim.extend(shape[1:])
    return param


def _convert(
    net: Net, dynamic: set[Blob], changed: dict[int, list[Array]], folded: set[int]
) -> Any:
    graph = OnnxGraph(dynamic=dynamic)
    for name in (*net.inputs, *net.outputs):
        graph.new_name(name)
    latest = {name: name for name in net.inputs}
    for index, (node, layer) in enumerate(zip(net.graph.nodes, net.layers, strict=True)):
        converter = converter_of(layer)
        if converter is None:  # an Input layer
            continue
        x = [latest[bottom] for bottom in node.bottoms]
        parameters = changed.get(index) or [values(blob) for blob in layer.blobs]
        step = Step(layer, net.bottoms[index], net.tops[index], x, parameters)
        graph.layer = layer.name
        tops = x[:1] if index in folded else converter(graph, step)
        latest.update(zip(node.tops, tops, strict=True))
    outputs = _name_outputs(graph, net, latest)
    return _model(graph, net, outputs)


def _name_outputs(graph: OnnxGraph, net: Net, latest: dict[str, str]) -> list[str]:
    """Give values the names of their blobs, and return those of the outputs.

    Several blobs may be one value, which then gets copied; and an input that a layer overwrites
    in place needs another name as an output.
    """
    names: dict[str, str] = {}
    outputs = []
    for blob in net.outputs:
        value = latest[blob]
        output = graph.new_name(f"{blob}_out") if blob in net.inputs else blob
        graph.layer = output
        if value in names or value in net.inputs or value in graph.initializers:
            value = graph.op("Identity", value)
        names[value] = output
        outputs.append(output)
    for blob, value in latest.items():
        computed = value not in net.inputs and value not in graph.initializers
        if computed and value not in names and blob not in net.inputs:
            names[value] = graph.new_name(blob)
    graph.rename(names)
    return outputs


def _model(graph: OnnxGraph, net: Net, outputs: list[str]) -> Any:
    onnx = _import_onnx()
    helper = onnx.helper

    def describe(name: str, blob: Blob) -> Any:
        shape: list[int | str | None] = list(blob.shape)
        if blob in graph.dynamic:
            shape[0] = BATCH if shape[0] == _batch(net) else None
        if blob in graph.open_axes:
            shape[graph.open_axes[blob]] = None
        return helper.make_tensor_value_info(name, FLOAT, shape)

    content = helper.make_graph(
        graph.nodes,
        net.name or "net",
        [describe(name, net.blobs[name]) for name in net.inputs],
        [describe(name, net.blobs[blob]) for name, blob in zip(outputs, net.outputs, strict=True)],
        list(graph.initializers.values()),
    )
    model = helper.make_model(
        content,
        producer_name="protocaffe",
        producer_version=version("protocaffe"),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model)
    return model
