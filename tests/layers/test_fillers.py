import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocaffe.blob import Blob
from protocaffe.errors import LayerError
from protocaffe.layers.fillers import fill
from protocaffe.proto.caffe_pb2 import FillerParameter
from protocaffe.proto.text import parse_text

GOLDEN = Path(__file__).parents[1] / "golden" / "fillers"
STATISTICS = json.loads((GOLDEN / "statistics.json").read_text())


def filled(text, shape, seed=0, dtype=np.float32):
    blob = Blob(shape, dtype)
    fill(blob, parse_text(text, FillerParameter()), np.random.default_rng(seed), LayerError)
    return blob.data


@pytest.mark.parametrize(
    "case", STATISTICS, ids=lambda case: f"{case['filler']}-{len(case['shape'])}d"
)
def test_same_law_as_recorded(case):
    values = filled(case["config"], case["shape"]).astype(np.float64)
    n = values.size
    law, std = case["expected"], max(case["std"], 1e-12)
    # Five standard errors: a wrong law is off by far more.
    assert values.mean() == pytest.approx(law["mean"], abs=5 * std / math.sqrt(n) + 1e-7)
    assert values.std() == pytest.approx(case["std"], rel=0.1, abs=1e-9)
    if "max" in law:
        limits = (law.get("min", -law["max"]), law["max"])
        assert limits[0] - 1e-6 <= values.min() < values.max() <= limits[1] + 1e-6
        assert values.max() > limits[1] - 0.01 * (limits[1] - limits[0])
    if "zero_share" in law:
        share = law["zero_share"]
        error = math.sqrt(share * (1 - share) / n)
        assert (values == 0).mean() == pytest.approx(share, abs=5 * error)
    if "row_sum" in law:
        np.testing.assert_allclose(values.reshape(len(values), -1).sum(axis=1), 1, rtol=1e-5)
        assert values.min() >= 0


@pytest.mark.parametrize("name", ["k2", "k3", "k4", "k5", "k8"])
def test_bilinear_is_exact(name):
    expected = np.load(GOLDEN / "bilinear.npz")[name]
    np.testing.assert_allclose(filled('type: "bilinear"', expected.shape), expected, rtol=1e-6)


@given(
    st.sampled_from(["constant", "uniform", "gaussian", "positive_unitball", "xavier", "msra"]),
    st.lists(st.integers(0, 4), max_size=5),
    st.sampled_from([np.float32, np.float64]),
)
@settings(deadline=None, max_examples=60)
def test_any_shape_and_the_same_seed_gives_the_same(kind, shape, dtype):
    first, again = (filled(f'type: "{kind}"', shape, 7, dtype) for _ in range(2))
    assert first.shape == tuple(shape)
    assert first.dtype == dtype
    np.testing.assert_array_equal(first, again)


def test_float64_blobs_get_float64_values():
    values = filled('type: "gaussian"', (1000,), dtype=np.float64)
    assert (values != values.astype(np.float32)).mean() > 0.9


@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        ('type: "gausian"', (2, 2), "did you mean 'gaussian'"),
        ('type: "xavier" sparse: 1', (2, 2), "'sparse' works with the gaussian filler only"),
        ('type: "gaussian" sparse: 3', (2, 2), "sparse must be between 0 and the first extent"),
        ('type: "gaussian" sparse: -5', (2, 2), "sparse must be between 0 and the first extent"),
        ('type: "gaussian" std: -1', (2, 2), "std must not be negative"),
        ('type: "uniform" min: 2 max: 1', (2, 2), "min must not exceed max"),
        ('type: "bilinear"', (2, 2), "4 axes and a square kernel"),
        ('type: "bilinear"', (1, 1, 2, 3), "4 axes and a square kernel"),
    ],
)
def test_refuses(text, shape, message):
    with pytest.raises(LayerError, match=message):
        filled(text, shape)
