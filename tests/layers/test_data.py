import json
import threading

import numpy as np
import pytest

from protocaffe.blob import Blob
from protocaffe.errors import LayerError
from protocaffe.layers.base import layer_class
from protocaffe.proto.caffe_pb2 import TEST, TRAIN, DataParameter, Datum, LayerParameter, Phase
from protocaffe.proto.text import read_net
from tests.data.samples import (
    DATABASES,
    GOLDEN,
    copy_leveldb,
    random_images,
    raw_datum,
    write_database,
)

CASES = sorted(
    path.name
    for path in (GOLDEN / "layers").iterdir()
    if not path.name.startswith(("hdf5", "memory"))
)


def build(param, phase=TEST, *, seed=0):
    """The layer, set up, and its tops."""
    rng = np.random.default_rng(seed)
    layer = layer_class(param.type)(param, phase=phase, rng=rng, where="net.prototxt:7")
    tops = [Blob() for _ in param.top]
    layer.check_counts(0, len(tops))
    layer.setup([], tops)
    layer.reshape([], tops)
    return layer, tops


def data_layer(source, phase=TEST, *, seed=0, transform=None, **data_param):
    """A layer with batches of four from an LMDB, unless told otherwise."""
    data_param = {"batch_size": 4, "backend": DataParameter.LMDB, **data_param}
    param = LayerParameter(
        name="feed",
        type="Data",
        top=["data", "label"],
        data_param={"source": str(source), **data_param},
        transform_param=transform,
    )
    return build(param, phase, seed=seed)


def batches(layer, tops, count):
    """Run forward and return copies of every top of every batch."""
    found = []
    for _ in range(count):
        layer.forward([], tops)
        found.append([top.data.copy() for top in tops])
    return found


@pytest.mark.parametrize("case", CASES)
def test_batches_are_those_of_caffe(case, tmp_path, monkeypatch):
    monkeypatch.chdir(GOLDEN / "layers" / case)
    meta = json.loads((GOLDEN / "layers" / case / "meta.json").read_text())
    expected = dict(np.load(GOLDEN / "layers" / case / "batches.npz"))
    (param,) = read_net("net.prototxt")[0].layer
    if "leveldb" in case:
        pytest.importorskip("plyvel", reason="LevelDB databases need plyvel")
        param.data_param.source = str(copy_leveldb("color_12x14_leveldb", tmp_path))
    layer, tops = build(param, Phase.Value(meta["phase"]))
    for number, values in enumerate(batches(layer, tops, meta["batches"])):
        for name, value in zip(param.top, values, strict=True):
            recorded = expected[f"batch{number}/{name}"]
            assert value.shape == recorded.shape
            if f"batch*/{name}" not in meta["random"]:
                np.testing.assert_allclose(value, recorded, **meta["tolerance"])
    layer.close()


def test_random_crops_are_windows_of_the_image(monkeypatch):
    folder = GOLDEN / "layers" / "train_crop_mirror"
    monkeypatch.chdir(folder)
    (param,) = read_net("net.prototxt")[0].layer
    layer, tops = build(param, TRAIN)
    plain, plain_tops = data_layer(DATABASES / "color_20x24_lmdb", batch_size=8)
    pairs = zip(batches(layer, tops, 6), batches(plain, plain_tops, 6), strict=True)
    for (crops, _), (images, _) in pairs:
        for crop, image in zip(crops, images - 100, strict=True):
            windows = [image[:, y : y + 16, x : x + 16] for y in range(5) for x in range(9)]
            assert any(
                np.array_equal(crop, window) or np.array_equal(crop, window[..., ::-1])
                for window in windows
            )
    layer.close()
    plain.close()


COLOR = DATABASES / "color_20x24_lmdb"
RANDOM = {"crop_size": 9, "mirror": True}


def test_what_is_said(caplog):
    caplog.set_level("INFO", "protocaffe")
    layer, tops = data_layer(COLOR)
    batches(layer, tops, 21)
    layer.close()
    assert [record.message for record in caplog.records] == [
        f"Opened lmdb {COLOR}",
        "output data size: 4,3,20,24",
        "Restarting data prefetching from start.",
        "Restarting data prefetching from start.",
    ]


def test_shapes_are_known_before_the_first_batch():
    layer, tops = data_layer(COLOR, transform={"crop_size": 9})
    assert [top.shape for top in tops] == [(4, 3, 9, 9), (4,)]
    layer.close()


def test_a_seed_repeats_the_random_choices():
    runs = []
    for seed in (1, 1, 2):
        layer, tops = data_layer(COLOR, TRAIN, seed=seed, transform=RANDOM)
        runs.append(np.concatenate([data for data, _ in batches(layer, tops, 6)]))
        layer.close()
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any()


@pytest.mark.parametrize("position", [0, 8, 40, 44])
def test_seek_goes_on_as_if_there_had_been_no_break(position):
    layer, tops = data_layer(COLOR, TRAIN, transform=RANDOM)
    whole = batches(layer, tops, 14)
    assert layer.position == 56
    layer.seek(position)
    assert layer.position == position
    rest = batches(layer, tops, 14 - position // 4)
    assert layer.position == 56
    layer.close()
    for before, after in zip(whole[position // 4 :], rest, strict=True):
        for one, other in zip(before, after, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("backend", [DataParameter.LMDB, DataParameter.LEVELDB])
def test_a_saved_state_resumes_a_shuffled_layer_to_the_last_bit(tmp_path, backend):
    name = "lmdb" if backend == DataParameter.LMDB else "leveldb"
    if name == "leveldb":
        pytest.importorskip("plyvel", reason="LevelDB databases need plyvel")
    values = [raw_datum(image, label) for label, image in enumerate(random_images((3, 9, 9), 10))]
    source = write_database(tmp_path / "db", values, name)
    options = {"backend": backend, "shuffle": True, "transform": {"crop_size": 7, "mirror": True}}
    layer, tops = data_layer(source, TRAIN, **options)
    batches(layer, tops, 7)
    state = json.loads(json.dumps(layer.get_state()))
    expected = batches(layer, tops, 8)
    layer.close()
    other, tops = data_layer(source, TRAIN, seed=5, **options)
    batches(other, tops, 1)
    other.set_state(state)
    for before, after in zip(expected, batches(other, tops, 8), strict=True):
        for one, again in zip(before, after, strict=True):
            np.testing.assert_array_equal(one, again)
    labels = np.concatenate([batch[1] for batch in expected])[2:32]  # rounds 3 to 5
    other.close()
    np.testing.assert_array_equal(np.sort(labels.reshape(3, 10)), np.tile(np.arange(10), (3, 1)))
    assert (labels[:10] != labels[10:20]).any()


def test_two_layers_may_read_one_database():
    first, tops = data_layer(COLOR)
    second, other_tops = data_layer(COLOR)
    np.testing.assert_array_equal(
        batches(first, tops, 1)[0][0], batches(second, other_tops, 1)[0][0]
    )
    first.close()
    np.testing.assert_array_equal(batches(second, other_tops, 1)[0][1], [0, 9, 4, 4])
    second.close()


def test_close_ends_the_threads():
    layer, tops = data_layer(COLOR)
    before = threading.active_count()
    layer.forward([], tops)
    assert threading.active_count() > before
    layer.close()
    assert threading.active_count() == before


def test_transformation_fields_of_data_param_have_no_effect():
    old = {"scale": 2, "crop_size": 3, "mirror": True, "mean_file": "nothing"}
    layer, tops = data_layer(COLOR, TRAIN, **old)
    plain, plain_tops = data_layer(COLOR)
    np.testing.assert_array_equal(
        batches(layer, tops, 1)[0][0], batches(plain, plain_tops, 1)[0][0]
    )
    layer.close()
    plain.close()


def test_batches_of_one_take_the_shape_of_their_image(tmp_path):
    images = [random_images((1, 2 + number, 3), 1)[0] for number in range(3)]
    source = write_database(tmp_path / "db", [raw_datum(image) for image in images])
    layer, tops = data_layer(source, batch_size=1)
    for image, (data, _) in zip(images, batches(layer, tops, 3), strict=True):
        np.testing.assert_array_equal(data[0], image)
    layer.close()


SMALL, LARGE = (raw_datum(np.zeros((1, 2, width), np.uint8)) for width in (2, 3))


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([SMALL, LARGE], {}, r"record '001' of '.*db': has shape \(1, 2, 3\), but the first"),
        ([SMALL, b"\xff\xff"], {}, "record '001' of '.*db': not a Datum"),
        ([LARGE], {"transform": {"crop_size": 3}}, "record '000' .*crop_size 3 is larger"),
        ([LARGE], {"transform": {"mean_value": [1, 2]}}, "2 mean_values"),
        ([LARGE], {"transform": {"mean_file": "no"}}, "mean_file 'no' does not exist"),
        ([LARGE], {"batch_size": 0}, "batch_size of at least 1"),
        ([LARGE], {"transform": {"cutout": {}}}, "cutout needs a size"),
        ([LARGE], {"backend": DataParameter.LEVELDB}, "backend: LMDB"),
    ],
)
def test_mistakes_name_the_layer(tmp_path, values, options, message):
    source = write_database(tmp_path / "db", values)
    with pytest.raises(LayerError, match=message) as caught:
        batches(*data_layer(source, **options), 1)
    assert str(caught.value).startswith("net.prototxt:7: layer 'feed' (Data): ")


@pytest.mark.parametrize(
    ("source", "message"),
    [("", "needs a source"), ("none_lmdb", "database 'none_lmdb' does not exist")],
)
def test_databases_that_are_not_there(source, message):
    with pytest.raises(LayerError, match=message):
        data_layer(source)


def test_the_default_backend_is_leveldb():
    options = {"source": str(COLOR), "batch_size": 1}
    param = LayerParameter(name="feed", type="Data", top=["data"], data_param=options)
    with pytest.raises(LayerError, match=r"is an lmdb database.*`backend: LMDB` in data_param"):
        build(param)


def test_an_undecodable_image_does_not_stop_the_batches_before_it(tmp_path):
    good = raw_datum(np.zeros((3, 2, 2), np.uint8))
    bad = Datum(data=b"bad", encoded=True).SerializeToString()
    source = write_database(tmp_path / "db", [good] * 8 + [bad])
    layer, tops = data_layer(source)
    batches(layer, tops, 2)
    for _ in range(2):
        with pytest.raises(LayerError, match=r"record '008' .*are no image"):
            layer.forward([], tops)
    layer.close()
