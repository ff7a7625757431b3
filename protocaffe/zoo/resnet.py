"""ResNet: bottleneck blocks beside shortcuts."""

from __future__ import annotations

from protocaffe.net_spec import NetSpec, Top
from protocaffe.net_spec import layers as L
from protocaffe.zoo.blocks import MSRA, batch_norm, max_pool, relu

DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Blocks per stage, by the number of layers with weights."""


def resnet(n: NetSpec, x: Top, depth: int = 50) -> Top:
    """The nets of He et al., arXiv:1512.03385."""
    # As published, the first convolution of the 50-layer net alone has a bias.
    names = ("conv1", "bn_conv1", "scale_conv1")
    x = conv(n, names, x, 64, 7, stride=2, bias_term=depth == 50)
    x = max_pool(n, "pool1", relu(n, "conv1_relu", x), 3, 2)
    for stage, blocks in enumerate(DEPTHS[depth], start=2):
        for index in range(blocks):
            numbered = depth > 50 and stage in (3, 4)
            letter = f"b{index}" if numbered and index else "abcdef"[index]
            stride = 2 if index == 0 and stage > 2 else 1
            x = bottleneck(n, f"{stage}{letter}", x, 16 * 2**stage, stride, project=index == 0)
    n.pool5 = x = L.Pooling(x, pool="AVE", kernel_size=7, stride=1)
    n.fc1000 = x = L.InnerProduct(x, num_output=1000, weight_filler=MSRA)
    return x


def bottleneck(n: NetSpec, name: str, x: Top, channels: int, stride: int, *, project: bool) -> Top:
    """1x1, 3x3 and 1x1 convolutions beside the identity, or beside a 1x1 projection."""

    def branch(kind: str, x: Top, num_output: int, kernel_size: int, stride: int = 1) -> Top:
        names = (f"res{name}_{kind}", f"bn{name}_{kind}", f"scale{name}_{kind}")
        return conv(n, names, x, num_output, kernel_size, stride=stride, bias_term=False)

    shortcut = branch("branch1", x, 4 * channels, 1, stride) if project else x
    x = relu(n, f"res{name}_branch2a_relu", branch("branch2a", x, channels, 1, stride))
    x = relu(n, f"res{name}_branch2b_relu", branch("branch2b", x, channels, 3))
    n[f"res{name}"] = x = L.Eltwise(shortcut, branch("branch2c", x, 4 * channels, 1))
    return relu(n, f"res{name}_relu", x)


def conv(
    n: NetSpec,
    names: tuple[str, str, str],
    x: Top,
    num_output: int,
    kernel_size: int,
    *,
    stride: int,
    bias_term: bool,
) -> Top:
    """A convolution, BatchNorm and Scale, of these names."""
    n[names[0]] = x = L.Convolution(
        x,
        num_output=num_output,
        kernel_size=kernel_size,
        pad=kernel_size // 2,
        stride=stride,
        bias_term=None if bias_term else False,
        weight_filler=MSRA,
    )
    return batch_norm(n, *names[1:], x)
