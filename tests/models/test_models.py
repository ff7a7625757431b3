import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from protocaffe.check import check_file
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import read_net, read_solver
from protocaffe.solvers.learning_rate import LearningRate
from protocaffe.zoo.catalogue import read_readme
from protocaffe.zoo.fetch import digest
from protocaffe.zoo.published import PUBLISHED

MODELS = Path(__file__).parents[2] / "models"
FOLDERS = sorted(path.parent for path in MODELS.glob("*/readme.md"))
PARAMETERS = {"cifar10_full": 89578, "cifar10_quick": 145578, "digits": 38282, "lenet": 431080}
SMALL = [folder for folder in FOLDERS if folder.name in PARAMETERS]
BUILT = [folder for folder in FOLDERS if folder.name in PUBLISHED]


def front_matter(folder):
    return read_readme(folder / "readme.md").facts


def test_all_models_are_looked_at():
    assert {folder.name for folder in FOLDERS} == PARAMETERS.keys() | PUBLISHED.keys()


@pytest.mark.parametrize("folder", SMALL, ids=lambda folder: folder.name)
class TestSmallModel:
    def test_the_deployed_net_runs(self, folder):
        net = Net(folder / "deploy.prototxt", engine="numpy")
        net.forward()
        prob = net.blobs["prob"]
        assert prob.shape[1:] == (10,)
        assert prob.data.sum(axis=1) == pytest.approx(1)
        count = sum(math.prod(each.blob.shape) for each in net.learnable)
        assert count == PARAMETERS[folder.name]

    def test_training_and_deployed_net_have_the_same_weights(self, folder):
        trained, deployed = (
            {layer.name: sizes(layer) for layer in read_net(folder / f"{name}.prototxt")[0].layer}
            for name in ("train_val", "deploy")
        )
        for head in ("accuracy", "loss", data_layer(folder)):
            trained.pop(head)
        for head in ("data", "prob"):
            deployed.pop(head)
        assert trained == deployed

    def test_the_readme_names_weights_that_are_there_or_that_training_writes(self, folder):
        facts = front_matter(folder)
        assert facts["license"] == "BSD-2-Clause"
        if "sha1" in facts:  # the weights ship
            assert digest(folder / facts["caffemodel"]) == facts["sha1"]
            return
        solvers = [read_solver(path)[0] for path in folder.glob("solver*.prototxt")]
        last = max(solvers, key=lambda solver: solver.max_iter)
        hdf5 = ".h5" if last.snapshot_format == caffe_pb2.SolverParameter.HDF5 else ""
        written = f"{Path(last.snapshot_prefix).name}_iter_{last.max_iter}.caffemodel{hdf5}"
        assert facts["caffemodel"] == written


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_solvers_name_the_net_and_keep_to_the_folder(folder):
    assert (folder / "solver.prototxt").exists()
    for path in folder.glob("*solver*.prototxt"):
        solver, _ = read_solver(path)
        assert MODELS.parent / solver.net == folder / "train_val.prototxt"
        assert (MODELS.parent / solver.snapshot_prefix).parent == folder
        assert LearningRate(solver)(0) > 0


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_testing_covers_the_whole_set(folder):
    net, _ = read_net(folder / "train_val.prototxt")
    batch = next(
        (layer.data_param.batch_size or layer.image_data_param.batch_size)
        for layer in net.layer
        if layer.include and layer.include[0].phase == caffe_pb2.TEST
    )
    solver, _ = read_solver(folder / "solver.prototxt")
    sizes = {"digits": 360, "finetune_flickr_style": 5000, "lenet": 10000}
    default = 10000 if folder.name.startswith("cifar") else 50000
    assert batch * solver.test_iter[0] == sizes.get(folder.name, default)


@pytest.mark.parametrize("folder", BUILT, ids=lambda folder: folder.name)
class TestPublishedModel:
    def test_the_texts_are_those_that_the_builder_writes(self, folder):
        for name, text in PUBLISHED[folder.name].texts().items():
            assert (folder / name).read_text() == text, "run: python scripts/make_models.py"

    def test_the_readme_says_whose_weights_they_are(self, folder):
        facts = front_matter(folder)
        assert facts["name"]
        assert facts["license"]
        assert facts["caffemodel"].endswith(".caffemodel")
        assert re.fullmatch(r"[\d.]+ %( / [\d.]+ %)? \(.+\)", facts["accuracy"])
        if "sha1" in facts:
            assert re.fullmatch("[0-9a-f]{40}", facts["sha1"])
            assert facts["caffemodel_url"].endswith(facts["caffemodel"])


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_nothing_is_wrong_but_that_the_images_are_missing(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert check_file(folder / "deploy.prototxt").problems == []
    place = f"models/{folder.name}"
    shutil.copytree(folder, tmp_path / place, ignore=shutil.ignore_patterns("*_lmdb"))
    problems = check_file(f"{place}/solver.prototxt").problems
    missing = r"layer '\w+' \(\w+\): \w+\.(source|mean_file): no such file or folder: .*"
    assert {each.severity for each in problems if re.fullmatch(missing, each.message)} == {"error"}
    assert [each for each in problems if not re.fullmatch(missing, each.message)] == []


def test_the_weights_that_ship_load():
    shipped = [folder for folder in SMALL if "sha1" in front_matter(folder)]
    assert {folder.name for folder in shipped} >= {"cifar10_full", "cifar10_quick", "digits"}
    for folder in shipped:
        weights = folder / front_matter(folder)["caffemodel"]
        net = Net(folder / "deploy.prototxt", engine="numpy", weights=weights)
        assert all(learnable.blob.data.any() for learnable in net.learnable)


def test_the_package_takes_along_the_weights_that_ship():
    project = (MODELS.parent / "pyproject.toml").read_text()
    for folder in SMALL:
        facts = front_matter(folder)
        assert ("sha1" in facts) == (f'"{folder.name}/{facts["caffemodel"]}"' in project)


def test_the_package_has_every_room():
    project = (MODELS.parent / "pyproject.toml").read_text()
    for place in (MODELS.parent / "protocaffe").rglob("__init__.py"):
        name = ".".join(place.parent.relative_to(MODELS.parent).parts)
        assert f'    "{name}",\n' in project


def test_the_digits_that_ship_are_as_good_as_their_readme_says():
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)) / 256
    _, test = train_test_split(
        np.arange(len(pixels)), test_size=360, stratify=digits.target, random_state=0
    )
    net = Net(MODELS / "digits/deploy.prototxt", weights=MODELS / "digits/digits.caffemodel")
    net.blobs["data"].reshape(360, 1, 8, 8)
    net.blobs["data"].data[:, 0] = pixels[test]
    net.forward()
    right = net.blobs["prob"].data.argmax(axis=1) == digits.target[test]
    assert right.mean() == pytest.approx(0.997, abs=0.003)


def sizes(layer):
    """The layer without what matters in training only."""
    copy = caffe_pb2.LayerParameter()
    copy.CopyFrom(layer)
    copy.ClearField("param")
    for options in (copy.convolution_param, copy.inner_product_param):
        options.ClearField("weight_filler")
        options.ClearField("bias_filler")
    return copy.SerializeToString(deterministic=True)


def data_layer(folder):
    return read_net(folder / "train_val.prototxt")[0].layer[0].name
