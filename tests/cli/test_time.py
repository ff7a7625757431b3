import re

import pytest

from tests.cli.caffe_log import kind, messages


@pytest.mark.parametrize("engine", ["numpy", "onednn"])
def test_the_table_has_caffes_rows(run_protocaffe, digit_folder, engine):
    recorded = messages((digit_folder / "time.log").read_text())
    done = run_protocaffe(
        "time", "--model=net.prototxt", "--iterations=2", f"--engine={engine}", cwd=digit_folder
    )
    assert done.returncode == 0, done.stderr
    found = messages(done.stderr)
    assert [kind(each) for each in found] == [kind(each) for each in recorded]


def milliseconds(pattern, log):
    return [float(each) for each in re.findall(pattern + r" (\S+) ms\.", log)]


def test_the_layers_add_up(run_protocaffe, digit_folder):
    log = run_protocaffe("time", "--model=net.prototxt", "--iterations=5", cwd=digit_folder).stderr
    for way, average in (("forward:", "Forward pass:"), ("backward:", "Backward pass:")):
        layers = milliseconds(rf"\t{way}", log)
        assert len(layers) == 9
        assert sum(layers) == pytest.approx(milliseconds(f"Average {average}", log)[0], abs=0.01)
    (total,) = milliseconds("Total Time:", log)
    assert total == pytest.approx(5 * milliseconds("Forward-Backward:", log)[0], abs=0.01)
    assert sum(milliseconds("forward-backward time:", log)) <= total + 0.01


def test_the_test_phase_can_be_timed(run_protocaffe, digit_folder):
    done = run_protocaffe(
        "time", "--model=net.prototxt", "--phase=TEST", "--iterations=1", cwd=digit_folder
    )
    assert done.returncode == 0, done.stderr
    assert "  accuracy\tforward: " in done.stderr
