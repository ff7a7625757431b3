"""Who runs backward, and for which bottoms: decided once, from names and flags alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class BackwardFacts:
    """What the decision needs to know of one layer, and the decision.

    Attributes:
        bottoms: names of the blobs it reads.
        tops: names of the blobs it writes.
        learns: whether any of its parameters has ``lr_mult`` other than 0.
        has_loss: per top, whether it counts in the net's loss.
        propagate_down: the prototxt's wish per bottom; empty for none.
        may_force: per bottom, whether ``force_backward`` may ask for its gradient.
        needs_backward: decided: whether backward runs.
        wanted: decided: per bottom, whether its gradient is computed.
    """

    bottoms: Sequence[str]
    tops: Sequence[str]
    learns: bool
    has_loss: Sequence[bool]
    propagate_down: Sequence[bool]
    may_force: Sequence[bool]
    needs_backward: bool = False
    wanted: list[bool] = field(default_factory=list)


def decide_backward(layers: Sequence[BackwardFacts], force: bool = False) -> None:
    """Fill in ``needs_backward`` and ``wanted`` of every layer, in net order.

    A layer runs backward if something below it or in it learns, and it leads to a loss, and
    not all of its tops are cut off above. ``propagate_down`` overrides a bottom's wish but
    does not make a layer run where nothing learns.
    """
    _from_parameters_up(layers)
    _from_losses_down(layers)
    if force:
        for layer in layers:
            layer.needs_backward = True
            pairs = zip(layer.wanted, layer.may_force, strict=True)
            layer.wanted = [wanted or may for wanted, may in pairs]


def _from_parameters_up(layers: Sequence[BackwardFacts]) -> None:
    learning: dict[str, bool] = {}
    for layer in layers:
        below = [learning[name] for name in layer.bottoms]
        layer.needs_backward = layer.learns or any(below)
        layer.wanted = list(layer.propagate_down) or below
        for name in layer.tops:
            learning[name] = layer.needs_backward


def _from_losses_down(layers: Sequence[BackwardFacts]) -> None:
    under_loss: set[str] = set()
    cut_off: set[str] = set()
    for layer in reversed(layers):
        contributes = any(layer.has_loss) or any(name in under_loss for name in layer.tops)
        if not contributes or all(name in cut_off for name in layer.tops):
            layer.needs_backward = False
            layer.wanted = [False] * len(layer.bottoms)
        for name, wanted in zip(layer.bottoms, layer.wanted, strict=True):
            if contributes:
                under_loss.add(name)
            if not wanted:
                cut_off.add(name)
