"""Sums and statistics over channels, in both orders and all types that activations have."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocaffe.engines.cuda.engine import CudaEngine
from protocaffe.engines.cuda.forms import PRECISIONS, ChannelsLast, Form
from protocaffe.engines.cuda.sums import BLOCKS, add_channel_sums, slice_channels
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from tests.engines.cuda.standin import Array, from_bits, standin_engine, to_bits

KINDS = {"float32": "float", "tf32": "float", "fp16": "half", "bf16": "bfloat16"}
"""What the stand-in calls the type that a precision has."""

few = settings(max_examples=15, deadline=None, derandomize=True)
shapes = st.tuples(
    st.integers(1, 40), st.sampled_from([1, 3, 8, 20, 64, 264]), st.sampled_from([1, 4, 7, 9, 64])
)


BITS = {"float32": 24, "tf32": 24, "fp16": 11, "bf16": 8}

small = st.tuples(st.integers(1, 9), st.sampled_from([1, 3, 8, 20]), st.sampled_from([1, 4, 7, 9]))


@pytest.fixture(scope="module", params=["float32", "fp16", "bf16"])
def engine(request: pytest.FixtureRequest) -> CudaEngine:
    return standin_engine(precision=PRECISIONS[request.param])


def kind(engine: CudaEngine) -> str:
    return KINDS[engine.device.precision.name]


def on_device(values: np.ndarray, engine: CudaEngine, last: bool) -> tuple[Array, np.ndarray]:
    """Return numbers (images, channels, area) in an order, and what they are when rounded."""
    lying = values.swapaxes(1, 2) if last else values
    bits = to_bits(np.ascontiguousarray(lying, np.float32), kind(engine))
    rounded = from_bits(bits, kind(engine)).astype(np.float64)
    return Array(bits.ravel()), rounded.swapaxes(1, 2) if last else rounded


def form_of(values: np.ndarray, last: bool) -> Form:
    return ChannelsLast.of(values.shape) if last else None


def draw(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def close(got: Any, expected: np.ndarray, tolerance: float) -> None:
    scale = max(1e-3, float(np.abs(expected).max()))
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)


@few
@given(shapes, st.booleans())
def test_channel_sums(engine: CudaEngine, shape: tuple[int, int, int], last: bool) -> None:
    array, values = on_device(draw(shape), engine, last)
    out = Array(np.arange(shape[1], dtype=np.float32))
    with engine.active():
        add_channel_sums(engine.device, array, shape, form_of(values, last), out, 0.5)
    expected = np.arange(shape[1]) + 0.5 * values.sum(axis=(0, 2))
    close(out.host, expected, 1e-5)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    "shape", [(128, 64, 112, 112), (32, 2048, 7, 7), (100, 3, 33, 33), (64, 500), (1, 21, 500, 500)]
)
def test_the_work_of_a_sum_is_divided_completely(shape: tuple[int, ...], last: bool) -> None:
    slicing = slice_channels(shape, last, 4)
    per_channel = shape[0] * math.prod(shape[2:])
    assert (slicing.slices - 1) * slicing.numbers < per_channel <= slicing.slices * slicing.numbers
    assert slicing.blocks >= slicing.slices
    if per_channel * shape[1] > 1 << 23:
        assert BLOCKS / 2 <= slicing.blocks <= 2 * BLOCKS


def layer(kind: str, bottom: str, top: str, settings: str = "") -> str:
    name = kind.lower()
    return f'''layer {{ name: "{name}" type: "{kind}" bottom: "{bottom}" top: "{top}"
        {settings} }}'''


def build(
    text: str,
    shape: tuple[int, ...],
    engine: Any,
    phase: int,
    backward: bool = True,
    below: bool = True,
) -> Net:
    """Return a net over a convolution that only copies, whose top lies as the precision has it.

    The last top has a loss weight, without which nothing would run backward; with ``below`` the
    convolution learns.
    """
    dims = " ".join(f"dim: {extent}" for extent in shape)
    end = text[: text.rindex("}")] + "loss_weight: 1 }"
    text = f"""layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ {dims} }} }} }}
        layer {{ name: "copy" type: "Convolution" bottom: "x" top: "c"
            param {{ lr_mult: {int(below)} }} convolution_param {{
            num_output: {shape[1]} kernel_size: 1 bias_term: false }} }} {end}"""
    net = Net(text, phase, engine=engine, seed=1, forward_only=not backward)
    net.params["copy"][0].data[...] = np.eye(shape[1])[..., None, None]
    rng = np.random.default_rng(3)
    for kind, blobs in net.params.items():
        for blob in blobs if kind in ("scale", "bias", "prelu") else ():
            blob.data[...] = rng.standard_normal(blob.shape) + 0.5
    if "batchnorm" in net.params:
        for blob, low in zip(net.params["batchnorm"], (-2, 1, 2), strict=True):
            blob.data[...] = low + 2 * rng.random(blob.shape)
    return net


def agree(
    text: str,
    precision: str,
    shape: tuple[int, ...] = (6, 8, 5, 4),
    phase: int = caffe_pb2.TRAIN,
    backward: bool = True,
    fuses: bool = True,
    below: bool = True,
) -> None:
    """Run the stand-in and the numpy engine on numbers that the precision has; compare all."""
    engine = standin_engine(precision=PRECISIONS[precision])
    nets = [build(text, shape, each, phase, backward, below) for each in (engine, "numpy")]
    if not fuses:
        nets[0].run_one_by_one()
    output = nets[0].outputs[0]
    assert nets[0].layer_needs_backward[-1] == backward
    for seed in range(3):  # as it is, captured, launched
        x, dy = draw(shape, seed), draw(shape, seed + 10)
        for net in nets:
            net.blobs["x"].data[...] = rounded(x, precision)
            net.run_forward()
            net.blobs[output].diff[...] = rounded(dy, precision)
            if seed != 1:  # gradients of parameters add up
                net.clear_param_diffs()
            if backward:
                net.run_backward()
    tolerance = 5 * 2.0 ** -BITS[precision] + 2e-5
    for name, blob in nets[1].blobs.items():
        close(nets[0].blobs[name].data, blob.data, tolerance)
        close(nets[0].blobs[name].diff, blob.diff, tolerance)
    for name, blobs in nets[1].params.items():
        for got, blob in zip(nets[0].params[name], blobs, strict=True):
            close(got.data, blob.data, 1e-5)
            if name != "copy":
                close(got.diff, blob.diff, 1e-4)


def rounded(values: np.ndarray, precision: str) -> np.ndarray:
    kind = KINDS[precision]
    return from_bits(to_bits(np.asarray(values, np.float32), kind), kind)


def chain(top: str, scale: str, relu: str, stats: str = "") -> str:
    text = layer("BatchNorm", "c", top, f"batch_norm_param {{ {stats} }}")
    if scale:
        text += layer("Scale", top, top, scale)
    return text + (layer("ReLU", top, top, relu) if relu else "")


BIASED = "scale_param { bias_term: true }"
SCALES = ["", "scale_param { bias_term: false }", BIASED, f"param {{ lr_mult: 0 }} {BIASED}"]
RELUS = ["", "relu_param { negative_slope: 0 }", "relu_param { negative_slope: 0.25 }"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("relu", RELUS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("top", ["c", "y"])
@pytest.mark.parametrize("stats", ["use_global_stats: true", "moving_average_fraction: 0.9"])
def test_batch_norm_as_one_with_scale_and_relu(
    precision: str, relu: str, scale: str, top: str, stats: str
) -> None:
    agree(chain(top, scale, relu, stats), precision)


@pytest.mark.parametrize("precision", ["float32", "tf32"])
@pytest.mark.parametrize("relu", RELUS)
@pytest.mark.parametrize("scale", SCALES[1:3])
@pytest.mark.parametrize("top", ["c", "y"])
@pytest.mark.parametrize("normalizes", [True, False])
def test_where_nobody_below_wants_a_gradient(
    precision: str, relu: str, scale: str, top: str, normalizes: bool
) -> None:
    text = chain(top, scale, relu)
    if not normalizes:
        text = layer("Scale", "c", top, scale) + (layer("ReLU", top, top, relu) if relu else "")
    agree(text, precision, below=False)


@pytest.mark.parametrize("precision", ["float32", "tf32"])
@pytest.mark.parametrize("top", ["c", "y"])
def test_batch_norm_scale_and_relu_one_by_one(precision: str, top: str) -> None:
    agree(chain(top, BIASED, RELUS[1]), precision, fuses=False)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scale", SCALES[:3])
def test_batch_norm_by_running_statistics(precision: str, scale: str) -> None:
    agree(chain("c", scale, RELUS[1]), precision, phase=caffe_pb2.TEST, backward=False)


@few
@given(small, st.sampled_from(sorted(PRECISIONS)), st.sampled_from(["c", "y"]))
def test_batch_norm_of_any_shape(shape: tuple[int, int, int], precision: str, top: str) -> None:
    if shape[0] * shape[2] < 4:
        shape = (4, *shape[1:])  # a variance of one or two numbers amplifies rounding
    agree(chain(top, BIASED, RELUS[1]), precision, (*shape, 1))


@pytest.mark.parametrize("last", [False, True])
def test_statistics_where_the_mean_is_far_greater_than_the_deviation(last: bool) -> None:
    shape = (40, 8, 40, 10)
    values = (1000 + draw(shape)).astype(np.float32)
    values[0, :, 0, 0] = -3000
    engine = standin_engine(precision=PRECISIONS["tf32" if last else "float32"])
    net = build(chain("y", "", ""), shape, engine, caffe_pb2.TRAIN)
    for blob in net.params["batchnorm"]:
        blob.data[...] = 0
    net.blobs["x"].data[...] = values
    net.run_forward()
    exact = values.astype(np.float64)
    mean, variance = (f(exact, axis=(0, 2, 3)) for f in (np.mean, np.var))
    numbers = values.size // shape[1]
    means, variances, _ = (blob.data for blob in net.params["batchnorm"])
    np.testing.assert_allclose(means, mean, rtol=1e-7)
    np.testing.assert_allclose(variances, variance * numbers / (numbers - 1), rtol=1e-6)
    deviation = np.sqrt(variance + 1e-5)[:, None, None]
    close(net.blobs["y"].data, (exact - mean[:, None, None]) / deviation, 1e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("relu", RELUS)
@pytest.mark.parametrize("top", ["c", "y"])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *(("Scale", scale) for scale in SCALES[1:]),
        ("Scale", f"param {{ lr_mult: 1 }} param {{ lr_mult: 0 }} {BIASED}"),
        ("Bias", ""),
    ],
)
def test_scale_and_bias_as_one_with_relu(
    precision: str, relu: str, top: str, kind: str, settings: str
) -> None:
    text = layer(kind, "c", top, settings) + (layer("ReLU", top, top, relu) if relu else "")
    agree(text, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("top", ["c", "y"])
@pytest.mark.parametrize("shared", ["false", "true"])
@pytest.mark.parametrize("learns", [0, 1])
@pytest.mark.parametrize("shape", [(6, 8, 5, 4), (3, 5, 7, 3), (40, 3, 16, 16)])
def test_prelu(precision: str, top: str, shared: str, learns: int, shape: tuple[int, ...]) -> None:
    settings = f"param {{ lr_mult: {learns} }} prelu_param {{ channel_shared: {shared} }}"
    agree(layer("PReLU", "c", top, settings), precision, shape)
