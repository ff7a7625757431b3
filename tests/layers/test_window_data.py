import cv2
import numpy as np
import pytest

from protocaffe.errors import LayerError
from protocaffe.proto.binary import array_to_blob
from protocaffe.proto.caffe_pb2 import TEST, TRAIN, BlobProto, LayerParameter
from tests.layers.test_data import batches, build

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
HEADER = ["# 0", "a photo.png", "3", "20", "30"]
TWO = ["2", "3 0.9 4 5 13 14", "1 0.1 10 2 19 11"]
FOREGROUND, BACKGROUND = IMAGE[5:15, 4:14], IMAGE[2:12, 10:20]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("a photo.png", IMAGE)
    write(tmp_path, HEADER + TWO)
    return tmp_path


def write(folder, lines):
    (folder / "windows.txt").write_text("\n".join(lines) + "\n")


def window_layer(*, phase=TEST, seed=0, transform=(), prefetch=4, **options):
    options = {"source": "windows.txt", "batch_size": 4, "fg_fraction": 0.5, **options}
    param = LayerParameter(
        name="feed",
        type="WindowData",
        top=["data", "label"],
        window_data_param=options,
        transform_param={"crop_size": 10, **dict(transform)},
        data_param={"prefetch": prefetch},
    )
    return build(param, phase, seed=seed)


def first(**options):
    """The data, as (batch, height, width, channels), and the labels of the first batch."""
    layer, tops = window_layer(**options)
    ((data, labels),) = batches(layer, tops, 1)
    layer.close()
    return data.transpose(0, 2, 3, 1), labels.tolist()


def test_background_comes_first_and_corners_belong_to_a_window():
    data, labels = first()
    assert labels == [0, 0, 3, 3]
    for found, expected in zip(data, [BACKGROUND] * 2 + [FOREGROUND] * 2, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("fraction", "expected"), [(0, 0), (0.25, 1), (0.49, 1), (1, 4)])
def test_share_of_the_foreground_is_rounded_down(fraction, expected):
    assert first(fg_fraction=fraction)[1] == [0] * (4 - expected) + [3] * expected


def test_thresholds_drop_what_is_between(folder):
    write(folder, [*HEADER, "3", "3 0.7 4 5 13 14", "2 0.69 0 0 9 9", "1 0.29 10 2 19 11"])
    for seed in range(5):
        data, labels = first(fg_threshold=0.7, bg_threshold=0.3, seed=seed)
        assert labels == [0, 0, 3, 3]
        np.testing.assert_array_equal(data[0], BACKGROUND)


def test_mean_then_scale_of_the_layer_s_own_parameters():
    data, _ = first(transform={"mean_value": [1, 2, 3], "scale": 7}, scale=0.5)
    np.testing.assert_array_equal(data[3], (FOREGROUND - np.float32([1, 2, 3])) * 0.5)


def test_mean_file_is_read_in_its_middle(folder):
    mean = np.arange(3 * 14 * 14, dtype=np.float32).reshape(1, 3, 14, 14)
    (folder / "mean").write_bytes(array_to_blob(mean, BlobProto()).SerializeToString())
    data, _ = first(transform={"mean_file": "mean"})
    expected = FOREGROUND - mean[0, :, 2:12, 2:12].transpose(1, 2, 0)
    np.testing.assert_array_equal(data[3], expected)


def test_mirrored_windows_are_those_of_the_image_mirrored():
    layer, tops = window_layer(transform={"mirror": True})
    found = np.concatenate([data[2:] for data, _ in batches(layer, tops, 20)])
    layer.close()
    plain = FOREGROUND.transpose(2, 0, 1)
    mirrored = sum(np.array_equal(each, plain[..., ::-1]) for each in found)
    assert 5 < mirrored < 35
    assert mirrored + sum(np.array_equal(each, plain) for each in found) == len(found)


def test_context_shows_the_surroundings_and_zeros_outside(folder):
    write(folder, [*HEADER, "1", "1 0.9 0 5 9 14"])
    data, _ = first(fg_fraction=1, context_pad=3, transform={"crop_size": 16, "mean_value": [0.5]})
    assert not data[0][:, :3].any()
    # The window of 10 x 10 becomes one of 17 x 17, as both its ends are rounded: 14 are inside.
    assert data[0][:, 3:].all()
    assert data[0][:, 4:].std() > 1


def test_mirrored_context_has_its_zeros_on_the_other_side(folder):
    write(folder, [*HEADER, "1", "1 0.9 0 5 9 14"])
    layer, tops = window_layer(
        fg_fraction=1, context_pad=3, transform={"crop_size": 16, "mirror": True}
    )
    found = np.concatenate([data for data, _ in batches(layer, tops, 5)])
    layer.close()
    for each in found:
        left, right = not each[..., :3].any(), not each[..., -2:].any()
        assert left != right
    assert {bool(each[..., :3].any()) for each in found} == {True, False}


def test_square_keeps_the_shape_of_things(folder):
    write(folder, [*HEADER, "1", "1 0.9 10 5 13 14"])
    data, _ = first(fg_fraction=1, crop_mode="square", transform={"crop_size": 11})
    np.testing.assert_array_equal(data[0], IMAGE[5:16, 7:18])


def test_cached_images_are_read_once(folder):
    layer, tops = window_layer(cache_images=True, prefetch=1)
    batches(layer, tops, 1)
    (folder / "a photo.png").unlink()
    batches(layer, tops, 8)
    layer.close()


def test_windows_in_other_colours_and_with_blanks():
    transform = {"color_jitter": {"brightness": 0.9}, "cutout": {"size": 3}}
    plain = first(transform=transform)[0]  # in TEST nothing of this happens
    data = first(phase=TRAIN, transform=transform)[0]
    blank = (data == 0).all(axis=3)
    assert 0 < blank[3].sum() < 30
    ratios = data[3][~blank[3]].sum() / plain[3][~blank[3]].sum()
    assert abs(ratios - 1) > 0.01
    np.testing.assert_array_equal(plain[3], FOREGROUND)


@pytest.mark.parametrize("position", [0, 4, 20])
def test_seek_goes_on_as_if_there_had_been_no_break(folder, position):
    windows = [f"{i + 1} {i % 2} {i} 5 {i + 9} 14" for i in range(20)]
    write(folder, [*HEADER, "20", *windows])
    layer, tops = window_layer(transform={"mirror": True})
    whole = batches(layer, tops, 8)
    assert len({int(label) for _, labels in whole for label in labels}) > 5
    layer.seek(position)
    rest = batches(layer, tops, 8 - position // 4)
    layer.close()
    for (data, labels), (data_again, labels_again) in zip(
        whole[position // 4 :], rest, strict=True
    ):
        np.testing.assert_array_equal(data, data_again)
        np.testing.assert_array_equal(labels, labels_again)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size of at least 1"),
        ({"source": ""}, "needs a source"),
        ({"source": "none.txt"}, r"windows file 'none\.txt': No such file"),
        ({"transform": {"crop_size": 0}}, "transform_param needs a crop_size"),
        ({"context_pad": 5}, "context_pad 5 on both sides leaves nothing of crop_size 10"),
        ({"crop_mode": "wrap"}, "crop_mode 'wrap' is unknown; give warp or square"),
        ({"fg_fraction": 1.5}, r"fg_fraction is 1\.5; legal are 0 to 1"),
        ({"fg_threshold": 0.95, "bg_threshold": 0.1}, r"'windows\.txt' has no foreground windows"),
        ({"bg_threshold": 0.05}, r"'windows\.txt' has no background windows, but .* needs 2"),
        ({"transform": {"mean_value": [1, 2]}}, "2 mean values are given"),
        ({"transform": {"rotation": {"max_degrees": 9}}}, "takes no rotation; .*knows color_jit"),
    ],
)
def test_mistakes_name_the_layer(options, message):
    with pytest.raises(LayerError, match=message) as caught:
        window_layer(**options)
    assert str(caught.value).startswith("net.prototxt:7: layer 'feed' (WindowData): ")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "is empty"),
        (["0", *HEADER[1:], *TWO], "1: expected '# index', got '0'"),
        (["# 0", "x", "1", "20", "30", *TWO], "3: expected 3 channels .*, got '1'"),
        (["# 0", "x", "3", "20", "-30", *TWO], "5: expected the image's width, got '-30'"),
        ([*HEADER, *TWO[:2]], "8: expected 'label overlap x1 y1 x2 y2', got the end of the file"),
        ([*HEADER, *TWO, "# 1"], "10: expected the image's path, got the end of the file"),
        ([*HEADER, "1", "3 0.9 4 5 13"], "7: expected 'label overlap .*, got '3 0.9 4 5 13'"),
        ([*HEADER, "1", "3 high 4 5 13 14"], "7: expected 'label overlap"),
        ([*HEADER, "1", "3 e-. 4 5 13 14"], "7: expected 'label overlap"),
        ([*HEADER, "1", "3 0.9 4 5 3 14"], r"7: the window from \(4, 5\) to \(3, 14\) ends before"),
        ([*HEADER, "1", "0 0.9 4 5 13 14"], "7: a foreground window needs a label of at least 1"),
    ],
)
def test_mistakes_in_the_file_name_the_line(folder, lines, message):
    write(folder, lines)
    with pytest.raises(LayerError, match=rf"windows\.txt'? ?:?{message}"):
        window_layer()


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (["3 0.9 4 5 30 14"], {}, r"\(30, 14\) leaves the image, which is 20 high and 30 wide"),
        (["3 0.9 60 5 70 14"], {"context_pad": 1}, "shows nothing of the image"),
        (["3 0.9 4 5 13 14"], {"root_folder": "x/"}, "cannot be read: No such file"),
    ],
)
def test_bad_windows_and_images_are_named(folder, lines, options, message):
    write(folder, [*HEADER, "1", *lines])
    layer, tops = window_layer(fg_fraction=1, **options)
    with pytest.raises(LayerError, match=rf"windows\.txt:7: image '.*a photo\.png': .*{message}"):
        layer.forward([], tops)
    layer.close()


def test_a_file_that_is_no_image(folder):
    (folder / "a photo.png").write_bytes(b"no image")
    layer, tops = window_layer()
    with pytest.raises(LayerError, match=r"windows\.txt:\d: .*is no image that OpenCV can read"):
        layer.forward([], tops)
    layer.close()
