import os

import cv2
import numpy as np
import pytest

from protocaffe.classify import ImageClassifier, add_mean, find_files, read_names
from protocaffe.data.convert import ImageOptions, convert_images
from protocaffe.data.entries import Entry
from protocaffe.errors import DataError, FileError, NetError, UsageError
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.binary import array_to_blob
from protocaffe.proto.caffe_pb2 import TransformationParameter
from protocaffe.proto.text import parse_text

# The scores are the means of the channels.
INPUT = """
layer { name: "data" type: "Input" top: "data"
  input_param { shape { dim: 2 dim: %d dim: 4 dim: 4 } } }
"""
NET = (
    INPUT
    + """
layer { name: "mean" type: "Pooling" bottom: "data" top: "mean"
  pooling_param { pool: AVE global_pooling: true } }
"""
)
TRAIN_VAL = """
layer { name: "data" type: "ImageData" top: "data" top: "label" include { phase: TRAIN }
  transform_param { scale: 9 mirror: true crop_size: 3 } image_data_param { source: "a" } }
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TEST }
  transform_param { scale: 0.5 mean_value: 10 crop_size: 4 } data_param { source: "%s" } }
"""


def net_of(text):
    return Net(parse_text(text, caffe_pb2.NetParameter()), engine="numpy")


def classifier(text="", channels=3, **options):
    transform = parse_text(text, TransformationParameter())
    return ImageClassifier(net_of(NET % channels), transform, **options)


@pytest.fixture
def image(tmp_path):
    """Write images that have one colour; return their paths."""

    def write(*colors, size=(4, 4)):
        paths = [tmp_path / f"{index}.png" for index in range(len(colors))]
        for path, color in zip(paths, colors, strict=True):
            cv2.imwrite(str(path), np.full((*size, 3), color, np.uint8))
        return paths

    return write


def pairs(guesses):
    return [(guess.label, guess.score) for guess in guesses]


def test_best_classes_come_first_in_bgr_order(image):
    (guesses,) = classifier(names=["b", "g", "r"]).classify(image((20, 40, 10)), top_k=2)
    assert [(g.label, g.name, g.score) for g in guesses] == [(1, "g", 40.0), (0, "b", 20.0)]


def test_classes_without_a_name(image):
    (guesses,) = classifier(names=["red", "green"]).classify(image((1, 2, 3)))
    assert {guess.label: guess.name for guess in guesses} == {0: "red", 1: "green", 2: ""}


def test_any_number_of_images_of_any_size(image):
    paths = image((1, 2, 3), (6, 5, 4), (7, 8, 9), size=(9, 7))
    assert [pairs(each)[0] for each in classifier().classify(paths)] == [(2, 3), (0, 6), (2, 9)]


def test_mean_and_scale_but_no_mirror_and_crop():
    made = classifier("scale: 0.5 mean_value: 10 mean_value: 20 mean_value: 30 crop_size: 2")
    assert made.net.blobs["data"].shape == (2, 3, 4, 4)


def test_transformed_values(image):
    made = classifier("scale: 0.5 mean_value: 10 mean_value: 20 mean_value: 30 mirror: true")
    (guesses,) = made.classify(image((20, 40, 10)))
    assert pairs(guesses) == [(1, 10.0), (0, 5.0), (2, -10.0)]


def test_the_centre_is_cut_out(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[2:6, 2:6] = 100
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    (guesses,) = classifier(size=(8, 8)).classify([tmp_path / "a.png"])
    assert pairs(guesses)[0][1] == 100


def test_a_mean_file_says_the_size(tmp_path):
    mean = np.zeros((3, 8, 8), np.float32)
    mean[:, 2:6, 2:6] = 30
    (tmp_path / "mean.binaryproto").write_bytes(array_to_blob(mean[None]).SerializeToString())
    cv2.imwrite(str(tmp_path / "a.png"), np.full((8, 8, 3), 100, np.uint8))
    transform = TransformationParameter()
    add_mean(transform, str(tmp_path / "mean.binaryproto"))
    made = ImageClassifier(net_of(NET % 3), transform)
    (guesses,) = made.classify([tmp_path / "a.png"])
    assert pairs(guesses)[0][1] == 70


def test_gray_nets(image):
    (guesses,) = classifier(channels=1).classify(image((50, 50, 50)))
    assert pairs(guesses) == [(0, 50.0)]


def test_means(tmp_path):
    transform = TransformationParameter(mean_file="old")
    add_mean(transform, "104,117,123")
    assert (list(transform.mean_value), transform.mean_file) == ([104, 117, 123], "")
    np.save(tmp_path / "mean.npy", np.stack([np.full((2, 2), each) for each in (1, 2, 3)]))
    add_mean(transform, str(tmp_path / "mean.npy"))
    assert list(transform.mean_value) == [1, 2, 3]
    (tmp_path / "bad.npy").write_text("no")
    with pytest.raises(FileError, match="is no NumPy file"):
        add_mean(transform, str(tmp_path / "bad.npy"))
    with pytest.raises(UsageError, match="expected a mean file or numbers"):
        add_mean(transform, "104,abc")


@pytest.mark.parametrize(
    ("text", "options", "error", "message"),
    [
        (INPUT.replace("dim: 4 dim: 4", "") % 3, {}, NetError, r"takes no images.*\(2, 3\)"),
        (NET % 5, {}, NetError, r"takes no images.*\(2, 5, 4, 4\)"),
        (INPUT % 3, {}, NetError, "gives no class scores"),
        (NET % 3, {"names": "abcd"}, UsageError, "4 names of classes, but output 'mean' has 3"),
        (NET % 3, {"size": (4, 3)}, UsageError, "4x3 are smaller than the net's input, 4x4"),
        (
            NET.replace("dim: 4 dim: 4", "dim: 4 dim: 5") % 3,
            {"size": (8, 8)},
            UsageError,
            "4x5, is no square, so --resize must be 4,5",
        ),
    ],
)
def test_what_does_not_fit(text, options, error, message):
    with pytest.raises(error, match=message):
        ImageClassifier(net_of(text), TransformationParameter(), **options)


def test_files_that_are_no_images(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(DataError, match="is no image"):
        next(classifier().classify([tmp_path / "a.png"]))
    with pytest.raises(FileError, match="no such file"):
        next(classifier().classify([tmp_path / "b.png"]))


def test_read_names(tmp_path):
    (tmp_path / "labels.txt").write_text("cat\ndog, hound\n")
    assert read_names(tmp_path / "labels.txt") == ["cat", "dog, hound"]
    (tmp_path / "labels.txt").write_text("")
    with pytest.raises(FileError, match="empty file"):
        read_names(tmp_path / "labels.txt")


def test_files_of_a_folder(tmp_path):
    folder = tmp_path / "pets"
    database = folder / "test_lmdb"
    database.mkdir(parents=True)
    (folder / "deploy.prototxt").write_text(NET % 3)
    (folder / "train_val.prototxt").write_text(TRAIN_VAL % database)
    for age, name in enumerate(("new.caffemodel", "old.caffemodel")):
        (folder / name).touch()
        os.utime(folder / name, (100 - age, 100 - age))
    (database / "labels.txt").touch()
    found = find_files(str(folder))
    assert found.deploy == folder / "deploy.prototxt"
    assert found.weights == folder / "new.caffemodel"
    assert found.labels == database / "labels.txt"
    assert found.transform.scale == 0.5
    (folder / "labels.txt").touch()
    (folder / "readme.md").write_text("---\ncaffemodel: old.caffemodel\n---\nPets.\n")
    found = find_files(str(folder))
    assert found.weights == folder / "new.caffemodel"  # of a training after that
    assert found.labels == database / "labels.txt"  # of what it was trained on, not copied along
    assert found.size is None
    (database / "labels.txt").unlink()
    assert find_files(str(folder)).labels == folder / "labels.txt"


def test_images_get_the_size_of_the_test_database(tmp_path, image):
    folder = tmp_path / "pets"
    folder.mkdir()
    image((1, 2, 3), size=(9, 7))
    convert_images(f"{tmp_path}/", [Entry("0.png", 0)], folder / "test_lmdb", ImageOptions())
    (folder / "deploy.prototxt").write_text(NET % 3)
    text = TRAIN_VAL.replace('"%s"', '"elsewhere/test_lmdb" backend: LMDB')
    (folder / "train_val.prototxt").write_text(text)
    assert find_files(str(folder)).size == (9, 7)


def test_a_shipped_model_works_from_anywhere(tmp_path, monkeypatch, image):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PROTOCAFFE_ZOO", raising=False)
    files = find_files("cifar10_quick")
    net = Net(files.deploy, caffe_pb2.TEST, weights=files.weights)
    made = ImageClassifier(net, files.transform, names=read_names(files.labels))
    (guesses,) = made.classify(image((200, 120, 60), size=(32, 32)), top_k=10)
    assert {guess.name for guess in guesses} >= {"airplane", "frog", "truck"}


def test_a_published_mean_that_is_not_at_hand():
    transform = find_files("bvlc_alexnet").transform
    assert list(transform.mean_value) == [104, 117, 123]
    assert find_files("resnet50").size == find_files("finetune_flickr_style").size == (256, 256)
    assert not transform.mean_file


def test_files_of_other_models(tmp_path):
    (tmp_path / "deploy.prototxt").write_text(NET % 3)
    alone = find_files(str(tmp_path / "deploy.prototxt"))
    assert (alone.weights, alone.labels) == (None, None)
    assert find_files("squeezenet_v1.1").deploy.parent.name == "squeezenet_v1.1"
    with pytest.raises(UsageError, match="did you mean 'vgg16'"):
        find_files("vgg_16")
    with pytest.raises(FileError, match=r"did you mean 'deploy\.prototxt'"):
        find_files(str(tmp_path / "deplo.prototxt"))
