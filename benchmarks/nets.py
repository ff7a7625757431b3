"""The training nets that the benchmarks run: those of models/, on random data.

Each is the training form of the published net without what only testing needs and without
GoogLeNet's two auxiliary heads: one softmax loss. ``python -m benchmarks.nets caffenet`` prints one
as prototxt, for ``protocaffe time --model`` and the like.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from protocaffe.net_spec import NetSpec
from protocaffe.net_spec import layers as L
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import format_text, read_net
from protocaffe.zoo.catalogue import models_folder

AUXILIARY_HEADS = ("loss1/", "loss2/")


def training_net(
    model: str, image: tuple[int, int, int], std: float, *, batch: int
) -> caffe_pb2.NetParameter:
    """Return a model's net for training.

    Args:
        model: the name of its folder in models/.
        image: channels, height and width of an image.
        std: images are drawn from N(0, std²); all labels are 0.
        batch: how many images.
    """
    n = NetSpec()
    n.data, n.label = L.DummyData(
        shape=[dict(dim=[batch, *image]), dict(dim=[batch])],
        data_filler=[dict(type="gaussian", std=std), dict(type="constant")],
        ntop=2,
    )
    net = n.to_proto()
    published, _ = read_net(models_folder() / model / "train_val.prototxt")
    net.name = published.name
    net.layer.extend(layer for layer in published.layer if _is_trained(layer))
    return net


def _is_trained(layer: caffe_pb2.LayerParameter) -> bool:
    reads_data = not layer.bottom
    return not (reads_data or layer.type == "Accuracy" or layer.name.startswith(AUXILIARY_HEADS))


LARGE, MIDDLE = (3, 227, 227), (3, 224, 224)

NETS: dict[str, Callable[..., caffe_pb2.NetParameter]] = {
    "lenet": partial(training_net, "lenet", (1, 28, 28), 0.3, batch=64),
    "cifar10_quick": partial(training_net, "cifar10_quick", (3, 32, 32), 60, batch=100),
    "caffenet": partial(training_net, "bvlc_reference_caffenet", LARGE, 60, batch=32),
    "googlenet": partial(training_net, "bvlc_googlenet", MIDDLE, 60, batch=32),
    "vgg16": partial(training_net, "vgg16", MIDDLE, 1, batch=8),
    "resnet50": partial(training_net, "resnet50", MIDDLE, 1, batch=16),
    "squeezenet": partial(training_net, "squeezenet_v1.1", LARGE, 60, batch=32),
    "mobilenet": partial(training_net, "mobilenet_v1", MIDDLE, 1, batch=16),
}
"""The nets by the name that the command line knows them by; each takes ``batch``."""

GPU_BATCHES = {
    "lenet": 64,
    "cifar10_quick": 100,
    "caffenet": 256,
    "googlenet": 128,
    "vgg16": 64,
    "resnet50": 128,
}
"""The nets that are compared on a GPU unless others are named, with their batch sizes there."""


def main() -> None:
    """Print the named net as prototxt."""
    if len(sys.argv) != 2 or sys.argv[1] not in NETS:
        sys.exit(f"usage: python -m benchmarks.nets NET, with NET one of {', '.join(NETS)}")
    print(format_text(NETS[sys.argv[1]]()), end="")


if __name__ == "__main__":
    main()
