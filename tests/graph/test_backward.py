"""Who runs backward."""

from __future__ import annotations

from protocaffe.graph.backward import BackwardFacts, decide_backward


def facts(wires: str, learns: bool = False, loss: bool = False, down: str = "") -> BackwardFacts:
    """``"a b -> c"`` with flags; ``down`` is one letter, t or f, per bottom."""
    bottoms, tops = (side.split() for side in wires.split("->"))
    wish = [letter == "t" for letter in down]
    return BackwardFacts(bottoms, tops, learns, [loss] * len(tops), wish, [True] * len(bottoms))


def decided(*layers: BackwardFacts, force: bool = False) -> list[tuple[bool, list[bool]]]:
    decide_backward(layers, force)
    return [(layer.needs_backward, layer.wanted) for layer in layers]


def test_only_what_leads_from_parameters_to_a_loss_runs() -> None:
    assert decided(
        facts("-> data label"),
        facts("data -> a"),
        facts("a -> b", learns=True),
        facts("b -> c", learns=True),
        facts("c label -> loss", loss=True),
        facts("data -> unused", learns=True),
    ) == [
        (False, []),
        (False, [False]),
        (True, [False]),
        (True, [True]),
        (True, [True, False]),
        (False, [False]),
    ]


def test_propagate_down_false_cuts_what_only_feeds_that_bottom() -> None:
    assert decided(
        facts("-> x"),
        facts("x -> a", learns=True),
        facts("a -> b", learns=True, down="f"),
        facts("b -> loss", loss=True),
    ) == [(False, []), (False, [False]), (True, [False]), (True, [True])]


def test_propagate_down_true_asks_but_makes_no_layer_run() -> None:
    assert decided(facts("-> x"), facts("x -> a", down="t"), facts("a -> loss", loss=True)) == [
        (False, []),
        (False, [False]),
        (False, [False]),
    ]


def test_force_asks_for_everything_that_allows_it() -> None:
    last = facts("a label -> loss", loss=True)
    last.may_force = [True, False]
    assert decided(facts("-> x label"), facts("x -> a"), last, force=True) == [
        (True, []),
        (True, [True]),
        (True, [True, False]),
    ]
