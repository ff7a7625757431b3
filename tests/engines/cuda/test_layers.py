"""The random chains of layers of the oneDNN engine's tests, on the CUDA engine.

Every chain runs twice, and so once as it is and once as captured graphs.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest

from protocaffe.engines import Engine, get_engine
from protocaffe.engines.cuda.forms import PRECISIONS
from protocaffe.errors import UsageError
from protocaffe.layers import layer_types
from protocaffe.layers.describe import describe
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import parse_text
from tests.engines import test_kernels
from tests.engines.cuda.standin import standin_engine
from tests.layers import test_describe
from tests.layers.test_describe import IMAGES, SHAPES

example_files = test_describe.example_files

OF_ONEDNN = {
    "test_engine_caffe_forces_the_layers_own_code",
    "test_a_steady_iteration_allocates_no_arrays",
    "test_relu6_and_depthwise_convolutions_have_kernels",
}
CHAINS = [
    name
    for name, function in vars(test_kernels).items()
    if name.startswith("test_") and name not in OF_ONEDNN and inspect.isfunction(function)
]


@pytest.fixture(scope="module", params=["a GPU", "float32", "tf32"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """A GPU, or the stand-in with plain arrays, or with channels last."""
    try:
        if request.param == "a GPU":
            return get_engine("cuda")
        return standin_engine(precision=PRECISIONS[request.param])
    except UsageError as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("name", CHAINS)
def test_chain(name: str, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(text: str, kind: str) -> Net:
        param = parse_text(text, caffe_pb2.NetParameter())
        chosen: Any = engine if kind == "onednn" else kind
        return Net(param, caffe_pb2.TRAIN, engine=chosen, seed=1)

    monkeypatch.setattr(test_kernels, "build", build)
    function = getattr(test_kernels, name)
    for values in _parameters(function):
        function(**values)


def _parameters(function: Any) -> Iterator[dict[str, Any]]:
    """The arguments that pytest.mark.parametrize gives a function, if it does."""
    marks = [mark for mark in getattr(function, "pytestmark", []) if mark.name == "parametrize"]
    for values in product(*(mark.args[1] for mark in marks)):
        given: dict[str, Any] = {}
        for mark, value in zip(marks, values, strict=True):
            names = mark.args[0]
            one = isinstance(names, str)
            given.update({names: value} if one else zip(names, value, strict=True))
        yield given


NO_GRADIENT = {
    *("Accuracy", "ArgMax", "BatchReindex", "Embed", "Filter", "InfogainLoss", "Python"),
    "Threshold",
}
"""Layers with bottoms that have no gradient, or whose example has none."""
OTHERWISE = {"Dropout", "HDF5Output"}
"""Other random numbers than on the CPU; a file for one pass."""


@pytest.mark.parametrize("name", sorted({*layer_types()} - OTHERWISE))
def test_example_of_a_layer(name: str, engine: Engine, example_files: None) -> None:
    """Every layer type, also those without an override or a recorded case, in three passes."""
    net = parse_text(describe(name).example, caffe_pb2.NetParameter())
    layer = net.layer[0]
    for bottom in layer.bottom:
        shape = SHAPES.get(bottom, IMAGES)
        net.layer.add(name=bottom, type="Input", top=[bottom]).input_param.shape.add(dim=shape)
    net = caffe_pb2.NetParameter(
        layer=[*net.layer[1:], layer], force_backward=name not in NO_GRADIENT
    )
    phase = layer.include[0].phase if layer.include else caffe_pb2.TRAIN
    nets = [Net(net, phase, engine=each, seed=1) for each in (engine, "numpy")]
    for number in range(3):
        for each in nets:
            _run(each, list(layer.bottom), number)
        for blob, one in nets[0].blobs.items():
            other = nets[1].blobs[blob]
            np.testing.assert_allclose(one.data, other.data, rtol=2e-4, atol=2e-5, err_msg=blob)
            np.testing.assert_allclose(one.diff, other.diff, rtol=2e-4, atol=2e-5, err_msg=blob)
    for each in nets:
        each.close()


def _run(net: Net, bottoms: list[str], seed: int) -> None:
    """One pass over images drawn at random; all other bottoms are ones."""
    rng = np.random.default_rng(seed)
    for bottom in bottoms:
        blob = net.blobs[bottom]
        blob.data[...] = 1 if bottom in SHAPES else rng.standard_normal(blob.shape)
    if net.layers[-1].type == "MemoryData":
        net.layers[-1].reset(np.ones((2, 3, 8, 8)), [0, 1])  # type: ignore[attr-defined]
    net.forward()
    for output in net.outputs:
        if not net.blob_loss_weights[output]:
            net.blobs[output].diff[...] = rng.standard_normal(net.blobs[output].shape)
    net.clear_param_diffs()
    if any(net.layer_needs_backward):
        net.run_backward()
