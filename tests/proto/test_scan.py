from hypothesis import given
from hypothesis import strategies as st

from protocaffe.proto.scan import layer_offsets, position, walk


def lines_of(text):
    return {
        name: [position(text, offset)[0] for offset in offsets]
        for name, offsets in layer_offsets(text).items()
    }


def test_layers_are_found_however_they_are_written():
    text = """# layer { name: "no" }
layer: { type: "}" name : 'a' }  layers < layer { name
  : "b" } >
layer [ { name: "c" },
        { name: "d" include { stage: "name: 'no'" } } ]
layer {
  type: "Python" # {
  python_param { layer: "no" module: "m" }
  param { name: "no" }
  name: "a"
}
"""
    assert lines_of(text) == {"a": [2, 6], "b": [2], "c": [4], "d": [5]}


def test_layers_of_a_net_inside_a_solver_are_found():
    assert lines_of('net_param {\n layer {\n name: "a" } }') == {"a": [2]}


def test_names_are_unescaped():
    assert lines_of(r'layer { name: "a\"b" } layer { name: "\101é" }') == {'a"b': [1], "Aé": [1]}


def test_walk_knows_the_open_blocks():
    steps = list(walk("a { b: 1 c < d: 2"))
    assert [[block.field for block in step.blocks] for step in steps if step.token in "12"] == [
        ["a"],
        ["a", "c"],
        ["a", "c"],
    ]
    assert [step.field for step in steps if step.token in ("1", "2")] == ["b", "d"]


def test_position_counts_from_one():
    assert position("ab\ncd", 0) == (1, 1)
    assert position("ab\ncd", 4) == (2, 2)


@given(st.text(alphabet="{}<>[]:\"'\\# \nlayernm0.", max_size=60))
def test_any_text_can_be_walked(text):
    tokens = [step.token for step in walk(text)]
    assert tokens[-1] == ""
    layer_offsets(text)
