"""SoftmaxWithLoss of many positions, as dense prediction has them, against the numpy engine."""

from __future__ import annotations

import numpy as np
import pytest

from protocaffe.errors import LayerError
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from tests.engines.cuda.standin import recorder, standin_engine

SHAPES = [(2, 21, 40, 37), (2, 5, 130, 127), (3000, 10), (2, 70, 30, 30)]
"""Few classes; so many positions that sums are made of parts; on axis 1 alone; many classes."""


def build(shape: tuple[int, ...], settings: str) -> list[Net]:
    dims, labels = (
        " ".join(f"dim: {extent}" for extent in extents)
        for extents in (shape, (shape[0], *shape[2:]))
    )
    text = f"""force_backward: true
        layer {{ name: "in" type: "Input" top: "x" top: "label"
            input_param {{ shape {{ {dims} }} shape {{ {labels} }} }} }}
        layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "x" bottom: "label" top: "loss"
            top: "p" loss_weight: 2 loss_weight: 0 loss_param {{ {settings} }} }}"""
    return [Net(text, caffe_pb2.TRAIN, engine=each) for each in (standin_engine(), "numpy")]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("settings", ["", "ignore_label: 3", "normalization: FULL"])
def test_loss_of_many_positions(shape: tuple[int, ...], settings: str) -> None:
    nets = build(shape, settings)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        scores, labels = (
            5 * rng.standard_normal(shape),
            rng.integers(5, size=nets[0].blobs["label"].shape),
        )
        for net in nets:
            net.blobs["x"].data[...], net.blobs["label"].data[...] = scores, labels
        losses = [net.run_forward() for net in nets]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        for net in nets:
            net.run_backward()
        got, expected = nets
        np.testing.assert_allclose(got.blobs["p"].data, expected.blobs["p"].data, atol=1e-6)
        dx = expected.blobs["x"].diff
        np.testing.assert_allclose(got.blobs["x"].diff, dx, atol=1e-5 * np.abs(dx).max())
    recorder.counts.clear()


def test_a_label_that_is_no_class_of_a_dense_prediction() -> None:
    net, _ = build(SHAPES[0], "")
    net.run_forward()
    net.blobs["label"].data[1, 39, 36] = 21
    with pytest.raises(LayerError, match=r"label 21 is out of range .* 0 to 20"):
        net.run_forward()
    recorder.counts.clear()
