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
from tests.engines.cuda.standin import Array, from_bits, standin_engine, to_bits

KINDS = {"float32": "float", "fp16": "half", "bf16": "bfloat16"}
"""What the stand-in calls the type that a precision has."""

few = settings(max_examples=15, deadline=None, derandomize=True)
shapes = st.tuples(
    st.integers(1, 40), st.sampled_from([1, 3, 8, 20, 64, 264]), st.sampled_from([1, 4, 7, 9, 64])
)


@pytest.fixture(scope="module", params=KINDS)
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
