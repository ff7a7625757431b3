"""MobileNets: depthwise convolutions, one filter per channel, and 1x1 convolutions.

The published files pin the depthwise convolutions to ``engine: CAFFE``, a way around slow kernels
of their time; these do not.
"""

from __future__ import annotations

from protocaffe.net_spec import NetSpec, Top
from protocaffe.net_spec import layers as L
from protocaffe.zoo.blocks import MSRA, batch_norm, relu

Blocks = dict[int, list[tuple[int, int]]]
"""By stage, the channels and the stride of its blocks."""

V1: Blocks = {
    2: [(64, 1), (128, 2)],
    3: [(128, 1), (256, 2)],
    4: [(256, 1), (512, 2)],
    5: [(512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2)],
}
V2: Blocks = {
    2: [(16, 1), (24, 2)],
    3: [(24, 1), (32, 2)],
    4: [(32, 1), (32, 1), (64, 1), (64, 1), (64, 1), (64, 1), (96, 2)],
    5: [(96, 1), (96, 1), (160, 2)],
    6: [(160, 1), (160, 1), (320, 1)],
}


def mobilenet_v1(n: NetSpec, x: Top) -> Top:
    """The net of Howard et al., arXiv:1704.04861, width 1."""

    def conv(name: str, x: Top, num_output: int, size: int, stride: int = 1, group: int = 1) -> Top:
        n[f"conv{name}"] = x = _convolution(x, num_output, size, stride, group)
        x = batch_norm(n, f"conv{name}/bn", f"conv{name}/scale", x)
        return relu(n, f"relu{name}", x)

    channels = 32
    x = conv("1", x, channels, 3, stride=2)
    for name, num_output, stride in [*_named(V1), ("6", 1024, 1)]:
        x = conv(f"{name}/dw", x, channels, 3, stride, group=channels)
        x = conv(f"{name}/sep", x, num_output, 1)
        channels = num_output
    return _classifier(n, x)


def mobilenet_v2(n: NetSpec, x: Top) -> Top:
    """The net of Sandler et al., arXiv:1801.04381, width 1, with ReLU for ReLU6 as published."""

    def conv(name: str, x: Top, num_output: int, size: int, stride: int = 1, group: int = 1) -> Top:
        n[f"conv{name}"] = x = _convolution(x, num_output, size, stride, group)
        x = batch_norm(n, f"conv{name}/bn", f"conv{name}/scale", x, in_place=False)
        return x if name.endswith("linear") else relu(n, f"relu{name}", x)

    channels = 32
    x = conv("1", x, channels, 3, stride=2)
    for name, num_output, stride in _named(V2):
        wide = channels if name == "2_1" else 6 * channels
        top = conv(f"{name}/expand", x, wide, 1)
        top = conv(f"{name}/dwise", top, wide, 3, stride, group=wide)
        top = conv(f"{name}/linear", top, num_output, 1)
        if stride == 1 and num_output == channels:
            n[f"block_{name}"] = top = L.Eltwise(x, top)
        x, channels = top, num_output
    return _classifier(n, conv("6_4", x, 1280, 1))


def _named(blocks: Blocks) -> list[tuple[str, int, int]]:
    return [
        (f"{stage}_{index}", *block)
        for stage, row in blocks.items()
        for index, block in enumerate(row, start=1)
    ]


def _convolution(x: Top, num_output: int, size: int, stride: int, group: int) -> Top:
    top: Top = L.Convolution(
        x,
        num_output=num_output,
        kernel_size=size,
        pad=size // 2,
        stride=stride,
        group=group if group > 1 else None,
        bias_term=False,
        weight_filler=MSRA,
    )
    return top


def _classifier(n: NetSpec, x: Top) -> Top:
    n.pool6 = x = L.Pooling(x, pool="AVE", global_pooling=True)
    n.fc7 = x = L.Convolution(x, num_output=1000, kernel_size=1, weight_filler=MSRA)
    return x
