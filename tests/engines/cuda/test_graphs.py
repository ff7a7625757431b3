"""Passes as CUDA graphs in orders that nobody plans: what a graph uses stays where it is."""

from __future__ import annotations

import gc
import logging
import re
import sys
import threading
import weakref

import numpy as np
import pytest

from protocaffe.engines.cuda import device
from protocaffe.engines.cuda.engine import CudaEngine
from protocaffe.errors import NetError
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from tests.engines.cuda.standin import recorder, standin_engine
from tests.engines.cuda.test_plan import NET, give_data, solver, weights

MEAN = 'layer { name: "mvn" type: "MVN" bottom: "conv" top: "mvn" }'
"""A layer whose own code keeps arrays from forward to backward, and new ones every time."""

OWN_CODE = NET.replace('layer { name: "norm"', f'{MEAN} layer {{ name: "norm"').replace(
    'bottom: "conv" top: "norm"', 'bottom: "mvn" top: "norm"'
)


@pytest.fixture
def engine() -> CudaEngine:
    return standin_engine()


def same_weights(got: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for mine, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-6)


def test_rows_of_backward_are_longer_than_those_of_forward(engine: CudaEngine) -> None:
    split = 'layer {{ name: "{0}" type: "ArgMax" bottom: "data" top: "{0}" }}'
    alone = OWN_CODE.replace(MEAN, split.format("before") + MEAN + split.format("behind"))
    solvers = [solver(each, net=alone) for each in (engine, "numpy")]
    for one in solvers:
        one.step(5)
    same_weights(*map(weights, solvers))


def test_forward_and_backward_in_any_order(engine: CudaEngine) -> None:
    nets = [Net(OWN_CODE, caffe_pb2.TRAIN, engine=each, seed=1) for each in (engine, "numpy")]
    for net in nets:
        give_data(net)
        for passes in ("fbb", "ffb", "fb", "fffbbb", "fb"):
            for each in passes:
                net.clear_param_diffs()
                net.run_forward() if each == "f" else net.run_backward()
    for got, expected in zip(*(net.learnable for net in nets), strict=True):
        np.testing.assert_allclose(got.blob.diff, expected.blob.diff, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("refused", [0, 1])
def test_training_goes_on_where_a_pass_cannot_be_captured(
    engine: CudaEngine, refused: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    capture = device.Device.capture

    def fail(self: device.Device, works: list, pool: object) -> object:
        calls.append(works)
        if len(calls) == refused + 1:
            raise RuntimeError("cudaErrorStreamCaptureInvalidated")
        return capture(self, works, pool)

    monkeypatch.setattr(device.Device, "capture", fail)
    clipped = "clip_gradients: 100"  # so passes and update are no single graph
    solvers = [solver(each, clipped, net=OWN_CODE) for each in (engine, "numpy")]
    for one in solvers:
        one.step(6)
    same_weights(*map(weights, solvers))
    assert len(calls) == refused + 1, "a backward pass is captured only if its forward pass is"


def test_passes_are_graphs_where_the_whole_step_cannot_be_one(
    engine: CudaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture = device.Device.capture

    def fail(self: device.Device, works: list, pool: object) -> object:
        monkeypatch.setattr(device.Device, "capture", capture)
        raise RuntimeError("cudaErrorStreamCaptureUnsupported")

    solvers = [solver(each) for each in (engine, "numpy")]
    monkeypatch.setattr(device.Device, "capture", fail)
    for one in solvers:
        one.step(6)
    recorder.counts.clear()
    for one in solvers:
        one.step(1)
    assert recorder.counts == {"launch": 2}
    same_weights(*map(weights, solvers))


RATES = [
    'lr_policy: "poly" power: 0.5',
    'lr_policy: "multistep" gamma: 0.5 stepvalue: 3 stepvalue: 5 stepvalue: 6',
    'lr_policy: "fixed"',
]


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_a_whole_step_follows_whatever_changes(
    engine: CudaEngine, rates: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    logs = []
    solvers = [solver(each, "display: 2", kind, rates=rates) for each in (engine, "numpy")]
    for one in solvers:
        caplog.clear()
        with caplog.at_level(logging.INFO, "protocaffe"):
            one.step(6)
            one.net.learnable[0].lr_mult = 0.25
            one.step(4)
            one.param.weight_decay, one.param.regularization_type = 0.2, "L1"
            kept = one.net.params["ip"][0].data
            for _ in range(3):
                kept *= 0.9
                one.step(1)
            one.net.blobs["data"].reshape(4, 3, 9, 9)
            one.net.blobs["label"].reshape(4)
            give_data(one.net, 5)
            one.step(4)
        kinds = ("lr = ", "loss = ", "MultiStep")
        shown = [line for line in caplog.messages if any(each in line for each in kinds)]
        logs.append([re.sub(r" \(.*?\)|\d+\.\d+|\d+e-\d+", "", line) for line in shown])
    assert logs[0] == logs[1]
    same_weights(*map(weights, solvers))


def test_whole_steps_and_single_passes_take_turns(engine: CudaEngine) -> None:
    solvers = [solver(each) for each in (engine, "numpy")]
    for one in solvers:
        for seed, turns in enumerate("ssspsspfsssfbssspsss"):
            give_data(one.net, seed)
            if turns == "s":
                one.step(1)
            if turns in "pf":
                one.net.run_forward()
            if turns in "pb":
                one.net.run_backward()
    same_weights(*map(weights, solvers))


def test_a_capture_may_be_interrupted(engine: CudaEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    nets = [Net(OWN_CODE, caffe_pb2.TRAIN, engine=each, seed=1) for each in (engine, "numpy")]
    for net in nets:
        give_data(net)
        net.forward()
    with monkeypatch.context() as patch:
        patch.setattr(recorder, "queue", interrupt)
        with pytest.raises(KeyboardInterrupt):
            nets[0].forward()
    assert gc.isenabled()
    for net in nets:
        for _ in range(3):
            net.forward()
            net.clear_param_diffs()
            net.backward()
    for got, expected in zip(*(net.learnable for net in nets), strict=True):
        np.testing.assert_allclose(got.blob.diff, expected.blob.diff, rtol=1e-3, atol=1e-6)


def interrupt(work: object) -> None:
    raise KeyboardInterrupt


def test_a_plan_gives_its_memory_back_at_once(engine: CudaEngine) -> None:
    net = Net(OWN_CODE, caffe_pb2.TRAIN, engine=engine, seed=1)
    recorder.counts.clear()
    plans = []
    gc.disable()
    try:
        for batch in (6, 2, 9, 4, 7):
            net.blobs["data"].reshape(batch, 3, 9, 9)
            net.blobs["label"].reshape(batch)
            give_data(net, batch)
            for _ in range(3):
                net.forward()
                net.backward()
            plans.append(weakref.ref(net.plan))
            assert sum(plan() is not None for plan in plans) == 1
    finally:
        gc.enable()
    assert recorder.counts["pool"] <= 2, "pools are used again"


def test_solvers_may_share_weights(engine: CudaEngine) -> None:
    pairs = [[solver(each), solver(each, kind="Adam")] for each in (engine, "numpy")]
    for one, other in pairs:
        other.net.share_with(one.net)
        give_data(other.net, 7)
        for _ in range(4):
            one.step(1)
            other.step(1)
    same_weights(*(weights(one) for one, _ in pairs))


def test_solvers_in_threads(engine: CudaEngine) -> None:
    solvers = [solver(engine, net=OWN_CODE) for _ in range(3)]
    threads = [threading.Thread(target=one.step, args=(6,)) for one in solvers]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    alone = solver("numpy", net=OWN_CODE)
    alone.step(6)
    for one in solvers:
        same_weights(weights(one), weights(alone))


def test_a_net_on_the_cpu_follows_weights_that_a_gpu_trains(engine: CudaEngine) -> None:
    trained = solver(engine)
    tested = Net(NET, caffe_pb2.TEST, engine="numpy", shared=trained.net)
    version = trained.net.params["conv"][0].data_storage.version
    for _ in range(3):
        trained.step(1)
        np.testing.assert_array_equal(
            tested.params["conv"][0].data, trained.net.params["conv"][0].data
        )
    assert trained.net.params["conv"][0].data_storage.version > version
    with pytest.raises(NetError, match=r"runs on the onednn .* on the cuda engine; copy its weig"):
        Net(NET, caffe_pb2.TEST, engine="onednn", shared=trained.net)
