"""Small nets of all kinds of layers: whatever runs them, they give the same numbers.

Each net runs in double precision by the layers' own code, which is taken for the truth, in single
precision by every engine, and with its memory reused; then as a TEST net that shares the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np
import pytest

from protocaffe.engines import get_engine
from protocaffe.engines.cuda.forms import PRECISIONS
from protocaffe.errors import ProtocaffeError, UsageError
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import parse_text
from tests.engines.cuda.host_kernels import COMPILER
from tests.engines.cuda.standin import standin_engine

try:
    get_engine("onednn")
except UsageError as reason:  # pragma: no cover - depends on the machine
    pytest.skip(f"no oneDNN here: {reason}", allow_module_level=True)

TOLERANCE = 5e-3
"""Largest difference of a blob's numbers from the truth, relative to the largest of them."""

IMAGES = [(2, 3, 5, 6), (1, 17, 1, 1), (3, 16, 7, 3), (1, 34, 6, 9), (2, 2, 1, 12)]
SHAPES = [*IMAGES, *IMAGES, (2, 4), (2, 3, 4), (1, 2, 3, 2, 4), (5,), ()]

CONV = 'num_output: 6 weight_filler { type: "msra" } bias_filler { type: "gaussian" std: 0.2 }'
XAVIER = 'weight_filler { type: "xavier" }'
POOL = "pooling_param { kernel_size: 3"
IN_PLACE = {
    "ReLU": ["", "relu_param { negative_slope: 0.1 }"],
    "PReLU": ["", "prelu_param { channel_shared: true }"],
    "ELU": ["elu_param { alpha: 0.3 }"],
    "Dropout": ["dropout_param { dropout_ratio: 0.2 }"],
    "Swish": ["swish_param { beta: 1.5 }"],
    "Clip": ["clip_param { min: -0.7 max: 0.9 }"],
    "Scale": ["scale_param { bias_term: true }", "scale_param { axis: 0 num_axes: -1 }"],
    "Bias": ["bias_param { num_axes: 0 }", ""],
    "BatchNorm": ["", "batch_norm_param { use_global_stats: true }"],
}
APART = {
    "Sigmoid": [""],
    "TanH": [""],
    "Exp": ["exp_param { base: 2 scale: 0.2 }"],
    "Power": ["power_param { power: 2 shift: 1 }", "power_param { scale: 0.5 }"],
    "Softmax": ["", "softmax_param { axis: -1 }"],
    "LRN": ["lrn_param { local_size: 3 alpha: 0.5 }", "lrn_param { norm_region: WITHIN_CHANNEL }"],
    "MVN": ["mvn_param { eps: 0.1 }"],
    "Reduction": ["reduction_param { operation: MEAN axis: -1 }"],
    "Reshape": ["reshape_param { shape { dim: 0 dim: -1 } }"],
    "Tile": ["tile_param { tiles: 2 }"],
    "Split": [""],
    "Concat": [""],
    "Convolution": [
        f"convolution_param {{ {CONV} kernel_size: 3 pad: 1 }}",
        f"convolution_param {{ {CONV} kernel_size: 2 stride: 3 axis: -2 }}",
        f"convolution_param {{ {CONV} axis: -1 bias_term: false }}",
    ],
    "Deconvolution": [f"convolution_param {{ {CONV} kernel_size: 3 stride: 2 pad: 1 }}"],
    "InnerProduct": [
        f"inner_product_param {{ num_output: 5 {XAVIER} }}",
        f"inner_product_param {{ num_output: 3 axis: -1 transpose: true {XAVIER} }}",
    ],
    "Pooling": [
        f"{POOL} stride: 2 }}",
        f"{POOL} pad: 1 pool: AVE }}",
        POOL + " round_mode: FLOOR }",
    ],
    "Eltwise": ["", "eltwise_param { operation: MAX }", "eltwise_param { operation: PROD }"],
    "Silence": [""],
}
MORE_OFTEN = {"BatchNorm", "Convolution", "Eltwise", "Pooling"}
READS_ITS_TOP = {"Sigmoid", "TanH", "Exp", "Power", "Softmax", "ReLU", "ELU", "Swish"}
SHARES_MEMORY = {"Input", "Split", "Reshape", "Concat"}
"""After these two sets of layers, one that works in place would spoil what others still need."""


def build(text: str, phase: int = caffe_pb2.TRAIN, **options: object) -> Net:
    return Net(parse_text(text, caffe_pb2.NetParameter()), phase, seed=1, **options)


def random_net(random: Random) -> str:
    """A net whose layers read any earlier blobs; layers that do not fit are left out."""
    dims = "".join(f"dim: {extent} " for extent in random.choice(SHAPES))
    layers = [f'layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ {dims} }} }} }}']
    layers.insert(0, random.choice(["", "force_backward: true "]))
    writers, readers = {"x": "Input"}, {"x": 0}
    for index in range(random.randint(6, 14)):
        kinds = random.choice([IN_PLACE, APART, APART])
        kind = random.choice([*kinds, *sorted(MORE_OFTEN & kinds.keys())])
        names = random.choice([*writers][-3:]), random.choice([*writers])
        bottoms = names if kind == "Eltwise" else names[:1]
        tops = {"Split": [f"b{index}a", f"b{index}b"], "Silence": []}.get(kind, [f"b{index}"])
        spoils = readers[names[0]] or writers[names[0]] in READS_ITS_TOP | SHARES_MEMORY
        if kinds is IN_PLACE and not spoils:
            tops = [names[0]]
        wires = "".join(f' bottom: "{name}"' for name in bottoms)
        wires += "".join(f' top: "{name}"' for name in tops)
        if tops == [f"b{index}"] and random.random() < 0.2:
            wires += " loss_weight: 0.3"
        layer = f'layer {{ name: "l{index}" type: "{kind}"{wires} {random.choice(kinds[kind])} }}'
        try:
            build("\n".join([*layers, layer]), engine="numpy")
        except ProtocaffeError:
            continue
        layers.append(layer)
        readers.update((name, readers[name] + 1) for name in bottoms)
        writers.update(dict.fromkeys(tops, kind))
        readers.update(dict.fromkeys(tops, 0))
    return "\n".join(layers)


def run(every: Sequence[Net], rng: np.random.Generator) -> list[float]:
    """One pass of all nets over the same input and output gradients; return their losses."""
    x = rng.standard_normal(every[0].blobs["x"].shape)
    for net in every:
        net.blobs["x"].data[...] = x
    losses = [net.run_forward() for net in every]
    for name in every[0].outputs:
        if not every[0].blob_loss_weights[name]:
            gradient = rng.standard_normal(every[0].blobs[name].shape)
            for net in every:
                net.blobs[name].diff[...] = gradient
    for net in every:
        net.run_backward()
    return losses


def assert_close(truth: np.ndarray, got: np.ndarray, what: str) -> None:
    scale = max(0.1, float(np.abs(truth).max(initial=0)))
    assert truth.shape == got.shape
    if scale > 1e30:
        return  # in single precision something on the way to it may be infinite
    assert np.abs(truth - got).max(initial=0) < TOLERANCE * scale, what


def on_devices(text: str) -> list[Net]:
    """Return the net on stand-ins for a GPU: with plain arrays, and with channels last."""
    if COMPILER is None or "Dropout" in text:  # which draws other numbers on a GPU
        return []
    engines = [standin_engine(precision=PRECISIONS[name]) for name in ("float32", "tf32")]
    return [build(text, engine=each) for each in engines]


@pytest.mark.parametrize("seed", range(100))
def test_a_net_gives_the_same_numbers_whatever_runs_it(seed: int) -> None:
    text, rng = random_net(Random(seed)), np.random.default_rng(seed)
    print(text)
    truth = build(text, engine="numpy", dtype="float64")
    fast, lean = (build(text, engine="onednn", reuse_memory=reuse) for reuse in (False, True))
    others = [fast, build(text, engine="numpy"), *on_devices(text)]
    for net in (lean, *others):
        net.copy_from(truth.to_proto())
    for batch in (1, 1, 3):  # the second pass adds to the gradients of the first
        shape = truth.blobs["x"].shape
        for net in (truth, lean, *others):
            net.blobs["x"].reshape(shape[0] * batch if shape else (), *shape[1:])
        try:
            losses = run((truth, lean, *others), rng)
        except ProtocaffeError:
            assert batch > 1  # not every net takes other batches
            break
        np.testing.assert_allclose(losses, losses[0], rtol=TOLERANCE, atol=TOLERANCE)
        for net in others:
            for name, blob in truth.blobs.items():
                assert_close(blob.data, net.blobs[name].data, f"data of {name}")
                assert_close(blob.diff, net.blobs[name].diff, f"diff of {name}")
            for expected, got in zip(truth.learnable, net.learnable, strict=True):
                assert_close(expected.blob.diff, got.blob.diff, f"gradient of {got.layer}")
        for one, other in zip(fast.learnable, lean.learnable, strict=True):
            assert (one.blob.diff == other.blob.diff).all(), f"{one.layer}, memory reused"
    assert_test_nets_agree(text, rng, truth, fast)


def assert_test_nets_agree(text: str, rng: np.random.Generator, truth: Net, fast: Net) -> None:
    options = {"phase": caffe_pb2.TEST, "shared": fast, "engine": "onednn"}
    every = [
        build(text, caffe_pb2.TEST, shared=truth, engine="numpy", dtype="float64"),
        build(text, **options),
        build(text, **options, forward_only=True, reuse_memory=True),
    ]
    x = rng.standard_normal(every[0].blobs["x"].shape)
    for net in every:
        net.blobs["x"].data[...] = x
        net.run_forward()
        for name in net.outputs:
            assert_close(every[0].blobs[name].data, net.blobs[name].data, f"{name} of a TEST net")
