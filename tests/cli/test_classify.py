import json

import cv2
import numpy as np
import pytest

from protocaffe.net import Net

NET = """layer { name: "data" type: "Input" top: "data"
  input_param { shape { dim: 1 dim: 3 dim: 4 dim: 4 } } }
layer { name: "mean" type: "Pooling" bottom: "data" top: "mean"
  pooling_param { pool: AVE global_pooling: true } }
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/deploy.prototxt").write_text(NET)
    (tmp_path / "model/labels.txt").write_text("blue\ngreen\nred\n")
    net = Net(tmp_path / "model/deploy.prototxt")
    net.save(tmp_path / "model/model.caffemodel")
    for name, color in (("a", (30, 60, 90)), ("b", (200, 100, 0))):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((4, 4, 3), color, np.uint8))
    return tmp_path


WORDS = ("classify", "a.png", "b.png", "--model=model/")


def test_text(run_protocaffe, folder):
    done = run_protocaffe(*WORDS, "--top_k=2")
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "a.png",
        "   90.0000  red",
        "   60.0000  green",
        "b.png",
        "  200.0000  blue",
        "  100.0000  green",
    ]


def test_csv_and_settings(run_protocaffe, folder):
    done = run_protocaffe(*WORDS, "--csv", "--top_k=1", "--mean=10,20,80", "--scale=0.5")
    assert done.returncode == 0
    assert done.stdout == (
        "image,rank,label,name,score\na.png,1,1,green,20.0\nb.png,1,0,blue,95.0\n"
    )


def test_json(run_protocaffe, folder):
    done = run_protocaffe(*WORDS, "--json", "--top-k=1")
    assert done.returncode == 0
    assert json.loads(done.stdout)[0] == {
        "image": "a.png",
        "classes": [{"label": 2, "name": "red", "score": 90.0}],
    }


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("classify", "a.png"), 2, "--model"),
        ((*WORDS, "--json", "--csv"), 2, "--json and --csv exclude each other"),
        ((*WORDS, "--resize=big"), 2, "--resize: expected a size such as 256 or 240,320"),
        ((*WORDS, "--mean=no.binaryproto"), 1, "mean_file 'no.binaryproto' does not exist"),
        (("classify", "c.png", "--model=model"), 1, "c.png: no such file\n"),
        (("classify", "a.png", "--model=model/deploy.prototxt"), 2, "name them with --weights"),
    ],
)
def test_mistakes(run_protocaffe, folder, words, code, message):
    done = run_protocaffe(*words)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
