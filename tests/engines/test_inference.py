"""What oneDNN plans do where no backward runs: fold, add by the way, concatenate in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from protocaffe.engines import get_engine
from protocaffe.engines.onednn.epilogue import FoldedWeights
from protocaffe.engines.onednn.plan import OneDnnPlan
from protocaffe.engines.onednn.steps import Step
from protocaffe.errors import NetError, UsageError
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import parse_text

try:
    get_engine("onednn")
except UsageError as reason:  # pragma: no cover - depends on the machine
    pytest.skip(f"no oneDNN here: {reason}", allow_module_level=True)

TOLERANCE = 2e-5


def conv(name: str, bottom: str, outputs: int, size: int = 1, bias: str = "false") -> str:
    return f"""layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}"
        convolution_param {{ num_output: {outputs} kernel_size: {size} pad: {size // 2}
            bias_term: {bias} weight_filler {{ type: "msra" }} }} }}
    layer {{ name: "{name}_norm" type: "BatchNorm" bottom: "{name}" top: "{name}" }}
    layer {{ name: "{name}_scale" type: "Scale" bottom: "{name}" top: "{name}"
        scale_param {{ bias_term: true }} }}
    """


def plain(name: str, kind: str, bottoms: str, top: str, options: str = "") -> str:
    wires = " ".join(f'bottom: "{bottom}"' for bottom in bottoms.split())
    return f'layer {{ name: "{name}" type: "{kind}" {wires} top: "{top}" {options} }}\n'


def net_text(images: int) -> str:
    """A residual block with a projection, one without, and branches put side by side."""
    shape = f"shape {{ dim: {images} dim: 3 dim: 9 dim: 9 }}"
    return (
        f'layer {{ name: "data" type: "Input" top: "data" input_param {{ {shape} }} }}\n'
        + conv("first", "data", 16, 3, bias="true")
        + plain("first_relu", "ReLU", "first", "first")
        + conv("projection", "first", 32)
        + conv("one", "first", 32, 3)
        + plain("sum1", "Eltwise", "projection one", "sum1")
        + plain("sum1_relu", "ReLU", "sum1", "sum1")
        + conv("narrow", "sum1", 16)
        + conv("two", "narrow", 32, 3)
        + plain("sum2", "Eltwise", "sum1 two", "sum2")
        + plain("pool", "Pooling", "sum2", "pool", "pooling_param { kernel_size: 3 stride: 2 }")
        + conv("left", "pool", 16)
        + plain("left_relu", "ReLU", "left", "left")
        + conv("right", "pool", 32, 3)
        + plain("join", "Concat", "left right", "join")
        + plain("drop", "Dropout", "join", "join")
        + conv("inner", "join", 16)
        + plain("outer", "Concat", "join inner", "outer")
        + plain("ip", "InnerProduct", "outer", "ip", "inner_product_param { num_output: 5 }")
        + plain("prob", "Softmax", "ip", "prob")
    )


def make(engine: str, images: int = 1, **options: Any) -> Net:
    text = parse_text(net_text(images), caffe_pb2.NetParameter())
    net = Net(text, caffe_pb2.TEST, engine=engine, seed=1, **options)
    rng = np.random.default_rng(2)
    for blobs in net.params.values():
        for blob in blobs:
            if blob.num_axes == 1:
                blob.data[...] = rng.uniform(0.5, 1.5, blob.shape)
            else:
                blob.data[...] = rng.standard_normal(blob.shape) / np.sqrt(blob.data[0].size)
    return net


def fast(images: int = 1) -> Net:
    return make("onednn", images, forward_only=True, reuse_memory=True)


def images(count: int) -> Any:
    return np.random.default_rng(3).standard_normal((count, 3, 9, 9)).astype(np.float32)


def probabilities(net: Net) -> Any:
    return net.forward(data=images(net.blobs["data"].num))["prob"].copy()


def plan(net: Net) -> OneDnnPlan:
    assert isinstance(net.plan, OneDnnPlan)
    return net.plan


@pytest.mark.parametrize("count", [1, 3])
def test_everything_at_once_is_what_the_layers_say(count: int) -> None:
    net, layers = fast(count), make("numpy", count)
    for _ in range(2):
        np.testing.assert_allclose(probabilities(net), probabilities(layers), atol=TOLERANCE)
    place = net.layer_names.index
    for name in ("first_norm", "first_scale", "sum1", "sum2", "drop"):
        assert not plan(net).forward[place(name)], name
    joined = [plan(net).describe(work) for work in plan(net).forward[place("join")]]
    assert joined == (["nothing: its bottoms lie in it"] if count == 1 else ["simple:any"])


def test_results_are_the_same_from_run_to_run() -> None:
    assert (probabilities(fast()) == probabilities(fast())).all()


@pytest.mark.parametrize("layer", ["first", "first_norm", "first_scale"])
def test_new_weights_and_statistics_count(layer: str) -> None:
    net, layers = fast(), make("numpy")
    before = probabilities(net)
    for each in (net, layers):
        each.params[layer][0].data[...] *= 1.5
    after = probabilities(net)
    assert np.abs(after - before).max() > 100 * TOLERANCE
    np.testing.assert_allclose(after, probabilities(layers), atol=TOLERANCE)


def test_what_a_sharing_net_or_a_holder_writes_counts() -> None:
    net, layers = fast(), make("numpy")
    held = net.params["two"][0].data
    probabilities(net)
    held *= 0.5
    layers.params["two"][0].data[...] *= 0.5
    np.testing.assert_allclose(probabilities(net), probabilities(layers), atol=TOLERANCE)
    other = Net(net.graph.param, caffe_pb2.TEST, engine="onednn", shared=net)
    other.params["one"][0].data[...] *= 0.5
    layers.params["one"][0].data[...] *= 0.5
    np.testing.assert_allclose(probabilities(net), probabilities(layers), atol=TOLERANCE)


def test_nothing_is_folded_again_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    net = fast()
    probabilities(net)
    steps = [work for works in plan(net).forward for work in works if isinstance(work, Step)]
    assert sum(isinstance(step.run, FoldedWeights) for step in steps) == 8
    monkeypatch.setattr(FoldedWeights, "_fold", lambda self: pytest.fail("folded again"))
    probabilities(net)


@pytest.mark.parametrize("name", ["one", "projection", "left"])
def test_what_is_not_kept_says_so(name: str) -> None:
    net = fast()
    probabilities(net)
    with pytest.raises(NetError, match="make it without reuse_memory"):
        net.blobs[name].data  # noqa: B018


def test_without_reuse_all_blobs_can_be_read() -> None:
    net, layers = make("onednn"), make("numpy")
    probabilities(net)
    probabilities(layers)
    for name, blob in layers.blobs.items():
        scale = np.abs(blob.data).max()
        np.testing.assert_allclose(
            net.blobs[name].data, blob.data, atol=TOLERANCE * scale, err_msg=name
        )


def test_a_partial_pass_finds_what_was_fused() -> None:
    net, layers = fast(), make("numpy")
    probabilities(net)
    for each in (net, layers):
        each.forward(end="one_scale", data=images(1))
    np.testing.assert_allclose(
        net.blobs["one"].data, layers.blobs["one"].data, rtol=1e-4, atol=1e-4
    )


def test_a_shortcut_that_is_read_later_stays() -> None:
    text = net_text(1) + plain("late", "Eltwise", "sum1 sum2", "late")
    net, layers = (
        Net(
            parse_text(text, caffe_pb2.NetParameter()), caffe_pb2.TEST, engine=engine, seed=1, **how
        )
        for engine, how in (
            ("onednn", {"forward_only": True, "reuse_memory": True}),
            ("numpy", {}),
        )
    )
    for each in (net, layers):
        for name in each.params:
            if name.endswith("_norm"):
                for blob in each.params[name]:
                    blob.data[...] = 1
        each.forward(data=images(1))
    np.testing.assert_allclose(net.blobs["late"].data, layers.blobs["late"].data, rtol=1e-3)
