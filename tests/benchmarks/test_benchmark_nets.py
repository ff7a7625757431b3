import pytest

from benchmarks.nets import NETS, main
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import parse_text

PARAMETERS = {
    "lenet": 431_080,
    "cifar10_quick": 145_578,
    "caffenet": 60_965_224,
    "googlenet": 6_998_552,
    "vgg16": 138_357_544,
    "resnet50": 25_557_096,
    "squeezenet": 1_235_496,
    "mobilenet": 4_231_976,
}
"""What the published nets learn (ResNet-50 and MobileNet with their batch norm's scales)."""


def build(name, **batch):
    """Return the net of that name with zeros for weights, which cost no time to draw."""
    param = NETS[name](**batch)
    for layer in param.layer:
        if layer.type == "Convolution":
            layer.convolution_param.ClearField("weight_filler")
        elif layer.type == "InnerProduct":
            layer.inner_product_param.ClearField("weight_filler")
    return Net(param, caffe_pb2.TRAIN, engine="numpy")


@pytest.mark.parametrize("name", NETS)
def test_parameters_are_as_many_as_published(name):
    net = build(name, batch=1)
    assert sum(param.blob.count for param in net.learnable if param.lr_mult) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("lenet", {"data": (64, 1, 28, 28), "pool2": (64, 50, 4, 4), "ip2": (64, 10)}),
        ("cifar10_quick", {"pool1": (100, 32, 16, 16), "pool3": (100, 64, 4, 4)}),
        ("caffenet", {"data": (32, 3, 227, 227), "pool5": (32, 256, 6, 6), "fc8": (32, 1000)}),
        ("googlenet", {"inception_4d/output": (32, 528, 14, 14), "pool5/7x7_s1": (32, 1024, 1, 1)}),
        ("vgg16", {"conv1_2": (8, 64, 224, 224), "pool5": (8, 512, 7, 7)}),
        ("resnet50", {"pool1": (16, 64, 56, 56), "res4f": (16, 1024, 14, 14)}),
        ("squeezenet", {"conv1": (32, 64, 113, 113), "fire9/concat": (32, 512, 14, 14)}),
        ("mobilenet", {"conv4_1/dw": (16, 256, 28, 28), "fc7": (16, 1000, 1, 1)}),
    ],
)
def test_blobs_have_the_published_shapes(name, shapes):
    net = build(name)
    assert {blob: net.blobs[blob].shape for blob in shapes} == shapes


def test_main_prints_a_prototxt(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["nets", "resnet50"])
    main()
    assert parse_text(capsys.readouterr().out, caffe_pb2.NetParameter()) == NETS["resnet50"]()


def test_main_lists_the_nets_when_one_is_unknown(monkeypatch):
    monkeypatch.setattr("sys.argv", ["nets", "resnet51"])
    with pytest.raises(SystemExit, match="resnet50"):
        main()
