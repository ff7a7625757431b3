"""Snapshots: which files there are, what a broken or mixed set does, what a resumed run needs."""

import errno
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from protocaffe.errors import FileError, WeightsError
from protocaffe.proto import caffe_pb2, files
from protocaffe.proto.text import parse_text
from protocaffe.solvers import get_solver

NET = """
layer { name: "rows" type: "HDF5Data" top: "x" top: "y" include { phase: TRAIN }
        hdf5_data_param { source: "list.txt" batch_size: 3 shuffle: true } }
layer { name: "test_rows" type: "HDF5Data" top: "x" top: "y" include { phase: TEST }
        hdf5_data_param { source: "list.txt" batch_size: 2 } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "h"
        inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
layer { name: "drop" type: "Dropout" bottom: "h" top: "h" }
layer { name: "out" type: "InnerProduct" bottom: "h" top: "o"
        inner_product_param { num_output: 1 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "o" bottom: "y" top: "loss" }
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    import h5py

    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    with h5py.File("rows.h5", "w") as file:
        file["x"], file["y"] = rng.standard_normal((7, 5)), rng.standard_normal((7, 1))
    Path("list.txt").write_text("rows.h5")
    return tmp_path


def solver(**fields):
    settings = {
        "type": "Adam",
        "base_lr": 0.1,
        "lr_policy": "fixed",
        "max_iter": 100,
        "average_loss": 4,
        "test_iter": [1],
        "test_interval": 3,
        "snapshot_prefix": "run",
        "net_param": parse_text(NET, caffe_pb2.NetParameter()),
        **fields,
    }
    return get_solver(caffe_pb2.SolverParameter(**settings))


def weights(made):
    return np.concatenate([p.blob.data.ravel() for p in made.net.learnable])


@pytest.mark.parametrize("form", ["HDF5", "BINARYPROTO"])
def test_a_resumed_run_is_the_same_to_the_last_bit(form):
    """Without a random_seed: order, dropout, test data and the mean of the losses go on."""
    straight = solver(snapshot=4, snapshot_format=form)
    straight.step(11)
    resumed = solver(snapshot_format=form)
    resumed.restore_newest()
    assert resumed.iter == 8
    resumed.step(3)
    assert (weights(straight) == weights(resumed)).all()
    assert straight.smoothed_loss == resumed.smoothed_loss
    assert straight.test_nets[0].get_state() == resumed.test_nets[0].get_state()


@pytest.mark.parametrize("ending", ["", ".h5"])
def test_the_files_of_a_snapshot(folder, ending):
    made = solver(snapshot_format="HDF5" if ending else "BINARYPROTO")
    made.snapshot()
    assert sorted(name for name in os.listdir() if name.startswith("run")) == [
        f"run_iter_0.caffemodel{ending}",
        f"run_iter_0.solverstate{ending}",
        f"run_iter_0.solverstate{ending}.resume",
    ]


def two_snapshots():
    made = solver(snapshot=2)
    made.step(4)
    return made


def cut(name):
    path = Path(name)
    path.write_bytes(path.read_bytes()[:-5])


DAMAGE = {
    "no model": lambda: os.unlink("run_iter_4.caffemodel"),
    "model cut short": lambda: cut("run_iter_4.caffemodel"),
    "state cut short": lambda: cut("run_iter_4.solverstate"),
    "no state": lambda: os.unlink("run_iter_4.solverstate"),
    "state of another": lambda: shutil.copy("run_iter_2.solverstate", "run_iter_4.solverstate"),
    "rest cut short": lambda: cut("run_iter_4.solverstate.resume"),
    "Caffe's, cut short": lambda: (
        os.unlink("run_iter_4.solverstate.resume"),
        cut("run_iter_4.caffemodel"),
    ),
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_auto_takes_the_newest_snapshot_that_is_whole(damage):
    two_snapshots()
    DAMAGE[damage]()
    made = solver()
    assert made.restore_newest() == "run_iter_2.solverstate"
    assert made.iter == 2


def test_auto_takes_caffes_own_snapshots():
    two_snapshots()
    os.unlink("run_iter_4.solverstate.resume")
    assert solver().restore_newest() == "run_iter_4.solverstate"


def test_auto_without_a_snapshot_starts_anew():
    made = solver()
    before = weights(made)
    assert made.restore_newest() is None
    assert made.iter == 0
    assert (weights(made) == before).all()


def test_auto_knows_its_own_prefix(folder):
    two_snapshots()
    for name in ("run_iter_4.solverstate", "run_iter_4.solverstate.resume"):
        shutil.copy(name, name.replace("run_", "rune_"))
    assert solver(snapshot_prefix="rune").restore_newest() == "rune_iter_4.solverstate"
    assert solver(snapshot_prefix="ru").restore_newest() is None


def test_auto_removes_what_a_kill_left_behind():
    Path(".run_iter_2.caffemodel.0123abcd.tmp").touch()
    Path(".other_iter_2.caffemodel.0123abcd.tmp").touch()
    solver().restore_newest()
    assert [name for name in os.listdir() if name.endswith(".tmp")] == [
        ".other_iter_2.caffemodel.0123abcd.tmp"
    ]


def test_a_model_of_another_run_is_refused():
    two_snapshots()
    solver().net.save("run_iter_4.caffemodel")
    with pytest.raises(WeightsError, match=r"run_iter_4\.solverstate: belongs to another snapshot"):
        solver().restore("run_iter_4.solverstate")


def test_memories_of_another_run_are_not_used(caplog):
    two_snapshots()
    memories = Path("run_iter_4.solverstate.resume").read_bytes()
    other = solver(snapshot=2, base_lr=0.2)
    other.step(4)
    Path("run_iter_4.solverstate.resume").write_bytes(memories)
    made = solver()
    made.restore("run_iter_4.solverstate")
    assert (weights(made) == weights(other)).all()
    assert "belongs to other files" in caplog.text
    assert made.net.layers[0].position == 0


@pytest.mark.parametrize("stop_after", [0, 1, 2])
def test_a_kill_between_two_files_is_noticed(monkeypatch, stop_after):
    """Over an older snapshot of the same iteration: the set is whole, or known to be mixed."""
    two_snapshots()
    older = {name: Path(name).read_bytes() for name in os.listdir() if "iter_4" in name}
    other = solver(base_lr=0.2)
    other.step(4)
    real, done = os.replace, []

    def replace(source, target):
        if len(done) == stop_after:
            raise KeyboardInterrupt
        done.append(target)
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            other.snapshot()
    changed = [name for name, content in older.items() if Path(name).read_bytes() != content]
    assert len(changed) == stop_after
    made = solver()
    newest = made.restore_newest()
    assert newest == f"run_iter_{2 if stop_after else 4}.solverstate"


@pytest.mark.parametrize("form", ["HDF5", "BINARYPROTO"])
def test_training_goes_on_when_the_disk_is_full(monkeypatch, caplog, form):
    made = solver(snapshot=2, snapshot_format=form)
    made.step(3)
    kept = {name: Path(name).read_bytes() for name in os.listdir()}

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    made.step(3)
    assert made.iter == 6
    errors = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert len(errors) == 2
    assert "No space left on device" in errors[0]
    assert {name: Path(name).read_bytes() for name in os.listdir()} == kept


@pytest.mark.parametrize("interval", [0, 3])
def test_the_last_snapshot_says_that_it_failed(interval):
    Path("gone").mkdir()
    made = solver(max_iter=3, snapshot=interval, snapshot_prefix="gone/run")
    made.add_callback(after=lambda: Path("gone").rmdir() if made.iter == 0 else None)
    with pytest.raises(FileError, match="there is no folder 'gone'"):
        made.solve()


def test_weights_reach_layers_that_only_the_test_net_has():
    extra = """
        layer { name: "probe" type: "InnerProduct" bottom: "h" top: "p" include { phase: TEST }
                inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }"""
    net = parse_text(NET + extra, caffe_pb2.NetParameter())
    made = solver(net_param=net)
    made.test_nets[0].save("test.caffemodel")
    made.net.save("train.caffemodel")
    again = solver(net_param=net, weights=["train.caffemodel,test.caffemodel"])
    probes = [each.test_nets[0].params["probe"][0].data for each in (made, again)]
    assert (probes[0] == probes[1]).all()
    assert (weights(made) == weights(again)).all()
