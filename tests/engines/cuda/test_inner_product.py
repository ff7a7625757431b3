"""InnerProduct with its ReLU in every precision, against products of numbers rounded alike."""

from __future__ import annotations

import numpy as np
import pytest

from protocaffe.engines.cuda.engine import CudaEngine
from protocaffe.engines.cuda.forms import PRECISIONS
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from tests.engines.cuda.places import engine_on
from tests.engines.cuda.standin import from_bits, recorder, standin_engine, to_bits

KINDS = {"fp16": "half", "bf16": "bfloat16"}

BELOW = {
    "input": "",
    "map": "kernel_size: 2",
    "vector": "kernel_size: 3",
}
"""What the bottom is: given, or a convolution's top of several pixels, or of one."""


def rounded(array: np.ndarray, precision: str, factor: float = 1.0) -> np.ndarray:
    """What is multiplied of numbers that are scaled first."""
    kind = KINDS.get(precision, "float")
    scaled = np.ascontiguousarray(array * np.float32(factor), np.float32)
    return from_bits(to_bits(scaled, kind), kind) / np.float32(factor)


def build(engine: CudaEngine, rows: int, below: str, settings: str, slope: float) -> Net:
    layers = f"""layer {{ name: "x" type: "Input" top: "x"
        input_param {{ shape {{ dim: {rows} dim: 2 dim: 3 dim: 3 }} }} }}"""
    if BELOW[below]:
        layers += f"""layer {{ name: "conv" type: "Convolution" bottom: "x" top: "conv"
            convolution_param {{ num_output: 4 {BELOW[below]}
            weight_filler {{ type: "xavier" }} }} }}"""
    layers += f"""layer {{ name: "ip" type: "InnerProduct" top: "y"
        bottom: "{"conv" if BELOW[below] else "x"}"
        inner_product_param {{ num_output: 37 {settings}
        weight_filler {{ type: "xavier" }} bias_filler {{ type: "gaussian" }} }} }}"""
    if slope != 1:
        layers += f"""layer {{ name: "relu" type: "ReLU" bottom: "y" top: "y"
            relu_param {{ negative_slope: {slope} }} }}"""
    return Net(f"force_backward: true {layers}", caffe_pb2.TRAIN, engine=engine, seed=1)


@pytest.mark.parametrize("below", BELOW)
@pytest.mark.parametrize("slope", [1, 0, 0.3])
@pytest.mark.parametrize(("rows", "settings"), [(6, ""), (6, "transpose: true"), (300, "")])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_products_of_rounded_numbers(
    precision: str, rows: int, settings: str, slope: float, below: str
) -> None:
    net = build(standin_engine(precision=PRECISIONS[precision]), rows, below, settings, slope)
    for seed in range(3):
        _check_pass(net, precision, slope, "transpose" in settings, seed)
    recorder.counts.clear()


@pytest.mark.parametrize("below", BELOW)
@pytest.mark.parametrize("precision", ["float32", "fp16", "bf16"])  # tf32 rounds as it likes
def test_products_on_a_gpu(precision: str, below: str) -> None:
    engine = engine_on("a GPU", precision)
    for rows, settings, slope in ((6, "", 0.0), (300, "transpose: true", 0.3), (6, "", 1.0)):
        net = build(engine, rows, below, settings, slope)
        for seed in range(3):
            _check_pass(net, precision, slope, bool(settings), seed)


def _check_pass(net: Net, precision: str, slope: float, transposed: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    net.blobs["x"].data[...] = rng.standard_normal(net.blobs["x"].shape)
    net.run_forward()
    dy = rng.standard_normal(net.blobs["y"].shape).astype(np.float32)
    net.blobs["y"].diff[...] = dy
    net.clear_param_diffs()
    net.run_backward()
    weights, bias = net.params["ip"]
    w = weights.data.T if transposed else weights.data
    w = rounded(w, precision)
    bottom = net.blobs["conv" if "conv" in net.blobs else "x"]
    x = rounded(bottom.data.reshape(len(dy), -1), precision)
    y = x @ w.T + bias.data
    dy = np.where(y > 0, dy, np.float32(slope) * dy)
    y = np.where(y > 0, y, slope * y)
    np.testing.assert_allclose(net.blobs["y"].data, y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(bias.diff, dy.sum(axis=0), rtol=1e-4, atol=1e-4)
    dy = rounded(dy, precision, PRECISIONS[precision].diff_scale)
    dw = dy.T @ x
    np.testing.assert_allclose(weights.diff, dw.T if transposed else dw, rtol=1e-4, atol=1e-4)
    dx = (dy @ w).reshape(bottom.shape)
    if bottom is not net.blobs["x"]:  # which rounds its gradient
        dx = rounded(dx, precision, PRECISIONS[precision].diff_scale)
    tolerance = 2.0**-7 if precision == "bf16" else 1e-3
    np.testing.assert_allclose(bottom.diff, dx, rtol=tolerance, atol=1e-5)
