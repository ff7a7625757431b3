import fcntl
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocaffe.data.database import open_database
from protocaffe.data.writer import create_database
from protocaffe.errors import DataError
from tests.data.samples import write_database


@pytest.fixture(params=["lmdb", "leveldb"])
def backend(request):
    if request.param == "leveldb":
        pytest.importorskip("plyvel", reason="LevelDB databases need plyvel")
    return request.param


def contents(path, backend="lmdb"):
    with open_database(path, backend) as database:
        return list(database.records())


keys = st.binary(min_size=1, max_size=20)


@given(records=st.lists(st.tuples(keys, st.binary(max_size=30)), min_size=1, max_size=40))
def test_records_in_any_order_come_back_sorted(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("any") / "db"
    with create_database(path) as writer:
        for number, record in enumerate(records):
            writer.put(*record)
            if number % 7 == 6:
                writer.commit()
    assert contents(path) == sorted(dict(records).items())


def test_more_records_than_one_transaction_takes(tmp_path, backend):
    path = write_database(tmp_path / "db", [b"%d" % i for i in range(2500)], backend)
    assert sorted(value for _, value in contents(path, backend)) == sorted(
        b"%d" % i for i in range(2500)
    )


def test_the_map_grows(tmp_path):
    values = [bytes([number]) * 2**20 for number in range(150)]
    assert [value for _, value in contents(write_database(tmp_path / "db", values))] == values


def test_nothing_but_the_database_stays(tmp_path, backend):
    with create_database(tmp_path / "db", backend) as writer:
        writer.put(b"a", b"1")
        writer.add_file("labels.txt", b"cat\n")
        (only,) = os.listdir(tmp_path)
        assert only.startswith("db.partial-")
    assert os.listdir(tmp_path) == ["db"]
    assert (tmp_path / "db" / "labels.txt").read_bytes() == b"cat\n"
    if backend == "lmdb":
        assert sorted(os.listdir(tmp_path / "db")) == ["data.mdb", "labels.txt"]


def test_what_exists_is_not_touched(tmp_path, backend):
    path = write_database(tmp_path / "db", [b"old"], backend)
    with pytest.raises(DataError, match=r"db' exists already.*--force"):
        create_database(path, backend)
    assert contents(path, backend) == [(b"000", b"old")]


@pytest.mark.parametrize("existing", ["database", "file", "link"])
def test_force_replaces(tmp_path, existing):
    path = tmp_path / "db"
    if existing == "database":
        write_database(path, [b"old"])
    elif existing == "file":
        path.write_text("old")
    else:
        path.symlink_to(write_database(tmp_path / "linked", [b"linked"]))
    with create_database(f"{path}/" if existing == "database" else path, force=True) as writer:
        writer.put(b"a", b"new")
    assert contents(path) == [(b"a", b"new")]
    assert set(os.listdir(tmp_path)) <= {"db", "linked"}
    if existing == "link":
        assert contents(tmp_path / "linked") == [(b"000", b"linked")]


def write_and_fail(error, *arguments, **options):
    with create_database(*arguments, **options) as writer:
        writer.put(b"a", b"1")
        raise error


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_leaves_nothing(tmp_path, backend, error):
    with pytest.raises(error):
        write_and_fail(error, tmp_path / "db", backend)
    assert os.listdir(tmp_path) == []


def test_an_error_leaves_the_old_one(tmp_path):
    path = write_database(tmp_path / "db", [b"old"])
    with pytest.raises(ZeroDivisionError):
        write_and_fail(ZeroDivisionError, path, force=True)
    assert os.listdir(tmp_path) == ["db"]
    assert contents(path) == [(b"000", b"old")]


KILLED = """
import os, signal, sys
from protocaffe.data.writer import create_database
writer = create_database(sys.argv[1])
for number in range(5000):
    writer.put(b"%04d" % number, bytes(100))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_leaves_what_the_next_one_removes(tmp_path):
    path = tmp_path / "db"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)])
    assert killed.returncode == -signal.SIGKILL
    (left,) = os.listdir(tmp_path)
    assert left.startswith("db.partial-")
    write_database(path, [b"a"])
    assert os.listdir(tmp_path) == ["db"]


FULL = """
import resource, sys
from protocaffe.data.writer import create_database
from protocaffe.errors import DataError
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
try:
    with create_database(sys.argv[1]) as writer:
        for number in range(3000):
            writer.put(b"%04d" % number, bytes(1000))
except DataError as error:
    print(error)
"""


def test_a_disk_without_room(tmp_path):
    path = tmp_path / "db"
    done = subprocess.run([sys.executable, "-c", FULL, path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"database '{path}' cannot be written: ")
    assert os.listdir(tmp_path) == []


def test_a_running_writer_is_left_alone(tmp_path):
    other = tmp_path / "db.partial-1"
    other.mkdir()
    lock = os.open(other, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    write_database(tmp_path / "db", [b"a"])
    assert sorted(os.listdir(tmp_path)) == ["db", "db.partial-1"]
    os.close(lock)


def test_a_key_that_is_too_long(tmp_path):
    with (
        pytest.raises(DataError, match="has 512 bytes; lmdb takes 1 to 511"),
        create_database(tmp_path / "db") as writer,
    ):
        writer.put(b"k" * 512, b"")


def test_a_folder_that_is_not_there(tmp_path, backend):
    with pytest.raises(DataError, match=r"db' cannot be made: there is no folder '.*none'$"):
        create_database(tmp_path / "none" / "db", backend)
