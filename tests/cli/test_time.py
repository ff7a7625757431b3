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
    ours = [each for each in found if not each.startswith("Memory: ")]
    assert [kind(each) for each in ours] == [kind(each) for each in recorded]
    assert len(found) == len(ours) + 1


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


def test_verbose_tells_the_pieces_of_every_layer(run_protocaffe, digit_folder):
    done = run_protocaffe(
        "time", "--model=net.prototxt", "--iterations=2", "--verbose", cwd=digit_folder
    )
    assert done.returncode == 0, done.stderr
    pieces = re.findall(r"(\w+)\t(forward|backward): (\S+) ms: (.+)", done.stderr)
    assert {("rows", "forward"), ("scores", "backward")} <= {piece[:2] for piece in pieces}
    assert ("rows", "forward", "own code") in {(*piece[:2], piece[3]) for piece in pieces}
    (total,) = milliseconds("Reorders:", done.stderr.replace(" ms,", " ms."))
    reorders = [float(piece[2]) for piece in pieces if piece[3].startswith("reorder")]
    assert sum(reorders) == pytest.approx(total, abs=0.01)


def test_batch_sizes_can_be_compared(run_protocaffe, digit_folder):
    done = run_protocaffe(
        "time", "--model=net.prototxt", "--iterations=2", "--batch_sweep=1,8", cwd=digit_folder
    )
    assert done.returncode == 0, done.stderr
    header, *rows = [line.split() for line in done.stdout.splitlines()]
    assert header == ["batch", "forward", "ms", "backward", "ms", "images/s", "memory", "MiB"]
    assert [int(row[0]) for row in rows] == [1, 8]
    memory = [float(row[-1]) for row in rows]
    assert 0 < memory[0] < memory[1]


@pytest.mark.parametrize("batches", ["1,x", "0", "4,,8"])
def test_wrong_batch_sizes_are_refused(run_protocaffe, digit_folder, batches):
    done = run_protocaffe(
        "time", "--model=net.prototxt", f"--batch_sweep={batches}", cwd=digit_folder
    )
    assert done.returncode == 2
    assert "expected batch sizes such as 1,8,32" in done.stderr
