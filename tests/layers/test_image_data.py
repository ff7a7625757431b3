import cv2
import numpy as np
import pytest

from protocaffe.errors import LayerError
from protocaffe.proto.caffe_pb2 import TEST, TRAIN, LayerParameter
from tests.layers.test_data import batches, build

COUNT = 7


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Seven images of 5 x 6, as gray as their label times ten, and a list of them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some images").mkdir()
    for label in range(COUNT):
        pixels = np.full((5, 6, 3), 10 * label, np.uint8)
        cv2.imwrite(str(tmp_path / "some images" / f"{label}.png"), pixels)
    lines = [f"some images/{label}.png {label}\n" for label in range(COUNT)]
    (tmp_path / "list.txt").write_text("".join(lines))
    return tmp_path


def image_layer(phase=TEST, *, seed=0, transform=None, prefetch=4, **options):
    options = {"source": "list.txt", "batch_size": 3, **options}
    param = LayerParameter(
        name="feed",
        type="ImageData",
        top=["data", "label"],
        image_data_param=options,
        transform_param=transform,
        data_param={"prefetch": prefetch},
    )
    return build(param, phase, seed=seed)


def labels(layer, tops, count):
    """The labels of some batches, one after the other; the images must fit them."""
    found = batches(layer, tops, count)
    for data, label in found:
        np.testing.assert_array_equal(data[:, 0, 0, 0], 10 * label)
    layer.close()
    return np.concatenate([label for _, label in found]).astype(int).tolist()


def test_images_come_in_the_order_of_the_list_again_and_again(folder):
    assert labels(*image_layer(), 5) == [number % COUNT for number in range(15)]


def test_every_round_of_a_shuffled_list_has_every_image_once_in_a_new_order(folder):
    found = labels(*image_layer(shuffle=True), 14)
    rounds = [found[i : i + COUNT] for i in range(0, 6 * COUNT, COUNT)]
    assert all(sorted(each) == list(range(COUNT)) for each in rounds)
    assert len({tuple(each) for each in rounds}) == 6


def test_a_seed_repeats_the_order_whatever_the_batch_and_the_depth(folder):
    first = labels(*image_layer(shuffle=True, seed=1), 14)
    assert labels(*image_layer(shuffle=True, seed=1, batch_size=6, prefetch=1), 7) == first
    assert labels(*image_layer(shuffle=True, seed=2), 14) != first


@pytest.mark.parametrize("position", [0, 3, 21, 24])
def test_seek_goes_on_as_if_there_had_been_no_break(folder, position):
    options = {"shuffle": True, "rand_skip": 5, "transform": {"crop_size": 2, "mirror": True}}
    layer, tops = image_layer(TRAIN, **options)
    whole = np.concatenate([data for data, _ in batches(layer, tops, 12)])
    layer.seek(position)
    rest = np.concatenate([data for data, _ in batches(layer, tops, 12 - position // 3)])
    np.testing.assert_array_equal(whole[position:], rest)
    assert layer.position == 36
    layer.close()


def test_state_carries_over_to_a_layer_with_another_seed(folder):
    layer, tops = image_layer(shuffle=True, rand_skip=7, seed=1)
    batches(layer, tops, 2)
    other, other_tops = image_layer(shuffle=True, rand_skip=7, seed=2)
    other.set_state(layer.get_state())
    assert labels(other, other_tops, 6) == labels(layer, tops, 6)


def test_rand_skip_skips_once(folder):
    starts = set()
    for seed in range(40):
        found = labels(*image_layer(rand_skip=4, seed=seed), 4)
        assert found == [(found[0] + i) % COUNT for i in range(12)]
        starts.add(found[0])
    assert starts == {0, 1, 2, 3}


def test_what_is_said(folder, caplog):
    caplog.set_level("INFO", "protocaffe")
    layer, _ = image_layer(shuffle=True, rand_skip=1)
    layer.close()
    assert [record.message for record in caplog.records] == [
        "Opening file list.txt",
        "Shuffling data",
        "A total of 7 images.",
        "Skipping first 0 data points.",
        "output data size: 3,3,5,6",
    ]


def test_negative_labels_are_labels(folder):
    (folder / "list.txt").write_text("some images/1.png -1\n")
    layer, tops = image_layer(batch_size=1)
    assert batches(layer, tops, 1)[0][1] == [-1]
    layer.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size of at least 1"),
        ({"source": ""}, "needs a source"),
        ({"source": "none.txt"}, r"list file 'none\.txt': No such file"),
        ({"new_height": 3}, "new_height 3 and new_width 0 make no size; give both or neither"),
        ({"rand_skip": 8}, "rand_skip 8 may skip the whole list, which has 7 image"),
        ({"root_folder": "x"}, r"list\.txt:1: image 'xsome images/0\.png': .*root_folder"),
        ({"transform": {"crop_size": 6}}, r"list\.txt:1: image '.*crop_size 6 is larger"),
    ],
)
def test_mistakes_name_the_layer(folder, options, message):
    with pytest.raises(LayerError, match=message) as caught:
        image_layer(**options)
    assert str(caught.value).startswith("net.prototxt:7: layer 'feed' (ImageData): ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"", "is no image"),
        (b"no image", "is no image"),
        (cv2.imencode(".png", np.zeros((4, 6), np.uint8))[1], r"has shape \(3, 4, 6\), but the"),
    ],
)
def test_bad_images_are_named_with_their_line(folder, content, message):
    path = folder / "some images" / "4.png"
    path.unlink()
    if content is not None:
        path.write_bytes(bytes(content))
    (folder / "list.txt").write_text("\n" + (folder / "list.txt").read_text())
    layer, tops = image_layer()
    batches(layer, tops, 1)
    with pytest.raises(LayerError, match=rf"list\.txt:6: image 'some images/4\.png': {message}"):
        layer.forward([], tops)
    layer.close()
