import copy
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocaffe.errors import NetError
from protocaffe.graph import build_graph, merge_state
from protocaffe.proto.caffe_pb2 import TEST, TRAIN, NetParameter, NetState, Phase
from protocaffe.proto.text import Source, parse_text, read_net, read_solver

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = [path for kind in ("mechanics", "composite") for path in sorted((GOLDEN / kind).iterdir())]


def build(text, phase=TRAIN, level=0, stages=()):
    net = parse_text(text, NetParameter())
    return build_graph(net, merge_state(net, phase, level, stages), Source("n.prototxt", text))


def refusal(text):
    with pytest.raises(NetError) as caught:
        build(text)
    return str(caught.value)


def agree(graph, expected):
    assert expected["layers"] == [
        {"name": node.name, "type": node.param.type, "bottoms": node.bottoms, "tops": node.tops}
        for node in graph.nodes
    ]
    assert graph.blob_names == expected["blob_names_in_order"]
    assert graph.inputs == expected["inputs"]
    assert graph.outputs == expected["outputs"]


@pytest.mark.parametrize(
    "case", sorted((GOLDEN / "assembly").iterdir()), ids=lambda path: path.name
)
def test_assembly_is_that_of_caffe(case):
    net, source = read_net(case / "net.prototxt")
    for expected in json.loads((case / "expected.json").read_text()).get("states", []):
        phase = Phase.Value(expected["phase"])
        state = merge_state(net, phase, expected["level"], expected["stages"])
        agree(build_graph(net, state, source), expected)


def test_states_of_a_solver_select_layers_as_in_caffe():
    case = GOLDEN / "assembly" / "solver_states"
    net, source = read_net(case / "net.prototxt")
    solver, _ = read_solver(case / "solver.prototxt")
    expected = json.loads((case / "expected.json").read_text())
    states = [(TRAIN, solver.train_state), *((TEST, state) for state in solver.test_state)]
    for (phase, extra), layers in zip(states, [expected["train"], *expected["tests"]], strict=True):
        state = NetState(phase=phase)
        state.MergeFrom(extra)
        agree(build_graph(net, state, source), layers)


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_layers_and_outputs_are_those_of_caffe(case):
    expected = json.loads((case / "meta.json").read_text())
    net, source = read_net(case / "net.prototxt")
    graph = build_graph(net, merge_state(net, Phase.Value(expected["phase"])), source)
    assert [[node.name, node.param.type] for node in graph.nodes] == expected["layers"]
    assert graph.outputs == expected["outputs"]


@pytest.mark.parametrize(
    "path", sorted(GOLDEN.glob("files/*/structure_*.json")), ids=lambda path: path.parent.name
)
def test_nets_of_old_formats_are_those_of_caffe(path):
    expected = json.loads(path.read_text())
    net, source = read_net(path.parent / "old.prototxt")
    graph = build_graph(net, merge_state(net, Phase.Value(path.stem.split("_")[1])), source)
    nodes = [[node.name, node.param.type, node.bottoms, node.tops] for node in graph.nodes]
    assert nodes == expected["layers"]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("include_and_exclude", "has both include and exclude rules"),
        ("two_sources", "layer 'b' (Sigmoid): top blob 'y' is produced by multiple sources"),
        ("unknown_bottom", "layer 'a' (TanH): unknown bottom blob 'nosuch' (bottom 0)"),
    ],
)
def test_what_caffe_refuses_is_refused(case, message):
    net, source = read_net(GOLDEN / "errors" / case / "net.prototxt")
    with pytest.raises(NetError) as caught:
        build_graph(net, merge_state(net, TRAIN), source)
    assert message in str(caught.value)
    assert f"{source.path}:" in str(caught.value)


def test_message_and_nodes_are_the_same_layers():
    text = """
    name: "n" force_backward: true state { phase: TEST stage: "s" }
    layer { name: "a" type: "Input" top: "x" }
    layer { name: "b" type: "TanH" bottom: "x" top: "y" phase: TEST }
    layer { name: "c" type: "TanH" bottom: "x" top: "z" }
    """
    net = parse_text(text, NetParameter())
    before = copy.deepcopy(net)
    graph = build_graph(net, merge_state(net, TRAIN, 2, ["t"]))
    assert net == before
    assert (graph.name, graph.param.name, graph.param.force_backward) == ("n", "n", True)
    assert graph.state == NetState(phase=TRAIN, level=2, stage=["s", "t"]) == graph.param.state
    for node, param in zip(graph.nodes, graph.param.layer, strict=True):
        assert (node.bottoms, node.tops) == (param.bottom, param.top)
        node.param.name += "!"
        assert param.name == node.name
    assert [param.phase for param in graph.param.layer] == [TRAIN, TRAIN, TEST, TRAIN]


def test_layers_left_out_are_told():
    graph = build(
        'layer { name: "a" top: "x" } layer { name: "b" top: "x" include { phase: TEST } }'
    )
    assert [node.name for node in graph.nodes] == ["a"]
    assert graph.filtered == [
        "The NetState phase (0) differed from the phase (1) specified by a rule in layer b"
    ]


def test_nodes_know_where_they_stand():
    text = """layer { name: "a" top: "x" include { phase: TEST } }
layer { name: "a" top: "x" }

layer { name: "b" bottom: "x" bottom: "x" }"""
    assert [node.where for node in build(text).nodes] == [
        "n.prototxt:2",
        "n.prototxt:2",
        "n.prototxt:4",
    ]
    assert build_graph(parse_text(text, NetParameter()), NetState(phase=TRAIN)).nodes[0].where == ""


def test_outputs_are_in_byte_order():
    assert build('layer { top: ["b", "a_", "B", "aA", "é", "z"] }').outputs == [
        "B",
        "aA",
        "a_",
        "b",
        "z",
        "é",
    ]


def test_a_weight_moves_to_the_split_and_the_layers_others_go_as_in_caffe():
    graph = build(
        """layer { name: "a" top: ["x", "y", "z"] loss_weight: [2, 0.5, 0] }
        layer { name: "b" bottom: ["x", "z", "z"] }"""
    )
    assert {node.name: list(node.param.loss_weight) for node in graph.nodes} == {
        "a": [],
        "x_a_0_split": [2, 0],
        "z_a_2_split": [],
        "b": [],
    }
    assert graph.nodes[-1].bottoms == ["x_a_0_split_1", "z_a_2_split_0", "z_a_2_split_1"]


def test_layer_falls_back_to_its_default_weight_when_all_moved():
    graph = build('layer { name: "a" top: "x" loss_weight: 2 } layer { name: "b" bottom: "x" }')
    assert not graph.nodes[0].param.loss_weight


def test_weight_without_a_top_is_left_to_the_automatic_top():
    graph = build('layer { name: "a" top: "x" } layer { name: "b" bottom: "x" loss_weight: 3 }')
    assert graph.nodes[1].param.loss_weight == [3]
    assert graph.outputs == []


REFUSED = {
    "": "n.prototxt: the net has no layers",
    "layer { include { stage: 'a' } }": "no layers in phase TRAIN, level 0, stages: none; all 1",
    "layer { name: 'a' top: 'data' } layer { name: 'b' bottom: 'dta' }": (
        "n.prototxt:1: layer 'b' (): unknown bottom blob 'dta' (bottom 0); did you mean 'data'?"
    ),
    "layer { name: 'a' top: 'z' } layer { name: 'b' bottom: ['z', 'y'] }\n"
    "layer { name: 'c' top: 'y' }": (
        "(bottom 1); layer 'c' (n.prototxt:2) writes it, but layers run in the order of the file"
    ),
    "layer { name: 'a' type: 'Data' top: 'x' } layer { name: 'b' bottom: ['x', 'label'] }": (
        "; layer 'a' (n.prototxt:1) gives labels to a second top: add top: \"label\" to it"
    ),
    "layer { name: 'b' bottom: 'x' top: 'x' }": "but layers run in the order of the file",
    "layer { name: 'a' top: 'x' include { phase: TEST } } layer { name: 'b' bottom: 'x' }": (
        "layer 'a' (n.prototxt:1) would write it, but is not in this net because of include { phase"
    ),
    "layer { name: 'a' top: 'x' } layer { name: 'b' top: 'x' }": (
        "layer 'b' (): top blob 'x' is produced by multiple sources: "
        "layer 'a' (n.prototxt:1) writes it too"
    ),
    "layer { name: 'a' top: ['x', 'x'] }": "produced by multiple sources: layer 'a'",
    "layer { name: 'a' top: ['x', 'y'] } layer { name: 'b' bottom: ['x', 'y'] top: 'y' }": (
        "multiple sources"
    ),
    "layer { name: 'a' top: 'x' } layer { name: 'b' bottom: 'x' }"
    "layer { name: 'c' bottom: 'x' top: 'x' }": (
        "layer 'c' (): writes blob 'x' in place, but layer 'b' (n.prototxt:1) needs the value"
    ),
    "layer { name: 'a' top: 'x' loss_weight: 1 } layer { name: 'c' bottom: 'x' top: 'x' }": (
        "in place, but the loss_weight of layer 'a' (n.prototxt:1) needs the value before"
    ),
    "layer { name: 'a' top: 'x' } layer { name: 'c' bottom: ['x', 'x'] top: 'x' }": (
        "in place, but another bottom of this layer needs the value before"
    ),
    "layer { name: 'a' top: ['x', 'y'] loss_weight: 1 }": (
        "loss_weight has to be given once for each top or not at all; got 1 for 2 top(s)"
    ),
    "layer { name: 'a' top: 'x' } layer { name: 'b' bottom: 'x' propagate_down: [true, true] }": (
        "propagate_down has to be given once for each bottom or not at all; got 2 for 1 bottom(s)"
    ),
}


@pytest.mark.parametrize("text", REFUSED)
def test_net_that_does_not_fit_together_is_refused(text):
    message = refusal(text)
    assert REFUSED[text] in message
    assert message.startswith("n.prototxt:")


def test_layers_left_out_are_not_checked():
    build("layer { top: 'x' } layer { bottom: 'no' top: 'x' include { phase: TEST } }")


@st.composite
def nets(draw):
    """Nets whose layers read any earlier blobs, write new ones or in place, and weigh some."""
    net = NetParameter()
    blobs: list[str] = []
    for i in range(draw(st.integers(1, 8))):
        bottoms = draw(st.lists(st.sampled_from(blobs), max_size=3)) if blobs else []
        tops = [f"b{i}_{j}" for j in range(draw(st.integers(0, 2)))]
        if bottoms and tops and draw(st.booleans()):
            tops[0] = bottoms[0]
        weights = [draw(st.sampled_from([0.0, 1.0])) for _ in tops] if draw(st.booleans()) else []
        net.layer.add(name=f"l{i}", type="Any", bottom=bottoms, top=tops, loss_weight=weights)
        blobs += [top for top in tops if top not in blobs]
    return net


@given(nets())
def test_every_version_of_a_blob_is_used_once(net):
    before = copy.deepcopy(net)
    try:
        graph = build_graph(net, NetState())
    except NetError as error:
        refused = str(error)
        graph = None
    assert net == before
    if graph is None:
        assert "in place" in refused
        return
    unread: dict[str, float] = {}
    for node in graph.nodes:
        for bottom in node.bottoms:
            assert unread.pop(bottom) == 0  # what counts as a loss is read by nobody
        for j, top in enumerate(node.tops):
            assert top not in unread
            unread[top] = node.param.loss_weight[j] if node.param.loss_weight else 0.0
    assert graph.outputs == sorted(unread)
    splits = {node.name for node in graph.nodes if node.param.type == "Split"}
    expected = 0.0
    for layer in net.layer:
        weights = list(layer.loss_weight)
        moved = [
            weight
            for j, (top, weight) in enumerate(zip(layer.top, weights, strict=False))
            if weight and f"{top}_{layer.name}_{j}_split" in splits
        ]
        expected += sum(moved or weights)
    assert sum(unread.values()) == expected


@given(nets())
def test_without_its_splits_the_graph_is_the_net(net):
    try:
        graph = build_graph(net, NetState())
    except NetError:
        return
    original = {
        top: node.bottoms[0]
        for node in graph.nodes
        if node.param.type == "Split"
        for top in node.tops
    }
    layers = [node for node in graph.nodes if node.param.type != "Split"]
    for node, layer in zip(layers, net.layer, strict=True):
        assert [original.get(bottom, bottom) for bottom in node.bottoms] == layer.bottom
        assert node.tops == layer.top
