import itertools

import numpy as np
import pytest

from protocaffe.data.batches import Batch, DatumFiller, database_rounds, read_batches
from protocaffe.data.database import open_database
from protocaffe.data.mean import write_mean
from protocaffe.data.prefetch import Prefetcher
from protocaffe.data.transformer import Transformer
from protocaffe.errors import DataError
from protocaffe.proto.caffe_pb2 import TEST, TRAIN, Datum, TransformationParameter
from tests.data.samples import png, random_images, raw_datum, write_database

RANDOM = TransformationParameter(crop_size=3, mirror=True, mean_value=[100], scale=0.5)


@pytest.fixture
def seven(tmp_path):
    """A database of seven images of 2 x 4 x 5, encoded by turns, with the labels 0 to 6."""
    values = [
        raw_datum(image, label)
        if label % 2
        else Datum(data=png(image.transpose(1, 2, 0)), encoded=True, label=label)
        for label, image in enumerate(random_images((3, 4, 5), 7))
    ]
    values = [each if isinstance(each, bytes) else each.SerializeToString() for each in values]
    with open_database(write_database(tmp_path / "seven", values)) as database:
        yield database


@pytest.mark.parametrize("position", [0, 3, 7, 16])
def test_batches_wrap_in_the_middle(seven, position):
    batches = itertools.islice(read_batches(database_rounds(seven, position), 3, position), 5)
    keys = []
    for number, batch in enumerate(batches):
        assert batch.position == position + 3 * number
        keys += [int(key) for key, _ in batch.records]
        places = range(batch.position, batch.position + 3)
        assert batch.wraps == sum(place % 7 == 0 and place > position for place in places)
    assert keys == [(position + i) % 7 for i in range(15)]


def test_a_batch_larger_than_the_database(seven):
    batch = next(read_batches(database_rounds(seven), 20))
    assert [int(key) for key, _ in batch.records] == [i % 7 for i in range(20)]
    assert batch.wraps == 2


AUGMENTED = TransformationParameter(
    crop_size=3,
    mirror=True,
    random_resized_crop={},
    rotation={"max_degrees": 20, "probability": 0.5},
    color_jitter={"brightness": 0.4, "hue": 0.1},
    cutout={"size": 1},
)
PADDED = TransformationParameter(crop_size=4, crop_padding=2, mirror=True, mean_value=[100])


def finished(batch):
    """The images of a batch as a net gets them."""
    out = np.empty(batch.data.shape, np.float32)
    batch.copy_to(out)
    return out


def run(database, batch_size, count, *, threads=1, position=0, param=RANDOM, shuffle=None):
    """The data and labels of some batches, in one array each."""
    filler = DatumFiller(database.path, Transformer(param, TRAIN), seed=5)
    raw = read_batches(database_rounds(database, position, shuffle), batch_size, position)
    prefetcher = Prefetcher(raw, filler, [Batch(), Batch(), Batch()], threads)
    data, labels = [], []
    for _ in range(count):
        batch = prefetcher.next()
        data.append(finished(batch))
        labels.append(batch.labels.copy())
    prefetcher.close()
    return np.concatenate(data), np.concatenate(labels)


@pytest.mark.parametrize("shuffle", [None, 3])
@pytest.mark.parametrize("param", [RANDOM, AUGMENTED, PADDED])
def test_threads_change_nothing(seven, param, shuffle):
    data, labels = run(seven, 4, 25, threads=1, param=param, shuffle=shuffle)
    again, labels_again = run(seven, 4, 25, threads=4, param=param, shuffle=shuffle)
    np.testing.assert_array_equal(data, again)
    np.testing.assert_array_equal(labels, labels_again)


@pytest.mark.parametrize("shuffle", [None, 3])
@pytest.mark.parametrize("param", [RANDOM, AUGMENTED])
def test_a_later_start_goes_on_as_if_there_had_been_no_break(seven, param, shuffle):
    data, labels = run(seven, 4, 25, param=param, shuffle=shuffle)
    rest, rest_labels = run(seven, 4, 15, position=40, param=param, shuffle=shuffle)
    np.testing.assert_array_equal(data[40:], rest)
    np.testing.assert_array_equal(labels[40:], rest_labels)


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 90, 90)])
@pytest.mark.parametrize("crop", [0, 3])
@pytest.mark.parametrize("mean", ["file", "value", ""])
def test_batches_of_bytes_become_what_floats_are(tmp_path, shape, crop, mean):
    images = random_images(shape, 5)
    source = write_database(tmp_path / "db", [raw_datum(image) for image in images])
    param = TransformationParameter(crop_size=crop, scale=0.3)
    if mean == "file":
        param.mean_file = str(tmp_path / "mean")
        write_mean(tmp_path / "mean", random_images(shape, 1)[0].astype(np.float32))
    elif mean == "value":
        param.mean_value.extend([1.5, 2.5, 3.5])
    transformer, batch = Transformer(param, TEST), Batch()
    with open_database(source) as database:
        raw = next(read_batches(database_rounds(database), 5))
        DatumFiller("db", transformer, 0)(raw, batch)
    assert batch.data.dtype == np.uint8
    out = np.empty(batch.data.shape, np.float32)
    transformer(images, out, None)
    np.testing.assert_array_equal(finished(batch), out)


@pytest.mark.parametrize("shape", [(1, 4, 5), (1, 130, 130)])
def test_bytes_and_floats_in_one_batch(tmp_path, shape):
    image = random_images(shape, 1)[0]
    floats = Datum(channels=1, height=shape[1], width=shape[2], float_data=image.ravel() / 2)
    values = [raw_datum(image), floats.SerializeToString(), raw_datum(image)]
    source = write_database(tmp_path / "db", values)
    with open_database(source) as database:
        data, _ = run(database, 3, 1, param=TransformationParameter(mean_value=[1], scale=2))
    expected = [image - 1.0, image / 2 - 1, image - 1.0]
    np.testing.assert_array_equal(data, 2 * np.float32(expected))


def test_an_image_that_cannot_be_augmented_is_named(tmp_path):
    values = [raw_datum(np.zeros((5, 60, 60), np.uint8))]
    with pytest.raises(DataError, match="record '000' of 'some_lmdb': rotation takes images of up"):
        fill_first(tmp_path / "db", values, 1, TransformationParameter(rotation={"max_degrees": 5}))


def test_batch_size_does_not_change_the_choices(seven):
    np.testing.assert_array_equal(run(seven, 4, 15)[0], run(seven, 6, 10)[0])


def test_shuffling_gives_every_record_once_a_round_in_ever_new_orders(seven):
    rounds = run(seven, 7, 30, shuffle=3)[1].reshape(30, 7)
    np.testing.assert_array_equal(np.sort(rounds), np.tile(np.arange(7), (30, 1)))
    assert len(np.unique(rounds, axis=0)) > 25
    assert (rounds != run(seven, 7, 30, shuffle=4)[1].reshape(30, 7)).any()
    np.testing.assert_array_equal(rounds.ravel(), run(seven, 6, 35, shuffle=3)[1])


def test_records_differ_from_pass_to_pass(seven):
    data, _ = run(seven, 7, 10)
    passes = data.reshape(10, 7, *data.shape[1:])
    assert len(np.unique(passes[:, 0].reshape(10, -1), axis=0)) > 1


def test_memory_is_used_again(seven):
    filler = DatumFiller(seven.path, Transformer(RANDOM, TRAIN), 0)
    raw = read_batches(database_rounds(seven), 4)
    batch = Batch()
    filler(next(raw), batch)
    data, labels = batch.data.ctypes.data, batch.labels
    filler(next(raw), batch)
    assert batch.data.ctypes.data == data
    assert batch.labels is labels


def test_memory_of_a_kind_is_kept():
    memory = np.zeros(12, np.uint8)
    images = random_images((1, 2, 3), 2)
    batch = Batch(lambda size: memory[:size])
    batch.reshape(2, 1, 2, 3, dtype=np.uint8)
    batch.take(images)
    np.testing.assert_array_equal(memory, images.ravel())


def test_a_batch_takes_other_shapes():
    batch = Batch()
    for shape in [(2, 3, 4, 5), (1, 1, 2, 2), (3, 3, 5, 5)]:
        batch.reshape(*shape)
        assert batch.data.shape == shape
        assert batch.labels.shape == shape[:1]
        assert batch.data.flags.c_contiguous


def fill_first(path, values, batch_size=2, param=None):
    with open_database(write_database(path, values)) as database:
        transformer = Transformer(param or TransformationParameter(), TRAIN)
        filler = DatumFiller("some_lmdb", transformer, 0)
        filler(next(read_batches(database_rounds(database), batch_size)), Batch())


def test_images_of_different_sizes_in_a_batch(tmp_path):
    small, large = np.zeros((1, 2, 2), np.uint8), np.zeros((1, 2, 3), np.uint8)
    values = [raw_datum(small), raw_datum(large)]
    with pytest.raises(DataError, match=r"record '001' of 'some_lmdb': has shape \(1, 2, 3\)"):
        fill_first(tmp_path / "a", values)
    fill_first(tmp_path / "b", values, batch_size=1)
    fill_first(tmp_path / "c", values, param=TransformationParameter(crop_size=2))


def test_gray_and_coloured_images_in_a_batch(tmp_path):
    images = random_images((2, 2, 3), 1)[0], random_images((2, 2), 1)[0]
    values = [Datum(data=png(each), encoded=True).SerializeToString() for each in images]
    message = r"record '001' .* shape \(1, 2, 2\), .* \(3, 2, 2\); force_color: true"
    with pytest.raises(DataError, match=message):
        fill_first(tmp_path / "a", values)
    fill_first(tmp_path / "b", values, param=TransformationParameter(force_color=True))


def test_a_bad_record_is_named(tmp_path):
    good = raw_datum(np.zeros((1, 2, 2), np.uint8))
    short = Datum(channels=1, height=2, width=2, data=b"123", label=0).SerializeToString()
    with pytest.raises(DataError, match="record '001' of 'some_lmdb': a datum of 1 channel"):
        fill_first(tmp_path / "d", [good, short])
    bad = Datum(data=b"no image", encoded=True).SerializeToString()
    with pytest.raises(DataError, match="record '001' of 'some_lmdb': its 8 bytes"):
        fill_first(tmp_path / "a", [good, bad])
    crop = TransformationParameter(crop_size=3)
    with pytest.raises(DataError, match="record '000' of 'some_lmdb': crop_size 3 is larger"):
        fill_first(tmp_path / "b", [good], param=crop)


def test_forcing_colour_on_raw_datums_is_said_once(tmp_path, caplog):
    values = [raw_datum(np.zeros((1, 2, 2), np.uint8))] * 3
    fill_first(tmp_path / "a", values, batch_size=3, param=TransformationParameter(force_gray=True))
    assert [record.levelname for record in caplog.records if "force_gray" in record.message] == [
        "ERROR"
    ]
