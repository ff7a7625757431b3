"""SqueezeNet: fire blocks, which squeeze with 1x1 filters before they expand."""

from __future__ import annotations

from protocaffe.net_spec import NetSpec, Top
from protocaffe.net_spec import layers as L
from protocaffe.zoo.blocks import TEST, TRAIN, XAVIER, gaussian, max_pool, relu

FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
"""Channels of fire2 to fire9, squeezed and expanded."""


def squeezenet(n: NetSpec, x: Top, version: str = "1.1") -> Top:
    """The nets of Iandola et al., arXiv:1602.07360; 1.1 needs 2.4 times less computation."""
    first, pooled = {"1.0": ((96, 7), (4, 8)), "1.1": ((64, 3), (3, 5))}[version]
    n.conv1 = x = L.Convolution(
        x, num_output=first[0], kernel_size=first[1], stride=2, weight_filler=XAVIER
    )
    x = max_pool(n, "pool1", relu(n, "relu_conv1", x), 3, 2)
    for index, (squeeze, expand) in enumerate(FIRES, start=2):
        x = fire(n.scope(f"fire{index}/"), x, squeeze, expand)
        if index in pooled:
            x = max_pool(n, f"pool{index}", x, 3, 2)
    n.drop9 = x = L.Dropout(x, dropout_ratio=0.5, in_place=True)
    n.conv10 = x = L.Convolution(
        x,
        num_output=1000,
        kernel_size=1,
        pad=1 if version == "1.0" else None,
        weight_filler=gaussian(0.01),
    )
    n.pool10 = x = L.Pooling(relu(n, "relu_conv10", x), pool="AVE", global_pooling=True)
    return x


def fire(n: NetSpec, x: Top, squeeze: int, expand: int) -> Top:
    """A 1x1 convolution to few channels, then 1x1 and 3x3 ones side by side."""

    def conv(name: str, x: Top, num_output: int, kernel_size: int) -> Top:
        n[name] = x = L.Convolution(
            x,
            num_output=num_output,
            kernel_size=kernel_size,
            pad=kernel_size // 2 or None,
            weight_filler=XAVIER,
        )
        return relu(n, f"relu_{name}", x)

    x = conv("squeeze1x1", x, squeeze, 1)
    n.concat = x = L.Concat(conv("expand1x1", x, expand, 1), conv("expand3x3", x, expand, 3))
    return x


def heads(n: NetSpec, scores: Top, label: Top, version: str = "1.1") -> None:
    """Loss, top-1 and top-5 accuracy; version 1.1 was published with all of them in both phases."""
    only = version == "1.0"
    n.loss = L.SoftmaxWithLoss(scores, label, include=TRAIN if only else None)
    n.accuracy = L.Accuracy(scores, label, include=TEST if only else None)
    n.accuracy_top5 = L.Accuracy(scores, label, top_k=5, include=TEST if only else None)
