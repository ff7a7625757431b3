"""The published nets, by the names of their folders in models/, in both their forms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from protocaffe.errors import UsageError, near_or_all
from protocaffe.net_spec import NetSpec, Top
from protocaffe.net_spec import layers as L
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import format_compact
from protocaffe.zoo import alexnet, googlenet, mobilenet, resnet, squeezenet, vgg
from protocaffe.zoo.blocks import TEST, TRAIN, data_layers, imagenet, loss_and_accuracy

MADE_BY = "Written by scripts/make_models.py from protocaffe/zoo."

VGG_MEAN = [103.939, 116.779, 123.68]
MEAN_FILE = "data/ilsvrc12/imagenet_mean.binaryproto"

Data = Callable[[NetSpec], tuple[Top, Top]]
Body = Callable[[NetSpec, Top], Top]
Heads = Callable[[NetSpec, Top, Top], None]


@dataclass(frozen=True)
class Published:
    """What the two forms of a net are made of.

    Attributes:
        name: the net's name.
        body: makes the class scores from images; the same layers in both forms.
        shape: of the deployed net's input.
        data: makes images and labels for training and testing.
        heads: makes losses and accuracies from scores and labels.
        input: name of the deployed net's input layer.
    """

    name: str
    body: Body
    shape: tuple[int, ...]
    data: Data
    heads: Heads = loss_and_accuracy
    input: str = "data"

    def train_val(self) -> caffe_pb2.NetParameter:
        """Return the net for training and testing."""
        n = NetSpec(self.name)
        images, label = self.data(n)
        self.heads(n, self.body(n, images), label)
        return n.to_proto()

    def deploy(self) -> caffe_pb2.NetParameter:
        """Return the net for use: images in, class probabilities out."""
        n = NetSpec(self.name)
        n.data = L.Input(shape=dict(dim=self.shape), name=self.input)
        n.prob = L.Softmax(self.body(n, n.data))
        return _without_training(n.to_proto())

    def texts(self) -> dict[str, str]:
        """Return both forms as the texts of their files, by file name."""
        extents = "x".join(str(extent) for extent in self.shape)
        titles = {
            "train_val": f"{self.name} for training and testing.",
            "deploy": f"{self.name} for use: BGR images ({extents}) in, class probabilities out.",
        }
        return {
            f"{form}.prototxt": f"# {title}\n# {MADE_BY}\n{format_compact(getattr(self, form)())}"
            for form, title in titles.items()
        }


def published(name: str) -> Published:
    """Return the net of the folder ``models/NAME``.

    Raises:
        UsageError: it has no builder; the message offers the nearest name.
    """
    if name not in PUBLISHED:
        raise UsageError(f"there is no builder for '{name}'{near_or_all(name, PUBLISHED)}")
    return PUBLISHED[name]


def _flickr_images(n: NetSpec) -> tuple[Top, Top]:
    settings = [
        dict(
            include=phase,
            transform_param=dict(mirror=phase is TRAIN, crop_size=227, mean_file=MEAN_FILE),
            image_data_param=dict(
                source=f"data/flickr_style/{part}.txt",
                batch_size=50,
                new_height=256,
                new_width=256,
            ),
        )
        for part, phase in (("train", TRAIN), ("test", TEST))
    ]
    return data_layers(n, "ImageData", settings)


def _without_training(net: caffe_pb2.NetParameter) -> caffe_pb2.NetParameter:
    """Return the net without fillers and rates, and with the statistics that BatchNorm learned."""
    for layer in net.layer:
        layer.ClearField("param")
        for name in ("convolution_param", "inner_product_param"):
            if layer.HasField(name):
                getattr(layer, name).ClearField("weight_filler")
                getattr(layer, name).ClearField("bias_filler")
        if layer.type == "BatchNorm":
            layer.batch_norm_param.use_global_stats = True
    return net


_ALEXNET_DATA = partial(imagenet, batches=(256, 50), crop_size=227, mean_file=MEAN_FILE)
_GOOGLENET_DATA = partial(imagenet, batches=(32, 50), crop_size=224)
_VGG_DATA = partial(imagenet, batches=(32, 25), crop_size=224, mean_value=VGG_MEAN)
_RESNET_DATA = partial(imagenet, batches=(32, 25), crop_size=224)
_SQUEEZENET_DATA = partial(imagenet, batches=(32, 25), crop_size=227, mirror=False)
_MOBILENET_DATA = partial(
    imagenet, batches=(64, 25), crop_size=224, mean_value=[103.94, 116.78, 123.68], scale=0.017
)

_LARGE, _MIDDLE, _ONE = (10, 3, 227, 227), (10, 3, 224, 224), (1, 3, 224, 224)

PUBLISHED = {
    "bvlc_alexnet": Published("AlexNet", alexnet.alexnet, _LARGE, _ALEXNET_DATA),
    "bvlc_reference_caffenet": Published("CaffeNet", alexnet.caffenet, _LARGE, _ALEXNET_DATA),
    "finetune_flickr_style": Published(
        "FlickrStyleCaffeNet", alexnet.flickr_style, _LARGE, _flickr_images
    ),
    "bvlc_googlenet": Published(
        "GoogleNet", googlenet.googlenet, _MIDDLE, _GOOGLENET_DATA, googlenet.heads
    ),
    **{
        f"vgg{depth}": Published(
            f"VGG_ILSVRC_{depth}_layers", partial(vgg.vgg, depth=depth), _MIDDLE, _VGG_DATA
        )
        for depth in vgg.DEPTHS
    },
    **{
        f"resnet{depth}": Published(
            f"ResNet-{depth}",
            partial(resnet.resnet, depth=depth),
            _ONE,
            _RESNET_DATA,
            input="input",
        )
        for depth in resnet.DEPTHS
    },
    **{
        f"squeezenet_v{version}": Published(
            f"SqueezeNet_v{version}",
            partial(squeezenet.squeezenet, version=version),
            _LARGE,
            _SQUEEZENET_DATA,
            partial(squeezenet.heads, version=version),
            name_of_input,
        )
        for version, name_of_input in (("1.0", "input"), ("1.1", "data"))
    },
    "mobilenet_v1": Published(
        "MOBILENET", mobilenet.mobilenet_v1, _ONE, _MOBILENET_DATA, input="input"
    ),
    "mobilenet_v2": Published(
        "MOBILENET_V2", mobilenet.mobilenet_v2, _ONE, _MOBILENET_DATA, input="input"
    ),
}
"""By folder name."""
