"""The training nets that the benchmarks run, as functions that return a ``NetParameter``.

Each has the layer names, shapes and wiring of the published net, random data of the shape the
net was published for, one softmax loss and nothing that only testing needs. ``python -m
benchmarks.nets caffenet`` prints one as prototxt, for ``protocaffe time --model`` and the like.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import format_text

Filler = Mapping[str, Any]
"""The fields of a ``FillerParameter``."""

XAVIER: Filler = {"type": "xavier"}
MSRA: Filler = {"type": "msra"}

WEIGHTS_AND_BIAS_SPECS = ({"lr_mult": 1, "decay_mult": 1}, {"lr_mult": 2, "decay_mult": 0})
"""The published ImageNet nets train biases at twice the rate, without decay."""

SMALL_NET_SPECS = ({"lr_mult": 1}, {"lr_mult": 2})
"""Caffe's small nets decay biases, too."""


def gaussian(std: float) -> Filler:
    """Return a filler that draws from N(0, std²)."""
    return {"type": "gaussian", "std": std}


class Builder:
    """Appends layers to ``net``; each method returns the name of the top it made."""

    def __init__(self, name: str) -> None:
        self.net = caffe_pb2.NetParameter(name=name)

    def layer(
        self, type_name: str, name: str, bottoms: Sequence[str], top: str = "", **fields: Any
    ) -> str:
        """Append a layer with one top, named as the layer unless told otherwise."""
        top = top or name
        self.net.layer.add(type=type_name, name=name, bottom=bottoms, top=[top], **fields)
        return top

    def data(self, image: Sequence[int], batch: int, std: float) -> str:
        """Images drawn from N(0, std²) and labels, all of class 0."""
        parameters = {
            "shape": [{"dim": [batch, *image]}, {"dim": [batch]}],
            "data_filler": [gaussian(std), {"type": "constant"}],
        }
        self.net.layer.add(
            type="DummyData", name="data", top=["data", "label"], dummy_data_param=parameters
        )
        return "data"

    def convolution(
        self,
        name: str,
        bottom: str,
        num_output: int,
        kernel_size: int,
        *,
        weight_filler: Filler,
        bias: float | None = 0.0,
        specs: Sequence[Mapping[str, float]] = (),
        pad: int = 0,
        stride: int = 1,
        group: int = 1,
    ) -> str:
        """A convolution; ``bias`` is what the biases start from, None for no bias."""
        parameters = {
            "num_output": num_output,
            "kernel_size": [kernel_size],
            "pad": [pad],
            "stride": [stride],
            "group": group,
            "weight_filler": weight_filler,
            **bias_fields(bias),
        }
        return self.layer("Convolution", name, [bottom], convolution_param=parameters, param=specs)

    def inner_product(
        self,
        name: str,
        bottom: str,
        num_output: int,
        *,
        weight_filler: Filler,
        bias: float = 0.0,
        specs: Sequence[Mapping[str, float]] = (),
    ) -> str:
        """An inner product; ``bias`` is what the biases start from."""
        parameters = {
            "num_output": num_output,
            "weight_filler": weight_filler,
            **bias_fields(bias),
        }
        return self.layer(
            "InnerProduct", name, [bottom], inner_product_param=parameters, param=specs
        )

    def relu(self, name: str, bottom: str) -> str:
        """A ReLU in place."""
        return self.layer("ReLU", name, [bottom], bottom)

    def dropout(self, name: str, bottom: str, ratio: float = 0.5) -> str:
        """A dropout in place."""
        return self.layer("Dropout", name, [bottom], bottom, dropout_param={"dropout_ratio": ratio})

    def max_pool(self, name: str, bottom: str, kernel_size: int, stride: int, pad: int = 0) -> str:
        """A max pooling."""
        parameters = {"pool": "MAX", "kernel_size": kernel_size, "stride": stride, "pad": pad}
        return self.layer("Pooling", name, [bottom], pooling_param=parameters)

    def ave_pool(self, name: str, bottom: str, kernel_size: int, stride: int) -> str:
        """An average pooling."""
        parameters = {"pool": "AVE", "kernel_size": kernel_size, "stride": stride}
        return self.layer("Pooling", name, [bottom], pooling_param=parameters)

    def global_ave_pool(self, name: str, bottom: str) -> str:
        """The average over the whole image."""
        parameters = {"pool": "AVE", "global_pooling": True}
        return self.layer("Pooling", name, [bottom], pooling_param=parameters)

    def lrn(self, name: str, bottom: str) -> str:
        """Local response normalisation with the constants that all published nets use."""
        parameters = {"local_size": 5, "alpha": 1e-4, "beta": 0.75}
        return self.layer("LRN", name, [bottom], lrn_param=parameters)

    def batch_norm(self, norm_name: str, scale_name: str, bottom: str) -> str:
        """BatchNorm and Scale with bias, both in place."""
        self.layer("BatchNorm", norm_name, [bottom], bottom)
        return self.layer("Scale", scale_name, [bottom], bottom, scale_param={"bias_term": True})

    def concat(self, name: str, *bottoms: str) -> str:
        """The channels of all bottoms."""
        return self.layer("Concat", name, bottoms)

    def softmax_loss(self, scores: str, name: str = "loss") -> caffe_pb2.NetParameter:
        """Append the loss and return the finished net."""
        self.layer("SoftmaxWithLoss", name, [scores, "label"])
        return self.net


def bias_fields(bias: float | None) -> dict[str, Any]:
    """Return the fields for a bias that starts from ``bias``, or for none."""
    if bias is None:
        return {"bias_term": False}
    return {"bias_filler": {"type": "constant", "value": bias}}


def lenet(batch: int = 64) -> caffe_pb2.NetParameter:
    """LeNet for 28x28 digits, as in Caffe's MNIST example."""
    net = Builder("LeNet")
    conv = partial(net.convolution, weight_filler=XAVIER, specs=SMALL_NET_SPECS)
    full = partial(net.inner_product, weight_filler=XAVIER, specs=SMALL_NET_SPECS)
    x = net.data((1, 28, 28), batch, std=0.3)
    x = net.max_pool("pool1", conv("conv1", x, 20, 5), 2, 2)
    x = net.max_pool("pool2", conv("conv2", x, 50, 5), 2, 2)
    x = net.relu("relu1", full("ip1", x, 500))
    return net.softmax_loss(full("ip2", x, 10))


def cifar10_quick(batch: int = 100) -> caffe_pb2.NetParameter:
    """Caffe's quick net for CIFAR-10: three 5x5 convolutions, two inner products."""
    net = Builder("CIFAR10_quick")
    conv = partial(net.convolution, specs=SMALL_NET_SPECS, pad=2)
    full = partial(net.inner_product, weight_filler=gaussian(0.1), specs=SMALL_NET_SPECS)
    x = net.data((3, 32, 32), batch, std=60)
    x = net.max_pool("pool1", conv("conv1", x, 32, 5, weight_filler=gaussian(1e-4)), 3, 2)
    x = net.relu("relu1", x)
    x = net.relu("relu2", conv("conv2", x, 32, 5, weight_filler=gaussian(0.01)))
    x = net.ave_pool("pool2", x, 3, 2)
    x = net.relu("relu3", conv("conv3", x, 64, 5, weight_filler=gaussian(0.01)))
    x = net.ave_pool("pool3", x, 3, 2)
    return net.softmax_loss(full("ip2", full("ip1", x, 64), 10))


def caffenet(batch: int = 32) -> caffe_pb2.NetParameter:
    """The BVLC reference CaffeNet: AlexNet on one device, pooling before normalisation."""
    net = Builder("CaffeNet")
    conv = partial(net.convolution, weight_filler=gaussian(0.01), specs=WEIGHTS_AND_BIAS_SPECS)
    full = partial(net.inner_product, specs=WEIGHTS_AND_BIAS_SPECS)
    x = net.data((3, 227, 227), batch, std=60)
    x = net.relu("relu1", conv("conv1", x, 96, 11, stride=4))
    x = net.lrn("norm1", net.max_pool("pool1", x, 3, 2))
    x = net.relu("relu2", conv("conv2", x, 256, 5, pad=2, group=2, bias=1.0))
    x = net.lrn("norm2", net.max_pool("pool2", x, 3, 2))
    x = net.relu("relu3", conv("conv3", x, 384, 3, pad=1))
    x = net.relu("relu4", conv("conv4", x, 384, 3, pad=1, group=2, bias=1.0))
    x = net.relu("relu5", conv("conv5", x, 256, 3, pad=1, group=2, bias=1.0))
    x = net.max_pool("pool5", x, 3, 2)
    for index in (6, 7):
        x = full(f"fc{index}", x, 4096, weight_filler=gaussian(0.005), bias=1.0)
        x = net.dropout(f"drop{index}", net.relu(f"relu{index}", x))
    return net.softmax_loss(full("fc8", x, 1000, weight_filler=gaussian(0.01)))


def vgg16(batch: int = 8) -> caffe_pb2.NetParameter:
    """The 16-layer net of Simonyan & Zisserman, arXiv:1409.1556 (configuration D)."""
    net = Builder("VGG_ILSVRC_16_layers")
    x = net.data((3, 224, 224), batch, std=1)
    for block, (channels, depth) in enumerate(
        [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)], start=1
    ):
        for index in range(1, depth + 1):
            x = net.convolution(
                f"conv{block}_{index}",
                x,
                channels,
                3,
                pad=1,
                weight_filler=MSRA,
                specs=WEIGHTS_AND_BIAS_SPECS,
            )
            x = net.relu(f"relu{block}_{index}", x)
        x = net.max_pool(f"pool{block}", x, 2, 2)
    full = partial(net.inner_product, weight_filler=gaussian(0.005), specs=WEIGHTS_AND_BIAS_SPECS)
    for index in (6, 7):
        x = net.relu(f"relu{index}", full(f"fc{index}", x, 4096))
        x = net.dropout(f"drop{index}", x)
    return net.softmax_loss(full("fc8", x, 1000))


def googlenet(batch: int = 32) -> caffe_pb2.NetParameter:
    """The BVLC GoogLeNet (Szegedy et al., arXiv:1409.4842) without its two auxiliary heads."""
    net = Builder("GoogleNet")
    conv = partial(conv_relu, net)
    x = net.data((3, 224, 224), batch, std=60)
    x = conv("conv1", "7x7_s2", x, 64, 7, pad=3, stride=2)
    x = net.lrn("pool1/norm1", net.max_pool("pool1/3x3_s2", x, 3, 2))
    x = conv("conv2", "3x3_reduce", x, 64, 1)
    x = conv("conv2", "3x3", x, 192, 3, pad=1)
    x = net.max_pool("pool2/3x3_s2", net.lrn("conv2/norm2", x), 3, 2)
    x = inception(net, "3a", x, 64, (96, 128), (16, 32), 32)
    x = inception(net, "3b", x, 128, (128, 192), (32, 96), 64)
    x = net.max_pool("pool3/3x3_s2", x, 3, 2)
    x = inception(net, "4a", x, 192, (96, 208), (16, 48), 64)
    x = inception(net, "4b", x, 160, (112, 224), (24, 64), 64)
    x = inception(net, "4c", x, 128, (128, 256), (24, 64), 64)
    x = inception(net, "4d", x, 112, (144, 288), (32, 64), 64)
    x = inception(net, "4e", x, 256, (160, 320), (32, 128), 128)
    x = net.max_pool("pool4/3x3_s2", x, 3, 2)
    x = inception(net, "5a", x, 256, (160, 320), (32, 128), 128)
    x = inception(net, "5b", x, 384, (192, 384), (48, 128), 128)
    x = net.dropout("pool5/drop_7x7_s1", net.ave_pool("pool5/7x7_s1", x, 7, 1), 0.4)
    x = net.inner_product(
        "loss3/classifier", x, 1000, weight_filler=XAVIER, specs=WEIGHTS_AND_BIAS_SPECS
    )
    return net.softmax_loss(x, "loss3/loss3")


def conv_relu(
    net: Builder,
    block: str,
    name: str,
    bottom: str,
    num_output: int,
    size: int,
    pad: int = 0,
    stride: int = 1,
) -> str:
    """GoogLeNet's convolution ``block/name`` and the ReLU ``block/relu_name`` on it."""
    top = net.convolution(
        f"{block}/{name}",
        bottom,
        num_output,
        size,
        weight_filler=XAVIER,
        bias=0.2,
        specs=WEIGHTS_AND_BIAS_SPECS,
        pad=pad,
        stride=stride,
    )
    return net.relu(f"{block}/relu_{name.removesuffix('_s2')}", top)


def inception(
    net: Builder,
    name: str,
    bottom: str,
    ones: int,
    threes: tuple[int, int],
    fives: tuple[int, int],
    pool: int,
) -> str:
    """Four branches side by side: 1x1, 3x3, 5x5 and pooling.

    The pairs are the channels of the 1x1 reduction and of the convolution behind it.
    """
    block = f"inception_{name}"
    conv = partial(conv_relu, net, block)
    one = conv("1x1", bottom, ones, 1)
    three = conv("3x3", conv("3x3_reduce", bottom, threes[0], 1), threes[1], 3, pad=1)
    five = conv("5x5", conv("5x5_reduce", bottom, fives[0], 1), fives[1], 5, pad=2)
    pooled = conv("pool_proj", net.max_pool(f"{block}/pool", bottom, 3, 1, pad=1), pool, 1)
    return net.concat(f"{block}/output", one, three, five, pooled)


def resnet50(batch: int = 16) -> caffe_pb2.NetParameter:
    """The 50-layer residual net of He et al., arXiv:1512.03385, with batch statistics."""
    net = Builder("ResNet-50")
    x = net.data((3, 224, 224), batch, std=1)
    x = net.convolution("conv1", x, 64, 7, pad=3, stride=2, weight_filler=MSRA)
    x = net.relu("conv1_relu", net.batch_norm("bn_conv1", "scale_conv1", x))
    x = net.max_pool("pool1", x, 3, 2)
    for stage, (channels, depth) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], start=2):
        for index, letter in enumerate("abcdef"[:depth]):
            stride = 2 if index == 0 and stage > 2 else 1
            x = bottleneck(net, f"{stage}{letter}", x, channels, stride, project=index == 0)
    x = net.ave_pool("pool5", x, 7, 1)
    return net.softmax_loss(net.inner_product("fc1000", x, 1000, weight_filler=MSRA))


def bottleneck(
    net: Builder, name: str, bottom: str, channels: int, stride: int, *, project: bool
) -> str:
    """1x1, 3x3 and 1x1 convolutions beside the identity, or beside a 1x1 projection."""

    def conv(branch: str, x: str, num_output: int, size: int, stride: int = 1) -> str:
        top = net.convolution(
            f"res{name}_{branch}",
            x,
            num_output,
            size,
            pad=size // 2,
            stride=stride,
            weight_filler=MSRA,
            bias=None,
        )
        return net.batch_norm(f"bn{name}_{branch}", f"scale{name}_{branch}", top)

    def conv_relu(branch: str, x: str, size: int, stride: int = 1) -> str:
        return net.relu(f"res{name}_{branch}_relu", conv(branch, x, channels, size, stride))

    shortcut = conv("branch1", bottom, 4 * channels, 1, stride) if project else bottom
    x = conv_relu("branch2a", bottom, 1, stride)
    x = conv_relu("branch2b", x, 3)
    x = conv("branch2c", x, 4 * channels, 1)
    return net.relu(f"res{name}_relu", net.layer("Eltwise", f"res{name}", [shortcut, x]))


def squeezenet(batch: int = 32) -> caffe_pb2.NetParameter:
    """SqueezeNet v1.1 (Iandola et al., arXiv:1602.07360)."""
    net = Builder("SqueezeNet_v1.1")
    x = net.data((3, 227, 227), batch, std=60)
    x = net.relu("relu_conv1", net.convolution("conv1", x, 64, 3, stride=2, weight_filler=XAVIER))
    x = net.max_pool("pool1", x, 3, 2)
    for index, (squeeze, expand) in enumerate(
        [(16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256)],
        start=2,
    ):
        x = fire(net, f"fire{index}", x, squeeze, expand)
        if index in (3, 5):
            x = net.max_pool(f"pool{index}", x, 3, 2)
    x = net.dropout("drop9", x)
    x = net.relu("relu_conv10", net.convolution("conv10", x, 1000, 1, weight_filler=gaussian(0.01)))
    return net.softmax_loss(net.global_ave_pool("pool10", x))


def fire(net: Builder, name: str, bottom: str, squeeze: int, expand: int) -> str:
    """A 1x1 convolution to few channels, then 1x1 and 3x3 ones side by side."""

    def conv(layer: str, x: str, num_output: int, size: int) -> str:
        top = net.convolution(
            f"{name}/{layer}", x, num_output, size, pad=size // 2, weight_filler=XAVIER
        )
        return net.relu(f"{name}/relu_{layer}", top)

    x = conv("squeeze1x1", bottom, squeeze, 1)
    return net.concat(
        f"{name}/concat", conv("expand1x1", x, expand, 1), conv("expand3x3", x, expand, 3)
    )


def mobilenet(batch: int = 16) -> caffe_pb2.NetParameter:
    """MobileNet v1 (Howard et al., arXiv:1704.04861), with batch statistics.

    The published file pins its depthwise convolutions to ``engine: CAFFE``, which was a way
    around cuDNN; here they may use any engine.
    """
    net = Builder("MOBILENET")
    conv = partial(conv_norm_relu, net)
    x = net.data((3, 224, 224), batch, std=1)
    x = conv("1", x, 32, 3, stride=2)
    channels = 32
    for name, num_output, stride in [
        ("2_1", 64, 1),
        ("2_2", 128, 2),
        ("3_1", 128, 1),
        ("3_2", 256, 2),
        ("4_1", 256, 1),
        ("4_2", 512, 2),
        ("5_1", 512, 1),
        ("5_2", 512, 1),
        ("5_3", 512, 1),
        ("5_4", 512, 1),
        ("5_5", 512, 1),
        ("5_6", 1024, 2),
        ("6", 1024, 1),
    ]:
        x = conv(f"{name}/dw", x, channels, 3, stride=stride, group=channels)
        x = conv(f"{name}/sep", x, num_output, 1)
        channels = num_output
    x = net.global_ave_pool("pool6", x)
    return net.softmax_loss(net.convolution("fc7", x, 1000, 1, weight_filler=MSRA))


def conv_norm_relu(
    net: Builder,
    name: str,
    bottom: str,
    num_output: int,
    size: int,
    stride: int = 1,
    group: int = 1,
) -> str:
    """MobileNet's convolution ``conv<name>`` with BatchNorm, Scale and ReLU in place."""
    top = net.convolution(
        f"conv{name}",
        bottom,
        num_output,
        size,
        pad=size // 2,
        stride=stride,
        group=group,
        weight_filler=MSRA,
        bias=None,
    )
    return net.relu(f"relu{name}", net.batch_norm(f"{top}/bn", f"{top}/scale", top))


NETS: dict[str, Callable[..., caffe_pb2.NetParameter]] = {
    "lenet": lenet,
    "cifar10_quick": cifar10_quick,
    "caffenet": caffenet,
    "googlenet": googlenet,
    "vgg16": vgg16,
    "resnet50": resnet50,
    "squeezenet": squeezenet,
    "mobilenet": mobilenet,
}
"""The nets by the name that the command line knows them by; each takes ``batch``."""


def main() -> None:
    """Print the named net as prototxt."""
    if len(sys.argv) != 2 or sys.argv[1] not in NETS:
        sys.exit(f"usage: python -m benchmarks.nets NET, with NET one of {', '.join(NETS)}")
    print(format_text(NETS[sys.argv[1]]()), end="")


if __name__ == "__main__":
    main()
