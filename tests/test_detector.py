import cv2
import numpy as np
import pytest

from protocaffe import io
from protocaffe.detector import Detector, read_windows, write_detections
from protocaffe.errors import DataError, FileError, UsageError
from protocaffe.net import Net

NET = """
name: "windows"
input: "data" input_shape { dim: [2, 3, 16, 16] }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc"
  inner_product_param { num_output: 4 weight_filler { type: "gaussian" std: 0.1 } } }
"""
MEAN = (104, 117, 123)
SETTINGS = {"mean": np.array(MEAN), "raw_scale": 255, "channel_swap": (2, 1, 0)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("windows")
    (folder / "deploy.prototxt").write_text(NET)
    Net(folder / "deploy.prototxt", seed=0).save(folder / "net.caffemodel")
    return folder / "deploy.prototxt", folder / "net.caffemodel"


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a picture.png"), pixels)
    return tmp_path / "a picture.png"


def test_windows_without_surroundings(files, picture):
    detector = Detector(*files, **SETTINGS)
    windows = np.array([[0, 0, 40, 50], [5, 10, 25, 20], [30, 40, 60, 70]])
    found = detector.detect_windows([(picture, windows), (str(picture), windows[:1])])
    image, net = io.load_image(picture), Net(*files)
    assert [each["filename"] for each in found] == [picture] * 3 + [str(picture)]
    for detection, (top, left, bottom, right) in zip(found, windows[[0, 1, 2, 0]], strict=True):
        np.testing.assert_array_equal(detection["window"], (top, left, bottom, right))
        crop = io.resize_image(image[top:bottom, left:right], (16, 16))
        blob = crop.transpose(2, 0, 1)[::-1] * 255 - np.reshape(MEAN, (3, 1, 1))
        net.blobs["data"].data[0] = blob
        expected = net.forward()["fc"][0]
        np.testing.assert_allclose(detection["prediction"], expected, rtol=1e-4, atol=1e-4)


def test_surroundings_inside_the_image(files, picture):
    detector, image = Detector(*files, **SETTINGS, context_pad=4), io.load_image(picture)
    # 11 x 9 pixels, the ends included, about (20, 24.5): doubled, 9 to 31 and 15.5 to 33.5.
    crop = detector.crop(image, [14.5, 20, 24.5, 28])
    assert crop.shape == (16, 16, 3)
    np.testing.assert_array_equal(crop, io.resize_image(image[9:31, 16:34], (16, 16)))


def test_surroundings_outside_the_image_are_the_mean(files, picture):
    detector, image = Detector(*files, **SETTINGS, context_pad=4), io.load_image(picture)
    # 8 x 8 pixels about (4, 4) become 16 x 16 about it, -4 to 12: 4 of 17 are above the image.
    crop = detector.crop(image, np.array([0, 0, 7, 7]))
    mean = np.array(MEAN[::-1], np.float32) / 255
    np.testing.assert_allclose(crop[:4], np.broadcast_to(mean, (4, 16, 3)), rtol=1e-6)
    np.testing.assert_allclose(crop[:, :4], np.broadcast_to(mean, (16, 4, 3)), rtol=1e-6)
    np.testing.assert_array_equal(crop[4:, 4:], io.resize_image(image[:12, :12], (12, 12)))
    blob = detector.transformer.preprocess("data", crop)
    np.testing.assert_allclose(blob[:, :4], 0, atol=1e-4)
    bottom = detector.crop(image, np.array([32, 42, 39, 49]))
    np.testing.assert_allclose(bottom[12:], np.broadcast_to(mean, (4, 16, 3)), rtol=1e-6)
    assert np.all(np.any(bottom[:12, :12] != mean, axis=2))


def test_mean_images_fill_crops_as_they_are(files):
    mean = np.random.default_rng(0).random((3, 16, 16)).astype(np.float32) * 255
    detector = Detector(*files, mean=mean, raw_scale=255, context_pad=4)
    np.testing.assert_allclose(detector.crop_mean, mean.transpose(1, 2, 0) / 255, rtol=1e-6)
    detector.configure_crop(None)
    assert detector.crop(np.ones((9, 9, 3), np.float32), [1, 2, 5, 8]).shape == (4, 6, 3)


def test_csv_files(files, picture, tmp_path):
    (tmp_path / "windows.csv").write_text(
        f"filename,ymin,xmin,ymax,xmax\n{picture},5,10,25.5,20\nother.png,1,2,3,4\n"
        f"{picture},0,0,9,9\n"
    )
    (one, windows), (other, _) = read_windows(tmp_path / "windows.csv")
    assert (one, other) == (str(picture), "other.png")
    np.testing.assert_array_equal(windows, [[5, 10, 25.5, 20], [0, 0, 9, 9]])
    found = Detector(*files).detect_windows([(one, windows)])
    write_detections(tmp_path / "found.csv", found)
    head, *rows = (tmp_path / "found.csv").read_text().splitlines()
    assert head == "filename,ymin,xmin,ymax,xmax,class0,class1,class2,class3"
    assert rows[0].startswith(f"{picture},5,10,25.5,20,")
    scores = [[float(value) for value in row.split(",")[5:]] for row in rows]
    np.testing.assert_allclose(scores, [each["prediction"] for each in found], rtol=1e-6)


def test_no_detections(files, tmp_path):
    found = Detector(*files).detect_windows([])
    write_detections(tmp_path / "none.csv", found)
    assert (tmp_path / "none.csv").read_text() == "filename,ymin,xmin,ymax,xmax\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"windows\.csv:1: no column filename, ymin, xmin, ymax, xmax"),
        ("filename,xmin,ymin,xmax\n", r"windows\.csv:1: no column ymax; expected filename, ymin"),
        ("filename,ymin,xmin,ymax,xmax\na,1,2,3,4\na,1,2,3\n", r"windows\.csv:3: expected a numb"),
        ("filename,ymin,xmin,ymax,xmax\na,1,2,3,x\n", r"windows\.csv:2: expected a number"),
    ],
)
def test_csv_files_with_mistakes(tmp_path, text, message):
    (tmp_path / "windows.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_windows(tmp_path / "windows.csv")


def test_mistakes(files, picture):
    for pad in (8, 20, -1):
        with pytest.raises(UsageError, match=rf"context_pad {pad}: .*'data' is 16 x 16"):
            Detector(*files, context_pad=pad)
    for pad in (None, 4):
        detector = Detector(*files, context_pad=pad)
        with pytest.raises(DataError, match=r"a picture\.png: the window 90, 90, 95, 95 .*40 high"):
            detector.detect_windows([(picture, [[90, 90, 95, 95]])])
    with pytest.raises(DataError, match=r"windows need shape \(n, 4\).*got \(4,\)"):
        detector.detect_windows([(picture, [0, 0, 9, 9])])
    with pytest.raises(FileError, match=r"did you mean 'a picture\.png'"):
        detector.detect_windows([(picture.with_name("a_picture.png"), [[0, 0, 9, 9]])])
    with pytest.raises(UsageError, match="selective_search_ijcv_with_python"):
        detector.detect_selective_search([picture])
