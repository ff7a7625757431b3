"""What the nets of the zoo have in common: fillers, learning rates, data and heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from protocaffe.net_spec import NetSpec, Top
from protocaffe.net_spec import layers as L

XAVIER = dict(type="xavier")
MSRA = dict(type="msra")

RATES = [dict(lr_mult=1, decay_mult=1), dict(lr_mult=2, decay_mult=0)]
"""The ImageNet nets of their time train biases at twice the rate, without decay."""

BGR_MEAN = [104, 117, 123]
"""ImageNet's mean pixel: blue, green, red."""

TRAIN, TEST = dict(phase="TRAIN"), dict(phase="TEST")


def gaussian(std: float) -> dict[str, Any]:
    """Return a filler that draws from N(0, std²)."""
    return dict(type="gaussian", std=std)


def constant(value: float) -> dict[str, Any]:
    """Return a filler that sets everything to one value."""
    return dict(type="constant", value=value)


def relu(n: NetSpec, name: str, x: Top) -> Top:
    """A ReLU in place."""
    n[name] = x = L.ReLU(x, in_place=True)
    return x


def max_pool(n: NetSpec, name: str, x: Top, kernel_size: int, stride: int) -> Top:
    """A max pooling."""
    n[name] = x = L.Pooling(x, pool="MAX", kernel_size=kernel_size, stride=stride)
    return x


def batch_norm(
    n: NetSpec, norm_name: str, scale_name: str, x: Top, *, in_place: bool = True
) -> Top:
    """BatchNorm, and Scale with biases; in place, or with the norm's top of its own."""
    n[norm_name] = x = L.BatchNorm(x, in_place=in_place)
    n[scale_name] = x = L.Scale(x, bias_term=True, in_place=True)
    return x


def imagenet(
    n: NetSpec, batches: tuple[int, int], crop_size: int, *, mirror: bool = True, **transform: Any
) -> tuple[Top, Top]:
    """Images and labels of ILSVRC 2012 from LMDBs, for both phases.

    Args:
        n: gets the layers.
        batches: images per batch in training and in testing.
        crop_size: side of the square that is cut out of each image.
        mirror: whether training flips images at random.
        transform: fields of ``transform_param`` besides these; BGR_MEAN is taken off without any.
    """
    common = transform or dict(mean_value=BGR_MEAN)
    both = [("train", batches[0], TRAIN), ("val", batches[1], TEST)]
    settings = [
        dict(
            include=phase,
            transform_param=dict(common, crop_size=crop_size, mirror=mirror and phase is TRAIN),
            data_param=dict(
                source=f"data/ilsvrc12/{part}_lmdb", backend="LMDB", batch_size=batch_size
            ),
        )
        for part, batch_size, phase in both
    ]
    return data_layers(n, "Data", settings)


def data_layers(n: NetSpec, kind: str, settings: Sequence[dict[str, Any]]) -> tuple[Top, Top]:
    """Two layers "data" with the tops data and label, one for each phase."""
    make = getattr(L, kind)
    n.data, n.label = data, label = make(ntop=2, **settings[0])
    n["data of TEST"] = make(name="data", top=["data", "label"], ntop=0, **settings[1])
    return data, label


def loss_and_accuracy(n: NetSpec, scores: Top, label: Top) -> None:
    """The heads of most nets: accuracy in testing, softmax loss."""
    n.accuracy = L.Accuracy(scores, label, include=TEST)
    n.loss = L.SoftmaxWithLoss(scores, label)
