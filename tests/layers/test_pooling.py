import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from protocaffe.errors import LayerError
from protocaffe.proto import caffe_pb2
from tests.layers.gradient_check import Runner, check_gradients, spaced

LOWEST = -float(np.finfo(np.float32).max)


def naive(x, method, kernel, stride, pad, floor=False):
    """Pool (N, C, H, W) window by window; return values and indices."""
    sizes = x.shape[2:]
    rounding = math.floor if floor else math.ceil
    outputs = [
        rounding((size + 2 * p - k) / s) + 1
        for size, k, s, p in zip(sizes, kernel, stride, pad, strict=True)
    ]
    if any(pad):
        outputs = [
            out - 1 if (out - 1) * s >= size + p else out
            for out, size, s, p in zip(outputs, sizes, stride, pad, strict=True)
        ]
    y = np.zeros((*x.shape[:2], *outputs))
    index = np.full(y.shape, -1)
    for n, c, p, q in np.ndindex(*y.shape):
        start = (p * stride[0] - pad[0], q * stride[1] - pad[1])
        rows, columns = (
            range(max(0, begin), min(begin + k, size))
            for begin, k, size in zip(start, kernel, sizes, strict=True)
        )
        pixels = [(x[n, c, h, w], h, w) for h in rows for w in columns]
        if method == "AVE":
            area = math.prod(
                min(begin + k, size + edge) - begin
                for begin, k, size, edge in zip(start, kernel, sizes, pad, strict=True)
            )
            y[n, c, p, q] = sum(value for value, _, _ in pixels) / area
            continue
        y[n, c, p, q] = LOWEST
        for value, h, w in pixels:
            if value > y[n, c, p, q]:
                y[n, c, p, q], index[n, c, p, q] = value, h * sizes[1] + w
    return y, index


@st.composite
def windows(draw):
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(2))
    stride = tuple(draw(st.integers(1, k)) for k in kernel)
    pad = tuple(draw(st.integers(0, k - 1)) for k in kernel)
    extents = tuple(
        draw(st.integers(max(1, k - 2 * p), k + 4)) for k, p in zip(kernel, pad, strict=True)
    )
    floor = draw(st.booleans())
    text = (
        f"kernel_h: {kernel[0]} kernel_w: {kernel[1]} stride_h: {stride[0]} "
        f"stride_w: {stride[1]} pad_h: {pad[0]} pad_w: {pad[1]}"
        + (" round_mode: FLOOR" if floor else "")
    )
    return text, extents, (kernel, stride, pad, floor)


@given(windows(), st.sampled_from(["MAX", "AVE"]), st.integers(0, 999))
@settings(deadline=None, max_examples=80)
def test_is_the_naive_pooling(case, method, seed):
    text, extents, window = case
    # Few different values, so that ties are common.
    x = np.random.default_rng(seed).integers(-2, 3, (2, 2, *extents))
    tops = 2 if method == "MAX" else 1
    runner = Runner(f'type: "Pooling" pooling_param {{ pool: {method} {text} }}', x, tops=tops)
    y, *mask = runner.forward()
    values, index = naive(x, method, *window)
    np.testing.assert_allclose(y, values, atol=1e-12)
    if mask:
        np.testing.assert_array_equal(mask[0], index)


@given(windows(), st.sampled_from(["MAX", "AVE"]), st.integers(0, 999))
@settings(deadline=None, max_examples=20)
def test_gradients(case, method, seed):
    text, extents, _ = case
    rng = np.random.default_rng(seed)
    x = spaced(rng, (1, 2, *extents))
    runner = Runner(f'type: "Pooling" pooling_param {{ pool: {method} {text} }}', x)
    check_gradients(runner, rng)


def stochastic(text, x, phase=caffe_pb2.TRAIN, seed=0):
    runner = Runner(f'type: "Pooling" pooling_param {{ pool: STOCHASTIC {text} }}', x, phase=phase)
    runner.layer.rng = np.random.default_rng(seed)
    runner.layer.reshape(runner.bottom, runner.top)
    return runner


def unpadded(case):
    """The text of a case without its padding, its kernel and its stride."""
    text, _, (kernel, stride, _, floor) = case
    return text.split(" pad_h")[0] + " round_mode: FLOOR" * floor, kernel, stride


@given(windows(), st.integers(0, 999))
@settings(deadline=None, max_examples=40)
def test_stochastic_pooling_is_the_naive_draw(case, seed):
    text, kernel, stride = unpadded(case)
    extents = [k + 3 for k in kernel]
    x = np.random.default_rng(seed).integers(0, 4, (2, 2, *extents)).astype(float)
    runner = stochastic(text, x, seed=seed)
    (y,) = runner.forward()
    dy = np.arange(1.0, y.size + 1).reshape(y.shape)
    (dx,) = runner.backward(dy)
    shares = np.random.default_rng(seed).random((4, *y.shape[2:]), np.float32).reshape(y.shape)
    expected, gradient = np.zeros_like(y), np.zeros_like(x)
    for n, c, p, q in np.ndindex(*y.shape):
        row, column = p * stride[0], q * stride[1]
        window = x[n, c, row : row + kernel[0], column : column + kernel[1]]
        running = np.cumsum(window)
        first = np.argmax(running >= shares[n, c, p, q] * running[-1])
        h, w = np.unravel_index(first, window.shape)
        expected[n, c, p, q] = window[h, w]
        gradient[n, c, row + h, column + w] += dy[n, c, p, q]
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_allclose(dx, gradient)


@given(windows(), st.integers(0, 999))
@settings(deadline=None, max_examples=40)
def test_stochastic_pooling_weighs_by_share_in_test(case, seed):
    text, kernel, stride = unpadded(case)
    x = np.random.default_rng(seed).integers(-1, 4, (2, 2, *(k + 3 for k in kernel))).astype(float)
    (y,) = stochastic(text, x, caffe_pb2.TEST).forward()
    for n, c, p, q in np.ndindex(*y.shape):
        row, column = p * stride[0], q * stride[1]
        window = x[n, c, row : row + kernel[0], column : column + kernel[1]]
        expected = (window**2).sum() / window.sum() if window.sum() > 0 else 0
        assert y[n, c, p, q] == pytest.approx(expected)


def test_stochastic_pooling_draws_by_share_and_has_no_gradient_in_test():
    x = np.tile([[1.0, 2.0], [3.0, 4.0]], (200, 20, 1, 1)).reshape(200, 20, 2, 2)
    (y,) = stochastic("kernel_size: 2", x).forward()
    counts = np.unique(y, return_counts=True)[1] / y.size
    np.testing.assert_allclose(counts, [0.1, 0.2, 0.3, 0.4], atol=0.03)
    runner = stochastic("kernel_size: 2", x, caffe_pb2.TEST)
    runner.forward()
    with pytest.raises(LayerError, match="STOCHASTIC has a gradient in phase TRAIN only"):
        runner.backward(1)


def test_the_first_of_equal_pixels_gets_the_gradient():
    runner = Runner('type: "Pooling" pooling_param { kernel_size: 3 }', np.ones((1, 1, 3, 3)))
    runner.forward()
    (dx,) = runner.backward(5)
    assert dx[0, 0, 0, 0] == 5
    assert dx.sum() == 5


@pytest.mark.parametrize("method", ["MAX", "AVE"])
def test_global_pooling_follows_the_image(method):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 5, 4))
    text = f'type: "Pooling" pooling_param {{ pool: {method} global_pooling: true }}'
    runner = Runner(text, x)
    reduce = np.max if method == "MAX" else np.mean
    np.testing.assert_allclose(runner.forward()[0][:, :, 0, 0], reduce(x, axis=(2, 3)))
    runner.values = [x[:, :, :3]]
    runner.bottom[0].reshape(2, 3, 3, 4)
    runner.layer.reshape(runner.bottom, runner.top)
    np.testing.assert_allclose(runner.forward()[0][:, :, 0, 0], reduce(x[:, :, :3], axis=(2, 3)))


def test_a_window_outside_the_image_is_the_lowest_float_and_gets_no_gradient():
    text = 'type: "Pooling" pooling_param { kernel_size: 1 stride: 3 }'
    runner = Runner(text, np.ones((1, 1, 3, 3)), tops=2)
    y, mask = runner.forward()
    assert y.ravel().tolist() == [1, LOWEST, LOWEST, LOWEST]
    assert mask.ravel().tolist() == [0, -1, -1, -1]
    (dx,) = runner.backward(np.ones_like(y), 0)
    assert dx.sum() == 1


def test_nan_never_wins():
    x = np.array([[np.nan, 1.0], [2.0, np.nan]]).reshape(1, 1, 2, 2)
    (y,) = Runner('type: "Pooling" pooling_param { kernel_size: 2 }', x).forward()
    assert y.item() == 2


@pytest.mark.parametrize(
    ("param", "shape", "message"),
    [
        ("", (1, 1, 4, 4), "kernel_size is missing"),
        ("kernel_h: 2", (1, 1, 4, 4), "must be given together, got only kernel_h"),
        ("kernel_size: 2 kernel_h: 2 kernel_w: 2", (1, 1, 4, 4), "not both"),
        ("kernel_size: 2 pad_h: 1", (1, 1, 4, 4), "must be given together, got only pad_h"),
        ("kernel_size: 2 stride: 0", (1, 1, 4, 4), "must be at least 1"),
        ("kernel_size: 2 pad: 2", (1, 1, 4, 4), "must be smaller than the kernel"),
        ("kernel_size: 2 global_pooling: true", (1, 1, 4, 4), "takes no kernel_size"),
        ("global_pooling: true pad: 1", (1, 1, 4, 4), "needs pad 0 and stride 1"),
        ("kernel_size: 2 pad: 1 pool: STOCHASTIC", (1, 1, 4, 4), "STOCHASTIC takes no pad"),
        ("kernel_size: 2", (1, 4, 4), "must have 4 axes"),
        ("kernel_size: 5", (1, 1, 3, 3), "does not fit a bottom"),
    ],
)
def test_refuses(param, shape, message):
    with pytest.raises(LayerError, match=message):
        Runner(f'type: "Pooling" pooling_param {{ {param} }}', np.zeros(shape))


def test_only_max_pooling_has_a_mask():
    with pytest.raises(LayerError, match="only pool: MAX has a second top"):
        Runner(
            'type: "Pooling" pooling_param { kernel_size: 2 pool: AVE }',
            np.zeros((1, 1, 4, 4)),
            tops=2,
        )


@given(
    height=st.integers(1, 3),
    extents=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    method=st.sampled_from(["MAX", "AVE"]),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=40)
def test_spp_is_poolings_side_by_side(height, extents, method, seed):
    rng = np.random.default_rng(seed)
    x = spaced(rng, (2, 2, *extents))
    levels = []
    for bins in (2**level for level in range(height)):
        kernel = [math.ceil(size / bins) for size in extents]
        pad = [(k * bins - size + 1) // 2 for k, size in zip(kernel, extents, strict=True)]
        assume(all(p < k for p, k in zip(pad, kernel, strict=True)))
        levels.append(naive(x, method, kernel, kernel, pad)[0].reshape(2, -1))
    runner = Runner(f'type: "SPP" spp_param {{ pyramid_height: {height} pool: {method} }}', x)
    (y,) = runner.forward()
    assert y.shape == ((2, 2, 1, 1) if height == 1 else (2, sum(each.shape[1] for each in levels)))
    np.testing.assert_allclose(y.reshape(2, -1), np.concatenate(levels, axis=1), atol=1e-12)
    if math.prod(extents) < 30:
        check_gradients(runner, rng)


@pytest.mark.parametrize(
    ("param", "shape", "message"),
    [
        ("", (1, 1, 4, 4), "pyramid_height must be at least 1"),
        ("pyramid_height: 3", (1, 1, 5, 5), "too small for 4 bins"),
        ("pyramid_height: 1 pool: STOCHASTIC", (1, 1, 4, 4), "STOCHASTIC is not available"),
        ("pyramid_height: 1", (1, 4, 4), "must have 4 axes"),
    ],
)
def test_spp_refuses(param, shape, message):
    with pytest.raises(LayerError, match=message):
        Runner(f'type: "SPP" spp_param {{ {param} }}', np.zeros(shape))


def test_ceil_mode_is_round_mode_by_another_name():
    x = np.ones((1, 1, 6, 6))
    for text, extent in (("", 3), ("ceil_mode: true", 3), ("ceil_mode: false", 2)):
        window = f"pooling_param {{ kernel_size: 3 stride: 2 {text} }}"
        assert Runner(f'type: "Pooling" {window}', x).top[0].shape == (1, 1, extent, extent)


def test_refuses_averages_without_padding():
    text = 'type: "Pooling" pooling_param { pool: AVE kernel_size: 3 avg_include_pad: false }'
    with pytest.raises(LayerError, match="avg_include_pad: false is not available"):
        Runner(text, np.ones((1, 1, 6, 6)))
