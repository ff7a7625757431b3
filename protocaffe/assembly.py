"""Makes the layers and blobs of a graph, one layer after the other, and infers all shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from protocaffe.blob import Blob
from protocaffe.errors import ProtocaffeError
from protocaffe.graph import Node
from protocaffe.graph.backward import BackwardFacts
from protocaffe.layers import Layer, create_layer
from protocaffe.log import log, number
from protocaffe.proto import caffe_pb2

AUTOMATIC_TOP = "(automatic)"
"""The name of the top that a loss layer gets when the prototxt gives it none."""


@dataclass
class LearnableParam:
    """A parameter as the solver sees it; shared ones appear once.

    Attributes:
        blob: data and diff.
        lr_mult: factor on the learning rate.
        decay_mult: factor on the weight decay.
        name: its name in the prototxt, or an empty string.
        layer: name of the layer that owns it.
        index: its place among that layer's parameters.
        written: which of the two multipliers the prototxt gives explicitly.
    """

    blob: Blob
    lr_mult: float
    decay_mult: float
    name: str
    layer: str
    index: int
    written: set[str] = field(default_factory=set)


class Assembly:
    """Layers wired by blobs, without anything that runs them.

    Args:
        xp: the array module that the layers compute with.
        dtype: type of all blobs.
        seed: makes fillers, dropout and data order repeatable; None for a random one.
        dry: infer shapes only: parameters are not filled, which takes no memory for them, and
            layers write no files. Such layers cannot run.

    Attributes:
        layers: the layers in order.
        bottoms: per layer, the blobs it reads; ``tops`` those it writes.
        top_names: per layer, the names of its tops, with those given automatically.
        blobs: the blobs by name.
        params: the parameter blobs by layer name.
        learnable: the parameters, shared ones once.
        loss_weights: the loss weight of every blob by name, mostly 0.
    """

    def __init__(
        self,
        *,
        xp: Any = np,
        dtype: npt.DTypeLike = np.float32,
        seed: int | np.random.SeedSequence | None = None,
        dry: bool = False,
    ) -> None:
        self.layers: list[Layer] = []
        self.bottoms: list[list[Blob]] = []
        self.tops: list[list[Blob]] = []
        self.top_names: list[list[str]] = []
        self.blobs: dict[str, Blob] = {}
        self.params: dict[str, list[Blob]] = {}
        self.learnable: list[LearnableParam] = []
        self.loss_weights: dict[str, float] = {}
        self._xp = xp
        self._dtype = np.dtype(dtype)
        self._seed = (
            seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
        )
        self._dry = dry
        self._owners: dict[str, LearnableParam] = {}
        self._bytes = 0

    def add(self, node: Node) -> Layer:
        """Make the node's layer, infer the shapes of its tops, and return it.

        Its bottoms have to be there. After an error the assembly is as if it had not been called.

        Raises:
            NetError: the type is unknown, settings are wrong, or bottoms do not fit.
        """
        layer = self._create(node)
        bottoms = self._find_bottoms(layer, node.bottoms)
        names = _name_tops(layer, node.tops)
        tops = self._make_tops(layer, node.bottoms, names)
        layer.check_counts(len(node.bottoms), len(names))
        guarded(layer, layer.setup, bottoms, tops)
        guarded(layer, layer.reshape, bottoms, tops)
        layer.loss_weights = _loss_weights(layer, names)
        fill_loss_weights(layer, tops)
        self._log_shapes(layer, tops)
        self._add_params(layer)
        self.layers.append(layer)
        self.bottoms.append(bottoms)
        self.tops.append(tops)
        self.top_names.append(names)
        for name, top, weight in zip(names, tops, layer.loss_weights, strict=True):
            self.blobs[name] = top
            self.loss_weights[name] = weight or self.loss_weights.get(name, 0.0)
        return layer

    def _create(self, node: Node) -> Layer:
        log.info("Creating layer %s", node.name)
        key = (*self._seed.spawn_key, len(self.layers))
        child = np.random.SeedSequence(self._seed.entropy, spawn_key=key)
        layer = create_layer(
            node.param,
            node.where,
            phase=node.param.phase,
            xp=self._xp,
            rng=np.random.default_rng(child),
            dtype=self._dtype,
            dry=self._dry,
        )
        layer.written_bottoms = node.written_bottoms
        log.info("Creating Layer %s", node.name)
        return layer

    def _find_bottoms(self, layer: Layer, names: Sequence[str]) -> list[Blob]:
        for name in names:
            log.info("%s <- %s", layer.name, name)
        return [self.blobs[name] for name in names]

    def _make_tops(self, layer: Layer, bottoms: Sequence[str], names: list[str]) -> list[Blob]:
        tops = []
        for index, name in enumerate(names):
            if index < len(bottoms) and bottoms[index] == name:
                if not layer.in_place:
                    raise layer.error(
                        f"cannot work in place (top '{name}' is also its bottom); "
                        f"give the top a name of its own"
                    )
                log.info("%s -> %s (in-place)", layer.name, name)
                tops.append(self.blobs[name])
            else:
                log.info("%s -> %s", layer.name, name)
                tops.append(Blob(dtype=self._dtype))
        return tops

    def _add_params(self, layer: Layer) -> None:
        specs = layer.param.param
        if len(specs) > len(layer.blobs):
            raise layer.error(
                f"has {len(specs)} param entries but only {len(layer.blobs)} parameter blob(s)"
            )
        layer.param_propagate_down = []
        new: list[LearnableParam] = []
        for index, blob in enumerate(layer.blobs):
            spec = specs[index] if index < len(specs) else caffe_pb2.ParamSpec()
            layer.param_propagate_down.append(spec.lr_mult != 0)
            owner = self._owner(spec.name, new)
            if owner is not None:
                _share(layer, blob, spec, owner)
                continue
            new.append(
                LearnableParam(
                    *(blob, spec.lr_mult, spec.decay_mult, spec.name, layer.name, index),
                    written={name for name in ("lr_mult", "decay_mult") if spec.HasField(name)},
                )
            )
        if layer.blobs:
            self.params[layer.name] = layer.blobs
        self.learnable += new
        self._owners.update((param.name, param) for param in new if param.name)

    def _owner(self, name: str, new: Sequence[LearnableParam]) -> LearnableParam | None:
        """Return whose memory a parameter of this name uses, if it is not its own."""
        if not name:
            return None
        same_layer = (param for param in new if param.name == name)
        return self._owners.get(name) or next(same_layer, None)

    def _log_shapes(self, layer: Layer, tops: Sequence[Blob]) -> None:
        log.info("Setting up %s", layer.name)
        for top, weight in zip(tops, layer.loss_weights, strict=True):
            extents = "".join(f"{extent} " for extent in top.shape)
            log.info("Top shape: %s(%d)", extents, top.count)
            if weight:
                log.info("    with loss weight %s", number(weight))
            self._bytes += top.count * self._dtype.itemsize
        log.info("Memory required for data: %d", self._bytes)


def guarded(layer: Layer, method: Any, *arguments: Any) -> None:
    """Call a layer's method; errors that do not name the layer yet get its name."""
    try:
        method(*arguments)
    except ProtocaffeError as error:
        if f"layer '{layer.name}'" in str(error):
            raise
        raise type(error)(str(layer.error(str(error)))) from error


def fill_loss_weights(layer: Layer, tops: Sequence[Blob]) -> None:
    """Put the weights into the tops' diffs, where loss layers look for them."""
    for top, weight in zip(tops, layer.loss_weights, strict=True):
        if weight:
            top.diff_storage.host_overwrite().fill(weight)


def _name_tops(layer: Layer, names: Sequence[str]) -> list[str]:
    missing = type(layer).tops[0] - len(names) if layer.is_loss else 0
    return [*names, *[AUTOMATIC_TOP] * missing]


def _loss_weights(layer: Layer, names: Sequence[str]) -> list[float]:
    weights = list(layer.param.loss_weight)
    if layer.is_loss and not weights:
        weights = [1.0] + [0.0] * (len(names) - 1)
    if weights and len(weights) != len(names):
        raise layer.error(
            f"has {len(names)} top(s) but {len(weights)} loss_weight(s); give one per top or none"
        )
    return weights or [0.0] * len(names)


def _share(layer: Layer, blob: Blob, spec: caffe_pb2.ParamSpec, owner: LearnableParam) -> None:
    """Make a parameter use its owner's memory, and settle the multipliers between them."""
    permissive = spec.share_mode == caffe_pb2.ParamSpec.PERMISSIVE
    mine, theirs = (blob.count, owner.blob.count) if permissive else (blob.shape, owner.blob.shape)
    if mine != theirs:
        raise layer.error(
            f"cannot share parameter '{spec.name}' with layer '{owner.layer}': shape "
            f"{blob.shape} here, {owner.blob.shape} there"
            + (
                " (PERMISSIVE sharing needs equal counts)"
                if permissive
                else " (share_mode: PERMISSIVE accepts equal counts)"
            )
        )
    blob.share_data(owner.blob)
    blob.share_diff(owner.blob)
    for name in ("lr_mult", "decay_mult"):
        if not spec.HasField(name):
            continue
        value, known = getattr(spec, name), getattr(owner, name)
        if name in owner.written and known != value:
            raise layer.error(
                f"gives shared parameter '{spec.name}' {name} {value:g}, but layer "
                f"'{owner.layer}' gives it {known:g}; they must agree"
            )
        setattr(owner, name, value)
        owner.written.add(name)


def backward_facts(
    nodes: Sequence[Node], layers: Sequence[Layer], top_names: Sequence[Sequence[str]]
) -> list[BackwardFacts]:
    """Return what decides who runs backward, for layers that are set up."""
    return [
        BackwardFacts(
            bottoms=node.bottoms,
            tops=tops,
            learns=any(layer.param_propagate_down),
            has_loss=[weight != 0 for weight in layer.loss_weights],
            propagate_down=list(layer.param.propagate_down),
            may_force=[layer.allow_force_backward(i) for i in range(len(node.bottoms))],
        )
        for node, layer, tops in zip(nodes, layers, top_names, strict=True)
    ]
