import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocaffe.errors import LayerError
from protocaffe.layers import convolution
from tests.layers.gradient_check import Runner, check_gradients


@st.composite
def cases(draw, transposed=False):
    """Draw settings, their prototxt and a bottom shape that they fit."""
    spatial = draw(st.integers(0, 3))
    group = draw(st.integers(1, 2))
    channels, outputs = (group * draw(st.integers(1, 2)) for _ in range(2))
    each = st.integers
    kernel, stride, dilation = (
        [draw(each(1, 3)) for _ in range(spatial)],
        [draw(each(1, 2)) for _ in range(spatial)],
        [draw(each(1, 2)) for _ in range(spatial)],
    )
    pad = [draw(each(0, 2)) for _ in range(spatial)]
    batch = draw(st.sampled_from([(1,), (3,), (2, 2)]))
    span = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    low = (
        [math.ceil(p * 2 / s) + 1 for p, s in zip(pad, stride, strict=True)] if transposed else span
    )
    extents = [draw(each(least, least + 3)) for least in low]
    bias = draw(st.booleans())
    text = "".join(
        f"{name}: {value} "
        for name, values in (
            ("kernel_size", kernel),
            ("stride", stride),
            ("dilation", dilation),
            ("pad", pad),
        )
        for value in values
    )
    kind = "Deconvolution" if transposed else "Convolution"
    text = (
        f'type: "{kind}" convolution_param {{ num_output: {outputs} group: {group} '
        f"axis: {len(batch)} bias_term: {str(bias).lower()} {text} }}"
    )
    settings_ = (kernel, stride, pad, dilation, group)
    return text, (*batch, channels, *extents), len(batch), settings_, draw(each(0, 9999))


def naive(x, weights, kernel, stride, pad, dilation, group):
    """Cross-correlate (n, C, *spatial) number by number."""
    outputs = [
        (extent + 2 * p - (d * (k - 1) + 1)) // s + 1
        for extent, k, s, p, d in zip(x.shape[2:], kernel, stride, pad, dilation, strict=True)
    ]
    y = np.zeros((len(x), len(weights), *outputs))
    per_in, per_out = x.shape[1] // group, len(weights) // group
    for n, m, c in itertools.product(range(len(x)), range(len(weights)), range(per_in)):
        for place in np.ndindex(*outputs):
            for element in np.ndindex(*kernel):
                at = [
                    o * s + e * d - p
                    for o, e, s, p, d in zip(place, element, stride, pad, dilation, strict=True)
                ]
                if all(0 <= a < extent for a, extent in zip(at, x.shape[2:], strict=True)):
                    channel = (m // per_out) * per_in + c
                    y[(n, m, *place)] += x[(n, channel, *at)] * weights[(m, c, *element)]
    return y


@given(cases())
@settings(deadline=None, max_examples=40)
def test_convolution_is_the_naive_sum(case):
    text, shape, axis, window, seed = case
    rng = np.random.default_rng(seed)
    runner = Runner(text, rng.normal(size=shape)).fill_blobs(rng)
    (y,) = runner.forward()
    weights, *bias = (blob.data for blob in runner.layer.blobs)
    expected = naive(runner.values[0].reshape(-1, *shape[axis:]), weights, *window)
    if bias:
        expected += bias[0].reshape(-1, *(1,) * (expected.ndim - 2))
    np.testing.assert_allclose(y, expected.reshape(y.shape), rtol=1e-10, atol=1e-12)


@given(cases(), st.sampled_from([1, 60]))
@settings(deadline=None, max_examples=15)
def test_convolution_gradients(case, chunk):
    text, shape, _, _, seed = case
    rng = np.random.default_rng(seed)
    kept, convolution.MAX_COLUMN_COUNT = convolution.MAX_COLUMN_COUNT, chunk
    try:
        check_gradients(Runner(text, rng.normal(size=shape)).fill_blobs(rng), rng)
    finally:
        convolution.MAX_COLUMN_COUNT = kept


@given(cases(transposed=True))
@settings(deadline=None, max_examples=40)
def test_deconvolution_is_the_transpose_of_convolution(case):
    text, shape, axis, window, seed = case
    rng = np.random.default_rng(seed)
    runner = Runner(text, rng.normal(size=shape)).fill_blobs(rng)
    (y,) = runner.forward()
    weights, *bias = (blob.data for blob in runner.layer.blobs)
    if bias:
        y -= bias[0].reshape(-1, *(1,) * (y.ndim - axis - 1))
    probe = rng.normal(size=(1, *y.shape[axis:]))
    # <deconvolution(x), probe> = <x, convolution(probe)> for every image x
    back = naive(probe, weights, *window)
    x = runner.values[0].reshape(-1, *shape[axis:])
    y = y.reshape(-1, *probe.shape[1:])
    for image, output in zip(x, y, strict=True):
        assert (output * probe[0]).sum() == pytest.approx((image * back[0]).sum(), abs=1e-9)


@given(cases(transposed=True))
@settings(deadline=None, max_examples=15)
def test_deconvolution_gradients(case):
    text, shape, _, _, seed = case
    rng = np.random.default_rng(seed)
    check_gradients(Runner(text, rng.normal(size=shape)).fill_blobs(rng), rng)


@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution"])
def test_several_bottoms_share_the_weights(kind):
    rng = np.random.default_rng(0)
    text = f'type: "{kind}" convolution_param {{ num_output: 2 kernel_size: 2 }}'
    a, b = rng.normal(size=(2, 2, 3, 4, 4))
    both = Runner(text, a, b, tops=2).fill_blobs(rng)
    check_gradients(both, rng)
    for x, y in zip((a, b), both.forward(), strict=True):
        one = Runner(text, x)
        for mine, theirs in zip(one.layer.blobs, both.layer.blobs, strict=True):
            mine.data[...] = theirs.data
        np.testing.assert_allclose(one.forward()[0], y)


def test_frozen_parameters_get_no_gradient():
    rng = np.random.default_rng(0)
    text = 'type: "Convolution" convolution_param { num_output: 2 kernel_size: 2 }'
    runner = Runner(text, rng.normal(size=(1, 1, 3, 3))).fill_blobs(rng)
    runner.layer.param_propagate_down = [False, False]
    (y,) = runner.forward()
    (dx,) = runner.backward(np.ones_like(y))
    assert np.isfinite(dx).all()
    assert not any(blob.diff.any() for blob in runner.layer.blobs)


def test_parameter_gradients_add_up():
    rng = np.random.default_rng(0)
    text = 'type: "Convolution" convolution_param { num_output: 2 kernel_size: 2 }'
    runner = Runner(text, rng.normal(size=(1, 1, 3, 3))).fill_blobs(rng)
    (y,) = runner.forward()
    runner.backward(np.ones_like(y))
    once = [blob.diff.copy() for blob in runner.layer.blobs]
    runner.layer.backward(runner.top, [False], runner.bottom)
    for blob, diff in zip(runner.layer.blobs, once, strict=True):
        np.testing.assert_allclose(blob.diff, 2 * diff)


def test_the_batch_may_change_between_forwards():
    rng = np.random.default_rng(0)
    text = 'type: "Convolution" convolution_param { num_output: 2 kernel_size: 2 }'
    runner = Runner(text, rng.normal(size=(2, 1, 3, 3))).fill_blobs(rng)
    (before,) = runner.forward()
    runner.values = [np.concatenate([runner.values[0]] * 2)]
    runner.bottom[0].reshape(4, 1, 3, 3)
    runner.layer.reshape(runner.bottom, runner.top)
    np.testing.assert_allclose(runner.forward()[0], np.concatenate([before] * 2))


def test_mixed_styles_of_the_geometry():
    text = (
        'type: "Convolution" convolution_param { num_output: 1 kernel_h: 3 kernel_w: 1 '
        "stride: 2 pad_h: 1 }"
    )
    geometry = Runner(text, np.zeros((1, 1, 5, 7))).layer.geometry
    assert geometry.kernel == (3, 1)
    assert geometry.stride == (2, 2)
    assert geometry.pad == (1, 0)
    assert geometry.dilation == (1, 1)


@given(cases(), st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_im2col_times_the_weights_is_convolution(case, seed):
    text, shape, axis, window, _ = case
    if window[-1] != 1:
        return
    rng = np.random.default_rng(seed)
    runner = Runner(text.replace('"Convolution"', '"Im2col"'), rng.normal(size=shape))
    (columns,) = runner.forward()
    weights = rng.normal(size=(2, shape[axis], *window[0]))
    columns = columns.reshape(-1, *columns.shape[axis:])
    y = np.moveaxis(np.tensordot(weights.reshape(2, -1), columns, axes=(1, 1)), 0, 1)
    expected = naive(runner.values[0].reshape(-1, *shape[axis:]), weights, *window)
    np.testing.assert_allclose(y, expected, atol=1e-12)
    check_gradients(runner, rng)


@pytest.mark.parametrize(
    ("param", "shape", "message"),
    [
        ("num_output: 1", (1, 1, 4, 4), "kernel_size is missing"),
        ("kernel_size: 2", (1, 1, 4, 4), "num_output must be at least 1"),
        ("num_output: 1 kernel_size: 2 kernel_h: 2", (1, 1, 4, 4), "not both"),
        ("num_output: 1 kernel_h: 2", (1, 1, 4, 4), "kernel must be at least 1"),
        ("num_output: 1 kernel_size: 2 stride_h: 2", (1, 1, 4, 4), "stride must be at least 1"),
        ("num_output: 1 kernel_size: 2 dilation: 0", (1, 1, 4, 4), "dilation must be"),
        ("num_output: 1 kernel_h: 2 kernel_w: 2", (1, 1, 4), "need 2 spatial axes"),
        ("num_output: 1 kernel_size: [2, 2, 2]", (1, 1, 4, 4), "once per spatial axis"),
        ("num_output: 3 kernel_size: 2 group: 2", (1, 2, 4, 4), "does not divide num_output 3"),
        ("num_output: 2 kernel_size: 2 group: 2", (1, 3, 4, 4), "does not divide channels 3"),
        ("num_output: 1 kernel_size: 5", (1, 1, 4, 4), "does not fit a bottom"),
        ("num_output: 1 kernel_size: 2 axis: 4", (1, 1, 4, 4), "axis 4 is out of range"),
    ],
)
def test_refuses(param, shape, message):
    with pytest.raises(LayerError, match=message):
        Runner(f'type: "Convolution" convolution_param {{ {param} }}', np.zeros(shape))


def test_refuses_bottoms_of_different_shapes():
    text = 'type: "Convolution" convolution_param { num_output: 1 kernel_size: 2 }'
    with pytest.raises(LayerError, match="all bottoms need one shape"):
        Runner(text, np.zeros((1, 1, 4, 4)), np.zeros((1, 1, 4, 5)), tops=2)


def test_refuses_other_channels_later():
    text = 'type: "Convolution" convolution_param { num_output: 1 kernel_size: 2 }'
    runner = Runner(text, np.zeros((1, 1, 4, 4)))
    runner.bottom[0].reshape(1, 2, 4, 4)
    with pytest.raises(LayerError, match="was set up for 1 channels"):
        runner.layer.reshape(runner.bottom, runner.top)


@pytest.mark.parametrize("kind", ["ConvolutionDepthwise", "DepthwiseConvolution"])
@pytest.mark.parametrize("given_settings", ["", "group: 3", "num_output: 3"])
def test_depthwise_is_convolution_with_a_group_per_channel(kind, given_settings):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 5, 6))
    window = "kernel_size: 3 stride: 2 pad: 1"
    text = f"convolution_param {{ {window} {given_settings} }}"
    runner = Runner(f'type: "{kind}" {text}', x).fill_blobs(rng)
    assert [blob.shape for blob in runner.layer.blobs] == [(3, 1, 3, 3), (3,)]
    plain = Runner(
        f'type: "Convolution" convolution_param {{ {window} num_output: 3 group: 3 }}', x
    )
    for mine, theirs in zip(plain.layer.blobs, runner.layer.blobs, strict=True):
        mine.data[...] = theirs.data
    np.testing.assert_array_equal(runner.forward()[0], plain.forward()[0])
    check_gradients(runner, rng)


def test_depthwise_keeps_another_group():
    text = (
        'type: "DepthwiseConvolution" convolution_param { num_output: 8 group: 2 kernel_size: 1 }'
    )
    assert Runner(text, np.ones((1, 4, 3, 3))).layer.blobs[0].shape == (8, 2, 1, 1)


def test_dilation_per_axis_by_name():
    x = np.random.default_rng(0).normal(size=(1, 2, 9, 9))
    window = "num_output: 2 kernel_size: 3"
    named, listed = (
        Runner(f'type: "Convolution" convolution_param {{ {window} {dilation} }}', x)
        for dilation in ("dilation_h: 2 dilation_w: 3", "dilation: 2 dilation: 3")
    )
    assert named.layer.geometry == listed.layer.geometry
