import json

import numpy as np
import pytest

from protocaffe.errors import LayerError
from protocaffe.net import Net
from protocaffe.proto.caffe_pb2 import NetParameter
from protocaffe.proto.text import parse_text
from tests.data.samples import GOLDEN


def memory_net(sizes="batch_size: 2 channels: 1 height: 2 width: 3", more="", **options):
    text = f"""
        layer {{ name: "feed" type: "MemoryData" top: "data" top: "label"
                memory_data_param {{ {sizes} }} {more} }}
        layer {{ name: "sums" type: "Reduction" bottom: "data" top: "sums"
                reduction_param {{ axis: 1 }} }}"""
    return Net(parse_text(text, NetParameter()), **options)


def images(count):
    return np.arange(6 * count, dtype=np.float32).reshape(count, 1, 2, 3)


def labels(net, count):
    found = []
    for _ in range(count):
        net.forward()
        found += net.blobs["label"].data.ravel().tolist()
    return found


def test_batches_are_those_of_caffe():
    folder = GOLDEN / "layers" / "memory_data"
    meta = json.loads((folder / "meta.json").read_text())
    expected = np.load(folder / "batches.npz")
    net = Net(folder / "net.prototxt")
    net.layers[0].reset(expected["fed/data"], expected["fed/label"])
    for number in range(meta["batches"]):
        net.forward()
        for name, blob in net.blobs.items():
            np.testing.assert_array_equal(blob.data, expected[f"batch{number}/{name}"], strict=True)


@pytest.mark.parametrize("engine", ["numpy", None])
def test_layers_above_see_each_batch(engine):
    net = memory_net(engine=engine)
    assert net.blobs["label"].shape == (2,)
    net.layers[0].reset(images(4), range(4))
    for start in (0, 2, 0):
        net.forward()
        assert net.blobs["label"].data.ravel().tolist() == [start, start + 1]
        sums = images(4)[start : start + 2].sum(axis=(1, 2, 3))
        np.testing.assert_array_equal(net.blobs["sums"].data, sums)
    assert net.blobs["label"].shape == (2, 1, 1, 1)


def test_new_arrays_begin_at_their_start():
    net = memory_net()
    net.layers[0].reset(images(4), [0, 1, 2, 3])
    assert labels(net, 1) == [0, 1]
    net.layers[0].reset(images(6), np.arange(6).reshape(6, 1, 1, 1))
    assert labels(net, 4) == [0, 1, 2, 3, 4, 5, 0, 1]


def test_arrays_of_the_net_s_type_are_not_copied():
    net, data = memory_net(), images(2)
    net.layers[0].reset(data, [0, 1])
    data[...] = 7
    net.forward()
    assert (net.blobs["data"].data == 7).all()


def test_state_carries_over():
    net, other = memory_net(), memory_net()
    for each in (net, other):
        each.layers[0].reset(images(6), range(6))
    labels(net, 4)
    other.set_state(net.get_state())
    assert labels(other, 2) == labels(net, 2) == [2, 3, 4, 5]


def test_transform_param_without_effect_is_said(caplog):
    memory_net(more="transform_param { scale: 2 }")
    assert "transform_param has no effect" in caplog.text


def test_augmentations_are_refused():
    with pytest.raises(LayerError, match=r"'feed' \(MemoryData\): does not .* takes no cutout"):
        memory_net(more="transform_param { cutout { size: 1 } }")


def test_forward_without_data_says_how_to_give_it():
    with pytest.raises(
        LayerError, match=r"'feed' \(MemoryData\): has no data yet; .*set_input_arrays"
    ):
        memory_net().forward()


@pytest.mark.parametrize("sizes", ["", "batch_size: 2 channels: 1 height: 2"])
def test_sizes_are_needed(sizes):
    with pytest.raises(LayerError, match=r"'feed'.*needs batch_size, channels, height and width"):
        memory_net(sizes)


@pytest.mark.parametrize(
    ("data", "numbers", "message"),
    [
        (images(3), range(3), "a multiple of 2 images, the batch_size, got 3"),
        (images(0), [], "a multiple of 2 images, the batch_size, got 0"),
        (images(2)[:, :, :1], range(2), r"shape \(n, 1, 2, 3\), got \(2, 1, 1, 3\)"),
        (images(2)[0], range(2), r"shape \(n, 1, 2, 3\), got \(1, 2, 3\)"),
        (images(2), range(4), r"one label per image, 2, got 4 \(shape \(4,\)\)"),
    ],
)
def test_arrays_that_do_not_fit(data, numbers, message):
    with pytest.raises(LayerError, match=message):
        memory_net().layers[0].reset(data, numbers)
