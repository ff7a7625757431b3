"""How layers that move, choose or sum up numbers become ONNX operators."""

from __future__ import annotations

from protocaffe.export.graph import OnnxGraph, Step, converts
from protocaffe.export.image import FLOAT, INT64
from protocaffe.layers.accuracy import ArgMax
from protocaffe.layers.dropout import Dropout
from protocaffe.layers.embed import Embed
from protocaffe.layers.inner_product import InnerProduct
from protocaffe.layers.input import Parameter
from protocaffe.layers.permutation import Permute, Reorg, ShuffleChannel
from protocaffe.layers.reduction import Reduction
from protocaffe.layers.selection import BatchReindex
from protocaffe.layers.shape import Concat, Crop, Flatten, Reshape, Silence, Slice, Split, Tile
from protocaffe.proto.caffe_pb2 import ReductionParameter

LOWEST_INT64 = -(2**63)


@converts(Split, Dropout, Silence)
def same(graph: OnnxGraph, step: Step) -> list[str]:
    """The bottom itself, under every name."""
    return step.x[:1] * len(step.tops)


@converts(Parameter)
def parameter(graph: OnnxGraph, step: Step) -> list[str]:
    """A constant."""
    return [graph.constant(step.parameters[0], "value")]


@converts(Flatten, Reshape)
def reshape(graph: OnnxGraph, step: Step) -> list[str]:
    """Reshape to the top's shape."""
    return [graph.reshape(step.x[0], graph.shape(step.tops[0]))]


@converts(InnerProduct)
def inner_product(graph: OnnxGraph, step: Step) -> list[str]:
    """Gemm on flattened images; MatMul with other axes."""
    layer, bottom, x = step.layer, step.bottoms[0], step.x[0]
    weights, *biases = step.parameters
    if layer.axis == 1:
        flat = x if bottom.num_axes == 2 else graph.op("Flatten", x, axis=1)
        names = [graph.constant(weights, "weight"), *(graph.constant(b, "bias") for b in biases)]
        return [graph.op("Gemm", flat, *names, transB=int(not layer.transpose))]
    if layer.axis == 0:
        graph.fixed_batch(step, bottom, "multiplies the whole batch with its weights")
    rows = graph.reshape(x, [*graph.shape(bottom)[: layer.axis], layer.num_input])
    columns = weights if layer.transpose else weights.T
    y = graph.op("MatMul", rows, graph.constant(columns, "weight"))
    return [graph.op("Add", y, graph.constant(b, "bias")) for b in biases] or [y]


@converts(Concat)
def concat(graph: OnnxGraph, step: Step) -> list[str]:
    """Concat."""
    return [graph.op("Concat", *step.x, axis=step.layer.axis)] if len(step.x) > 1 else step.x


@converts(Slice)
def cut(graph: OnnxGraph, step: Step) -> list[str]:
    """Split."""
    if len(step.tops) == 1:
        return step.x
    axis = step.layer.axis
    if axis == 0:
        graph.fixed_batch(step, step.bottoms[0], "cuts the batch into parts")
    sizes = graph.integers([top.shape[axis] for top in step.tops], "sizes")
    return graph.ops("Split", step.x[0], sizes, outputs=len(step.tops), axis=axis)


@converts(Crop)
def crop(graph: OnnxGraph, step: Step) -> list[str]:
    """Slice of the axes that are really cut."""
    extents = step.bottoms[0].shape
    cuts = [
        (axis, part.start, part.stop)
        for axis, part in enumerate(step.layer.part)
        if part.start is not None and (part.start, part.stop) != (0, extents[axis])
    ]
    if not cuts:
        return step.x[:1]
    if cuts[0][0] == 0:
        graph.fixed_batch(step, step.bottoms[0], "crops the batch")
    axes, starts, ends = (graph.integers(each, "part") for each in zip(*cuts, strict=True))
    return [graph.op("Slice", step.x[0], starts, ends, axes)]


@converts(Tile)
def tile(graph: OnnxGraph, step: Step) -> list[str]:
    """Tile along one axis."""
    bottom = step.bottoms[0]
    axis = step.layer.canonical_axis(step.layer.param.tile_param.axis, bottom)
    repeats = [1] * bottom.num_axes
    repeats[axis] = step.layer.tiles
    return [graph.op("Tile", step.x[0], graph.integers(repeats, "repeats"))]


@converts(Embed)
def embed(graph: OnnxGraph, step: Step) -> list[str]:
    """Gather of rows of the weights."""
    index = graph.op("Cast", step.x[0], to=INT64)
    weights, *biases = step.parameters
    y = graph.op("Gather", graph.constant(weights, "weight"), index, axis=0)
    return [graph.op("Add", y, graph.constant(b, "bias")) for b in biases] or [y]


@converts(BatchReindex)
def batch_reindex(graph: OnnxGraph, step: Step) -> list[str]:
    """Gather of samples."""
    return [graph.op("Gather", step.x[0], graph.op("Cast", step.x[1], to=INT64), axis=0)]


@converts(Reduction)
def reduction(graph: OnnxGraph, step: Step) -> list[str]:
    """The reduction of the same kind over the tail axes."""
    layer, bottom = step.layer, step.bottoms[0]
    axes = list(range(step.tops[0].num_axes, bottom.num_axes))
    if layer.operation == ReductionParameter.SUM:
        # This one takes its axes as an input in the opset that is used.
        y = graph.op("ReduceSum", step.x[0], graph.integers(axes, "axes"), keepdims=0)
    else:
        kinds = {
            ReductionParameter.ASUM: "ReduceL1",
            ReductionParameter.SUMSQ: "ReduceSumSquare",
            ReductionParameter.MEAN: "ReduceMean",
        }
        y = graph.op(kinds[layer.operation], step.x[0], axes=axes, keepdims=0)
    return [graph.scaled(y, layer.coeff)]


@converts(ArgMax)
def arg_max(graph: OnnxGraph, step: Step) -> list[str]:
    """TopK from the end: among equals Caffe takes the larger index, TopK the smaller one."""
    layer, bottom, x = step.layer, step.bottoms[0], step.x[0]
    if layer.has_axis:
        axis = layer.canonical_axis(layer.param.argmax_param.axis, bottom)
        if axis == 0:
            graph.fixed_batch(step, bottom, "looks for the maximum along the batch")
        best, index = _best(graph, x, axis, bottom.shape[axis], layer.top_k)
        return [best if layer.out_max_val else index]
    flat = graph.op("Flatten", x, axis=1)
    best, index = _best(graph, flat, 1, bottom.count // bottom.shape[0], layer.top_k)
    shape = graph.shape(step.tops[0])
    shape[1] = 1
    rows = [index, best] if layer.out_max_val else [index]
    rows = [graph.reshape(row, shape) for row in rows]
    return [graph.op("Concat", *rows, axis=1)] if len(rows) > 1 else rows


def _best(graph: OnnxGraph, x: str, axis: int, extent: int, top_k: int) -> tuple[str, str]:
    """Return the largest values along an axis and their indices, as floats."""
    ends = ([extent - 1], [LOWEST_INT64], [axis], [-1])
    reverse = graph.op("Slice", x, *(graph.integers(each, "reverse") for each in ends))
    best, places = graph.ops("TopK", reverse, graph.integers([top_k], "k"), outputs=2, axis=axis)
    from_end = graph.op("Cast", places, to=FLOAT)
    return best, graph.op("Sub", graph.constant(extent - 1, "last"), from_end)


@converts(Permute, ShuffleChannel, Reorg)
def rearrange(graph: OnnxGraph, step: Step) -> list[str]:
    """Reshape, Transpose and Reshape."""
    order = step.layer.order(step.bottoms[0].shape)
    view = list(order.view)
    if step.bottoms[0] in graph.dynamic:
        view[0] = -1
    x = step.x[0] if order.view == step.bottoms[0].shape else graph.reshape(step.x[0], view)
    y = graph.op("Transpose", x, perm=list(order.axes))
    moved = tuple(order.view[axis] for axis in order.axes)
    return [y if moved == order.result else graph.reshape(y, graph.shape(step.tops[0]))]
