import pytest

from protocaffe.errors import NetError
from protocaffe.graph.filter import why_left_out
from protocaffe.graph.node import Node
from protocaffe.proto.caffe_pb2 import LayerParameter, NetState
from protocaffe.proto.text import parse_text


def node(rules):
    param = parse_text(f'name: "rows" type: "Data" {rules}', LayerParameter())
    return Node(param, [], ["x"], "n.prototxt:3")


def reason(rules, state="phase: TRAIN"):
    return why_left_out(node(rules), parse_text(state, NetState()))


@pytest.mark.parametrize(
    ("rule", "state", "met"),
    [
        ("", "", True),
        ("phase: TRAIN", "phase: TRAIN", True),
        ("phase: TRAIN", "phase: TEST", False),
        ("min_level: 2", "level: 2", True),
        ("min_level: 2", "level: 1", False),
        ("min_level: -1", "", True),
        ("max_level: 2", "level: 2", True),
        ("max_level: 2", "level: 3", False),
        ("stage: 'a' stage: 'b'", "stage: ['b', 'c', 'a']", True),
        ("stage: 'a' stage: 'b'", "stage: 'a'", False),
        ("not_stage: 'a'", "stage: 'b'", True),
        ("not_stage: 'a' not_stage: 'b'", "stage: 'b'", False),
        ("phase: TEST stage: 'a'", "phase: TEST", False),
        ("phase: TEST stage: 'a'", "phase: TEST stage: 'a'", True),
    ],
)
def test_rule_is_met_when_all_its_parts_hold(rule, state, met):
    assert (reason(f"include {{ {rule} }}", state) == "") == met
    assert (reason(f"exclude {{ {rule} }}", state) != "") == met


def test_one_met_rule_is_enough():
    assert reason("include { phase: TEST } include { phase: TRAIN }") == ""
    assert reason("exclude { phase: TEST } exclude { phase: TRAIN }") != ""


def test_layer_without_rules_stays():
    assert reason("") == ""


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (
            "include { phase: TEST }",
            "The NetState phase (0) differed from the phase (1) specified by a rule in layer rows",
        ),
        (
            "include { min_level: 3 }",
            "The NetState level (0) is below the min_level (3) specified by a rule in layer rows",
        ),
        (
            "include { max_level: -1 }",
            "The NetState level (0) is above the max_level (-1) specified by a rule in layer rows",
        ),
        (
            "include { stage: 'a' } include { phase: TEST }",
            "The NetState did not contain stage 'a' specified by a rule in layer rows; "
            "The NetState phase (0) differed from the phase (1) specified by a rule in layer rows",
        ),
        ("exclude { }", "The NetState met an exclude rule in layer rows"),
    ],
)
def test_reason_says_what_differed(rules, expected):
    assert reason(rules) == expected


def test_both_kinds_of_rules_are_refused():
    with pytest.raises(NetError, match=r"^n\.prototxt:3: layer 'rows' \(Data\): .*only one"):
        reason("include { } exclude { }")
