"""Net: layers wired by blobs, planned by an engine, run forward and backward."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, SupportsFloat

import numpy as np
import numpy.typing as npt

from protocaffe.assembly import (
    Assembly,
    LearnableParam,
    backward_facts,
    fill_loss_weights,
    guarded,
)
from protocaffe.blob import Blob, Storage
from protocaffe.calls import MOMENTS, LayerCallback, Named, NetCalls
from protocaffe.debug import log_backward, log_forward, log_norms
from protocaffe.engines import Engine, LayerNode, Loss, Plan, WholeUpdate, get_engine
from protocaffe.errors import (
    NetError,
    UsageError,
)
from protocaffe.graph import Graph, build_graph, merge_state
from protocaffe.graph.backward import decide_backward
from protocaffe.layers import Layer
from protocaffe.layers.python import Python
from protocaffe.log import log
from protocaffe.proto import caffe_pb2
from protocaffe.proto.files import replacing
from protocaffe.proto.stored import is_hdf5
from protocaffe.proto.text import Source, format_text, read_net
from protocaffe.proto.upgrade import upgrade_net
from protocaffe.settings import next_seed
from protocaffe.weights import encode_layer, load_weights, numbered, save_weights

Weights = str | Path | Sequence[str | Path]


class Net(NetCalls):
    """A network built from a prototxt.

    Args:
        network_file: path of a net prototxt, its text, or a ``NetParameter``.
        phase: ``TRAIN`` or ``TEST``; which layers with phase rules are in.
        level: the state's level, 0 without it.
        stages: the state's stages, added to those of the file.
        weights: a ``.caffemodel`` to load, or several, comma-separated or in a list. Also
            understood is ``Net(file, weights, phase)``, the order of pycaffe before 2015.
        engine: ``"numpy"``, ``"onednn"``, an engine, or None for the fastest that runs here.
        dtype: type of all blobs, ``float32`` or ``float64`` (then every layer runs its own code).
        seed: makes fillers, dropout and data order repeatable; None for a random one, unless
            :func:`protocaffe.set_random_seed` was called.
        shared: a net whose parameters are used, by layer name, instead of own ones.
        state: merged over ``phase`` and the file's own state, as a solver's ``train_state``;
            then level and stages are not used.
        forward_only: leave out all that backward needs: less memory, and normalisation by running
            statistics becomes part of the convolutions before it.
        reuse_memory: let blobs that nothing needs any more give their memory to later ones: less
            memory and a little more speed, but after a pass only ``outputs`` and what the plan
            happened to keep can be read; asking for other blobs raises ``NetError``.

    Attributes:
        name: the net's name.
        phase: ``TRAIN`` (0) or ``TEST`` (1).
        graph: the structure after filtering and split insertion.
        layers: the layers in order, each with its ``type`` and ``blobs``.
        layer_names: their names.
        nodes: per layer, how it is wired and whether it runs backward.
        bottoms: per layer, the blobs it reads; ``tops`` those it writes.
        blobs: every blob by name, in order of creation.
        params: the parameter blobs of every layer that has some.
        learnable: the parameters as a solver updates them.
        inputs: names of the Input layers' tops.
        outputs: names of the blobs nobody reads, in byte order.
        blob_loss_weights: per blob, its weight in the loss.
        layer_needs_backward: per layer, whether backward runs.
        debug_info: whether every pass logs the mean absolute values of what it computes.

    Raises:
        ProtocaffeError: the text, the structure or a layer's parameters are wrong.
    """

    def __init__(
        self,
        network_file: str | Path | caffe_pb2.NetParameter,
        phase: int | str | Path = caffe_pb2.TEST,
        level: int | None = None,
        stages: Sequence[str] | None = None,
        weights: Weights | None = None,
        *,
        engine: str | Engine | None = None,
        dtype: npt.DTypeLike = np.float32,
        seed: int | np.random.SeedSequence | None = None,
        shared: Net | None = None,
        state: caffe_pb2.NetState | None = None,
        forward_only: bool = False,
        reuse_memory: bool = False,
    ) -> None:
        self.engine = get_engine(engine)
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise UsageError(f"a net's dtype is float32 or float64, not {self.dtype}")
        if isinstance(phase, (str, Path)):  # Net(file, weights, phase), pycaffe's older order
            weights, phase, level = phase, caffe_pb2.TEST if level is None else level, None
        if phase not in (caffe_pb2.TRAIN, caffe_pb2.TEST):
            raise UsageError(f"a net's phase is TRAIN (0) or TEST (1), not {phase!r}")
        stages = [stages] if isinstance(stages, str) else stages
        text, where = _read(network_file)
        if state is None:
            state = merge_state(text, phase, level or 0, stages or ())
        else:
            state = _merged(caffe_pb2.NetState(phase=phase), text.state, state)  # type: ignore[arg-type]
        self.graph = _graph(text, where, state)
        self.name: str = self.graph.name
        self.phase = int(self.graph.state.phase)
        self.debug_info: bool = text.debug_info
        self._forward_only = forward_only
        self._reuses_memory = reuse_memory
        with self.engine.active():
            self._assemble(next_seed() if seed is None else seed)
        self._log_summary()
        if forward_only:
            for node in self.nodes:
                node.needs_backward, node.propagate_down = False, [False] * len(node.bottoms)
        self._plan: Plan | None = None
        self._fuses = True
        self._callbacks: dict[str, list[LayerCallback]] = {moment: [] for moment in MOMENTS}
        self._storages: list[Storage] = []
        self._seen_changes = -1
        self._lock = threading.RLock()
        self._ran = [False] * len(self.layers)
        self._planned_shapes = self._shapes()
        self._param_shapes = [[blob.shape for blob in layer.blobs] for layer in self.layers]
        if shared is not None:
            self.share_with(shared)
        for file in _file_list(weights):
            self.copy_from(file)

    def __repr__(self) -> str:
        ends = f"inputs {', '.join(self.inputs)}; outputs {', '.join(self.outputs)}"
        return f"<Net '{self.name}': {len(self.layers)} layers; {ends}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise NetError(
            "a net cannot be copied or pickled; build another from the same text, and give it "
            "these weights: net.save(path) and Net(..., weights=path), or other.share_with(net)"
        )

    def _assemble(self, seed: int | np.random.SeedSequence | None) -> None:
        assembly = Assembly(xp=self.engine.xp, dtype=self.dtype, seed=seed)
        for node in self.graph.nodes:
            assembly.add(node)
        self.layers: list[Layer] = assembly.layers
        self.layer_names: list[str] = [layer.name for layer in self.layers]
        self.bottoms: list[list[Blob]] = assembly.bottoms
        self._sources = [index for index, bottoms in enumerate(self.bottoms) if not bottoms]
        self._fed = [index for index, bottoms in enumerate(self.bottoms) if bottoms]
        self.tops: list[list[Blob]] = assembly.tops
        self.blobs: dict[str, Blob] = Named(assembly.blobs, self._has_no("blob"))
        self.params: dict[str, list[Blob]] = Named(
            assembly.params, self._has_no("parameters of a layer")
        )
        self.learnable: list[LearnableParam] = assembly.learnable
        self.blob_loss_weights: dict[str, float] = Named(
            assembly.loss_weights, self._has_no("blob")
        )
        self.inputs: list[str] = self.graph.inputs
        self.outputs: list[str] = self.graph.outputs
        self._top_names: list[list[str]] = assembly.top_names
        self.nodes = self._decide_backward()

    # -- running -------------------------------------------------------------------------

    def run_forward(self, first: int = 0, last: int | None = None) -> float:
        """Run layers ``first`` to ``last`` (places in ``layers``) forward, and return no blobs.

        Returns:
            Their loss: the sum over weighted tops of weight times values.
        """
        return float(self.start_forward(first, last))

    def start_forward(self, first: int = 0, last: int | None = None) -> Loss:
        """Run layers forward as :meth:`run_forward`, without waiting for the loss.

        Where a device computes, the pass may not be over on return; ``float(loss)`` waits.
        """
        stop = len(self.layers) if last is None else last + 1
        at_once = not (first > 0 or stop < len(self.layers) or any(self._callbacks.values()))
        if not at_once:
            self.run_one_by_one()
        loss = Loss()
        with self.serving_holders():
            if at_once and not (self.debug_info or any(each.dynamic for each in self.layers)):
                for part in (self._plan or self._ready()).forward_all():
                    loss.add(part)
                self._ran = [True] * len(self.layers)
                return loss
            for index in range(first, stop):
                self._call("before_forward", index)
                loss.add(self.forward_layer(index))
                self._call("after_forward", index)
        return loss

    def run_backward(self, first: int | None = None, last: int = 0) -> None:
        """Run layers ``first`` down to ``last`` backward where they need it.

        Raises:
            NetError: the net has no backward pass, or one of these layers did not run forward.
        """
        if self._forward_only:
            raise NetError("this net was made with forward_only: it has no backward pass")
        first = len(self.layers) - 1 if first is None else first
        self._check_cut(first, last)
        with self.serving_holders():
            self._check_forward_ran(first, last)
            whole = first - last + 1 == len(self.layers)
            if whole and not self.debug_info and not any(self._callbacks.values()):
                (self._plan or self._ready()).backward_all()
                return
            for index in range(first, last - 1, -1):
                self._call("before_backward", index)
                self.backward_layer(index)
                self._call("after_backward", index)
        if self.debug_info:
            log_norms([learnable.blob for learnable in self.learnable])

    def start_step(self, update: WholeUpdate) -> Loss | None:
        """Run all layers forward and backward, and update, as one piece of work.

        Args:
            update: what to do with the gradients.

        Returns:
            The loss, which nobody has waited for; None if that cannot be, and nothing has run.
        """
        watched = self.debug_info or any(self._callbacks.values())
        if watched or self._forward_only or any(self.layers[i].dynamic for i in self._fed):
            return None
        loss = Loss()
        with self.serving_holders():
            if (self._plan or self._ready()).whole_step(update) is None:
                return None
            for index in self._sources:
                self.forward_layer(index)
            step = self.plan.whole_step(update)
            if step is None:  # a source has other shapes, and the rest was planned anew
                for index in self._fed:
                    self.forward_layer(index)
                self.plan.backward_all()
                update()
            else:
                step()
                self._ran = [True] * len(self.layers)
            for part in self.plan.losses():
                loss.add(part)
        return loss

    def run_one_by_one(self) -> None:
        """Run layers one by one from now on, never several as one.

        Then every blob holds what its last layer wrote at any time, and passes may begin and end
        at any layer. A first pass that does not take in the whole net asks for this by itself.
        """
        if self._fuses:
            self._fuses = False
            self._plan = None

    def forward_layer(self, index: int) -> SupportsFloat:
        """Run one layer forward; return its share of the loss."""
        plan = self._plan or self._ready()
        if self.layers[index].dynamic:
            self._forward_dynamic(plan, index)
        else:
            plan.forward_layer(index)
        self._ran[index] = True
        if self.debug_info:
            log_forward(self.layers[index], self._top_names[index], self.tops[index])
        return (self._plan or plan).loss(index)

    def _forward_dynamic(self, plan: Plan, index: int) -> None:
        """Run a layer forward that may give its tops other shapes."""
        tops = self.tops[index]
        memory = [(top.data_storage, top.diff_storage) for top in tops]
        plan.forward_layer(index)
        if self._shapes_changed():
            fill_loss_weights(self.layers[index], tops)
            self._reshape_from(index + 1)
            return
        # Layers for pycaffe reshape a top to some shape and then to the right one in every pass.
        for top, (data, diff) in zip(tops, memory, strict=True):
            top.move_back(data, diff)

    def backward_layer(self, index: int) -> None:
        """Run one layer backward if it needs it."""
        if self.nodes[index].needs_backward:
            plan = self._plan or self._ready()
            plan.backward_layer(index)
            if self.debug_info:
                names, wanted = self.graph.nodes[index].bottoms, self.nodes[index].propagate_down
                log_backward(self.layers[index], names, self.bottoms[index], wanted)

    @property
    def plan(self) -> Plan:
        """The engine's plan of the net, made now if there is none that fits."""
        return self._ready()

    @contextmanager
    def serving_holders(self) -> Iterator[None]:
        """Run something over the net's numbers, in one thread at a time.

        What was written into arrays that somebody kept (``w = net.params['ip'][0].data``) counts
        from the start, and what is computed is in them at the end.
        """
        with self._lock:
            self._ready()
            self._take_from_holders()
            try:
                yield
            finally:
                self._give_to_holders()

    def _take_from_holders(self) -> None:
        for storage in self._storages:
            if storage.handed_out is not None:
                storage.take_from_holders()

    def _give_to_holders(self) -> None:
        for storage in self._storages:
            if storage.handed_out is not None:
                storage.give_to_holders()

    def _call(self, when: str, index: int) -> None:
        """Let the callbacks of this moment see and change the net's numbers."""
        if self._callbacks[when]:
            self._give_to_holders()
            for callback in self._callbacks[when]:
                callback(index)
            self._take_from_holders()

    def clear_param_diffs(self) -> None:
        """Set the gradient of every parameter to 0."""
        for learnable in self.learnable:
            learnable.blob.diff_storage.zero()

    def reshape(self) -> None:
        """Let every layer follow changed input shapes (``forward`` does it by itself)."""
        with self._lock:
            # What a layer in Python makes of its bottoms' shapes may hang on other things, too.
            scripted = any(isinstance(layer, Python) or layer.dynamic for layer in self.layers)
            if scripted or self._plan is None or Blob.changes != self._seen_changes:
                self._reshape_from(0)

    @property
    def layer_needs_backward(self) -> list[bool]:
        """Per layer, whether backward runs."""
        return [node.needs_backward for node in self.nodes]

    @property
    def bottom_needs_backward(self) -> list[list[bool]]:
        """Per layer and bottom, whether its gradient is computed."""
        return [node.propagate_down for node in self.nodes]

    def close(self) -> None:
        """Let go of the layers' files and threads."""
        for layer in self.layers:
            layer.close()

    # -- weights -------------------------------------------------------------------------

    def share_with(self, other: Net) -> None:
        """Use another net's parameters from now on, by layer name; one memory serves both.

        Raises:
            NetError: a parameter has another shape there, or lies on a GPU and this net's on none.
            UsageError: ``other`` is no net.
        """
        if not isinstance(other, Net):
            raise UsageError(f"share_with takes a net, not {other!r}; copy_from reads a file")
        if {self.engine.name, other.engine.name} == {"onednn", "cuda"}:
            raise NetError(
                f"net '{self.name}' runs on the {self.engine.name} engine and cannot share memory "
                f"with net '{other.name}' on the {other.engine.name} engine; copy its weights: "
                f"net.copy_from(other.to_proto())"
            )
        pairs = []
        given = other._all_params()
        for name, blobs in self._all_params().items():
            for index, (mine, theirs) in enumerate(zip(blobs, given.get(name, []), strict=False)):
                if mine.shape != theirs.shape:
                    raise NetError(
                        f"layer '{name}' parameter {index} has shape {mine.shape} here but "
                        f"{theirs.shape} in net '{other.name}', whose weights it shares"
                    )
                pairs.append((mine, theirs))
        for mine, theirs in pairs:
            mine.share_data(theirs)

    def copy_from(self, source: str | Path | caffe_pb2.NetParameter) -> None:
        """Load weights by layer name; layers the file does not know keep theirs.

        Raises:
            FileError: the file is missing or damaged.
            WeightsError: a layer of that name has other blobs; names layer and both shapes.
        """
        load_weights(source, self._all_params())

    def to_proto(self, diff: bool = False) -> caffe_pb2.NetParameter:
        """Return the net with its weights, as ``.caffemodel`` files hold it.

        Args:
            diff: also write the gradients.
        """
        param = caffe_pb2.NetParameter(name=self.name)
        for layer in self.layers:
            param.layer.add().ParseFromString(b"".join(encode_layer(layer, diff)))
        return param

    def save(self, path: str | Path, diff: bool = False) -> None:
        """Write the weights as a ``.caffemodel``, or ``.caffemodel.h5``, all or nothing.

        Args:
            path: the file; HDF5 if its name ends in ``.h5``.
            diff: also write the gradients.

        Raises:
            FileError: the file cannot be written.
        """
        with replacing(path) as (temporary,):
            save_weights(temporary, self.name, self.layers, hdf5=is_hdf5(path), diff=diff)

    def save_hdf5(self, path: str | Path, diff: bool = False) -> None:
        """Write the weights as HDF5, whatever the file's name; see :meth:`save`."""
        with replacing(path) as (temporary,):
            save_weights(temporary, self.name, self.layers, hdf5=True, diff=diff)

    def load_hdf5(self, path: str | Path) -> None:
        """Load weights from an HDF5 file, whatever its name; see :meth:`copy_from`."""
        load_weights(path, self._all_params(), hdf5=True)

    def _all_params(self) -> dict[str, list[Blob]]:
        """Return what ``params`` has, and that of layers whose name others have, too."""
        layers = zip(numbered(self.layer_names), self.layers, strict=True)
        return {name: layer.blobs for name, layer in layers if layer.blobs}

    # -- resuming ------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Return what a run that goes on later needs besides the weights, as JSON values."""
        layers = zip(numbered(self.layer_names), self.layers, strict=True)
        with self.engine.active():
            return {name: layer.get_state() for name, layer in layers}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from where :meth:`get_state` was called; layers it does not know stay."""
        for name, layer in zip(numbered(self.layer_names), self.layers, strict=True):
            if name in state:
                with self.engine.active():
                    layer.set_state(state[name])

    # -- building ------------------------------------------------------------------------

    def _decide_backward(self) -> list[LayerNode[Layer]]:
        facts = backward_facts(self.graph.nodes, self.layers, self._top_names)
        force = self.graph.param.force_backward
        decide_backward(facts, force)
        if force:
            for layer in self.layers:
                layer.param_propagate_down = [True] * len(layer.blobs)
        return [
            LayerNode(i, layer, self.bottoms[i], self.tops[i], fact.wanted, fact.needs_backward)
            for i, (layer, fact) in enumerate(zip(self.layers, facts, strict=True))
        ]

    # -- planning ------------------------------------------------------------------------

    def _check_cut(self, first: int, last: int) -> None:
        """Refuse a backward that would run only some of the layers that ran forward as one."""
        if first - last + 1 == len(self.layers):
            return
        ran = set(range(last, first + 1))
        for group in self._plan.joined if self._plan else ():
            if group & ran and group - ran:
                self.run_one_by_one()
                names = ", ".join(self.layer_names[index] for index in sorted(group))
                raise NetError(
                    f"the layers {names} ran forward as one, and backward cannot begin or end "
                    f"between them; from now on they run one by one: call forward again, then "
                    f"this backward"
                )
        if self._plan:
            self._plan.cut(first, last)

    def _check_forward_ran(self, first: int, last: int) -> None:
        """Refuse a backward over layers that have not run forward with their present shapes."""
        if all(self._ran):
            return
        for index in range(first, last - 1, -1):
            if self.nodes[index].needs_backward and not self._ran[index]:
                raise NetError(
                    f"backward needs what a forward pass left behind, but layer "
                    f"'{self.layer_names[index]}' has not run forward yet, or not since the "
                    f"net's shapes or memory changed; call net.forward() before it"
                )

    def _ready(self) -> Plan:
        changes = Blob.changes
        if self._plan is not None and changes == self._seen_changes:
            return self._plan
        # Before the first plan too: shared parameters got other memory after their set-up.
        if self._plan is None or self._shapes_changed() or self._find_storages() != self._storages:
            self._reshape_from(0)
        self._seen_changes = changes
        assert self._plan is not None
        return self._plan

    def _shapes(self) -> list[tuple[int, ...]]:
        return [top.shape for tops in self.tops for top in tops]

    def _shapes_changed(self) -> bool:
        return self._shapes() != self._planned_shapes

    def _check_shapes(self) -> None:
        """Refuse to run without input, or with parameters that somebody reshaped (to save them)."""
        for name in self.inputs:
            if not self.blobs[name].count:
                raise NetError(
                    f"input '{name}' has shape {self.blobs[name].shape}, which holds no numbers; "
                    f"give it another: net.blobs['{name}'].reshape(...)"
                )
        for layer, shapes in zip(self.layers, self._param_shapes, strict=True):
            for index, (blob, shape) in enumerate(zip(layer.blobs, shapes, strict=False)):
                if blob.shape != shape and not isinstance(layer, Python):
                    raise layer.error(
                        f"parameter {index} was reshaped from {shape} to {blob.shape}, and "
                        f"cannot run so; change the net's text instead and load the weights"
                    )

    def _find_storages(self) -> list[Storage]:
        blobs = (*self.blobs.values(), *(blob for layer in self.layers for blob in layer.blobs))
        return [each for blob in blobs for each in (blob.data_storage, blob.diff_storage)]

    def _reshape_from(self, start: int) -> Plan:
        with self.engine.active():
            return self._plan_from(start)

    def _plan_from(self, start: int) -> Plan:
        self._check_shapes()
        for layer, bottoms, tops in list(zip(self.layers, self.bottoms, self.tops, strict=True))[
            start:
        ]:
            guarded(layer, layer.reshape, bottoms, tops)
            fill_loss_weights(layer, tops)
        self._ran[start:] = [False] * (len(self.layers) - start)
        self._planned_shapes = self._shapes()
        # A layer that reshapes its tops while a pass runs has the rest planned anew in between.
        changer = start - 1
        if self._plan is not None and self._has_begun(changer):
            self._plan.follow(changer)
        else:
            dynamic = (index for index, layer in enumerate(self.layers) if layer.dynamic)
            lasting = self.debug_info or any(map(self._has_begun, dynamic))
            reuse = self._reuses_memory and not lasting
            self._plan = self.engine.plan(self.nodes, self._fuses, reuse)
        self._storages = self._find_storages()
        return self._plan

    def _has_begun(self, index: int) -> bool:
        """Whether layers that read blobs have run when a pass comes to this one."""
        return any(self.bottoms[: max(0, index)])

    # -- log -----------------------------------------------------------------------------

    def _log_summary(self) -> None:
        for node in reversed(self.nodes):
            verb = "needs" if node.needs_backward else "does not need"
            log.info("%s %s backward computation.", node.layer.name, verb)
        for name in self.outputs:
            log.info("This network produces output %s", name)
        log.info("Network initialization done.")


def _read(
    source: str | Path | caffe_pb2.NetParameter,
) -> tuple[caffe_pb2.NetParameter, Source | None]:
    if not isinstance(source, caffe_pb2.NetParameter):
        if source == "":
            raise UsageError("a net needs the path of a prototxt, or its text; got an empty string")
        return read_net(source)
    text = caffe_pb2.NetParameter()
    text.CopyFrom(source)
    upgrade_net(text, text.name)
    return text, None


def _merged(*states: caffe_pb2.NetState) -> caffe_pb2.NetState:
    merged = caffe_pb2.NetState()
    for state in states:
        merged.MergeFrom(state)
    return merged


def _graph(text: caffe_pb2.NetParameter, where: Source | None, state: caffe_pb2.NetState) -> Graph:
    graph = build_graph(text, state, where)
    for message in graph.filtered:
        log.info("%s", message)
    if log.isEnabledFor(logging.INFO):
        log.info("Initializing net from parameters: \n%s", format_text(graph.param))
    return graph


def _file_list(weights: Weights | None) -> list[str | Path]:
    if weights is None:
        return []
    if isinstance(weights, str):
        return list(weights.split(","))
    return [weights] if isinstance(weights, Path) else list(weights)
