import errno
import os
import stat

import pytest

from protocaffe.errors import FileError
from protocaffe.proto import files
from protocaffe.proto.files import missing_file, read_bytes, write_atomic


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "f"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["f"]


def test_new_files_have_the_usual_permissions(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    write_atomic(tmp_path / "f", b"x")
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_path_relative_to_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_atomic("f", b"x")
    assert (tmp_path / "f").read_bytes() == b"x"


def test_symbolic_link_stays_one(tmp_path):
    (tmp_path / "link").symlink_to("target")
    write_atomic(tmp_path / "link", b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"x"


def test_device_is_written_to_and_not_replaced(tmp_path):
    write_atomic(os.devnull, b"x")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("failure", "seen"), [(no_space, FileError), (interrupt, KeyboardInterrupt)]
)
def test_failure_keeps_the_old_file_and_leaves_nothing_behind(
    tmp_path, monkeypatch, step, failure, seen
):
    path = tmp_path / "f"
    path.write_bytes(b"old")
    monkeypatch.setattr(files.os, step, failure)
    with pytest.raises(seen):
        write_atomic(path, b"new")
    assert os.listdir(tmp_path) == ["f"]
    assert path.read_bytes() == b"old"


def test_failures_are_told_in_plain_words(tmp_path, monkeypatch):
    with pytest.raises(FileError, match=r"there is no folder '.*nowhere'"):
        write_atomic(tmp_path / "nowhere" / "f", b"x")
    with pytest.raises(FileError, match="cannot be written: Is a directory"):
        write_atomic(tmp_path, b"x")
    monkeypatch.setattr(files.os, "fsync", no_space)
    with pytest.raises(FileError, match="cannot be written: No space left on device"):
        write_atomic(tmp_path / "f", b"x")


@pytest.mark.parametrize(
    ("missing", "hint"),
    [
        ("lenett.prototxt", "; did you mean 'lenet.prototxt'?"),
        ("lenet.prototext", "; did you mean 'lenet.prototxt'?"),
        ("lenet", ""),
        ("lenet.h5", "; did you mean 'lenet.h5.bak'?"),
        ("quick.prototxt", ""),
        ("lance", ""),
        ("no/lenet.prototxt", " (nor does the folder '{folder}/no' exist)"),
    ],
)
def test_only_what_is_near_is_offered_for_a_missing_file(tmp_path, missing, hint):
    for name in ("LICENSE", "lenet.prototxt", "lenet.h5.bak", "solver.prototxt"):
        (tmp_path / name).touch()
    expected = f"{tmp_path}/{missing}: no such file{hint.format(folder=tmp_path)}"
    assert str(missing_file(tmp_path / missing)) == expected


def test_a_folder_tells_its_prototxts(tmp_path):
    with pytest.raises(FileError, match=r"expected a file, got a folder$"):
        read_bytes(tmp_path)
    for name in ("solver.prototxt", "net.prototxt"):
        (tmp_path / name).touch()
    with pytest.raises(FileError, match=r"got a folder \(with net.prototxt, solver.prototxt\)$"):
        read_bytes(tmp_path)
