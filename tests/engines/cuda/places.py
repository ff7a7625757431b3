"""Where the engine's tests run: on the stand-in, and on a GPU if there is one."""

from __future__ import annotations

import pytest

from protocaffe.engines import get_engine
from protocaffe.engines.cuda.engine import CudaEngine
from protocaffe.engines.cuda.forms import PRECISIONS
from protocaffe.errors import UsageError
from tests.engines.cuda.standin import CuPy, standin_engine

PLACES = ("the stand-in", "a GPU")


def engine_on(place: str, precision: str = "float32") -> CudaEngine:
    """Return the engine there; skip the test where there is no GPU."""
    if place == "the stand-in":
        return standin_engine(precision=PRECISIONS[precision])
    try:
        engine = get_engine("cuda", precision)
    except UsageError as reason:
        pytest.skip(str(reason))
    assert isinstance(engine, CudaEngine)
    if engine.device.precision.name != precision:
        pytest.skip(f"this GPU is too old for {precision}")
    return engine


def is_standin(engine: CudaEngine) -> bool:
    """Whether it can be counted what the engine does."""
    return isinstance(engine.xp, CuPy)
