"""What the CUDA engine does around layers: residency, graphs, updates, losses, transfers."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from protocaffe.engines.cuda.engine import CudaEngine
from protocaffe.errors import LayerError, NetError
from protocaffe.layers import Layer
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import parse_text
from protocaffe.solvers import Solver, get_solver
from tests.data.samples import random_images, raw_datum, write_database
from tests.engines.cuda.places import PLACES, engine_on, is_standin
from tests.engines.cuda.standin import recorder, standin_engine

NET = """
    layer { name: "data" type: "Input" top: "data" top: "label"
        input_param { shape { dim: 6 dim: 3 dim: 9 dim: 9 } shape { dim: 6 } } }
    layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { lr_mult: 1 }
        param { lr_mult: 2 decay_mult: 0 } convolution_param { num_output: 8 kernel_size: 3
        weight_filler { type: "xavier" } bias_filler { type: "constant" value: 0.1 } } }
    layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
    layer { name: "norm" type: "LRN" bottom: "conv" top: "norm" }
    layer { name: "pool" type: "Pooling" bottom: "norm" top: "pool"
        pooling_param { kernel_size: 3 stride: 2 } }
    layer { name: "ip" type: "InnerProduct" bottom: "pool" top: "ip"
        inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
    layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
SETTINGS = {
    "SGD": "momentum: 0.9",
    "Nesterov": "momentum: 0.9",
    "AdaGrad": "delta: 0.01",
    "RMSProp": "rms_decay: 0.9 delta: 0.01",
    "AdaDelta": "momentum: 0.9 delta: 0.01",
    "Adam": "momentum: 0.9 momentum2: 0.99 delta: 0.01",
}


@pytest.fixture(params=PLACES)
def engine(request: pytest.FixtureRequest) -> Iterator[CudaEngine]:
    yield engine_on(request.param)
    recorder.counts.clear()


def solver(
    engine: CudaEngine | str,
    more: str = "",
    kind: str = "SGD",
    net: str = NET,
    rates: str = 'lr_policy: "fixed"',
    data: bool = True,
) -> Solver:
    text = f"""base_lr: 0.05 {rates} max_iter: 100 random_seed: 3 type: "{kind}"
        {SETTINGS[kind]} weight_decay: 0.01 {more} net_param {{ {net} }}"""
    made = get_solver(parse_text(text, caffe_pb2.SolverParameter()), engine=engine)
    if data:
        give_data(made.net)
    return made


def give_data(net: Net, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for name in ("data", "label"):
        blob = net.blobs[name]
        values = rng.integers(5, size=blob.shape) if name == "label" else rng.random(blob.shape)
        blob.data[...] = values


def weights(one: Solver) -> list[np.ndarray]:
    return [learnable.blob.data.copy() for learnable in one.net.learnable]


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize(
    "more", ["", "clip_gradients: 0.05", 'regularization_type: "L1"', "iter_size: 2"]
)
def test_training_is_that_of_the_numpy_engine(engine: CudaEngine, kind: str, more: str) -> None:
    solvers = [solver(engine, more, kind), solver("numpy", more, kind)]
    for one in solvers:
        one.step(5)
    assert solvers[0].smoothed_loss == pytest.approx(solvers[1].smoothed_loss, rel=1e-4)
    for got, expected in zip(*map(weights, solvers), strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("precision", "bits"), [("tf32", 11), ("fp16", 11), ("bf16", 8)])
def test_training_with_other_precisions(precision: str, bits: int, place: str) -> None:
    """Weights stay float32; activations and their gradients are rounded to ``bits``."""
    engine = engine_on(place, precision)
    bits = 24 if is_standin(engine) and precision == "tf32" else bits  # which does not round
    # Neither a maximum nor a ReLU turns over where a number is rounded.
    smooth = NET.replace("pooling_param {", "pooling_param { pool: AVE")
    smooth = smooth.replace('"ReLU"', '"ReLU" relu_param { negative_slope: 0.9 }')
    solvers = [solver(each, net=smooth) for each in (engine, "numpy", "numpy")]
    rough, exact, _ = solvers
    for one in (rough, exact):
        one.step(5)
    assert rough.smoothed_loss == pytest.approx(exact.smoothed_loss, rel=2 * 2.0**-bits + 1e-6)
    for got, expected, start in zip(*map(weights, solvers), strict=True):
        wrong, moved = np.linalg.norm(got - expected), np.linalg.norm(expected - start)
        assert wrong < 2 * 2.0**-bits * moved + 1e-6
    if precision != "tf32":
        assert engine.device.form(rough.net.blobs["conv"].data_storage) is not None


@pytest.mark.parametrize("kind", SETTINGS)
def test_snapshots_get_the_updates_as_diffs(engine: CudaEngine, kind: str) -> None:
    solvers = [solver(engine, "snapshot_diff: true", kind) for engine in (engine, "numpy")]
    for one in solvers:
        one.step(2)
    for got, expected in zip(*(one.net.learnable for one in solvers), strict=True):
        np.testing.assert_allclose(got.blob.diff, expected.blob.diff, rtol=2e-4, atol=2e-6)


def test_a_steady_iteration_is_one_graph_and_waits_for_nothing(engine: CudaEngine) -> None:
    one = solver(engine)
    one.step(3)
    recorder.counts.clear()
    one.step(1)
    assert recorder.counts == ({"launch": 1} if is_standin(engine) else {})


def test_own_code_can_be_part_of_a_graph(engine: CudaEngine) -> None:
    net = NET.replace('"ReLU"', '"PReLU"').replace('"SoftmaxWithLoss"', '"EuclideanLoss"')
    net = net.replace("shape { dim: 6 } ", "shape { dim: 6 dim: 5 } ")
    solvers = [solver(each, net=net) for each in (engine, "numpy")]
    for one in solvers:
        one.step(4)
    recorder.counts.clear()
    solvers[0].step(1)
    assert recorder.counts == ({"launch": 1} if is_standin(engine) else {})
    solvers[1].step(1)
    for got, expected in zip(*map(weights, solvers), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_without_graphs_numbers_are_the_same() -> None:
    plain, captured = solver(standin_engine(captures=False)), solver(standin_engine())
    recorder.counts.clear()
    plain.step(4)
    assert recorder.counts["launch"] == 0
    captured.step(4)
    assert recorder.counts["launch"] > 0
    for got, expected in zip(weights(captured), weights(plain), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_losses_are_those_of_their_own_iteration(engine: CudaEngine) -> None:
    one, other = solver(engine, "average_loss: 10"), solver("numpy", "average_loss: 10")
    for each in (one, other):
        for seed in range(4):
            give_data(each.net, seed)
            each._iterate()
    assert one.smoothed_loss == pytest.approx(other.smoothed_loss, rel=1e-5)


def test_blobs_are_the_hosts_arrays_for_users_between_passes(engine: CudaEngine) -> None:
    nets = [Net(NET, caffe_pb2.TRAIN, engine=each, seed=1) for each in (engine, "numpy")]
    for net in nets:
        give_data(net)
        kept = net.params["conv"][0].data
        for _ in range(3):
            net.forward()
            net.blobs["pool"].data[0] = 1  # lost: the next pass computes it again
            kept *= 0.9
            net.clear_param_diffs()
            net.backward()
    for name in ("conv", "norm", "pool", "loss"):
        assert isinstance(nets[0].blobs[name].data, np.ndarray)
        np.testing.assert_allclose(
            nets[0].blobs[name].data, nets[1].blobs[name].data, rtol=1e-4, atol=1e-5
        )
    for got, expected in zip(nets[0].learnable, nets[1].learnable, strict=True):
        np.testing.assert_allclose(got.blob.diff, expected.blob.diff, rtol=1e-4, atol=1e-5)


def test_a_new_shape_is_captured_anew(engine: CudaEngine) -> None:
    nets = [Net(NET, caffe_pb2.TRAIN, engine=each, seed=1) for each in (engine, "numpy")]
    for batch in (6, 2, 9):
        for net in nets:
            net.blobs["data"].reshape(batch, 3, 9, 9)
            net.blobs["label"].reshape(batch)
            give_data(net, batch)
        for _ in range(3):
            losses = [net.run_forward() for net in nets]
            assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_other_memory_of_a_blob_is_captured_anew(engine: CudaEngine) -> None:
    net = Net(NET, caffe_pb2.TRAIN, engine=engine, seed=1)
    give_data(net)
    losses = [net.run_forward() for _ in range(3)]
    weight = net.params["ip"][0].data_storage
    weight.host_write()[:] = weight.host_read() * 1
    weight.leave_native()
    losses += [net.run_forward() for _ in range(3)]
    assert losses == pytest.approx([losses[0]] * 6, rel=1e-6)


def test_layers_run_one_by_one_where_a_pass_begins_or_ends_inside(engine: CudaEngine) -> None:
    nets = [Net(NET, caffe_pb2.TRAIN, engine=each, seed=1) for each in (engine, "numpy")]
    for net in nets:
        give_data(net)
        for _ in range(3):
            net.forward(end="relu")
            net.forward(start="norm")
    np.testing.assert_allclose(nets[0].blobs["loss"].data, nets[1].blobs["loss"].data, rtol=1e-5)


def test_backward_may_begin_and_end_inside_a_graph(engine: CudaEngine) -> None:
    nets = [Net(NET, caffe_pb2.TRAIN, engine=each, seed=1) for each in (engine, "numpy")]
    for net in nets:
        give_data(net)
        for _ in range(3):
            net.forward()
            net.backward()
        net.clear_param_diffs()
        net.backward(start="pool")
    assert nets[1].params["conv"][0].diff.any()
    assert not nets[1].params["ip"][0].diff.any()
    for got, expected in zip(nets[0].learnable, nets[1].learnable, strict=True):
        np.testing.assert_allclose(got.blob.diff, expected.blob.diff, rtol=1e-4, atol=1e-5)


TURN = 'layer { name: "turn" type: "ReLU" bottom: "ip" top: "ip" }'
ABSORBED = NET.replace('layer { name: "loss"', f'{TURN} layer {{ name: "loss"')


def test_what_layers_run_as_is_told(engine: CudaEngine) -> None:
    net = Net(ABSORBED, caffe_pb2.TRAIN, engine=engine, seed=1)
    give_data(net)
    backward = net.layer_names.index("loss")
    titles = []
    assert net.plan.doer(net.layer_names.index("conv"), net.plan.backward) == backward
    for _ in range(2):
        net.forward()
        net.backward()
        titles.append(net.plan.describe(net.plan.backward[backward][0]))
    assert re.fullmatch(r"a row of \d layers, loss to conv", titles[0])
    assert titles[1] == titles[0].replace("a row", "a CUDA graph")
    net.run_one_by_one()
    names = [[net.plan.describe(work) for work in works] for works in net.plan.forward]
    assert all(net.plan.doer(i, net.plan.forward) == i for i in range(len(net.layers)))
    assert names[1:] == [[f"Cuda{layer.type}"] for layer in net.layers[1:]]


def test_a_layer_tells_whose_work_it_does() -> None:
    net = Net(ABSORBED, caffe_pb2.TRAIN, engine=standin_engine(captures=False), seed=1)
    place = net.layer_names.index("ip")
    for works in (net.plan.forward, net.plan.backward):
        titles = [net.plan.describe(work) for work in works[place]]
        assert titles == ["CudaInnerProduct, which does turn, too"]
        assert not works[place + 1]
        assert net.plan.doer(place + 1, works) == place
    give_data(net)
    net.forward()
    with pytest.raises(NetError, match="the layers ip, turn ran forward as one"):
        net.backward(start="ip")
    net.forward()
    net.backward(start="ip")


def trained_with(engine: CudaEngine, layer: str) -> list[Solver]:
    """Train the net with one of this file's layers in it, here and on the CPU; compare weights."""
    inserted = f"""layer {{ name: "twice" type: "Python" bottom: "pool" top: "twice"
        python_param {{ module: "tests.engines.cuda.test_plan" layer: "{layer}" }} }}"""
    text = NET.replace('layer { name: "ip"', f'{inserted} layer {{ name: "ip"')
    text = text.replace('bottom: "pool" top: "ip"', 'bottom: "twice" top: "ip"')
    solvers = [solver(each, net=text) for each in (engine, "numpy")]
    for one in solvers:
        one.step(4)
    for got, expected in zip(*map(weights, solvers), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    return solvers


def test_layers_on_the_host_split_graphs(engine: CudaEngine) -> None:
    solvers = trained_with(engine, "Twice")
    recorder.counts.clear()
    solvers[0].step(1)
    assert recorder.counts["launch"] == (4 if is_standin(engine) else 0)


class Twice(Layer):
    """A user's layer, which gets NumPy arrays."""

    def setup(self, bottom: list, top: list) -> None:
        pass

    def reshape(self, bottom: list, top: list) -> None:
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom: list, top: list) -> None:
        assert type(bottom[0].data) is np.ndarray
        top[0].data[...] = 2 * bottom[0].data

    def backward(self, top: list, propagate_down: list, bottom: list) -> None:
        bottom[0].diff[...] = 2 * top[0].diff


def test_a_layer_that_says_so_stays_on_the_device(engine: CudaEngine) -> None:
    solvers = trained_with(engine, "TwiceOnDevice")
    on_device, on_host = (one.net.layer_dict["twice"].seen for one in solvers)
    assert np.ndarray not in on_device
    assert on_host == {np.ndarray}


class TwiceOnDevice(Layer):
    """A user's layer that computes with the engine's arrays."""

    on_host = False

    def setup(self, bottom: list, top: list) -> None:
        self.seen: set[type] = set()

    def reshape(self, bottom: list, top: list) -> None:
        top[0].reshape(*bottom[0].shape)

    def forward(self, bottom: list, top: list) -> None:
        self.seen.add(type(bottom[0].data))
        top[0].data[...] = self.xp.multiply(bottom[0].data, 2)

    def backward(self, top: list, propagate_down: list, bottom: list) -> None:
        self.seen.add(type(top[0].diff))
        bottom[0].diff[...] = 2 * top[0].diff


class Growing(Layer):
    """A top that is longer in every pass; it has no gradient."""

    def setup(self, bottom: list, top: list) -> None:
        self.length = 1

    def reshape(self, bottom: list, top: list) -> None:
        top[0].reshape(self.length)

    def forward(self, bottom: list, top: list) -> None:
        self.length += 1


def test_a_layer_that_changes_shapes_in_mid_pass(engine: CudaEngine) -> None:
    inserted = """layer { name: "grow" type: "Python" bottom: "label" top: "grow"
        python_param { module: "tests.engines.cuda.test_plan" layer: "Growing" } }
        layer { name: "silence" type: "Silence" bottom: "grow" }"""
    text = NET.replace('layer { name: "ip"', f'{inserted} layer {{ name: "ip"')
    solvers = [solver(each, net=text) for each in (engine, "numpy")]
    for one in solvers:
        one.step(5)
    for got, expected in zip(*map(weights, solvers), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_a_label_that_is_no_class_is_an_error_when_the_loss_is_read(engine: CudaEngine) -> None:
    net = Net(NET, caffe_pb2.TRAIN, engine=engine, seed=1)
    give_data(net)
    net.run_forward()
    net.blobs["label"].data[2] = 7
    with pytest.raises(LayerError, match=r"label 7 is out of range \(blob 'label'\).* 0 to 4"):
        net.run_forward()
    net.blobs["label"].data[2] = 4
    assert np.isfinite(net.run_forward())


def test_dropout_keeps_its_share_and_drops_the_same_in_backward(engine: CudaEngine) -> None:
    text = """force_backward: true
        layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 301 dim: 100 } } }
        layer { name: "y" type: "Dropout" bottom: "x" top: "y"
            dropout_param { dropout_ratio: 0.3 } }"""
    net = Net(text, caffe_pb2.TRAIN, engine=engine, seed=1)
    net.blobs["x"].data[...] = 1
    masks = []
    for _ in range(4):
        net.forward()
        net.blobs["y"].diff[...] = 1
        net.run_backward()
        y = net.blobs["y"].data.copy()
        np.testing.assert_array_equal(net.blobs["x"].diff, y)
        assert set(np.unique(y)) == {0, np.float32(1 / 0.7)}
        assert (y != 0).mean() == pytest.approx(0.7, abs=0.01)
        masks.append(y)
    assert all((one != other).any() for one, other in itertools.pairwise(masks))
    state = net.get_state()
    net.forward()
    after = net.blobs["y"].data.copy()
    net.set_state(state)
    net.forward()
    np.testing.assert_array_equal(net.blobs["y"].data, after)


def data_net(folder: Path, transform: str = "") -> str:
    """Return the net on a database of images instead of its inputs."""
    images = random_images((3, 9, 9), 25)
    data = [raw_datum(image, number % 5) for number, image in enumerate(images)]
    source = write_database(folder / "images", data)
    text = f"""layer {{ name: "data" type: "Data" top: "data" top: "label"
        transform_param {{ {transform} }}
        data_param {{ source: "{source}" batch_size: 6 backend: LMDB }} }}"""
    return text + NET[NET.index("layer", 10) :]


def test_a_step_on_a_database_is_one_graph(engine: CudaEngine, tmp_path: Path) -> None:
    text = data_net(tmp_path, "scale: 0.004")
    solvers = [solver(each, net=text, data=False) for each in (engine, "numpy")]
    for one in solvers:
        one.step(5)
    recorder.counts.clear()
    for one in solvers:
        one.step(1)
    assert recorder.counts["launch"] == is_standin(engine)
    for got, expected in zip(*map(weights, solvers), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    for one in solvers:
        one.net.close()


class Batches(Layer):
    """A user's source, whose batches get another size every fourth time."""

    bottoms = (0, 0)
    tops = (2, 2)

    def setup(self, bottom: list, top: list) -> None:
        self.calls = 0

    def reshape(self, bottom: list, top: list) -> None:
        top[0].reshape(2 + self.calls // 4, 3, 9, 9)
        top[1].reshape(2 + self.calls // 4)

    def forward(self, bottom: list, top: list) -> None:
        self.calls += 1
        self.reshape(bottom, top)
        rng = np.random.default_rng(self.calls)
        top[0].data[...] = rng.random(top[0].shape)
        top[1].data[...] = rng.integers(5, size=top[1].shape)


def test_a_source_may_change_shapes_between_whole_steps(engine: CudaEngine) -> None:
    source = """layer { name: "data" type: "Python" top: "data" top: "label"
        python_param { module: "tests.engines.cuda.test_plan" layer: "Batches" } }"""
    text = source + NET[NET.index("layer", 10) :]
    solvers = [solver(each, net=text, data=False) for each in (engine, "numpy")]
    recorder.counts.clear()
    for one in solvers:
        one.step(14)
    assert (recorder.counts["launch"] > 0) == is_standin(engine)
    for got, expected in zip(*map(weights, solvers), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("scale", ["", "mean_value: 100 scale: 0.01 mirror: true"])
def test_data_layers_give_what_they_give_on_the_cpu(
    engine: CudaEngine, tmp_path: Path, scale: str
) -> None:
    text = data_net(tmp_path, scale)
    nets = [Net(text, caffe_pb2.TRAIN, engine=each, seed=1) for each in (engine, "numpy")]
    for _ in range(6):
        losses = [net.run_forward() for net in nets]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        for name in ("data", "label"):
            np.testing.assert_allclose(nets[0].blobs[name].data, nets[1].blobs[name].data)
    for net in nets:
        net.close()
