"""Net: layers wired by blobs, planned by an engine, run forward and backward."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from protocaffe.assembly import Assembly, LearnableParam, fill_loss_weights, guarded
from protocaffe.blob import Array, Blob, assign
from protocaffe.debug import log_backward, log_forward, log_norms
from protocaffe.engines import Engine, LayerNode, Plan, get_engine
from protocaffe.errors import (
    NetError,
    UnknownNameError,
    UsageError,
    did_you_mean,
)
from protocaffe.graph import Graph, build_graph, merge_state
from protocaffe.graph.backward import BackwardFacts, decide_backward
from protocaffe.layers import Layer
from protocaffe.log import log
from protocaffe.proto import caffe_pb2
from protocaffe.proto.files import replacing
from protocaffe.proto.stored import is_hdf5
from protocaffe.proto.text import Source, format_text, read_net
from protocaffe.proto.upgrade import upgrade_net
from protocaffe.weights import encode_layer, load_weights, save_weights

Value = TypeVar("Value")


class Named(OrderedDict[str, Value]):
    """A dict by name that says which name was probably meant."""

    def __missing__(self, name: str) -> Value:
        raise UnknownNameError(
            f"there is no '{name}' here{did_you_mean(str(name), self)} (names: {', '.join(self)})"
        )


class Net:
    """A network built from a prototxt.

    Args:
        source: path of a net prototxt, or a ``NetParameter``.
        phase: ``TRAIN`` or ``TEST``; which layers with phase rules are in.
        weights: a ``.caffemodel`` to load, or several, comma-separated or in a list.
        level: the state's level.
        stages: the state's stages, added to those of the file.
        engine: ``"numpy"``, ``"onednn"``, an engine, or None for the fastest that runs here.
        dtype: type of all blobs, ``float32`` or ``float64`` (numpy engine only).
        seed: makes fillers, dropout and data order repeatable; None for a random one.
        shared: a net whose parameters are used, by layer name, instead of own ones.
        state: merged over ``phase`` and the file's own state, as a solver's ``train_state``;
            then level and stages are not used.

    Attributes:
        name: the net's name.
        phase: ``TRAIN`` (0) or ``TEST`` (1).
        graph: the structure after filtering and split insertion.
        layers: the layers in order; ``layer_names`` their names.
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
        source: str | Path | caffe_pb2.NetParameter,
        phase: int = caffe_pb2.TEST,
        *,
        weights: str | Path | Sequence[str | Path] | None = None,
        level: int = 0,
        stages: Sequence[str] = (),
        engine: str | Engine | None = None,
        dtype: npt.DTypeLike = np.float32,
        seed: int | np.random.SeedSequence | None = None,
        shared: Net | None = None,
        state: caffe_pb2.NetState | None = None,
    ) -> None:
        self.engine = get_engine(engine)
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise UsageError(f"a net's dtype is float32 or float64, not {self.dtype}")
        text, where = _read(source)
        if state is None:
            full_state = merge_state(text, phase, level, stages)
        else:
            full_state = caffe_pb2.NetState(phase=phase)  # type: ignore[arg-type]
            full_state.MergeFrom(text.state)
            full_state.MergeFrom(state)
        self.graph = _graph(text, where, full_state)
        self.name: str = self.graph.name
        self.phase = int(self.graph.state.phase)
        assembly = Assembly(xp=self.engine.xp, dtype=self.dtype, seed=seed)
        for node in self.graph.nodes:
            assembly.add(node)
        self.layers: list[Layer] = assembly.layers
        self.layer_names: list[str] = [layer.name for layer in self.layers]
        self.bottoms: list[list[Blob]] = assembly.bottoms
        self.tops: list[list[Blob]] = assembly.tops
        self.blobs: dict[str, Blob] = Named(assembly.blobs)
        self.params: dict[str, list[Blob]] = Named(assembly.params)
        self.learnable: list[LearnableParam] = assembly.learnable
        self.blob_loss_weights: dict[str, float] = Named(assembly.loss_weights)
        self.inputs: list[str] = self.graph.inputs
        self.outputs: list[str] = self.graph.outputs
        self._top_names: list[list[str]] = assembly.top_names
        self._nodes = self._decide_backward()
        self._log_summary()
        if shared is not None:
            self._share_parameters(shared)
        self._plan: Plan | None = None
        self._fuses = True
        self._planned_shapes = self._free_shapes()
        self.debug_info: bool = text.debug_info
        for file in _file_list(weights):
            self.copy_from(file)

    # -- running -------------------------------------------------------------------------

    def forward(
        self,
        blobs: Sequence[str] | None = None,
        start: str | None = None,
        end: str | None = None,
        **inputs: npt.ArrayLike,
    ) -> dict[str, Array]:
        """Run the net forward, or a part of it.

        Args:
            blobs: names of blobs to return besides the outputs.
            start: name of the first layer to run, None for the net's first.
            end: name of the last layer to run, None for the net's last.
            inputs: values for the net's inputs by name; all of them or none. Their first extent
                must be the blob's.

        Returns:
            The values of the net's outputs (with ``end``, of that layer's tops) and of ``blobs``
            by name. As with ``blob.data`` these are no copies: the next forward changes them.

        Raises:
            NetError: an unknown name, or values that do not fit.
        """
        first, last = self._layer_index(start, 0), self._layer_index(end, len(self.layers) - 1)
        names = [*(self.outputs if end is None else self.top_names[end]), *(blobs or ())]
        wanted = [self.blobs[name] for name in names]
        if inputs:
            self._check_names(inputs, self.inputs, "inputs")
            for name, values in inputs.items():
                assign(self.blobs[name].data, values, f"input '{name}'")
        if self.graph.param.force_backward:  # who asks for every gradient looks at every layer
            self._let_see(False)
        self.run_forward(first, last)
        return Named(zip(names, (blob.data for blob in wanted), strict=True))

    def backward(
        self,
        diffs: Sequence[str] | None = None,
        start: str | None = None,
        end: str | None = None,
        **output_diffs: npt.ArrayLike,
    ) -> dict[str, Array]:
        """Run the net backward, or a part of it; the gradients of parameters add up.

        Args:
            diffs: names of blobs whose diffs to return besides those of the net's inputs.
            start: name of the first layer to run backward, None for the net's last.
            end: name of the last layer to run backward, None for the net's first.
            output_diffs: values for the diffs of the net's outputs by name; all or none.

        Returns:
            The diffs of the net's inputs (with ``end``, of that layer's bottoms) and of ``diffs``
            by name; no copies.

        Raises:
            NetError: an unknown name, values that do not fit, or no layer has a backward pass.
        """
        first, last = self._layer_index(start, len(self.layers) - 1), self._layer_index(end, 0)
        names = [*(self.inputs if end is None else self.bottom_names[end]), *(diffs or ())]
        wanted = [self.blobs[name] for name in names]
        if not any(node.needs_backward for node in self._nodes):
            raise NetError(
                f"net '{self.name}' has nothing to run backward: nothing in it leads to a loss; "
                f"write force_backward: true into the net to have every gradient computed"
            )
        if output_diffs:
            self._check_names(output_diffs, self.outputs, "outputs")
            for name, values in output_diffs.items():
                assign(self.blobs[name].diff, values, f"diff of output '{name}'")
        self.run_backward(first, last)
        return Named(zip(names, (blob.diff for blob in wanted), strict=True))

    def run_forward(self, first: int = 0, last: int | None = None) -> float:
        """Run layers ``first`` to ``last`` (places in ``layers``) forward, and return no blobs.

        Returns:
            Their loss: the sum over weighted tops of weight times values.
        """
        stop = len(self.layers) if last is None else last + 1
        self._let_see(self._fuses and first == 0 and stop == len(self.layers))
        self._ready()
        return sum(self.forward_layer(index) for index in range(first, stop))

    def run_backward(self, first: int | None = None, last: int = 0) -> None:
        """Run layers ``first`` down to ``last`` backward where they need it."""
        first = len(self.layers) - 1 if first is None else first
        self._check_cut(first, last)
        self._ready()
        for index in range(first, last - 1, -1):
            self.backward_layer(index)
        if self.debug_info:
            log_norms([learnable.blob for learnable in self.learnable])

    def forward_layer(self, index: int) -> float:
        """Run one layer forward; return its share of the loss."""
        plan = self._plan or self._ready()
        plan.forward_layer(index)
        if self.layers[index].dynamic and self._shapes_changed():
            fill_loss_weights(self.layers[index], self.tops[index])
            self._reshape_from(index + 1)
        if self.debug_info:
            log_forward(self.layers[index], self._top_names[index], self.tops[index])
        return self._loss(index)

    def backward_layer(self, index: int) -> None:
        """Run one layer backward if it needs it."""
        if self._nodes[index].needs_backward:
            plan = self._plan or self._ready()
            plan.backward_layer(index)
            if self.debug_info:
                names, wanted = self.graph.nodes[index].bottoms, self._nodes[index].propagate_down
                log_backward(self.layers[index], names, self.bottoms[index], wanted)

    def clear_param_diffs(self) -> None:
        """Set the gradient of every parameter to 0."""
        for blobs in self.params.values():
            for blob in blobs:
                blob.diff_storage.zero()

    def reshape(self) -> None:
        """Let every layer follow changed input shapes (``forward`` does it by itself)."""
        self._reshape_from(0)

    @property
    def layer_dict(self) -> dict[str, Layer]:
        """The layers by name."""
        return Named(zip(self.layer_names, self.layers, strict=True))

    @property
    def top_names(self) -> dict[str, list[str]]:
        """Per layer name, the names of its tops."""
        return Named(zip(self.layer_names, self._top_names, strict=True))

    @property
    def bottom_names(self) -> dict[str, list[str]]:
        """Per layer name, the names of its bottoms."""
        bottoms = (list(node.bottoms) for node in self.graph.nodes)
        return Named(zip(self.layer_names, bottoms, strict=True))

    @property
    def layer_needs_backward(self) -> list[bool]:
        """Per layer, whether backward runs."""
        return [node.needs_backward for node in self._nodes]

    @property
    def bottom_needs_backward(self) -> list[list[bool]]:
        """Per layer and bottom, whether its gradient is computed."""
        return [node.propagate_down for node in self._nodes]

    def close(self) -> None:
        """Let go of the layers' files and threads."""
        for layer in self.layers:
            layer.close()

    # -- weights -------------------------------------------------------------------------

    def copy_from(self, source: str | Path | caffe_pb2.NetParameter) -> None:
        """Load weights by layer name; layers the file does not know keep theirs.

        Raises:
            FileError: the file is missing or damaged.
            WeightsError: a layer of that name has other blobs; names layer and both shapes.
        """
        load_weights(source, self.params)

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

    # -- resuming ------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Return what a run that goes on later needs besides the weights, as JSON values."""
        return {layer.name: layer.get_state() for layer in self.layers}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from where :meth:`get_state` was called; layers it does not know stay."""
        for layer in self.layers:
            if layer.name in state:
                layer.set_state(state[layer.name])

    # -- building ------------------------------------------------------------------------

    def _decide_backward(self) -> list[LayerNode[Layer]]:
        facts = [
            BackwardFacts(
                bottoms=node.bottoms,
                tops=names,
                learns=any(layer.param_propagate_down),
                has_loss=[weight != 0 for weight in layer.loss_weights],
                propagate_down=list(layer.param.propagate_down),
                may_force=[layer.allow_force_backward(i) for i in range(len(node.bottoms))],
            )
            for node, layer, names in zip(
                self.graph.nodes, self.layers, self._top_names, strict=True
            )
        ]
        force = self.graph.param.force_backward
        decide_backward(facts, force)
        if force:
            for layer in self.layers:
                layer.param_propagate_down = [True] * len(layer.blobs)
        return [
            LayerNode(i, layer, self.bottoms[i], self.tops[i], fact.wanted, fact.needs_backward)
            for i, (layer, fact) in enumerate(zip(self.layers, facts, strict=True))
        ]

    def _share_parameters(self, other: Net) -> None:
        for name, blobs in self.params.items():
            for index, (mine, theirs) in enumerate(
                zip(blobs, other.params.get(name, []), strict=False)
            ):
                if mine.shape != theirs.shape:
                    raise NetError(
                        f"layer '{name}' parameter {index} has shape {mine.shape} here but "
                        f"{theirs.shape} in net '{other.name}', whose weights it shares"
                    )
                mine.share_data(theirs)

    # -- arguments of forward and backward -----------------------------------------------

    def _layer_index(self, name: str | None, default: int) -> int:
        if name is None:
            return default
        if name not in self.layer_names:
            raise NetError(
                f"net '{self.name}' has no layer '{name}'{did_you_mean(name, self.layer_names)}"
            )
        return self.layer_names.index(name)

    def _check_names(self, given: Iterable[str], known: Sequence[str], what: str) -> None:
        if set(given) != set(known):
            raise NetError(
                f"net '{self.name}' has the {what} {', '.join(known) or '(none)'}; "
                f"values came for {', '.join(given)}"
            )

    # -- planning ------------------------------------------------------------------------

    def _let_see(self, fuses: bool) -> None:
        """Have the net planned without fusing from the first pass that begins or ends inside."""
        if fuses != self._fuses:
            self._fuses = fuses
            self._plan = None

    def _check_cut(self, first: int, last: int) -> None:
        """Refuse a backward that would run only some of the layers that ran forward as one."""
        ran = set(range(last, first + 1))
        for group in self._plan.joined if self._plan else ():
            if group & ran and group - ran:
                self._let_see(False)
                names = ", ".join(self.layer_names[index] for index in sorted(group))
                raise NetError(
                    f"the layers {names} ran forward as one, and backward cannot begin or end "
                    f"between them; from now on they run one by one: call forward again, then "
                    f"this backward"
                )

    def _ready(self) -> Plan:
        # Before the first plan too: shared parameters got other memory after their set-up.
        if self._plan is None or self._shapes_changed():
            return self._reshape_from(0)
        return self._plan

    def _free_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the blobs that do not follow from others: inputs and dynamic layers' tops."""
        return [
            top.shape
            for layer, bottoms, tops in zip(self.layers, self.bottoms, self.tops, strict=True)
            for top in tops
            if layer.dynamic or not bottoms
        ]

    def _shapes_changed(self) -> bool:
        return self._free_shapes() != self._planned_shapes

    def _reshape_from(self, start: int) -> Plan:
        for layer, bottoms, tops in list(zip(self.layers, self.bottoms, self.tops, strict=True))[
            start:
        ]:
            guarded(layer, layer.reshape, bottoms, tops)
            fill_loss_weights(layer, tops)
        self._planned_shapes = self._free_shapes()
        self._plan = self.engine.plan(self._nodes, self._fuses)
        return self._plan

    def _loss(self, index: int) -> float:
        loss = 0.0
        for top, weight in zip(self.tops[index], self.layers[index].loss_weights, strict=True):
            if weight:
                values, weights = top.data_storage.host_read(), top.diff_storage.host_read()
                loss += float(np.dot(values, weights))
        return loss

    # -- log -----------------------------------------------------------------------------

    def _log_summary(self) -> None:
        for node in reversed(self._nodes):
            verb = "needs" if node.needs_backward else "does not need"
            log.info("%s %s backward computation.", node.layer.name, verb)
        for name in self.outputs:
            log.info("This network produces output %s", name)
        log.info("Network initialization done.")


def _read(
    source: str | Path | caffe_pb2.NetParameter,
) -> tuple[caffe_pb2.NetParameter, Source | None]:
    if not isinstance(source, caffe_pb2.NetParameter):
        return read_net(source)
    text = caffe_pb2.NetParameter()
    text.CopyFrom(source)
    upgrade_net(text, text.name)
    return text, None


def _graph(text: caffe_pb2.NetParameter, where: Source | None, state: caffe_pb2.NetState) -> Graph:
    graph = build_graph(text, state, where)
    for message in graph.filtered:
        log.info("%s", message)
    if log.isEnabledFor(logging.INFO):
        log.info("Initializing net from parameters: \n%s", format_text(graph.param))
    return graph


def _file_list(weights: str | Path | Sequence[str | Path] | None) -> list[str | Path]:
    if weights is None:
        return []
    if isinstance(weights, str):
        return list(weights.split(","))
    return [weights] if isinstance(weights, Path) else list(weights)
