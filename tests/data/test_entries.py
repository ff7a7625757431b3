import errno
import os

import pytest

from protocaffe.data.entries import Entry, images_in, read_list, scan_classes, shuffled
from protocaffe.errors import DataError


def test_lists(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"a b/c.png 3\r\n\n  d.png\t 2147483647\n\xff.png 0")
    assert read_list(path) == [
        ("a b/c.png", 3, f"{path}:1"),
        ("d.png\t", 2147483647, f"{path}:3"),
        (os.fsdecode(b"\xff.png"), 0, f"{path}:4"),
    ]


def test_lists_made_with_a_spreadsheet_or_on_windows(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("a b.png\t3\r\nc.png 4\r\n", encoding="utf-8-sig", newline="")
    assert [entry[:2] for entry in read_list(path)] == [
        ("a b.png", 3),
        ("c.png", 4),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("b.png", "expected 'path label' with a space between, got 'b.png'"),
        ("b.png\tx", "label 'x' is no whole number"),
        ("b.png x", "label 'x' is no whole number"),
        ("b.png 1_0", "label '1_0' is no whole number"),
        ("b.png 1.0", "label '1.0' is no whole number"),
        ("b.png -1", "label -1 is out of range; legal are 0 to 2147483647"),
        ("b.png 2147483648", "label 2147483648 is out of range"),
    ],
)
def test_bad_lines_of_lists(tmp_path, line, message):
    path = tmp_path / "list.txt"
    path.write_text(f"a.png 0\n{line}\n")
    with pytest.raises(DataError) as caught:
        read_list(path)
    assert str(caught.value).startswith(f"{path}:2: {message}")


def test_lists_that_are_missing_or_empty(tmp_path):
    with pytest.raises(DataError, match=r"none\.txt': No such file"):
        read_list(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(DataError, match=r"empty\.txt' is empty"):
        read_list(tmp_path / "empty.txt")


@pytest.fixture
def classes(tmp_path):
    """A folder of class folders with five images."""
    root = tmp_path / "images"
    for name in ("cat/2.png", "cat/10.PNG", "cat/more/1.png", "dog/b.png", "dog/a.png"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (root / "readme.txt").write_text("no image")
    (root / "cat" / "notes.txt").write_text("no image")
    (root / "cat" / ".hidden.png").write_bytes(b"")
    (root / ".git").mkdir()
    return root


def test_folders_of_classes(classes):
    entries, names = scan_classes(classes)
    assert names == ["cat", "dog"]
    assert entries == [
        ("cat/10.PNG", 0, ""),
        ("cat/2.png", 0, ""),
        ("cat/more/1.png", 0, ""),
        ("dog/a.png", 1, ""),
        ("dog/b.png", 1, ""),
    ]


def test_all_images_of_a_folder(classes):
    (classes / "1.png").touch()
    assert images_in(classes) == sorted(
        ["1.png", "cat/10.PNG", "cat/2.png", "cat/more/1.png", "dog/a.png", "dog/b.png"]
    )


def test_an_empty_class_folder(classes):
    (classes / "crow").mkdir()
    (classes / "crow" / "1.heic").touch()
    with pytest.raises(DataError) as caught:
        scan_classes(classes)
    assert str(caught.value).startswith(
        f"class folder '{classes}/crow' has no images; remove it (it would take label 1), or put "
        f"images in it: .bmp .gif"
    )


def test_a_class_folder_that_may_not_be_read(classes, monkeypatch):
    scandir = os.scandir

    def denied(path):
        if os.fspath(path).endswith("dog"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(DataError, match=r"folder of images '.*dog': Permission denied$"):
        scan_classes(classes)


def test_folders_without_class_folders(tmp_path):
    with pytest.raises(DataError, match="has no folders in it; expected one folder of images per"):
        scan_classes(tmp_path)
    with pytest.raises(DataError, match="none': No such file"):
        scan_classes(tmp_path / "none")


def test_shuffling_follows_the_seed():
    entries = [Entry(str(number), 0) for number in range(50)]
    assert shuffled(entries, 1) == shuffled(entries, 1) != shuffled(entries, 2)
    assert sorted(shuffled(entries, 1)) == sorted(entries)


def test_the_nearest_name_is_offered(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "list.txt").write_text("a.png 1\n")
    with pytest.raises(DataError, match=r"trian': No such file or directory; did you mean 'train'"):
        scan_classes(tmp_path / "trian")
    with pytest.raises(DataError, match=r"lst\.txt': No such file .*; did you mean 'list\.txt'"):
        read_list(tmp_path / "lst.txt")
