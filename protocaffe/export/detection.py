"""How SSD's detections become ONNX operators, for one image."""

from __future__ import annotations

import numpy as np

from protocaffe.export.graph import OnnxGraph, Step, converts
from protocaffe.export.image import FLOAT, INT64
from protocaffe.layers.detection import DetectionOutput
from protocaffe.proto.caffe_pb2 import PriorBoxParameter


@converts(DetectionOutput)
def detection_output(graph: OnnxGraph, step: Step) -> list[str]:
    """TopK and NonMaxSuppression per class, then the best of all, in their old order."""
    layer, param = step.layer, step.layer.param.detection_output_param
    _check(graph, step)
    labels = [each for each in range(layer.classes) if each != param.background_label_id]
    boxes = _boxes(graph, step)
    scores = graph.op(
        "Transpose", graph.reshape(step.x[1], [layer.priors, layer.classes]), perm=[1, 0]
    )
    scores = graph.op("Gather", scores, graph.integers(labels, "classes"), axis=0)

    nms = param.nms_param
    most = layer.priors
    if nms.HasField("top_k") and 0 <= nms.top_k < most:
        most = nms.top_k
    scores, places = graph.ops("TopK", scores, graph.integers([most], "top_k"), outputs=2)
    boxes = graph.op("Gather", boxes, places, axis=0)
    limits = [graph.constant(nms.nms_threshold, "overlap")]
    if np.isfinite(layer.threshold):
        limits.append(graph.constant(layer.threshold, "confidence"))
    # One class is one image here: each has boxes of its own after TopK.
    rows = graph.op("Unsqueeze", scores, graph.integers([1], "axes"))
    chosen = graph.op("NonMaxSuppression", boxes, rows, graph.integers([most], "most"), *limits)
    index = graph.op("Gather", chosen, graph.integers([0, 2], "columns"), axis=1)
    kind = graph.op("Gather", index, graph.integers([0], "column"), axis=1)
    score = graph.op("GatherND", scores, index)
    found = graph.op(
        "Concat",
        graph.op(
            "Gather", graph.constant([[0, label] for label in labels], "labels"), _flat(graph, kind)
        ),
        graph.op("Unsqueeze", score, graph.integers([1], "axes")),
        graph.op("GatherND", boxes, index),
        axis=1,
    )
    graph.open_axes[step.tops[0]] = 2
    return [graph.reshape(_kept(graph, found, score, param.keep_top_k), [1, 1, -1, 7])]


def _check(graph: OnnxGraph, step: Step) -> None:
    layer, param = step.layer, step.layer.param.detection_output_param
    graph.fixed_batch(step, step.bottoms[0], "looks for objects in one image at a time")
    if step.bottoms[0].shape[0] != 1:
        raise layer.error("can be exported for one image at a time: give --batch=1")
    for refused, what in (
        (len(step.bottoms) == 5, "RefineDet's five bottoms"),
        (layer.location_classes > 1, "share_location: false"),
        (param.nms_param.eta < 1, "an eta below 1"),
    ):
        if refused:
            raise layer.error(f"cannot be exported with {what}; export up to its bottoms")


def _flat(graph: OnnxGraph, x: str) -> str:
    return graph.reshape(x, [-1])


def _boxes(graph: OnnxGraph, step: Step) -> str:
    """Return the predicted boxes (P, 4)."""
    layer, param = step.layer, step.layer.param.detection_output_param
    both = graph.reshape(step.x[2], [2, layer.priors, 2, 2])
    prior, variance = (
        graph.reshape(each, [layer.priors, 2, 2]) for each in _halves(graph, both, 0)
    )
    shift = graph.reshape(step.x[0], [layer.priors, 2, 2])
    if not param.variance_encoded_in_target:
        shift = graph.op("Mul", shift, variance)
    low, high = _halves(graph, prior, 1)
    size = graph.op("Sub", high, low)
    if param.code_type == PriorBoxParameter.CORNER:
        boxes = graph.op("Add", prior, shift)
    elif param.code_type == PriorBoxParameter.CORNER_SIZE:
        boxes = graph.op("Add", prior, graph.op("Mul", shift, size))
    else:
        move, grow = _halves(graph, shift, 1)
        middle = graph.scaled(graph.op("Add", low, high), 0.5)
        centre = graph.op("Add", graph.op("Mul", move, size), middle)
        half = graph.scaled(graph.op("Mul", graph.op("Exp", grow), size), 0.5)
        corners = (graph.op(kind, centre, half) for kind in ("Sub", "Add"))
        boxes = graph.op("Concat", *corners, axis=1)
    return graph.reshape(boxes, [layer.priors, 4])


def _halves(graph: OnnxGraph, x: str, axis: int) -> list[str]:
    return graph.ops("Split", x, outputs=2, axis=axis)


def _kept(graph: OnnxGraph, rows: str, score: str, keep: int) -> str:
    """Return the rows of the best scores in their order; one of -1 if there is none."""
    count = graph.op("Shape", score)
    if keep >= 0:
        count = graph.op("Min", count, graph.integers([keep], "keep"))
        _, best = graph.ops("TopK", score, count, outputs=2)
        ordered = graph.op("Cast", best, to=FLOAT)
        ordered, _ = graph.ops("TopK", ordered, count, outputs=2, largest=0)
        rows = graph.op("Gather", rows, graph.op("Cast", ordered, to=INT64), axis=0)
    none = graph.constant([[0, -1, -1, -1, -1, -1, -1]], "none")
    one, start = graph.integers([1], "one"), graph.integers([0], "start")
    return graph.op(
        "Slice", graph.op("Concat", rows, none, axis=0), start, graph.op("Max", count, one)
    )
