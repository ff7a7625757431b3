import numpy as np
import pytest

from protocaffe.data.database import open_database
from protocaffe.data.mean import channel_means, image_mean, write_mean
from protocaffe.errors import DataError, FileError
from protocaffe.proto.caffe_pb2 import Datum
from tests.data.samples import GOLDEN, random_images, raw_datum, write_database


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("color_20x24_lmdb", [134.447, 124.779, 124.14]),
        ("encoded_png_18x18_lmdb", [134.449, 124.783, 124.167]),
        ("gray_16x16_lmdb", [125.71]),
    ],
)
def test_means_are_those_of_caffe(name, channels, tmp_path):
    with open_database(GOLDEN / "dbs" / name) as database:
        mean = image_mean(database)
    write_mean(tmp_path / "mean", mean)
    expected = (GOLDEN / f"{name}.mean.binaryproto").read_bytes()
    assert (tmp_path / "mean").read_bytes() == expected
    assert [float(f"{value:.6g}") for value in channel_means(mean)] == channels


def mean_of(path, values, **options):
    with open_database(write_database(path, values)) as database:
        return image_mean(database, **options)


def test_more_records_than_are_added_up_at_once(tmp_path):
    images = random_images((2, 3, 4), 600)
    done = []
    values = [raw_datum(image) for image in images]
    mean = mean_of(tmp_path / "db", values, progress=done.append)
    np.testing.assert_array_equal(mean, images.mean(axis=0).astype(np.float32))
    assert done == [250, 500, 600]


def test_float_data(tmp_path):
    values = [
        Datum(channels=1, height=1, width=2, float_data=numbers).SerializeToString()
        for numbers in ([0.5, -1], [1, 2])
    ]
    assert mean_of(tmp_path / "db", values).tolist() == [[[0.75, 0.5]]]


def test_images_of_different_sizes(tmp_path):
    values = [raw_datum(np.zeros((1, 2, width), np.uint8)) for width in (2, 3)]
    with pytest.raises(
        DataError, match=r"record '001' .*shape \(1, 2, 3\), the first .*\(1, 2, 2\)"
    ):
        mean_of(tmp_path / "db", values)


def test_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(FileError, match="none"):
        write_mean(tmp_path / "none" / "mean", np.zeros((1, 1, 1), np.float32))
