import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocaffe.proto import scan
from protocaffe.proto.caffe_pb2 import NetParameter
from protocaffe.proto.recover import parse_all

TEXT = """name: "net"
layer {
  name: "conv" type: "Convolution" botom: "data" top: "conv"
  convolution_param { num_outputs: 3 kernel_size: [3, 3] wings { span: 2 } }
}
layer {
  name: "pool" type: "Pooling" bottom: "conv" top: "pool"
  pooling_param { pool: MAXX kernel_size: two stride: 2 }
}
"""


def test_all_mistakes_are_told_and_the_rest_is_read():
    net, mistakes = parse_all(TEXT, NetParameter, "net.prototxt")
    assert [str(each).partition(": ")[::2][0] for each in mistakes] == [
        "net.prototxt:3:36",
        "net.prototxt:4:23",
        "net.prototxt:4:58",
        "net.prototxt:8:25",
        "net.prototxt:8:43",
    ]
    conv, pool = net.layer
    assert conv.bottom == ["data"]
    assert conv.convolution_param.num_output == 3
    assert conv.convolution_param.kernel_size == [3, 3]
    assert pool.pooling_param.stride == 2
    assert not pool.pooling_param.HasField("kernel_size")


def test_places_and_lines_are_those_of_the_text_as_it_is():
    text = "layer { nam: 'x' boottom: 'data' topp: 'y' }"
    _, mistakes = parse_all(text, NetParameter, "n")
    for mistake, word in zip(mistakes, ("nam", "boottom", "topp"), strict=True):
        first, line, caret = str(mistake).splitlines()
        assert first.startswith(f"n:1:{text.index(word) + 1}: unknown field '{word}'")
        assert line.strip() == text
        assert line[caret.index("^") :].startswith(word)


def test_a_wrong_guess_is_not_taken_for_another_mistake():
    text = "layer { transform_param { random_sized_crop: 3 mirrer: yes crop_size: 2 } }"
    net, mistakes = parse_all(text, NetParameter, "n")
    assert ["random_sized_crop" in str(mistakes[0]), "mirrer" in str(mistakes[1])] == [True, True]
    assert len(mistakes) == 2
    assert net.layer[0].transform_param.crop_size == 2


def test_a_text_without_mistakes():
    net, mistakes = parse_all('name: "net"', NetParameter, "net.prototxt")
    assert (net.name, mistakes) == ("net", [])


def test_broken_structure_ends_the_reading():
    net, mistakes = parse_all('nam: "x"\nlayer { name: "a"', NetParameter, "net.prototxt")
    assert net is None
    assert len(mistakes) == 2
    assert "unknown field 'nam'" in str(mistakes[0])
    assert "block 'layer' is never closed" in str(mistakes[1])


def test_missing_required_fields_are_told():
    net, mistakes = parse_all(
        'layer { name: "c" clip_param { min: 1 } }', NetParameter, "net.prototxt"
    )
    assert net.layer[0].clip_param.min == 1
    assert len(mistakes) == 1
    assert "missing required" in str(mistakes[0])


@pytest.mark.parametrize(
    ("text", "word", "field"),
    [
        ("a: 1 b: 2", "2", "b: 2"),
        ("a: 1 b: 2", "a", "a: 1"),
        ("a { b: 1 c { d: 2 } } e: 3", "a", "a { b: 1 c { d: 2 } }"),
        ("a { b: 1 c { d: 2 } } e: 3", "c", "c { d: 2 }"),
        ("a: { b: 1 } e: 3", "a", "a: { b: 1 }"),
        ("a: [1, 2] e: 3", "2", "a: [1, 2]"),
        ("a: 'x' \"y\" e: 3", "a", "a: 'x' \"y\""),
        ("a { b: 1", "a", None),
        ("a: 1 { }", "{", "a: 1"),
    ],
)
def test_field_extent(text, word, field):
    extent = scan.field_extent(text, text.index(word))
    assert (None if extent is None else text[slice(*extent)]) == field


@given(st.text(alphabet="ab:{}<>[]'\" \n1#-", max_size=40), st.data())
def test_any_text_has_an_answer(text, data):
    offset = data.draw(st.integers(0, len(text)))
    extent = scan.field_extent(text, offset)
    assert extent is None or 0 <= extent[0] < extent[1] <= len(text)
    message, mistakes = parse_all(text, NetParameter, "x")
    assert message is not None or mistakes
