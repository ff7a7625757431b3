import hashlib
import os
import shutil
from pathlib import Path

import pytest

from protocaffe.errors import FileError, UsageError
from protocaffe.zoo import download
from protocaffe.zoo.catalogue import catalogue, models_folder, read_readme
from protocaffe.zoo.copying import copy_model
from protocaffe.zoo.download import (
    download_weights,
    open_model,
    weights_addresses,
    weights_path,
)
from protocaffe.zoo.fetch import NotFetchedError

DIGITS = models_folder() / "digits"


@pytest.fixture
def weights():
    return (DIGITS / "digits.caffemodel").read_bytes()


@pytest.fixture
def model(tmp_path, server, weights):
    """Return a function that makes a model whose weights a server has."""
    server.files["/w/tiny.caffemodel"] = weights

    def make(**facts):
        facts = {
            "caffemodel": "tiny.caffemodel",
            "caffemodel_url": f"{server.address}/w/tiny.caffemodel",
            "sha1": hashlib.sha1(weights).hexdigest(),
            **facts,
        }
        folder = tmp_path / "tiny"
        folder.mkdir()
        lines = "".join(f"{key}: {value}\n" for key, value in facts.items() if value)
        (folder / "readme.md").write_text(f"---\n{lines}---\nTiny.\n")
        return read_readme(folder / "readme.md")

    return make


def files(folder):
    return sorted(path.name for path in Path(folder).iterdir())


class TestDownload:
    def test_the_weights_come_into_the_folder(self, model, weights, server):
        tiny = model()
        path, address = download_weights(tiny)
        assert path == tiny.folder / "tiny.caffemodel"
        assert path.read_bytes() == weights
        assert address == f"{server.address}/w/tiny.caffemodel"
        assert download_weights(tiny) == (path, "")

    def test_the_mirror_comes_first(self, model, server, weights, monkeypatch):
        monkeypatch.setenv("PROTOCAFFE_ZOO", f"{server.address}/mirror/")
        server.files["/mirror/tiny/tiny.caffemodel"] = weights
        _, address = download_weights(model())
        assert address == f"{server.address}/mirror/tiny/tiny.caffemodel"
        assert [path for path, _ in server.requests] == [
            "/mirror/tiny.caffemodel",
            "/mirror/tiny/tiny.caffemodel",
        ]

    def test_a_folder_as_mirror(self, model, server, weights, monkeypatch, tmp_path):
        monkeypatch.setenv("PROTOCAFFE_ZOO", str(tmp_path))
        (tmp_path / "tiny.caffemodel").write_bytes(weights)
        assert download_weights(model())[0].read_bytes() == weights
        assert server.requests == []

    def test_a_mirror_with_another_file_is_passed_over(self, model, weights, monkeypatch, tmp_path):
        monkeypatch.setenv("PROTOCAFFE_ZOO", f"file://{tmp_path}")
        (tmp_path / "tiny.caffemodel").write_bytes(b"another")
        assert download_weights(model())[0].read_bytes() == weights

    def test_the_way_out_without_a_network(self, model):
        tiny = model(caffemodel_url="http://127.0.0.1:9/x")
        with pytest.raises(NotFetchedError) as caught:
            download_weights(tiny)
        tried, way_out = str(caught.value).splitlines()
        assert "tried http://127.0.0.1:9/x: Connection refused" in tried
        assert "set PROTOCAFFE_ZOO to a folder or an address" in way_out
        assert files(tiny.folder) == ["readme.md"]

    def test_a_wrong_digest_leaves_nothing(self, model):
        tiny = model(sha1="0" * 40)
        with pytest.raises(NotFetchedError, match="expected 0000"):
            download_weights(tiny)
        assert files(tiny.folder) == ["readme.md"]

    def test_without_a_digest_it_must_at_least_be_a_model(self, model, server):
        tiny = model(sha1="")
        server.files["/w/tiny.caffemodel"] = b"<html>sorry</html>"
        with pytest.raises(NotFetchedError, match="looks like a web page"):
            download_weights(tiny)
        assert files(tiny.folder) == ["readme.md"]

    def test_nothing_to_download(self, model):
        with pytest.raises(FileError, match="names no caffemodel_url"):
            download_weights(model(caffemodel_url=""))

    @pytest.mark.parametrize("name", ["", "../evil", ".bashrc", "/etc/passwd", "a/b"])
    def test_names_that_are_no_file_names(self, model, name):
        with pytest.raises(FileError, match="a file name"):
            download_weights(model(caffemodel=name))


class TestInstalledWhereTheUserMayNotWrite:
    @pytest.fixture
    def installed(self, model, tmp_path, monkeypatch):
        """Return a model that seems to come with protocaffe, in a folder that is read-only."""
        tiny = model()
        may = os.access
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(download, "models_folder", lambda: tiny.folder.parent)
        monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and may(path, mode))
        return tiny

    def test_weights_go_to_the_users_cache_and_are_found_there(
        self, installed, weights, tmp_path, monkeypatch
    ):
        path, address = download_weights(installed)
        assert path == tmp_path / "cache/protocaffe/models/tiny/tiny.caffemodel"
        assert address
        assert path.read_bytes() == weights
        assert files(installed.folder) == ["readme.md"]
        assert download_weights(installed) == (path, "")
        copy = copy_model(installed, tmp_path / "copy")
        assert (copy / "tiny.caffemodel").read_bytes() == weights
        monkeypatch.undo()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(download, "models_folder", lambda: installed.folder.parent)
        assert weights_path(installed) == path  # also if the folder can be written later

    def test_weights_in_the_folder_come_first(self, installed, weights):
        (installed.folder / "tiny.caffemodel").write_bytes(weights)
        assert weights_path(installed) == installed.folder / "tiny.caffemodel"

    def test_a_cache_that_cannot_be_written(self, installed, tmp_path):
        (tmp_path / "cache").touch()
        with pytest.raises(FileError, match="cache/protocaffe/models/tiny: cannot be made"):
            download_weights(installed)


class TestOpen:
    def test_by_name_and_by_folder(self):
        assert open_model("digits").folder == DIGITS
        assert open_model(DIGITS).id == "digits"

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("digitz", "did you mean 'digits'"),
            ("some/where", "no folder 'some/where'"),
        ],
    )
    def test_neither(self, name, message):
        with pytest.raises(UsageError, match=message):
            open_model(name)


def test_every_published_address_is_well_formed(monkeypatch):
    monkeypatch.delenv("PROTOCAFFE_ZOO", raising=False)
    for model in catalogue().values():
        for address in weights_addresses(model):
            assert address.startswith(("http://", "https://"))
            assert " " not in address


def test_copies_of_models_keep_their_weights(tmp_path):
    shutil.copytree(DIGITS, tmp_path / "d", ignore=shutil.ignore_patterns("*_lmdb"))
    assert download_weights(open_model(tmp_path / "d"))[1] == ""
