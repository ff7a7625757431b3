import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocaffe.errors import LayerError
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import parse_text
from tests.layers.gradient_check import Runner, check_gradients, spaced

quick = settings(max_examples=25, deadline=None)
extents = st.integers(1, 6)


def interp(settings_text, x, dtype=np.float64):
    return Runner(f'type: "Interp" interp_param {{ {settings_text} }}', x, dtype=dtype)


def bilinear(image, height, width):
    """Corner-aligned resizing of one plane, pixel by pixel."""
    rows, columns = image.shape
    out = np.empty((height, width))
    for i, j in itertools.product(range(height), range(width)):
        y = i * (rows - 1) / (height - 1) if height > 1 else 0
        x = j * (columns - 1) / (width - 1) if width > 1 else 0
        top, left = int(y + 1e-9), int(x + 1e-9)
        down, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
        a, b = y - top, x - left
        upper = (1 - b) * image[top, left] + b * image[top, right]
        lower = (1 - b) * image[down, left] + b * image[down, right]
        out[i, j] = (1 - a) * upper + a * lower
    return out


@quick
@given(extents, extents, extents, extents, st.integers(0, 999))
def test_interp_is_bilinear_with_corners_on_corners(height, width, new_height, new_width, seed):
    x = np.random.default_rng(seed).normal(size=(2, 2, height, width))
    (y,) = interp(f"height: {new_height} width: {new_width}", x).forward()
    for n, c in itertools.product(range(2), range(2)):
        expected = bilinear(x[n, c], new_height, new_width)
        np.testing.assert_allclose(y[n, c], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("zoom_factor: 3", (13, 22)),
        ("shrink_factor: 3", (2, 3)),
        ("shrink_factor: 2 zoom_factor: 3", (7, 10)),
        ("height: 4 width: 3", (4, 3)),
        ("height: 4 width: 3 zoom_factor: 2", (9, 15)),
        ("height: 4 width: 3 zoom_factor: 2 shrink_factor: 2", (4, 3)),
        ("zoom_factor: 2 pad_beg: -1 pad_end: -2", (3, 9)),
    ],
)
def test_interp_size(text, shape):
    assert interp(text, np.ones((1, 1, 5, 8))).top[0].shape == (1, 1, *shape)


def test_interp_cuts_a_border_off_first():
    x = np.random.default_rng(0).normal(size=(1, 1, 7, 8))
    (y,) = interp("height: 6 width: 9 pad_beg: -1 pad_end: -2", x).forward()
    expected = bilinear(x[0, 0, 1:-2, 1:-2], 6, 9)
    np.testing.assert_allclose(y[0, 0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "give height and width"),
        ("height: 3", "give height and width"),
        ("height: 0 width: 3", "at least 1, got 0 and 3"),
        ("zoom_factor: 0", "factors must be at least 1"),
        ("zoom_factor: 2 pad_beg: 1", "0 or negative; got 1 and 0"),
        ("zoom_factor: 2 pad_end: -5", "leave nothing of 5 x 8"),
    ],
)
def test_interp_refuses(text, message):
    with pytest.raises(LayerError, match=message):
        interp(text, np.ones((1, 1, 5, 8)))


def test_needs_images():
    with pytest.raises(LayerError, match="4 axes"):
        interp("zoom_factor: 2", np.ones((5, 8)))


@quick
@given(st.integers(1, 4), extents, extents)
def test_upsample_repeats_pixels(scale, height, width):
    x = np.random.default_rng(0).normal(size=(2, 3, height, width))
    (y,) = Runner(f'type: "Upsample" upsample_param {{ scale: {scale} }}', x).forward()
    assert y.shape == (2, 3, height * scale, width * scale)
    for i, j in itertools.product(range(height * scale), range(width * scale)):
        np.testing.assert_array_equal(y[:, :, i, j], x[:, :, i // scale, j // scale])


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("", (4, 6)),
        ("scale: 3", (6, 9)),
        ("scale_h: 2 scale_w: 4", (4, 12)),
        ("scale: 2 pad_out_h: true", (3, 6)),
        ("pad_out_w: true", (4, 5)),
        ("scale: 2 upsample_h: 5 upsample_w: 7", (5, 7)),
    ],
)
def test_unpooling_puts_numbers_where_they_came_from(text, shape):
    rng = np.random.default_rng(0)
    x = spaced(rng, (2, 3, 2, 3))
    area = shape[0] * shape[1]
    places = np.array([rng.permutation(area)[:6] for _ in range(6)]).reshape(x.shape)
    runner = unpool(text, x, places)
    (y,) = runner.forward()
    assert y.shape == (2, 3, *shape)
    expected = np.zeros((2, 3, area))
    for n, c, i, j in np.ndindex(x.shape):
        expected[n, c, places[n, c, i, j]] = x[n, c, i, j]
    np.testing.assert_array_equal(y.reshape(expected.shape), expected)
    check_gradients(runner, rng, bottoms=[0])
    assert not runner.backward(np.ones(y.shape))[1].any()


def unpool(text, x, places):
    return Runner(
        f'type: "Upsample" bottom: "x" bottom: "p" upsample_param {{ {text} }}', x, places
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scale: 1", "at least 2"),
        ("scale: 3 pad_out_h: true", "need scale 2, got 3"),
        ("scale: 2 scale_h: 2 scale_w: 2", "not both"),
        ("scale_h: 2", "at least 2, got 2 and 0"),
    ],
)
def test_unpooling_refuses(text, message):
    with pytest.raises(LayerError, match=message):
        unpool(text, np.ones((1, 1, 2, 2)), np.zeros((1, 1, 2, 2)))


def test_unpooling_refuses_places_outside_and_other_shapes():
    with pytest.raises(LayerError, match="place 16 of sample 0 is out of range"):
        unpool("", np.ones((1, 1, 2, 2)), np.full((1, 1, 2, 2), 16)).forward()
    with pytest.raises(LayerError, match="one place for every number"):
        unpool("", np.ones((1, 1, 2, 2)), np.zeros((1, 1, 2, 3)))


def test_pooling_and_unpooling_train_together():
    """The places come from a layer that learns, and what learns gets a gradient through both."""
    net = Net(
        parse_text(
            """
            force_backward: true
            layer { name: "x" type: "Input" top: "x" input_param { shape { dim: [1, 2, 6, 5] } } }
            layer { name: "p" type: "Pooling" bottom: "x" top: "p" top: "mask"
                pooling_param { kernel_size: 2 stride: 2 } }
            layer { name: "u" type: "Upsample" bottom: "p" bottom: "mask" top: "u"
                upsample_param { upsample_h: 6 upsample_w: 5 } }
            """,
            caffe_pb2.NetParameter(),
        )
    )
    x = spaced(np.random.default_rng(0), (1, 2, 6, 5)).astype(np.float32)
    net.blobs["x"].data[...] = x
    net.forward()
    u = net.blobs["u"].data
    kept = u != 0
    assert kept.sum() == 2 * 3 * 3
    np.testing.assert_array_equal(u[kept], x[kept])
    net.blobs["u"].diff[...] = 1
    net.backward()
    np.testing.assert_array_equal(net.blobs["x"].diff, kept)


@pytest.mark.parametrize(
    "runner",
    [
        interp("height: 7 width: 3", np.random.default_rng(1).normal(size=(2, 2, 4, 5))),
        interp("zoom_factor: 2 pad_beg: -1", np.random.default_rng(1).normal(size=(1, 2, 4, 5))),
        Runner(
            'type: "Upsample" upsample_param { scale: 3 }',
            np.random.default_rng(1).normal(size=(2, 2, 2, 3)),
        ),
    ],
)
def test_gradient(runner):
    check_gradients(runner, np.random.default_rng(0))
