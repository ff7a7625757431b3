import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocaffe.errors import LayerError
from tests.layers.gradient_check import Runner, check_gradients


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def naive_unit(gates, c_prev, cont):
    """One LSTM step for one stream, number by number."""
    d = len(c_prev)
    c, h = np.empty(d), np.empty(d)
    for k in range(d):
        i, f, o = (sigmoid(gates[n * d + k]) for n in range(3))
        c[k] = cont * f * c_prev[k] + i * math.tanh(gates[3 * d + k])
        h[k] = o * math.tanh(c[k])
    return c, h


def naive_lstm(x, cont, static, states, blobs):
    h, c = (state.copy() for state in states)
    w_x, b, *w_s, w_h = blobs
    outputs = []
    for step in range(len(x)):
        for n in range(x.shape[1]):
            gates = w_x @ x[step, n].ravel() + b + w_h @ (cont[step, n] * h[n])
            if w_s:
                gates = gates + w_s[0] @ static[n].ravel()
            c[n], h[n] = naive_unit(gates, c[n], cont[step, n])
        outputs.append(h.copy())
    return np.array(outputs), [h, c]


def naive_rnn(x, cont, static, states, blobs):
    (h,) = (state.copy() for state in states)
    w_x, b, *w_s, w_h, w_o, b_o = blobs
    outputs = []
    for step in range(len(x)):
        for n in range(x.shape[1]):
            total = w_x @ x[step, n].ravel() + b + w_h @ (cont[step, n] * h[n])
            if w_s:
                total = total + w_s[0] @ static[n].ravel()
            h[n] = np.tanh(total)
        outputs.append(np.tanh(h @ w_o.T + b_o))
    return np.array(outputs), [h]


@st.composite
def sequences(draw):
    """Draw x, cont, a static input or None, and whether the states are exposed."""
    steps, streams, d = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    tail = draw(st.sampled_from([(2,), (1, 2), ()]))
    x = rng.normal(size=(steps, streams, *tail))
    cont = rng.integers(0, 2, (steps, streams))
    static = rng.normal(size=(streams, 2)) if draw(st.booleans()) else None
    return x, cont, static, d, draw(st.booleans()), rng


@pytest.mark.parametrize(
    ("kind", "naive", "num_states"), [("LSTM", naive_lstm, 2), ("RNN", naive_rnn, 1)]
)
@given(case=sequences())
@settings(deadline=None, max_examples=25)
def test_is_the_naive_recurrence(kind, naive, num_states, case):
    x, cont, static, d, exposed, rng = case
    states = [np.zeros((x.shape[1], d)) for _ in range(num_states)]
    if exposed:
        states = [rng.normal(size=(x.shape[1], d)) for _ in range(num_states)]
    bottoms = [x, cont] + ([] if static is None else [static])
    bottoms += [state[None] for state in states] if exposed else []
    param = f"num_output: {d} expose_hidden: {str(exposed).lower()}"
    runner = Runner(
        f'type: "{kind}" recurrent_param {{ {param} }}',
        *bottoms,
        tops=1 + num_states * exposed,
    ).fill_blobs(rng)
    blobs = [blob.data for blob in runner.layer.blobs]
    for _ in range(2):
        h, *final = runner.forward()
        expected, states_after = naive(x, cont, static, states, blobs)
        np.testing.assert_allclose(h, expected, rtol=1e-10)
        for mine, state in zip(final, states_after, strict=False):
            np.testing.assert_allclose(mine[0], state, rtol=1e-10)
        if not exposed:
            states = states_after  # carried over to the next forward


@pytest.mark.parametrize(("kind", "num_states"), [("LSTM", 2), ("RNN", 1)])
@given(case=sequences())
@settings(deadline=None, max_examples=10)
def test_gradients(kind, num_states, case):
    x, cont, static, d, _, rng = case
    states = [rng.normal(size=(1, x.shape[1], d)) for _ in range(num_states)]
    inputs = [0] if static is None else [0, 2]
    bottoms = [x, cont, *([] if static is None else [static]), *states]
    runner = Runner(
        f'type: "{kind}" recurrent_param {{ num_output: {d} expose_hidden: true }}',
        *bottoms,
        tops=1 + num_states,
    ).fill_blobs(rng)
    check_gradients(runner, rng, bottoms=inputs, tops=[0])


def test_initial_states_get_no_gradient():
    text = 'type: "RNN" recurrent_param { num_output: 1 expose_hidden: true }'
    runner = Runner(text, np.ones((2, 1, 1)), np.ones((2, 1)), np.ones((1, 1, 1)), tops=2)
    runner.forward()
    *_, h_0 = runner.backward(1, 1, propagate_down=[True, False, True])
    assert np.isnan(h_0).all()


def test_another_number_of_streams_starts_from_zero():
    text = 'type: "LSTM" recurrent_param { num_output: 2 weight_filler { type: "xavier" } }'
    x, cont = np.ones((2, 1, 3)), np.ones((2, 1))
    runner = Runner(text, x, cont)
    (first,) = runner.forward()
    assert (runner.forward()[0] != first).any()
    runner.values = [np.repeat(x, 2, axis=1), np.repeat(cont, 2, axis=1)]
    for blob, value in zip(runner.bottom, runner.values, strict=True):
        blob.reshape(value.shape)
    runner.layer.reshape(runner.bottom, runner.top)
    np.testing.assert_allclose(runner.forward()[0], np.repeat(first, 2, axis=1))


@given(
    streams=st.integers(1, 3),
    d=st.integers(1, 3),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=20)
def test_lstm_unit(streams, d, seed):
    rng = np.random.default_rng(seed)
    c_prev, gates = rng.normal(size=(1, streams, d)), rng.normal(size=(1, streams, 4 * d))
    cont = rng.integers(0, 2, (1, streams))
    runner = Runner('type: "LSTMUnit"', c_prev, gates, cont, tops=2)
    c, h = runner.forward()
    for n in range(streams):
        expected = naive_unit(gates[0, n], c_prev[0, n], cont[0, n])
        np.testing.assert_allclose((c[0, n], h[0, n]), expected)
    check_gradients(runner, rng, bottoms=[0, 1])


def test_lstm_unit_forget_gate_derivative_with_a_fraction_of_cont():
    runner = Runner('type: "LSTMUnit"', np.ones((1, 1, 1)), np.zeros((1, 1, 4)), [[0.5]], tops=2)
    runner.forward()
    _, d_gates, _ = runner.backward(1, 0, propagate_down=[True, True, False])
    # f' = cont * sigmoid(0) = 0.25, and the rule is f' (1 - f')
    assert d_gates[0, 0, 1] == pytest.approx(0.25 * 0.75)


@pytest.mark.parametrize("kind", ["LSTM", "RNN", "LSTMUnit"])
def test_cont_has_no_gradient(kind):
    if kind == "LSTMUnit":
        runner = Runner('type: "LSTMUnit"', np.ones((1, 1, 1)), np.ones((1, 1, 4)), [[1]], tops=2)
    else:
        text = f'type: "{kind}" recurrent_param {{ num_output: 1 }}'
        runner = Runner(text, np.ones((1, 1, 1)), np.ones((1, 1)))
    assert not runner.layer.allow_force_backward(2 if kind == "LSTMUnit" else 1)
    runner.forward()
    with pytest.raises(LayerError, match="has no gradient for cont"):
        runner.backward(*[1] * len(runner.top))


@pytest.mark.parametrize(
    ("param", "shapes", "tops", "message"),
    [
        ("", [(2, 3, 4), (2, 3)], 1, "num_output must be at least 1"),
        ("num_output: 1", [(2, 3, 4), (2, 3), (3, 2), (1, 3, 1)], 1, "takes 2 bottoms, or 3"),
        ("num_output: 1 expose_hidden: true", [(2, 3, 4), (2, 3)], 3, "takes 4 bottoms, or 5"),
        ("num_output: 1", [(2, 3, 4), (2, 3)], 2, r"has 1 top\(s\); got 2"),
        ("num_output: 1", [(2,), (2, 3)], 1, r"x must be \(T, N"),
        ("num_output: 1", [(2, 3, 4), (2, 2)], 1, r"cont must be \(T, N\) = \(2, 3\)"),
        ("num_output: 1", [(2, 3, 4), (2, 3), (2, 2)], 1, r"static input must be \(N"),
        (
            "num_output: 1 expose_hidden: true",
            [(2, 3, 4), (2, 3), (1, 3, 2), (1, 3, 1)],
            3,
            r"initial states must be \(1, 3, 1\)",
        ),
    ],
)
def test_refuses(param, shapes, tops, message):
    with pytest.raises(LayerError, match=message):
        Runner(
            f'type: "LSTM" recurrent_param {{ {param} }}',
            *(np.zeros(shape) for shape in shapes),
            tops=tops,
        )


def test_refuses_another_number_of_steps():
    runner = Runner(
        'type: "RNN" recurrent_param { num_output: 1 }', np.ones((2, 1, 1)), np.ones((2, 1))
    )
    runner.bottom[0].reshape(3, 1, 1)
    with pytest.raises(LayerError, match="was set up for x of 2 steps"):
        runner.layer.reshape(runner.bottom, runner.top)


def test_lstm_unit_refuses_shapes_that_do_not_belong_together():
    with pytest.raises(LayerError, match=r"needs c_prev \(1, N, D\)"):
        Runner('type: "LSTMUnit"', np.ones((1, 2, 3)), np.ones((1, 2, 9)), np.ones((1, 2)), tops=2)
