import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from protocaffe import features
from protocaffe.data.database import open_database
from protocaffe.data.datum import datum_array, parse_datum
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from tests.cli.caffe_log import PREFIX
from tests.data.samples import DATABASES, GOLDEN

WORDS = ["weights.caffemodel", "net.prototxt", "c,f", "c_lmdb,f_lmdb", "3"]


@pytest.fixture
def folder(tmp_path):
    """A folder beside the recorded databases with the recorded net and weights."""
    (tmp_path / "dbs").symlink_to(DATABASES)
    return Path(shutil.copytree(GOLDEN / "extract_features", tmp_path / "extract_features"))


def records(path):
    with open_database(path) as database:
        return [(key, parse_datum(value)) for key, value in database.records()]


def test_recorded_command(run_protocaffe, folder):
    command = json.loads((folder / "meta.json").read_text())["command"]
    done = run_protocaffe(*command.replace("feat_", "").split(), cwd=folder)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    lines = [PREFIX.match(line) for line in done.stderr.splitlines()]
    said = [line["message"] for line in lines if line]
    assert said[-3:] == [
        "Extracted features of 24 query images for feature blob c",
        "Extracted features of 24 query images for feature blob f",
        "Successfully extracted the features!",
    ]
    for name in "cf":
        ours, theirs = records(folder / f"{name}_lmdb"), records(folder / f"feat_{name}_lmdb")
        assert [key for key, _ in ours] == [key for key, _ in theirs]
        for (_, one), (_, other) in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(
                datum_array(one), datum_array(other), rtol=1e-4, atol=1e-5, strict=True
            )
            assert [field.name for field, _ in one.ListFields()] == [
                field.name for field, _ in other.ListFields()
            ]


def test_the_log_counts_by_thousands(folder, monkeypatch, caplog):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(features, "LOG_EVERY", 10)
    net = Net("net.prototxt", caffe_pb2.TEST, weights="weights.caffemodel")
    caplog.set_level("INFO", "protocaffe")
    features.extract_features(net, ["f"], ["f_lmdb"], 3)
    net.close()
    said = [each.message for each in caplog.records if "query images" in each.message]
    assert [line.split()[3] for line in said] == ["10", "20", "24"]


@pytest.mark.parametrize("files", ["all.h5", "c.h5,f.h5"])
def test_hdf5_files(run_protocaffe, folder, files):
    words = [*WORDS[:3], files, "3", "hdf5", "CPU", "0"]
    done = run_protocaffe("extract_features", *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    names = files.split(",") * 2
    for name, file in zip("cf", (names[0], names[1]), strict=True):
        theirs = [datum_array(datum) for _, datum in records(folder / f"feat_{name}_lmdb")]
        with h5py.File(folder / file) as found:
            ours = found[name][...]
        assert len(ours) == 24
        np.testing.assert_allclose(
            ours.reshape(24, -1), np.reshape(theirs, (24, -1)), rtol=1e-4, atol=1e-5
        )
    assert run_protocaffe("extract_features", *words, cwd=folder).returncode == 1
    assert run_protocaffe("extract_features", *words, "--force", cwd=folder).returncode == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([*WORDS[:2], "c,g", *WORDS[3:]], 2, "the net has no blob 'g'"),
        ([*WORDS[:3], "c_lmdb", "3"], 2, "every blob needs a database of its own (or"),
        ([*WORDS[:3], "c_lmdb,c_lmdb", "3"], 2, "every blob needs a database of its own"),
        ([*WORDS[:4], "0"], 2, "must be at least 1, got 0"),
        ([*WORDS, "lmdb", "TPU"], 2, "CPU"),
        ([*WORDS, "lmdb", "GPU", "99"], 2, "the cuda engine cannot run here"),
        ([*WORDS[:3], "a.h5,b.h5,c.h5", "3", "hdf5"], 2, "every blob needs a database of its own"),
        ([*WORDS[:3], "net.prototxt", "3", "hdf5"], 1, "'net.prototxt' exists already"),
        ([*WORDS[:3], "none/a.h5", "3", "hdf5"], 1, "none/a.h5"),
        ([*WORDS[:3], "feat_c_lmdb,f_lmdb", "3"], 1, "'feat_c_lmdb' exists already"),
        (["none.caffemodel", *WORDS[1:]], 1, "none.caffemodel"),
        (WORDS[:4], 2, "num_batches"),
    ],
)
def test_mistakes_leave_nothing_behind(run_protocaffe, folder, words, code, message):
    before = sorted(folder.iterdir())
    done = run_protocaffe("extract_features", *words, cwd=folder)
    assert done.returncode == code
    assert message in done.stderr.partition("protocaffe extract_features: ")[2]
    assert sorted(folder.iterdir()) == before


def test_the_script_is_the_same(folder):
    script = Path(__file__).parents[2] / "scripts" / "extract_features.py"
    for more in ([], ["--force"]):
        words = [sys.executable, script, *WORDS, *more]
        subprocess.run(words, cwd=folder, check=True, capture_output=True)
    assert len(records(folder / "f_lmdb")) == 24
