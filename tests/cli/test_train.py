import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.cli.caffe_log import kind, messages, numbers

ENGINES = ["numpy", "onednn"]
RESUME = ["--solver=solver.prototxt", "--snapshot=digit_iter_20.solverstate"]


def close(rows, expected):
    assert [row[:2] for row in rows] == [row[:2] for row in expected]
    assert [row[2] for row in rows] == pytest.approx([row[2] for row in expected], rel=1e-3)


def test_the_log_has_caffes_lines_in_caffes_order(run_protocaffe, digit_folder):
    recorded = (digit_folder / "train.log").read_text()
    done = run_protocaffe("train", "--solver=solver.prototxt", cwd=digit_folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert [kind(each) for each in messages(done.stderr)] == [
        kind(each) for each in messages(recorded)
    ]
    assert [row[:2] for row in numbers(done.stderr)] == [row[:2] for row in numbers(recorded)]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_resumed_run_has_the_numbers_of_the_straight_one(run_protocaffe, digit_folder, engine):
    straight = (digit_folder / "finetune.log").read_text()
    done = run_protocaffe("train", *RESUME, f"--engine={engine}", cwd=digit_folder)
    assert done.returncode == 0, done.stderr
    assert "Resuming from digit_iter_20.solverstate" in messages(done.stderr)
    close(numbers(done.stderr), [row for row in numbers(straight) if row[0] >= 20])


def test_fine_tuning_starts_from_the_weights(run_protocaffe, digit_folder):
    recorded = (digit_folder / "test.log").read_text()
    done = run_protocaffe(
        "train", "--solver=solver.prototxt", "--weights=digit_iter_40.caffemodel", cwd=digit_folder
    )
    assert done.returncode == 0, done.stderr
    assert "Finetuning from digit_iter_40.caffemodel" in messages(done.stderr)
    first_batch = float(re.search(r"Batch 0, loss = (\S+)", recorded)[1])
    first_test = [value for i, what, value in numbers(done.stderr) if (i, what) == (0, "Test loss")]
    assert first_test == [pytest.approx(first_batch, rel=0.1)]


def test_level_and_stages_reach_the_net(run_protocaffe, digit_folder):
    net = digit_folder / "net.prototxt"
    net.write_text(
        net.read_text()
        + 'layer { name: "probe" type: "Softmax" bottom: "s" top: "extra" '
        + 'include { phase: TRAIN stage: "a" stage: "b" min_level: 3 } }'
    )
    for flags, there in ((["--stage=a,b", "--level=3"], True), (["--stage=a", "--level=3"], False)):
        done = run_protocaffe("train", "--solver=solver.prototxt", *flags, cwd=digit_folder)
        assert done.returncode == 0, done.stderr
        assert ("This network produces output extra" in messages(done.stderr)) is there


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--snapshot=a", "--weights=b"], 2, "give --snapshot to resume or --weights"),
        (["--gpu=99"], 2, "the cuda engine cannot run here: "),
        (["--gpu=all"], 2, "--gpu=all: expected the number of one GPU"),
        (["--gpu=0", "--engine=numpy"], 2, "--gpu=0 needs the cuda engine, not --engine=numpy"),
        (["--engine=cude"], 2, "--engine: invalid choice: 'cude'"),
        (["--sigint_effect=jump"], 2, "--sigint_effect: invalid choice: 'jump'"),
    ],
)
def test_flags_that_cannot_be(run_protocaffe, digit_folder, flags, code, message):
    done = run_protocaffe("train", "--solver=solver.prototxt", *flags, cwd=digit_folder)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_gpu_in_the_solver_file_is_no_obstacle(run_protocaffe, digit_folder):
    replace(digit_folder / "solver.prototxt", "solver_mode: CPU", "solver_mode: GPU device_id: 99")
    done = run_protocaffe("train", "--solver=solver.prototxt", cwd=digit_folder)
    assert done.returncode == 0, done.stderr
    assert "solver_mode is GPU, but the cuda engine cannot run here: " in done.stderr
    assert "Use CPU." in done.stderr


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


class Mistakes:
    """Each breaks the folder in one way."""

    @staticmethod
    def field(folder):
        replace(folder / "net.prototxt", "num_output: 6", "num_ouput: 6")
        return ["net.prototxt:27:", "num_ouput", "did you mean 'num_output'?"]

    @staticmethod
    def solver_field(folder):
        replace(folder / "solver.prototxt", "base_lr", "base_rl")
        return ["solver.prototxt:4:", "base_rl", "did you mean 'base_lr'?"]

    @staticmethod
    def layer_type(folder):
        replace(folder / "net.prototxt", '"ReLU"', '"RelU"')
        return ["net.prototxt:61:", "hidden_act", "did you mean 'ReLU'?"]

    @staticmethod
    def bottom(folder):
        replace(folder / "net.prototxt", 'bottom: "p2"', 'bottom: "p3"')
        return ["net.prototxt:52:", "hidden", "'p3'"]

    @staticmethod
    def no_solver(folder):
        (folder / "solver.prototxt").unlink()
        return ["solver.prototxt"]

    @staticmethod
    def no_net(folder):
        (folder / "net.prototxt").unlink()
        return ["net.prototxt"]

    @staticmethod
    def no_database(folder):
        replace(folder / "net.prototxt", "gray_16x16_lmdb", "missing_lmdb")
        return ["rows", "../data/dbs/missing_lmdb"]

    @staticmethod
    def empty_database(folder):
        import lmdb

        with lmdb.open(str(folder / "empty_lmdb")):
            pass
        replace(folder / "net.prototxt", "../data/dbs/gray_16x16_lmdb", "empty_lmdb")
        return ["rows", "empty_lmdb"]

    @staticmethod
    def no_database_at_all(folder):
        (folder / "folder").mkdir()
        replace(folder / "net.prototxt", "../data/dbs/gray_16x16_lmdb", "folder")
        return ["rows", "folder"]

    @staticmethod
    def policy(folder):
        replace(folder / "solver.prototxt", '"multistep"', '"multistop"')
        return ["multistop", "did you mean 'multistep'?"]

    @staticmethod
    def snapshot_folder(folder):
        replace(folder / "solver.prototxt", '"digit"', '"nowhere/digit"')
        return ["nowhere", "snapshot_prefix"]


@pytest.mark.parametrize("name", [name for name in vars(Mistakes) if name[0] != "_"])
def test_mistakes_in_files_end_in_one_message(run_protocaffe, digit_folder, name):
    needles = getattr(Mistakes, name)(digit_folder)
    done = run_protocaffe("train", "--solver=solver.prototxt", cwd=digit_folder)
    check_refusal(done, needles)


def check_refusal(done, needles):
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("protocaffe train: ") == 1
    assert "Traceback" not in done.stderr
    message = done.stderr[done.stderr.index("protocaffe train: ") :]
    for needle in needles:
        assert needle in message


def test_weights_of_another_shape(run_protocaffe, digit_folder):
    replace(digit_folder / "net.prototxt", "num_output: 32", "num_output: 31")
    done = run_protocaffe(
        "train", "--solver=solver.prototxt", "--weights=digit_iter_40.caffemodel", cwd=digit_folder
    )
    check_refusal(done, ["hidden", "32", "31"])


def test_a_snapshot_of_another_net(run_protocaffe, digit_folder):
    replace(digit_folder / "net.prototxt", "num_output: 32", "num_output: 31")
    done = run_protocaffe(
        "train",
        "--solver=solver.prototxt",
        "--snapshot=digit_iter_20.solverstate",
        cwd=digit_folder,
    )
    check_refusal(done, ["digit_iter_20", "32", "31"])


@pytest.mark.parametrize("flag", ["--snapshot=none.solverstate", "--weights=none.caffemodel"])
def test_a_missing_file_is_named(run_protocaffe, digit_folder, flag):
    done = run_protocaffe("train", "--solver=solver.prototxt", flag, cwd=digit_folder)
    check_refusal(done, [flag.partition("=")[2]])


def test_a_damaged_snapshot_is_refused(run_protocaffe, digit_folder):
    (digit_folder / "digit_iter_20.solverstate").write_bytes(b"\x0a\xff\xff\xff not a message")
    done = run_protocaffe(
        "train",
        "--solver=solver.prototxt",
        "--snapshot=digit_iter_20.solverstate",
        cwd=digit_folder,
    )
    check_refusal(done, ["digit_iter_20.solverstate"])


@pytest.fixture
def long_run(digit_folder):
    """A training process that would run for hours, past its first iterations."""
    replace(digit_folder / "solver.prototxt", "max_iter: 40", "max_iter: 100000000")
    replace(digit_folder / "solver.prototxt", "snapshot: 20", "snapshot: 0")
    replace(digit_folder / "solver.prototxt", "display: 5", "display: 1000")
    processes = []

    def start(*flags):
        log = open(digit_folder / "run.log", "w+")  # noqa: SIM115 (closed below)
        process = subprocess.Popen(
            [sys.executable, "-m", "protocaffe", "train", "--solver=solver.prototxt", *flags],
            cwd=digit_folder,
            stderr=log,
        )
        processes.append((process, log))
        wait_for(process, digit_folder / "run.log", "Iteration 0, lr")
        return process

    yield start
    for process, log in processes:
        process.kill()
        process.wait()
        log.close()


def wait_for(process, log, text):
    """Wait until the running process has logged the text."""
    deadline = time.monotonic() + 60
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def test_an_interrupt_stops_with_a_snapshot(long_run, digit_folder):
    process = long_run()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    log = (digit_folder / "run.log").read_text()
    assert messages(log)[-2:] == ["Optimization stopped early.", "Optimization Done."]
    state = re.search(r"solver state to binary proto file (digit_iter_\d+.solverstate)", log)[1]
    assert (digit_folder / state).is_file()


def test_a_hangup_writes_a_snapshot_and_goes_on(long_run, digit_folder):
    process = long_run()
    process.send_signal(signal.SIGHUP)
    wait_for(process, digit_folder / "run.log", "Snapshotting solver state")
    assert process.poll() is None


def test_effects_can_be_swapped(long_run, digit_folder):
    process = long_run("--sighup_effect=stop", "--sigint_effect=none")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=60) == 0


def test_a_terminal_gets_a_progress_bar_under_whole_log_lines(digit_folder):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "protocaffe", "train", "--solver=solver.prototxt"],
        cwd=digit_folder,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "60"},
    )
    os.close(theirs)
    shown = b""
    while chunk := read_terminal(ours):
        shown += chunk
    os.close(ours)
    assert process.wait(timeout=60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()).replace("\r", "\n")
    assert "iter/s" in text
    assert re.search(r"\d+/40 ", text)
    assert re.search(
        r"solver.py:\d+\]     Train net output #0: loss = \S+ \(\* 1 = \S+ loss\)", text
    )


def read_terminal(descriptor):
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:  # what Linux says when the other side has closed
        return b""
