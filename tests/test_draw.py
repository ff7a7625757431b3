import logging
import re
import shutil
import stat

import pytest

from protocaffe.draw import NoGraphvizError, draw_net, draw_net_to_file, net_to_dot, render
from protocaffe.errors import FileError, NetError, ProtocaffeError, UsageError
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import parse_text

HEAD = 'name: "a \\"net\\"" input: "data" input_shape { dim: [2, 3, 9, 9] }\n'
CONVOLUTION = """
layer { name: "conv<1>" type: "Convolution" bottom: "data" top: "c" param { lr_mult: 1 }
  param { lr_mult: 2 }
  convolution_param { num_output: 4 kernel_size: 3 stride: 2 pad: 1 dilation: 1 group: 1 } }
layer { name: "bn" type: "BatchNorm" bottom: "c" top: "c" }
layer { name: "relu" type: "ReLU" bottom: "c" top: "c" }
"""
LOSS = """
layer { name: "mnist" type: "Data" top: "data" top: "label" include { phase: TRAIN }
  data_param { source: "somewhere/far/away/on/the/disk/train_lmdb" batch_size: 64 } }
layer { name: "mnist" type: "Data" top: "data" top: "label" include { phase: TEST }
  data_param { source: "test_lmdb" backend: LMDB } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  inner_product_param { num_output: 10 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy"
  include { phase: TEST } }
"""


def net(text):
    return parse_text(text, caffe_pb2.NetParameter())


def boxes(dot):
    """Return the words in every layer's box, in order."""
    rows = [line for line in dot.splitlines() if "<table" in line]
    words = [re.split("<[^>]*>", row.partition("[label=<")[2].removesuffix(">];")) for row in rows]
    return [[word.strip() for word in each if word.strip()] for each in words]


def arrows(dot):
    """Return from, to and label."""
    found = re.findall(r'^  (\S+) -> (\S+|".*?")(?: \[label="(.*)"\])?;$', dot, re.MULTILINE)
    return [
        (start, stop, " ".join(label.replace("\\n", " ").split())) for start, stop, label in found
    ]


def test_layers_in_place_share_a_box():
    dot = net_to_dot(net(HEAD + CONVOLUTION))
    assert dot.startswith('digraph "a \\"net\\"" {')
    assert boxes(dot) == [
        ["input", "Input"],
        [
            *("conv&lt;1&gt;", "Convolution", "4 × 3×3, stride 2, pad 1"),
            *("bn", "BatchNorm", "relu", "ReLU"),
        ],
    ]
    assert arrows(dot) == [("layer0", "layer1", "data 3×9×9"), ("layer1", '"layer1 c"', "4×5×5")]


def test_blobs_have_names_where_they_differ_from_the_layer_s():
    dot = net_to_dot(
        net(
            HEAD + 'layer { name: "s" type: "Slice" bottom: "data" top: "a" top: "b" top: "s"}\n'
            'layer { name: "e" type: "Eltwise" bottom: "a" bottom: "b" bottom: "s" top: "e" '
            "eltwise_param { operation: MAX } }"
        )
    )
    assert arrows(dot)[1:4] == [
        *(("layer1", "layer2", f"{name}1×9×9") for name in ("a ", "b ", "")),
    ]
    assert boxes(dot)[2] == ["e", "Eltwise", "MAX"]


def test_a_phase_and_both():
    both, test = net_to_dot(net(LOSS)), net_to_dot(net(LOSS), phase=caffe_pb2.TEST)
    train = net_to_dot(net(LOSS), phase=caffe_pb2.TRAIN)
    assert [len(boxes(dot)) for dot in (both, test, train)] == [5, 4, 3]
    assert [end for _, end, _ in arrows(train) if "loss" in end or "acc" in end] == [
        '"layer2 loss"'
    ]
    assert {start for start, end, _ in arrows(both) if end == "layer2"} == {"layer0", "layer1"}
    assert 'label="(TEST)"' in test.replace(" ", "")
    assert boxes(train)[0][2] == "source …y/on/the/disk/train_lmdb, batch_size 64"
    assert boxes(test)[0] == ["mnist", "Data", "source test_lmdb, backend LMDB"]


def test_learning_rates_on_demand():
    assert "lr_mult 1, 2" in net_to_dot(net(HEAD + CONVOLUTION), display_lrm=True)
    assert "lr_mult" not in net_to_dot(net(HEAD + CONVOLUTION))


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("Pooling", "pooling_param { pool: AVE global_pooling: true }", "AVE, global"),
        ("Pooling", "pooling_param { kernel_h: 3 kernel_w: 2 pad_h: 1 }", "MAX 3×2, pad 1×0"),
        ("Deconvolution", "convolution_param { kernel_size: [3, 5] group: 2 }", "3×5, group 2"),
        ("InnerProduct", "inner_product_param { num_output: 7 axis: 2 }", "7 outputs"),
        ("LRN", "lrn_param { local_size: 3 alpha: 1e-4 norm_region: WITHIN_CHANNEL }", "local_size "
         "3, alpha 0.0001, norm_region WITHIN_CHANNEL"),
        ("ReLU", "relu_param { negative_slope: 0.1 }", "negative_slope 0.1"),
        ("Scale", "scale_param { bias_term: true filler { value: 2 } }", "bias_term true"),
        ("FromAFork", "", ""),
    ],
)  # fmt: skip
def test_settings(kind, settings, expected):
    text = f'{HEAD} layer {{ name: "l" type: "{kind}" bottom: "data" top: "l" {settings} }}'
    assert boxes(net_to_dot(net(text)))[1] == ["l", kind, *filter(None, [expected])]


def test_nets_without_shapes_are_drawn_too(caplog):
    text = HEAD + 'layer { name: "l" type: "FromAFork" bottom: "data" top: "l" }'
    with caplog.at_level(logging.WARNING, "protocaffe"):
        dot = net_to_dot(net(text))
    assert "The picture has no shapes: " in caplog.text
    assert "unknown layer type 'FromAFork'" in caplog.text
    assert arrows(dot) == [("layer0", "layer1", "data"), ("layer1", '"layer1 l"', "")]


def test_old_formats_are_drawn():
    text = 'layers { name: "r" type: RELU bottom: "data" top: "r" }'
    given = net(HEAD + text)
    assert boxes(net_to_dot(given))[1] == ["r", "ReLU"]
    assert given.layers  # as it was


def test_mistakes(tmp_path):
    with pytest.raises(UsageError, match="unknown direction 'UP'; expected one of LR, RL, TB, BT"):
        net_to_dot(net(HEAD + CONVOLUTION), "UP")
    with pytest.raises(NetError, match="net 'empty' has no layers to draw"):
        net_to_dot(net('name: "empty"'))
    with pytest.raises(UsageError, match="expected an ending such as"):
        draw_net_to_file(net(HEAD), tmp_path / "picture")
    with pytest.raises(FileError, match="there is no folder"):
        draw_net_to_file(net(HEAD), tmp_path / "no" / "picture.dot")


# -- Graphviz ----------------------------------------------------------------------------


@pytest.fixture
def fake_dot(tmp_path, monkeypatch):
    """Put a program 'dot' of a few lines of shell first on the path."""

    def make(script):
        program = tmp_path / "dot"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return make


def test_pictures_are_what_graphviz_writes(fake_dot, tmp_path):
    fake_dot('echo "$1"; cat')
    assert render("digraph {}", "svg") == b"-Tsvg\ndigraph {}"
    draw_net_to_file(net(HEAD), tmp_path / "Net.PNG", "TB")
    content = (tmp_path / "Net.PNG").read_text()
    assert content == f"-Tpng\n{net_to_dot(net(HEAD), 'TB')}"
    assert draw_net(net(HEAD), "LR", "gv").decode() == net_to_dot(net(HEAD))


def test_graphviz_that_fails(fake_dot):
    fake_dot("echo 'Format: \"xyz\" not recognized. Use one of: ...' >&2; exit 1")
    with pytest.raises(UsageError, match=r"cannot write '\.xyz'; try png"):
        render("digraph {}", "xyz")
    fake_dot("echo boom >&2; exit 3")
    with pytest.raises(ProtocaffeError, match="Graphviz failed with exit code 3: boom"):
        render("digraph {}", "png")


def test_no_graphviz(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoGraphvizError, match="'dot' is not installed"):
        draw_net(net(HEAD))


@pytest.mark.skipif(not shutil.which("dot"), reason="Graphviz's program dot is not installed")
def test_graphviz_takes_the_text():
    for text in (HEAD + CONVOLUTION, LOSS):
        svg = draw_net(net(text), "TB", "svg").decode()
        assert svg.count("<polygon") > 3
        assert draw_net(net(text)).startswith(b"\x89PNG")
