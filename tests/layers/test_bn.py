import numpy as np
import pytest

from protocaffe.layers.bn import BN, SegNetBN
from protocaffe.layers.normalization import BatchNorm, ScaledBatchNorm
from protocaffe.proto import caffe_pb2
from tests.layers.gradient_check import Runner, check_gradients

TRAIN, TEST = caffe_pb2.TRAIN, caffe_pb2.TEST
TSN = 'type: "BN" bn_param { slope_filler { value: 1 } momentum: 0.75 }'
SEGNET = 'type: "BN" bn_param { bn_mode: LEARN scale_filler { value: 1 } }'
NVIDIA = 'type: "BatchNorm" batch_norm_param { scale_bias: true moving_average_fraction: 0.75 }'
LEARNED = {"BN": (0, 1), "SyncBN": (0, 1), "BatchNorm": (3, 4)}
"""Places of scale and shift."""


def images(seed=0, shape=(4, 3, 2, 5)):
    return np.random.default_rng(seed).normal(1, 2, shape)


def standardized(x, eps):
    mean, variance = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))
    return (x - mean[:, None, None]) / np.sqrt(variance + eps)[:, None, None]


def set_learned(runner, scale, shift):
    places = LEARNED[runner.layer.type]
    for place, values in zip(places, (scale, shift), strict=True):
        runner.layer.blobs[place].data.reshape(-1)[...] = values


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('type: "BN"', BN),
        ('type: "SyncBN"', BN),
        ('type: "BN" bn_param { bias_filler { value: 1 } frozen: true }', BN),
        ('type: "BN" bn_param { bn_mode: INFERENCE }', SegNetBN),
        ('type: "BN" bn_param { scale_filler { value: 1 } }', SegNetBN),
        ('type: "BN" bn_param { shift_filler { value: 1 } }', SegNetBN),
        ('type: "BatchNorm"', BatchNorm),
        ('type: "BatchNorm" batch_norm_param { scale_bias: true }', ScaledBatchNorm),
        ('type: "BatchNorm" batch_norm_param { scale_filler { value: 2 } }', ScaledBatchNorm),
        ('type: "BatchNorm" batch_norm_param { bias_filler { value: 2 } }', ScaledBatchNorm),
    ],
)
def test_settings_tell_the_kind(text, kind):
    assert isinstance(Runner(text, images()).layer, kind)
    if kind is BatchNorm:
        assert type(Runner(text, images()).layer) is kind


@pytest.mark.parametrize(("text", "eps"), [(TSN, 1e-5), (SEGNET, 1e-9), (NVIDIA, 1e-5)])
def test_normalizes_by_the_batch_then_scales_and_shifts(text, eps):
    x = images()
    runner = Runner(text, x)
    np.testing.assert_allclose(runner.forward()[0], standardized(x, eps), rtol=1e-6)
    set_learned(runner, [1, 2, 3], [4, 5, 6])
    expected = standardized(x, eps) * np.array([1, 2, 3])[:, None, None]
    expected += np.array([4, 5, 6])[:, None, None]
    np.testing.assert_allclose(runner.forward()[0], expected, rtol=1e-6)


def test_running_statistics_of_tsn():
    runner = Runner(TSN, images())
    means, variances = np.zeros(3), np.zeros(3)
    for seed in range(3):
        runner.values[0] = images(seed)
        runner.forward()
        means = 0.75 * means + 0.25 * images(seed).mean(axis=(0, 2, 3))
        variances = 0.75 * variances + 0.25 * images(seed).var(axis=(0, 2, 3))
    np.testing.assert_allclose(runner.layer.blobs[2].data[0], means)
    np.testing.assert_allclose(runner.layer.blobs[3].data[0], variances)


def test_running_statistics_of_nvidia_start_with_the_first_batch():
    runner = Runner(NVIDIA, images())
    runner.forward()
    runner.values[0] = images(1)
    runner.forward()
    first, second = (images(seed).mean(axis=(0, 2, 3)) for seed in (0, 1))
    np.testing.assert_allclose(runner.layer.blobs[0].data, 0.75 * first + 0.25 * second)
    assert runner.layer.blobs[2].data.tolist() == [1]


@pytest.mark.parametrize(
    ("text", "phase"),
    [
        (TSN, TEST),
        ('type: "BN" bn_param { slope_filler { value: 1 } frozen: true }', TRAIN),
        (NVIDIA, TEST),
    ],
)
def test_uses_running_statistics(text, phase):
    x = images()
    runner = Runner(text, x, phase=phase)
    places = (0, 1) if "BatchNorm" in text else (2, 3)
    for place, values in zip(places, ([1, 2, 3], [4, 5, 6]), strict=True):
        runner.layer.blobs[place].data.reshape(-1)[...] = values
    if "BatchNorm" in text:
        runner.layer.blobs[2].data[...] = 1
    mean, variance = (np.array(each)[:, None, None] for each in ([1, 2, 3], [4, 5, 6]))
    expected = (x - mean) / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(runner.forward()[0], expected, rtol=1e-6)
    np.testing.assert_allclose(
        runner.layer.blobs[places[0]].data.reshape(-1), [1, 2, 3], err_msg="they stay"
    )


@pytest.mark.parametrize("phase", [TRAIN, TEST])
def test_segnet_normalizes_in_test_too_or_never(phase):
    x = images()
    learn = Runner(SEGNET, x, phase=phase)
    np.testing.assert_allclose(learn.forward()[0], standardized(x, 1e-9), rtol=1e-6)
    assert [blob.shape for blob in learn.layer.blobs] == [(1, 3, 1, 1)] * 2
    fixed = Runner('type: "BN" bn_param { bn_mode: INFERENCE }', x, phase=phase)
    set_learned(fixed, [1, 2, 3], [4, 5, 6])
    expected = x * np.array([1, 2, 3])[:, None, None] + np.array([4, 5, 6])[:, None, None]
    np.testing.assert_allclose(fixed.forward()[0], expected)


def test_first_values():
    frozen = Runner('type: "BN" bn_param { frozen: true }', images()).layer
    assert [blob.data.ravel().tolist() for blob in frozen.blobs] == [[0] * 3] * 3 + [[1] * 3]
    own = Runner('type: "BatchNorm" batch_norm_param { scale_bias: true eps: 0 }', images()).layer
    assert [blob.data.ravel().tolist() for blob in own.blobs[3:]] == [[1] * 3, [0] * 3]
    assert own.eps == 1e-5


def test_what_is_not_learned():
    def rates(text):
        return [spec.lr_mult for spec in Runner(text, images()).layer.param.param]

    assert rates('type: "BN" param { lr_mult: 2 }') == [2, 1, 0, 0]
    assert rates('type: "BN" param { lr_mult: 2 } bn_param { frozen: true }') == [0] * 4
    assert rates(NVIDIA) == [0, 0, 0, 1, 1]
    older = "param { lr_mult: 1 } " * 2 + "param { lr_mult: 0 } " * 3
    assert rates(f"{NVIDIA} {older}") == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("phase", [TRAIN, TEST])
@pytest.mark.parametrize(
    "text",
    [
        TSN,
        'type: "BN" bn_param { frozen: true }',
        SEGNET,
        'type: "BN" bn_param { bn_mode: INFERENCE }',
        NVIDIA,
    ],
)
def test_gradients(text, phase):
    rng = np.random.default_rng(0)
    runner = Runner(text, images(), phase=phase)
    for blob in runner.layer.blobs:
        blob.data[...] = rng.uniform(0.5, 2, blob.shape)
    check_gradients(runner, rng, params=False, rtol=1e-4, atol=1e-6)
    runner.forward()
    dy = rng.normal(size=images().shape)
    runner.backward(dy)
    scale, shift = (runner.layer.blobs[place] for place in LEARNED[runner.layer.type])
    shifted = runner.layer.blobs[LEARNED[runner.layer.type][1]].data.reshape(-1, 1, 1)
    before = (runner.top[0].data - shifted) / scale.data.reshape(-1, 1, 1)
    np.testing.assert_allclose(shift.diff.ravel(), dy.sum(axis=(0, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(scale.diff.ravel(), (dy * before).sum(axis=(0, 2, 3)), rtol=1e-9)


@pytest.mark.parametrize("text", [TSN, SEGNET, NVIDIA])
def test_in_place_gives_the_same(text):
    x, dy = images(), images(1)
    apart, within = (Runner(text, x, in_place=place) for place in (False, True))
    np.testing.assert_array_equal(apart.forward()[0], within.forward()[0])
    np.testing.assert_array_equal(apart.backward(dy)[0], within.backward(dy)[0])
