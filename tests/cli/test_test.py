import pytest

from tests.cli.caffe_log import kind, messages


def value(message):
    return float(message.split(" (*")[0].split()[-1])


@pytest.mark.parametrize("engine", ["numpy", "onednn"])
def test_it_finds_what_caffe_found(run_protocaffe, digit_folder, engine):
    recorded = messages((digit_folder / "test.log").read_text())
    done = run_protocaffe(
        *("test", "--model=net.prototxt", "--weights=digit_iter_40.caffemodel"),
        *("--iterations=3", f"--engine={engine}"),
        cwd=digit_folder,
    )
    assert done.returncode == 0, done.stderr
    found = messages(done.stderr)
    assert [kind(each) for each in found] == [kind(each) for each in recorded]
    start = recorded.index("Running for 3 iterations.") + 1
    values, expected = map(value, found[start:]), map(value, recorded[start:])
    assert list(values) == pytest.approx(list(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ([], 2, "required: --model, --weights"),
        (["--model=net.prototxt"], 2, "required: --weights"),
        (["--model=net.prototxt", "--weights=none.caffemodel"], 1, "none.caffemodel"),
        (["--model=none.prototxt", "--weights=digit_iter_40.caffemodel"], 1, "none.prototxt"),
        (["--model=net.prototxt", "--weights=x", "--iterations=0"], 2, "must be at least 1"),
    ],
)
def test_mistakes(run_protocaffe, digit_folder, flags, code, message):
    done = run_protocaffe("test", *flags, cwd=digit_folder)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_net_without_data_runs_on_zeros(run_protocaffe, digit_folder):
    text = (digit_folder / "net.prototxt").read_text()
    inputs = """layer { name: "in" type: "Input" top: "img" top: "lab"
        input_param { shape { dim: 1 dim: 1 dim: 16 dim: 16 } shape { dim: 1 } } }
"""
    (digit_folder / "deploy.prototxt").write_text(
        inputs + text[text.index('layer {\n  name: "stem') :]
    )
    words = ("--model=deploy.prototxt", "--weights=digit_iter_40.caffemodel", "--iterations=1")
    done = run_protocaffe("test", *words, cwd=digit_folder)
    assert done.returncode == 0, done.stderr
    assert "no data of its own: its inputs (img, lab) are all 0 here" in done.stderr
