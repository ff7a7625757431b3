"""Training with bfloat16 activations over float32 weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from protocaffe import engines
from protocaffe.engines import Engine, get_engine
from protocaffe.errors import UsageError
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import parse_text

NET = """
    layer { name: "data" type: "Input" top: "data" top: "label"
            input_param { shape { dim: 8 dim: 3 dim: 19 dim: 19 } shape { dim: 8 } } }
    layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
            convolution_param { num_output: 32 kernel_size: 3 weight_filler { type: "msra" } } }
    layer { name: "norm1" type: "BatchNorm" bottom: "conv1" top: "conv1" }
    layer { name: "scale1" type: "Scale" bottom: "conv1" top: "conv1"
            scale_param { bias_term: true } }
    layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
    layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
            pooling_param { kernel_size: 3 stride: 2 } }
    layer { name: "lrn1" type: "LRN" bottom: "pool1" top: "lrn1" }
    layer { name: "conv2a" type: "Convolution" bottom: "lrn1" top: "conv2a"
            convolution_param { num_output: 16 kernel_size: 1 weight_filler { type: "msra" } } }
    layer { name: "conv2b" type: "Convolution" bottom: "lrn1" top: "conv2b"
            convolution_param { num_output: 16 kernel_size: 3 pad: 1
                                weight_filler { type: "msra" } } }
    layer { name: "both" type: "Concat" bottom: "conv2a" bottom: "conv2b" top: "both" }
    layer { name: "sum" type: "Eltwise" bottom: "both" bottom: "lrn1" top: "sum" }
    layer { name: "relu2" type: "ReLU" bottom: "sum" top: "sum" }
    layer { name: "deconv" type: "Deconvolution" bottom: "sum" top: "deconv"
            convolution_param { num_output: 20 kernel_size: 2 stride: 2
                                weight_filler { type: "msra" } } }
    layer { name: "pool2" type: "Pooling" bottom: "deconv" top: "pool2"
            pooling_param { pool: AVE global_pooling: true } }
    layer { name: "ip" type: "InnerProduct" bottom: "pool2" top: "ip"
            inner_product_param { num_output: 10 weight_filler { type: "msra" } } }
    layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""


@pytest.fixture
def bf16() -> Engine:
    """The onednn engine with bfloat16 activations."""
    try:
        engine = get_engine("onednn", "bf16")
    except UsageError as reason:
        pytest.skip(str(reason))
    if engine is get_engine("onednn"):
        pytest.skip("this processor has no bfloat16 instructions")
    return engine


@pytest.fixture
def forgetful() -> Iterator[None]:
    """Engines are made anew in the test and after it."""
    engines._with_bf16.cache_clear()
    yield
    engines._with_bf16.cache_clear()


def make(engine: Engine) -> Net:
    net = Net(parse_text(NET, caffe_pb2.NetParameter()), caffe_pb2.TRAIN, engine=engine, seed=1)
    rng = np.random.default_rng(2)
    net.blobs["data"].data[...] = rng.standard_normal(net.blobs["data"].shape)
    net.blobs["label"].data[...] = rng.integers(10, size=8)
    return net


def test_losses_and_gradients_are_those_of_float32_up_to_rounding(bf16: Engine) -> None:
    nets = [make(get_engine("onednn")), make(bf16)]
    losses = [net.run_forward() for net in nets]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0], "computed with float32 after all"
    for net in nets:
        net.run_backward()
    for name, exact in nets[0].params.items():
        for one, other in zip(exact, nets[1].params[name], strict=True):
            a, b = one.diff.ravel().astype(float), other.diff.ravel().astype(float)
            if np.abs(a).max() > 1e-5:  # a bias before BatchNorm has a gradient of rounding errors
                assert np.linalg.norm(a - b) < 0.1 * np.linalg.norm(a), name


def test_weights_keep_all_their_bits(bf16: Engine, tmp_path: Path) -> None:
    exact, net = make(get_engine("onednn")), make(bf16)
    net.run_forward()
    net.run_backward()
    net.save(tmp_path / "net.caffemodel")
    exact.run_forward()
    exact.copy_from(tmp_path / "net.caffemodel")
    for name in ("conv1", "conv2a", "deconv", "ip"):
        assert (net.params[name][0].data == exact.params[name][0].data).all()


def test_a_run_is_the_same_twice(bf16: Engine) -> None:
    first, second = make(bf16), make(bf16)
    for net in (first, second):
        net.run_forward()
        net.run_backward()
    for name, blobs in first.params.items():
        assert (blobs[0].diff == second.params[name][0].diff).all(), name


def test_the_numpy_engine_stays_at_float32_and_says_so(
    forgetful: None, caplog: pytest.LogCaptureFixture
) -> None:
    assert get_engine("numpy", "bf16") is get_engine("numpy")
    assert "the numpy engine computes with float32 only" in caplog.text


def test_a_processor_without_bfloat16_stays_at_float32_and_says_so(
    forgetful: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        exact = get_engine("onednn")
    except UsageError as reason:
        pytest.skip(str(reason))
    monkeypatch.setattr(type(exact), "has_bf16", False)
    assert get_engine("onednn", "bf16") is exact
    assert "no bfloat16 instructions" in caplog.text


def test_unknown_precisions_get_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="did you mean 'bf16'"):
        get_engine("onednn", "bf61")
