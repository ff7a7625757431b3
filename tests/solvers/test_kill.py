"""Training that is killed again and again ends where an undisturbed one does, bit for bit."""

import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"
KILLS = 30
LONGEST = 0.3
"""Seconds from the start of the training to a kill, at most."""

NET = """
layer { name: "data" type: "Data" top: "x" top: "t" include { phase: TRAIN }
        transform_param { crop_size: 12 mirror: true scale: 0.01 }
        data_param { source: "db" batch_size: 6 backend: LMDB } }
layer { name: "test" type: "Data" top: "x" top: "t" include { phase: TEST }
        transform_param { crop_size: 12 mirror: true scale: 0.01 }
        data_param { source: "db" batch_size: 3 backend: LMDB } }
layer { name: "conv" type: "Convolution" bottom: "x" top: "y"
        convolution_param { num_output: 4 kernel_size: 5 weight_filler { type: "xavier" } } }
layer { name: "norm" type: "BatchNorm" bottom: "y" top: "y" }
layer { name: "drop" type: "Dropout" bottom: "y" top: "y" }
layer { name: "ip" type: "InnerProduct" bottom: "y" top: "z"
        inner_product_param { num_output: 10 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "z" bottom: "t" top: "loss" }
"""
SOLVER = """
net: "net.prototxt" type: "Adam" base_lr: 0.001 momentum: 0.9 lr_policy: "fixed"
average_loss: 7 test_iter: 1 test_interval: 5 random_seed: 4
snapshot_prefix: "run" display: 1
"""


@pytest.fixture
def train(tmp_path):
    """Start ``protocaffe train`` in a folder of its own; its log goes to a pipe."""
    started = []

    def start(folder, max_iter, snapshot):
        place = tmp_path / folder
        if not place.exists():
            shutil.copytree(GOLDEN / "data" / "dbs" / "gray_16x16_lmdb", place / "db")
            (place / "net.prototxt").write_text(NET)
        solver = f"{SOLVER} max_iter: {max_iter} snapshot: {snapshot}"
        (place / "solver.prototxt").write_text(solver)
        words = ["train", "--solver=solver.prototxt", "--snapshot=auto"]
        process = subprocess.Popen(
            [sys.executable, "-m", "protocaffe", *words],
            cwd=place,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def kill_at(process, delay):
    """Kill the process some time after its training began."""
    log = b""
    while b"Starting Optimization" not in log:
        line = process.stderr.readline()
        assert line, log.decode()
        log += line
    deadline = time.monotonic() + delay
    os.set_blocking(process.stderr.fileno(), False)
    while time.monotonic() < deadline:
        process.stderr.read()  # lest the pipe is full and the process waits
        time.sleep(0.005)
    assert process.poll() is None, "ended by itself"
    process.kill()
    process.wait()


def finish(process):
    _, log = process.communicate(timeout=60)
    assert process.returncode == 0, log.decode()
    return log.decode()


def test_kills_leave_no_trace(train, tmp_path):
    dice = random.Random(0)
    for _ in range(KILLS):
        kill_at(train("killed", 10**6, 1), dice.uniform(0, LONGEST))
    states = (tmp_path / "killed").glob("run_iter_*.solverstate")
    last = 20 + max(int(re.findall(r"\d+", path.name)[0]) for path in states)
    log = finish(train("killed", last, 1))
    assert "Resumed from run_iter_" in log
    assert "There is no snapshot" in finish(train("undisturbed", last, 0))
    for name in ("caffemodel", "solverstate", "solverstate.resume"):
        killed, undisturbed = (
            (tmp_path / folder / f"run_iter_{last}.{name}").read_bytes()
            for folder in ("killed", "undisturbed")
        )
        assert killed == undisturbed, name
    assert not list((tmp_path / "killed").glob(".*.tmp"))
    print(f"{KILLS} kills in {last} iterations")
