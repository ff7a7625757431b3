import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")

from benchmarks import memory


def test_every_side_has_a_peak():
    options = memory.parse(["lenet", "--threads=1", "--batch=2"])
    peaks = memory.peaks("lenet", "bf16", options)
    assert set(peaks) == {"protocaffe", "contiguous", "channels_last"}
    assert all(10 < peak < 10_000 for peak in peaks.values())
