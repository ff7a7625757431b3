"""The random chains of layers of the oneDNN engine's tests, on the CUDA engine.

Every chain runs twice, and so once as it is and once as captured graphs.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from protocaffe.engines import Engine, get_engine
from protocaffe.errors import UsageError
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import parse_text
from tests.engines import test_kernels
from tests.engines.cuda.standin import standin_engine

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


@pytest.fixture(scope="module", params=["a GPU", "a stand-in"])
def engine(request: pytest.FixtureRequest) -> Engine:
    try:
        return get_engine("cuda") if request.param == "a GPU" else standin_engine()
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
        function(*values)


def _parameters(function: Any) -> list[tuple[Any, ...]]:
    """The arguments that pytest.mark.parametrize gives a function, if it does."""
    marks = [mark for mark in getattr(function, "pytestmark", []) if mark.name == "parametrize"]
    return [(value,) for value in marks[0].args[1]] if marks else [()]
