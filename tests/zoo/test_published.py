"""The published nets: layers, wiring, settings and shapes are exactly those of golden/zoo."""

import re
from collections import Counter
from pathlib import Path

import pytest

from protocaffe.errors import UsageError
from protocaffe.proto.caffe_pb2 import TEST, TRAIN, NetState
from protocaffe.proto.text import read_net
from protocaffe.scaffold import build_scaffold
from protocaffe.zoo.catalogue import models_folder
from protocaffe.zoo.published import PUBLISHED, published

GOLDEN = Path(__file__).parents[1] / "golden/zoo"
MODELS = sorted(path.stem for path in GOLDEN.glob("*.tsv") if path.stem != "training")
DEFAULTS = {"stride": "1", "pad": "0", "eps": "1e-05", "pool": "MAX", "dropout_ratio": "0.5"}


def rows(name):
    lines = (GOLDEN / f"{name}.tsv").read_text().splitlines()
    return [line.split("\t") for line in lines if not line.startswith("#")]


def text(value):
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def settings(layer):
    """The settings of a layer that matter for what it computes, without defaults."""
    found = {}
    for field, message in layer.ListFields():
        if not field.name.endswith("_param"):
            continue
        for inner, value in message.ListFields():
            if inner.enum_type:
                found[inner.name] = inner.enum_type.values_by_number[value].name
            elif inner.name == "shape":
                found["shape.dim"] = ",".join(map(str, value[0].dim))
            elif not inner.message_type:
                values = value if hasattr(value, "extend") else [value]
                found[inner.name] = ",".join(map(text, values))
    return without_defaults(found)


def without_defaults(found):
    return {name: value for name, value in found.items() if DEFAULTS.get(name) != value}


def recorded_settings(row):
    found = dict(fact.split("=") for fact in row[5].split())
    found.pop("engine", None)  # pinned for the kernels of their time
    found.pop("filler.value", None)  # 1, as Scale's is anyway
    if "dropout_ratio" in found:
        found["dropout_ratio"] = text(float(found["dropout_ratio"]))
    if row[1] == "Input":
        found["shape.dim"] = row[4].replace("x", ",")
    return without_defaults(found)


@pytest.mark.parametrize("name", MODELS)
class TestDeployedNets:
    def test_layers_are_the_published_ones(self, name):
        net, _ = read_net(models_folder() / name / "deploy.prototxt")
        assert len(net.layer) == len(rows(name))
        for layer, row in zip(net.layer, rows(name), strict=True):
            found = [layer.name, layer.type, ",".join(layer.bottom), ",".join(layer.top)]
            assert found == row[:4]
            assert settings(layer) == recorded_settings(row), layer.name

    def test_shapes_are_the_published_ones(self, name):
        net, source = read_net(models_folder() / name / "deploy.prototxt")
        built = build_scaffold(net, NetState(phase=TEST), source).assembly
        found = {
            layer.name: ("x".join(map(str, tops[0].shape)), shapes(layer))
            for layer, tops in zip(built.layers, built.tops, strict=True)
        }
        for row in rows(name):
            assert found[row[0]] == (row[4], row[6] if len(row) > 6 else "")


def shapes(layer):
    return " ".join("x".join(map(str, blob.shape)) for blob in layer.blobs)


def recorded_facts(words):
    """``batch_size=50 weight(gaussian std=0.01)`` as numbers and texts by name."""
    facts = {}
    for name, value, filler in re.findall(r"(\S+?)(?:=(\S+)|\((.*?)\))(?:\s|$)", words):
        if filler:
            kind, *values = filler.split()
            given = dict(value.split("=") for value in values)
            facts[name] = (kind, {key: float(each) for key, each in given.items() if float(each)})
        else:
            facts[name] = [number_or_text(each) for each in value.split(",")]
    return facts


def number_or_text(word):
    return float(word) if word[0].isdigit() else {"True": 1, "False": 0}.get(word, word)


def filler_facts(filler):
    given = {field.name: value for field, value in filler.ListFields() if field.name != "type"}
    return filler.type, {name: pytest.approx(value) for name, value in given.items() if value}


def training_facts(layer):
    """What the layer says, under the names that the recorded facts use."""
    facts = {name: [param_value(param, name) for param in layer.param] for name in RATES}
    facts["loss_weight"] = list(layer.loss_weight)
    for field, message in layer.ListFields():
        for inner, value in message.ListFields() if field.name.endswith("_param") else ():
            if inner.name.endswith("_filler"):
                facts[inner.name.removesuffix("_filler")] = filler_facts(value)
            elif inner.enum_type:
                facts[inner.name] = [inner.enum_type.values_by_number[value].name]
            else:
                facts[inner.name] = list(value) if hasattr(value, "extend") else [value]
    return {**facts, "kernel": facts.get("kernel_size")}


RATES = ("lr_mult", "decay_mult")
TRAINED = sorted({row[0] for row in rows("training")})


def param_value(param, name):
    return getattr(param, name) if param.HasField(name) else None


@pytest.mark.parametrize("name", TRAINED)
def test_training_nets_have_the_published_settings(name):
    net, _ = read_net(models_folder() / name / "train_val.prototxt")
    layers = {(layer.name, phase_of(layer)): layer for layer in net.layer}
    for _, layer_name, kind, phase, wiring, words in (
        row for row in rows("training") if row[0] == name
    ):
        layer = layers[layer_name, phase]
        assert layer.type == kind
        assert f"{','.join(layer.bottom)}->{','.join(layer.top)}" == wiring
        found = training_facts(layer)
        recorded = recorded_facts(words.replace("mean_file", ""))
        assert ("mean_file" in words) == ("mean_file" in found)
        assert not (layer.param and "lr_mult" not in recorded), layer_name
        for fact, value in recorded.items():
            close = isinstance(value, list) and isinstance(value[0], float)
            expected = pytest.approx(value) if close else value
            assert found.get(fact, [False]) == expected, (layer_name, fact)


def phase_of(layer):
    return {TRAIN: "TRAIN", TEST: "TEST"}[layer.include[0].phase] if layer.include else ""


@pytest.mark.parametrize("name", [path.parent.name for path in models_folder().glob("*/readme.md")])
def test_training_nets_build_in_both_phases(name):
    net, source = read_net(models_folder() / name / "train_val.prototxt")
    deployed, _ = read_net(models_folder() / name / "deploy.prototxt")
    expected = {
        layer.name: shapes(layer)
        for layer in build_scaffold(deployed, NetState(phase=TEST)).assembly.layers
        if layer.blobs
    }
    for phase in (TRAIN, TEST):
        image = deployed.layer[0].input_param.shape[0].dim
        built = build_scaffold(net, NetState(phase=phase), source, {"data": image}).assembly
        found = {layer.name: shapes(layer) for layer in built.layers if layer.blobs}
        extra = found.keys() - expected.keys()
        assert all(layer.startswith(("loss1/", "loss2/")) for layer in extra)
        assert {layer: found[layer] for layer in found.keys() - extra} == expected


@pytest.mark.parametrize("name", PUBLISHED)
def test_builders_agree_with_the_texts(name):
    for form in ("train_val", "deploy"):
        written, _ = read_net(models_folder() / name / f"{form}.prototxt")
        assert written == getattr(PUBLISHED[name], form)()


def test_googlenet_has_two_heads_more():
    kinds = Counter(layer.type for layer in PUBLISHED["bvlc_googlenet"].train_val().layer)
    assert kinds["SoftmaxWithLoss"] == 3
    assert kinds["Accuracy"] == 6


def test_a_builder_that_is_not_there():
    assert published("resnet50") is PUBLISHED["resnet50"]
    with pytest.raises(UsageError, match="no builder for 'resnet51'; did you mean 'resnet50'"):
        published("resnet51")
