"""Checks backward passes against differences of forward passes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from protocaffe.blob import Array
from protocaffe.errors import NetError
from protocaffe.net import Net


class GradientError(NetError):
    """A gradient that backward gets wrong."""


def check_gradients(
    net: Net, *, step: float = 1e-5, rtol: float = 1e-5, atol: float = 1e-7, seed: int = 0
) -> dict[str, float]:
    """Compare every gradient that a net computes with differences of its outputs.

    What is differentiated is the net's loss, plus a random weighted sum of the outputs that are
    no losses. Every number x of every input and parameter that has a gradient is moved to either
    side, and the gradient should be ``(f(x + step) - f(x - step)) / (2 step)``. That holds where
    f is smooth: put the inputs away from kinks, such as 0 for a ReLU.

    Args:
        net: small, with ``dtype="float64"`` (float32 is too coarse), its inputs set. Write
            ``force_backward: true`` into it to have the inputs' gradients checked.
        step: how far a number is moved.
        rtol: how much the two may differ, relative to the larger one.
        atol: how much they may differ besides.
        seed: of the weights of that sum.

    Returns:
        Per input (``"x"``) and parameter (``"ip[0]"``) the largest difference found.

    Raises:
        GradientError: they differ; the message says where most, and by how much.
        NetError: the net is not float64, or computes no gradients.

    Example:
        net = protocaffe.Net('''
            force_backward: true
            layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }
            layer { name: "tanh" type: "TanH" bottom: "x" top: "y" }
        ''', protocaffe.TRAIN, dtype="float64")
        net.blobs["x"].data[...] = numpy.random.randn(2, 3)
        protocaffe.check_gradients(net)
    """
    if net.dtype != np.float64:
        raise NetError("gradients can be checked in float64 only: Net(..., dtype='float64')")
    random, state = np.random.default_rng(seed), net.get_state()
    net.run_forward()
    weights = {}
    for name in net.outputs:
        blob = net.blobs[name]
        own = net.blob_loss_weights[name] != 0
        weights[name] = blob.diff.copy() if own else random.normal(size=blob.shape)

    def objective() -> float:
        net.set_state(state)  # the same dropout every time
        net.run_forward()
        return sum(float((w * net.blobs[name].data).sum()) for name, w in weights.items())

    objective()
    for name, weight in weights.items():
        net.blobs[name].diff[...] = weight
    net.clear_param_diffs()
    net.run_backward()
    variables = _variables(net)
    if not variables:
        raise NetError(
            f"net '{net.name}' computes no gradient of an input or parameter; write "
            f"force_backward: true into it"
        )
    gradients = {name: diff.copy() for name, (_, diff) in variables.items()}
    return {
        name: _compare(name, gradients[name], differences(objective, values, step), rtol, atol)
        for name, (values, _) in variables.items()
    }


def differences(function: Callable[[], float], values: Array, step: float) -> Array:
    """Return how much a function changes with each number of an array, per unit.

    Args:
        function: reads the array.
        values: the array; each number is moved to either side and put back.
        step: how far.
    """
    result = np.empty(values.shape)
    for index in np.ndindex(values.shape):
        kept = values[index]
        values[index] = kept + step
        above = function()
        values[index] = kept - step
        below = function()
        values[index] = kept
        result[index] = (above - below) / (2 * step)
    return result


def _variables(net: Net) -> dict[str, tuple[Array, Array]]:
    """Return values and diffs of the inputs and parameters whose gradient backward computes."""
    found = {}
    for node, names in zip(net.nodes, net.bottom_names.values(), strict=True):
        for name, wanted in zip(names, node.propagate_down, strict=True):
            if wanted and name in net.inputs and node.needs_backward:
                found[name] = net.blobs[name].data, net.blobs[name].diff
    for layer in net.layers:
        for index, (blob, wanted) in enumerate(
            zip(layer.blobs, layer.param_propagate_down, strict=True)
        ):
            if wanted:
                found[f"{layer.name}[{index}]"] = blob.data, blob.diff
    return found


def _compare(name: str, gradient: Array, numeric: Array, rtol: float, atol: float) -> float:
    difference = np.abs(gradient - numeric)
    allowed = atol + rtol * np.maximum(np.abs(gradient), np.abs(numeric))
    wrong = ~(difference <= allowed)  # nan is wrong, too
    if not wrong.any():
        return float(difference.max(initial=0))
    worst = np.unravel_index(
        np.argmax(np.where(wrong, np.nan_to_num(difference, nan=np.inf), -1)), difference.shape
    )
    place = tuple(int(each) for each in worst)
    raise GradientError(
        f"the gradient of {name} is wrong in {np.count_nonzero(wrong)} of {wrong.size} places, "
        f"most at {place}: backward gives {gradient[worst]:g}, differences of the outputs "
        f"{numeric[worst]:g}"
    )
