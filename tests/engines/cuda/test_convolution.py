"""Convolutions on a GPU: every kind in every precision, and what cuDNN is asked for.

Numbers are small and whole, so that they and their sums are exact in 8 bits, too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest

from protocaffe.engines.cuda import dnn
from protocaffe.engines.cuda.convolution import CudaConvolutionBase
from protocaffe.engines.cuda.engine import CudaEngine
from protocaffe.engines.cuda.forms import PRECISIONS
from protocaffe.engines.cuda.library import UnavailableError
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from tests.engines.cuda.standin import Cudnn, PlanOfCudnn, Pygraph, recorder, standin_engine

KINDS = {
    "first": ((2, 3, 11, 11), "num_output: 8 kernel_size: 5 stride: 2 pad: 2"),
    "grey": ((2, 1, 9, 9), "num_output: 5 kernel_size: 5"),
    "3x3": ((2, 8, 6, 6), "num_output: 8 kernel_size: 3 pad: 1"),
    "1x1": ((2, 8, 5, 5), "num_output: 4 kernel_size: 1"),
    "strided 1x1": ((2, 8, 6, 6), "num_output: 8 kernel_size: 1 stride: 2"),
    "unlike axes": (
        (2, 4, 7, 5),
        "num_output: 3 kernel_h: 1 kernel_w: 3 stride_h: 2 stride_w: 1 pad_h: 0 pad_w: 2",
    ),
    "grouped": ((2, 6, 7, 7), "num_output: 9 kernel_size: 3 pad: 1 group: 3"),
    "depthwise": ((2, 6, 7, 7), "num_output: 6 kernel_size: 3 stride: 2 pad: 1 group: 6"),
    "dilated": ((2, 4, 9, 9), "num_output: 4 kernel_size: 3 dilation: 2 pad: 2"),
    "3-D": ((1, 4, 3, 5, 5), "num_output: 5 kernel_size: 2"),
    "odd channels": ((1, 13, 5, 5), "num_output: 7 kernel_size: 3"),
    "without bias": ((2, 4, 6, 6), "num_output: 4 kernel_size: 3 bias_term: false"),
}
RELUS = {None: "", 0: "", 0.5: "relu_param { negative_slope: 0.5 }"}


@pytest.fixture(autouse=True)
def _clear_counts() -> Iterator[None]:
    yield
    recorder.counts.clear()


def text_of(
    kind: str, type_: str = "Convolution", slope: float | None = None, count: int = 1
) -> str:
    """A net of one convolution, with as many bottoms and tops, and perhaps a ReLU behind."""
    shape, settings = KINDS[kind]
    dims = " ".join(f"dim: {extent}" for extent in shape)
    inputs = "".join(
        f'layer {{ name: "x{n}" type: "Input" top: "x{n}" input_param {{ shape {{ {dims} }} }} }}'
        for n in range(count)
    )
    ends = " ".join(f'bottom: "x{n}" top: "y{n}"' for n in range(count))
    net = f"""force_backward: true {inputs} layer {{ name: "conv" type: "{type_}" {ends}
        convolution_param {{ {settings} weight_filler {{ type: "constant" }} }} }}"""
    if slope is not None:
        net += f'layer {{ name: "relu" type: "ReLU" bottom: "y0" top: "y0" {RELUS[slope]} }}'
    return net


def whole(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers from -1 to 1, most of them 0."""
    return rng.choice([-1, 0, 0, 0, 1], shape)


def run(net: Net, seed: int) -> dict[str, np.ndarray]:
    """Run a pass each way over numbers drawn at random; return all arrays that were computed."""
    rng = np.random.default_rng(seed)
    params = net.params["conv"]
    for blob in (*params, *(net.blobs[name] for name in net.inputs)):
        blob.data[...] = whole(rng, blob.shape)
    net.run_forward()
    for name in net.outputs:
        net.blobs[name].diff[...] = whole(rng, net.blobs[name].shape)
    for number, blob in enumerate(params):
        blob.diff[...] = number + 1
    if any(net.layer_needs_backward):
        net.run_backward()
    found = {f"{name} data": blob.data.copy() for name, blob in net.blobs.items()}
    found |= {f"{name} diff": blob.diff.copy() for name, blob in net.blobs.items()}
    return found | {f"{n} diff": blob.diff.copy() for n, blob in enumerate(params)}


def assert_same(net: Net, text: str, atol: float = 0) -> None:
    """Compare with the NumPy engine: an ordinary pass, a captured one, a replayed one."""
    other = Net(text, caffe_pb2.TRAIN, engine="numpy", seed=1)
    for seed in range(3):
        expected, got = run(other, seed), run(net, seed)
        for name, array in expected.items():
            np.testing.assert_allclose(got[name], array, rtol=0, atol=atol, err_msg=name)


def override_of(net: Net) -> CudaConvolutionBase:
    runner = net._plan._runners[net.layer_names.index("conv")]  # type: ignore[union-attr]
    assert isinstance(runner, CudaConvolutionBase)
    return runner


@pytest.mark.parametrize("slope", RELUS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("type_", ["Convolution", "Deconvolution"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_in_every_precision(
    kind: str, type_: str, precision: str, slope: float | None
) -> None:
    cudnn = Cudnn()
    engine = standin_engine(precision=PRECISIONS[precision], cudnn=cudnn)
    text = text_of(kind, type_, slope)
    net = Net(text, caffe_pb2.TRAIN, engine=engine, seed=1)
    assert_same(net, text)
    override_of(net)
    fused = {"bias", "relu"} if slope == 0 else {"bias"}
    has_bias = kind != "without bias" or slope == 0
    expected = type_ == "Convolution" and precision != "float32" and has_bias and slope != 0.5
    assert any(fused == graph.features - {"grid"} and graph.runs for graph in cudnn.graphs) == (
        expected
    )


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("type_", ["Convolution", "Deconvolution"])
@pytest.mark.parametrize("refused", ["bias", "relu"])
def test_what_cudnn_cannot_do_at_once_is_done_in_steps(
    type_: str, precision: str, refused: str
) -> None:
    cudnn = Cudnn(refused=[refused])
    engine = standin_engine(precision=PRECISIONS[precision], cudnn=cudnn)
    for slope in RELUS:
        text = text_of("grouped", type_, slope)
        net = Net(text, caffe_pb2.TRAIN, engine=engine, seed=1)
        assert_same(net, text)
        override_of(net)


def test_weights_are_packed_once_for_all_bottoms() -> None:
    engine = standin_engine(captures=False, precision=PRECISIONS["bf16"])
    text = text_of("3x3", count=3)
    net = Net(text, caffe_pb2.TRAIN, engine=engine, seed=1)
    assert_same(net, text)
    packed = []
    pack = engine.device.pack
    engine.device.pack = lambda plain, *others: (packed.append(plain.shape), pack(plain, *others))  # type: ignore[func-returns-value, assignment, method-assign]
    run(net, 3)
    assert packed.count((8, 8, 3, 3)) == 2


def features(cudnn: Cudnn) -> list[set[str]]:
    return [graph.features for graph in cudnn.graphs]


def test_only_what_a_layer_needs_is_planned() -> None:
    text = text_of("3x3").replace("force_backward: true", "")
    cudnn = Cudnn()
    engine = standin_engine(cudnn=cudnn, precision=PRECISIONS["tf32"])
    Net(text, caffe_pb2.TEST, engine=engine, seed=1).run_forward()
    assert features(cudnn) == [{"grid"}, {"grid", "bias"}]
    fixed = text_of("3x3").replace("convolution_param", "param { lr_mult: 0 } convolution_param")
    cudnn.graphs.clear()
    run(Net(fixed.replace("force_backward: true", ""), caffe_pb2.TRAIN, engine=engine, seed=1), 0)
    assert cudnn.graphs == []


@pytest.mark.parametrize("refused", ["grid", "image", "weights"])
def test_what_cudnn_cannot_do_runs_by_own_code(
    refused: str, caplog: pytest.LogCaptureFixture
) -> None:
    text = text_of("3x3", slope=0)
    engine = standin_engine(cudnn=Cudnn(refused=[refused]))
    net = Net(text, caffe_pb2.TRAIN, engine=engine, seed=1)
    with caplog.at_level(logging.WARNING, "protocaffe"):
        assert_same(net, text)
    message = "cuDNN cannot run layer 'conv' (No valid engine configs): it runs by own code"
    assert message in caplog.messages
    assert not isinstance(net._plan._runners[1], CudaConvolutionBase)  # type: ignore[union-attr]


def test_a_net_without_backward_needs_no_gradients_of_cudnn() -> None:
    text = text_of("3x3").replace("force_backward: true", "")
    engine = standin_engine(cudnn=Cudnn(refused=["image", "weights"]))
    net = Net(text, caffe_pb2.TEST, engine=engine, seed=1)
    net.run_forward()
    override_of(net)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_kind_on_a_gpu(precision: str) -> None:
    engine = engine_on_a_gpu(precision)
    for kind, type_, slope in product(KINDS, ("Convolution", "Deconvolution"), RELUS):
        text = text_of(kind, type_, slope)
        # Winograd's transforms leave no whole numbers.
        assert_same(Net(text, caffe_pb2.TRAIN, engine=engine, seed=1), text, atol=0.05)


def engine_on_a_gpu(precision: str) -> CudaEngine:
    try:
        return CudaEngine.open(precision=PRECISIONS[precision])
    except UnavailableError as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("place", ["a GPU", "stand-in"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_nan_goes_through_a_relu(precision: str, place: str) -> None:
    if place == "a GPU":
        engine = engine_on_a_gpu(precision)
    else:
        engine = standin_engine(precision=PRECISIONS[precision])
    net = Net(text_of("3x3", slope=0), caffe_pb2.TRAIN, engine=engine, seed=1)
    net.params["conv"][1].data[2] = np.nan
    net.run_forward()
    assert np.isnan(net.blobs["y0"].data[:, 2]).all()
    assert not np.isnan(net.blobs["y0"].data[:, 3]).any()


# -- plans ---------------------------------------------------------------------------------


@pytest.fixture
def _small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dnn, "BUSY_BYTES", 16)


COSTS = (
    PlanOfCudnn(cost=5),
    PlanOfCudnn(cost=1, fault="build"),
    PlanOfCudnn(cost=1, fault="run"),
    PlanOfCudnn(cost=1, workspace=dnn.CANDIDATE_WORKSPACE + 1),
    PlanOfCudnn(cost=4),
    PlanOfCudnn(cost=2, workspace=1 << 20),
    PlanOfCudnn(cost=3),
)


def graph_that_ran(cudnn: Cudnn, feature: str) -> Pygraph:
    """The graph for something that ran last."""
    graphs = [graph for graph in cudnn.graphs if feature in graph.features and graph.runs]
    return max(graphs, key=lambda graph: len(graph.runs))


@pytest.mark.usefixtures("_small_memory")
@pytest.mark.parametrize("captures", [False, True])
@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_the_fastest_plan_is_taken(precision: str, captures: bool) -> None:
    cudnn = Cudnn(plans=COSTS)
    engine = standin_engine(captures, PRECISIONS[precision], cudnn, autotune=True)
    text = text_of("3x3", slope=0)
    net = Net(text, caffe_pb2.TRAIN, engine=engine, seed=1)
    assert_same(net, text)
    for feature in ("grid", "image", "weights"):
        runs = [graph.runs for graph in cudnn.graphs if feature in graph.features]
        assert all({*each} == {0, 4, 5, 6} for each in runs)
        assert graph_that_ran(cudnn, feature).runs[-1] == 5


@pytest.mark.usefixtures("_small_memory")
@pytest.mark.parametrize(("slow", "fused"), [("bias", False), ("", True)])
def test_cudnn_adds_the_bias_if_that_is_faster(slow: str, fused: bool) -> None:
    cudnn = Cudnn(slow=[slow])
    engine = standin_engine(precision=PRECISIONS["tf32"], cudnn=cudnn, autotune=True)
    text = text_of("3x3", slope=0)
    assert_same(Net(text, caffe_pb2.TRAIN, engine=engine, seed=1), text)
    assert ("bias" in graph_that_ran(cudnn, "grid").features) == fused


@pytest.mark.usefixtures("_small_memory")
def test_plans_are_timed_once_and_that_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    engine = standin_engine(cudnn=Cudnn(plans=COSTS), autotune=True)
    net = Net(text_of("3x3"), caffe_pb2.TRAIN, engine=engine, seed=1)
    with caplog.at_level(logging.INFO, "protocaffe"):
        for seed in range(4):
            run(net, seed)
        run(Net(text_of("3x3"), caffe_pb2.TRAIN, engine=engine, seed=1), 4)
    lines = [line for line in caplog.messages if line.startswith("Timed")]
    assert len(lines) == 1
    assert lines[0].startswith("Timed 16 plans of cuDNN in ")


@pytest.mark.usefixtures("_small_memory")
def test_plans_are_not_timed_for_ever_other_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dnn, "SHAPES", 2)
    monkeypatch.setattr(dnn, "KEPT", 5)
    engine = standin_engine(autotune=True)
    net, other = (
        Net(text_of("3x3"), caffe_pb2.TRAIN, engine=each, seed=1) for each in (engine, "numpy")
    )
    timed = []
    for images in (1, 2, 3, 1, 4):
        for each in (net, other):
            each.blobs["x0"].reshape(images, 8, 6, 6)
        expected, got = run(other, images), run(net, images)
        for name, array in expected.items():
            np.testing.assert_array_equal(got[name], array, err_msg=name)
        timed.append(recorder.counts["event"])
    assert timed[0] < timed[1] == timed[2] == timed[4]


@pytest.mark.usefixtures("_small_memory")
def test_nets_that_do_not_train_take_the_heuristics_plan() -> None:
    cudnn = Cudnn(plans=COSTS)
    text = text_of("3x3").replace("force_backward: true", "")
    engine = standin_engine(cudnn=cudnn, autotune=True)
    for _ in range(3):
        Net(text, caffe_pb2.TEST, engine=engine, seed=1).run_forward()
    assert {index for graph in cudnn.graphs for index in graph.runs} == {0}
    assert recorder.counts["event"] == 0


def test_without_timing_sums_have_one_order() -> None:
    plans = (PlanOfCudnn(notes=("any order",)), PlanOfCudnn())
    for autotune, expected in ((False, 1), (True, 0)):
        cudnn = Cudnn(plans=plans)
        engine = standin_engine(cudnn=cudnn, autotune=autotune)
        text = text_of("3x3").replace("force_backward: true", "")
        Net(text, caffe_pb2.TEST, engine=engine, seed=1).run_forward()
        assert {index for graph in cudnn.graphs for index in graph.runs} == {expected}


@pytest.mark.usefixtures("_small_memory")
def test_a_captured_pass_finds_all_workspace_that_it_needs() -> None:
    engine = standin_engine(cudnn=Cudnn(plans=COSTS), autotune=True)
    net = Net(text_of("3x3", slope=0), caffe_pb2.TRAIN, engine=engine, seed=1)
    run(net, 0)
    address = engine.device.dnn.workspace(1 << 20)
    run(net, 1)
    assert recorder.counts["launch"] == 2
    assert engine.device.dnn.workspace(1) == address
    recorder.capturing = []
    try:
        refused = pytest.raises(RuntimeError, match="more workspace than in the pass before")
        with engine.active(), refused:
            engine.device.dnn.workspace(1 << 24)
    finally:
        recorder.capturing = None
