import csv
import subprocess
import sys
from pathlib import Path

import pytest

GOLDEN_LOG = Path(__file__).parents[1] / "golden" / "train_log" / "train.log"


def table(path, delimiter=","):
    with open(path, newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def test_log_of_caffe(run_protocaffe, tmp_path):
    done = run_protocaffe("parse_log", GOLDEN_LOG)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    train, test = table(tmp_path / "train.log.train"), table(tmp_path / "train.log.test")
    assert list(train[0]) == ["NumIters", "Seconds", "LearningRate", "loss"]
    assert list(test[0]) == ["NumIters", "Seconds", "LearningRate", "accuracy", "loss"]
    assert [row["NumIters"] for row in train] == [str(number) for number in range(0, 40, 5)]
    assert [row["NumIters"] for row in test] == ["0", "10", "20", "30", "40"]
    assert list(test[0].values()) == ["0", "0.001947", "0.01", "0.1", "2.32669"]
    assert list(train[1].values()) == ["5", "0.003215", "0.01", "2.27196"]
    assert [row["LearningRate"] for row in train] == ["0.01"] * 5 + ["0.001"] * 2 + ["0.0001"]
    assert [row["LearningRate"] for row in test] == ["0.01"] * 3 + ["0.001", "0.0001"]


def test_verbose(run_protocaffe, tmp_path):
    done = run_protocaffe("parse_log", "--verbose", GOLDEN_LOG, ".")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "Wrote 8 rows to ./train.log.train\nWrote 5 rows to ./train.log.test\n"


def test_log_of_our_own(run_protocaffe, digit_folder, tmp_path):
    done = run_protocaffe("train", "--solver=solver.prototxt", cwd=digit_folder)
    (tmp_path / "own.log").write_text(done.stderr)
    run_protocaffe("parse_log", "own.log", "--delimiter=;", tmp_path)
    rows = table(tmp_path / "own.log.test", ";")
    assert [row["NumIters"] for row in rows] == ["0", "10", "20", "30", "40"]
    assert all(0 <= float(row["Seconds"]) < 100 for row in rows)
    assert set(rows[0]) == {"NumIters", "Seconds", "LearningRate", "accuracy", "loss"}


@pytest.mark.parametrize("year", ["", "2026"])
def test_new_year(run_protocaffe, tmp_path, year):
    later = str(int(year) + 1) if year else ""
    (tmp_path / "log").write_text(
        f"I{year}1231 23:59:59.500000  1 solver.py:1] Solving net\n"
        f"I{later}0101 00:00:01.000000  1 solver.py:1] Iteration 3, loss = 2\n"
        f"I{later}0101 00:00:01.000000  1 solver.py:1]     Train net output #0: loss = 2e-05\n"
    )
    run_protocaffe("parse_log", "log")
    assert (tmp_path / "log.train").read_text() == (
        "NumIters,Seconds,LearningRate,loss\n3,1.500000,,2e-05\n"
    )
    assert (tmp_path / "log.test").read_text() == "NumIters,Seconds,LearningRate\n"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["none.log"], 1, "none.log: no such file"),
        (["other.log"], 1, "other.log: has no line with 'Solving'"),
        ([GOLDEN_LOG, "nowhere"], 1, "nowhere"),
        (["other.log", "--delimiter=ab"], 2, "one character"),
        ([], 2, "log"),
    ],
)
def test_mistakes(run_protocaffe, tmp_path, words, code, message):
    (tmp_path / "other.log").write_text("I1121 10:01:49.993415  4242 x.py:1] Use CPU.\n")
    done = run_protocaffe("parse_log", *words)
    assert done.returncode == code
    assert message in done.stderr.partition("protocaffe parse_log: ")[2]


def test_the_script_is_the_same(tmp_path):
    script = Path(__file__).parents[2] / "scripts" / "parse_log.py"
    subprocess.run([sys.executable, script, GOLDEN_LOG, tmp_path], check=True, capture_output=True)
    assert (tmp_path / "train.log.test").exists()
