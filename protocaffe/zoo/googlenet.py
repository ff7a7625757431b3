"""GoogLeNet: nine inception blocks, and two classifiers on the way that help it to train."""

from __future__ import annotations

from typing import Any

from protocaffe.net_spec import NetSpec, Top
from protocaffe.net_spec import layers as L
from protocaffe.zoo.blocks import RATES, TEST, XAVIER, constant, max_pool, relu


def googlenet(n: NetSpec, x: Top) -> Top:
    """The BVLC GoogLeNet (Szegedy et al., arXiv:1409.4842)."""
    x = conv(n.scope("conv1/"), "7x7_s2", x, 64, 7, pad=3, stride=2)
    x = norm(n, "pool1/norm1", max_pool(n, "pool1/3x3_s2", x, 3, 2))
    x = conv(n.scope("conv2/"), "3x3_reduce", x, 64, 1)
    x = conv(n.scope("conv2/"), "3x3", x, 192, 3, pad=1)
    x = max_pool(n, "pool2/3x3_s2", norm(n, "conv2/norm2", x), 3, 2)
    x = inception(n.scope("inception_3a/"), x, 64, (96, 128), (16, 32), 32)
    x = inception(n.scope("inception_3b/"), x, 128, (128, 192), (32, 96), 64)
    x = max_pool(n, "pool3/3x3_s2", x, 3, 2)
    x = inception(n.scope("inception_4a/"), x, 192, (96, 208), (16, 48), 64)
    x = inception(n.scope("inception_4b/"), x, 160, (112, 224), (24, 64), 64)
    x = inception(n.scope("inception_4c/"), x, 128, (128, 256), (24, 64), 64)
    x = inception(n.scope("inception_4d/"), x, 112, (144, 288), (32, 64), 64)
    x = inception(n.scope("inception_4e/"), x, 256, (160, 320), (32, 128), 128)
    x = max_pool(n, "pool4/3x3_s2", x, 3, 2)
    x = inception(n.scope("inception_5a/"), x, 256, (160, 320), (32, 128), 128)
    x = inception(n.scope("inception_5b/"), x, 384, (192, 384), (48, 128), 128)
    n["pool5/7x7_s1"] = x = L.Pooling(x, pool="AVE", kernel_size=7, stride=1)
    n["pool5/drop_7x7_s1"] = x = L.Dropout(x, dropout_ratio=0.4, in_place=True)
    return inner_product(n, "loss3/classifier", x, 1000, bias=0)


def heads(n: NetSpec, scores: Top, label: Top) -> None:
    """The losses of the two classifiers on the way, each 0.3 times, and of the last one."""
    auxiliary(n, "loss1", n["inception_4a/output"], label)
    auxiliary(n, "loss2", n["inception_4d/output"], label)
    n["loss3/loss3"] = L.SoftmaxWithLoss(scores, label, loss_weight=1)
    accuracies(n.scope("loss3/"), scores, label)


def inception(
    n: NetSpec, x: Top, ones: int, threes: tuple[int, int], fives: tuple[int, int], pool: int
) -> Top:
    """Four branches side by side: 1x1, 3x3, 5x5 and pooling.

    The pairs are the channels of the 1x1 reduction and of the convolution behind it.
    """
    one = conv(n, "1x1", x, ones, 1)
    three = conv(n, "3x3", conv(n, "3x3_reduce", x, threes[0], 1), threes[1], 3, pad=1)
    five = conv(n, "5x5", conv(n, "5x5_reduce", x, fives[0], 1), fives[1], 5, pad=2)
    n.pool = pooled = L.Pooling(x, pool="MAX", kernel_size=3, stride=1, pad=1)
    n.output = x = L.Concat(one, three, five, conv(n, "pool_proj", pooled, pool, 1))
    return x


def auxiliary(net: NetSpec, name: str, x: Top, label: Top) -> None:
    """A classifier on the way, with its loss."""
    n = net.scope(f"{name}/")
    n.ave_pool = x = L.Pooling(x, pool="AVE", kernel_size=5, stride=3)
    x = conv(n, "conv", x, 128, 1)
    x = relu(n, "relu_fc", inner_product(n, "fc", x, 1024, bias=0.2))
    n.drop_fc = x = L.Dropout(x, dropout_ratio=0.7, in_place=True)
    scores = inner_product(n, "classifier", x, 1000, bias=0)
    n[name] = L.SoftmaxWithLoss(scores, label, name=f"{name}/loss", loss_weight=0.3)
    accuracies(n, scores, label)


def accuracies(n: NetSpec, scores: Top, label: Top) -> None:
    """Top-1 and top-5 accuracy, in testing."""
    n["top-1"] = L.Accuracy(scores, label, include=TEST)
    n["top-5"] = L.Accuracy(scores, label, top_k=5, include=TEST)


def conv(n: NetSpec, name: str, x: Top, num_output: int, kernel_size: int, **params: Any) -> Top:
    """A convolution and its ReLU."""
    n[name] = x = L.Convolution(
        x,
        num_output=num_output,
        kernel_size=kernel_size,
        weight_filler=XAVIER,
        bias_filler=constant(0.2),
        param=RATES,
        **params,
    )
    return relu(n, f"relu_{name.removesuffix('_s2')}", x)


def norm(n: NetSpec, name: str, x: Top) -> Top:
    """Local response normalization."""
    n[name] = x = L.LRN(x, local_size=5, alpha=1e-4, beta=0.75)
    return x


def inner_product(n: NetSpec, name: str, x: Top, num_output: int, *, bias: float) -> Top:
    """An inner product."""
    n[name] = x = L.InnerProduct(
        x, num_output=num_output, weight_filler=XAVIER, bias_filler=constant(bias), param=RATES
    )
    return x
