"""Training: the loop, the update rules, learning-rate policies, snapshots."""

from __future__ import annotations

from pathlib import Path

from protocaffe.engines import Engine
from protocaffe.errors import SolverError, did_you_mean
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import is_text, read_solver
from protocaffe.solvers.adadelta import AdaDeltaSolver
from protocaffe.solvers.adagrad import AdaGradSolver
from protocaffe.solvers.adam import AdamSolver
from protocaffe.solvers.nesterov import NesterovSolver
from protocaffe.solvers.rmsprop import RMSPropSolver
from protocaffe.solvers.sgd import SGDSolver
from protocaffe.solvers.solver import Action, Solver

__all__ = [
    "SOLVERS",
    "Action",
    "AdaDeltaSolver",
    "AdaGradSolver",
    "AdamSolver",
    "NesterovSolver",
    "RMSPropSolver",
    "SGDSolver",
    "Solver",
    "get_solver",
]

SOLVERS: dict[str, type[Solver]] = {
    "SGD": SGDSolver,
    "Nesterov": NesterovSolver,
    "AdaGrad": AdaGradSolver,
    "RMSProp": RMSPropSolver,
    "AdaDelta": AdaDeltaSolver,
    "Adam": AdamSolver,
}
"""Solver classes by the name that ``type`` gives them."""


def get_solver(
    source: str | Path | caffe_pb2.SolverParameter,
    *,
    engine: str | Engine | None = None,
    path: str | Path = "",
    reuse_memory: bool = False,
) -> Solver:
    """Return the solver that a solver prototxt asks for with ``type`` (``"SGD"`` by default).

    Args:
        source: path of a solver prototxt, its text, or a ``SolverParameter``.
        engine, reuse_memory: see :class:`Solver`.
        path: for a ``SolverParameter``, the file it came from.

    Raises:
        SolverError: no solver has that type.
    """
    if not isinstance(source, caffe_pb2.SolverParameter):
        path = "" if is_text(source) else source
        source, _ = read_solver(source)
    if source.type not in SOLVERS:
        raise SolverError(
            f"unknown solver type '{source.type}'{did_you_mean(source.type, SOLVERS)} "
            f"(solver types: {', '.join(SOLVERS)})"
        )
    return SOLVERS[source.type](source, engine=engine, path=path, reuse_memory=reuse_memory)
