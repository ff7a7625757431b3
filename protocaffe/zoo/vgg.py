"""VGG: 3x3 convolutions in five groups, three inner products."""

from __future__ import annotations

from protocaffe.net_spec import NetSpec, Top
from protocaffe.net_spec import layers as L
from protocaffe.zoo.blocks import MSRA, RATES, constant, gaussian, max_pool, relu

DEPTHS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions per group, by the number of layers with weights."""


def vgg(n: NetSpec, x: Top, depth: int = 16) -> Top:
    """The nets of Simonyan & Zisserman, arXiv:1409.1556: D (16 layers) and E (19 layers)."""
    for group, convolutions in enumerate(DEPTHS[depth], start=1):
        for index in range(1, convolutions + 1):
            n[f"conv{group}_{index}"] = x = L.Convolution(
                x,
                num_output=min(32 * 2**group, 512),
                kernel_size=3,
                pad=1,
                weight_filler=MSRA,
                bias_filler=constant(0),
                param=RATES,
            )
            x = relu(n, f"relu{group}_{index}", x)
        x = max_pool(n, f"pool{group}", x, 2, 2)
    for index, num_output in ((6, 4096), (7, 4096), (8, 1000)):
        n[f"fc{index}"] = x = L.InnerProduct(
            x,
            num_output=num_output,
            weight_filler=gaussian(0.005),
            bias_filler=constant(0),
            param=RATES,
        )
        if index < 8:
            x = relu(n, f"relu{index}", x)
            n[f"drop{index}"] = x = L.Dropout(x, dropout_ratio=0.5, in_place=True)
    return x
