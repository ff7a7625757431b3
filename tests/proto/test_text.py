import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocaffe.errors import FileError, TextError
from protocaffe.proto.caffe_pb2 import LayerParameter, NetParameter, SolverParameter
from protocaffe.proto.text import Source, format_text, parse_text, read_net, read_solver


def complaint(text, message=NetParameter):
    with pytest.raises(TextError) as caught:
        parse_text(text, message(), "n.prototxt")
    return str(caught.value)


MISTAKES = {
    # text: where, and what the message has to say
    "layer {\n  nam: 'a'\n}": ("2:3", "unknown field 'nam' in layer; did you mean 'name'?"),
    "layer { convolution_param { kernal_size: 3 } }": ("1:29", "did you mean 'kernel_size'?"),
    "zzz: 1": ("1:1", "unknown field 'zzz' in NetParameter"),
    "layer { zzz { a: 1 } }": ("1:9", "unknown field 'zzz' in layer"),
    "layer { kernel_size: 3 }": ("1:9", "inside convolution_param or pooling_param"),
    "layer { blobs_lr: 1 }": ("1:9", "write param { lr_mult: ... }"),
    "base_lr: 1": ("1:1", "it belongs in a solver, and this is read as a net: is this the file"),
    "layer { name: 'a type: 'X' }": ("1:25", "unknown field 'X' in layer; a text in quotes ends"),
    "layer { pooling_param { pool: MAXX } }": (
        "1:31",
        "unknown value MAXX for 'pool'; did you mean 'MAX'? (known: MAX, AVE, STOCHASTIC)",
    ),
    "layer { pooling_param { pool: 7 } }": ("1:31", "unknown value 7 for 'pool'"),
    "layer { include { phase: train } }": ("1:26", "did you mean 'TRAIN'?"),
    "layers { type: CONVOLUTIN }": ("1:16", "did you mean 'CONVOLUTION'?"),
    'layers { type: "Convolution" }': ("1:16", "write 'layer', not 'layers'"),
    "layer { type: CONVOLUTION }": ("1:15", "belongs to the old 'layers' format"),
    "layer { inner_product_param { num_output: 2.5 } }": (
        "1:43",
        "expected a whole number from 0 to 4294967295 for 'num_output', got 2.5",
    ),
    "layer { pooling_param { stride: -1 } }": ("1:33", "from 0 to 4294967295 for 'stride', got -1"),
    "layer { pooling_param { pool:": ("1:30", "unknown value the end of the text for 'pool'"),
    "input_dim: 99999999999": ("1:12", "got 99999999999"),
    "layer { lrn_param { alpha: big } }": ("1:28", "expected a number for 'alpha', got big"),
    "force_backward: yes": ("1:17", "expected true or false for 'force_backward', got yes"),
    "name: net": ("1:7", "expected text in quotes for 'name', got net"),
    "layer { name: }": ("1:15", "expected text in quotes for 'name', got }"),
    "layer { name:": ("1:14", "got the end of the text"),
    "layer {\n  name: 'a'\n": ("1:1", "block 'layer' is never closed; a '}' or '>' is missing"),
    "layer <\n name: 'a'": ("1:1", "block 'layer' is never closed"),
    "layer {\n  lrn_param {\n}\n": ("1:1", "block 'layer' is never closed"),
    "layer {\n  name: 'a'\nlayer {": ("3:1", "is a '}' missing before it? (block 'layer', opened"),
    "layer { pooling_param { pad: 1 top: 'x' } }": ("1:32", "block 'pooling_param', opened on"),
    "name: 'a' }": ("1:11", "this '}' closes nothing"),
    "layer { name: 'a' ]": ("1:19", "expected the name of a field, got ]"),
    "name: 'a\n'": ("1:7", "the text in quotes for 'name' does not end on its line"),
    r"name: '\x'": ("1:7", "the text in quotes for 'name' has a backslash code that is no text"),
    r"name: '\377'": ("1:13", "has a backslash code that is no text"),
    "name: 'a'\nname: 'b'": ("2:7", "field 'name' is given twice, but takes one value"),
    "layer name: 'a'": ("1:7", "'layer' is a block: expected '{' after it, got name"),
    "name 'a'": ("1:6", "expected ':' and a value after 'name', got 'a'"),
    "input_dim: [1, 2": ("1:17", "expected ',' or ']' in the list of 'input_dim'"),
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistake_is_explained(text):
    place, what = MISTAKES[text]
    message = complaint(text)
    assert message.startswith(f"n.prototxt:{place}: ")
    assert what in message


def test_mistake_is_pointed_at():
    assert complaint("layer {\n\tname: a }").endswith("\n     name: a }\n           ^")


def test_pointer_stays_on_a_very_long_line():
    line, caret = complaint("name: 'x' " + " " * 500 + "zzz: 1").splitlines()[1:]
    assert len(line) < 120
    assert line[caret.index("^") :].startswith("zzz")


def test_missing_required_field_names_the_layer():
    text = "layer { name: 'a' }\nlayer { name: 'a' clip_param { min: 0 } }"
    assert complaint(text) == "n.prototxt:2: layer 'a': missing required clip_param.max"


def test_missing_required_field_elsewhere():
    text = "net_param { layer { clip_param { min: 0 } } }"
    assert "net_param.layer[0].clip_param.max" in complaint(text, SolverParameter)


@given(st.text(alphabet="{}<>[]:\"'\\#, \nlayernmtop013.-", max_size=50))
def test_any_text_is_read_or_refused_in_our_words(text):
    try:
        parse_text(text, NetParameter(), "n.prototxt")
    except TextError as error:
        message = str(error)
    else:
        message = "n.prototxt:1:1: legal"
    assert re.match(r"n\.prototxt:\d+:\d+: .", message)


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("loss_weight: 1. loss_weight: .5 loss_weight: 1e-1f", [1, 0.5, 0.1]),
        ("loss_weight: [1, 2] loss_weight: 3 # 4", [1, 2, 3]),
    ],
)
def test_numbers_as_caffe_reads_them(text, weights):
    assert list(parse_text(text, LayerParameter()).loss_weight) == pytest.approx(weights)


def test_punctuation_that_caffe_accepts():
    net = parse_text('layer: < name: "a"; bottom: "x", > force_backward: True', NetParameter())
    assert (net.layer[0].name, net.layer[0].bottom, net.force_backward) == ("a", ["x"], True)


def test_empty_text_is_an_empty_message():
    assert parse_text(" \n# nothing\n", NetParameter()) == NetParameter()


def test_read_net_knows_the_lines(tmp_path):
    path = tmp_path / "n.prototxt"
    path.write_text('layer {\n name: "a"\n}\nlayer { name: "b" }\n\nlayer { name: "a" }\n')
    net, source = read_net(path)
    assert [layer.name for layer in net.layer] == ["a", "b", "a"]
    assert source.path == str(path)
    assert source.where("b") == f"{path}:4"
    assert [source.where("a", k) for k in range(3)] == [f"{path}:1", f"{path}:6", str(path)]
    assert source.where("c") == str(path)


def test_source_without_text_knows_the_path_alone():
    assert Source("n.prototxt").where("a") == "n.prototxt"


def test_read_solver(tmp_path):
    path = tmp_path / "s.prototxt"
    path.write_bytes(b'\xef\xbb\xbfnet: "n"\r\ntype: "Adam"\r\n')
    solver, source = read_solver(path)
    assert (solver.net, solver.type, source.path) == ("n", "Adam", str(path))


@pytest.mark.parametrize("reader", [read_net, read_solver])
def test_files_that_cannot_be_read(reader, tmp_path):
    (tmp_path / "train_val.prototxt").touch()
    (tmp_path / "weights").write_bytes(b"\n\x04\0\0")
    with pytest.raises(FileError, match=r"no such file; did you mean 'train_val\.prototxt'"):
        reader(tmp_path / "train_va.prototxt")
    with pytest.raises(FileError, match=r"no such file \(nor does the folder '.*nowhere' exist\)$"):
        reader(tmp_path / "nowhere" / "n.prototxt")
    with pytest.raises(FileError, match="expected a file, got a folder"):
        reader(tmp_path)
    with pytest.raises(FileError, match="expected a text file"):
        reader(tmp_path / "weights")
    (tmp_path / "notepad").write_text("name: 'n'", encoding="utf-16")
    with pytest.raises(FileError, match="the text is UTF-16; save the file with UTF-8 encoding"):
        reader(tmp_path / "notepad")


def test_bytes_that_are_not_utf8(tmp_path):
    path = tmp_path / "n.prototxt"
    path.write_bytes(b'# ok\nname: "caf\xe9"')
    with pytest.raises(TextError, match=r"n\.prototxt:2:11: byte 0xe9 is not UTF-8"):
        read_net(path)


def test_text_is_formatted_as_caffe_prints_it():
    layer = LayerParameter(name='quote " and é', loss_weight=[1, 0.5, -2, 1e-5, 1e20])
    text = format_text(layer)
    assert text == (
        'name: "quote \\" and é"\n'
        "loss_weight: 1\nloss_weight: 0.5\nloss_weight: -2\n"
        "loss_weight: 1e-05\nloss_weight: 1e+20\n"
    )
    assert parse_text(text, LayerParameter()) == layer


@given(
    st.builds(
        LayerParameter,
        name=st.text(),
        top=st.lists(st.text(max_size=5), max_size=3),
        loss_weight=st.lists(st.floats(width=32, allow_nan=False), max_size=5),
    )
)
def test_formatted_text_reads_back(layer):
    assert parse_text(format_text(layer), LayerParameter()) == layer


LAYER = """layer {
  name: "conv%d"
  type: "Convolution"
  bottom: "conv%d"
  top: "conv%d"
  convolution_param {
    num_output: 64
    kernel_size: 3
    pad: 1
    bias_term: false
    weight_filler { type: "msra" }
  }
}
"""


def test_a_net_of_seven_thousand_lines_reads_quickly(tmp_path):
    path = tmp_path / "n.prototxt"
    path.write_text("".join(LAYER % (i, i, i + 1) for i in range(540)))
    start = time.perf_counter()
    _, source = read_net(path)
    assert source.where("conv539") == f"{path}:{539 * 13 + 1}"
    assert time.perf_counter() - start < 2
