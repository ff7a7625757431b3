import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocaffe.errors import LayerError
from protocaffe.proto import caffe_pb2
from tests.layers.gradient_check import Runner, check_gradients

image_shapes = st.tuples(*[st.integers(1, 4)] * 4)
batches = st.lists(st.integers(1, 4), min_size=2, max_size=5).map(tuple)


def channel(x, c):
    return x[:, c].ravel().tolist()


@given(batches, st.booleans(), st.integers(0, 999))
@settings(deadline=None, max_examples=30)
def test_batch_norm_by_the_batch(shape, in_place, seed):
    rng = np.random.default_rng(seed)
    runner = Runner('type: "BatchNorm"', rng.normal(3, 2, shape), in_place=in_place)
    (y,) = runner.forward()
    eps = runner.layer.eps
    means, variances, weight = (blob.data.copy() for blob in runner.layer.blobs)
    for c in range(shape[1]):
        x = channel(runner.values[0], c)
        mean = sum(x) / len(x)
        squares = sum((each - mean) ** 2 for each in x)
        expected = [(each - mean) / math.sqrt(squares / len(x) + eps) for each in x]
        assert channel(y, c) == pytest.approx(expected)
        assert means[c] == pytest.approx(mean)
        assert variances[c] == pytest.approx(squares / max(1, len(x) - 1))
    assert weight == 1
    if 2 < math.prod(shape) < 80:
        check_gradients(runner, rng, params=False, rtol=1e-4, atol=1e-5)


def test_batch_norm_keeps_discounted_sums():
    rng = np.random.default_rng(0)
    text = 'type: "BatchNorm" batch_norm_param { moving_average_fraction: 0.5 }'
    runner = Runner(text, rng.normal(size=(4, 2)), phase=caffe_pb2.TRAIN)
    expected = [np.zeros(2), np.zeros(2), np.zeros(1)]
    for _ in range(3):
        runner.values[0][...] = rng.normal(size=(4, 2))
        runner.forward()
        x = runner.values[0]
        for sums, new in zip(expected, (x.mean(0), x.var(0, ddof=1), 1), strict=True):
            sums *= 0.5
            sums += new
    for blob, sums in zip(runner.layer.blobs, expected, strict=True):
        np.testing.assert_allclose(blob.data, sums)
    mean, variance = runner.layer.running_statistics()
    np.testing.assert_allclose(mean, expected[0] / 1.75)
    np.testing.assert_allclose(variance, expected[1] / 1.75)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    ("phase", "text"),
    [(caffe_pb2.TEST, ""), (caffe_pb2.TRAIN, "batch_norm_param { use_global_stats: true }")],
)
def test_batch_norm_by_the_running_statistics(phase, text, in_place):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 2, 2))
    runner = Runner(f'type: "BatchNorm" {text}', x, phase=phase, in_place=in_place)
    sums = (rng.normal(size=3), rng.uniform(1, 2, 3), [2.0])
    for blob, value in zip(runner.layer.blobs, sums, strict=True):
        blob.data[...] = value
    (y,) = runner.forward()
    mean, variance = (each[:, None, None] / 2 for each in sums[:2])
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance + runner.layer.eps))
    check_gradients(runner, rng, params=False)
    for blob, value in zip(runner.layer.blobs, sums, strict=True):
        np.testing.assert_array_equal(blob.data, value)


def test_batch_norm_without_running_statistics_divides_by_eps():
    runner = Runner('type: "BatchNorm"', np.ones((1, 1)), phase=caffe_pb2.TEST)
    np.testing.assert_allclose(runner.forward()[0], 1 / math.sqrt(1e-5))


def test_batch_norm_in_the_test_phase_may_use_the_batch():
    text = 'type: "BatchNorm" batch_norm_param { use_global_stats: false }'
    runner = Runner(text, np.array([[1.0], [3.0]]), phase=caffe_pb2.TEST)
    np.testing.assert_allclose(runner.forward()[0], [[-1], [1]], rtol=1e-4)
    assert runner.layer.blobs[2].data == 1


def test_batch_norm_backward_survives_an_overwritten_top():
    rng = np.random.default_rng(0)
    runner = Runner('type: "BatchNorm"', rng.normal(size=(4, 2)))
    runner.forward()
    (expected,) = runner.backward(runner.values[0])
    runner.top[0].data[...] = 0  # as a layer in place behind it does
    np.testing.assert_array_equal(runner.backward(runner.values[0])[0], expected)


def test_batch_norm_freezes_its_blobs():
    runner = Runner('type: "BatchNorm" param { lr_mult: 0 decay_mult: 3 }', np.ones((1, 1)))
    specs = runner.layer.param.param
    assert [(spec.lr_mult, spec.decay_mult) for spec in specs] == [(0, 3), (0, 1), (0, 1)]
    with pytest.raises(LayerError, match="param 1 must have lr_mult 0, got 1"):
        Runner('type: "BatchNorm" param { lr_mult: 0 } param { lr_mult: 1 }', np.ones((1, 1)))


def test_batch_norm_refuses_what_does_not_fit():
    with pytest.raises(LayerError, match="needs a bottom"):
        Runner('type: "BatchNorm"', np.ones(3))
    runner = Runner('type: "BatchNorm"', np.ones((2, 3)))
    runner.bottom[0].reshape(2, 4)
    with pytest.raises(LayerError, match="was set up for 3 channels"):
        runner.layer.reshape(runner.bottom, runner.top)


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
    across=st.booleans(),
    variance=st.booleans(),
    in_place=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=40)
def test_mvn(shape, across, variance, in_place, seed):
    rng = np.random.default_rng(seed)
    text = (
        f'type: "MVN" mvn_param {{ across_channels: {str(across).lower()} '
        f"normalize_variance: {str(variance).lower()} eps: 0.01 }}"
    )
    runner = Runner(text, rng.normal(1, 2, shape), in_place=in_place and len(shape) == 4)
    (y,) = runner.forward()
    full = (*shape, 1, 1, 1, 1)[:4]
    assert y.shape == full
    planes = full[0] if across else full[0] * full[1]
    for x, row in zip(runner.values[0].reshape(planes, -1), y.reshape(planes, -1), strict=True):
        mean = sum(x) / len(x)
        deviation = math.sqrt(sum((each - mean) ** 2 for each in x) / len(x))
        expected = [(each - mean) / (deviation + 0.01 if variance else 1) for each in x]
        assert row.tolist() == pytest.approx(expected)
    if math.prod(shape) // planes > 2 and math.prod(shape) < 60:
        runner.layer.eps = 1e-12  # the rule for the gradient takes eps for 0
        check_gradients(runner, rng, rtol=1e-4, atol=1e-5)


def naive_lrn(x, size, alpha, beta, k, within):
    half = size // 2
    y = np.empty_like(x)
    for n, c, h, w in np.ndindex(*x.shape):
        if within:
            near = x[n, c, max(0, h - half) : h + half + 1, max(0, w - half) : w + half + 1]
            scale = 1 + alpha / size**2 * (near**2).sum()
        else:
            near = x[n, max(0, c - half) : c + half + 1, h, w]
            scale = k + alpha / size * (near**2).sum()
        y[n, c, h, w] = x[n, c, h, w] * scale**-beta
    return y


@given(
    shape=image_shapes,
    size=st.sampled_from([1, 3, 5]),
    alpha=st.sampled_from([0.5, 2.0]),
    beta=st.sampled_from([0.75, 0.5]),
    k=st.sampled_from([1.0, 2.0]),
    within=st.booleans(),
    in_place=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=40)
def test_lrn(shape, size, alpha, beta, k, within, in_place, seed):
    rng = np.random.default_rng(seed)
    region = "WITHIN_CHANNEL" if within else "ACROSS_CHANNELS"
    text = (
        f'type: "LRN" lrn_param {{ local_size: {size} alpha: {alpha} beta: {beta} k: {k} '
        f"norm_region: {region} }}"
    )
    runner = Runner(text, rng.normal(size=shape), in_place=in_place)
    expected = naive_lrn(runner.values[0], size, alpha, beta, k, within)
    np.testing.assert_allclose(runner.forward()[0], expected)
    if math.prod(shape) < 60:
        check_gradients(runner, rng)


def test_lrn_refuses():
    with pytest.raises(LayerError, match="local_size must be odd, got 4"):
        Runner('type: "LRN" lrn_param { local_size: 4 }', np.ones((1, 1, 1, 1)))
    with pytest.raises(LayerError, match="must have 4 axes"):
        Runner('type: "LRN"', np.ones((1, 1, 1)))


@given(
    shape=batches,
    across=st.booleans(),
    shared=st.booleans(),
    eps=st.sampled_from([1e-10, 0.5]),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=25)
def test_normalize(shape, across, shared, eps, seed):
    rng = np.random.default_rng(seed)
    text = f"across_spatial: {str(across).lower()} channel_shared: {str(shared).lower()} eps: {eps}"
    x = rng.uniform(0.5, 2, shape) * rng.choice([-1, 1], shape)
    runner = Runner(f'type: "Normalize" norm_param {{ {text} }}', x)
    assert runner.layer.blobs[0].shape == (() if shared else (shape[1],))
    assert (runner.layer.blobs[0].data == 1).all()
    runner.fill_blobs(rng)
    scale = np.broadcast_to(runner.layer.blobs[0].data, (shape[1],))
    (y,) = runner.forward()
    for n, c, *place in np.ndindex(shape):
        others = x[n].ravel() if across else x[(n, slice(None), *place)]
        length = math.sqrt(sum(each * each for each in others) + eps)
        expected = scale[c] * x[(n, c, *place)] / length
        assert y[(n, c, *place)] == pytest.approx(expected, rel=1e-6)
    check_gradients(runner, rng, rtol=1e-4, atol=1e-6)


def test_normalize_refuses():
    with pytest.raises(LayerError, match=r"needs a bottom \(N, C, ...\)"):
        Runner('type: "Normalize"', np.ones(3))
    runner = Runner('type: "Normalize" norm_param { channel_shared: false }', np.ones((2, 3)))
    runner.bottom[0].reshape(2, 4)
    with pytest.raises(LayerError, match="was set up for 3 channels"):
        runner.layer.reshape(runner.bottom, runner.top)
