from importlib.util import find_spec

import numpy as np
import pytest

from benchmarks.compare_torch import BenchmarkError
from benchmarks.inference import Result, check_outputs, main, prepare, table

NET = """
    layer { name: "data" type: "Input" top: "data"
            input_param { shape { dim: 1 dim: 3 dim: 12 dim: 12 } } }
    layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
            convolution_param { num_output: 16 kernel_size: 3 } }
    layer { name: "norm" type: "BatchNorm" bottom: "conv" top: "conv" }
    layer { name: "scale" type: "Scale" bottom: "conv" top: "conv"
            scale_param { bias_term: true } }
    layer { name: "prob" type: "Softmax" bottom: "conv" top: "prob" }
"""


@pytest.fixture
def net_file(tmp_path):
    path = tmp_path / "net.prototxt"
    path.write_text(NET)
    return path


@pytest.mark.skipif(
    find_spec("onnxruntime") is None or find_spec("onnx") is None, reason="no ONNX Runtime"
)
def test_both_sides_are_checked_and_timed(net_file, capsys, tmp_path):
    flags = ["--batch", "1", "2", "--rounds", "1", "--iterations", "1", "--threads", "1"]
    missing = ["--opencv-python", str(tmp_path / "python")]
    assert main([str(net_file), *flags, *missing]) == 0
    shown = capsys.readouterr().out
    assert shown.count("ONNX Runtime") == 2
    assert "OpenCV is left out" in shown
    assert "batch 2, 1 threads" in shown


def test_a_misspelt_net_gets_the_nearest_name(tmp_path):
    with pytest.raises(BenchmarkError, match="resnet50"):
        prepare("resnet5", 1, tmp_path)


def test_different_outputs_are_refused():
    ours = np.array([0.5, 0.25], np.float32)
    check_outputs({"protocaffe": ours, "onnxruntime": ours + 1e-6})
    with pytest.raises(BenchmarkError, match="nothing was timed: the outputs of ONNX Runtime"):
        check_outputs({"protocaffe": ours, "onnxruntime": ours + 0.01})
    with pytest.raises(BenchmarkError, match="gives 3 numbers, protocaffe 2"):
        check_outputs({"protocaffe": ours, "opencv": np.zeros(3, np.float32)})


def test_the_table_tells_images_per_second_and_ratios():
    sides = {"protocaffe": [2.0], "onnxruntime": [4.0]}
    result = Result(
        net="net",
        batch=16,
        threads=2,
        iterations=1,
        versions=dict.fromkeys(sides, "1.0"),
        times={side: [{"forward": times}] for side, times in sides.items()},
    )
    ours, theirs = table(result).splitlines()[-2:]
    assert ours.split()[-6:] == ["2.00", "2.00", "8000.0", "8000.0", "1.00x", "1.00x"]
    assert theirs.split()[-6:] == ["4.00", "4.00", "4000.0", "4000.0", "2.00x", "2.00x"]
