import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocaffe.errors import LayerError
from tests.layers.gradient_check import Runner, check_gradients, spaced


@given(
    operation=st.sampled_from(["SUM", "PROD", "MAX"]),
    count=st.integers(2, 4),
    shape=st.lists(st.integers(1, 3), max_size=3).map(tuple),
    coeffs=st.booleans(),
    stable=st.booleans(),
    in_place=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=60)
def test_combines_number_by_number(operation, count, shape, coeffs, stable, in_place, seed):
    rng = np.random.default_rng(seed)
    xs = list(spaced(rng, (count, *shape)))
    coeff = rng.integers(-2, 3, count) if coeffs and operation != "PROD" else []
    runner = Runner(
        f'type: "Eltwise" eltwise_param {{ operation: {operation} '
        + "".join(f"coeff: {each} " for each in coeff)
        + f"stable_prod_grad: {str(stable).lower()} }}",
        *xs,
        in_place=in_place,
    )
    weights = coeff if len(coeff) else [1] * count
    expected = {
        "SUM": sum(w * x for w, x in zip(weights, xs, strict=True)),
        "PROD": np.prod(xs, axis=0),
        "MAX": np.max(xs, axis=0),
    }
    np.testing.assert_allclose(runner.forward()[0], expected[operation], atol=1e-12)
    check_gradients(runner, rng)


def test_ties_of_the_maximum():
    same = [np.ones(1) for _ in range(3)]
    runner = Runner('type: "Eltwise" eltwise_param { operation: MAX }', *same)
    runner.forward()
    assert [dx.item() for dx in runner.backward(5)] == [0, 5, 0]


def test_maximum_with_nan_is_what_comparisons_in_turn_give():
    xs = np.array(np.meshgrid([1, 2, np.nan], [1, 2, np.nan], [1, 3, np.nan])).reshape(3, -1)
    runner = Runner('type: "Eltwise" eltwise_param { operation: MAX }', *xs)
    expected = np.where(xs[0] > xs[1], xs[0], xs[1])
    winner = np.where(xs[0] > xs[1], 0, 1)
    winner[xs[2] > expected] = 2
    expected = np.where(xs[2] > expected, xs[2], expected)
    np.testing.assert_array_equal(runner.forward()[0], expected)
    gradients = runner.backward(np.ones(27))
    np.testing.assert_array_equal(gradients, winner == np.arange(3)[:, None])


def test_the_product_at_zero():
    xs = np.array([0.0]), np.array([3.0])
    runner = Runner('type: "Eltwise" eltwise_param { operation: PROD }', *xs)
    runner.forward()
    assert runner.backward(1)[0] == 3
    text = 'type: "Eltwise" eltwise_param { operation: PROD stable_prod_grad: false }'
    runner = Runner(text, *xs)
    runner.forward()
    assert np.isnan(runner.backward(1)[0])


@pytest.mark.parametrize(
    ("param", "shapes", "message"),
    [
        ("coeff: 1", [(2,), (2,)], r"one coeff per bottom \(2\)"),
        ("operation: PROD coeff: [1, 2]", [(2,), (2,)], "PROD takes no coeff"),
        ("", [(2,), (3,)], "all bottoms need one shape"),
        ("", [(2,)], "expected at least 2 bottom"),
    ],
)
def test_refuses(param, shapes, message):
    with pytest.raises(LayerError, match=message):
        Runner(f'type: "Eltwise" eltwise_param {{ {param} }}', *(np.ones(s) for s in shapes))
