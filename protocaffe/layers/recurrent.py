"""Recurrent layers over sequences of T steps for N independent streams."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from protocaffe.blob import Array, Blob
from protocaffe.layers.base import Bounds, Layer, register
from protocaffe.parallel import add_product, matmul


class Cell:
    """One step of an LSTM, with what its backward needs.

    Args:
        xp: the array module.
        gates: (N, 4D), the pre-activations of input gate, forget gate, output gate, candidate.
        c_prev: (N, D), the cell state before the step.
        cont: (N, 1), 0 where a new sequence starts.

    Attributes:
        c: (N, D), the cell state after the step.
        h: (N, D), the hidden state after the step.
    """

    def __init__(self, xp: Any, gates: Array, c_prev: Array, cont: Array) -> None:
        self._xp = xp
        self._c_prev = c_prev
        d = c_prev.shape[1]
        sigmoids = 0.5 * xp.tanh(0.5 * gates[:, : 3 * d]) + 0.5
        self._input, forget, self._output = (sigmoids[:, n * d : (n + 1) * d] for n in range(3))
        self._forget = cont * forget
        self._candidate = xp.tanh(gates[:, 3 * d :])
        self.c = self._forget * c_prev + self._input * self._candidate
        self._tanh_c = xp.tanh(self.c)
        self.h = self._output * self._tanh_c

    def backward(self, dc: Array, dh: Array) -> tuple[Array, Array]:
        """Return the gradients of gates and c_prev for those of c and h.

        As in Caffe, the forget gate's derivative is f (1 - f) with cont already in f, which is
        the true one for cont 0 and 1 only.
        """
        i, f, o, g = self._input, self._forget, self._output, self._candidate
        dc = dc + dh * o * (1 - self._tanh_c**2)
        gates = (
            dc * g * i * (1 - i),
            dc * self._c_prev * f * (1 - f),
            dh * self._tanh_c * o * (1 - o),
            dc * i * (1 - g**2),
        )
        return self._xp.concatenate(gates, axis=1), dc * f


@register("LSTMUnit")
class LSTMUnit(Layer):
    """One step of an LSTM: c = cont f c_prev + i g, h = o tanh(c).

    i, f, o = sigmoid and g = tanh of the four quarters of ``gates``.

    Bottoms: c_prev (1, N, D), gates (1, N, 4D), cont (1, N), 0 where a new sequence starts.
    Tops: c and h, both (1, N, D). cont gets no gradient.
    Reference: Caffe's LSTMUnitLayer.

    Example:
        layer { name: "step" type: "LSTMUnit" bottom: "c_0" bottom: "gates" bottom: "cont_1"
            top: "c_1" top: "h_1" }
    """

    bottoms = (3, 3)
    tops = (2, 2)

    def allow_force_backward(self, bottom_index: int) -> bool:
        return bottom_index != 2

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        c_prev, gates, cont = (blob.shape for blob in bottom)
        fits = len(c_prev) == 3 and c_prev[0] == 1
        if not fits or gates != (1, c_prev[1], 4 * c_prev[2]) or cont != c_prev[:2]:
            raise self.error(
                f"needs c_prev (1, N, D), gates (1, N, 4D) and cont (1, N), got shapes "
                f"{c_prev}, {gates} and {cont}"
            )
        for blob in top:
            blob.reshape(c_prev)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        c_prev, gates, cont = (blob.data[0] for blob in bottom)
        self._cell = Cell(self.xp, gates, c_prev, cont[:, None])
        top[0].data[0] = self._cell.c
        top[1].data[0] = self._cell.h

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if propagate_down[2]:
            raise self.error("has no gradient for cont, which only marks where sequences start")
        d_gates, d_c_prev = self._cell.backward(top[0].diff[0], top[1].diff[0])
        if propagate_down[0]:
            bottom[0].diff[0] = d_c_prev
        if propagate_down[1]:
            bottom[1].diff[0] = d_gates


class Recurrent(Layer):
    """What LSTM and RNN share: their bottoms and tops, and the states between forwards."""

    settings = ("recurrent_param",)
    num_states: ClassVar[int]
    num_gates: ClassVar[int]
    """How many vectors of length D a step computes from its inputs."""
    _states: list[Array]
    _h_prev: Array
    """(T, N, D), the hidden states that the steps started from, 0 where a sequence begins."""

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.recurrent_param
        self.num_output = param.num_output
        self.expose_hidden = param.expose_hidden
        if self.num_output < 1:
            raise self.error("num_output must be at least 1")
        self._check_exposed(len(bottom), len(top))
        if bottom[0].num_axes < 2:
            raise self.error(f"x must be (T, N, ...), got shape {bottom[0].shape}")
        self.steps = bottom[0].shape[0]
        rows = self.num_gates * self.num_output
        self._x_weights = self.add_blob((rows, math.prod(bottom[0].shape[2:])), param.weight_filler)
        self._bias = self.add_blob((rows,), param.bias_filler)
        if self.has_static:
            size = math.prod(bottom[2].shape[1:])
            self._static_weights = self.add_blob((rows, size), param.weight_filler)
        self._h_weights = self.add_blob((rows, self.num_output), param.weight_filler)
        self._states = []

    def _check_exposed(self, num_bottoms: int, num_tops: int) -> None:
        states = self.num_states if self.expose_hidden else 0
        with_states = f"expose_hidden: {str(self.expose_hidden).lower()}"
        if num_bottoms not in (2 + states, 3 + states):
            raise self.error(
                f"with {with_states} it takes {2 + states} bottoms, or {3 + states} with a "
                f"static input; got {num_bottoms}"
            )
        if num_tops != 1 + states:
            raise self.error(f"with {with_states} it has {1 + states} top(s); got {num_tops}")
        self.has_static = num_bottoms == 3 + states

    def allow_force_backward(self, bottom_index: int) -> bool:
        return bottom_index != 1

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        shape = bottom[0].shape
        inputs = self._x_weights.shape[1]
        if len(shape) < 2 or shape[0] != self.steps or math.prod(shape[2:]) != inputs:
            raise self.error(
                f"was set up for x of {self.steps} steps with {inputs} numbers each; bottom 0 "
                f"now has shape {shape}"
            )
        streams = shape[1]
        if bottom[1].shape != (self.steps, streams):
            raise self.error(
                f"cont must be (T, N) = {(self.steps, streams)}, got shape {bottom[1].shape}"
            )
        if self.has_static and bottom[2].shape[:1] != (streams,):
            raise self.error(
                f"the static input must be (N, ...) with N = {streams}, got {bottom[2].shape}"
            )
        state = (streams, self.num_output)
        for blob in self._given_states(bottom):
            if blob.shape != (1, *state):
                raise self.error(f"initial states must be {(1, *state)}, got shape {blob.shape}")
        top[0].reshape(self.steps, *state)
        for blob in top[1:]:
            blob.reshape(1, *state)
        if not self._states or self._states[0].shape != state:
            self._states = [self.xp.zeros(state, self.dtype) for _ in range(self.num_states)]

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        self._cont = bottom[1].data[:, :, None].copy()
        given = self._given_states(bottom)
        initial = [blob.data[0].copy() for blob in given] if given else self._states
        self._states = self.unroll(self._project(bottom), initial, top[0].data)
        for blob, state in zip(top[1:], self._states, strict=False):
            blob.data[0] = state

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if propagate_down[1]:
            raise self.error("has no gradient for cont, which only marks where sequences start")
        d_inputs = self.unroll_backward(top[0].diff)
        rows = d_inputs.reshape(-1, d_inputs.shape[2])
        x = bottom[0].data.reshape(len(rows), -1)
        add_product(self.xp, rows.T, x, out=self._x_weights.diff)
        self._bias.diff[...] += rows.sum(axis=0)
        h_prev = self._h_prev.reshape(len(rows), -1)
        add_product(self.xp, rows.T, h_prev, out=self._h_weights.diff)
        if propagate_down[0]:
            matmul(self.xp, rows, self._x_weights.data, out=bottom[0].diff.reshape(x.shape))
        if self.has_static:
            self._static_backward(d_inputs.sum(axis=0), propagate_down[2], bottom[2])

    def _static_backward(self, gradient: Array, wanted: bool, bottom: Blob) -> None:
        static = bottom.data.reshape(len(gradient), -1)
        add_product(self.xp, gradient.T, static, out=self._static_weights.diff)
        if wanted:
            weights = self._static_weights.data
            matmul(self.xp, gradient, weights, out=bottom.diff.reshape(static.shape))

    def multiply_adds(self, bottom: list[Blob], top: list[Blob]) -> int:
        every_step = sum(blob.count for blob in self.blobs if blob.num_axes == 2)
        static = self._static_weights.count if self.has_static else 0
        return bottom[1].count * (every_step - static) + bottom[1].shape[1] * static

    def unroll(self, inputs: Array, initial: Sequence[Array], output: Array) -> list[Array]:
        """Run all steps: set ``output`` (T, N, D) and return the final states.

        Args:
            inputs: (T, N, gates D), what x, bias and static input add to every step.
            initial: the states before the first step, each (N, D).
            output: the top's data.
        """
        raise NotImplementedError

    def unroll_backward(self, d_output: Array) -> Array:
        """Return the gradient of ``inputs`` for that of ``output``."""
        raise NotImplementedError

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), "states": [state.tolist() for state in self._states]}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self._states = [self.xp.asarray(values, self.dtype) for values in state["states"]]

    def _given_states(self, bottom: list[Blob]) -> list[Blob]:
        return bottom[2 + self.has_static :]

    def _project(self, bottom: list[Blob]) -> Array:
        steps, streams = bottom[1].shape
        x = bottom[0].data.reshape(steps * streams, -1)
        rows = matmul(self.xp, x, self._x_weights.data.T)
        rows += self._bias.data
        inputs: Array = rows.reshape(steps, streams, -1)
        if self.has_static:
            static = bottom[2].data.reshape(streams, -1)
            inputs += matmul(self.xp, static, self._static_weights.data.T)
        return inputs


@register("LSTM")
class LSTM(Recurrent):
    """Long short-term memory, unrolled over T steps.

    Per step: i, f, o = sigmoid and g = tanh of the quarters of
    W_x x + b + W_s static + W_h (cont h), then c = cont f c + i g and h = o tanh(c). The output
    is h. Without ``expose_hidden`` the final h and c of one forward are the initial ones of the
    next; gradients stay within one.

    Bottoms: x (T, N, ...); cont (T, N), 0 where a new sequence starts, else 1; optionally a
    static input (N, ...), seen at every step; with ``expose_hidden`` the initial h and c, each
    (1, N, D), which get no gradient. Tops: the output (T, N, D); with ``expose_hidden`` the final
    h and c, each (1, N, D), whose gradients are ignored.
    Parameters: W_x (4D, K), b (4D), W_s (4D, S) if there is a static input, W_h (4D, D).
    Reference: Hochreiter & Schmidhuber, "Long Short-Term Memory", 1997; Donahue et al.,
    "Long-term Recurrent Convolutional Networks", CVPR 2015; Caffe's LSTMLayer.

    Example:
        layer { name: "lstm" type: "LSTM" bottom: "sequence" bottom: "cont" top: "hidden"
            recurrent_param { num_output: 16
                weight_filler { type: "uniform" min: -0.08 max: 0.08 } } }
    """

    bottoms: ClassVar[Bounds] = (2, 5)
    tops: ClassVar[Bounds] = (1, 3)
    num_states = 2
    num_gates = 4

    def unroll(self, inputs: Array, initial: Sequence[Array], output: Array) -> list[Array]:
        h, c = initial
        weights = self._h_weights.data.T
        self._h_prev = self.xp.empty(output.shape, self.dtype)
        self._cells: list[Cell] = []
        for step, cont in enumerate(self._cont):
            self.xp.multiply(cont, h, out=self._h_prev[step])
            gates = inputs[step] + matmul(self.xp, self._h_prev[step], weights)
            cell = Cell(self.xp, gates, c, cont)
            self._cells.append(cell)
            h, c = cell.h, cell.c
            output[step] = h
        return [h, c]

    def unroll_backward(self, d_output: Array) -> Array:
        weights = self._h_weights.data
        d_inputs: Array = self.xp.empty((*d_output.shape[:2], len(weights)), self.dtype)
        dh = dc = self.xp.zeros(d_output.shape[1:], self.dtype)
        for step in reversed(range(self.steps)):
            d_inputs[step], dc = self._cells[step].backward(dc, d_output[step] + dh)
            dh = self._cont[step] * matmul(self.xp, d_inputs[step], weights)
        return d_inputs


@register("RNN")
class RNN(Recurrent):
    """The plain recurrent network, unrolled over T steps.

    h = tanh(W_x x + b + W_s static + W_h (cont h)); the output is tanh(W_o h + b_o). Without
    ``expose_hidden`` the final h of one forward is the initial one of the next; gradients stay
    within one.

    Bottoms: x (T, N, ...); cont (T, N), 0 where a new sequence starts, else 1; optionally a
    static input (N, ...), seen at every step; with ``expose_hidden`` the initial h (1, N, D),
    which gets no gradient. Tops: the output (T, N, D); with ``expose_hidden`` the final h
    (1, N, D), whose gradient is ignored.
    Parameters: W_x (D, K), b (D), W_s (D, S) if there is a static input, W_h (D, D), W_o (D, D),
    b_o (D).
    Reference: Caffe's RNNLayer.

    Example:
        layer { name: "rnn" type: "RNN" bottom: "sequence" bottom: "cont" top: "outputs"
            recurrent_param { num_output: 16 weight_filler { type: "xavier" } } }
    """

    bottoms: ClassVar[Bounds] = (2, 4)
    tops: ClassVar[Bounds] = (1, 2)
    num_states = 1
    num_gates = 1

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        super().setup(bottom, top)
        param, d = self.param.recurrent_param, self.num_output
        self._out_weights = self.add_blob((d, d), param.weight_filler)
        self._out_bias = self.add_blob((d,), param.bias_filler)

    def unroll(self, inputs: Array, initial: Sequence[Array], output: Array) -> list[Array]:
        xp = self.xp
        weights = self._h_weights.data.T
        self._h_prev = xp.empty(output.shape, self.dtype)
        self._h = xp.empty(output.shape, self.dtype)
        h = initial[0]
        for step, cont in enumerate(self._cont):
            xp.multiply(cont, h, out=self._h_prev[step])
            h = xp.tanh(inputs[step] + matmul(xp, self._h_prev[step], weights))
            self._h[step] = h
        xp.tanh(matmul(xp, self._h, self._out_weights.data.T) + self._out_bias.data, out=output)
        self._output = output.copy()
        return [h]

    def unroll_backward(self, d_output: Array) -> Array:
        d = self.num_output
        rows = (d_output * (1 - self._output**2)).reshape(-1, d)
        add_product(self.xp, rows.T, self._h.reshape(-1, d), out=self._out_weights.diff)
        self._out_bias.diff[...] += rows.sum(axis=0)
        d_hidden = matmul(self.xp, rows, self._out_weights.data).reshape(d_output.shape)
        weights = self._h_weights.data
        d_inputs: Array = self.xp.empty(d_output.shape, self.dtype)
        dh = self.xp.zeros(d_output.shape[1:], self.dtype)
        for step in reversed(range(self.steps)):
            d_inputs[step] = (d_hidden[step] + dh) * (1 - self._h[step] ** 2)
            dh = self._cont[step] * matmul(self.xp, d_inputs[step], weights)
        return d_inputs
