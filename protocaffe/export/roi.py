"""How layers that pool regions of interest become ONNX operators."""

from __future__ import annotations

import numpy as np

from protocaffe.export.graph import OnnxGraph, Step, converts
from protocaffe.export.image import FLOAT, INT64
from protocaffe.layers.roi import PSROIPooling, ROIPooling

DOUBLE = 11
"""``TensorProto.DOUBLE``: sums over whole images lose too much in float32."""


@converts(ROIPooling)
def roi_pooling(graph: OnnxGraph, step: Step) -> list[str]:
    """MaxRoiPool, which is Fast R-CNN's."""
    layer = step.layer
    pooled, scale = [layer.rows, layer.columns], float(layer.spatial_scale)
    regions = graph.reshape(step.x[1], [-1, 5])
    settings = {"pooled_shape": pooled, "spatial_scale": scale}
    return [graph.op("MaxRoiPool", step.x[0], regions, **settings)]


@converts(PSROIPooling)
def position_sensitive(graph: OnnxGraph, step: Step) -> list[str]:
    """A bin's sum is that up to its lower right corner, less two, plus one: four numbers."""
    layer, (_, channels, height, width) = step.layer, step.bottoms[0].shape
    g = layer.rows
    regions = graph.reshape(step.x[1], [-1, 5])
    image, *edges = graph.ops("Split", regions, outputs=5, axis=1)
    left, top, right, bottom = (_corner(graph, step, x, i > 1) for i, x in enumerate(edges))
    rows = _bins(graph, step, top, bottom, height, [-1, 1, g, 1])
    columns = _bins(graph, step, left, right, width, [-1, 1, 1, g])

    plane = graph.integers([(height + 1) * (width + 1)], "plane")
    channel = graph.constant(np.arange(channels).reshape(1, -1, g, g), "channel", np.int64)
    first = graph.reshape(graph.op("Cast", image, to=INT64), [-1, 1, 1, 1])
    first = graph.op("Mul", first, graph.integers([channels], "channels"))
    first = graph.op("Mul", graph.op("Add", first, channel), plane)

    sums = _sums(graph, step.x[0])
    line = graph.integers([width + 1], "line")

    def up_to(row: str, column: str) -> str:
        inside = graph.op("Add", graph.op("Mul", row, line), column)
        return graph.op("Gather", sums, graph.op("Add", first, inside), axis=0)

    lower, upper = (
        graph.op("Sub", up_to(row, columns[1]), up_to(row, columns[0])) for row in rows[::-1]
    )
    area = graph.op("Mul", *(graph.op("Sub", end, start) for start, end in (rows, columns)))
    area = graph.op("Max", graph.op("Cast", area, to=DOUBLE), graph.constant(1, "one", np.float64))
    mean = graph.op("Div", graph.op("Sub", lower, upper), area)
    return [graph.op("Cast", mean, to=FLOAT)]


def _corner(graph: OnnxGraph, step: Step, x: str, is_end: bool) -> str:
    """Return a coordinate (R, 1), rounded as C does, on the scale of the image."""
    size = graph.op("Floor", graph.shifted(graph.op("Abs", x), 0.5))
    whole = graph.shifted(graph.op("Mul", graph.op("Sign", x), size), int(is_end))
    return graph.scaled(whole, float(step.layer.spatial_scale))


def _bins(
    graph: OnnxGraph, step: Step, start: str, end: str, extent: int, view: list[int]
) -> tuple[str, str]:
    """Return where bins start and end along an axis, in whole pixels of the image."""
    g = step.layer.rows
    length = graph.op("Max", graph.op("Sub", end, start), graph.constant(0.1, "least"))
    part = graph.op("Div", length, graph.constant(g, "bins"))
    edges = []
    for kind, first in (("Floor", 0), ("Ceil", 1)):
        steps = graph.constant([[first + i for i in range(g)]], "steps")
        edge = graph.op(kind, graph.op("Add", graph.op("Mul", part, steps), start))
        edge = graph.op("Clip", edge, graph.constant(0, "low"), graph.constant(extent, "high"))
        edges.append(graph.reshape(graph.op("Cast", edge, to=INT64), view))
    return edges[0], graph.op("Max", *edges)


def _sums(graph: OnnxGraph, x: str) -> str:
    """Return the sums of all pixels above and to the left of each corner of a pixel, flat."""
    y = graph.op("Cast", x, to=DOUBLE)
    for axis in (2, 3):
        y = graph.op("CumSum", y, graph.constant(axis, "axis", np.int64))
    y = graph.op("Pad", y, graph.integers([0, 0, 1, 1, 0, 0, 0, 0], "border"))
    return graph.reshape(y, [-1])
