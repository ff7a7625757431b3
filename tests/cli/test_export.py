import numpy as np
import onnx
import onnxruntime
import pytest

from protocaffe.net import Net

NET = """
name: "small"
layer { name: "data" type: "Input" top: "data"
  input_param { shape { dim: 2 dim: 3 dim: 8 dim: 8 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "prob" type: "Softmax" bottom: "conv" top: "prob" }
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "net.prototxt").write_text(NET)
    net = Net(tmp_path / "net.prototxt", engine="numpy")
    net.params["bn"][1].data[...] = 2
    net.params["bn"][2].data[...] = 1
    net.save(tmp_path / "net.caffemodel")
    return tmp_path


WORDS = ("export", "net.prototxt", "--weights=net.caffemodel", "--onnx=net.onnx")


def test_export(run_protocaffe, folder):
    done = run_protocaffe(*WORDS, "--verify", "--fold")
    assert done.returncode == 0
    assert done.stderr == ""
    first, *lines = done.stdout.splitlines()
    assert first.startswith("prob: greatest difference ")
    assert lines == [
        "input data: Nx3x8x8",
        "output prob: Nx4x6x6",
        "folded 1 layers into the weights before them",
        "wrote net.onnx",
    ]
    net = Net(folder / "net.prototxt", weights=folder / "net.caffemodel")
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8), np.float32)
    net.blobs["data"].data[...] = x
    net.run_forward()
    session = onnxruntime.InferenceSession(str(folder / "net.onnx"))
    np.testing.assert_allclose(
        session.run(["prob"], {"data": x})[0], net.blobs["prob"].data, rtol=1e-4
    )


def test_a_fixed_batch_and_its_reason(run_protocaffe, folder):
    done = run_protocaffe(*WORDS, "--batch=5")
    assert done.returncode == 0
    assert "input data: 5x3x8x8" in done.stdout
    reshape = """layer { name: "rows" type: "Reshape" bottom: "prob" top: "rows"
        reshape_param { shape { dim: 2 dim: -1 } } }"""
    (folder / "net.prototxt").write_text(NET + reshape)
    done = run_protocaffe(*WORDS, "--force")
    assert done.returncode == 0
    assert (
        "takes batches of 2 only: net.prototxt:9: layer 'rows' (Reshape): with twice" in done.stdout
    )


def test_an_existing_file_stays(run_protocaffe, folder):
    (folder / "net.onnx").write_text("mine")
    done = run_protocaffe(*WORDS)
    assert done.returncode == 1
    assert "net.onnx exists already; --force replaces it" in done.stderr
    assert (folder / "net.onnx").read_text() == "mine"
    assert run_protocaffe(*WORDS, "--force").returncode == 0
    onnx.checker.check_model(str(folder / "net.onnx"))


def test_untrained_layers_are_refused(run_protocaffe, folder):
    (folder / "net.prototxt").write_text(NET.replace('"bn"', '"bn_new"'))
    done = run_protocaffe(*WORDS)
    assert done.returncode == 1
    assert "net.caffemodel has no weights for bn_new" in done.stderr
    assert not (folder / "net.onnx").exists()


def test_layers_without_an_onnx_form(run_protocaffe, folder):
    loss = 'layer { name: "loss" type: "EuclideanLoss" bottom: "prob" bottom: "prob" }'
    (folder / "net.prototxt").write_text(NET + loss)
    done = run_protocaffe(*WORDS)
    assert done.returncode == 1
    assert "net.prototxt:9: layer 'loss' (EuclideanLoss): cannot be exported" in done.stderr
    assert not (folder / "net.onnx").exists()
