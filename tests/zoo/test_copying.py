import pytest

from protocaffe.errors import ProtocaffeError
from protocaffe.net import Net
from protocaffe.proto.text import read_solver
from protocaffe.zoo.catalogue import read_readme
from protocaffe.zoo.copying import copy_model
from protocaffe.zoo.download import open_model


def test_a_copy_speaks_of_its_own_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = copy_model(open_model("cifar10_quick"), "mine/net")
    for path in made.glob("*.*t"):
        text = path.read_text()
        assert "models/cifar10_quick" not in text, path
    solver, _ = read_solver("mine/net/solver.prototxt")
    assert solver.net == "mine/net/train_val.prototxt"
    assert (made / "mean.binaryproto").exists()
    Net("mine/net/deploy.prototxt", weights="mine/net/cifar10_quick.caffemodel")
    again = copy_model(read_readme(made / "readme.md"), "third")
    assert read_solver(again / "solver.prototxt")[0].net == "third/train_val.prototxt"


def test_the_mark_goes_along(tmp_path):
    made = copy_model(open_model("digits"), tmp_path / "a")
    assert not (made / ".downloaded").exists()
    (made / ".downloaded").write_text("from x\n")
    again = copy_model(open_model(made), tmp_path / "b")
    assert (again / ".downloaded").read_text() == "from x\n"


def test_what_is_there_stays_unless_forced(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").touch()
    with pytest.raises(ProtocaffeError, match="exists already"):
        copy_model(open_model("digits"), tmp_path / "a")
    assert (tmp_path / "a" / "mine").exists()
    copy_model(open_model("digits"), tmp_path / "a", force=True)
    assert not (tmp_path / "a" / "mine").exists()


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ProtocaffeError, match="cannot be"):
        copy_model(open_model("digits"), tmp_path / "file" / "x")
