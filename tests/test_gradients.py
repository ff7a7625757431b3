"""The public gradient checker: finds what is right right, and what is wrong wrong."""

from __future__ import annotations

import numpy as np
import pytest

import protocaffe
from protocaffe.errors import NetError
from protocaffe.gradients import GradientError, check_gradients

NET = """
force_backward: true
layer { name: "in" type: "Input" top: "x" top: "label"
        input_param { shape { dim: 4 dim: 3 } shape { dim: 4 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip"
        inner_product_param { num_output: 5 weight_filler { type: "gaussian" } } }
layer { name: "drop" type: "Dropout" bottom: "ip" top: "drop" }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "drop" bottom: "label" top: "loss"
        loss_weight: 3 }
"""
WRONG = """
force_backward: true
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 2 } } }
layer { name: "wrong" type: "Python" bottom: "x" top: "y"
        python_param { module: "tests.test_gradients" layer: "Wrong" } }
"""


class Wrong(protocaffe.Layer):
    """y = x^2, with a gradient that is wrong in one place."""

    def reshape(self, bottom: list, top: list) -> None:
        top[0].reshape(*bottom[0].shape)

    def forward(self, bottom: list, top: list) -> None:
        top[0].data[...] = bottom[0].data ** 2

    def backward(self, top: list, propagate_down: list[bool], bottom: list) -> None:
        bottom[0].diff[...] = 2 * bottom[0].data * top[0].diff
        bottom[0].diff[1, 0] = 5


def test_gradients_of_layers_are_right() -> None:
    net = protocaffe.Net(NET, protocaffe.TRAIN, dtype="float64", seed=1)
    net.blobs["x"].data[...] = np.random.default_rng(1).normal(size=(4, 3))
    net.blobs["label"].data[...] = [0, 4, 2, 2]
    found = check_gradients(net)
    assert list(found) == ["x", "ip[0]", "ip[1]"]
    assert max(found.values()) < 1e-7


def test_a_wrong_gradient_is_found() -> None:
    net = protocaffe.Net(WRONG, dtype="float64")
    net.blobs["x"].data[...] = 1
    with pytest.raises(
        GradientError, match=r"gradient of x is wrong in 1 of 4 places, most at \(1, 0\).*gives 5"
    ):
        check_gradients(net)


def test_what_cannot_be_checked_is_said() -> None:
    with pytest.raises(NetError, match="float64 only"):
        check_gradients(protocaffe.Net(NET))
    with pytest.raises(NetError, match=r"computes no gradient.*force_backward"):
        check_gradients(protocaffe.Net(WRONG.replace("force_backward: true", ""), dtype="float64"))
