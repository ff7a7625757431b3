"""The learning-rate policies against their formulas."""

from __future__ import annotations

import math

import pytest

from protocaffe.errors import SolverError
from protocaffe.proto.caffe_pb2 import SolverParameter
from protocaffe.solvers.learning_rate import LearningRate, missing_rates

FIELDS = {"base_lr": 0.5, "gamma": 0.1, "power": 0.75, "stepsize": 10, "max_iter": 40}

FORMULAS = {
    "fixed": lambda i: 0.5,
    "step": lambda i: 0.5 * 0.1 ** (i // 10),
    "exp": lambda i: 0.5 * 0.1**i,
    "inv": lambda i: 0.5 * (1 + 0.1 * i) ** -0.75,
    "poly": lambda i: 0.5 * (1 - i / 40) ** 0.75,
    "sigmoid": lambda i: 0.5 / (1 + math.exp(-0.1 * (i - 10))),
}


@pytest.mark.parametrize("policy", FORMULAS)
def test_formula(policy: str) -> None:
    rate = LearningRate(SolverParameter(lr_policy=policy, **FIELDS))
    for iteration in (0, 1, 9, 10, 11, 25, 40):
        assert rate(iteration) == pytest.approx(FORMULAS[policy](iteration), rel=1e-5)


def test_multistep_takes_one_step_per_iteration() -> None:
    param = SolverParameter(lr_policy="multistep", stepvalue=[3, 3, 5], **FIELDS)
    rate = LearningRate(param)
    rates = [rate(iteration) for iteration in range(7)]
    assert rates == pytest.approx([0.5, 0.5, 0.5, 0.05, 0.005, 0.0005, 0.0005])


def test_multistep_goes_on_from_a_snapshot() -> None:
    param = SolverParameter(lr_policy="multistep", stepvalue=[3, 6], **FIELDS)
    assert LearningRate(param, current_step=1)(4) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr_policy": "warp"}, "unknown learning rate policy 'warp'"),
        ({"lr_policy": "stpe"}, "did you mean 'step'"),
        ({}, r"lr_policy is missing \(lr_policy is one of fixed, step"),
        ({"lr_policy": "step", "stepsize": None}, "needs the field stepsize"),
        ({"lr_policy": "step", "stepsize": 0}, "stepsize must be positive"),
        ({"lr_policy": "exp", "gamma": -1}, "gamma must not be negative"),
    ],
)
def test_wrong_settings_are_refused(fields: dict[str, object], message: str) -> None:
    wanted = {name: value for name, value in {**FIELDS, **fields}.items() if value is not None}
    with pytest.raises(SolverError, match=message):
        LearningRate(SolverParameter(**wanted))


@pytest.mark.parametrize(
    ("policy", "missing", "rates", "told"),
    [
        ("fixed", "base_lr", (0, 0, 0), "nothing will be learned"),
        ("step", "gamma", (0.5, 0.5, 0), "falls to 0 at the first step"),
        ("multistep", "gamma", (0.5, 0.5, 0), "falls to 0 at the first step"),
        ("exp", "gamma", (0.5, 0, 0), "0 from iteration 1 on"),
        ("inv", "gamma", (0.5, 0.5, 0.5), "stays base_lr"),
        ("inv", "power", (0.5, 0.5, 0.5), "stays base_lr"),
        ("poly", "power", (0.5, 0.5, 0.5), "stays base_lr"),
        ("sigmoid", "gamma", (0.25, 0.25, 0.25), "stays half of base_lr"),
    ],
)
def test_what_is_missing_counts_as_0_and_is_told(
    policy: str, missing: str, rates: tuple[float, ...], told: str
) -> None:
    fields = {name: value for name, value in FIELDS.items() if name != missing}
    param = SolverParameter(lr_policy=policy, stepvalue=[10], **fields)
    rate = LearningRate(param)
    assert [rate(iteration) for iteration in (0, 1, 10)] == pytest.approx(rates)
    ((_, message),) = missing_rates(param)
    assert missing in message
    assert told in message
