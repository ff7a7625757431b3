import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocaffe.data.mean import write_mean
from protocaffe.data.transformer import Transformer
from protocaffe.errors import DataError, NetError
from protocaffe.proto.caffe_pb2 import TEST, TRAIN, TransformationParameter
from tests.data.samples import random_images


def pixel_by_pixel(image, mean, scale, place, size, mirrored):
    """One image as the definition says, in single precision."""
    channels = len(image)
    out = np.empty((channels, *size), np.float32)
    for c in range(channels):
        for y in range(size[0]):
            for x in range(size[1]):
                from_y, from_x = y + place[0], x + place[1]
                value = np.float32(image[c, from_y, from_x])
                to_x = size[1] - 1 - x if mirrored else x
                out[c, y, to_x] = (value - mean[c, from_y, from_x]) * np.float32(scale)
    return out


@st.composite
def settings(draw):
    channels = draw(st.integers(1, 3))
    height, width = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    means = draw(st.sampled_from(["none", "one", "each", "image"]))
    return {
        "shape": (channels, height, width),
        "crop": draw(st.integers(0, min(height, width))),
        "mirror": draw(st.booleans()),
        "phase": draw(st.sampled_from([TRAIN, TEST])),
        "scale": draw(st.sampled_from([1, 0.00390625, 0.3])),
        "means": means,
        "dtype": draw(st.sampled_from([np.uint8, np.float32])),
        "seed": draw(st.integers(0, 2**64 - 1)),
    }


@given(case=settings())
def test_every_pixel(case, tmp_path_factory):
    shape, crop = case["shape"], case["crop"]
    rng = np.random.default_rng(case["seed"])
    param = TransformationParameter(scale=case["scale"], crop_size=crop, mirror=case["mirror"])
    mean = np.zeros(shape, np.float32)
    if case["means"] == "image":
        mean = rng.uniform(0, 255, shape).astype(np.float32)
        param.mean_file = str(tmp_path_factory.mktemp("mean") / "mean.binaryproto")
        write_mean(param.mean_file, mean)
    elif case["means"] != "none":
        param.mean_value.extend([104.5, 117, 123.25][: shape[0] if case["means"] == "each" else 1])
        mean += np.float32(list(param.mean_value)).reshape(-1, 1, 1)
    images = list(random_images(shape, 4, case["seed"]).astype(case["dtype"]))
    transformer = Transformer(param, case["phase"])
    out_shape = transformer.output_shape(shape)
    out = np.full((4, *out_shape), np.nan, np.float32)
    choices = transformer.choices(case["seed"], 10, 4)
    transformer(images, out, choices)
    for i, image in enumerate(images):
        places, mirrored = [(0, 0)], [False]
        room = (shape[1] - crop, shape[2] - crop) if crop else (0, 0)
        if crop and case["phase"] == TEST:
            places = [(room[0] // 2, room[1] // 2)]
        elif crop:
            places = [(y, x) for y in range(room[0] + 1) for x in range(room[1] + 1)]
        if case["mirror"]:
            mirrored = [False, True]
        possible = [
            pixel_by_pixel(image, mean, case["scale"], place, out_shape[1:], side)
            for place in places
            for side in mirrored
        ]
        assert any(np.array_equal(out[i], each) for each in possible)


def random_transformer(**options):
    return Transformer(TransformationParameter(crop_size=2, mirror=True, **options), TRAIN)


@given(
    seed=st.integers(0, 2**64 - 1),
    position=st.integers(0, 2**60),
    counts=st.lists(st.integers(1, 20), min_size=1, max_size=5),
)
def test_choices_depend_on_the_position_alone(seed, position, counts):
    transformer = random_transformer()
    parts = []
    for done, count in zip(np.cumsum([0, *counts]), counts, strict=False):
        parts.append(transformer.choices(seed, position + int(done), count))
    whole = transformer.choices(seed, position, sum(counts))
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert ((whole >= 0) & (whole < 1)).all()


def test_choices_of_seeds_differ():
    transformer = random_transformer()
    assert (transformer.choices(1, 0, 9) != transformer.choices(2, 0, 9)).all()


def test_nothing_random_needs_no_choices():
    param = TransformationParameter(crop_size=2, scale=3)
    assert Transformer(param, TEST).choices(0, 0, 5) is None


def test_random_crops_are_spread_evenly():
    """Each of the 3 x 3 places, mirrored and not, has its share of 9,000 records."""
    image = np.arange(16, dtype=np.uint8).reshape(1, 4, 4)
    transformer = random_transformer()
    out = np.empty((9000, 1, 2, 2), np.float32)
    transformer([image] * 9000, out, transformer.choices(7, 0, 9000))
    _, counts = np.unique(out.reshape(9000, 4), axis=0, return_counts=True)
    assert len(counts) == 18
    # 500 expected, standard deviation 22
    assert (abs(counts - 500) < 110).all()


def test_mirror_works_in_test_phase():
    image = np.arange(3, dtype=np.uint8).reshape(1, 1, 3)
    transformer = Transformer(TransformationParameter(mirror=True), TEST)
    out = np.empty((50, 1, 1, 3), np.float32)
    transformer([image] * 50, out, transformer.choices(0, 0, 50))
    assert {tuple(row) for row in out.reshape(50, 3)} == {(0, 1, 2), (2, 1, 0)}


def test_images_of_several_sizes_are_cropped_to_one():
    small, large = np.zeros((1, 2, 2), np.uint8), np.ones((1, 4, 6), np.uint8)
    transformer = Transformer(TransformationParameter(crop_size=2), TEST)
    out = np.empty((2, 1, 2, 2), np.float32)
    transformer([small, large], out, None)
    assert out[0].max() == 0
    assert out[1].min() == 1


def test_forced_channels():
    assert Transformer(TransformationParameter(), TEST).color is None
    assert Transformer(TransformationParameter(force_color=True), TEST).color is True
    assert Transformer(TransformationParameter(force_gray=True), TEST).color is False


def with_mean(path, shape):
    write_mean(path, np.zeros(shape, np.float32))
    return {"mean_file": str(path)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"force_color": True, "force_gray": True}, "force_color and force_gray contradict"),
        ({"mean_file": "m", "mean_value": [1]}, "mean_file and mean_value exclude"),
        ({"mean_file": "nothing.binaryproto"}, r"'nothing\.binaryproto' does not exist"),
        ({"mean_file": __file__}, "mean_file: "),
    ],
)
def test_settings_that_make_no_sense(options, message):
    with pytest.raises(DataError, match=message):
        Transformer(TransformationParameter(**options), TEST)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": 5}, "crop_size 5 is larger than the image, which is 4 high and 6 wide"),
        ({"mean_value": [1, 2]}, "2 mean_values are given for an image with 3 channel"),
    ],
)
def test_images_that_do_not_fit(options, message):
    transformer = Transformer(TransformationParameter(**options), TEST)
    with pytest.raises(DataError, match=message):
        transformer.output_shape((3, 4, 6))


def test_a_mean_of_another_size(tmp_path):
    param = TransformationParameter(crop_size=2, **with_mean(tmp_path / "m", (3, 4, 5)))
    with pytest.raises(DataError, match=r"shape \(3, 4, 5\), the image \(3, 4, 6\)"):
        Transformer(param, TEST).output_shape((3, 4, 6))


def test_the_owner_makes_the_error():
    with pytest.raises(NetError, match="exclude"):
        Transformer(TransformationParameter(mean_file="m", mean_value=[1]), TEST, NetError)
