import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from protocaffe.data.database import open_database
from tests.cli.caffe_log import PREFIX
from tests.data.samples import GOLDEN, recorded

COMMANDS = json.loads((GOLDEN / "dbs" / "commands.json").read_text())


@pytest.fixture
def folder(tmp_path):
    """A folder with the recorded images and their list."""
    shutil.copytree(GOLDEN / "images", tmp_path / "images")
    shutil.copy(GOLDEN / "list.txt", tmp_path)
    (tmp_path / "dbs").mkdir()
    return tmp_path


def messages(log):
    return [PREFIX.match(line)["message"] for line in log.splitlines()]


@pytest.mark.parametrize("name", [name for name, case in COMMANDS.items() if "log" in case])
def test_recorded_commands(run_protocaffe, folder, name):
    if "leveldb" in name:
        pytest.importorskip("plyvel", reason="LevelDB databases need plyvel")
    done = run_protocaffe(*COMMANDS[name]["command"].split(), cwd=folder)
    assert (done.returncode, done.stdout) == (0, "")
    expected = [line.partition("] ")[2] for line in COMMANDS[name]["log"]]
    assert messages(done.stderr) == expected
    with open_database(folder / "dbs" / name, name.rpartition("_")[2]) as database:
        for (key, value), row in zip(database.records(), recorded(name), strict=True):
            assert key.decode() == row["key"]
            if "png" not in name:  # other versions of zlib pack the same pixels otherwise
                assert hashlib.sha256(value).hexdigest() == row["sha256_record"]


def test_class_folders(run_protocaffe, folder):
    for number, name in enumerate(["dog", "cat"]):
        (folder / "classes" / name).mkdir(parents=True)
        shutil.copy(folder / "images" / f"im0{number}.jpg", folder / "classes" / name)
    done = run_protocaffe("convert_imageset", "classes", "db", cwd=folder)
    assert done.returncode == 0
    assert "class by class; to train on them, give --shuffle" in done.stderr
    assert (folder / "db" / "labels.txt").read_text() == "cat\ndog\n"
    with open_database(folder / "db") as database:
        assert [key for key, _ in database.records()] == [
            b"00000000_cat/im01.jpg",
            b"00000001_dog/im00.jpg",
        ]


def test_parts_of_a_data_set_are_hardly_classes(run_protocaffe, folder):
    for name in ("train", "test"):
        (folder / "set" / name).mkdir(parents=True)
        shutil.copy(folder / "images" / "im00.jpg", folder / "set" / name)
    done = run_protocaffe("convert_imageset", "--shuffle", "set", "db", cwd=folder)
    assert done.returncode == 0
    assert "The classes are test and train. If these are parts of a data set" in done.stderr


def test_shuffling(run_protocaffe, folder):
    orders = []
    for seed in (1, 1, 2):
        words = ["--shuffle", f"--seed={seed}", "--force", "--gray", "images/", "list.txt", "db"]
        assert run_protocaffe("convert_imageset", *words, cwd=folder).returncode == 0
        with open_database(folder / "db") as database:
            orders.append([key for key, _ in database.records()])
    assert orders[0] == orders[1] != orders[2]
    assert [key[:8] for key in orders[0]] == [b"%08d" % number for number in range(40)]


def test_what_was_skipped_is_counted(run_protocaffe, folder):
    (folder / "images" / "im07.png").unlink()
    done = run_protocaffe("convert_imageset", "images/", "list.txt", "db", cwd=folder)
    assert done.returncode == 0
    assert messages(done.stderr)[2:] == [
        "Could not open or find file images/im07.png (list.txt:8: No such file or directory)",
        "Processed 39 files.",
        "1 of 40 files were skipped.",
    ]


def test_strict_stops_at_a_bad_file(run_protocaffe, folder):
    (folder / "images" / "im07.png").write_bytes(b"no image")
    words = ["--strict", "images/", "list.txt", "db"]
    done = run_protocaffe("convert_imageset", *words, cwd=folder)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "protocaffe convert_imageset: list.txt:8: image 'images/im07.png': is no image, or a "
        "damaged one"
    )
    assert sorted(path.name for path in folder.iterdir()) == ["dbs", "images", "list.txt"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            ["--check_size", "images/", "list.txt", "db"],
            1,
            "list.txt:8: image 'images/im07.png' is 3 x",
        ),
        (["--force", "images/", "list.txt", "images"], 1, "'images' is not replaced, even with"),
        (["images/", "list.txt", "dbs"], 1, "'dbs' exists already"),
        (["images/", "none.txt", "db"], 1, "list file 'none.txt': No such file"),
        (["images", "list.txt", "db"], 1, "none of the 40 files could be read"),
        (["--resize_width=3", "images/", "list.txt", "db"], 1, "make no size"),
        (["--encode_type=doc", "images/", "list.txt", "db"], 1, "type 'doc'"),
        (["images/"], 2, "db"),
        (["--resize_width=-3", "images/", "list.txt", "db"], 2, "resize_width"),
    ],
)
def test_mistakes(run_protocaffe, folder, words, code, message):
    done = run_protocaffe("convert_imageset", *words, cwd=folder)
    assert done.returncode == code
    last = done.stderr.partition("protocaffe convert_imageset: ")[2]
    assert message in last
    assert "Traceback" not in done.stderr
    assert not (folder / "db").exists()


def test_the_script_is_the_same(folder):
    script = Path(__file__).parents[2] / "scripts" / "convert_imageset.py"
    words = ["--gray", "images/", "list.txt", "db"]
    subprocess.run([sys.executable, script, *words], cwd=folder, check=True, capture_output=True)
    with open_database(folder / "db") as database:
        assert len(database) == 40
