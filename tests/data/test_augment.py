import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocaffe.data.augment import AREA, ASPECT, LEFT, TOP, Augmentation
from protocaffe.data.datum import planar
from protocaffe.data.mean import write_mean
from protocaffe.data.transformer import Transformer
from protocaffe.errors import DataError
from protocaffe.proto.caffe_pb2 import TEST, TRAIN, TransformationParameter
from tests.data.samples import random_images

ALL = {
    "crop_size": 9,
    "mirror": True,
    "mean_value": [100],
    "random_resized_crop": {},
    "rotation": {"max_degrees": 30},
    "color_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "cutout": {"size": 3},
}


def transform(images, phase=TRAIN, seed=1, **options):
    """The batch that images become."""
    transformer = Transformer(TransformationParameter(**options), phase)
    out = np.full((len(images), *transformer.output_shape(images[0].shape)), np.nan, np.float32)
    transformer(images, out, transformer.choices(seed, 0, len(images)))
    return out


def photo(height=24, width=20):
    """A smooth image, (3, height, width), without values near the ends of their range."""
    coarse = np.random.default_rng(0).integers(60, 190, (4, 4, 3), dtype=np.uint8)
    return planar(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR))


def augmentation(**options):
    return Augmentation(TransformationParameter(**options), DataError)


@pytest.mark.parametrize("name", [*ALL, "crop_padding"])
def test_nothing_happens_in_test_phase(name):
    value = 2 if name == "crop_padding" else ALL[name]
    options = {"crop_size": 9, name: value, "mirror": False}
    images = list(random_images((3, 12, 11), 3))
    plain = {key: options[key] for key in ("crop_size", "mean_value") if key in options}
    np.testing.assert_array_equal(
        transform(images, TEST, **options), transform(images, TEST, **plain)
    )


@pytest.mark.parametrize("kind", ["raw", "decoded", "float"])
def test_everything_at_once_fills_the_batch(kind):
    image = photo()
    if kind != "decoded":
        image = np.ascontiguousarray(image, np.float32 if kind == "float" else np.uint8)
    out = transform([image] * 40, **ALL)
    assert out.shape == (40, 3, 9, 9)
    assert np.isfinite(out).all()
    assert len(np.unique(out.reshape(40, -1), axis=0)) == 40


def test_raw_and_decoded_images_become_the_same():
    image = photo()
    np.testing.assert_array_equal(
        transform([image] * 9, **ALL), transform([np.ascontiguousarray(image)] * 9, **ALL)
    )


def test_one_augmentation_does_not_change_the_choices_of_others():
    images = [np.ascontiguousarray(photo())] * 20
    options = {"crop_size": 12, "mirror": True, "crop_padding": 2}
    plain, cut = transform(images, **options), transform(images, **options, cutout={"size": 4})
    assert ((cut == plain) | (cut == 0)).all()
    assert (cut != plain).any()


@pytest.mark.parametrize("size", [32, 80])  # transformed together, and one by one
def test_padding_is_zero_in_the_batch(size, tmp_path):
    image = random_images((1, size, size), 1)[0]
    mean = np.linspace(1, 2, size * size, dtype=np.float32).reshape(image.shape)
    write_mean(tmp_path / "mean", mean)
    options = {"crop_size": size, "crop_padding": 4, "mean_file": str(tmp_path / "mean")}
    out = transform([image] * 50, **options, mirror=True)
    padded = np.pad((image - mean)[0], 4)
    windows = [padded[y : y + size, x : x + size] for y in range(9) for x in range(9)]
    seen = set()
    for each in out[:, 0]:
        (place,) = [
            (number, mirrored)
            for number, window in enumerate(windows)
            for mirrored in (False, True)
            if np.array_equal(each, window[:, ::-1] if mirrored else window)
        ]
        seen.add(place)
    assert len(seen) > 25


def test_padding_lets_a_crop_be_larger_than_the_image():
    image = np.full((1, 4, 4), 7, np.uint8)
    out = transform([image] * 5, crop_size=6, crop_padding=1)
    np.testing.assert_array_equal(
        out, np.broadcast_to(np.pad(image, ((0, 0), (1, 1), (1, 1))), out.shape)
    )
    with pytest.raises(DataError, match="crop_size 6 is larger than the image"):
        transform([image], TEST, crop_size=6, crop_padding=1)


@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    area=st.floats(0.01, 1),
    aspect=st.floats(0.1, 10),
    choices=st.lists(st.floats(0, 1, exclude_max=True), min_size=4, max_size=4),
)
def test_parts_have_the_area_and_the_aspect_that_were_asked_for(
    height, width, area, aspect, choices
):
    crop = {
        "min_area": area / 2,
        "max_area": area,
        "min_aspect": aspect,
        "max_aspect": aspect * 1.5,
    }
    row = np.zeros(16)
    row[[TOP, LEFT, AREA, ASPECT]] = choices
    found = augmentation(crop_size=9, random_resized_crop=crop)
    y, x, part_height, part_width = found._part(height, width, row)
    assert 0 <= y <= y + part_height <= height
    assert 0 <= x <= x + part_width <= width
    assert part_height >= 1
    assert part_width >= 1
    # Sides are rounded to whole pixels.
    least, most = (
        (part_width - 0.5) / (part_height + 0.5),
        (part_width + 0.5) / max(part_height - 0.5, 1e-9),
    )
    assert least <= crop["max_aspect"] * 1.0001 or part_width == 1
    assert most >= crop["min_aspect"] * 0.9999 or part_height == 1
    assert (part_height - 0.5) * (part_width - 0.5) <= area * height * width or 1 in (
        part_height,
        part_width,
    )


def test_parts_are_spread_over_areas():
    found = augmentation(crop_size=9, random_resized_crop={"min_area": 0.1})
    transformer = Transformer(
        TransformationParameter(crop_size=9, random_resized_crop={"min_area": 0.1}), TRAIN
    )
    parts = [found._part(400, 300, row) for row in transformer.choices(0, 0, 4000)]
    shares = np.array([height * width for _, _, height, width in parts]) / 120000
    # 400 expected in each tenth; standard deviation 19
    counts, _ = np.histogram(shares, np.linspace(0.1, 1, 11))
    assert (abs(counts - 400) < 95).all()


def test_a_resized_crop_of_all_is_the_image_resized():
    image = photo()
    crop = {"min_area": 1, "min_aspect": 20 / 24, "max_aspect": 20 / 24}
    out = transform([image], crop_size=30, random_resized_crop=crop)
    expected = cv2.resize(image.transpose(1, 2, 0), (30, 30), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(out[0], expected.transpose(2, 0, 1))


def test_rotation_turns_about_the_centre_and_shows_the_mean_behind():
    image = np.full((1, 21, 21), 200, np.uint8)
    out = transform([image] * 60, mean_value=[50.25], rotation={"max_degrees": 45})
    np.testing.assert_allclose(out[:, 0, 10, 10], 149.75)
    corners = out[:, 0, 0, 0]
    assert (corners < 149).any()
    assert abs(corners).min() < 0.5
    share = transform([image] * 200, rotation={"max_degrees": 45, "probability": 0.25})
    turned = (share[:, 0, 0, 0] != 200).mean()
    assert 0.1 < turned < 0.35


def test_a_quarter_turn_goes_both_ways():
    image = np.zeros((1, 5, 5), np.float32)
    image[0, 0] = [1, 2, 3, 4, 5]
    found = augmentation(rotation={"max_degrees": 90})
    row = np.zeros(16)
    np.testing.assert_allclose(
        found.rotate(image, row, np.zeros(1))[0], np.rot90(image[0], -1), atol=1e-5
    )
    row[:] = 1 - 1e-9
    row[5] = 0
    np.testing.assert_allclose(
        found.rotate(image, row, np.zeros(1))[0], np.rot90(image[0]), atol=1e-5
    )


def jittered(image, row_value, **jitter):
    row = np.full(16, row_value)
    row[7] = 0
    return augmentation(color_jitter=jitter).recolor(image, row).astype(np.float64)


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
@pytest.mark.parametrize("choice", [0, 0.5, 0.9])
def test_colours_follow_their_formulas(kind, choice):
    image = photo().astype(kind)
    factor = 1 + (2 * choice - 1) * 0.3
    gray = 0.114 * image[0] + 0.587 * image[1] + 0.299 * image[2]
    tolerance = {"atol": 1 if kind == np.uint8 else 1e-3}
    np.testing.assert_allclose(jittered(image, choice, brightness=0.3), image * factor, **tolerance)
    expected = gray.mean() + (image - gray.mean()) * factor
    np.testing.assert_allclose(jittered(image, choice, contrast=0.3), expected, **tolerance)
    expected = gray + (image - gray) * factor
    np.testing.assert_allclose(jittered(image, choice, saturation=0.3), expected, **tolerance)


def test_hue_keeps_grays_and_turns_colours():
    gray = np.tile(np.arange(0, 250, 10, dtype=np.float32), (3, 4, 1))
    np.testing.assert_allclose(jittered(gray, 0, hue=0.5), gray, atol=1e-3)
    image = photo().astype(np.float32)
    there = jittered(image, 0, hue=0.2).astype(np.float32)
    assert abs(there - image).max() > 10
    np.testing.assert_allclose(jittered(there, 1, hue=0.2), image, atol=1e-2)
    brightness = np.array([0.114, 0.587, 0.299])
    np.testing.assert_allclose(
        np.tensordot(brightness, there, 1), np.tensordot(brightness, image, 1), atol=1e-2
    )


def test_a_third_of_the_circle_makes_red_blue_or_green():
    red = np.zeros((3, 1, 1), np.float32)
    red[2] = 255
    strongest = {int(np.argmax(jittered(red, choice, hue=1 / 3))) for choice in (0, 1)}
    assert strongest == {0, 1}


def test_8_bit_colours_stay_in_their_range():
    image = np.full((3, 2, 2), 250, np.uint8)
    assert jittered(image, 0.99, brightness=1).max() == 255


def test_gray_images_have_brightness_and_contrast():
    image = photo()[:1]
    out = transform([image] * 9, color_jitter={"brightness": 0.5, "contrast": 0.5})
    assert len(np.unique(out[:, 0, 0, 0])) > 6
    with pytest.raises(DataError, match="color_jitter takes images of 3 channels"):
        transform([image], color_jitter={"hue": 0.1})


def test_probability_of_color_jitter():
    image = photo()
    out = transform([image] * 200, color_jitter={"brightness": 0.5, "probability": 0.5})
    changed = (out != image).any(axis=(1, 2, 3)).mean()
    assert 0.35 < changed < 0.65


@pytest.mark.parametrize("size", [10, 90])
def test_cutout_blanks_a_square(size):
    image = np.full((2, size, size), 9, np.uint8)
    out = transform([image] * 300, mean_value=[1], cutout={"size": 4, "probability": 0.5})
    assert set(np.unique(out)) == {0, 8}
    np.testing.assert_array_equal(out[:, 0], out[:, 1])
    blanks = (out[:, 0] == 0).sum(axis=(1, 2))
    assert blanks.max() == 16
    assert 0.35 < (blanks > 0).mean() < 0.65
    assert (out[:, 0] == 0).any(axis=0).all() or size == 90


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"random_resized_crop": {}}, "random_resized_crop needs a crop_size"),
        ({"crop_padding": 4}, "crop_padding needs a crop_size"),
        ({"crop_size": 3, "crop_padding": 4, "random_resized_crop": {}}, "exclude each other"),
        ({"crop_size": 3, "random_resized_crop": {"min_area": 0}}, "min_area 0 and max_area 1 "),
        ({"crop_size": 3, "random_resized_crop": {"max_area": 2}}, "max_area 2 must be"),
        ({"crop_size": 3, "random_resized_crop": {"min_aspect": 2}}, "min_aspect 2 and max_"),
        ({"crop_size": 3, "random_resized_crop": {}, "mean_file": "m"}, "give mean_value"),
        ({"rotation": {}}, "rotation: max_degrees is 0; give more"),
        ({"rotation": {"max_degrees": 181}}, "180 at most"),
        ({"rotation": {"max_degrees": 5, "probability": 2}}, "rotation: probability is 2"),
        ({"color_jitter": {"hue": 0.6}}, r"hue is 0\.6; legal are 0 to 0\.5"),
        ({"color_jitter": {"contrast": -1}}, "contrast is -1; legal are 0 to 1"),
        ({"color_jitter": {"brightness": float("nan")}}, "brightness is nan"),
        ({"cutout": {}}, "cutout needs a size"),
    ],
)
@pytest.mark.parametrize("phase", [TRAIN, TEST])
def test_settings_that_make_no_sense(options, message, phase):
    with pytest.raises(DataError, match=message):
        Transformer(TransformationParameter(**options), phase)


@pytest.mark.parametrize("name", ["rotation", "random_resized_crop"])
def test_images_of_many_channels_are_not_turned(name):
    options = {"crop_size": 4, "rotation": {"max_degrees": 5}, "random_resized_crop": {}}
    options = {"crop_size": 4, name: options[name]}
    with pytest.raises(DataError, match=f"{name} takes images of up to 4 channels, got 5"):
        transform([np.zeros((5, 8, 8), np.uint8)], **options)
