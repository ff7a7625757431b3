"""AlexNet and its kin: five convolutions, three inner products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from protocaffe.net_spec import NetSpec, Top
from protocaffe.net_spec import layers as L
from protocaffe.zoo.blocks import RATES, constant, gaussian, max_pool, relu

Shrink = Callable[[NetSpec, int, Top], Top]
"""How a stage ends: pooling and normalization, in one order or the other."""


def alexnet(n: NetSpec, x: Top) -> Top:
    """AlexNet for ImageNet as BVLC published it (Krizhevsky et al., NIPS 2012)."""
    x = _features(n, x, bias=0.1, shrink=_norm_pool)
    return _classifier(n, "fc8", x, 1000, RATES)


def caffenet(n: NetSpec, x: Top) -> Top:
    """The BVLC reference CaffeNet: AlexNet with pooling before normalization."""
    x = _features(n, x, bias=1, shrink=_pool_norm)
    return _classifier(n, "fc8", x, 1000, RATES)


def flickr_style(n: NetSpec, x: Top) -> Top:
    """CaffeNet with a new last layer for 20 styles, which learns ten times faster."""
    x = _features(n, x, bias=1, shrink=_pool_norm)
    fast = [dict(lr_mult=10, decay_mult=1), dict(lr_mult=20, decay_mult=0)]
    return _classifier(n, "fc8_flickr", x, 20, fast)


def _features(n: NetSpec, x: Top, *, bias: float, shrink: Shrink) -> Top:
    """Everything up to fc7; ``bias`` is what every layer but conv1 and conv3 starts from."""

    def conv(index: int, x: Top, num_output: int, kernel_size: int, **params: Any) -> Top:
        n[f"conv{index}"] = x = L.Convolution(
            x,
            num_output=num_output,
            kernel_size=kernel_size,
            weight_filler=gaussian(0.01),
            bias_filler=constant(0 if index in (1, 3) else bias),
            param=RATES,
            **params,
        )
        return relu(n, f"relu{index}", x)

    x = shrink(n, 1, conv(1, x, 96, 11, stride=4))
    x = shrink(n, 2, conv(2, x, 256, 5, pad=2, group=2))
    x = conv(3, x, 384, 3, pad=1)
    x = conv(4, x, 384, 3, pad=1, group=2)
    x = conv(5, x, 256, 3, pad=1, group=2)
    x = max_pool(n, "pool5", x, 3, 2)
    for index in (6, 7):
        n[f"fc{index}"] = x = L.InnerProduct(
            x,
            num_output=4096,
            weight_filler=gaussian(0.005),
            bias_filler=constant(bias),
            param=RATES,
        )
        x = relu(n, f"relu{index}", x)
        n[f"drop{index}"] = x = L.Dropout(x, dropout_ratio=0.5, in_place=True)
    return x


def _norm(n: NetSpec, index: int, x: Top) -> Top:
    n[f"norm{index}"] = x = L.LRN(x, local_size=5, alpha=1e-4, beta=0.75)
    return x


def _norm_pool(n: NetSpec, index: int, x: Top) -> Top:
    return max_pool(n, f"pool{index}", _norm(n, index, x), 3, 2)


def _pool_norm(n: NetSpec, index: int, x: Top) -> Top:
    return _norm(n, index, max_pool(n, f"pool{index}", x, 3, 2))


def _classifier(n: NetSpec, name: str, x: Top, classes: int, rates: list[dict[str, int]]) -> Top:
    n[name] = x = L.InnerProduct(
        x, num_output=classes, weight_filler=gaussian(0.01), bias_filler=constant(0), param=rates
    )
    return x
