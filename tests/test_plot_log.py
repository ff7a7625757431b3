import re
from pathlib import Path

import matplotlib.figure
import pytest

from protocaffe.errors import DataError, UsageError
from protocaffe.plot_log import CHARTS, RATE, plot_chart, plot_overview, read_runs

LOGS = Path(__file__).parent / "golden" / "train_log"
TRAIN, FINETUNE = LOGS / "train.log", LOGS / "finetune.log"


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    figures = []
    save = matplotlib.figure.Figure.savefig

    def remember(self, *arguments, **options):
        figures.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", remember)
    return figures


def lines(axes):
    return {line.get_label(): (*map(list, line.get_data()),) for line in axes.get_lines()}


def test_the_charts_have_the_numbers_of_caffe():
    assert [str(chart) for chart in CHARTS] == [
        "Test accuracy vs. Iters",
        "Test accuracy vs. Seconds",
        "Test loss vs. Iters",
        "Test loss vs. Seconds",
        "Train learning rate vs. Iters",
        "Train learning rate vs. Seconds",
        "Train loss vs. Iters",
        "Train loss vs. Seconds",
    ]


@pytest.mark.parametrize("number", range(8))
def test_a_chart_of_two_runs(tmp_path, drawn, number):
    runs = read_runs([TRAIN, FINETUNE])
    plot_chart(runs, CHARTS[number], tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = drawn[0].axes
    assert axes.get_title() == str(CHARTS[number])
    assert set(lines(axes)) == {"train", "finetune"}
    x, y = lines(axes)["train"]
    part = "Test" if number < 4 else "Train"
    rows = runs[0].rows(part)
    name = CHARTS[number].output
    assert x == [row.seconds if number % 2 else row.iteration for row in rows]
    assert y == [float(row.rate if name == RATE else row.outputs[name]) for row in rows]


def test_an_overview(tmp_path, drawn):
    plot_overview(read_runs([TRAIN, FINETUNE]), tmp_path / "x.svg")
    assert "<svg" in (tmp_path / "x.svg").read_text()
    panels = {axes.get_ylabel(): set(lines(axes)) for axes in drawn[0].axes}
    assert panels == {
        "loss": {"train train", "train test", "finetune train", "finetune test"},
        "accuracy": {"train test", "finetune test"},
        RATE: {"train", "finetune"},
    }
    loss = lines(drawn[0].axes[0])
    assert loss["train test"][1][0] == 2.32669


def test_logs_of_one_name(tmp_path):
    (tmp_path / "train.log").write_bytes(TRAIN.read_bytes())
    names = [run.name for run in read_runs([TRAIN, tmp_path / "train.log", FINETUNE])]
    assert names == [str(TRAIN), str(tmp_path / "train.log"), "finetune"]


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("x.pgn", "x.pgn: 'pgn' is no format of pictures; did you mean 'png'? (known: "),
        ("x", "x: '' is no format of pictures (known: "),
    ],
)
def test_other_endings(tmp_path, out, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        plot_overview(read_runs([TRAIN]), tmp_path / out)
    assert list(tmp_path.iterdir()) == []


def test_a_log_without_numbers(tmp_path):
    (tmp_path / "x.log").write_text("I1121 10:01:49.993415  4242 x.py:1] Solving net\n")
    with pytest.raises(DataError, match=r"x\.log: has no line 'net output'; nothing to plot"):
        read_runs([tmp_path / "x.log"])
