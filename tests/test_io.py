import subprocess
import sys

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protocaffe import io
from protocaffe.errors import DataError, FileError, ProtocaffeError, UsageError
from protocaffe.proto import caffe_pb2

SHAPE = (1, 3, 4, 5)


@pytest.fixture
def rgb(tmp_path):
    """The pixels of a colour image, and its path."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 7, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "rgb.png"), pixels[:, :, ::-1])
    return pixels, tmp_path / "rgb.png"


@pytest.fixture
def transformer():
    return io.Transformer({"data": SHAPE})


# -- images ------------------------------------------------------------------------------


def test_load_image_gives_rgb_between_0_and_1(rgb):
    pixels, path = rgb
    image = io.load_image(path)
    assert (image.dtype, image.flags.c_contiguous) == (np.float32, True)
    np.testing.assert_array_equal(image, (pixels / 255).astype(np.float32))


def test_load_image_in_gray(rgb):
    pixels, path = rgb
    gray = io.load_image(path, color=False)
    assert gray.dtype == np.float32
    np.testing.assert_allclose(gray[:, :, 0], pixels / 255 @ [0.2125, 0.7154, 0.0721], rtol=1e-6)


def test_gray_files_become_three_equal_channels_or_one(tmp_path):
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    cv2.imwrite(str(tmp_path / "gray.png"), pixels)
    color, gray = (io.load_image(tmp_path / "gray.png", color) for color in (True, False))
    assert (color.shape, gray.shape) == ((3, 4, 3), (3, 4, 1))
    for channel in (*np.moveaxis(color, 2, 0), gray[:, :, 0]):
        np.testing.assert_array_equal(channel, (pixels / 255).astype(np.float32))


def test_alpha_is_dropped_and_16_bits_are_scaled(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 2**16, (3, 4, 4), np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), pixels)
    np.testing.assert_allclose(
        io.load_image(tmp_path / "deep.png"), pixels[:, :, 2::-1] / 65535, rtol=1e-6
    )


def test_load_image_refuses_what_is_no_image(tmp_path):
    (tmp_path / "cat.jpg").write_text("no cat")
    with pytest.raises(DataError, match=r"cat\.jpg: is no image that OpenCV can read"):
        io.load_image(tmp_path / "cat.jpg")
    with pytest.raises(FileError, match=r"no such file; did you mean 'cat\.jpg'\?"):
        io.load_image(tmp_path / "cta.jpg")


def test_resize_image_as_scikit_image_did():
    image = np.array([[10, 40, 20], [0, 30, 70]], np.float32)[:, :, None]
    enlarged = [
        [6.0, 16.5, 30.0, 21.0, 12.0],
        [6.0, 19.5, 37.5, 34.5, 26.0],
        [2.0, 14.5, 32.5, 47.5, 46.0],
        [0.0, 9.0, 22.5, 40.5, 42.0],
    ]
    for size, expected in (((4, 5), enlarged), ((1, 2), [[12.5, 42.5]])):
        resized = io.resize_image(image, size)
        assert resized.dtype == np.float32
        np.testing.assert_allclose(resized[:, :, 0], expected, atol=1e-5)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("size", [(5, 13), (20, 3), (1, 1), (6, 7)])
def test_resize_image_of_many_channels_as_scipy_does(order, size):
    from scipy.ndimage import zoom

    image = np.random.default_rng(0).random((6, 7, 4)).astype(np.float32)
    expected = zoom(image, (size[0] / 6, size[1] / 7, 1), order=order)
    np.testing.assert_allclose(io.resize_image(image, size, order), expected, atol=1e-6)


@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 2, 3]))
def test_resizing_keeps_constant_images(height, width, channels):
    image = np.full((3, 4, channels), 0.7, np.float32)
    resized = io.resize_image(image, (height, width))
    np.testing.assert_array_equal(resized, np.full((height, width, channels), 0.7, np.float32))


@pytest.mark.parametrize(
    ("image", "size", "order", "message"),
    [
        (np.zeros((3, 4)), (2, 2), 1, r"got shape \(3, 4\)"),
        (np.zeros((0, 4, 3)), (2, 2), 1, r"got shape \(0, 4, 3\)"),
        (np.zeros((3, 4, 3)), (2, 0), 1, r"a new height and width, got \(2, 0\)"),
        (np.zeros((3, 4, 3)), (2, 2, 3), 1, r"a new height and width, got \(2, 2, 3\)"),
        (np.zeros((3, 4, 3)), (2, 2), 3, "interp_order 3 is not supported"),
    ],
)
def test_resize_image_refuses(image, size, order, message):
    with pytest.raises(UsageError, match=message):
        io.resize_image(image, size, order)


def test_oversample():
    images = np.random.default_rng(0).random((2, 6, 9, 3)).astype(np.float32)
    crops = io.oversample(images, (4, 5))
    assert (crops.shape, crops.dtype) == ((20, 4, 5, 3), np.float32)
    for number, image in enumerate(images):
        five = [image[:4, :5], image[:4, 4:], image[2:, :5], image[2:, 4:], image[1:5, 2:7]]
        mine = crops[10 * number : 10 * number + 10]
        np.testing.assert_array_equal(mine[:5], five)
        np.testing.assert_array_equal(mine[5:], np.array(five)[:, :, ::-1])


def test_oversample_refuses():
    with pytest.raises(UsageError, match=r"crops of 7 x 5 do not fit into images of 6 x 9"):
        io.oversample(np.zeros((1, 6, 9, 3)), (7, 5))
    with pytest.raises(UsageError, match=r"of one shape .*\(6, 8, 3\), \(6, 9, 3\)"):
        io.oversample([np.zeros((6, 9, 3)), np.zeros((6, 8, 3))], (4, 5))
    with pytest.raises(UsageError, match=r"got \[\]"):
        io.oversample([], (4, 5))


# -- the transformer ---------------------------------------------------------------------


def test_preprocess_in_the_order_of_pycaffe(transformer):
    image = np.random.default_rng(0).random((4, 5, 3)).astype(np.float32)
    before = image.copy()
    mean = np.array([104, 117, 123], np.float32)
    transformer.set_transpose("data", (2, 0, 1))
    transformer.set_channel_swap("data", (2, 0, 1))
    transformer.set_raw_scale("data", 255)
    transformer.set_mean("data", mean)
    transformer.set_input_scale("data", 0.017)
    blob = transformer.preprocess("data", image)
    expected = (image.transpose(2, 0, 1)[[2, 0, 1]] * 255 - mean[:, None, None]) * 0.017
    assert (blob.shape, blob.dtype) == ((3, 4, 5), np.float32)
    np.testing.assert_allclose(blob, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_allclose(transformer.deprocess("data", blob[None]), image, atol=1e-6)


def test_preprocess_resizes_to_the_input(transformer):
    image = np.random.default_rng(0).random((8, 9, 3))
    np.testing.assert_array_equal(
        transformer.preprocess("data", image), io.resize_image(image.astype(np.float32), (4, 5))
    )


def test_without_settings_values_pass_and_are_copied(transformer):
    image = np.random.default_rng(0).random((4, 5, 3)).astype(np.float32)
    blob = transformer.preprocess("data", image)
    np.testing.assert_array_equal(blob, image)
    assert not np.shares_memory(blob, image)
    assert io.Transformer({"x": (2, 7)}).preprocess("x", np.ones(7)).shape == (7,)


def test_gray_inputs_keep_their_channel_on_the_way_back():
    transformer = io.Transformer({"data": (1, 1, 4, 5)})
    transformer.set_transpose("data", (2, 0, 1))
    image = np.random.default_rng(0).random((4, 5, 1)).astype(np.float32)
    blob = transformer.preprocess("data", image)
    np.testing.assert_array_equal(transformer.deprocess("data", blob[None]), image)


def test_mean_images_are_resized(transformer):
    mean = np.random.default_rng(0).random((3, 8, 10)).astype(np.float32) * 255
    transformer.set_mean("data", mean)
    np.testing.assert_allclose(
        transformer.mean["data"],
        io.resize_image(mean.transpose(1, 2, 0), (4, 5)).transpose(2, 0, 1),
    )
    transformer.set_mean("data", mean[0, :4, :5])
    np.testing.assert_array_equal(transformer.mean["data"], mean[:1, :4, :5])


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("set_mean", ("dta", [1, 2, 3]), r"'dta' is none .*did you mean 'data'\? \(it has: data\)"),
        ("preprocess", ("label", np.zeros((4, 5, 3))), "'label' is none of the net's inputs"),
        ("deprocess", ("label", np.zeros((3, 4, 5))), "'label' is none of the net's inputs"),
        ("set_raw_scale", ("dat", 255), "did you mean 'data'"),
        ("set_input_scale", ("dat", 1), "did you mean 'data'"),
        ("set_transpose", ("data", (2, 1)), r"its 3 axes .*got \(2, 1\)"),
        ("set_transpose", ("data", (2, 1, 3)), r"got \(2, 1, 3\)"),
        ("set_channel_swap", ("data", (1, 0)), r"3 numbers from 0 to 2; got \(1, 0\)"),
        ("set_channel_swap", ("data", (1, 2, 3)), r"got \(1, 2, 3\)"),
        ("set_mean", ("data", [1, 2]), r"3 values or an image of 3 channels; got shape \(2,\)"),
        ("set_mean", ("data", [1]), r"got shape \(1,\)"),
        ("set_mean", ("data", np.zeros((4, 4, 5))), r"got shape \(4, 4, 5\)"),
        ("set_mean", ("data", np.zeros((1, 3, 4, 5))), r"got shape \(1, 3, 4, 5\)"),
    ],
)
def test_wrong_settings_are_refused(transformer, method, arguments, message):
    with pytest.raises(UsageError, match=message):
        getattr(transformer, method)(*arguments)


def test_images_that_do_not_fit_are_refused(transformer):
    transformer.set_mean("data", [1, 2, 3])
    with pytest.raises(UsageError, match=r"takes 3 channel\(s\).*got shape \(4, 5, 3\)"):
        transformer.preprocess("data", np.zeros((4, 5, 3)))
    transformer.set_transpose("data", (2, 0, 1))
    with pytest.raises(UsageError, match=r"takes 3 channel\(s\).*got shape \(1, 4, 5\)"):
        transformer.preprocess("data", np.zeros((4, 5, 1)))
    with pytest.raises(UsageError, match=r"has shape \(4, 5\); expected 3 axes"):
        transformer.preprocess("data", np.zeros((4, 5)))
    with pytest.raises(UsageError, match=r"got shape \(2, 3, 4, 5\)"):
        transformer.deprocess("data", np.zeros((2, 3, 4, 5)))


def test_means_are_for_images():
    with pytest.raises(UsageError, match=r"input 'x' has shape \(2, 7\), so it takes no images"):
        io.Transformer({"x": (2, 7)}).set_mean("x", np.zeros(7))


# -- messages ----------------------------------------------------------------------------

ARRAYS = hnp.arrays(
    np.float32, hnp.array_shapes(max_dims=5, max_side=4), elements=st.floats(-1e6, 1e6, width=32)
)


@given(ARRAYS)
def test_blobs_there_and_back(values):
    blob = io.array_to_blobproto(values, diff=values + 1)
    np.testing.assert_array_equal(io.blobproto_to_array(blob), values, strict=True)
    np.testing.assert_array_equal(io.blobproto_to_array(blob, return_diff=True), values + 1)


@given(st.lists(ARRAYS, max_size=3))
def test_lists_of_blobs_there_and_back(values):
    text = io.arraylist_to_blobprotovector_str(values)
    for one, other in zip(io.blobprotovector_str_to_arraylist(text), values, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


def test_doubles_become_floats():
    blob = io.array_to_blobproto(np.ones((2, 3)))
    assert (len(blob.data), len(blob.double_data), list(blob.shape.dim)) == (6, 0, [2, 3])


def test_old_blobs_have_four_axes():
    blob = caffe_pb2.BlobProto(num=1, channels=1, height=2, width=3, data=range(6))
    assert io.blobproto_to_array(blob).shape == (1, 1, 2, 3)
    blob.width = 4
    with pytest.raises(FileError, match=r"\(1, 1, 2, 4\) should hold 8 data values, but holds 6"):
        io.blobproto_to_array(blob)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.int64])
def test_datums_there_and_back(dtype):
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)
    datum = io.array_to_datum(values, 7)
    assert (datum.label, datum.channels, datum.height, datum.width) == (7, 2, 3, 4)
    assert (len(datum.data), len(datum.float_data)) == ((24, 0) if dtype == np.uint8 else (0, 24))
    back = io.datum_to_array(caffe_pb2.Datum.FromString(datum.SerializeToString()))
    np.testing.assert_array_equal(back, values)
    assert not io.array_to_datum(values).HasField("label")


def test_modules_and_messages_are_reached_from_the_package():
    code = (
        "import protocaffe as caffe; caffe.proto.caffe_pb2.Datum; caffe.io.Transformer; caffe.dnn"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_messages_that_make_no_sense_are_refused():
    with pytest.raises(UsageError, match=r"\(channels, height, width\); got \(3, 4\)"):
        io.array_to_datum(np.zeros((3, 4)))
    with pytest.raises(ProtocaffeError, match="needs 24 values; this one has 5"):
        io.datum_to_array(caffe_pb2.Datum(channels=2, height=3, width=4, data=b"12345"))
    with pytest.raises(ProtocaffeError, match="BlobProtoVector"):
        io.blobprotovector_str_to_arraylist(b"nonsense")
