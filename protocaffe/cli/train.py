"""Train or fine-tune a net with the settings of a solver file.

Ctrl-C stops after the current iteration and writes a snapshot; a second Ctrl-C stops at once.
On a terminal a progress bar runs below the log.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from contextlib import AbstractContextManager, nullcontext

from protocaffe.cli.common import COMPUTING, LEVEL, STAGE, chosen_engine, stages
from protocaffe.cli.flags import Flag
from protocaffe.cli.signals import SignalRequests
from protocaffe.engines import Engine, get_engine
from protocaffe.errors import UsageError
from protocaffe.log import log
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import read_solver
from protocaffe.solvers import Action, Solver, get_solver

EFFECTS = ("stop", "snapshot", "none")

FLAGS = [
    Flag("solver", "the solver prototxt", required=True),
    Flag("snapshot", "a .solverstate to resume from, or auto: the newest complete one, if any"),
    Flag("weights", "caffemodels to start from, separated by commas; not with --snapshot"),
    *COMPUTING,
    LEVEL,
    STAGE,
    Flag("sigint_effect", "what Ctrl-C does", default="stop", choices=EFFECTS),
    Flag("sighup_effect", "what a hangup does", default="snapshot", choices=EFFECTS),
]


def run(flags: Namespace) -> int:
    """Train as the flags say."""
    if flags.snapshot and flags.weights:
        raise UsageError("give --snapshot to resume or --weights to fine-tune, not both")
    param = _solver_parameter(flags)
    solver = get_solver(param, engine=_engine(flags, param), path=flags.solver, reuse_memory=True)
    if flags.snapshot:
        _resume(solver, flags.snapshot)
    requests = SignalRequests(_action(flags.sigint_effect), _action(flags.sighup_effect))
    solver.get_action = requests.action
    log.info("Starting Optimization")
    with requests.listening(), _progress(solver):
        solver.solve()
    log.info("Optimization Done.")
    return 0


def _resume(solver: Solver, snapshot: str) -> None:
    if snapshot != "auto":
        log.info("Resuming from %s", snapshot)
        solver.restore(snapshot)
        return
    found = solver.restore_newest()
    if found:
        log.info("Resumed from %s", found)
    else:
        log.info("There is no snapshot to resume from yet; starting at iteration 0")


def _solver_parameter(flags: Namespace) -> caffe_pb2.SolverParameter:
    """Read the solver file and put the flags into it, as Caffe does."""
    param, _ = read_solver(flags.solver)
    param.train_state.level = flags.level
    param.train_state.stage.extend(stages(flags.stage))
    if flags.weights:
        param.weights[:] = [flags.weights]
    return param


def _engine(flags: Namespace, param: caffe_pb2.SolverParameter) -> Engine:
    """Return the flags' engine, else the GPU's if the solver file asks for one that is there."""
    in_file = param.HasField("solver_mode") and param.solver_mode == caffe_pb2.SolverParameter.GPU
    if in_file and not flags.gpu and not flags.engine:
        try:
            get_engine("cuda", flags.precision, gpu=param.device_id, graphs=flags.graph)
            flags.gpu = str(param.device_id)
        except UsageError as reason:
            log.warning("solver_mode is GPU, but %s; training on the CPU", reason)
    return chosen_engine(flags)


def _action(effect: str) -> Action:
    return Action[effect.upper()]


def _progress(solver: Solver) -> AbstractContextManager[None]:
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    from protocaffe.cli.progress import training_progress

    return training_progress(solver, Console(stderr=True))
