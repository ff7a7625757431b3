"""Reading readmes with front matter, and the folder of models."""

import pytest

from protocaffe.errors import FileError, UsageError
from protocaffe.zoo import catalogue, find_model, read_readme

README = """---
name: Finetuning: a test
caffemodel: tiny.caffemodel
caffemodel_url: http://example.org/tiny.caffemodel
sha1: 123e4567
license:
# a comment
caffe_commit: "709dc15"

---

A tiny net, arXiv:1234.5678. It learns
nothing.

More.
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/readme.md").write_text(README)
    for name in ("deploy.prototxt", "tiny.caffemodel"):
        (tmp_path / "tiny" / name).touch()
    (tmp_path / "no_model").mkdir()
    return tmp_path


def test_the_front_matter_of_a_readme(folder):
    model = read_readme(folder / "tiny/readme.md")
    assert model.id == "tiny"
    assert model.name == "Finetuning: a test"
    assert model.caffemodel == "tiny.caffemodel"
    assert model.url == "http://example.org/tiny.caffemodel"
    assert model.sha1 == "123e4567"  # not a number
    assert model.license == ""
    assert model.facts["caffe_commit"] == "709dc15"
    assert model.summary == "A tiny net, arXiv:1234.5678."
    assert model.text.endswith("nothing.\n\nMore.\n")


def test_a_readme_is_found_from_within_its_folder(folder, monkeypatch):
    monkeypatch.chdir(folder / "tiny")
    assert read_readme("readme.md").id == "tiny"


def test_what_belongs_to_a_model(folder):
    names = [path.name for path in catalogue(folder)["tiny"].files]
    assert names == ["deploy.prototxt", "readme.md"]


def test_folders_without_readme_are_no_models(folder):
    assert list(catalogue(folder)) == ["tiny"]


def test_a_misspelt_model(folder):
    with pytest.raises(UsageError, match=r"no model 'xyz' \(known: tiny\)"):
        find_model("xyz", folder)
    with pytest.raises(UsageError, match=r"no model 'tinny'; did you mean 'tiny'\?$"):
        find_model("tinny", folder)


@pytest.mark.parametrize("text", ["", "# Tiny\n", "---\nname: x\n", "\n---\nname: x\n---\n"])
def test_a_readme_without_front_matter(folder, text):
    (folder / "tiny/readme.md").write_text(text)
    with pytest.raises(FileError, match=r"readme\.md:1: expected front matter"):
        catalogue(folder)


def test_a_damaged_front_matter(folder):
    (folder / "tiny/readme.md").write_text("---\nname: x\n<<<<<<< HEAD\n---\n")
    with pytest.raises(FileError, match=r"readme\.md:3: expected 'key: value'.*<<<<<<< HEAD"):
        catalogue(folder)


def test_the_models_that_come_with_protocaffe():
    models = catalogue()
    assert models["lenet"].caffemodel == "lenet_iter_10000.caffemodel"
    assert all(model.name and model.summary and model.license for model in models.values())
    assert {"deploy.prototxt", "readme.md", "solver.prototxt", "train_val.prototxt"} <= {
        path.name for path in find_model("lenet").files
    }
