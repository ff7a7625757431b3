"""What is wrong with a solver's settings, its nets apart."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from protocaffe.check.problems import Problems
from protocaffe.errors import near_or_all
from protocaffe.proto import scan
from protocaffe.proto.caffe_pb2 import SolverParameter
from protocaffe.solvers import SOLVERS
from protocaffe.solvers.learning_rate import NEEDS, missing_rates
from protocaffe.solvers.snapshot import snapshot_prefix
from protocaffe.solvers.solver import Solver

RATE_FIELDS = ("gamma", "power", "stepsize", "stepvalue")
RULE_FIELDS = {
    "delta": ("AdaGrad", "RMSProp", "AdaDelta", "Adam"),
    "momentum2": ("Adam",),
    "rms_decay": ("RMSProp",),
}
"""Settings of some update rules, and which these are."""


class Fields:
    """Knows on which line of a solver file each field stands.

    Args:
        path: the file.
        text: its content.
    """

    def __init__(self, path: str, text: str) -> None:
        self._path = path
        self._lines: dict[str, int] = {}
        for step in scan.walk(text):
            if not step.blocks and step.token.isidentifier():
                self._lines.setdefault(step.token, scan.position(text, step.start)[0])

    def located(self, field: str, message: str) -> str:
        """Put the place of a field in front of a message; of the file if it is not there."""
        line = self._lines.get(field)
        return f"{self._path}:{line}: {message}" if line else f"{self._path}: {message}"


def check_settings(solver: SolverParameter, path: str, fields: Fields, problems: Problems) -> None:
    """Find all that is wrong with a solver's own settings."""
    if solver.type not in SOLVERS:
        message = f"unknown solver type '{solver.type}'{near_or_all(solver.type, SOLVERS)}"
        problems.error(fields.located("type", message))
    for field, message in SOLVERS.get(solver.type, Solver).setting_problems(solver):
        problems.error(fields.located(field, message))
    for field, message in _missing_paths(solver, path):
        problems.error(fields.located(field, message))
    for field, message in (
        *missing_rates(solver),
        *_rate_warnings(solver),
        *_rule_warnings(solver),
        *_warnings(solver),
    ):
        problems.warning(fields.located(field, message))


def _missing_paths(solver: SolverParameter, path: str) -> Iterator[tuple[str, str]]:
    if solver.snapshot or solver.snapshot_after_train:
        folder = Path(snapshot_prefix(solver, path)).parent
        if not folder.is_dir():
            yield "snapshot_prefix", f"there is no folder '{folder}' for snapshots; create it"
        elif not os.access(folder, os.W_OK):
            yield "snapshot_prefix", f"snapshots cannot be written to folder '{folder}'"
    for files in solver.weights:
        for file in map(str.strip, files.split(",")):
            if not os.path.exists(file):
                yield "weights", f"no such file: '{file}' (paths are relative to where you are)"


def _rate_warnings(solver: SolverParameter) -> Iterator[tuple[str, str]]:
    policy = solver.lr_policy
    if policy not in NEEDS:
        return
    used = {*NEEDS[policy], *(["stepvalue"] if policy == "multistep" else [])}
    given = {field.name for field, _ in solver.ListFields()}
    for field in RATE_FIELDS:
        if field in given and field not in used:
            yield field, f"{field} has no effect with lr_policy '{policy}'"
    values = list(solver.stepvalue)
    if policy == "multistep":
        if not values:
            yield "lr_policy", "without stepvalue, the rate of lr_policy 'multistep' never changes"
        if any(later <= earlier for earlier, later in pairwise(values)):
            yield "stepvalue", f"stepvalue should rise, got {', '.join(map(str, values))}"
        if solver.max_iter and values and values[-1] >= solver.max_iter:
            yield "stepvalue", f"stepvalue {values[-1]} is never reached in {_iterations(solver)}"
    if policy == "step" and solver.max_iter and solver.stepsize >= solver.max_iter:
        yield "stepsize", f"stepsize {solver.stepsize} is never reached in {_iterations(solver)}"


def _rule_warnings(solver: SolverParameter) -> Iterator[tuple[str, str]]:
    for field, types in RULE_FIELDS.items():
        if solver.HasField(field) and solver.type in SOLVERS and solver.type not in types:
            yield field, f"{field} has no effect on solver type {solver.type}"


def _iterations(solver: SolverParameter) -> str:
    return f"max_iter {solver.max_iter}"


def _warnings(solver: SolverParameter) -> Iterator[tuple[str, str]]:
    if solver.max_iter <= 0:
        yield "max_iter", f"max_iter is {solver.max_iter}, so nothing will be trained"
    if not 0 <= solver.momentum < 1:
        yield "momentum", f"momentum is {solver.momentum:g}; from 0 to below 1 makes sense"
    if solver.base_lr == 0 and solver.HasField("base_lr"):
        yield "base_lr", "base_lr is 0, so nothing will be learned"
    if solver.weight_decay < 0:
        yield "weight_decay", f"weight_decay {solver.weight_decay:g} makes weights grow"
    if not solver.snapshot and not solver.snapshot_after_train:
        yield "snapshot_after_train", "there is no snapshot, so what is trained will be lost"
    if not solver.test_iter and solver.test_interval:
        yield "test_interval", "test_interval has no effect without test_iter: nothing is tested"
