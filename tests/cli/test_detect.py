import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from protocaffe.cli import main
from protocaffe.detector import Detector
from protocaffe.net import Net

NET = """
name: "windows" input: "data" input_shape { dim: [2, 3, 40, 40] }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc"
  inner_product_param { num_output: 4 weight_filler { type: "gaussian" std: 0.1 } } }
"""
WORDS = ["in.csv", "out.csv", "--model_def=net.prototxt", "--pretrained_model=net.caffemodel"]


@pytest.fixture
def folder(tmp_path):
    """A folder with a net, an image and windows of it."""
    (tmp_path / "net.prototxt").write_text(NET)
    Net(tmp_path / "net.prototxt", seed=0).save(tmp_path / "net.caffemodel")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    (tmp_path / "in.csv").write_text(
        "filename,ymin,xmin,ymax,xmax\na.png,0,0,20,20\na.png,5,6,30,31\n"
    )
    np.save(tmp_path / "mean.npy", np.array([1, 2, 3], np.float32))
    return tmp_path


def scores(path):
    return np.loadtxt(path, delimiter=",", skiprows=1, usecols=range(1, 9), ndmin=2)


def test_windows_of_a_list(run_protocaffe, folder):
    done = run_protocaffe("detect", *WORDS, "--mean_file", "mean.npy", "--context_pad=4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Processed 2 windows in ")
    assert done.stdout.endswith("Saved to out.csv.\n")
    detector = Detector(
        folder / "net.prototxt",
        folder / "net.caffemodel",
        mean=[1, 2, 3],
        raw_scale=255,
        channel_swap=(2, 1, 0),
        context_pad=4,
    )
    windows = np.array([[0, 0, 20, 20], [5, 6, 30, 31]])
    found = detector.detect_windows([(folder / "a.png", windows)])
    expected = np.hstack([windows, [each["prediction"] for each in found]])
    np.testing.assert_allclose(scores(folder / "out.csv"), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["in.csv", "out.h5", *WORDS[2:]], 2, "out.h5: expected a name that ends in .csv"),
        (["in.csv", "old.csv", *WORDS[2:]], 1, "old.csv exists already"),
        ([*WORDS, "--channel_swap=bgr"], 2, "--channel_swap=bgr: expected whole numbers"),
        ([*WORDS, "--context_pad=20"], 2, "context_pad 20"),
        ([*WORDS, "--mean_file=maen.npy"], 1, "maen.npy: no such file; did you mean 'mean.npy'"),
        ([*WORDS, "--mean_file=a.png"], 1, "a.png"),
        ([*WORDS, "--crop_mode=selective_search"], 2, "selective_search_ijcv_with_python"),
        (["a.png", *WORDS[1:]], 1, "a.png"),
        (WORDS[:3], 2, "--pretrained_model"),
    ],
)
def test_mistakes_leave_nothing_behind(folder, monkeypatch, capsys, words, code, message):
    (folder / "old.csv").write_text("old")
    before = sorted(folder.iterdir())
    monkeypatch.chdir(folder)
    assert main(["detect", *words]) == code
    assert message in capsys.readouterr().err
    assert sorted(folder.iterdir()) == before


def test_the_script_is_the_same(folder):
    script = Path(__file__).parents[2] / "scripts" / "detect.py"
    words = [sys.executable, script, *WORDS]
    subprocess.run(words, cwd=folder, check=True, capture_output=True)
    assert scores(folder / "out.csv").shape == (2, 8)
