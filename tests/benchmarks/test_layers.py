import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")

from benchmarks import layers

SMALL = {
    "VGG conv3_2": [(2, 8, 6, 6)],
    "GoogLeNet pool1": [(2, 3, 9, 8)],
    "PReLU-net": [(2, 3, 4, 4)],
    "FCN loss": [(2, 21, 3, 3), (2, 3, 3)],
}


@pytest.mark.parametrize("name", SMALL)
def test_both_sides_compute_the_same_and_take_time(name):
    case = layers.CASES[name]
    small = layers.Case(case.layer, SMALL[name], case.operation, case.classes)
    ours, theirs = layers.measure(small)
    assert len(ours) == len(theirs) == 2
    assert min(*ours, *theirs) > 0


def test_sides_that_differ_are_not_timed():
    case = layers.Case('type: "TanH"', [(2, 3)], layers.torch.sigmoid)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        layers.measure(case)


def test_cases_cover_what_published_nets_use():
    assert len({case.type for case in layers.CASES.values()}) >= 20
    assert all(np.prod(case.shapes[0]) >= 1e3 for case in layers.CASES.values())
