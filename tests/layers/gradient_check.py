"""Run one layer by itself, and compare its gradients with differences of its outputs."""

from __future__ import annotations

import numpy as np

from protocaffe.blob import Blob
from protocaffe.gradients import differences
from protocaffe.layers import create_layer
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import parse_text


class Runner:
    """One layer over bottoms of given values.

    Args:
        text: the inside of ``layer { ... }``; the name is added.
        bottoms: the bottoms' values.
        tops: how many tops.
        phase: TRAIN or TEST.
        in_place: top 0 is bottom 0.
        dtype: of all blobs.
    """

    def __init__(
        self, text, *bottoms, tops=1, phase=caffe_pb2.TRAIN, in_place=False, dtype=np.float64
    ):
        param = parse_text(f'name: "it" {text}', caffe_pb2.LayerParameter())
        self.layer = create_layer(param, phase=phase, dtype=dtype)
        self.values = [np.asarray(each, dtype) for each in bottoms]
        self.bottom = [Blob(each.shape, dtype) for each in self.values]
        self.top = [Blob(dtype=dtype) for _ in range(tops)]
        if in_place:
            assert self.layer.in_place
            self.top[0] = self.bottom[0]
        self.layer.check_counts(len(self.bottom), len(self.top))
        self.layer.rng = np.random.default_rng(3)
        self.layer.setup(self.bottom, self.top)
        self.layer.reshape(self.bottom, self.top)
        self.layer.param_propagate_down = [True] * len(self.layer.blobs)

    def fill_blobs(self, rng):
        """Give the learnable blobs random values; return the runner."""
        for blob in self.layer.blobs:
            blob.data[...] = rng.normal(size=blob.shape)
        return self

    def forward(self):
        """Return the tops' values, computed from the bottoms' first values."""
        for blob, value in zip(self.bottom, self.values, strict=True):
            blob.data[...] = value
        self.layer.rng = np.random.default_rng(4)
        self.layer.forward(self.bottom, self.top)
        return [blob.data.copy() for blob in self.top]

    def backward(self, *top_diffs, propagate_down=None):
        """Return the bottoms' gradients (None where not asked for) after one forward."""
        wanted = propagate_down or [True] * len(self.bottom)
        for blob, diff in zip(self.top, top_diffs, strict=True):
            blob.diff[...] = diff
        for blob in self.layer.blobs:
            blob.diff[...] = 0
        if self.top[0:1] != self.bottom[0:1]:
            for blob in self.bottom:
                blob.diff[...] = np.nan  # whatever backward leaves unwritten shows
        self.layer.backward(self.top, wanted, self.bottom)
        return [
            blob.diff.copy() if want else None
            for blob, want in zip(self.bottom, wanted, strict=True)
        ]


def check_gradients(
    runner, rng, *, bottoms=None, params=True, tops=None, step=1e-5, rtol=1e-5, atol=1e-7
):
    """Assert that backward gives the derivatives of a random weighted sum of the tops.

    Args:
        runner: the layer, in float64.
        rng: where the weights of that sum come from.
        bottoms: indices of the bottoms that have a gradient; all by default.
        params: whether to check the learnable blobs too.
        tops: indices of the tops whose gradient counts; all by default.
        step: how far each number is moved to either side.
        rtol, atol: how much the two may differ.
    """
    bottoms = range(len(runner.bottom)) if bottoms is None else bottoms
    outputs = runner.forward()
    counted = range(len(outputs)) if tops is None else tops
    weights = [
        rng.normal(size=y.shape) if index in counted else np.zeros(y.shape)
        for index, y in enumerate(outputs)
    ]

    def total():
        return sum(float((w * y).sum()) for w, y in zip(weights, runner.forward(), strict=True))

    wanted = [index in bottoms for index in range(len(runner.bottom))]
    gradients = runner.backward(*weights, propagate_down=wanted)
    parts = [(f"bottom {i}", runner.values[i], gradients[i]) for i in bottoms]
    if params:
        for index, blob in enumerate(runner.layer.blobs):
            parts.append((f"param {index}", blob.data, blob.diff.copy()))
    for what, values, gradient in parts:
        numeric = differences(total, values, step)
        np.testing.assert_allclose(gradient, numeric, rtol=rtol, atol=atol, err_msg=what)


def spaced(rng, shape, gap=0.1):
    """Return shuffled numbers around 0 that are all at least ``gap / 2`` from 0 and each other."""
    count = int(np.prod(shape))
    return (rng.permutation(count) - count // 2 + 0.5).reshape(shape) * gap
