import subprocess
import sys

import pytest

from protocaffe.zoo.catalogue import models_folder

LENET = models_folder() / "lenet"


def test_list(run_protocaffe):
    done = run_protocaffe("zoo", "ls")
    assert done.returncode == 0, done.stderr
    rows = {row.split()[0]: row for row in done.stdout.splitlines() if row.strip()}
    assert "145.6 k" in rows["cifar10_quick"]
    assert "74.3 %" in rows["cifar10_quick"]
    assert rows["digits"].split()[-1] == "here"
    assert done.stderr == ""


def test_info(run_protocaffe):
    done = run_protocaffe("zoo", "info", "digits")
    assert done.returncode == 0, done.stderr
    assert "data 1x1x8x8" in done.stdout
    assert "digits.caffemodel" in done.stdout
    assert "A small net" in done.stdout


def test_info_notices_other_weights(run_protocaffe, tmp_path):
    assert run_protocaffe("zoo", "cp", "digits", "mine").returncode == 0
    (tmp_path / "mine" / "digits.caffemodel").write_bytes(b"x")
    assert "its sha1 differs" in run_protocaffe("zoo", "info", "mine").stdout
    done = run_protocaffe("zoo", "download", "mine")
    assert done.returncode == 1
    assert "is another file" in done.stderr


def test_download_from_a_mirror(run_protocaffe, tmp_path, monkeypatch):
    assert run_protocaffe("zoo", "cp", "digits", "mine").returncode == 0
    (tmp_path / "mine" / "digits.caffemodel").rename(tmp_path / "digits.caffemodel")
    monkeypatch.setenv("PROTOCAFFE_ZOO", str(tmp_path))
    done = run_protocaffe("zoo", "download", "mine")
    assert done.returncode == 0, done.stderr
    assert "its sha1 is right" in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["dwonload", "x"], 2, "did you mean 'download'"),
        (["info"], 2, "shows what 'info' needs"),
        (["cp", "lenet"], 2, "shows what 'cp' needs"),
        (["info", "lenett"], 2, "did you mean 'lenet'"),
        (["ls", "nowhere"], 1, "has no folders with a readme.md"),
        (["gist", "no gist"], 2, "is no gist"),
        (["info", LENET / "train_val.prototxt"], 2, "there is no folder"),
    ],
)
def test_mistakes(run_protocaffe, words, code, message):
    done = run_protocaffe("zoo", *words)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_script_of_caffe():
    script = LENET.parents[1] / "scripts" / "download_model_binary.py"
    words = [sys.executable, script, LENET.parent / "digits"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "is there already" in done.stdout
