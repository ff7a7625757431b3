import io
import json

import pytest
from rich.console import Console

from benchmarks import nets
from protocaffe.cli.summary import _cut, _fitting_table
from protocaffe.proto.caffe_pb2 import NetParameter
from protocaffe.proto.text import format_text, parse_text
from protocaffe.summary import summarize


@pytest.fixture
def lenet(tmp_path):
    path = tmp_path / "lenet.prototxt"
    path.write_text(format_text(nets.NETS["lenet"](batch=64)))
    return path


def test_table(run_protocaffe, lenet):
    done = run_protocaffe("summary", lenet)
    assert done.returncode == 0
    assert done.stderr == ""
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.strip()}
    assert rows["Layer"] == ["Type", "Output", "Params", "M-adds", "Memory", "Field"]
    assert rows["conv1"] == ["Convolution", "64x20x24x24", "520", "18.4", "M", "2.9", "MB", "5"]
    assert rows["relu1"] == ["ReLU", "64x500", "28"]
    assert " ".join(rows["Parameters"]) == "431,080 (1.7 MB)"
    assert " ".join(rows["Mult-adds"]) == "146.8 M per forward pass, 2.3 M per image of 64"


def test_json(run_protocaffe, lenet):
    done = run_protocaffe("summary", lenet, "--json", "--shape=data:1,1,28,28")
    assert done.returncode == 0
    assert json.loads(done.stdout)["totals"] == {
        "batch": 1,
        "parameters": 431_080,
        "multiply_adds": 2_293_000,
        "parameter_memory": 1_724_320,
        "memory": 78_784,
    }


def test_assumptions_are_told(run_protocaffe, tmp_path):
    (tmp_path / "net.prototxt").write_text(
        'layer { name: "data" type: "Data" top: "data" transform_param { crop_size: 8 } '
        'data_param { source: "gone" batch_size: 5 } }'
    )
    done = run_protocaffe("summary", "net.prototxt")
    assert done.returncode == 0
    assert (
        "note: layer 'data' (net.prototxt:1): its data are missing; assumed to be 5x3x8x8"
        in done.stdout
    )


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("1,3", "--shape: expected a blob and its extents, such as data:1,3,224,224, got '1,3'"),
        ("data:1,x", "got 'data:1,x'"),
        ("data:0,1", "got 'data:0,1'"),
        ("dat:1,1,28,28", "cannot give blob 'dat' a shape; did you mean 'data'?"),
    ],
)
def test_wrong_shapes(run_protocaffe, lenet, shape, message):
    done = run_protocaffe("summary", lenet, f"--shape={shape}")
    assert done.returncode == 2
    assert message in done.stderr


def test_long_names_lose_their_middle():
    names = [f"inception_3a/{part}" for part in ("relu_3x3_reduce", "relu_5x5_reduce", "3x3")]
    assert [_cut(name, 18) for name in names] == [
        "incep…u_3x3_reduce",
        "incep…u_5x5_reduce",
        "inception_3a/3x3",
    ]
    text = "".join(
        f'layer {{ name: "{name}" type: "Input" top: "{name}" '
        "input_param { shape { dim: 100 dim: 1000 dim: 1000 } } }"
        for name in names
    )
    summary = summarize(parse_text(text, NetParameter()))
    for width in (80, 66):
        console = Console(width=width, file=io.StringIO())
        console.print(_fitting_table(summary, console))
        lines = console.file.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        assert len({line.split()[0] for line in lines[-4:-1]}) == 3
