"""Layers that pass forms on, in Caffe's order and with channels last, in all precisions.

Every layer runs on numbers that its precision holds exactly and is compared with loops in
float64, so what remains is one rounding of its results.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocaffe.engines.cuda.engine import CudaEngine
from protocaffe.engines.cuda.forms import PRECISIONS, ChannelsLast
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from tests.engines.cuda.standin import from_bits, standin_engine, to_bits

Arrays = list[np.ndarray]
Place = tuple[Any, ...]


@dataclass(frozen=True)
class Case:
    """How the bottoms lie.

    Attributes:
        precision: what ``--precision`` calls it.
        last: whether channels lie last.
        kind: the stand-in's name of the type.
        bits: its mantissa's.
    """

    precision: str
    last: bool
    kind: str
    bits: int


CASES = [
    Case("tf32", False, "float", 24),
    Case("tf32", True, "float", 24),
    Case("fp16", True, "half", 11),
    Case("bf16", True, "bfloat16", 8),
]
_engines: dict[str, CudaEngine] = {}


def engine(case: Case) -> CudaEngine:
    """Return the stand-in; it is compiled once per precision."""
    if case.precision not in _engines:
        _engines[case.precision] = standin_engine(precision=PRECISIONS[case.precision])
    return _engines[case.precision]


def draw(case: Case, shape: tuple[int, ...], seed: int, whole: bool = False) -> np.ndarray:
    """Return random numbers that the case's type holds; ``whole`` ones are equal now and then."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-20, 20, shape) if whole else rng.standard_normal(shape)
    rounded = values.astype(np.float32)
    return from_bits(to_bits(rounded, case.kind), case.kind).astype(np.float32)


class Run:
    """A net's two passes, run twice, so that the second is a graph if there are layers for one.

    Args:
        case: how the bottoms lie.
        layers: the net, but for its inputs, which are called x0, x1...
        xs: the inputs.
        forced: whether the inputs want gradients.

    Attributes:
        tops: data of the tops.
        dys: their gradients.
        dxs: gradients of the inputs.
    """

    def __init__(self, case: Case, layers: str, xs: Arrays, forced: bool = True) -> None:
        inputs = "".join(
            f'layer {{ name: "x{number}" type: "Input" top: "x{number}" input_param {{ shape {{ '
            + " ".join(f"dim: {extent}" for extent in x.shape)
            + " } } }"
            for number, x in enumerate(xs)
        )
        text = f"force_backward: {str(forced).lower()} {inputs} {layers}"
        self.engine = engine(case)
        self.net = net = Net(text, caffe_pb2.TRAIN, engine=self.engine, seed=1)
        bottoms = [net.blobs[f"x{number}"] for number in range(len(xs))]
        device = self.engine.device
        for blob in bottoms:
            if case.last:
                device.assign(blob, ChannelsLast.of(blob.shape))
        for _ in range(2):
            for blob, x in zip(bottoms, xs, strict=True):
                blob.data[...] = x
            net.forward()
            self.tops = [net.blobs[name].data.copy() for name in net.outputs]
            self.dys = [draw(case, top.shape, 7) for top in self.tops]
            for name, dy in zip(net.outputs, self.dys, strict=True):
                net.blobs[name].diff[...] = dy
            net.run_backward()
        self.dxs = [blob.diff.copy() for blob in bottoms]


def assert_rounded(case: Case, got: np.ndarray, expected: np.ndarray, steps: int = 1) -> None:
    """Check that what was computed differs by some roundings of the largest number."""
    scale = np.abs(expected).max(initial=1e-3) * 2.0**-case.bits * steps
    np.testing.assert_allclose(got, expected, rtol=0, atol=scale + 2e-6 * np.abs(expected).max())


def run_settings(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )


cases = st.sampled_from(CASES)
shapes = st.tuples(
    st.integers(1, 3), st.sampled_from([1, 3, 8, 16, 21]), st.integers(1, 6), st.integers(1, 7)
)
in_place = st.booleans()


def neuron(kind: str, top: str, options: str = "") -> str:
    return f'layer {{ name: "y" type: "{kind}" bottom: "x0" top: "{top}" {options} }}'


LAYERS = [
    ("ReLU", ""),
    ("ReLU6", ""),
    ("Dropout", ""),
    ("Split", ""),
    ("Slice", 'top: "z"'),
    ("Concat", 'bottom: "x1"'),
    ("Eltwise", 'bottom: "x1"'),
    ("LRN", ""),
    ("Pooling", "pooling_param { kernel_size: 2 }"),
    ("Pooling", "pooling_param { pool: AVE global_pooling: true }"),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("kind", "options"), LAYERS)
def test_tops_lie_as_bottoms_do(case: Case, kind: str, options: str) -> None:
    xs = [draw(case, (2, 6, 3, 5), seed) for seed in range(1 + ("bottom" in options))]
    net = Run(case, neuron(kind, "y", options), xs).net
    for name in net.outputs:
        blob = net.blobs[name]
        form = ChannelsLast.of(blob.shape) if case.last else None
        assert engine(case).device.form(blob.data_storage) == form
        assert engine(case).device.form(blob.diff_storage) == form


extents = st.sampled_from([1, 2, 3, 5, 31, 32, 33, 64, 70])


@run_settings(120)
@given(
    st.sampled_from(CASES[1:]),
    st.builds(ChannelsLast, st.integers(1, 3), extents, extents | st.integers(1, 1500)),
    st.booleans(),
)
def test_packing(case: Case, form: ChannelsLast, add: bool) -> None:
    device, xp = engine(case).device, engine(case).xp
    shape = (form.images, form.channels, form.area)
    plain, before = draw(case, shape, 0), np.ones(shape, np.float32)
    with device.active():
        packed, back = device.empty(form), xp.asarray(before.ravel())
        device.pack(xp.asarray(plain.ravel()), packed, form, 2.0)
        device.unpack(packed, back, form, 0.25, add)
        numbers, sums = from_bits(packed.get(), case.kind), back.get().reshape(shape)
    numbers = numbers.reshape(form.images, form.area, form.channels)
    np.testing.assert_array_equal(numbers.transpose(0, 2, 1), 2 * plain)
    np.testing.assert_array_equal(sums, plain / 2 + (before if add else 0))


# -- one number in, one number out ---------------------------------------------------------------


@run_settings(60)
@given(cases, shapes, st.sampled_from([0, 0.25]))
def test_relu(case: Case, shape: tuple[int, ...], slope: float) -> None:
    x = draw(case, shape, 0)
    run = Run(case, neuron("ReLU", "y", f"relu_param {{ negative_slope: {slope} }}"), [x])
    assert_rounded(case, run.tops[0], np.where(x > 0, x, slope * x))
    assert_rounded(case, run.dxs[0], run.dys[0] * np.where(x > 0, 1, slope))


@pytest.mark.parametrize("case", CASES)
def test_relu_of_what_is_not_finite(case: Case) -> None:
    x = np.array([np.nan, np.inf, -np.inf, -0.0, 1], np.float32).reshape(1, 5, 1, 1)
    run = Run(case, neuron("ReLU", "y"), [x])
    np.testing.assert_array_equal(run.tops[0].ravel(), [np.nan, np.inf, 0, 0, 1])
    np.testing.assert_array_equal(run.dxs[0].ravel(), run.dys[0].ravel() * [0, 1, 0, 0, 1])


@run_settings(40)
@given(cases, shapes)
def test_relu6(case: Case, shape: tuple[int, ...]) -> None:
    x = 6 * draw(case, shape, 0)
    run = Run(case, neuron("ReLU6", "y"), [x])
    assert_rounded(case, run.tops[0], np.clip(run.net.blobs["x0"].data, 0, 6))
    y = run.tops[0]
    assert_rounded(case, run.dxs[0], run.dys[0] * ((y > 0) & (y < 6)))


@run_settings(40)
@given(cases, shapes)
def test_dropout(case: Case, shape: tuple[int, ...]) -> None:
    x = np.ones(shape, np.float32)
    run = Run(case, neuron("Dropout", "y", "dropout_param { dropout_ratio: 0.5 }"), [x])
    kept = run.tops[0] != 0
    np.testing.assert_array_equal(run.tops[0], 2.0 * kept)
    np.testing.assert_array_equal(run.dxs[0], 2 * run.dys[0] * kept)


FUNCTIONS = {
    "AbsVal": np.abs,
    "BNLL": lambda x: np.log1p(np.exp(x)),
    "ELU": lambda x: np.where(x > 0, x, np.expm1(x)),
    "Exp": np.exp,
    "Power": lambda x: x,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "TanH": np.tanh,
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_functions(case: Case, kind: str) -> None:
    x, function, h = draw(case, (2, 8, 3, 5), 0), FUNCTIONS[kind], 1e-6
    run = Run(case, neuron(kind, "y"), [x])
    wide = x.astype(np.float64)
    slope = (function(wide + h) - function(wide - h)) / (2 * h)
    assert_rounded(case, run.tops[0], function(wide))
    assert_rounded(case, run.dxs[0], run.dys[0] * slope, steps=2)
    form = engine(case).device.form(run.net.blobs["y"].data_storage)
    assert (form is None) == (not case.last or case.precision != "tf32")


# -- sums ----------------------------------------------------------------------------------------


@run_settings(80)
@given(cases, shapes, st.integers(2, 6), st.booleans(), st.sampled_from([None, 0, 0.5]), in_place)
def test_eltwise_sum(
    case: Case,
    shape: tuple[int, ...],
    number: int,
    weighted: bool,
    slope: float | None,
    inside: bool,
) -> None:
    xs = [draw(case, shape, seed, whole=True) for seed in range(number)]
    coeffs = [2.0, -1.0, 0.5, 4.0, 1.0, -2.0][:number] if weighted else [1.0] * number
    top = "c" if inside else "y"
    bottoms = " ".join(
        f'bottom: "{"c" if inside and not each else f"x{each}"}"' for each in range(number)
    )
    options = " ".join(f"coeff: {each}" for each in coeffs) if weighted else ""
    text = f'layer {{ name: "sum" type: "Eltwise" {bottoms} top: "{top}" eltwise_param {{'
    text += f" {options} }} }}"
    if inside:
        text = neuron("ReLU", "c", "relu_param { negative_slope: 1 }") + text
    if slope is not None:
        text += f'layer {{ name: "relu" type: "ReLU" bottom: "{top}" top: "{top}" relu_param {{ '
        text += f"negative_slope: {slope} }} }}"
    run = Run(case, text, xs)
    total = sum(a * x.astype(np.float64) for a, x in zip(coeffs, xs, strict=True))
    bent = np.where(total > 0, 1, 1 if slope is None else slope)
    assert_rounded(case, run.tops[0], total * bent, steps=number)
    for dx, coeff in zip(run.dxs, coeffs, strict=True):
        assert_rounded(case, dx, coeff * run.dys[0] * bent, steps=2)
    if not inside:
        assert_rounded(case, run.net.blobs[top].diff, run.dys[0] * bent, steps=2)


@run_settings(40)
@given(cases, shapes, st.integers(2, 9))
def test_split(case: Case, shape: tuple[int, ...], number: int) -> None:
    x = draw(case, shape, 0)
    tops = " ".join(f'top: "y{each}"' for each in range(number))
    run = Run(case, f'layer {{ name: "split" type: "Split" bottom: "x0" {tops} }}', [x])
    for top in run.tops:
        np.testing.assert_array_equal(top, x)
    assert_rounded(case, run.dxs[0], np.sum(run.dys, axis=0, dtype=np.float64), steps=number)


# -- parts ---------------------------------------------------------------------------------------


@run_settings(60)
@given(cases, shapes, st.lists(st.sampled_from([1, 3, 8, 16]), min_size=1, max_size=5))
def test_concat_and_slice(case: Case, shape: tuple[int, ...], channels: list[int]) -> None:
    xs = [draw(case, (shape[0], each, *shape[2:]), each) for each in channels]
    bottoms = " ".join(f'bottom: "x{each}"' for each in range(len(xs)))
    tops = " ".join(f'top: "y{each}"' for each in range(len(xs)))
    points = " ".join(f"slice_point: {each}" for each in np.cumsum(channels)[:-1])
    text = f"""layer {{ name: "join" type: "Concat" {bottoms} top: "all" }}
        layer {{ name: "cut" type: "Slice" bottom: "all" {tops} slice_param {{ {points} }} }}"""
    run = Run(case, text, xs)
    np.testing.assert_array_equal(run.net.blobs["all"].data, np.concatenate(xs, axis=1))
    for x, y, dx, dy in zip(xs, run.tops, run.dxs, run.dys, strict=True):
        np.testing.assert_array_equal(y, x)
        np.testing.assert_array_equal(dx, dy)


@pytest.mark.parametrize("case", CASES)
def test_concat_where_a_gradient_is_not_wanted(case: Case) -> None:
    xs = [draw(case, (2, channels, 3, 4), channels) for channels in (8, 3, 8, 16)]
    scale = 'layer {{ name: "s{0}" type: "Scale" bottom: "x{0}" top: "s{0}" }}'
    text = "".join(scale.format(number) for number in (0, 2, 3))
    wires = 'bottom: "s0" bottom: "x1" bottom: "s2" bottom: "s3"'
    text += f'layer {{ name: "y" type: "Concat" {wires} top: "y" loss_weight: 1 }}'
    run = Run(case, text, xs, forced=False)
    np.testing.assert_array_equal(run.tops[0], np.concatenate(xs, axis=1))
    parts = np.split(run.dys[0], [8, 11, 19], axis=1)
    for number in (0, 2, 3):
        np.testing.assert_array_equal(run.net.blobs[f"s{number}"].diff, parts[number])
    np.testing.assert_array_equal(run.net.blobs["x1"].diff, 0)


@pytest.mark.parametrize(("case", "axis"), list(product(CASES, [0, 2, 3])))
def test_concat_along_other_axes(case: Case, axis: int) -> None:
    xs = [draw(case, (2, 8, 3, 4), seed) for seed in range(2)]
    text = f"""layer {{ name: "y" type: "Concat" bottom: "x0" bottom: "x1" top: "y"
        concat_param {{ axis: {axis} }} }}"""
    run = Run(case, text, xs)
    np.testing.assert_array_equal(run.tops[0], np.concatenate(xs, axis=axis))
    for dx, dy in zip(run.dxs, np.split(run.dys[0], 2, axis=axis), strict=True):
        np.testing.assert_array_equal(dx, dy)


# -- pooling -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Along:
    """A pooling layer's settings along one axis."""

    extent: int
    kernel: int
    stride: int
    pad: int

    def options(self, axis: str) -> str:
        return f"kernel_{axis}: {self.kernel} stride_{axis}: {self.stride} pad_{axis}: {self.pad}"

    def pixels(self, window: int) -> tuple[slice, int]:
        """Return a window's pixels, and how many there are within the padding, too."""
        start = window * self.stride - self.pad
        end = start + self.kernel
        return slice(max(start, 0), max(end, 0)), min(end, self.extent + self.pad) - start


@dataclass(frozen=True)
class Pools:
    """A pooling layer's settings, and the images."""

    images: int
    channels: int
    rows: Along
    columns: Along
    rounds: str = "CEIL"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.images, self.channels, self.rows.extent, self.columns.extent

    def windows(self, extents: tuple[int, ...]) -> Iterator[tuple[Place, Place, float]]:
        """Yield each window's place, its pixels and Caffe's divisor."""
        for row, column in np.ndindex(*extents):
            (high, height), (wide, width) = self.rows.pixels(row), self.columns.pixels(column)
            yield (..., row, column), (..., high, wide), max(height * width, 1)


@st.composite
def alongs(draw_value: st.DrawFn) -> Along:
    extent, pad = draw_value(st.integers(1, 7)), draw_value(st.integers(0, 2))
    kernel = draw_value(st.integers(pad + 1, max(min(extent + 2 * pad, 4), pad + 1)))
    return Along(extent, kernel, draw_value(st.integers(1, 4)), pad)


pools = st.builds(
    Pools,
    st.integers(1, 3),
    st.sampled_from([1, 3, 8, 16, 21]),
    alongs(),
    alongs(),
    st.sampled_from(["CEIL", "FLOOR"]),
)


def pool(case: Case, windows: Pools, method: str, x: np.ndarray, tops: str = 'top: "y"') -> Run:
    options = f"{windows.rows.options('h')} {windows.columns.options('w')}"
    options = f"pooling_param {{ pool: {method} {options} round_mode: {windows.rounds} }}"
    return Run(case, f'layer {{ name: "y" type: "Pooling" bottom: "x0" {tops} {options} }}', [x])


@run_settings(120)
@given(cases, pools)
def test_average_pooling(case: Case, windows: Pools) -> None:
    x = draw(case, windows.shape, 0)
    run = pool(case, windows, "AVE", x)
    y, dx = np.zeros(run.tops[0].shape), np.zeros(x.shape)
    for window, pixels, area in windows.windows(y.shape[2:]):
        y[window] = x[pixels].sum(axis=(2, 3), dtype=np.float64) / area
        dx[pixels] += run.dys[0][window][..., None, None] / area
    assert_rounded(case, run.tops[0], y)
    assert_rounded(case, run.dxs[0], dx)


@run_settings(120)
@given(cases, pools)
def test_maximum_pooling(case: Case, windows: Pools) -> None:
    x = draw(case, windows.shape, 0, whole=True)
    run = pool(case, windows, "MAX", x, 'top: "y" top: "z"')
    places, dx = np.full(run.tops[0].shape, -1), np.zeros(x.shape)
    y = np.full(run.tops[0].shape, -np.finfo(np.float32).max)
    numbers = np.arange(np.prod(x.shape[2:])).reshape(x.shape[2:])
    for (_, *window), pixels, _ in windows.windows(y.shape[2:]):
        for image in np.ndindex(*x.shape[:2]):
            seen = x[image][pixels]
            if seen.size:
                place = numbers[pixels].ravel()[seen.argmax()]
                y[(*image, *window)], places[(*image, *window)] = seen.max(), place
                dx[image].flat[place] += run.dys[0][(*image, *window)]
    kept = places >= 0
    np.testing.assert_array_equal(run.tops[0][kept], y[kept])
    assert (run.tops[0][~kept] < -1e38).all()
    np.testing.assert_array_equal(run.tops[1], places)
    assert_rounded(case, run.dxs[0], dx)


@pytest.mark.parametrize("case", CASES)
def test_nan_is_no_maximum(case: Case) -> None:
    x = np.full((1, 8, 2, 2), np.nan, np.float32)
    x[0, 0, 1, 0] = 3
    run = pool(case, Pools(1, 8, Along(2, 2, 1, 0), Along(2, 2, 1, 0)), "MAX", x)
    assert run.tops[0][0, 0] == 3
    assert (run.tops[0][0, 1:] < -1e38).all()
    assert run.dxs[0][0, 0, 1, 0] == run.dys[0][0, 0]
    assert np.count_nonzero(run.dxs[0]) == 1


@run_settings(60)
@given(cases, st.integers(1, 3), st.sampled_from([1, 5, 40, 256, 300]), st.integers(1, 90))
def test_global_average_pooling(case: Case, images: int, channels: int, width: int) -> None:
    x = draw(case, (images, channels, 2, width), 0)
    options = "pooling_param { pool: AVE global_pooling: true }"
    run = Run(case, neuron("Pooling", "y", options), [x])
    assert_rounded(case, run.tops[0], x.mean(axis=(2, 3), keepdims=True, dtype=np.float64))
    assert_rounded(case, run.dxs[0], np.broadcast_to(run.dys[0] / (2 * width), x.shape))


# -- LRN -----------------------------------------------------------------------------------------


@run_settings(100)
@given(cases, shapes, st.sampled_from([1, 3, 5, 7, 17]), st.sampled_from([0.75, 0.6]), in_place)
def test_lrn(case: Case, shape: tuple[int, ...], size: int, beta: float, inside: bool) -> None:
    x = draw(case, shape, 0)
    options = f"lrn_param {{ local_size: {size} alpha: 2 beta: {beta} k: 1.5 }}"
    text = f'layer {{ name: "y" type: "LRN" bottom: "x0" top: "y" {options} }}'
    if inside:
        text = neuron("Split", "c") + text.replace("x0", "c").replace('top: "y"', 'top: "c"')
    run = Run(case, text, [x])
    wide, dy = x.astype(np.float64), run.dys[0].astype(np.float64)
    s = 1.5 + 2 / size * over_channels(wide**2, size)
    assert_rounded(case, run.tops[0], wide * s**-beta)
    shared = over_channels(dy * wide * s ** (-beta - 1), size)
    assert_rounded(case, run.dxs[0], dy * s**-beta - 4 * beta / size * wide * shared)


def over_channels(values: np.ndarray, size: int) -> np.ndarray:
    """Return the sums over each channel's neighbours."""
    sums = np.zeros_like(values)
    for channel in range(values.shape[1]):
        near = slice(max(channel - size // 2, 0), channel + size // 2 + 1)
        sums[:, channel] = values[:, near].sum(axis=1)
    return sums


@pytest.mark.parametrize("case", CASES)
def test_lrn_of_zeros_without_k(case: Case) -> None:
    x = np.zeros((1, 8, 1, 2), np.float32)
    x[0, 4] = 1
    options = "lrn_param { local_size: 3 alpha: 3 k: 0 }"
    run = Run(case, neuron("LRN", "y", options), [x])
    np.testing.assert_array_equal(run.tops[0][0, :, 0, 0], [*[np.nan] * 3, 0, 1, 0, *[np.nan] * 2])
