import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from protocaffe import io
from protocaffe.classifier import Classifier
from protocaffe.net import Net
from protocaffe.proto.binary import write_atomic

SCRIPTS = Path(__file__).parents[2] / "scripts"
NET = """
name: "tiny" input: "data" input_shape { dim: [4, 3, 12, 12] }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc"
  inner_product_param { num_output: 4 weight_filler { type: "gaussian" std: 0.01 } } }
"""
FLAGS = ["--model_def=net.prototxt", "--pretrained_model=net.caffemodel", "--images_dim=16,16"]


@pytest.fixture
def folder(tmp_path):
    """A folder with a net, two images, a .npy file of them and mean files."""
    (tmp_path / "net.prototxt").write_text(NET)
    Net(tmp_path / "net.prototxt", seed=0).save(tmp_path / "net.caffemodel")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), rng.integers(0, 256, (20, 18, 3), np.uint8))
    np.save(tmp_path / "images.npy", [io.load_image(tmp_path / f"{name}.png") for name in "ab"])
    mean = rng.random((3, 16, 16)).astype(np.float32) * 255
    np.save(tmp_path / "mean.npy", mean)
    write_atomic(
        tmp_path / "mean.binaryproto", io.array_to_blobproto(mean[None]).SerializeToString()
    )
    return tmp_path


@pytest.fixture
def script(monkeypatch):
    """Run a script here, as if called with some words; give back how it ended."""

    def run(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        try:
            runpy.run_path(str(SCRIPTS / name), run_name="__main__")
        except SystemExit as end:
            return end.code
        return 0

    return run


def expected(folder, names, oversample=True, **settings):
    classifier = Classifier(
        folder / "net.prototxt",
        folder / "net.caffemodel",
        image_dims=(16, 16),
        raw_scale=255,
        channel_swap=(2, 1, 0),
        **settings,
    )
    return classifier.predict([io.load_image(folder / f"{name}.png") for name in names], oversample)


def test_files_folders_and_arrays(folder, script, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for source, names, said in (
        ("a.png", "a", "file: a.png"),
        (".", "ab", "folder: ."),
        ("images.npy", "ab", "file: images.npy"),
    ):
        assert script("classify.py", source, "out.npy", *FLAGS, "--ext=png", "--force") == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[:2] == [f"Loading {said}", f"Classifying {len(names)} inputs."]
        assert lines[-1] == "Saved results into out.npy"
        np.testing.assert_allclose(
            np.load("out.npy"), expected(folder, names), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("mean", ["mean.npy", "mean.binaryproto"])
def test_settings(folder, script, monkeypatch, mean):
    monkeypatch.chdir(folder)
    words = ["--mean_file", mean, "--center_only", "--input_scale=0.5"]
    assert script("classify.py", "b.png", "out", *FLAGS, *words) == 0
    wanted = expected(
        folder, "b", oversample=False, mean=np.load(folder / "mean.npy"), input_scale=0.5
    )
    np.testing.assert_allclose(np.load("out.npy"), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["c.png", "out.npy"], "c.png: no such file"),
        ([".", "out.npy"], ".: has no images that end in .jpg; --ext=..."),
        (["net.prototxt", "out.npy"], "net.prototxt: is no image"),
        (["a.png", "mean.npy"], "mean.npy exists already; --force replaces it"),
        (["a.png", "out.npy", "--mean_file=net.prototxt"], "net.prototxt"),
        (["a.png", "out.npy", "--mean_file=images.np"], "did you mean 'images.npy'"),
        (["a.png", "out.npy", "--images_dim=16x16"], "--images_dim=16x16: expected whole"),
        (["a.png", "out.npy", "--gpu"], "no GPU engine"),
        (["a.png", "no/out.npy"], "no folder 'no'"),
    ],
)
def test_mistakes(folder, script, monkeypatch, words, message):
    before = sorted(folder.iterdir())
    monkeypatch.chdir(folder)
    assert message in str(script("classify.py", *FLAGS, *words))
    assert sorted(folder.iterdir()) == before


def test_it_runs_by_itself(folder):
    words = [sys.executable, SCRIPTS / "classify.py", *FLAGS]
    done = subprocess.run([*words, "x", "out.npy"], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "x: no such file\n")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--solver", "s.prototxt", "--snapshot=s.solverstate"], 1, "s.prototxt: no such file"),
        (["--timing", "--solver=s.prototxt"], 2, "protocaffe time --model=NET"),
        (["--gpus", "0", "1"], 2, "--solver"),
    ],
)
def test_train_takes_pycaffe_s_flags(script, capsys, words, code, message):
    assert script("train.py", *words) == code
    assert message in capsys.readouterr().err
