import pytest

from benchmarks import precision


def test_a_row_has_times_and_ratios():
    name, *times, best, usual = precision.compare("lenet", rounds=1).split()
    assert name == "lenet"
    assert all(float(time) > 0 for time in times)
    assert float(best.removesuffix("x")) == pytest.approx(
        float(times[0]) / float(times[2]), abs=0.05
    )
    assert float(usual.removesuffix("x")) > 0


def test_nothing_is_timed_where_losses_differ(monkeypatch):
    monkeypatch.setattr(precision, "TOLERANCE", -1)
    assert "nothing was timed" in precision.compare("lenet", rounds=1)
