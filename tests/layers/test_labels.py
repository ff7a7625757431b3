import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from protocaffe.layers.labels import add_rows


@given(
    index=st.lists(st.integers(0, 4), max_size=12).map(lambda each: np.array(each, np.int64)),
    tail=st.lists(st.integers(1, 3), max_size=2).map(tuple),
)
def test_rows_for_one_place_add_up(index, tail):
    rows = np.random.default_rng(1).normal(size=(len(index), *tail))
    sums = np.ones((5, *tail))
    expected = sums.copy()
    np.add.at(expected, index, rows)
    add_rows(np, sums, index, rows)
    np.testing.assert_allclose(sums, expected)
