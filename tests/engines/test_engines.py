"""Choosing an engine, and what every engine does to numbers outside layers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from protocaffe import engines
from protocaffe.blob import Storage
from protocaffe.engines import Engine, get_engine
from protocaffe.engines.base import AdamSettings
from protocaffe.errors import UsageError


@pytest.fixture
def no_onednn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without the library."""
    from protocaffe.engines.onednn import library

    def forget() -> None:
        engines._by_name.cache_clear()
        engines._default.cache_clear()

    monkeypatch.setattr(library, "_candidates", lambda: ["/nosuch/libdnnl.so.3"])
    forget()
    yield
    forget()


def test_without_onednn_the_default_is_numpy_and_one_line_says_so(
    no_onednn: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="protocaffe"):
        assert get_engine().name == "numpy"
        assert get_engine().name == "numpy"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "pip install onednn-cpu-gomp" in caplog.text


def test_without_onednn_asking_for_it_is_an_error(no_onednn: None) -> None:
    with pytest.raises(UsageError, match="cannot run here"):
        get_engine("onednn")


def test_unknown_engines_get_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="did you mean 'onednn'"):
        get_engine("onednnn")


def test_an_engine_is_passed_through() -> None:
    engine = Engine()
    assert get_engine(engine) is engine


@pytest.mark.parametrize("name", engines.ENGINES)
@pytest.mark.parametrize("count", [1, 100, 1 << 14, (1 << 19) + 3])
def test_the_momentum_update_is_its_formula(name: str, count: int) -> None:
    try:
        engine = get_engine(name)
    except UsageError as reason:
        pytest.skip(str(reason))
    rng = np.random.default_rng(count)
    storages = [Storage(count) for _ in range(3)]
    w, g, h = (rng.standard_normal(count).astype(np.float32) for _ in range(3))
    for storage, values in zip(storages, (w, g, h), strict=True):
        storage.host_write()[:] = values
    update = engine.momentum_update(*storages, momentum=0.9)
    for gradient_scale, weight_scale in ((0.1, 0.01), (0.05, 0.0)):
        update(gradient_scale, weight_scale)
        h = gradient_scale * g + weight_scale * w + 0.9 * h
        w = w - h
    np.testing.assert_allclose(storages[0].host_read(), w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(storages[2].host_read(), h, rtol=1e-5, atol=1e-6)
    assert (storages[1].host_read() == g).all()


@pytest.mark.parametrize("count", [1 << 14, (1 << 19) + 3])
def test_the_adam_kernel_is_its_formula(count: int) -> None:
    try:
        engine = get_engine("onednn")
    except UsageError as reason:
        pytest.skip(str(reason))
    rng = np.random.default_rng(count)
    storages = [Storage(count) for _ in range(4)]
    w, g = (rng.standard_normal(count) for _ in range(2))
    m, v = np.zeros(count), np.zeros(count)
    for storage, values in zip(storages, (w, g, m, v), strict=True):
        storage.host_write()[:] = values
    settings = AdamSettings(0.9, 0.999, 1e-8)
    update = engine.adam_update(*storages[:2], (storages[2], storages[3]), settings)
    assert update is not None
    for step in (0.1, 0.05, 0.02):
        update(0.5, 0.01, step)
        t = 0.5 * g + 0.01 * w
        m, v = 0.9 * m + 0.1 * t, 0.999 * v + 0.001 * t * t
        w = w - step * m / (np.sqrt(v) + 1e-8)
    np.testing.assert_allclose(storages[0].host_read(), w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(storages[2].host_read(), m, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(storages[3].host_read(), v, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("count", "delta"), [(100, 1e-8), (1 << 14, 0.0)])
def test_small_parameters_and_delta_0_have_no_adam_kernel(count: int, delta: float) -> None:
    storages = [Storage(count) for _ in range(4)]
    settings = AdamSettings(0.9, 0.999, delta)
    for name in engines.ENGINES:
        try:
            engine = get_engine(name)
        except UsageError:
            continue
        assert engine.adam_update(*storages[:2], (storages[2], storages[3]), settings) is None
