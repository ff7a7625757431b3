import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.caffe_log import PREFIX
from tests.data.samples import DATABASES, GOLDEN, copy_leveldb

CASES = {
    name: case["mean_log"]
    for name, case in json.loads((DATABASES / "commands.json").read_text()).items()
    if "mean_log" in case
}


@pytest.mark.parametrize("name", CASES)
def test_recorded_commands(run_protocaffe, tmp_path, name):
    (tmp_path / "dbs").symlink_to(DATABASES)
    out = f"{name}.mean.binaryproto"
    done = run_protocaffe("compute_image_mean", f"dbs/{name}", out)
    assert (done.returncode, done.stdout) == (0, "")
    expected = [line.partition("] ")[2] for line in CASES[name]]
    lines = [PREFIX.match(line)["message"] for line in done.stderr.splitlines()]
    assert lines == [line for line in expected if line != "Decoding Datum"]
    assert (tmp_path / out).read_bytes() == (GOLDEN / out).read_bytes()


def test_leveldb_without_a_file(run_protocaffe, tmp_path):
    pytest.importorskip("plyvel", reason="LevelDB databases need plyvel")
    source = copy_leveldb("color_12x14_leveldb", tmp_path)
    done = run_protocaffe("compute_image_mean", "--backend=leveldb", source)
    assert done.returncode == 0
    assert "mean_value channel [2]: " in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["color_12x14_leveldb"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["none_lmdb"], 1, "database 'none_lmdb' does not exist"),
        ([DATABASES / "encoded_asis_lmdb"], 1, "a mean image needs images of one size"),
        ([], 2, "db"),
        (["--backend=h5", "x"], 2, "lmdb"),
    ],
)
def test_mistakes(run_protocaffe, words, code, message):
    done = run_protocaffe("compute_image_mean", *words)
    assert done.returncode == code
    assert message in done.stderr.partition("protocaffe compute_image_mean: ")[2]


def test_the_script_is_the_same(tmp_path):
    script = Path(__file__).parents[2] / "scripts" / "compute_image_mean.py"
    words = [DATABASES / "gray_16x16_lmdb", "mean"]
    subprocess.run([sys.executable, script, *words], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "mean").exists()
