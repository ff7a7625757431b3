"""Blobs that share memory where they are not needed at the same time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocaffe.blob import Blob
from protocaffe.engines import get_engine
from protocaffe.engines.onednn.pool import Buffer, Pool
from protocaffe.errors import NetError, UsageError
from protocaffe.layers import Layer
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import parse_text

CONV = 'convolution_param { num_output: %d kernel_size: %d pad: %d weight_filler { type: "msra" } }'

DATA = """
    layer { name: "data" type: "Input" top: "data" top: "label"
            input_param { shape { dim: 4 dim: 3 dim: 20 dim: 20 } shape { dim: 4 } } }
"""

NET = f"""
    {DATA}
    layer {{ name: "conv1" type: "Convolution" bottom: "data" top: "conv1" {CONV % (32, 3, 1)} }}
    layer {{ name: "norm1" type: "BatchNorm" bottom: "conv1" top: "conv1" }}
    layer {{ name: "scale1" type: "Scale" bottom: "conv1" top: "conv1"
            scale_param {{ bias_term: true }} }}
    layer {{ name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }}
    layer {{ name: "branch2a" type: "Convolution" bottom: "conv1" top: "branch2a"
            {CONV % (16, 1, 0)} }}
    layer {{ name: "norm2a" type: "BatchNorm" bottom: "branch2a" top: "branch2a" }}
    layer {{ name: "relu2a" type: "ReLU" bottom: "branch2a" top: "branch2a" }}
    layer {{ name: "branch2b" type: "Convolution" bottom: "branch2a" top: "branch2b"
            {CONV % (32, 3, 1)} }}
    layer {{ name: "norm2b" type: "BatchNorm" bottom: "branch2b" top: "branch2b" }}
    layer {{ name: "scale2b" type: "Scale" bottom: "branch2b" top: "branch2b" }}
    layer {{ name: "sum2" type: "Eltwise" bottom: "conv1" bottom: "branch2b" top: "sum2" }}
    layer {{ name: "relu2" type: "ReLU" bottom: "sum2" top: "sum2" }}
    layer {{ name: "branch3" type: "TanH" bottom: "sum2" top: "branch3" }}
    layer {{ name: "sum3" type: "Eltwise" bottom: "branch3" bottom: "sum2" top: "sum3"
            eltwise_param {{ coeff: 1 coeff: -0.5 }} }}
    layer {{ name: "power3" type: "Power" bottom: "sum3" top: "power3"
            power_param {{ shift: 0.5 scale: 2 }} }}
    layer {{ name: "branch4" type: "Deconvolution" bottom: "power3" top: "branch4"
            {CONV % (32, 1, 0)} }}
    layer {{ name: "sum4" type: "Eltwise" bottom: "power3" bottom: "branch4" top: "sum4" }}
    layer {{ name: "drop4" type: "Dropout" bottom: "sum4" top: "sum4" }}
    layer {{ name: "pool4" type: "Pooling" bottom: "sum4" top: "pool4"
            pooling_param {{ kernel_size: 3 stride: 2 }} }}
    layer {{ name: "lrn4" type: "LRN" bottom: "pool4" top: "lrn4" }}
    layer {{ name: "part5a" type: "Convolution" bottom: "lrn4" top: "part5a" {CONV % (16, 1, 0)} }}
    layer {{ name: "relu5a" type: "ReLU" bottom: "part5a" top: "part5a" }}
    layer {{ name: "part5b" type: "Convolution" bottom: "lrn4" top: "part5b" {CONV % (20, 3, 1)} }}
    layer {{ name: "join5" type: "Concat" bottom: "part5a" bottom: "part5b" top: "join5" }}
    layer {{ name: "pool5" type: "Pooling" bottom: "join5" top: "pool5"
            pooling_param {{ pool: AVE kernel_size: 3 stride: 2 pad: 1 }} }}
    layer {{ name: "ip" type: "InnerProduct" bottom: "pool5" top: "ip"
            inner_product_param {{ num_output: 5 weight_filler {{ type: "msra" }} }} }}
    layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }}
    layer {{ name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" }}
"""


@pytest.fixture(autouse=True)
def small_nets_share_memory_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocaffe.engines.onednn.plan.ENOUGH", 0)


def make(
    reuse_memory: bool,
    phase: int = caffe_pb2.TRAIN,
    precision: str = "float32",
    text: str = NET,
) -> Net:
    try:
        engine = get_engine("onednn", precision)
    except UsageError as reason:
        pytest.skip(str(reason))
    net = parse_text(text, caffe_pb2.NetParameter())
    test = phase == caffe_pb2.TEST
    return Net(net, phase, engine=engine, seed=1, forward_only=test, reuse_memory=reuse_memory)


def feed(net: Net, seed: int) -> None:
    rng = np.random.default_rng(seed)
    net.blobs["data"].data[...] = rng.standard_normal(net.blobs["data"].shape)
    net.blobs["label"].data[...] = rng.integers(5, size=net.blobs["label"].shape)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_results_are_the_same_to_the_last_bit(precision: str) -> None:
    nets = [make(False, precision=precision), make(True, precision=precision)]
    for seed in range(3):
        losses = []
        for net in nets:
            if seed == 1:
                net.blobs["data"].reshape(2, 3, 20, 20)
                net.blobs["label"].reshape(2)
            feed(net, seed)
            net.clear_param_diffs()
            losses.append(net.run_forward())
            net.run_backward()
        assert losses[0] == losses[1]
        for name, blobs in nets[0].params.items():
            for one, other in zip(blobs, nets[1].params[name], strict=True):
                assert (one.diff == other.diff).all(), name


def test_loss_weights_stay_from_pass_to_pass() -> None:
    conv = "convolution_param { num_output: 34 kernel_size: 3 }"
    pool = "pooling_param { kernel_size: 3 stride: 3 } loss_weight: 0.1"
    text = f"""
        layer {{ name: "x" type: "Input" top: "x"
                input_param {{ shape {{ dim: 3 dim: 17 dim: 9 dim: 9 }} }} }}
        layer {{ name: "c" type: "Convolution" bottom: "x" top: "c" {conv} }}
        layer {{ name: "p" type: "Pooling" bottom: "c" top: "p" {pool} }}
        layer {{ name: "s" type: "Swish" bottom: "c" top: "s" }}
        layer {{ name: "sum" type: "Reduction" bottom: "s" top: "sum" loss_weight: 1 }}"""
    nets = [make(False, text=text), make(True, text=text)]
    rng = np.random.default_rng(0)
    for _ in range(3):
        x = rng.standard_normal(nets[0].blobs["x"].shape)
        for net in nets:
            net.blobs["x"].data[...] = x
            net.run_forward()
            net.run_backward()
        one, other = (net.params["c"][0].diff for net in nets)
        assert (one == other).all()


class Batches(Layer):
    """A source whose batches have other sizes from time to time."""

    sizes = (4, 2, 2, 3)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        top[0].reshape(4, 3, 20, 20)
        top[1].reshape(4)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        n = self.sizes[int(self.rng.integers(4))]
        top[0].reshape(n, 3, 20, 20)
        top[1].reshape(n)
        top[0].data[...] = self.rng.standard_normal(top[0].shape)
        top[1].data[...] = self.rng.integers(5, size=n)


def test_memory_is_shared_behind_a_data_layer_that_changes_its_shape() -> None:
    text = f"""layer {{ name: "data" type: "Python" top: "data" top: "label"
                        python_param {{ module: "{__name__}" layer: "Batches" }} }}"""
    text = NET.replace(DATA, text)
    nets = [make(False, text=text), make(True, text=text)]
    for _ in range(6):
        for net in nets:
            net.clear_param_diffs()
            net.run_forward()
            net.run_backward()
        for one, other in zip(nets[0].learnable, nets[1].learnable, strict=True):
            assert (one.blob.diff == other.blob.diff).all(), one.layer
    pool = nets[1]._plan.pool  # type: ignore[union-attr]
    assert 0 < pool.size < 0.6 * pool.unshared


def test_memory_is_saved() -> None:
    net = make(True)
    feed(net, 0)
    net.run_forward()
    net.run_backward()
    pool = net._plan.pool  # type: ignore[union-attr]
    assert 0 < pool.size < 0.6 * pool.unshared


@pytest.mark.parametrize("phase", [caffe_pb2.TRAIN, caffe_pb2.TEST])
def test_outputs_stay_and_what_is_gone_says_so(phase: int) -> None:
    net, whole = make(True, phase), make(False, phase)
    for each in (net, whole):
        feed(each, 0)
        each.run_forward()
    assert net.outputs == ["accuracy", "loss"]
    for name in (*net.outputs, "data", "label"):
        assert (net.blobs[name].data == whole.blobs[name].data).all(), name
    if phase == caffe_pb2.TRAIN:
        net.run_backward()
        with pytest.raises(NetError, match="make it without reuse_memory"):
            net.blobs["branch2b"].diff  # noqa: B018
    with pytest.raises(NetError, match="make it without reuse_memory"):
        net.blobs["branch4"].data  # noqa: B018


def test_a_net_made_forward_only_refuses_backward() -> None:
    net = make(False, caffe_pb2.TEST)
    feed(net, 0)
    net.run_forward()
    with pytest.raises(NetError, match="forward_only"):
        net.run_backward()


def test_a_partial_run_finds_all_blobs() -> None:
    net, whole = make(True, caffe_pb2.TEST), make(False, caffe_pb2.TEST)
    for each in (net, whole):
        feed(each, 0)
        each.run_forward()
        each.forward(end="sum3")
    assert (net.blobs["sum2"].data == whole.blobs["sum2"].data).all()


def test_debug_info_keeps_all_blobs() -> None:
    net = make(True)
    net.debug_info = True
    feed(net, 0)
    net.run_forward()
    assert np.isfinite(net.blobs["branch2a"].data).all()


@given(
    st.lists(
        st.tuples(st.integers(1, 100), st.integers(0, 12), st.integers(0, 12)),
        min_size=1,
        max_size=20,
    )
)
def test_buffers_needed_at_the_same_time_never_overlap(
    wishes: list[tuple[int, int, int]],
) -> None:
    pool = Pool()
    buffers = [Buffer(size) for size, _, _ in wishes]
    for buffer, (_, first, last) in zip(buffers, wishes, strict=True):
        pool.use(buffer, first)
        pool.use(buffer, last)
    pool.place()
    lives = list(pool.lives.values())
    assert pool.size <= pool.unshared
    for index, life in enumerate(lives):
        assert life.buffer.values.ctypes.data % 64 == 0
        for other in lives[:index]:
            if life.overlaps(other):
                assert not np.shares_memory(life.buffer.values, other.buffer.values)
