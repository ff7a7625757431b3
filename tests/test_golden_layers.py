"""Every recorded case of Caffe 1.0: the same net, the same numbers.

tests/golden/<layer type>/<case> holds one layer or a few, mechanics/ what happens between layers,
composite/ small whole nets. Each has net.prototxt, meta.json and case.npz, whose keys are
bottom/*, param/*, top/*, topdiff/*, bottomdiff/*, paramdiff/*, param_after/* and total_loss, and
again below step2/, step3/ for further passes over the same net.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from protocaffe.engines import get_engine
from protocaffe.engines.cuda.forms import PRECISIONS
from protocaffe.errors import UsageError
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from tests.engines.cuda.standin import standin_engine

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.parent for path in GOLDEN.glob("*/*/case.npz"))


class Case:
    """A recorded case: its net, built and loaded, and its numbers."""

    def __init__(self, folder, engine):
        self.meta = json.loads((folder / "meta.json").read_text())
        self.arrays = dict(np.load(folder / "case.npz"))
        self.net = Net(
            folder / "net.prototxt", getattr(caffe_pb2, self.meta["phase"]), engine=engine
        )
        by_name = dict(zip(self.net.layer_names, self.net.layers, strict=True))
        for name, value in self.under("param/"):
            layer, index = name.rsplit("/", 1)
            by_name[layer].blobs[int(index)].data[...] = value
        self.blobs_of = {name: layer.blobs for name, layer in by_name.items()}

    def under(self, prefix):
        """Return (rest of the key, array) for every key below a prefix."""
        return [
            (key.removeprefix(prefix), value)
            for key, value in self.arrays.items()
            if key.startswith(prefix)
        ]

    def run(self, step):
        """Run one pass; ``step`` is the prefix of its keys."""
        for name, value in self.under(f"{step}bottom/"):
            self.net.blobs[name].data[...] = value
        loss = self.net.run_forward()
        if f"{step}total_loss" in self.arrays:
            self.equal(loss, self.arrays[f"{step}total_loss"], "total_loss")
        self.compare(f"{step}top/", lambda name: self.net.blobs[name].data)
        if self.meta["backward"]:
            self.run_backward(step)
        self.compare(f"{step}param_after/", lambda name: self.parameter(name).data)

    def run_backward(self, step):
        for name, value in self.under(f"{step}topdiff/"):
            if self.net.blob_loss_weights.get(name):
                self.equal(self.net.blobs[name].diff, value, f"the loss weight of {name}")
            else:
                self.net.blobs[name].diff[...] = value
        self.net.clear_param_diffs()
        self.net.backward()
        self.compare(f"{step}bottomdiff/", lambda name: self.net.blobs[name].diff)
        self.compare(f"{step}paramdiff/", lambda name: self.parameter(name).diff)

    def parameter(self, name):
        layer, index = name.rsplit("/", 1)
        return self.blobs_of[layer][int(index)]

    def compare(self, prefix, actual):
        for name, value in self.under(prefix):
            if prefix + name not in self.meta["random"]:
                self.equal(actual(name), value, prefix + name)

    def equal(self, actual, expected, what):
        assert np.shape(actual) == expected.shape, what
        np.testing.assert_allclose(actual, expected, **self.meta["tolerance"], err_msg=what)


STANDINS = {
    "cuda over a stand-in": PRECISIONS["float32"],
    "cuda over a stand-in, channels last": PRECISIONS["tf32"],
}


@pytest.fixture(params=["numpy", "onednn", "cuda", *STANDINS])
def engine(request):
    try:
        if request.param in STANDINS:
            return standin_engine(precision=STANDINS[request.param])
        return get_engine(request.param)
    except UsageError as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("folder", CASES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_recorded_case(folder, engine, monkeypatch):
    monkeypatch.chdir(folder)  # file names in a prototxt are relative to the working directory
    case = Case(folder, engine)
    assert case.net.outputs == case.meta["outputs"]
    assert [[layer.name, layer.type] for layer in case.net.layers] == case.meta["layers"]
    for name in case.meta["inputs_without_diff"]:
        case.net.blobs[name].diff[...] = 12.5
    for number in range(1, case.meta["forward_backward_passes"] + 1):
        case.run("" if number == 1 else f"step{number}/")
    for name in case.meta["inputs_without_diff"]:
        assert (case.net.blobs[name].diff == 12.5).all(), f"the diff of {name} was written to"


def test_no_case_is_lost():
    assert len(CASES) == 187
