import hashlib
import re
import shutil

import cv2
import numpy as np
import pytest

from protocaffe.data import reader
from protocaffe.data.convert import ImageOptions, convert_images, image_datum
from protocaffe.data.database import open_database
from protocaffe.data.datum import datum_array
from protocaffe.data.entries import Entry, read_list
from protocaffe.data.reader import ImageError
from protocaffe.errors import DataError
from protocaffe.proto.caffe_pb2 import Datum
from tests.data.samples import GOLDEN, png, random_images, recorded

IMAGES = f"{GOLDEN / 'images'}/"


def records(path, backend="lmdb"):
    with open_database(path, backend) as database:
        return [(key.decode(), Datum.FromString(value)) for key, value in database.records()]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("color_20x24_lmdb", ImageOptions(resize_height=20, resize_width=24)),
        ("gray_16x16_lmdb", ImageOptions(gray=True, resize_height=16, resize_width=16)),
        ("encoded_asis_lmdb", ImageOptions(encoded=True)),
        (
            "encoded_png_18x18_lmdb",
            ImageOptions(encoded=True, encode_type="png", resize_height=18, resize_width=18),
        ),
        ("color_12x14_leveldb", ImageOptions(resize_height=12, resize_width=14)),
    ],
)
@pytest.mark.parametrize("threads", [1, 3])
def test_records_are_those_of_caffe(name, options, threads, tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "CHUNK", 7)
    backend = name.rpartition("_")[2]
    if backend == "leveldb":
        pytest.importorskip("plyvel", reason="LevelDB databases need plyvel")
    entries = read_list(GOLDEN / "list.txt")
    result = convert_images(
        IMAGES, entries, tmp_path / "db", options, backend=backend, threads=threads
    )
    assert (result.written, result.skipped) == (40, [])
    with open_database(tmp_path / "db", backend) as database:
        for (key, value), row in zip(database.records(), recorded(name), strict=True):
            assert key.decode() == row["key"]
            datum = Datum.FromString(value)
            assert datum.label == int(row["label"])
            if "png" in name:  # another zlib packs the same pixels into other bytes
                assert not datum.HasField("channels")
                assert datum.encoded
            else:
                assert hashlib.sha256(value).hexdigest() == row["sha256_record"]


def test_pixels_encoded_again_are_those_of_caffe(tmp_path):
    options = ImageOptions(encode_type="png", resize_height=18, resize_width=18)
    convert_images(IMAGES, read_list(GOLDEN / "list.txt"), tmp_path / "db", options)
    ours = records(tmp_path / "db")
    theirs = records(GOLDEN / "dbs" / "encoded_png_18x18_lmdb")
    for (key, mine), (expected_key, expected) in zip(ours, theirs, strict=True):
        assert key == expected_key
        np.testing.assert_array_equal(datum_array(mine), datum_array(expected))


def resized(image, height, width):
    """OpenCV's bilinear resize of 8-bit images, in whole numbers."""
    if image.shape[:2] == (2 * height, 2 * width):
        quarter = image.astype(int)
        rows = quarter[::2] + quarter[1::2]
        return (rows[:, ::2] + rows[:, 1::2] + 2) >> 2

    def weights(size, new_size):
        ratio = size / new_size
        places = (np.arange(new_size, dtype=np.float32) + np.float32(0.5)) * ratio - 0.5
        places = places.astype(np.float32)
        first = np.floor(places).astype(int)
        return first, (places - first).astype(np.float32)

    first, part = weights(image.shape[1], width)
    last = image.shape[1] - 1
    part[(first < 0) | (first >= last)] = 0
    first = np.clip(first, 0, last)
    right, left = (np.rint(each * np.float32(2048)).astype(int) for each in (part, 1 - part))
    pixels = image.astype(int)
    rows = left * pixels[:, first] + right * pixels[:, np.minimum(first + 1, last)]
    first, part = weights(image.shape[0], height)
    below, above = (
        np.rint(each * np.float32(2048)).astype(int)[:, None] for each in (part, 1 - part)
    )
    last = image.shape[0] - 1
    upper, lower = rows[np.clip(first, 0, last)], rows[np.clip(first + 1, 0, last)]
    return ((above * (upper >> 4) >> 16) + (below * (lower >> 4) >> 16) + 2) >> 2


@pytest.mark.parametrize(
    ("size", "new_size"),
    [((9, 9), (9, 9)), ((20, 30), (10, 15)), ((20, 30), (10, 16)), ((7, 5), (31, 64)),
     ((64, 50), (3, 4)), ((1, 9), (4, 4)), ((8, 1), (3, 3)), ((30, 15), (15, 15))],
)  # fmt: skip
def test_resize_is_that_of_the_opencv_caffe_used(size, new_size):
    image = random_images(size, 1, seed=3)[0]
    options = ImageOptions(gray=True, resize_height=new_size[0], resize_width=new_size[1])
    datum = Datum.FromString(image_datum(png(image), "x.png", 0, options))
    np.testing.assert_array_equal(datum_array(datum)[0], resized(image, *new_size))


def test_fields_of_raw_datums():
    datum = Datum.FromString(image_datum(png(np.zeros((2, 3))), "x.png", 7, ImageOptions()))
    assert (datum.channels, datum.height, datum.width, datum.label) == (3, 2, 3, 7)
    assert datum.HasField("encoded")
    assert not datum.encoded
    assert datum.data == bytes(18)


COLOR = random_images((6, 5, 3), 1)[0]
GRAY = random_images((6, 5), 1)[0]


@pytest.mark.parametrize(
    ("image", "suffix", "options", "as_it_is"),
    [
        (COLOR, "png", {"encoded": True}, True),
        (GRAY, "png", {"encoded": True}, True),  # decoded in colour, so it counts as colour
        (COLOR, "PNG", {"encode_type": "png"}, True),
        (COLOR, "jpeg", {"encode_type": "jpg"}, True),
        (COLOR, "JPEG", {"encoded": True}, True),
        (COLOR, "jpg", {"encode_type": "png"}, False),
        (COLOR, "png", {"encoded": True, "resize_height": 3, "resize_width": 3}, False),
        (COLOR, "png", {"encoded": True, "gray": True}, True),
        (GRAY, "jpg", {"encoded": True, "gray": True}, True),
        (GRAY, "jpg", {"encode_type": "png", "gray": True}, False),
    ],
)
def test_which_encoded_datums_hold_the_file_itself(image, suffix, options, as_it_is):
    content = cv2.imencode(f".{suffix.lower()}", image)[1].tobytes()
    datum = Datum.FromString(image_datum(content, f"a.b/x.{suffix}", 1, ImageOptions(**options)))
    assert {field.name for field, _ in datum.ListFields()} == {"data", "label", "encoded"}
    assert datum.encoded
    assert (datum.data == content) == as_it_is
    if not as_it_is:
        channels = 1 if options.get("gray") else 3
        assert datum_array(datum).shape[0] == channels


@pytest.mark.parametrize("content", [b"nothing", b""])
def test_bytes_that_are_no_image(content):
    with pytest.raises(ImageError, match="is no image"):
        image_datum(content, "x.png", 0, ImageOptions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize_height": 3}, "resize_height 3 and resize_width 0 make no size"),
        ({"resize_height": -1, "resize_width": -1}, "make no size"),
        ({"encode_type": "doc"}, "cannot write images of type 'doc'"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(DataError, match=message):
        ImageOptions(**options)


def test_a_name_that_does_not_say_how_to_encode():
    with pytest.raises(DataError, match="'x' has no ending"):
        image_datum(png(COLOR), "x", 0, ImageOptions(encoded=True))


def test_class_names_lie_in_the_database(tmp_path):
    entry = Entry("gray.png", 1)
    convert_images(IMAGES, [entry], tmp_path / "db", class_names=["cat", "my dog"])
    assert (tmp_path / "db" / "labels.txt").read_text() == "cat\nmy dog\n"


def test_no_entries_at_all(tmp_path):
    with pytest.raises(DataError, match="no images"):
        convert_images(IMAGES, [], tmp_path / "db")


@pytest.mark.parametrize(
    ("second", "options", "size"),
    [
        (COLOR[1:], {}, "3 x 5 x 5, those before it 3 x 6 x 5"),
        (COLOR.transpose(1, 0, 2), {}, "3 x 5 x 6, those before it 3 x 6 x 5"),
        (COLOR[1:], {"encoded": True}, "3 x 5 x 5, those before it 3 x 6 x 5"),
        (GRAY, {"encoded": True}, "1 x 6 x 5, those before it 3 x 6 x 5"),
    ],
    ids=["smaller", "turned", "encoded", "gray among colored"],
)
def test_sizes_are_checked_on_request(tmp_path, second, options, size):
    (tmp_path / "1.png").write_bytes(png(COLOR))
    (tmp_path / "2.png").write_bytes(png(second))
    entries = [Entry("1.png", 0, "list.txt:1"), Entry("2.png", 0, "list.txt:2")]
    words = f"{tmp_path}/", entries, tmp_path / "db", ImageOptions(**options)
    message = f"list.txt:2: image '{tmp_path}/2.png' is {size}"
    with pytest.raises(DataError, match=re.escape(message)):
        convert_images(*words, check_size=True)
    assert not (tmp_path / "db").exists()
    convert_images(*words)


def test_sizes_that_are_equal_pass_the_check(tmp_path):
    (tmp_path / "1.png").write_bytes(png(COLOR))
    (tmp_path / "2.png").write_bytes(png(GRAY))
    entries = [Entry("1.png", 0), Entry("2.png", 0)]
    assert convert_images(f"{tmp_path}/", entries, tmp_path / "db", check_size=True).written == 2


def test_progress_counts_files(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "CHUNK", 15)
    done = []
    entries = read_list(GOLDEN / "list.txt")
    convert_images(IMAGES, entries, tmp_path / "db", progress=done.append)
    assert done == [15, 30, 40]


def test_logging_every_thousand(tmp_path, caplog):
    caplog.set_level("INFO", "protocaffe")
    (tmp_path / "1.png").write_bytes(png(GRAY[:1, :1]))
    convert_images(f"{tmp_path}/", [Entry("1.png", 0)] * 2001, tmp_path / "db")
    assert [each.message for each in caplog.records if "Processed" in each.message] == [
        f"Processed {count} files." for count in (1000, 2000, 2001)
    ]


def test_an_existing_database_is_refused_before_any_work(tmp_path):
    (tmp_path / "db").mkdir()
    started = []
    with pytest.raises(DataError, match="exists already"):
        convert_images(IMAGES, [Entry("im00.jpg", 0)], tmp_path / "db", progress=started.append)
    assert not started


def test_the_list_of_a_copied_folder_still_fits(tmp_path):
    """The root is put in front as a string, so it may also be the start of file names."""
    shutil.copy(f"{IMAGES}gray.png", tmp_path / "my-gray.png")
    result = convert_images(f"{tmp_path}/my-", [Entry("gray.png", 1)], tmp_path / "db")
    assert result.written == 1
