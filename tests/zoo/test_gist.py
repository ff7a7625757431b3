import io
import zipfile

import pytest

from protocaffe.errors import FileError, ProtocaffeError, UsageError
from protocaffe.zoo import gist as module
from protocaffe.zoo.gist import download_gist

ID = "0123456789abcdef0123"
FILES = {"x-main/readme.md": "---\nname: X\n---\nText.\n", "x-main/deploy.prototxt": 'name: "X"'}


def archive(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in files.items():
            file.writestr(name, text)
    return buffer.getvalue()


@pytest.fixture
def get(server, tmp_path):
    def get(files=FILES, name=ID):
        server.files[f"/{name}/download"] = files if isinstance(files, bytes) else archive(files)
        return download_gist(name, tmp_path / "models", host=server.address)

    return get


@pytest.mark.parametrize(("name", "folder"), [(ID, ID), (f"jane/{ID}", f"jane-{ID}")])
def test_the_folder_is_laid_out_as_by_caffe(get, server, tmp_path, name, folder):
    made = get(name=name)
    assert made == tmp_path / "models" / folder
    assert sorted(path.name for path in made.iterdir()) == [
        ".downloaded",
        "deploy.prototxt",
        "readme.md",
    ]
    assert (made / "deploy.prototxt").read_text() == 'name: "X"'
    assert (made / ".downloaded").read_text() == f"{server.address}/{name}\n"


def test_an_address_of_a_gist(get, server, tmp_path):
    server.files[f"/jane/{ID}/download"] = archive(FILES)
    address = f"https://gist.github.com/jane/{ID}"
    assert download_gist(address, tmp_path, host=server.address).name == f"jane-{ID}"


def test_a_folder_that_is_there_stays(get, tmp_path):
    made = get()
    (made / "mine").touch()
    with pytest.raises(ProtocaffeError, match="is there already"):
        get()
    assert (made / "mine").exists()


@pytest.mark.parametrize("name", ["", "..", "../x", "jane/../x", "no such gist", "a/b/c"])
def test_names_that_are_no_gists(tmp_path, name):
    with pytest.raises(UsageError, match="is no gist"):
        download_gist(name, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>", "gave no zip file"),
        (archive(FILES)[:-30], "gave no zip file"),
        (archive(FILES)[:50] + b"zzzzzz" + archive(FILES)[56:], "gave no zip file"),
        (archive({"a/x": "", "b/x": ""}), "two files named 'x'"),
        (archive({"a/.bashrc": ""}), "no hidden files"),
    ],
)
def test_bad_archives_leave_nothing(get, tmp_path, content, message):
    with pytest.raises(FileError, match=message):
        get(content)
    assert list((tmp_path / "models").iterdir()) == []


def test_an_archive_that_would_fill_the_disk(get, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    with pytest.raises(FileError, match="a model's texts are smaller"):
        get()


def test_paths_in_an_archive_lead_nowhere_else(get, tmp_path):
    made = get({"../../x.prototxt": "name: 'X'", "/abs/readme.md": "x"})
    assert (made / "x.prototxt").exists()
    assert (made / "readme.md").exists()


def test_no_such_gist(get, server, tmp_path):
    with pytest.raises(FileError, match=r"abcdef: not downloaded; tried .*HTTP status 404"):
        download_gist("jane/abcdef", tmp_path, host=server.address)
    assert list(tmp_path.iterdir()) == []
