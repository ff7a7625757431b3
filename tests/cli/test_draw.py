import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from protocaffe.cli import main

ROOT = Path(__file__).parents[2]
NET = ROOT / "models" / "digits" / "deploy.prototxt"


@pytest.fixture
def no_dot(monkeypatch, tmp_path):
    """Leave no Graphviz on the path."""
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


def test_text_needs_no_graphviz(run_protocaffe, no_dot, tmp_path):
    done = run_protocaffe("draw", NET, "net.dot", "--phase=TEST")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    text = (tmp_path / "net.dot").read_text()
    assert "rankdir=TB" in text
    assert "(TEST)" in text


def test_without_graphviz_there_is_text_and_a_line(run_protocaffe, no_dot, tmp_path):
    done = run_protocaffe("draw", NET, "net.png")
    assert done.returncode == 1
    assert "'dot' is not installed" in done.stderr
    assert "wrote net.dot instead, of which 'dot -Tpng net.dot -o net.png' makes" in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["net.dot"]
    again = run_protocaffe("draw", NET, "net.png")
    assert again.returncode == 1
    assert "not installed" in again.stderr
    assert "either: net.dot exists already; --force replaces it" in again.stderr


@pytest.mark.skipif(not shutil.which("dot"), reason="Graphviz's program dot is not installed")
def test_pictures(run_protocaffe, tmp_path):
    for name, start in (("net.png", b"\x89PNG"), ("net.svg", b"<?xml"), ("net.pdf", b"%PDF")):
        done = run_protocaffe("draw", NET, name)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / name).read_bytes().startswith(start)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([NET, "net.dot", "--rankdir=UP"], 2, "invalid choice: 'UP'"),
        ([NET, "net.dot", "--phase=TSET"], 2, "invalid choice: 'TSET'"),
        ([NET, "net"], 2, "net: expected an ending such as .png, .svg or .dot"),
        (["no.prototxt", "net.dot"], 1, "no.prototxt: no such file"),
        ([NET, "no/net.dot"], 1, "there is no folder 'no'"),
        ([NET, "old.dot"], 1, "old.dot exists already; --force replaces it"),
        ([NET], 2, "out"),
    ],
)
def test_mistakes_leave_nothing_behind(tmp_path, monkeypatch, capsys, words, code, message):
    (tmp_path / "old.dot").write_text("old")
    monkeypatch.chdir(tmp_path)
    assert main(["draw", *map(str, words)]) == code
    assert message in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_the_script_draws_left_to_right_over_what_is_there(tmp_path):
    (tmp_path / "old.dot").write_text("old")
    script = ROOT / "scripts" / "draw_net.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, script, NET, "old.dot"]
    for more, expected in (([], "LR"), (["--rankdir", "BT"], "BT")):
        subprocess.run([*words, *more], cwd=tmp_path, check=True, env=environment)
        assert f"rankdir={expected}" in (tmp_path / "old.dot").read_text()
