"""The seven learning-rate policies."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from protocaffe.errors import SolverError, did_you_mean
from protocaffe.proto import caffe_pb2

NEEDS = {
    "fixed": (),
    "step": ("gamma", "stepsize"),
    "exp": ("gamma",),
    "inv": ("gamma", "power"),
    "multistep": ("gamma",),
    "poly": ("power", "max_iter"),
    "sigmoid": ("gamma", "stepsize"),
}
"""The solver fields that each policy reads, besides ``base_lr``."""

WITHOUT = {
    ("step", "gamma"): "the rate falls to 0 at the first step",
    ("multistep", "gamma"): "the rate falls to 0 at the first step",
    ("exp", "gamma"): "the rate is 0 from iteration 1 on",
    ("inv", "gamma"): "the rate stays base_lr",
    ("inv", "power"): "the rate stays base_lr",
    ("poly", "power"): "the rate stays base_lr",
    ("sigmoid", "gamma"): "the rate stays half of base_lr",
}
"""Fields that Caffe reads as 0 where a policy lacks them, and what comes of that."""


def rate_problems(param: caffe_pb2.SolverParameter) -> Iterator[tuple[str, str]]:
    """Yield what keeps the policy from giving a rate: the field and a message."""
    policy = param.lr_policy
    if policy not in NEEDS:
        wrong = f"unknown learning rate policy '{policy}'" if policy else "lr_policy is missing"
        hint = did_you_mean(policy, NEEDS)
        yield "lr_policy", f"{wrong}{hint} (lr_policy is one of {', '.join(NEEDS)})"
    needed = NEEDS.get(policy, ())
    for field in needed:
        if (policy, field) not in WITHOUT and not param.HasField(field):
            yield "lr_policy", f"lr_policy '{policy}' needs the field {field}"
    if "gamma" in needed and param.gamma < 0:
        yield "gamma", f"gamma must not be negative, got {param.gamma:g}"
    if "stepsize" in needed and param.HasField("stepsize") and param.stepsize <= 0:
        yield "stepsize", f"stepsize must be positive, got {param.stepsize}"


def missing_rates(param: caffe_pb2.SolverParameter) -> Iterator[tuple[str, str]]:
    """Yield the fields of the policy that are missing and count as 0, as in Caffe."""
    if not param.HasField("base_lr"):
        yield "base_lr", "base_lr is missing and so 0: nothing will be learned"
    for (policy, field), consequence in WITHOUT.items():
        if policy == param.lr_policy and not param.HasField(field):
            yield "lr_policy", f"lr_policy '{policy}' lacks {field}, so {consequence}"


@dataclass
class LearningRate:
    """The rate as a function of the iteration, which counts from 0.

    ========= ==========================================================
    fixed     ``base_lr``
    step      ``base_lr * gamma ^ floor(iter / stepsize)``
    exp       ``base_lr * gamma ^ iter``
    inv       ``base_lr * (1 + gamma * iter) ^ -power``
    multistep ``base_lr * gamma ^ current_step``
    poly      ``base_lr * (1 - iter / max_iter) ^ power``
    sigmoid   ``base_lr / (1 + exp(-gamma * (iter - stepsize)))``
    ========= ==========================================================

    Args:
        param: the solver's settings.
        current_step: how many steps were taken; for multistep, of ``stepvalue``.

    Raises:
        SolverError: unknown policy, or one of its fields is missing or out of range.
    """

    param: caffe_pb2.SolverParameter
    current_step: int = 0

    def __post_init__(self) -> None:
        for _, problem in rate_problems(self.param):
            raise SolverError(problem)

    def __call__(self, iteration: int) -> float:
        """Return the rate of an iteration.

        For multistep, a passed ``stepvalue`` advances ``current_step`` by at most one per call,
        as Caffe does: skipped or equal values take one iteration each.
        """
        param = self.param
        base, gamma = param.base_lr, param.gamma
        match param.lr_policy:
            case "step":
                self.current_step = iteration // param.stepsize
                return base * gamma**self.current_step
            case "exp":
                return base * math.pow(gamma, iteration)
            case "inv":
                return base * math.pow(1 + gamma * iteration, -param.power)
            case "multistep":
                values = param.stepvalue
                if self.current_step < len(values) and iteration >= values[self.current_step]:
                    self.current_step += 1
                return base * math.pow(gamma, self.current_step)
            case "poly":
                return base * math.pow(max(0.0, 1 - iteration / param.max_iter), param.power)
            case "sigmoid":
                return base / (1 + math.exp(-gamma * (iteration - param.stepsize)))
        return base
