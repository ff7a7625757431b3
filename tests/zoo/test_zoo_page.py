"""The examples of docs/zoo.md run, and make what the page says."""

import re
from pathlib import Path

import pytest

from protocaffe.errors import LayerError
from protocaffe.net_spec import layers as L
from protocaffe.proto.caffe_pb2 import TEST, TRAIN, NetParameter, NetState
from protocaffe.proto.text import parse_text
from protocaffe.scaffold import build_scaffold
from protocaffe.zoo.published import PUBLISHED

PAGE = (Path(__file__).parents[2] / "docs/zoo.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def spec(code):
    names = {}
    exec(code, names)
    return names["n"]


def example(word):
    (code,) = (code for code in EXAMPLES if word in code)
    return code


@pytest.mark.parametrize("code", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_build_and_read_back(code):
    n = spec(code)
    assert parse_text(n.to_prototxt(), NetParameter()) == n.to_proto()
    if "train_lmdb" not in code:
        build_scaffold(n.to_proto(), NetState(phase=TRAIN)).close()


def test_resnet_152_is_the_published_one_in_few_lines():
    code = example('NetSpec("ResNet-152")')
    assert len([line for line in code.splitlines() if line]) <= 30
    n = spec(code)
    assert len(n.to_prototxt().splitlines()) > 5000
    ours, published = (
        build_scaffold(net, NetState(phase=TEST)).assembly
        for net in (n.to_proto(), PUBLISHED["resnet152"].deploy())
    )
    for layer, other in zip(ours.layers[1:], published.layers[1:], strict=True):
        assert layer.name == other.name
        assert layer.param.bottom == other.param.bottom
        assert [blob.shape for blob in layer.blobs] == [blob.shape for blob in other.blobs]


def test_scopes_name_layers():
    names = {layer.name for layer in spec(example("def fire")).to_proto().layer}
    assert {"fire2/squeeze1x1", "fire3/expand3x3", "fire3/concat"} <= names


def test_the_last_layer_is_another_one():
    names = [layer.name for layer in spec(example("my classes")).to_proto().layer]
    assert "fc1000" not in names
    assert names[-2:] == ["my_scores", "prob"]


def test_mistakes_are_told_as_the_page_says():
    told = re.findall(r">>> (L\..*)\n    LayerError: (.*)\n", PAGE)
    assert len(told) == 2
    for call, message in told:
        with pytest.raises(LayerError) as caught:
            eval(call, {"L": L, "n": spec(EXAMPLES[0])})
        assert str(caught.value) == message
