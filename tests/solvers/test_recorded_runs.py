"""Every solver type against recorded runs of 20 iterations.

tests/golden/solvers/<case> has the solver, its net and data, the weights it started from, and in
trajectory.npz losses, rates, clip factors, parameters after 1, 5 and 20 iterations, and the same
of a second process that went on from the snapshot of iteration 10.
"""

import json
import logging
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from protocaffe.engines import get_engine
from protocaffe.errors import UsageError
from protocaffe.proto import caffe_pb2
from protocaffe.proto.binary import blob_to_array, read_binary
from protocaffe.solvers import get_solver

GOLDEN = Path(__file__).parents[1] / "golden" / "solvers"
CASES = sorted(path.name for path in GOLDEN.iterdir())
RESUMED = [
    name for name in CASES if json.loads((GOLDEN / name / "meta.json").read_text())["resume"]
]


@pytest.fixture(params=["numpy", "onednn"])
def engine(request):
    try:
        get_engine(request.param)
    except UsageError as reason:
        pytest.skip(str(reason))
    return request.param


class Run:
    """A recorded case, copied to a folder, with a solver that starts where Caffe started."""

    def __init__(self, name, engine, folder, monkeypatch):
        self.theirs = GOLDEN / name
        for file in ("solver.prototxt", "net.prototxt", "data.h5", "data_list.txt"):
            shutil.copy(self.theirs / file, folder)
        monkeypatch.chdir(folder)
        self.meta = json.loads((self.theirs / "meta.json").read_text())
        self.recorded = dict(np.load(self.theirs / "trajectory.npz"))
        self.solver = get_solver("solver.prototxt", engine=engine)
        self.solver.net.copy_from(self.theirs / "init.caffemodel")
        self.losses = []
        self.solver.add_callback(after=lambda: self.losses.append(self.solver.smoothed_loss))

    def parameters(self):
        """Every parameter by its key in the recording."""
        return {
            f"{layer}/{i}": blob.data.copy()
            for layer, blobs in self.solver.net.params.items()
            for i, blob in enumerate(blobs)
        }

    def equal(self, actual, key):
        np.testing.assert_allclose(
            actual, self.recorded[key], **self.meta["tolerance"], err_msg=key
        )

    def check_parameters(self, prefix):
        parameters = self.parameters()
        keys = [key.removeprefix(prefix) for key in self.recorded if key.startswith(prefix)]
        assert sorted(keys) == sorted(parameters)
        for key in keys:
            self.equal(parameters[key], prefix + key)


@pytest.fixture
def start(engine, tmp_path, monkeypatch):
    return lambda name: Run(name, engine, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", CASES)
def test_a_run_goes_as_caffes_did(name, start, caplog, tmp_path):
    caplog.set_level(logging.INFO, "protocaffe")
    run = start(name)
    run.check_parameters("iter0/")
    updates = watch_updates(run)
    run.solver.step(1)
    run.check_parameters("iter1/")
    for key, value in updates[0].items():
        run.equal(value, f"update_first/{key}")
    run.solver.step(4)
    run.check_parameters("iter5/")
    run.solver.step(15)
    run.check_parameters("iter20/")
    run.equal(run.losses, "loss")
    rates = re.findall(r"Iteration \d+, lr = (\S+)", caplog.text)
    assert [float(rate) for rate in rates] == pytest.approx(run.recorded["lr"], rel=1e-5)
    check_clipping(caplog.text, run.recorded)
    for file in run.meta["snapshot_files"]:
        check_snapshot(tmp_path / file, run.theirs / file, run.meta["tolerance"])


def check_snapshot(path, recorded, tolerance):
    """Compare a file that we wrote with Caffe's: everything but rounding is the same."""
    ours, theirs = (contents(each) for each in (path, recorded))
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        if getattr(value, "dtype", None) == np.float32:
            assert ours[key].dtype == np.float32
            assert ours[key].shape == value.shape
            np.testing.assert_allclose(ours[key], value, **tolerance, err_msg=f"{path} {key}")
        else:
            assert str(ours[key]) == str(value), f"{path} {key}"


def contents(path):
    """Return the arrays of a file and all the rest of it."""
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            found = {}
            file.visititems(lambda name, item: found.update({name: hdf5_content(item)}))
            return found
    kind = caffe_pb2.NetParameter if path.suffix == ".caffemodel" else caffe_pb2.SolverState
    message = read_binary(path, kind())
    found = {}
    for name, owner in (
        [("state", message)]
        if path.suffix == ".solverstate"
        else [(layer.name, layer) for layer in message.layer]
    ):
        field = "history" if name == "state" else "blobs"
        for i, blob in enumerate(getattr(owner, field)):
            found[f"{name}/{i}"] = blob_to_array(blob)
            if blob.diff:
                found[f"{name}/{i}/diff"] = blob_to_array(blob, diff=True)
        owner.ClearField(field)
    return {**found, "rest": message}


def hdf5_content(item):
    if isinstance(item, h5py.Group):
        return "a group"
    if item.dtype.kind == "f":
        return item[...].astype(item.dtype, copy=False)
    return item.shape, item.dtype, item[...].tolist()


def watch_updates(run):
    """Return a list that gets what every update subtracts."""
    updates = []
    apply = run.solver.apply_update

    def watched():
        before = run.parameters()
        apply()
        updates.append({key: before[key] - value for key, value in run.parameters().items()})

    run.solver.apply_update = watched
    return updates


def check_clipping(log, recorded):
    clipped = re.findall(r"L2 norm (\S+) > \S+\) by scale factor (\S+)", log)
    norms, factors = np.array(clipped, float).reshape(-1, 2).T
    np.testing.assert_allclose(norms, recorded.get("clip_norm", []), rtol=1e-3)
    np.testing.assert_allclose(factors, recorded.get("clip_factor", []), rtol=1e-3)


@pytest.mark.parametrize("name", RESUMED)
def test_caffes_snapshot_goes_on_as_it_did_there(name, start):
    run = start(name)
    for file in run.theirs.glob("snap_iter_10.*"):
        shutil.copy(file, ".")
        if "solverstate" in file.name:
            state = file.name
    run.solver.restore(state)
    assert run.solver.iter == 10
    run.solver.step(10)
    run.check_parameters("resumed/iter20/")
    run.equal(run.losses, "resumed/loss")
