import numpy as np
import pytest

from protocaffe import io
from protocaffe.classifier import Classifier
from protocaffe.errors import FileError, UsageError
from protocaffe.net import Net

NET = """
name: "tiny"
input: "data" input_shape { dim: [3, 3, 6, 8] }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc"
  inner_product_param { num_output: 4 weight_filler { type: "gaussian" std: 0.1 } } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""
MEAN = np.array([104, 117, 123], np.float32)
SETTINGS = {"mean": MEAN, "raw_scale": 255, "channel_swap": (2, 1, 0), "input_scale": 0.1}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "deploy.prototxt").write_text(NET)
    Net(folder / "deploy.prototxt", seed=0).save(folder / "tiny.caffemodel")
    return folder / "deploy.prototxt", folder / "tiny.caffemodel"


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [rng.random(shape).astype(np.float32) for shape in ((9, 12, 3), (20, 7, 3))]


def expected(files, crops):
    """Return the scores of crops, one at a time, prepared by hand."""
    net = Net(*files)
    rows = []
    for crop in crops:
        bgr = crop.transpose(2, 0, 1)[::-1] * 255 - MEAN[:, None, None]
        net.blobs["data"].data[0] = bgr * 0.1
        net.forward()
        rows.append(net.blobs["prob"].data[0].copy())
    return np.array(rows)


def test_centre_crops(files, images):
    classifier = Classifier(*files, image_dims=(9, 13), **SETTINGS)
    scores = classifier.predict(images, oversample=False)
    crops = [io.resize_image(image, (9, 13))[1:7, 2:10] for image in images]
    np.testing.assert_allclose(scores, expected(files, crops), rtol=1e-5)


def test_ten_crops_are_averaged(files, images):
    classifier = Classifier(*map(str, files), image_dims=[9, 13], **SETTINGS)
    scores = classifier.predict(images)
    crops = io.oversample([io.resize_image(image, (9, 13)) for image in images], (6, 8))
    np.testing.assert_allclose(
        scores, expected(files, crops).reshape(2, 10, 4).mean(axis=1), rtol=1e-5
    )
    assert (scores.shape, scores.dtype) == ((2, 4), np.float32)


def test_images_have_the_input_s_size_unless_told_otherwise(files, images):
    classifier = Classifier(*files, **SETTINGS)
    assert (classifier.image_dims, classifier.inputs) == ((6, 8), ["data"])
    scores = classifier.predict(images, oversample=False)
    crops = [io.resize_image(image, (6, 8)) for image in images]
    np.testing.assert_allclose(scores, expected(files, crops), rtol=1e-5)


def test_mistakes(files, images, tmp_path):
    with pytest.raises(UsageError, match=r"image_dims \(5, 8\): .*at least 6 and 8"):
        Classifier(*files, image_dims=(5, 8))
    with pytest.raises(UsageError, match=r"image_dims \(9,\)"):
        Classifier(*files, image_dims=(9,))
    with pytest.raises(UsageError, match="needs 3 numbers from 0 to 2"):
        Classifier(*files, channel_swap=(1, 0))
    with pytest.raises(FileError, match=r"no such file; did you mean 'tiny\.caffemodel'"):
        Classifier(files[0], files[1].with_name("tinny.caffemodel"))
    classifier = Classifier(*files, **SETTINGS)
    with pytest.raises(UsageError, match=r"list of images; .*predict\(\[image\]\)"):
        classifier.predict(np.zeros((20, 20, 3)))
    with pytest.raises(UsageError, match="at least one image"):
        classifier.predict([])
    with pytest.raises(UsageError, match=r"takes 3 channel\(s\).*got shape \(1, 6, 8\)"):
        classifier.predict([images[0][:, :, :1]])
    with pytest.raises(UsageError, match=r"expected an image of shape .*got shape \(9, 12\)"):
        classifier.predict([images[0][:, :, 0]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'layer { name: "d" type: "DummyData" top: "x" dummy_data_param { shape { dim: 2 } } }',
            "net 'n' has no Input layer to put images into; give the deploy prototxt",
        ),
        (
            'input: "x" input_shape { dim: [2, 7] } layer { name: "r" type: "ReLU" bottom: "x" '
            'top: "y" }',
            r"input 'x' has shape \(2, 7\), so it takes no images",
        ),
    ],
)
def test_nets_that_take_no_images(tmp_path, text, message):
    (tmp_path / "net.prototxt").write_text('name: "n" ' + text)
    Net(tmp_path / "net.prototxt").save(tmp_path / "net.caffemodel")
    with pytest.raises(UsageError, match=message):
        Classifier(tmp_path / "net.prototxt", tmp_path / "net.caffemodel")
