"""The training loop against recorded runs, and what it refuses."""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from protocaffe.engines import get_engine
from protocaffe.errors import ProtocaffeError, SolverError, UsageError, WeightsError
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.binary import read_binary
from protocaffe.proto.text import parse_text
from protocaffe.solvers import SOLVERS, Action, elementwise, get_solver
from protocaffe.solvers.elementwise import CHUNK
from tests.test_net import assert_assembled

GOLDEN = Path(__file__).parents[1] / "golden"

TINY = """
name: "tiny"
layer { name: "data" type: "DummyData" top: "x" top: "t"
        dummy_data_param { shape { dim: 4 dim: 3 } shape { dim: 4 }
                           data_filler { type: "gaussian" } data_filler { type: "constant" } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y"
        inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "y" bottom: "t" top: "loss" }
"""


@pytest.fixture(params=["numpy", "onednn"])
def engine(request: pytest.FixtureRequest) -> str:
    try:
        get_engine(request.param)
    except UsageError as reason:
        pytest.skip(str(reason))
    return str(request.param)


def settings(**fields: object) -> caffe_pb2.SolverParameter:
    """A solver for the tiny net; fields replace or add settings, None takes one away."""
    defaults: dict[str, object] = {
        "base_lr": 0.1,
        "lr_policy": "fixed",
        "max_iter": 10,
        "random_seed": 1,
        "snapshot_after_train": False,
    }
    wanted = {name: value for name, value in {**defaults, **fields}.items() if value is not None}
    param = caffe_pb2.SolverParameter(**wanted)
    if not any(name.startswith(("net", "train_net")) for name in fields):
        from google.protobuf import text_format

        text_format.Parse(TINY, param.net_param)
    return param


def test_a_recorded_run_goes_on_as_caffe_went_on(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From Caffe's snapshot of iteration 20, the same losses and the same weights at 40.

    Momentum, decay, multipliers, a multistep rate, the averaged loss, and data from a database
    whose round fits the snapshot. The recorded model is that of a fine-tuned run.
    """
    shutil.copytree(GOLDEN / "train_log", tmp_path / "run")
    shutil.copytree(
        GOLDEN / "data" / "dbs" / "gray_16x16_lmdb", tmp_path / "data" / "dbs" / "gray_16x16_lmdb"
    )
    monkeypatch.chdir(tmp_path / "run")
    recorded = read_binary("digit_iter_40.caffemodel", caffe_pb2.NetParameter())
    log = Path("finetune.log").read_text()
    solver = get_solver("solver.prototxt", engine=engine)
    solver.restore("digit_iter_20.solverstate")
    assert solver.iter == 20
    losses = {}
    solver.add_callback(
        after=lambda: losses.update({solver.iter: solver.net.blobs["loss"].data.item()})
    )
    solver.step(20)
    for iteration in (25, 30, 35):
        shown = re.search(rf"Iteration {iteration} \(.*\n.*output #0: loss = (\S+)", log)
        assert shown is not None
        assert losses[iteration] == pytest.approx(float(shown[1]), rel=2e-5)
    for layer in recorded.layer:
        for mine, theirs in zip(solver.net.params.get(layer.name, []), layer.blobs, strict=False):
            np.testing.assert_allclose(mine.data.ravel(), theirs.data, rtol=1e-3, atol=1e-5)
    solver.net.close()


def test_nets_of_a_solver_with_states(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = GOLDEN / "assembly" / "solver_states"
    monkeypatch.chdir(folder)
    expected = json.loads((folder / "expected.json").read_text())
    solver = get_solver("solver.prototxt")
    assert_assembled(solver.net, expected["train"])
    for test_net, wanted in zip(solver.test_nets, expected["tests"], strict=True):
        assert_assembled(test_net, wanted)


@pytest.mark.parametrize(
    "case", ["solver_test_iter_without_interval", "solver_two_nets", "solver_unknown_policy"]
)
def test_what_caffe_refuses_is_refused(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN / "errors" / case)
    with pytest.raises(SolverError):
        get_solver("solver.prototxt")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"net": "a", "train_net": "b"}, "net and train_net are given"),
        ({"net": "nosuch.prototxt"}, "nosuch.prototxt"),
        ({"net_param": None}, "none is given"),
        ({"iter_size": 0}, "iter_size"),
        ({"regularization_type": "L3"}, "L1 or L2"),
        ({"test_iter": [1]}, "test_interval must be positive"),
        ({"test_iter": [1, 1], "test_interval": 5, "test_state": [{}]}, "test_state"),
        ({"type": "AdaGrad", "momentum": 0.9}, "AdaGrad has no momentum, but momentum is 0.9"),
        ({"type": "RMSProp", "momentum": 0.9}, "RMSProp has no momentum"),
        ({"type": "RMSProp", "rms_decay": 1}, "rms_decay must be at least 0 and below 1, got 1"),
        ({"type": "Adma"}, "unknown solver type 'Adma'"),
        ({"snapshot": 5, "snapshot_prefix": "/nosuch/folder/x"}, "create the folder"),
    ],
)
def test_wrong_settings_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ProtocaffeError, match=message):
        get_solver(settings(**fields))


def test_momentum_decay_and_multipliers_by_hand(engine: str) -> None:
    """Three iterations against the formula in float64."""
    param = settings(momentum=0.9, weight_decay=0.1)
    ip = param.net_param.layer[1]
    ip.param.add(lr_mult=2, decay_mult=0.5)
    ip.param.add(lr_mult=1, decay_mult=0)
    solver = get_solver(param, engine=engine)
    weight, bias = solver.net.params["ip"]
    expected = [blob.data.astype(np.float64) for blob in (weight, bias)]
    history = [np.zeros_like(each) for each in expected]
    for _ in range(3):
        solver.step(1)
        for i, (blob, rate, decay) in enumerate([(weight, 0.2, 0.05), (bias, 0.1, 0.0)]):
            history[i] = rate * (blob.diff + decay * expected[i]) + 0.9 * history[i]
            expected[i] -= history[i]
    for blob, wanted in zip((weight, bias), expected, strict=True):
        np.testing.assert_allclose(blob.data, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("solver_type", list(SOLVERS))
def test_rules_do_not_see_the_chunks_they_get(
    solver_type: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, also those that an engine keeps in its own layout, do not depend on the chunks."""
    images = """
        layer { name: "image" type: "DummyData" top: "x" dummy_data_param {
                shape { dim: 2 dim: 3 dim: 9 dim: 9 } data_filler { type: "gaussian" } } }
        layer { name: "conv" type: "Convolution" bottom: "x" top: "y" convolution_param {
                num_output: 20 kernel_size: 3 weight_filler { type: "gaussian" std: 0.1 } } }
        layer { name: "sum" type: "Reduction" bottom: "y" top: "s" loss_weight: 1 }"""
    param = settings(type=solver_type, weight_decay=0.1, regularization_type="L1")
    param.net_param.CopyFrom(parse_text(images, caffe_pb2.NetParameter()))
    trained = []
    for chunk in (CHUNK, 100):
        monkeypatch.setattr(elementwise, "CHUNK", chunk)
        solver = get_solver(param, engine=engine)
        before = solver.net.params["conv"][0].data.copy()
        solver.step(3)
        trained.append(solver.net.params["conv"][0].data.copy())
    assert (trained[0] != before).any()
    assert (trained[0] == trained[1]).all()


@pytest.mark.parametrize("solver_type", ["AdaGrad", "RMSProp", "AdaDelta", "Adam"])
def test_a_parameter_without_rate_stays_but_its_history_takes_the_decay(
    solver_type: str, engine: str
) -> None:
    param = settings(type=solver_type, weight_decay=0.1)
    param.net_param.layer[1].param.add(lr_mult=0)
    solver = get_solver(param, engine=engine)
    before = solver.net.params["ip"][0].data.copy()
    solver.step(2)
    assert (solver.net.params["ip"][0].data == before).all()
    assert (solver.history[0].data != 0).all()


def test_l1_decay_takes_the_sign(engine: str) -> None:
    solver = get_solver(settings(weight_decay=0.5, regularization_type="L1"), engine=engine)
    weight = solver.net.params["ip"][0]
    before = weight.data.astype(np.float64)
    solver.net.forward()
    solver.net.backward()
    gradient = weight.diff.copy()
    solver.apply_update()
    wanted = before - 0.1 * (gradient + 0.5 * np.sign(before))
    np.testing.assert_allclose(weight.data, wanted, rtol=1e-5, atol=1e-7)


def test_clipping_scales_the_accumulated_gradient(engine: str) -> None:
    solver = get_solver(settings(clip_gradients=0.01, iter_size=2), engine=engine)
    blobs = solver.net.params["ip"]
    before = [blob.data.astype(np.float64) for blob in blobs]
    solver.step(1)
    moved = [(blob.data - old) / -0.1 for blob, old in zip(blobs, before, strict=True)]
    norm = np.sqrt(sum((each**2).sum() for each in moved))
    assert norm == pytest.approx(0.01 / 2, rel=1e-3)


def test_clipping_leaves_finite_gradients_alone_where_others_are_not(engine: str) -> None:
    solver = get_solver(settings(clip_gradients=0.01), engine=engine)
    weight, bias = solver.net.params["ip"]
    weight.diff[...], bias.diff[...] = 1, np.nan
    before = weight.data.copy()
    solver.apply_update()
    np.testing.assert_allclose(weight.data, before - 0.1, rtol=1e-5)


def test_a_test_net_may_run_for_no_batches(caplog: pytest.LogCaptureFixture) -> None:
    fields = {"test_iter": [0], "test_interval": 1, "test_compute_loss": True}
    with caplog.at_level("INFO", logger="protocaffe"):
        get_solver(settings(**fields)).step(1)
    assert "Testing net (#0)" in caplog.text
    assert "Test net output" not in caplog.text


def test_the_solvers_weights_are_a_list_with_commas(tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("a.caffemodel", "b.caffemodel")]
    nets = [get_solver(settings(random_seed=seed)).net for seed in (2, 3)]
    for net, file in zip(nets, files, strict=True):
        net.save(file)
    solver = get_solver(settings(weights=[" , ".join(files)]))
    assert (solver.net.params["ip"][0].data == nets[1].params["ip"][0].data).all()


def test_a_resumed_run_ends_where_a_straight_one_does(tmp_path: Path, engine: str) -> None:
    """With constant data the snapshot holds all there is."""

    def train(iterations: int, resume: Path | None = None) -> Net:
        param = settings(momentum=0.9, max_iter=iterations, snapshot_after_train=True)
        param.net_param.layer[0].dummy_data_param.data_filler[0].type = "constant"
        param.net_param.layer[0].dummy_data_param.data_filler[0].value = 0.7
        param.snapshot_prefix = str(tmp_path / "tiny")
        solver = get_solver(param, engine=engine)
        solver.solve(resume)
        return solver.net

    straight = train(10)
    train(6)
    resumed = train(10, tmp_path / "tiny_iter_6.solverstate")
    for one, two in zip(straight.params["ip"], resumed.params["ip"], strict=True):
        assert (one.data == two.data).all()


def test_a_snapshot_of_another_net_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    param = settings(snapshot_prefix=str(tmp_path / "tiny"))
    get_solver(param).snapshot()
    param.net_param.layer[1].inner_product_param.num_output = 3
    other = get_solver(param)
    before = other.net.params["ip"][0].data.copy()
    with pytest.raises(WeightsError, match=r"history blob 0 has shape \(2, 3\).*\(3, 3\)"):
        other.restore(tmp_path / "tiny_iter_0.solverstate")
    assert other.iter == 0
    assert (other.net.params["ip"][0].data == before).all()


def test_the_same_seed_trains_to_the_same_bits(engine: str) -> None:
    runs = []
    for _ in range(2):
        solver = get_solver(settings(momentum=0.9), engine=engine)
        solver.step(5)
        runs.append(solver.net.params["ip"][0].data.copy())
    assert (runs[0] == runs[1]).all()


def test_a_request_stops_after_the_iteration(tmp_path: Path) -> None:
    param = settings(snapshot_after_train=True, snapshot_prefix=str(tmp_path / "tiny"))
    solver = get_solver(param)
    solver.get_action = lambda: Action.STOP if solver.iter == 3 else Action.NONE
    solver.solve()
    assert solver.iter == 3
    assert (tmp_path / "tiny_iter_3.solverstate").exists()


def test_a_request_stops_a_test_and_one_for_a_snapshot_does_not(tmp_path: Path) -> None:
    fields = {"test_iter": [5, 5], "test_interval": 2, "snapshot_after_train": True}
    solver = get_solver(settings(**fields, snapshot_prefix=str(tmp_path / "tiny")))
    asked = iter([Action.SNAPSHOT] + [Action.NONE] * 13 + [Action.STOP])
    solver.get_action = lambda: next(asked)
    solver.solve()
    assert solver.iter == 2
    assert sorted(path.name for path in tmp_path.glob("*.solverstate")) == [
        "tiny_iter_0.solverstate",
        "tiny_iter_2.solverstate",
    ]
    solver.get_action = lambda: Action.NONE
    solver.step(1)
    assert solver.iter == 3


def test_no_training_is_done_whose_result_cannot_be_written(tmp_path: Path) -> None:
    prefix = str(tmp_path / "nosuch" / "tiny")
    solver = get_solver(settings(snapshot_after_train=True, snapshot_prefix=prefix))
    with pytest.raises(SolverError, match="create the folder"):
        solver.solve()
    assert solver.iter == 0


def test_a_folder_that_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(Path, "touch", denied)
    param = settings(snapshot=1, snapshot_prefix=str(tmp_path / "tiny"))
    with pytest.raises(SolverError, match=r"tiny\*': Permission denied; change snapshot_prefix"):
        get_solver(param)


def test_a_run_that_is_over_says_so(caplog: pytest.LogCaptureFixture) -> None:
    solver = get_solver(settings(max_iter=2))
    solver.solve()
    assert "nothing will be trained" not in caplog.text
    solver.solve()
    assert "2 iterations are done already, and max_iter is 2: nothing will be" in caplog.text


def test_a_run_that_diverges_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    solver = get_solver(settings(display=1))
    solver.step(1)
    assert "has diverged" not in caplog.text
    solver.net.learnable[0].blob.data[...] = np.nan
    solver.step(2)
    assert caplog.text.count("training has diverged and does not recover") == 1


def test_callbacks_run_around_every_iteration() -> None:
    solver = get_solver(settings())
    seen: list[str] = []
    solver.add_callback(
        lambda: seen.append(f"<{solver.iter}"), lambda: seen.append(f">{solver.iter}")
    )
    solver.step(2)
    assert seen == ["<0", ">0", "<1", ">1"]


def test_smoothed_loss_is_the_mean_of_the_last_ones() -> None:
    solver = get_solver(settings(average_loss=3))
    losses: list[float] = []
    solver.add_callback(after=lambda: losses.append(solver.net.blobs["loss"].data.item()))
    solver.step(5)
    assert solver.smoothed_loss == pytest.approx(np.mean(losses[-3:]), rel=1e-5)


@pytest.mark.parametrize("engine", ["numpy", None])
def test_weights_that_somebody_keeps_follow_the_training(engine: str | None) -> None:
    solver, other = (get_solver(settings(random_seed=1), engine=engine) for _ in range(2))
    kept = [blob.data for blobs in solver.net.params.values() for blob in blobs]
    for _ in range(3):
        kept[0][...] *= 2
        next(iter(other.net.params.values()))[0].data[...] *= 2
        solver.step(1)
        other.step(1)
        now = [blob.data for blobs in other.net.params.values() for blob in blobs]
        for mine, theirs in zip(kept, now, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
        del now


def test_the_rate_can_be_read_and_changed() -> None:
    solver = get_solver(settings(base_lr=0.5, max_iter=7))
    assert (solver.lr, solver.base_lr, solver.max_iter) == (0.5, 0.5, 7)
    solver.base_lr = 0.25
    solver.step(1)
    assert solver.lr == 0.25


def test_the_policy_goes_on_from_a_new_rate() -> None:
    halving = settings(base_lr=0.5, lr_policy="exp", gamma=0.5)
    solver = get_solver(halving)
    solver.add_callback(before=lambda: solver.iter == 2 and solver.update_lr(0.8))
    rates = []
    solver.add_callback(after=lambda: rates.append(solver.lr))
    solver.step(4)
    np.testing.assert_allclose(rates, [0.5, 0.25, 0.8, 0.4], rtol=1e-6)
    with pytest.raises(UsageError, match="not negative, got -1"):
        solver.update_lr(-1)
    ending = get_solver(settings(base_lr=0.5, lr_policy="poly", power=1, max_iter=2))
    ending.step(2)
    with pytest.raises(UsageError, match="'poly' gives a rate of 0 at iteration 2"):
        ending.update_lr(0.1)
    assert ending.base_lr == 0.5


def test_gradients_can_be_changed_before_the_update() -> None:
    solver = get_solver(settings())
    before = [p.blob.data.copy() for p in solver.net.learnable]
    solver.add_callback(after=solver.net.clear_param_diffs)
    solver.step(3)
    for old, learnable in zip(before, solver.net.learnable, strict=True):
        assert (learnable.blob.data == old).all()


def test_what_is_no_function_or_no_number_is_refused() -> None:
    solver = get_solver(settings())
    with pytest.raises(UsageError, match="add_callback takes functions, not 3"):
        solver.add_callback(3)
    with pytest.raises(TypeError, match="integer"):
        solver.step(2.5)


def test_a_net_uses_the_weights_of_a_solver() -> None:
    solver = get_solver(settings())
    other = Net(solver.param.net_param, caffe_pb2.TEST)
    solver.share_weights(other)
    solver.step(2)
    for name, blobs in solver.net.params.items():
        assert (other.params[name][0].data == blobs[0].data).all()
