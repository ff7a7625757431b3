import gc
import hashlib
import os
import shutil
import sys

import lmdb
import pytest

from protocaffe.data.database import backend_of, open_database
from protocaffe.errors import DataError
from tests.data.samples import DATABASES, copy_leveldb, recorded, write_database

LMDBS = ["color_20x24_lmdb", "encoded_asis_lmdb", "encoded_png_18x18_lmdb", "gray_16x16_lmdb"]
LEVELDBS = ["color_12x14_leveldb", "color_12x14_reopened_leveldb"]


def check_records(database, name):
    rows = recorded(name)
    assert len(database) == len(rows)
    for (key, value), row in zip(database.records(), rows, strict=True):
        assert key.decode() == row["key"]
        assert hashlib.sha256(value).hexdigest() == row["sha256_record"]


@pytest.mark.parametrize("name", LMDBS)
def test_lmdb_that_caffe_wrote(name):
    with open_database(DATABASES / name) as database:
        check_records(database, name)
    assert os.listdir(DATABASES / name) == ["data.mdb"]


@pytest.mark.parametrize("name", LEVELDBS)
def test_leveldb_that_caffe_wrote(name, tmp_path):
    pytest.importorskip("plyvel", reason="LevelDB databases need plyvel")
    with open_database(copy_leveldb(name, tmp_path), "leveldb") as database:
        check_records(database, name)


@pytest.fixture(params=["lmdb", "leveldb"])
def three(request, tmp_path):
    """An open database with the records 000: a, 001: b, 002: c."""
    if request.param == "leveldb":
        pytest.importorskip("plyvel", reason="LevelDB databases need plyvel")
    path = write_database(tmp_path / "three", [b"a", b"b", b"c"], request.param)
    with open_database(path, request.param) as database:
        yield database


@pytest.mark.parametrize(
    ("start", "values"), [(0, [b"a", b"b", b"c"]), (2, [b"c"]), (3, []), (9, [])]
)
def test_records_from_a_place_on(three, start, values):
    assert [value for _, value in three.records(start)] == values
    assert [bytes(value) for _, value in three.views(start)] == values


def test_records_by_their_keys(three):
    assert three.keys() == [b"000", b"001", b"002"]
    records = three.read([b"002", b"000", b"002", b"003"])
    assert [next(records) for _ in range(3)] == [(b"002", b"c"), (b"000", b"a"), (b"002", b"c")]
    with pytest.raises(DataError, match="has lost its record '003' while it was in use"):
        next(records)


def test_a_database_may_be_open_twice(three):
    with open_database(three.path, three.backend) as again:
        first, second = three.records(), again.records()
        assert next(first) == next(second) == (b"000", b"a")
        assert next(first) == (b"001", b"b")


def test_records_go_on_when_the_database_is_closed(three):
    records = three.records()
    next(records)
    three.close()
    assert [value for _, value in records] == [b"b", b"c"]


def test_a_closed_database_is_let_go(tmp_path):
    path = write_database(tmp_path / "db", [b"a"])
    open_database(path).close()
    gc.collect()
    lmdb.open(str(path), readonly=True).close()  # refuses what is open in this process


def test_a_database_that_was_replaced_is_read_anew(tmp_path):
    path = write_database(tmp_path / "db", [b"old"])
    with open_database(path):
        shutil.rmtree(path)
        write_database(path, [b"new"])
        with open_database(path) as new:
            assert next(new.records()) == (b"000", b"new")


def test_the_kind_is_seen_by_the_files(three, tmp_path):
    assert backend_of(three.path) == three.backend
    assert backend_of(tmp_path) is None
    assert backend_of(tmp_path / "nowhere") is None


def check_refused(path, *needles, backend="lmdb"):
    with pytest.raises(DataError) as caught:
        open_database(path, backend)
    for needle in (str(path), *needles):
        assert needle in str(caught.value)


def test_missing(tmp_path):
    write_database(tmp_path / "train_lmdb", [b"a"])
    check_refused(tmp_path / "trian_lmdb", "does not exist; did you mean 'train_lmdb'?")
    check_refused(tmp_path / "none" / "x", f"nor does the folder '{tmp_path / 'none'}'")


def test_missing_relative_to_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_refused("x_lmdb", f"looked for it in {tmp_path}")


def test_not_a_database(tmp_path):
    check_refused(tmp_path, "is no lmdb database: it holds no data.mdb")
    check_refused(tmp_path, "is no leveldb database", backend="leveldb")
    (tmp_path / "data.mdb").write_bytes(b"?" * 10000)
    check_refused(tmp_path, "data.mdb' is damaged")
    check_refused(tmp_path / "data.mdb", "is a file, but an lmdb database is a folder")


def test_the_other_kind(tmp_path):
    check_refused(DATABASES / LMDBS[0], "backend: LMDB", backend="leveldb")
    check_refused(DATABASES / LEVELDBS[0], "backend: LEVELDB")


def test_empty(tmp_path):
    lmdb.open(str(tmp_path)).close()
    check_refused(tmp_path, "is empty")


def test_cut_off(tmp_path):
    copy = shutil.copytree(DATABASES / LMDBS[0], tmp_path / "copy")
    os.truncate(copy / "data.mdb", 100_000)
    check_refused(copy, "is cut off: it has 100000 bytes of 172032")


def test_leveldb_without_plyvel(monkeypatch):
    monkeypatch.setitem(sys.modules, "plyvel", None)
    with pytest.raises(DataError, match="pip install plyvel"):
        open_database(DATABASES / LEVELDBS[0], "leveldb")


def test_leveldb_in_use(tmp_path):
    plyvel = pytest.importorskip("plyvel", reason="LevelDB databases need plyvel")
    path = copy_leveldb(LEVELDBS[0], tmp_path)
    other = plyvel.DB(str(path))
    check_refused(path, "no other program may have it open", backend="leveldb")
    other.close()


def test_a_database_that_the_program_itself_has_open(tmp_path):
    path = write_database(tmp_path / "db", [b"a"])
    with lmdb.open(str(path)):
        check_refused(path, "already open in this process", "env.close()")


def test_a_database_of_another_version_of_lmdb(tmp_path):
    path = write_database(tmp_path / "db", [b"a"])
    content = bytearray((path / "data.mdb").read_bytes())
    magic = (0xBEEFC0DE).to_bytes(4, sys.byteorder)
    place = content.find(magic)
    while place >= 0:  # in both pages that describe the file
        content[place + 4 : place + 8] = (999).to_bytes(4, sys.byteorder)
        place = content.find(magic, place + 1)
    (path / "data.mdb").write_bytes(content)
    with pytest.raises(DataError, match=r"db' cannot be opened: .*(version|VERSION|format)"):
        open_database(path)
