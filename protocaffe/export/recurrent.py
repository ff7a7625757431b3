"""How recurrent layers become ONNX operators: step by step.

ONNX's own LSTM has no marks where a sequence starts in the middle.
"""

from __future__ import annotations

from protocaffe.blob import Array
from protocaffe.export.graph import OnnxGraph, Step, converts
from protocaffe.layers.recurrent import LSTM, RNN, LSTMUnit, Recurrent


@converts(LSTMUnit)
def lstm_unit(graph: OnnxGraph, step: Step) -> list[str]:
    """One step."""
    c_prev, gates, cont = step.x
    marks = graph.op("Unsqueeze", cont, graph.integers([2], "axes"))
    c, h = _cell(graph, gates, c_prev, marks)
    return [c, h]


@converts(LSTM)
def lstm(graph: OnnxGraph, step: Step) -> list[str]:
    """Every step of an LSTM."""
    inputs, marks, (h, c) = _unrolled(graph, step)
    weights = graph.constant(_hidden_weights(step).T, "weight_h")
    outputs = []
    for x, cont in zip(inputs, marks, strict=True):
        kept = graph.op("Mul", h, cont)
        gates = graph.op("Add", x, graph.op("MatMul", kept, weights))
        c, h = _cell(graph, gates, c, cont)
        outputs.append(h)
    return _tops(graph, step, outputs, [h, c])


@converts(RNN)
def rnn(graph: OnnxGraph, step: Step) -> list[str]:
    """Every step of a plain recurrent net."""
    inputs, marks, (h,) = _unrolled(graph, step)
    weights = graph.constant(_hidden_weights(step).T, "weight_h")
    out_weights = graph.constant(step.parameters[-2].T, "weight_o")
    out_bias = graph.constant(step.parameters[-1], "bias_o")
    outputs = []
    for x, cont in zip(inputs, marks, strict=True):
        kept = graph.op("Mul", h, cont)
        h = graph.op("Tanh", graph.op("Add", x, graph.op("MatMul", kept, weights)))
        y = graph.op("Add", graph.op("MatMul", h, out_weights), out_bias)
        outputs.append(graph.op("Tanh", y))
    return _tops(graph, step, outputs, [h])


def _cell(graph: OnnxGraph, gates: str, c_prev: str, cont: str) -> tuple[str, str]:
    """Return c and h after a step; all values are (1, N, ...)."""
    i, f, o, g = graph.ops("Split", gates, outputs=4, axis=2)
    i, f, o = (graph.op("Sigmoid", gate) for gate in (i, f, o))
    remembered = graph.op("Mul", graph.op("Mul", cont, f), c_prev)
    c = graph.op("Add", remembered, graph.op("Mul", i, graph.op("Tanh", g)))
    return c, graph.op("Mul", o, graph.op("Tanh", c))


def _unrolled(graph: OnnxGraph, step: Step) -> tuple[list[str], list[str], list[str]]:
    """Return what every step adds to its gates, its marks, and the initial states.

    A model in ONNX remembers nothing: without ``expose_hidden`` every run starts from zeros, as
    the first forward of a net does.
    """
    layer: Recurrent = step.layer
    graph.fixed_batch(step, step.bottoms[0], "has a fixed number of steps, its first axis")
    steps, streams = step.bottoms[1].shape
    weights, bias = step.parameters[:2]
    rows = graph.reshape(step.x[0], [steps, streams, weights.shape[1]])
    gates = graph.op("MatMul", rows, graph.constant(weights.T, "weight_x"))
    gates = graph.op("Add", gates, graph.constant(bias, "bias"))
    if layer.has_static:
        static = graph.reshape(step.x[2], [streams, step.parameters[2].shape[1]])
        static_weights = graph.constant(step.parameters[2].T, "weight_static")
        gates = graph.op("Add", gates, graph.op("MatMul", static, static_weights))
    marks = graph.op("Unsqueeze", step.x[1], graph.integers([2], "axes"))
    states = step.x[2 + layer.has_static :]
    if not states:
        zeros = [[[0.0] * layer.num_output] * streams]
        states = [graph.constant(zeros, "state")] * layer.num_states
    return _split(graph, gates, steps), _split(graph, marks, steps), states


def _split(graph: OnnxGraph, x: str, steps: int) -> list[str]:
    return graph.ops("Split", x, outputs=steps, axis=0) if steps > 1 else [x]


def _hidden_weights(step: Step) -> Array:
    layer: Recurrent = step.layer
    return step.parameters[2 + layer.has_static]


def _tops(graph: OnnxGraph, step: Step, outputs: list[str], states: list[str]) -> list[str]:
    joined = graph.op("Concat", *outputs, axis=0) if len(outputs) > 1 else outputs[0]
    return [joined, *states[: len(step.tops) - 1]]
