import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocaffe.errors import LayerError
from tests.layers.gradient_check import Runner, check_gradients


@given(
    selector=st.lists(st.sampled_from([0.0, 1.0, -2.0, 0.5]), min_size=1, max_size=5),
    tail=st.lists(st.integers(1, 3), max_size=2).map(tuple),
    column=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_filter_passes_what_is_chosen(selector, tail, column):
    rng = np.random.default_rng(0)
    n = len(selector)
    a, b = rng.normal(size=(n, *tail)), rng.normal(size=(n, 2))
    choice = np.reshape(selector, (n, 1) if column else (n,))
    runner = Runner('type: "Filter"', a, b, choice, tops=2)
    assert runner.top[0].shape == a.shape
    chosen = [i for i in range(n) if selector[i] != 0]
    for y, x in zip(runner.forward(), (a, b), strict=True):
        np.testing.assert_array_equal(y, x[chosen])
    check_gradients(runner, rng, bottoms=[0, 1])


def test_filter_can_change_its_mind():
    x = np.arange(4.0)
    runner = Runner('type: "Filter"', x, [1, 0, 0, 0])
    assert runner.forward()[0].tolist() == [0]
    runner.values[1] = np.array([0.0, 1, 1, 1])
    assert runner.forward()[0].tolist() == [1, 2, 3]
    assert runner.backward([5, 6, 7], propagate_down=[True, False])[0].tolist() == [0, 5, 6, 7]


@pytest.mark.parametrize(
    ("shapes", "tops", "message"),
    [
        ([(3, 2), (3,)], 2, "a top for every bottom but the selector"),
        ([(3, 2), (3, 2)], 1, "one number per sample"),
        ([(3, 2), (4,)], 1, "the selector is for 4 samples"),
    ],
)
def test_filter_refuses(shapes, tops, message):
    with pytest.raises(LayerError, match=message):
        Runner('type: "Filter"', *(np.zeros(shape) for shape in shapes), tops=tops)


@given(
    n=st.integers(1, 4),
    tail=st.lists(st.integers(1, 3), max_size=2).map(tuple),
    count=st.integers(1, 6),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=30)
def test_batch_reindex(n, tail, count, seed):
    rng = np.random.default_rng(seed)
    x, index = rng.normal(size=(n, *tail)), rng.integers(0, n, count)
    runner = Runner('type: "BatchReindex"', x, index)
    (y,) = runner.forward()
    for row, source in zip(y, index, strict=True):
        np.testing.assert_array_equal(row, x[source])
    check_gradients(runner, rng, bottoms=[0])


def test_batch_reindex_refuses():
    runner = Runner('type: "BatchReindex" bottom: "x" bottom: "i"', np.ones((2, 3)), [0, 2])
    with pytest.raises(LayerError, match=r"index 2 of sample 1 .*'i'.* from 0 to 1"):
        runner.forward()
    with pytest.raises(LayerError, match="an index with one axis"):
        Runner('type: "BatchReindex"', np.ones((2, 3)), [[0]])


@pytest.mark.parametrize("kind", ["Filter", "BatchReindex"])
def test_the_choice_has_no_gradient(kind):
    runner = Runner(f'type: "{kind}"', np.ones(2), [1, 1])
    runner.forward()
    with pytest.raises(LayerError, match="has no gradient for the"):
        runner.backward(1)
