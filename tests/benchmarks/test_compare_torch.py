import json
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import compare_torch
from benchmarks.compare_torch import (
    BenchmarkError,
    Result,
    Worker,
    check_results,
    fitting_iterations,
    main,
    paired_ratio,
    table,
)

needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed")


def times(*steps):
    """Return the times of one turn: parts of 1, 2 and 0.5 ms and the given whole steps."""
    return {"forward": [1.0], "backward": [2.0], "update": [0.5], "step": list(steps)}


def first(loss, updated, gradient=3.0):
    """Return what a side computes first."""
    return {"loss": loss, "updated": updated, "gradient": gradient}


OURS = first(6.9, 6.8)


def test_equal_results_pass_and_are_printed(capsys):
    check_results({"protocaffe": OURS, "torch contiguous": first(6.9003, 6.801, 3.001)})
    printed = capsys.readouterr().out
    assert "6.900300, its gradient's length 3.001, loss after one update 6.801000: torch" in printed


@pytest.mark.parametrize(
    "theirs",
    [
        *(first(6.901, 6.801), first(6.9, 6.81), first(6.9, 6.9), first(6.9, 7.0)),
        *(first(float("nan"), 6.8), first(6.9, 6.8, 3.1), first(6.9, 6.8, float("nan"))),
    ],
)
def test_different_results_are_refused(theirs):
    with pytest.raises(BenchmarkError, match=r"nothing was timed:.* of torch contiguous"):
        check_results({"protocaffe": OURS, "torch contiguous": theirs})


def test_with_fewer_bits_losses_and_gradients_may_differ_by_more():
    rough = {"protocaffe": OURS, "torch contiguous": first(6.95, 6.9, 3.05)}
    check_results(rough, "bf16")
    with pytest.raises(BenchmarkError, match=r"they may differ by 0\.0001 of that"):
        check_results(rough)


def test_the_paired_ratio_forgives_a_slow_round():
    ours = [times(1.0), times(10.0), times(1.0)]
    theirs = [times(2.0), times(20.0), times(2.0)]
    assert paired_ratio(theirs, ours, "step") == 2


@pytest.mark.parametrize(("step", "iterations"), [(0.5, 100), (100.0, 10), (5000.0, 3)])
def test_a_turn_lasts_about_a_second(step, iterations):
    assert fitting_iterations([times(step), times(2 * step)]) == iterations


class FakeWorker:
    """A side with a constant time per variant; some cannot run."""

    def __init__(self, steps=None, failing=()):
        self.steps, self.failing, self.asked = steps, failing, []

    def ask(self, action, **arguments):
        self.asked.append((action, arguments.get("variant")))
        variant = arguments.get("variant", "")
        if action == "time" and variant in self.failing:
            raise BenchmarkError(f"no memory for {variant}")
        if action == "time":
            return times(*[self.steps.get(variant, 5.0)] * arguments["iterations"])
        return {"optimizer": "fused"} if action == "about" else None


def test_on_a_gpu_variants_are_dropped_one_by_one_and_the_best_layout_is_compiled(capsys):
    options = compare_torch.parse(["--device=cuda", "--rounds=2", "--compile"])
    ours, torch = FakeWorker({"": 4.0}), FakeWorker({"channels_last": 3.0}, {"contiguous graph"})
    iterations, kept, theirs, about = compare_torch.time_one_by_one(ours, torch, options)
    assert iterations == 250
    assert len(kept) == 2
    variants = ["contiguous", "channels_last", "channels_last graph", "channels_last compiled"]
    assert [*theirs] == [*about] == variants
    assert "contiguous graph is left out: no memory" in capsys.readouterr().err
    dropped = [variant for action, variant in torch.asked if action == "drop"]
    assert dropped == [*variants[:2], "contiguous graph", *variants[2:]]
    with pytest.raises(BenchmarkError, match="none of its variants"):
        compare_torch.time_one_by_one(ours, FakeWorker({}, [*variants, *dropped]), options)


def test_a_gpu_has_nets_batches_and_precisions_of_its_own():
    options = compare_torch.parse(["--device=cuda"])
    assert (options.nets[2], compare_torch.batch_size("caffenet", options)) == ("caffenet", 256)
    assert options.precision == ("float32", "tf32", "fp16", "bf16")
    options = compare_torch.parse(["caffenet", "--precision=bf16,float32"])
    assert compare_torch.batch_size("caffenet", options) is None
    assert options.precision == ("bf16", "float32")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--precision=fp16", "tf32 and fp16 are a GPU's; they take --device cuda"),
        ("--precision=bf61", "'bf61' is none of .*; did you mean 'bf16'"),
    ],
)
def test_precisions_that_cannot_be(flag, message, capsys):
    with pytest.raises(SystemExit):
        compare_torch.parse(["lenet", flag])
    assert re.search(message, capsys.readouterr().err)


def test_the_table_shows_the_best_variant_and_names_the_others():
    result = Result(
        net="lenet",
        precision="float32",
        batch=64,
        parameters=431_080,
        threads=2,
        iterations=3,
        first={},
        protocaffe=[times(4.0, 5.0, 6.0)],
        torch={"contiguous": [times(12.0, 12.0, 12.0)], "channels_last": [times(8.0, 10.0, 12.0)]},
        about={each: {"torch": "2.13.0", "optimizer": "fused"} for each in compare_torch.LAYOUTS},
    )
    lines = table(result).splitlines()
    assert result.best == "channels_last"
    assert lines[1].strip() == "PyTorch 2.13.0 at its best: channels_last, fused SGD"
    assert lines[-3].split() == ["step", "4.00", "5.00", "8.00", "10.00", "2.00x", "2.00x"]
    assert lines[-1].endswith("contiguous 12.00")


def test_a_worker_that_dies_is_an_error_not_a_hang(tmp_path, monkeypatch):
    (tmp_path / "dying.py").write_text("input()\nraise SystemExit(7)\n")
    monkeypatch.setattr(compare_torch, "ROOT", tmp_path)
    worker = Worker("dying", [], threads=1)
    try:
        with pytest.raises(BenchmarkError, match=r"dying ended with exit code 7.*'time'"):
            worker.ask("time")
    finally:
        worker.close()


def wait_until_stopped(pid):
    """Return once the process has taken its stop signal; fail after two seconds."""
    deadline = time.monotonic() + 2
    while Path(f"/proc/{pid}/stat").read_text().split()[2] != "T":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_worker_is_stopped_between_questions(tmp_path, monkeypatch):
    (tmp_path / "echo.py").write_text(
        "import json\nwhile True: print(json.dumps({'result': json.loads(input())}), flush=True)\n"
    )
    monkeypatch.setattr(compare_torch, "ROOT", tmp_path)
    worker = Worker("echo", [], threads=1)
    try:
        for number in (1, 2):
            assert worker.ask("count", number=number) == {"do": "count", "number": number}
            wait_until_stopped(worker.process.pid)
    finally:
        worker.close()


@needs_torch
@pytest.mark.parametrize(("engine", "precision"), [("numpy", "float32"), (None, "bf16")])
def test_a_comparison_from_end_to_end(tmp_path, capsys, engine, precision):
    out = tmp_path / "result.json"
    arguments = ["lenet", "--batch", "2", "--threads", "1", "--rounds", "2", "--iterations", "1"]
    arguments += ["--json", str(out), "--precision", precision]
    arguments += ["--engine", engine] if engine else []
    assert main(arguments) == 0
    assert "PyTorch / protocaffe" in capsys.readouterr().out
    content = json.loads(out.read_text())
    (result,) = content["results"]
    assert (result["batch"], result["parameters"]) == (2, 431_080)
    for rounds in (result["protocaffe"], *result["torch"].values()):
        assert len(rounds) == 2
        assert all(len(values) == 1 and values[0] > 0 for t in rounds for values in t.values())


@needs_torch
def test_a_net_that_cannot_be_read_is_one_line(tmp_path, capsys):
    net = tmp_path / "net.prototxt"
    net.write_text('layer { nane: "x" }')
    assert main([str(net)]) == 1
    assert f"{net}:1:9" in capsys.readouterr().err


@needs_torch
def test_a_misspelt_net_gets_the_nearest_name(capsys):
    assert main(["cafenet"]) == 1
    assert "did you mean 'caffenet'" in capsys.readouterr().err


def test_without_pytorch_the_way_out_is_named(monkeypatch, capsys):
    monkeypatch.setattr(compare_torch, "find_spec", lambda name: None)
    assert main(["lenet"]) == 1
    assert "pip install -e '.[bench]'" in capsys.readouterr().err


def test_help_runs_without_the_engine_room():
    command = [sys.executable, "-m", "benchmarks.compare_torch", "--help"]
    done = subprocess.run(command, cwd=compare_torch.ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert "caffenet" in done.stdout
