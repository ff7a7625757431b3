import subprocess
import sys
from pathlib import Path

import pytest

LOGS = Path(__file__).parents[1] / "golden" / "train_log"
TRAIN, FINETUNE = LOGS / "train.log", LOGS / "finetune.log"


@pytest.mark.parametrize(
    ("words", "name", "start"),
    [
        (["x.png", TRAIN, FINETUNE], "x.png", b"\x89PNG"),
        (["x.svg", TRAIN, "--seconds"], "x.svg", b"<?xml"),
        (["0", "x.png", TRAIN, FINETUNE], "x.png", b"\x89PNG"),
        (["7", "x.pdf", TRAIN], "x.pdf", b"%PDF"),
        (["0", "--output=loss", "x.png", TRAIN], "x.png", b"\x89PNG"),
    ],
)
def test_pictures(run_protocaffe, tmp_path, words, name, start):
    done = run_protocaffe("plot_training_log", *words)
    assert (done.returncode, done.stdout) == (0, "")
    assert (tmp_path / name).read_bytes().startswith(start)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["8", "x.png", TRAIN], 2, "chart 8 is not known; there are 0 to 7"),
        (["0", TRAIN], 2, "expected the picture to write and a log after chart 0"),
        (["x.png"], 2, "logs"),
        (["x.pgn", TRAIN], 2, "did you mean 'png'?"),
        (["--output=loss", "x.png", TRAIN], 2, "--output goes with a chart's number"),
        (["0", "--output=acuracy", "x.png", TRAIN], 1, "did you mean 'accuracy'?"),
        (["x.png", LOGS / "tran.log"], 1, "did you mean 'train.log'?"),
        (["x.png", LOGS / "test.log"], 1, "has no line with 'Solving'"),
        (["none/x.png", TRAIN], 1, "there is no folder 'none'"),
    ],
)
def test_mistakes(run_protocaffe, tmp_path, words, code, message):
    done = run_protocaffe("plot_training_log", *words)
    assert done.returncode == code
    assert message in done.stderr.partition("protocaffe plot_training_log: ")[2]
    assert list(tmp_path.iterdir()) == []


WITHOUT = "import sys; sys.modules['matplotlib'] = None; sys.modules['matplotlib.figure'] = None"


def test_without_matplotlib(tmp_path):
    code = f"{WITHOUT}; from protocaffe.cli import main; sys.exit(main(sys.argv[1:]))"
    words = ["plot_training_log", "x.png", TRAIN]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == (
        "protocaffe plot_training_log: plots need matplotlib: pip install 'protocaffe[plot]'\n"
    )


def test_the_script_is_the_same(tmp_path):
    script = Path(__file__).parents[2] / "scripts" / "plot_training_log.py"
    words = [sys.executable, script, "x.png", TRAIN]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "x.png").exists()
