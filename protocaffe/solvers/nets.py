"""Which nets a solver's settings name."""

from __future__ import annotations

from collections.abc import Iterator

from protocaffe.proto.caffe_pb2 import NetParameter, SolverParameter

TRAIN_FIELDS = ("net", "net_param", "train_net", "train_net_param")


def train_net_fields(param: SolverParameter) -> list[str]:
    """Return the fields that name the training net; there has to be one."""
    return [field for field in TRAIN_FIELDS if param.HasField(field)]


def test_net_sources(param: SolverParameter) -> list[str | NetParameter]:
    """Return paths or messages of the test nets, the training net's for the last ``test_iter``."""
    sources: list[str | NetParameter] = [*param.test_net_param, *param.test_net]
    generic = [getattr(param, field) for field in ("net_param", "net") if param.HasField(field)]
    return sources + generic[:1] * (len(param.test_iter) - len(sources))


def net_problems(param: SolverParameter) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the fields that name nets: the field and a message."""
    given = train_net_fields(param)
    if len(given) != 1:
        yield (
            given[-1] if given else "net",
            f"exactly one of {', '.join(TRAIN_FIELDS)} must name the training net; "
            + (f"{' and '.join(given)} are given" if given else "none is given"),
        )
    sources, wanted = test_net_sources(param), len(param.test_iter)
    if len(sources) != wanted:
        yield (
            "test_iter",
            f"test_iter must be given once per test net: {wanted} test_iter for "
            f"{len(sources)} test net(s)",
        )
    if any(count < 0 for count in param.test_iter):
        yield "test_iter", f"test_iter must not be negative, got {min(param.test_iter)}"
    if sources and param.test_interval <= 0:
        yield "test_interval", "there are test nets, so test_interval must be positive"
    if param.test_state and len(param.test_state) != len(sources):
        yield (
            "test_state",
            f"test_state must be given once per test net or not at all: "
            f"{len(param.test_state)} for {len(sources)} test net(s)",
        )
