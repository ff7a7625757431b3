import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from tests.data.samples import DATABASES, copy_leveldb, random_images, raw_datum, write_database


def test_what_it_prints(run_protocaffe, tmp_path):
    path = tmp_path / "db"
    shutil.copytree(DATABASES / "gray_16x16_lmdb", path)
    (path / "labels.txt").write_text("cat\ndog\n")
    done = run_protocaffe("dump_db", "db", "--sheet=sheet.png", "--images=5")
    assert done.returncode == 0
    assert "Drew 5 images on sheet.png" in done.stderr
    assert cv2.imread(str(tmp_path / "sheet.png")) is not None
    rows = done.stdout.splitlines()
    assert rows[:6] == [
        "db: lmdb, 40 records",
        "  keys    00000000_im00.jpg ... 00000039_im39.jpg",
        "  size    10.8 KB, 269 bytes each",
        "  kind    raw pixels",
        "  shape   1 x 16 x 16 (channels x height x width)",
        "  values  20 to 242",
    ]
    assert rows[6:9] == [
        "  labels  0 to 9; no record has 5",
        "    0: cat         7  ###############################",
        "    1: dog         5  ######################",
    ]


def test_many_shapes_of_some_records(run_protocaffe):
    done = run_protocaffe("dump_db", DATABASES / "encoded_asis_lmdb", "--limit=30")
    assert done.returncode == 0
    rows = done.stdout.splitlines()
    assert rows[0].endswith("encoded_asis_lmdb: lmdb, 40 records; the first 30 of them:")
    assert "  kind    jpg images: 20 records" in rows
    assert any(row.endswith(" others") for row in rows)


def test_json(run_protocaffe, tmp_path):
    pytest.importorskip("plyvel", reason="LevelDB databases need plyvel")
    copy_leveldb("color_12x14_leveldb", tmp_path)
    done = run_protocaffe("dump_db", "--json", "color_12x14_leveldb")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert found["backend"] == "leveldb"
    assert found["records"] == found["examined"] == sum(found["labels"].values()) == 40
    assert found["shapes"] == [{"shape": [3, 12, 14], "records": 40}]
    assert found["kinds"] == {"raw": 40}
    assert found["damaged"] == []


def test_damaged_records_make_it_fail(run_protocaffe, tmp_path):
    good = raw_datum(random_images((1, 2, 3), 1)[0])
    write_database(tmp_path / "db", [good, b"\xff"])
    done = run_protocaffe("dump_db", "db")
    assert done.returncode == 1
    assert "  damaged 1 record, such as:\n          record '001' of 'db': " in done.stdout
    write_database(tmp_path / "bad", [b"\xff"])
    done = run_protocaffe("dump_db", "bad", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["values"] is None


def test_many_labels(run_protocaffe, tmp_path):
    image = random_images((1, 2, 3), 1)[0]
    write_database(tmp_path / "db", [raw_datum(image, label) for label in range(60)])
    done = run_protocaffe("dump_db", "db")
    assert done.stdout.endswith("and 20 labels more; --json has all\n")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["none"], 1, "database 'none' does not exist"),
        (["."], 1, "is no lmdb database: it holds no data.mdb"),
        ([], 2, "db"),
        ([DATABASES / "gray_16x16_lmdb", "--sheet=none/x.png"], 1, "there is no folder 'none'"),
    ],
)
def test_mistakes(run_protocaffe, words, code, message):
    done = run_protocaffe("dump_db", *words)
    assert done.returncode == code
    assert message in done.stderr.partition("protocaffe dump_db: ")[2]


def test_the_script_is_the_same(tmp_path):
    script = Path(__file__).parents[2] / "scripts" / "dump_db.py"
    words = [sys.executable, script, DATABASES / "gray_16x16_lmdb"]
    done = subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "40 records" in done.stdout
