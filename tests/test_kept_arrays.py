"""Arrays that somebody keeps: any order of passes, writes and reshapes, on both engines."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocaffe.blob import Array
from protocaffe.engines import get_engine
from protocaffe.errors import UsageError
from protocaffe.net import Net

try:
    get_engine("onednn")
except UsageError as reason:  # pragma: no cover - depends on the machine
    pytest.skip(f"one engine only: {reason}", allow_module_level=True)

FILLER = 'weight_filler { type: "xavier" }'
NET = f"""
layer {{ name: "in" type: "Input" top: "x" top: "label"
        input_param {{ shape {{ dim: 3 dim: 16 dim: 7 dim: 7 }} shape {{ dim: 3 }} }} }}
layer {{ name: "conv" type: "Convolution" bottom: "x" top: "conv"
        convolution_param {{ num_output: 32 kernel_size: 3 {FILLER} }} }}
layer {{ name: "norm" type: "BatchNorm" bottom: "conv" top: "norm" }}
layer {{ name: "scale" type: "Scale" bottom: "norm" top: "norm" scale_param {{ bias_term: true }} }}
layer {{ name: "relu" type: "ReLU" bottom: "norm" top: "norm" }}
layer {{ name: "left" type: "Convolution" bottom: "norm" top: "left"
        convolution_param {{ num_output: 16 kernel_size: 3 {FILLER} }} }}
layer {{ name: "leftrelu" type: "ReLU" bottom: "left" top: "left" }}
layer {{ name: "right" type: "Convolution" bottom: "norm" top: "right"
        convolution_param {{ num_output: 16 kernel_size: 3 {FILLER} }} }}
layer {{ name: "both" type: "Concat" bottom: "left" bottom: "right" top: "both" }}
layer {{ name: "sum" type: "Eltwise" bottom: "left" bottom: "right" top: "sum" }}
layer {{ name: "pool" type: "Pooling" bottom: "both" top: "pool"
        pooling_param {{ kernel_size: 2 stride: 2 }} }}
layer {{ name: "flat" type: "Flatten" bottom: "sum" top: "flat" }}
layer {{ name: "ip" type: "InnerProduct" bottom: "pool" top: "ip"
        inner_product_param {{ num_output: 5 {FILLER} }} }}
layer {{ name: "ip2" type: "InnerProduct" bottom: "flat" top: "ip2"
        inner_product_param {{ num_output: 5 {FILLER} }} }}
layer {{ name: "total" type: "Eltwise" bottom: "ip" bottom: "ip2" top: "total" }}
layer {{ name: "tanh" type: "TanH" bottom: "total" top: "total" }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "total" bottom: "label" top: "loss" }}
"""
WATCHED = [
    *(("blobs", name) for name in ("x", "conv", "norm", "left", "both", "sum", "flat", "ip")),
    *(("params", name) for name in ("conv", "scale", "left", "ip2")),
]
LAYERS = ["conv", "norm", "scale", "relu", "left", "leftrelu", "pool", "ip", "tanh", "loss"]


class Pair:
    """A net on either engine, and the arrays of both that are kept."""

    def __init__(self, text: str, phase: int) -> None:
        self.nets = [Net(text, phase, engine=engine, seed=1) for engine in ("numpy", "onednn")]
        self.kept: dict[tuple[str, str, str], list[Array]] = {}
        self.rng = np.random.default_rng(0)
        for net in self.nets:
            for blob in net.params["norm"]:
                blob.data = 1
        self.resize(3)

    def keep(self, what: tuple[str, str], side: str) -> None:
        self.kept[(*what, side)] = [
            getattr(net.blobs[what[1]] if what[0] == "blobs" else net.params[what[1]][0], side)
            for net in self.nets
        ]

    def write(self) -> None:
        """Write into what is kept, if it is an input or a parameter, else into the input."""
        for (kind, name, side), arrays in self.kept.items():
            if side == "data" and (kind == "params" or name == "x"):
                values = self.rng.normal(size=arrays[0].shape) * 0.3
                for array in arrays:
                    array[...] = values
        self.each(lambda net: net.forward())

    def resize(self, rows: int) -> None:
        """Change the batch; what is kept of blobs but the input is of other blobs then."""
        for key in [key for key in self.kept if key[0] == "blobs" and key[1:] != ("x", "data")]:
            del self.kept[key]
        values = self.rng.normal(size=(rows, 16, 7, 7))
        for net in self.nets:
            net.blobs["x"].reshape(*values.shape)
            net.blobs["label"].reshape(rows)
            net.blobs["x"].data, net.blobs["label"].data = values, np.arange(rows)
            net.blobs["x"].diff = 0
            net.forward()

    def part(self, ends: tuple[int, int], backward: bool) -> None:
        first, last = (LAYERS[place] for place in sorted(ends))
        self.each(lambda net: net.forward(start=first, end=last))
        self.each(lambda net: net.forward())
        if backward:
            self.each(lambda net: net.backward(start=last, end=first))

    def each(self, run: Callable[[Net], object]) -> None:
        for net in self.nets:
            run(net)

    def check(self) -> None:
        results = [net.blobs["total"].data for net in self.nets]  # whether or not kept
        for key, (one, other) in {**self.kept, "total": results}.items():
            bound = 1e-3 * np.abs(one).max() + 1e-6
            np.testing.assert_allclose(other, one, rtol=1e-3, atol=bound, err_msg=str(key))


place = st.integers(0, len(LAYERS) - 1)
moves = st.one_of(
    st.tuples(st.just("keep"), st.sampled_from(WATCHED), st.sampled_from(["data", "diff"])),
    st.tuples(st.just("write")),
    st.tuples(st.just("whole")),
    st.tuples(st.just("part"), st.tuples(place, place), st.booleans()),
    st.tuples(st.just("resize"), st.integers(1, 3)),
    st.tuples(st.just("clear")),
    st.tuples(st.just("drop")),
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
@given(st.lists(moves, max_size=15), st.sampled_from([0, 1]), st.booleans())
def test_kept_arrays_are_the_blobs_whatever_happens(
    steps: list[tuple], phase: int, force: bool
) -> None:
    pair = Pair(("force_backward: true" if force else "") + NET, phase)
    for move, *arguments in steps:
        if move == "whole":
            pair.each(lambda net: net.forward())
            pair.each(lambda net: net.backward())
        elif move == "clear":
            pair.each(lambda net: net.clear_param_diffs())
        elif move == "drop":
            pair.kept.clear()
        else:
            getattr(pair, move)(*arguments)
        pair.check()
