import os
import subprocess
import sys

import pytest

from protocaffe.data.aside import FolderAside
from protocaffe.errors import DataError


def test_the_name_appears_at_the_end(tmp_path):
    with FolderAside(f"{tmp_path}/new/") as aside:
        assert os.listdir(tmp_path) == [os.path.basename(aside.folder)]
    assert os.listdir(tmp_path) == ["new"]


def test_two_at_once_for_one_name(tmp_path):
    with FolderAside(tmp_path / "new") as first:
        with pytest.raises(DataError, match="new' is being made already"):
            FolderAside(tmp_path / "new")
        assert os.path.isdir(first.folder)
    assert os.listdir(tmp_path) == ["new"]


INTERRUPTED = """
import sys
from protocaffe.data.aside import FolderAside
aside = FolderAside(sys.argv[1])
raise KeyboardInterrupt
"""


def test_interrupted_before_the_block_begins(tmp_path):
    words = [sys.executable, "-c", INTERRUPTED, tmp_path / "new"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.stderr.endswith("KeyboardInterrupt\n")
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_replaced_stays(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "file").write_text("old")
    with (
        pytest.raises(DataError, match="new' cannot be put in place: No such file"),
        FolderAside(tmp_path / "new", force=True) as aside,
    ):
        os.rmdir(aside.folder)
    assert os.listdir(tmp_path) == ["new"]
    assert (tmp_path / "new" / "file").read_text() == "old"


KILLED = """
import os, signal, sys
from protocaffe.data import aside
rename = os.rename
def rename_once(*names):
    rename(*names)
    os.kill(os.getpid(), signal.SIGKILL)
os.rename = rename_once
with aside.FolderAside(sys.argv[1], force=True):
    pass
"""


def test_killed_between_two_renames(tmp_path):
    """The old folder has been moved away, the new one is not in its place: the old comes back."""
    path = tmp_path / "new"
    path.mkdir()
    (path / "file").write_text("old")
    subprocess.run([sys.executable, "-c", KILLED, path])
    assert not path.exists()
    with pytest.raises(DataError, match="exists already"):
        FolderAside(path)
    assert os.listdir(tmp_path) == ["new"]
    assert (path / "file").read_text() == "old"


def test_killed_before_the_old_one_is_removed(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new.replaced-1").mkdir()
    (tmp_path / "new.replaced-by-me").mkdir()
    (tmp_path / "new.partial-draft").mkdir()
    with FolderAside(tmp_path / "new", force=True):
        pass
    assert sorted(os.listdir(tmp_path)) == ["new", "new.partial-draft", "new.replaced-by-me"]


@pytest.mark.parametrize(("names", "replaced"), [([], True), (["mark", "x"], True), (["x"], False)])
def test_only_folders_of_the_kind_are_replaced(tmp_path, names, replaced):
    (tmp_path / "new").mkdir()
    for name in names:
        (tmp_path / "new" / name).touch()
    if replaced:
        with FolderAside(tmp_path / "new", force=True, marks=["mark"]):
            pass
        assert os.listdir(tmp_path / "new") == []
    else:
        with pytest.raises(DataError, match="new' is not replaced, even with force: it has other"):
            FolderAside(tmp_path / "new", force=True, marks=["mark"])
        assert os.listdir(tmp_path / "new") == names


def test_a_file_that_cannot_be_written(tmp_path):
    with FolderAside(tmp_path / "new") as aside:
        aside.add_file("a/b.txt", b"content")
        with pytest.raises(DataError, match=r"new/a' cannot be written: Is a directory"):
            aside.add_file("a", b"")
    assert (tmp_path / "new" / "a" / "b.txt").read_bytes() == b"content"
