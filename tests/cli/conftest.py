import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def run_protocaffe(tmp_path):
    """Call ``python -m protocaffe`` in a folder; give back the finished process."""

    def run(*words, cwd=tmp_path, **options):
        return subprocess.run(
            [sys.executable, "-m", "protocaffe", *map(str, words)],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "COLUMNS": "100"},
            **options,
        )

    return run


@pytest.fixture
def digit_folder(tmp_path):
    """The folder in which Caffe wrote the recorded logs: solver, net, snapshots, database."""
    database = "data/dbs/gray_16x16_lmdb"
    shutil.copytree(GOLDEN / database, tmp_path / database)
    return Path(shutil.copytree(GOLDEN / "train_log", tmp_path / "train_log"))
