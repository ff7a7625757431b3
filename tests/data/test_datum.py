import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocaffe.data.datum import (
    datum_array,
    decode_image,
    interleaved,
    is_planar_view,
    parse_datum,
    planar,
    read_alike,
    read_record,
)
from protocaffe.errors import DataError
from protocaffe.proto.caffe_pb2 import Datum
from tests.data.samples import png, random_images


def test_pixels():
    datum = Datum(channels=2, height=1, width=3, data=bytes([0, 1, 2, 127, 128, 255]))
    array = datum_array(datum)
    assert array.dtype == np.uint8
    assert array.tolist() == [[[0, 1, 2]], [[127, 128, 255]]]


def test_float_data_counts_where_there_are_no_bytes():
    datum = Datum(channels=1, height=2, width=1, float_data=[0.1, -3])
    array = datum_array(datum)
    assert array.dtype == np.float32
    assert array.tolist() == [[[np.float32(0.1)], [-3]]]
    datum.data = b"ab"
    assert datum_array(datum).ravel().tolist() == [97, 98]


@pytest.mark.parametrize(
    ("channels", "color", "expected"),
    [(1, None, 1), (3, None, 3), (4, None, 4), (1, True, 3), (4, True, 3), (3, False, 1)],
)
def test_encoded_images_get_the_channels_asked_for(channels, color, expected):
    image = random_images((4, 5, channels), 1)[0].squeeze()
    array = datum_array(Datum(data=png(image), encoded=True), color)
    assert array.shape == (expected, 4, 5)
    if channels == expected:
        np.testing.assert_array_equal(array, planar(image))


def test_color_pixels_are_blue_green_red():
    blue = np.zeros((2, 2, 3), np.uint8)
    blue[..., 0] = 200
    assert datum_array(Datum(data=png(blue), encoded=True))[:, 0, 0].tolist() == [200, 0, 0]


@pytest.mark.parametrize(
    ("datum", "message"),
    [
        (Datum(channels=3, height=2, width=2, data=b"123"), "needs 12 values; this one has 3"),
        (Datum(data=b"123"), "0 channel"),
        (Datum(channels=-1, height=-1, width=1, data=b"1"), "needs 1 values"),
        (Datum(channels=1, height=1, width=1), "needs 1 values; this one has 0"),
        (Datum(data=b"123", encoded=True), "3 bytes of encoded data are no image"),
        (Datum(encoded=True), "0 bytes of encoded data are no image"),
        (
            Datum(data=png(np.full((2, 2), 300, np.uint16)), encoded=True),
            "uint16 pixels.*8 bits.*force_gray",
        ),
    ],
)
def test_datums_that_cannot_be_used(datum, message):
    with pytest.raises(DataError, match=message):
        datum_array(datum)


def test_bytes_that_are_no_datum():
    with pytest.raises(DataError, match="not a Datum"):
        parse_datum(b"\xff\xff")


def test_a_bad_record_is_named():
    with pytest.raises(DataError, match=r"record '7_\\xff' of 'some_lmdb': not a Datum"):
        read_record((b"7_\xff", b"\xff\xff"), "some_lmdb")


def test_images_cut_short_are_no_crash():
    content = png(random_images((30, 30, 3), 1)[0])
    assert decode_image(content[:30], None) is None
    jpg = cv2.imencode(".jpg", random_images((30, 30, 3), 1)[0])[1].tobytes()
    assert decode_image(jpg[:20], True) is None


FIELDS = {
    "channels": st.sampled_from([1, 1, 1, 2]),
    "height": st.just(2),
    "width": st.sampled_from([1, 1, 1, 3]),
    "data": st.binary(min_size=2, max_size=2),
    "label": st.sampled_from([0, 5, 127, 128, -1]),
    "encoded": st.sampled_from([False, False, True]),
    "float_data": st.sampled_from([[], [], [1.5]]),
}


@given(
    plain=st.lists(
        st.builds(
            Datum,
            channels=st.just(1),
            height=st.just(2),
            width=st.just(1),
            data=st.binary(min_size=2, max_size=2),
            label=st.integers(0, 127),
            encoded=st.just(False),
        ),
        max_size=3,
    ),
    others=st.lists(
        st.fixed_dictionaries({}, optional=FIELDS).map(lambda f: Datum(**f)), max_size=2
    ),
)
def test_datums_read_together_are_those_read_one_by_one(plain, others):
    datums = plain + others or [Datum()]
    found = read_alike([datum.SerializeToString() for datum in datums])
    if found is None:
        assert others or not plain
        return
    images, labels = found
    assert labels.tolist() == [datum.label for datum in datums]
    for image, datum in zip(images, datums, strict=True):
        np.testing.assert_array_equal(image, datum_array(datum))


@pytest.mark.parametrize("encoded", [{}, {"encoded": False}])
def test_plain_datums_are_read_together(encoded):
    images = random_images((3, 4, 5), 6)
    shape = {"channels": 3, "height": 4, "width": 5}
    datums = [
        Datum(**shape, data=image.tobytes(), label=label, **encoded)
        for label, image in enumerate(images)
    ]
    found, labels = read_alike([datum.SerializeToString() for datum in datums])
    np.testing.assert_array_equal(found, images)
    assert labels.tolist() == list(range(6))


def test_no_datum_is_not_read_together():
    assert read_alike([b"\xff\xff"]) is None


def test_pixels_in_the_other_order():
    image = random_images((4, 5, 3), 1)[0]
    view = planar(image)
    assert is_planar_view(view)
    assert np.shares_memory(interleaved(view[:, 1:3, 2:]), image)
    raw = np.ascontiguousarray(view)
    assert not is_planar_view(raw)
    np.testing.assert_array_equal(interleaved(raw), image)
    assert not is_planar_view(np.zeros((700, 1, 1)))
