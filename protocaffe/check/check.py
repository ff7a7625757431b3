"""Checking a file: a net in both phases, or a solver with all its nets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from protocaffe.check.net import check_net
from protocaffe.check.problems import ERROR, WARNING, Problem, Problems
from protocaffe.check.solver import Fields, check_settings
from protocaffe.errors import NetError, ProtocaffeError
from protocaffe.graph import apply_rules, merge_state
from protocaffe.proto import caffe_pb2, scan
from protocaffe.proto.caffe_pb2 import NetParameter, NetState, SolverParameter
from protocaffe.proto.files import StrPath
from protocaffe.proto.recover import parse_all
from protocaffe.proto.text import Source, read_text
from protocaffe.proto.upgrade import upgrade_net, upgrade_solver
from protocaffe.solvers.nets import test_net_sources, train_net_fields

PHASES = {"TRAIN": caffe_pb2.TRAIN, "TEST": caffe_pb2.TEST}


@dataclass(frozen=True)
class Checked:
    """What came out.

    Attributes:
        kind: ``net`` or ``solver``.
        problems: by file and line.
    """

    kind: str
    problems: list[Problem]

    @property
    def errors(self) -> int:
        """How many problems would be refused."""
        return sum(problem.severity == ERROR for problem in self.problems)

    @property
    def warnings(self) -> int:
        """How many problems would run."""
        return sum(problem.severity == WARNING for problem in self.problems)


def check_file(path: StrPath, *, level: int = 0, stages: Sequence[str] = ()) -> Checked:
    """Find everything that is wrong with a net or a solver, of any age, at once.

    Nothing is trained, written or allocated; databases are opened to see what they hold. A
    net is checked in the phases TRAIN and TEST, a solver's nets in the states in which the solver
    makes them.

    Args:
        path: a prototxt; what it holds is seen from its fields.
        level: the level of the nets' state.
        stages: the stages of the nets' state.

    Raises:
        FileError: the file is missing or no text.
    """
    name, text = os.fspath(path), read_text(path)
    problems = Problems(name)
    if _is_solver(text):
        _check_solver(name, text, NetState(level=level, stage=stages), problems)
        return Checked("solver", problems.sorted())
    net = _read_net(name, text, problems)
    if net is not None:
        source = Source(name, text)
        states = {phase: merge_state(net, PHASES[phase], level, stages) for phase in PHASES}
        _check_states(net, source, states, problems)
    return Checked("net", problems.sorted())


def _check_states(
    net: NetParameter, source: Source, states: Mapping[str, NetState], problems: Problems
) -> None:
    """Check a net in several states, but not in those in which it has no layers at all.

    Args:
        net: of the current format.
        source: where its layers stand.
        states: by what to call the net in that state.
        problems: what is found is added here.
    """
    rules = {phase: apply_rules(net, state, source, _ignore) for phase, state in states.items()}
    inhabited = {phase: kept for phase, (kept, _) in rules.items() if kept} or dict.fromkeys(states)
    for phase in inhabited:
        problems.phase = phase
        check_net(net, states[phase], source, problems)
    problems.phase = ""
    kept = {(node.where, node.name) for nodes, _ in rules.values() for node in nodes}
    for node, _ in next(iter(rules.values()))[1]:
        if kept and (node.where, node.name) not in kept:
            nets = " and ".join(states)
            problems.warning(
                node.error(f"is in no net that was checked ({nets}) because of {node.rules}")
            )


def _ignore(error: NetError) -> None:
    """Leave a mistake to whoever meets it again."""


def _is_solver(text: str) -> bool:
    """Tell by the fields outside all blocks; those that both kinds have do not count."""
    names = {step.token for step in scan.walk(text) if not step.blocks}
    solver, net = (
        len(names & (set(mine.DESCRIPTOR.fields_by_name) - set(other.DESCRIPTOR.fields_by_name)))
        for mine, other in ((SolverParameter, NetParameter), (NetParameter, SolverParameter))
    )
    return solver > net


def _read_net(path: str, text: str, problems: Problems) -> NetParameter | None:
    net, mistakes = parse_all(text, NetParameter, path)
    for mistake in mistakes:
        problems.error(mistake)
    if net is None:
        return None
    try:
        upgrade_net(net, path)
    except ProtocaffeError as error:
        problems.error(error)
        return None
    return net


def _check_solver(path: str, text: str, flags: NetState, problems: Problems) -> None:
    solver, mistakes = parse_all(text, SolverParameter, path)
    for mistake in mistakes:
        problems.error(mistake)
    if solver is None:
        return
    try:
        upgrade_solver(solver, path)
    except ProtocaffeError as error:
        problems.error(error)
        return
    fields = Fields(path, text)
    check_settings(solver, path, fields, problems)
    for made in _nets_of(solver, flags):
        net, source = _open_net(made, path, text, fields, problems)
        if net is not None:
            _check_states(net, source, made.full_states(net), problems)
            problems.file = path


@dataclass
class _Made:
    """A net that a solver makes.

    Attributes:
        field: the solver's field that names it.
        source: its path or its message.
        states: by what to call it, the phase and what the solver adds to the net's own state.
    """

    field: str
    source: str | NetParameter
    states: dict[str, tuple[caffe_pb2.Phase, NetState]]

    def full_states(self, net: NetParameter) -> dict[str, NetState]:
        """Return the states in which it is made, as the solver merges them."""
        result = {}
        for name, (phase, addition) in self.states.items():
            result[name] = NetState(phase=phase)
            result[name].MergeFrom(net.state)
            result[name].MergeFrom(addition)
        return result


def _nets_of(solver: SolverParameter, flags: NetState) -> list[_Made]:
    """Return every net once, with all the states in which it is made."""
    made: list[_Made] = []

    def add(field: str, source: str | NetParameter, name: str, addition: NetState) -> None:
        found = next((each for each in made if each.source == source), None)
        if found is None:
            found = _Made(field, source, {})
            made.append(found)
        phase = caffe_pb2.TRAIN if name == "TRAIN" else caffe_pb2.TEST
        found.states[name] = (phase, addition)

    for field in train_net_fields(solver)[:1]:
        addition = NetState()
        addition.MergeFrom(solver.train_state)
        addition.MergeFrom(flags)
        add(field, getattr(solver, field), "TRAIN", addition)
    sources = test_net_sources(solver)
    for index, source in enumerate(sources):
        given = solver.test_state[index] if index < len(solver.test_state) else NetState()
        field = "test_net" if source in list(solver.test_net) else "net"
        add(field, source, f"TEST #{index}" if len(sources) > 1 else "TEST", given)
    return made


def _open_net(
    made: _Made, solver_path: str, text: str, fields: Fields, problems: Problems
) -> tuple[NetParameter | None, Source]:
    if not isinstance(made.source, str):
        return made.source, Source(solver_path, text)
    path = made.source
    try:
        content = read_text(path)
    except ProtocaffeError as error:
        beside = Path(solver_path).parent / path
        hint = f"; it is there from '{beside.parent}'" if beside.exists() else ""
        message = f"{made.field}: {error}{hint} (paths are relative to where you are)"
        problems.error(fields.located(made.field, message))
        return None, Source(path)
    problems.file = path
    return _read_net(path, content, problems), Source(path, content)
