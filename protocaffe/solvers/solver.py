"""The training loop: iterate, test, show, snapshot, stop."""

from __future__ import annotations

import enum
import math
import operator
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, SupportsFloat

import numpy as np

from protocaffe.assembly import LearnableParam
from protocaffe.blob import Blob
from protocaffe.debug import log_update
from protocaffe.engines import Engine, Loss, WholeUpdate, get_engine
from protocaffe.errors import FileError, SolverError, UsageError
from protocaffe.layers.python import download_mark
from protocaffe.log import log, number
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.stored import stored_state
from protocaffe.proto.text import format_text, is_text, read_solver
from protocaffe.settings import next_seed
from protocaffe.solvers.learning_rate import LearningRate, missing_rates, rate_problems
from protocaffe.solvers.nets import net_problems, test_net_sources, train_net_fields
from protocaffe.solvers.snapshot import (
    SnapshotPaths,
    check_history,
    check_writable,
    find_model,
    load_history,
    newest_snapshot,
    read_memory,
    remove_leftovers,
    snapshot_prefix,
    write_snapshot,
)


class Action(enum.Enum):
    """What somebody outside asks of a running solver."""

    NONE = "go on"
    STOP = "stop after this iteration, or in the test that runs"
    SNAPSHOT = "write a snapshot and go on"


class Solver:
    """Trains a net with the settings of a solver prototxt; children supply the update rule.

    One iteration: clear the parameter diffs; test if ``test_interval`` divides ``iter``; run
    ``iter_size`` times forward and backward, diffs adding up; show the loss; scale, regularise
    and subtract the update; count; snapshot.

    Args:
        source: path of a solver prototxt, its text, or a ``SolverParameter``.
        engine: name of the engine, an engine, or None for the fastest that runs here.
        reuse_memory: for all nets, see :class:`~protocaffe.net.Net`; test nets then run forward
            only.
        path: for a ``SolverParameter``, the file it came from (names the snapshots).

    Attributes:
        param: the settings.
        net: the training net.
        test_nets: the test nets, which use the training net's weights.
        iter: iterations done.
        smoothed_loss: mean of the last ``average_loss`` losses.
        history: what the update rule remembers: one blob per learnable parameter, then perhaps
            a second one for each (:attr:`history_sets`).
        get_action: asked after every iteration and before every batch of a test; see
            :class:`Action`.

    Raises:
        SolverError: settings that contradict each other or miss something.
        ProtocaffeError: a net, its data or its weights are wrong.
    """

    history_sets: ClassVar[int] = 1
    """How many history blobs the update rule needs per parameter."""
    engine_rule: ClassVar[str] = ""
    """What engines call the update rule of exactly this class, if they may know it."""

    def __init__(
        self,
        source: str | Path | caffe_pb2.SolverParameter,
        *,
        engine: str | Engine | None = None,
        path: str | Path = "",
        reuse_memory: bool = False,
    ) -> None:
        if isinstance(source, caffe_pb2.SolverParameter):
            self.param = source
        else:
            self.param = read_solver(source)[0]
            path = "" if is_text(source) else source
        self.engine = get_engine(engine)
        self._reuses_memory = reuse_memory
        self._prefix = snapshot_prefix(self.param, str(path))
        log.info("Initializing solver from parameters: \n%s", format_text(self.param))
        for _, problem in self.setting_problems(self.param):
            raise SolverError(problem)
        for _, gap in missing_rates(self.param):
            log.warning("%s", gap)
        _refuse_downloaded(self.param, path)
        if self.param.snapshot:
            check_writable(self._prefix)
        self.learning_rate = LearningRate(self.param)
        seed = self.param.random_seed
        self._seeds = np.random.SeedSequence(seed) if seed >= 0 else next_seed()
        self.net = self._train_net()
        self.test_nets = self._test_nets()
        for files in self.param.weights:
            for file in files.split(","):
                log.info("Finetuning from %s", file.strip())
                self._load_weights(file.strip())
        self.history = [
            Blob(p.blob.shape, self.net.dtype)
            for _ in range(self.history_sets)
            for p in self.net.learnable
        ]
        rule = vars(type(self)).get("engine_rule", "")
        self._whole_update = self.engine.whole_update(
            rule, self.param, self.net.learnable, self.history
        )
        self.iter = 0
        self.get_action: Callable[[], Action] = lambda: Action.NONE
        self._losses: deque[SupportsFloat] = deque(maxlen=max(1, self.param.average_loss))
        self._restored_losses: list[float] = []
        self._callbacks: list[tuple[Callable[[], None] | None, Callable[[], None] | None]] = []
        self._stop_requested = False
        self._is_saved = False
        self._has_diverged = False
        self._shown = (time.perf_counter(), 0)
        log.info("Solver scaffolding done.")

    # -- training ------------------------------------------------------------------------

    def solve(self, resume: str | Path | None = None) -> None:
        """Train until ``max_iter``, from a snapshot if one is named."""
        log.info("Solving %s", self.net.name)
        log.info("Learning Rate Policy: %s", self.param.lr_policy)
        if resume is not None:
            log.info("Restoring previous solver status from %s", resume)
            self.restore(resume)
        if 0 < self.param.max_iter <= self.iter:
            log.warning(
                "%d iterations are done already, and max_iter is %d: nothing will be trained",
                *(self.iter, self.param.max_iter),
            )
        if self.param.snapshot_after_train:
            check_writable(self._prefix)
        self._is_saved = False
        self.step(self.param.max_iter - self.iter)
        if self.param.snapshot_after_train and not self._is_saved:
            self.snapshot()
        if self._stop_requested:
            log.info("Optimization stopped early.")
            return
        self._finish()
        log.info("Optimization Done.")

    def step(self, iterations: int) -> None:
        """Run a number of iterations, fewer if a stop is asked for."""
        stop = self.iter + operator.index(iterations)
        self._stop_requested = False
        self._losses.clear()
        self._losses.extend(self._restored_losses)
        self._restored_losses = []
        self._shown = (time.perf_counter(), self.iter)
        while self.iter < stop and not self._stop_requested:
            self._iterate()

    def apply_update(self) -> None:
        """Subtract the update of this iteration from every parameter, and show the rate.

        The update is computed from the parameters' diffs; neither clears them nor counts.
        """
        rate = self._rate()
        with self.net.serving_holders():
            factor = self._clip_factor()
            if self._whole_update is not None and not self.net.debug_info:
                self._set_update(self._whole_update, rate, factor)
                self._whole_update()
                return
            update = self._logged_update if self.net.debug_info else self.update_parameter
            for index, learnable in enumerate(self.net.learnable):
                update(index, learnable, rate * learnable.lr_mult, factor)

    def _set_update(self, update: WholeUpdate, rate: float, factor: float) -> None:
        decay, by_sign = self.param.weight_decay, self.decays_by_sign
        update.set(self.corrected_rate(rate), factor, decay, by_sign, self.param.snapshot_diff)

    def update_parameter(
        self, index: int, learnable: LearnableParam, rate: float, factor: float
    ) -> None:
        """Update one parameter.

        Args:
            index: its place in ``net.learnable`` and ``history``.
            learnable: the parameter.
            rate: the learning rate with the parameter's own multiplier.
            factor: what its accumulated diff is multiplied by first (clipping and 1/iter_size).
        """
        raise NotImplementedError

    def corrected_rate(self, rate: float) -> float:
        """What the rule makes of the learning rate before anything else."""
        return rate

    @classmethod
    def setting_problems(cls, param: caffe_pb2.SolverParameter) -> Iterator[tuple[str, str]]:
        """Yield the settings that cannot be trained with: the field and a message."""
        for field in ("iter_size", "average_loss"):
            if getattr(param, field) < 1:
                yield field, f"{field} must be at least 1, got {getattr(param, field)}"
        if param.regularization_type not in ("L1", "L2"):
            message = f"regularization_type is L1 or L2, not '{param.regularization_type}'"
            yield "regularization_type", message
        yield from rate_problems(param)
        yield from net_problems(param)

    @property
    def max_iter(self) -> int:
        """At which iteration :meth:`solve` stops."""
        return self.param.max_iter

    @property
    def base_lr(self) -> float:
        """The rate that the policy starts from; may be set between iterations."""
        return self.param.base_lr

    @base_lr.setter
    def base_lr(self, rate: float) -> None:
        self.param.base_lr = rate

    @property
    def lr(self) -> float:
        """The learning rate of the next update."""
        return replace(self.learning_rate)(self.iter)  # a copy: asking must not advance it

    def update_lr(self, rate: float) -> None:
        """Make the next update use a learning rate; the policy goes on from there.

        Raises:
            UsageError: the rate is negative, or the policy gives 0 from here on.
        """
        if rate < 0:
            raise UsageError(f"a learning rate is not negative, got {rate}")
        before, self.base_lr = self.base_lr, 1
        share = self.lr
        if share <= 0:
            self.base_lr = before
            raise UsageError(
                f"lr_policy '{self.param.lr_policy}' gives a rate of 0 at iteration {self.iter}, "
                f"whatever base_lr is"
            )
        self.base_lr = rate / share

    def share_weights(self, net: Net) -> None:
        """Let another net use the training net's parameters."""
        net.share_with(self.net)

    @property
    def decays_by_sign(self) -> bool:
        """Whether weight decay pulls by the weights' sign (L1) and not by their size (L2)."""
        return bool(self.param.regularization_type == "L1")

    def add_callback(
        self,
        before: Callable[[], None] | None = None,
        after: Callable[[], None] | None = None,
    ) -> None:
        """Have functions called in every iteration.

        Args:
            before: called before the forward pass.
            after: called when the gradients are ready, before they change the parameters.

        Raises:
            UsageError: one of them cannot be called.
        """
        for callback in (before, after):
            if callback is not None and not callable(callback):
                raise UsageError(f"add_callback takes functions, not {callback!r}")
        self._callbacks.append((before, after))

    def _iterate(self) -> None:
        self.net.clear_param_diffs()
        if self._is_due(self.param.test_interval) and (
            self.iter > 0 or self.param.test_initialization
        ):
            self.test_all()
            if self._stop_requested:
                return
        for before, _ in self._callbacks:
            if before:
                before()
        # As in Caffe, here the solver's debug_info counts and the training net's own does not.
        self.net.debug_info = self.param.debug_info and self._is_due(self.param.display)
        if not self._step_at_once():
            loss = Loss(self.param.iter_size)
            for _ in range(self.param.iter_size):
                loss.add(self.net.start_forward())
                self.net.run_backward()
            self._note_loss(loss)
            for _, after in self._callbacks:
                if after:
                    after()
            self.apply_update()
        self.iter += 1
        self._is_saved = False
        self._answer_request(self._is_due(self.param.snapshot))

    def _step_at_once(self) -> bool:
        """Run both passes and the update as one piece of work; False if that cannot be."""
        update, watched = self._whole_update, any(after for _, after in self._callbacks)
        if update is None or watched or self.param.iter_size > 1 or self.param.clip_gradients >= 0:
            return False
        self._set_update(update, self.lr, 1.0)
        loss = self.net.start_step(update)
        if loss is None:
            return False
        self._note_loss(loss)
        self._rate()
        return True

    def _note_loss(self, loss: Loss) -> None:
        self._losses.append(loss)
        if self._is_due(self.param.display):
            self._show_loss()

    def _answer_request(self, snapshot: bool = False) -> None:
        """Do what is asked for from outside, and write a snapshot if one is due anyway."""
        action = self.get_action()
        if snapshot or action is Action.SNAPSHOT:
            try:
                self.snapshot()
                self._is_saved = True
            except FileError as error:
                log.error("No snapshot was written, training goes on: %s", error)
        self._stop_requested = action is Action.STOP

    def _finish(self) -> None:
        """Show the final loss, by one more forward pass, and the final test."""
        if self._is_due(self.param.display):
            self._losses.append(self.net.run_forward())
            log.info("Iteration %d, loss = %s", self.iter, number(self.smoothed_loss))
        if self._is_due(self.param.test_interval):
            self.test_all()

    def _is_due(self, interval: int) -> bool:
        return interval > 0 and self.iter % interval == 0

    # -- the update ----------------------------------------------------------------------

    def _logged_update(
        self, index: int, learnable: LearnableParam, rate: float, factor: float
    ) -> None:
        before = learnable.blob.data_storage.host_read().copy()
        self.update_parameter(index, learnable, rate, factor)
        after = learnable.blob.data_storage.host_read()
        log_update(learnable.layer, learnable.name or str(learnable.index), before, after)

    def _rate(self) -> float:
        step = self.learning_rate.current_step
        rate = self.learning_rate(self.iter)
        if self.param.lr_policy == "multistep" and self.learning_rate.current_step != step:
            log.info(
                "MultiStep Status: Iteration %d, step = %d",
                *(self.iter, self.learning_rate.current_step),
            )
        if self._is_due(self.param.display):
            log.info("Iteration %d, lr = %s", self.iter, number(rate))
        return rate

    def _clip_factor(self) -> float:
        """What the accumulated diffs are multiplied by: clipping first, then 1 / iter_size."""
        limit = self.param.clip_gradients
        if limit < 0:
            return 1 / self.param.iter_size
        diffs = [learnable.blob.diff_storage for learnable in self.net.learnable]
        norm = math.sqrt(self.engine.sum_of_squares(diffs))
        if not norm > limit:  # NaN too: what is finite stays so, as in Caffe
            return 1 / self.param.iter_size
        log.info(
            "Gradient clipping: scaling down gradients (L2 norm %s > %s) by scale factor %s",
            *(number(norm), number(limit), number(limit / norm)),
        )
        return limit / norm / self.param.iter_size

    # -- testing and showing -------------------------------------------------------------

    def test_all(self) -> None:
        """Run every test net for its ``test_iter`` batches and show the mean outputs."""
        for index in range(len(self.test_nets)):
            self._test(index)
            if self._stop_requested:
                break

    def _test(self, index: int) -> None:
        log.info("Iteration %d, Testing net (#%d)", self.iter, index)
        net, batches = self.test_nets[index], self.param.test_iter[index]
        sums: list[np.ndarray] = []
        loss = 0.0
        for _ in range(batches):
            self._answer_request()
            if self._stop_requested:
                log.info("Test interrupted.")
                return
            loss += net.run_forward()
            outputs = [net.blobs[name].data.ravel().astype(np.float64) for name in net.outputs]
            sums = [a + b for a, b in zip(sums, outputs, strict=True)] if sums else outputs
        if batches and self.param.test_compute_loss:
            log.info("Test loss: %s", number(loss / batches))
        if batches:
            self._show_outputs("Test", net, [each / batches for each in sums])

    @property
    def smoothed_loss(self) -> float:
        """The mean of the last ``average_loss`` losses, 0 before the first iteration."""
        return sum(map(float, self._losses)) / max(1, len(self._losses))

    def _show_loss(self) -> None:
        now = time.perf_counter()
        then, iteration = self._shown
        self._shown = (now, self.iter)
        seconds, done = now - then, self.iter - iteration
        log.info(
            "Iteration %d (%s iter/s, %ss/%d iters), loss = %s",
            *(self.iter, number(done / seconds if seconds else 0), number(round(seconds, 3))),
            *(self.param.display, number(self.smoothed_loss)),
        )
        values = [self.net.blobs[name].data.ravel() for name in self.net.outputs]
        self._show_outputs("Train", self.net, values)
        if math.isnan(self.smoothed_loss) and not self._has_diverged:
            self._has_diverged = True
            log.warning(
                "The loss is no number any more: training has diverged and does not recover. A "
                "lower base_lr may help, from the start or from an earlier snapshot."
            )

    @staticmethod
    def _show_outputs(phase: str, net: Net, outputs: Sequence[np.ndarray]) -> None:
        place = 0
        for name, values in zip(net.outputs, outputs, strict=True):
            weight = net.blob_loss_weights[name]
            for value in values:
                weighted = ""
                if weight:
                    weighted = f" (* {number(weight)} = {number(weight * value)} loss)"
                log.info(
                    "    %s net output #%d: %s = %s%s",
                    *(phase, place, name, number(float(value)), weighted),
                )
                place += 1

    # -- snapshots -----------------------------------------------------------------------

    def snapshot(self) -> None:
        """Write ``<prefix>_iter_<N>.caffemodel`` and ``.solverstate``, all or nothing.

        A third file, ``.solverstate.resume``, makes a resumed run the same to the last bit.

        Raises:
            FileError: they cannot be written; an older snapshot of that name is still there.
        """
        hdf5 = self.param.snapshot_format == caffe_pb2.SolverParameter.HDF5
        paths = SnapshotPaths.of(self._prefix, self.iter, hdf5)
        kind = "HDF5" if hdf5 else "binary proto"
        log.info("Snapshotting to %s file %s", kind, paths.model)
        log.info("Snapshotting solver state to %s file %s", kind, paths.state)
        state = caffe_pb2.SolverState(
            iter=self.iter,
            learned_net=paths.model,
            current_step=self.learning_rate.current_step,
        )
        memory = {
            "losses": [float(loss) for loss in self._losses],
            "net": self.net.get_state(),
            "test_nets": [net.get_state() for net in self.test_nets],
        }
        write_snapshot(paths, self.net, state, self.history, memory, diff=self.param.snapshot_diff)

    def restore(self, path: str | Path) -> None:
        """Go on from a ``.solverstate`` and the model it names.

        If the ``.resume`` file is there too, everything goes on as it would have without a
        break; from Caffe's own snapshots data and random numbers start anew.

        Raises:
            FileError: one of the files is missing or damaged.
            WeightsError: they do not fit this solver, or each other.
        """
        path = str(path)
        with stored_state(path) as state:
            check_history(state, path, self.history)
            paths = SnapshotPaths(find_model(state.learned_net, path), path)
            memory = read_memory(paths)
            self.net.copy_from(paths.model)
            load_history(state, path, self.history)
        self.iter = state.iter
        self.learning_rate.current_step = state.current_step
        if memory is not None:
            self._remember(memory, paths.resume)

    def restore_newest(self) -> str | None:
        """Go on from the newest complete snapshot of the prefix.

        Returns:
            Its ``.solverstate``, or None if there is none and nothing was changed.
        """
        remove_leftovers(self._prefix)
        newest = newest_snapshot(self._prefix)
        if newest is not None:
            self.restore(newest)
        return newest

    def _remember(self, memory: dict[str, Any], path: str) -> None:
        try:
            self._restored_losses = [float(loss) for loss in memory["losses"]]
            self.net.set_state(memory["net"])
            for net, state in zip(self.test_nets, memory["test_nets"], strict=False):
                net.set_state(state)
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(f"{path}: belongs to another version or is damaged: {error}") from None

    # -- building ------------------------------------------------------------------------

    def _load_weights(self, file: str) -> None:
        self.net.copy_from(file)
        for net in self.test_nets:
            if net.params.keys() - self.net.params.keys():  # it has weights of its own
                net.copy_from(file)

    def _train_net(self) -> Net:
        param = self.param
        given = train_net_fields(param)
        source = getattr(param, given[0])
        if isinstance(source, str):
            log.info("Creating training net from %s file: %s", given[0], source)
        else:
            log.info("Creating training net specified in %s.", given[0])
        return self._make_net(source, caffe_pb2.TRAIN, param.train_state, None)

    def _test_nets(self) -> list[Net]:
        sources = test_net_sources(self.param)
        return [self._test_net(index, source) for index, source in enumerate(sources)]

    def _test_net(self, index: int, source: str | caffe_pb2.NetParameter) -> Net:
        kind = f"net file: {source}" if isinstance(source, str) else "net_param"
        log.info("Creating test net (#%d) specified by %s", index, kind)
        states = self.param.test_state
        state = states[index] if states else caffe_pb2.NetState()
        net = self._make_net(source, caffe_pb2.TEST, state, self.net)
        net.debug_info = self.param.debug_info
        return net

    def _make_net(
        self,
        source: str | caffe_pb2.NetParameter,
        phase: int,
        state: caffe_pb2.NetState,
        shared: Net | None,
    ) -> Net:
        seed = None if self._seeds is None else self._seeds.spawn(1)[0]
        return Net(
            source,
            phase,
            state=state,
            engine=self.engine,
            seed=seed,
            shared=shared,
            forward_only=self._reuses_memory and phase == caffe_pb2.TEST,
            reuse_memory=self._reuses_memory,
        )


def _refuse_downloaded(param: caffe_pb2.SolverParameter, path: str | Path) -> None:
    """Refuse nets with Python layers that stand in a solver's file which a program fetched."""
    nets = (param.net_param, param.train_net_param, *param.test_net_param)
    runs_code = any(layer.type == "Python" for net in nets for layer in net.layer)
    mark = download_mark(path) if path and runs_code else None
    if mark is not None:
        raise SolverError(
            f"{path}: its net has Python layers, which would run code, but it was downloaded "
            f"({mark} says from where); read the code, and if you trust it, delete that file"
        )
