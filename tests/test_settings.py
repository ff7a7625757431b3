"""pycaffe's settings of the whole program."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

import protocaffe as caffe
from protocaffe import engines, settings
from protocaffe.errors import UsageError

NET = """
layer { name: "noise" type: "DummyData" top: "noise"
        dummy_data_param { shape { dim: 5 } data_filler { type: "gaussian" } } }
layer { name: "ip" type: "InnerProduct" bottom: "noise" top: "ip"
        inner_product_param { num_output: 5 axis: 0 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "noise" top: "loss" }
"""


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(settings, "_seeds", None)
    monkeypatch.setattr(settings, "_rank", 0)
    log = logging.getLogger("protocaffe")
    before = log.handlers[:], log.level, log.disabled
    yield
    log.handlers[:], log.level, log.disabled = before


def test_a_seed_makes_nets_and_solvers_the_same() -> None:
    def numbers() -> list[float]:
        caffe.set_random_seed(4)
        nets = [caffe.Net(NET, caffe.TRAIN), caffe.Net(NET, caffe.TRAIN)]
        solver = caffe.get_solver(f'net_param {{ {NET} }} base_lr: 0.1 lr_policy: "fixed"')
        return [net.blobs["noise"].data[0].item() for net in (*nets, solver.net)]

    first = numbers()
    assert first == numbers()
    assert len(set(first)) == 3


def test_the_log_is_written_and_switched_off(capsys: pytest.CaptureFixture[str]) -> None:
    caffe.log("nobody listens yet")
    caffe.init_log()
    caffe.log("now")
    caffe.set_logging_disabled()
    caffe.log("not now")
    caffe.set_logging_disabled(False)
    caffe.init_log(1)
    caffe.log("too little")
    written = capsys.readouterr().err
    assert len(written.splitlines()) == 1
    assert "test_settings.py" in written
    assert written.endswith("] now\n")


def test_one_solver_on_the_cpu() -> None:
    caffe.set_device(99)
    with pytest.warns(RuntimeWarning, match="cuda engine cannot run here: .*; nets run on the CPU"):
        caffe.set_mode_gpu()
    caffe.set_device(0)
    caffe.set_mode_cpu()
    caffe.set_solver_count(1)
    caffe.set_solver_rank(0)
    caffe.set_multiprocess(True)
    assert (caffe.solver_count(), caffe.solver_rank(), caffe.has_nccl()) == (1, 0, False)


def test_the_gpu_computes_with_the_precision_of_its_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(engines, "_cuda", lambda gpu, precision, graphs: asked.append(precision))
    caffe.set_mode_gpu("bf16")
    engines.get_engine()
    engines.get_engine(precision="tf32")
    caffe.set_mode_gpu()
    engines.get_engine()
    caffe.set_mode_cpu()
    assert asked == ["bf16", "bf16", "tf32", "float32", "float32"]
    with pytest.raises(UsageError, match=r"unknown precision 'fp61'; did you mean 'fp16'"):
        caffe.set_mode_gpu("fp61")


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (caffe.set_device, -1),
        (caffe.set_random_seed, -1),
        (caffe.set_solver_count, 2),
        (caffe.NCCL, None),
        (lambda _: caffe.NCCL.new_uid(), None),
    ],
)
def test_what_there_is_not_is_refused(call, argument) -> None:
    with pytest.raises(UsageError):
        call(argument)


def test_only_the_first_of_several_processes_writes_the_log(
    capsys: pytest.CaptureFixture[str],
) -> None:
    caffe.init_log()
    caffe.set_solver_rank(1)
    caffe.log("from the second")
    assert capsys.readouterr().err == ""


def test_a_timer_measures_milliseconds() -> None:
    timer = caffe.Timer()
    assert timer.ms == 0
    timer.start()
    timer.stop()
    once = timer.ms
    assert 0 < once < 1000
    assert timer.ms == once
