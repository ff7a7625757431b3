import pytest

from protocaffe.errors import NetError, UsageError
from protocaffe.finetune.trunk import find_trunk
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import parse_text
from protocaffe.zoo.catalogue import catalogue
from tests.finetune.samples import NET


def net(text):
    return parse_text(text, caffe_pb2.NetParameter())


def names(trunk):
    return [layer.name for layer in trunk.layers]


def test_from_the_image_to_the_scores():
    trunk = find_trunk(net(NET), "net")
    assert names(trunk) == ["conv1", "relu1", "conv2", "relu2", "pool"]
    assert (trunk.image, trunk.scores) == ("data", "pool")
    assert (trunk.last, trunk.after) == ("conv2", ["relu2", "pool"])
    assert trunk.transform.crop_size == 8
    assert not trunk.transform.mirror
    assert trunk.mirror


def test_a_further_output_can_be_chosen():
    trunk = find_trunk(net(NET), "net", "side")
    assert names(trunk) == ["conv1", "relu1", "side"]
    assert trunk.scores == "side"


@pytest.mark.parametrize(("name", "nearest"), [("sid", "side"), ("conv1", "conv2")])
def test_other_layers_cannot(name, nearest):
    with pytest.raises(UsageError, match=f"did you mean '{nearest}'.*possible: side, conv2"):
        find_trunk(net(NET), "net", name)


def test_what_comes_first_in_the_file_does_not_matter():
    text = """
    layer { name: "in" type: "Input" top: "x" input_param { shape { dim: [1, 1, 4, 4] } } }
    layer { name: "a" type: "InnerProduct" bottom: "x" top: "a"
        inner_product_param { num_output: 3 } }
    layer { name: "deep" type: "InnerProduct" bottom: "a" top: "deep"
        inner_product_param { num_output: 3 } }
    layer { name: "p2" type: "Softmax" bottom: "deep" top: "p2" }
    layer { name: "early" type: "InnerProduct" bottom: "x" top: "early"
        inner_product_param { num_output: 3 } }
    layer { name: "p1" type: "Softmax" bottom: "early" top: "p1" }
    """
    assert find_trunk(net(text), "net").last == "deep"


def test_a_saved_net_with_its_splits_and_weights():
    text = """
    layer { name: "d" type: "DummyData" top: "data" top: "label" include { phase: TRAIN }
        dummy_data_param { shape { dim: [2, 3, 4, 4] } shape { dim: 2 } } }
    layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 2 kernel_size: 4 } }
    layer { name: "box" type: "InnerProduct" bottom: "conv" top: "box"
        inner_product_param { num_output: 4 } }
    layer { name: "cls" type: "InnerProduct" bottom: "conv" top: "cls"
        inner_product_param { num_output: 2 } }
    layer { name: "loss" type: "SoftmaxWithLoss" bottom: "cls" bottom: "label" }
    layer { name: "accuracy" type: "Accuracy" bottom: "cls" bottom: "label"
        top: "accuracy" }
    """
    saved = Net(net(text), caffe_pb2.TRAIN, engine="numpy").to_proto()
    assert any(layer.type == "Split" for layer in saved.layer)
    trunk = find_trunk(saved, "saved")
    assert names(trunk) == ["conv", "cls"]
    assert trunk.layers[1].bottom == ["conv"]
    assert not any(layer.blobs or layer.HasField("phase") for layer in trunk.layers)


def test_twins_of_a_layer_for_testing_are_kept():
    text = NET.replace(
        'layer { name: "conv2"',
        """layer { name: "bn" type: "BatchNorm" bottom: "conv1" top: "conv1"
            include { phase: TRAIN } }
        layer { name: "bn" type: "BatchNorm" bottom: "conv1" top: "conv1"
            include { phase: TEST } batch_norm_param { use_global_stats: true } }
        layer { name: "conv2\"""",
    )
    assert names(find_trunk(net(text), "net")).count("bn") == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('layer { name: "d" type: "Input" top: "d" }', "nothing to fine-tune"),
        (
            """layer { name: "d" type: "Input" top: "a" top: "b" }
            layer { name: "x" type: "InnerProduct" bottom: "a" top: "x" }
            layer { name: "y" type: "InnerProduct" bottom: "b" top: "y" }""",
            "several inputs are images: a, b",
        ),
    ],
)
def test_nets_without_a_trunk(text, message):
    with pytest.raises(NetError, match=message):
        find_trunk(net(text), "net")


@pytest.mark.parametrize("name", catalogue())
def test_every_model_of_the_zoo_has_one(name):
    from protocaffe.finetune.origin import read_origin

    origin = read_origin(name, scratch=True)
    deepest = {"bvlc_googlenet": "loss3/classifier", "squeezenet_v1.1": "conv10"}
    assert origin.trunk.last == deepest.get(name, origin.trunk.last)
    assert origin.shape[1] == origin.shape[2] > 0
    assert not any("label" in layer.bottom for layer in origin.trunk.layers)
