"""Nets written in Python: what they become, their names, and mistakes at the line they are made."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import protocaffe.layers
from protocaffe.errors import LayerError, NetError
from protocaffe.net import Net
from protocaffe.net_spec import Function, NetSpec, Top, assign_proto, param_name_dict, to_proto
from protocaffe.net_spec import layers as L
from protocaffe.net_spec import params as P
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import format_text, parse_text


def parsed(text):
    return parse_text(text, caffe_pb2.NetParameter())


def data(*dim):
    return L.Input(shape=dict(dim=list(dim)))


def lenet(batch=8):
    n = NetSpec("LeNet")
    n.data, n.label = L.DummyData(
        shape=[dict(dim=[batch, 1, 28, 28]), dict(dim=[batch])],
        data_filler=[dict(type="gaussian", std=0.3), dict(type="constant")],
        ntop=2,
    )
    n.conv1 = L.Convolution(
        n.data,
        kernel_size=5,
        num_output=20,
        weight_filler=dict(type="xavier"),
        param=[dict(lr_mult=1), dict(lr_mult=2)],
    )
    n.pool1 = L.Pooling(n.conv1, kernel_size=2, stride=2, pool=P.Pooling.MAX)
    n.ip1 = L.InnerProduct(n.pool1, num_output=10, weight_filler=dict(type="xavier"))
    n.relu1 = L.ReLU(n.ip1, in_place=True)
    n.ip2 = L.InnerProduct(n.relu1, num_output=10, weight_filler=dict(type="xavier"))
    n.loss = L.SoftmaxWithLoss(n.ip2, n.label)
    return n


LENET = """
name: "LeNet"
layer {
  name: "data" type: "DummyData" top: "data" top: "label"
  dummy_data_param {
    data_filler { type: "gaussian" std: 0.3 } data_filler { type: "constant" }
    shape { dim: 8 dim: 1 dim: 28 dim: 28 } shape { dim: 8 }
  }
}
layer {
  name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  param { lr_mult: 1 } param { lr_mult: 2 }
  convolution_param { num_output: 20 kernel_size: 5 weight_filler { type: "xavier" } }
}
layer {
  name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
  pooling_param { pool: MAX kernel_size: 2 stride: 2 }
}
layer {
  name: "ip1" type: "InnerProduct" bottom: "pool1" top: "ip1"
  inner_product_param { num_output: 10 weight_filler { type: "xavier" } }
}
layer { name: "relu1" type: "ReLU" bottom: "ip1" top: "ip1" }
layer {
  name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2"
  inner_product_param { num_output: 10 weight_filler { type: "xavier" } }
}
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" top: "loss" }
"""


def test_a_net_in_python_is_the_net_in_text():
    assert lenet().to_proto() == parsed(LENET)


def test_the_text_that_is_written_reads_back():
    assert parsed(lenet().to_prototxt()) == parsed(LENET)


def test_the_net_runs():
    net = Net(lenet().to_proto(), caffe_pb2.TRAIN, engine="numpy", seed=1)
    assert net.forward()["loss"] == pytest.approx(np.log(10), rel=0.2)


class TestNames:
    def test_without_names_layers_are_numbered_by_type(self):
        conv = L.Convolution(data(1, 3, 8, 8), num_output=4, kernel_size=1)
        loss = L.EuclideanLoss(L.ReLU(conv), L.ReLU(conv, in_place=True))
        net = to_proto(loss)
        assert [layer.name for layer in net.layer] == [
            "Input1",
            "Convolution1",
            "ReLU1",
            "ReLU2",
            "EuclideanLoss1",
        ]
        assert list(net.layer[3].top) == ["Convolution1"]
        assert list(net.layer[4].bottom) == ["ReLU1", "Convolution1"]
        assert net == loss.to_proto()

    def test_two_ends_share_what_is_below_them(self):
        x = data(1, 3)
        net = to_proto(L.TanH(x), L.Sigmoid(x))
        assert [layer.type for layer in net.layer] == ["Input", "TanH", "Sigmoid"]

    def test_only_what_is_not_assigned_gets_a_number(self):
        n = NetSpec()
        n.out = L.TanH(L.TanH(data(1, 3)))
        assert [layer.name for layer in n.to_proto().layer] == ["Input1", "TanH1", "out"]

    def test_a_layer_has_the_name_of_its_first_top(self):
        n = NetSpec()
        n.data = data(1, 4)
        left, n.right = L.Slice(n.data, ntop=2)
        n.sum = L.Eltwise(left, n.right)
        layer = n.to_proto().layer[1]
        assert (layer.name, list(layer.top)) == ("Slice1", ["Slice1", "right"])

    def test_a_name_of_its_own(self):
        n = NetSpec()
        n.data = data(1, 4)
        n.top = L.TanH(n.data, name="layer")
        layer = n.to_proto().layer[1]
        assert (layer.name, list(layer.top)) == ("layer", ["top"])

    def test_names_that_python_cannot_spell(self):
        n = NetSpec()
        n["conv1/7x7"] = data(1, 3)
        assert n["conv1/7x7"] is n.tops["conv1/7x7"]
        assert "conv1/7x7" in n
        assert list(n) == ["conv1/7x7"]
        del n["conv1/7x7"]
        assert not n.to_proto().layer

    def test_a_layer_without_tops(self):
        n = NetSpec()
        n.data = data(1, 3)
        n.silence = L.Silence(n.data, ntop=0)
        assert isinstance(n.silence, Function)
        assert n.to_proto().layer[1] == caffe_pb2.LayerParameter(
            name="silence", type="Silence", bottom=["data"]
        )

    def test_data_of_two_phases_with_the_same_tops(self):
        n = NetSpec()
        for phase in ("TRAIN", "TEST"):
            n[phase] = L.Data(
                name="data",
                top=["data", "label"],
                ntop=0,
                include=dict(phase=phase),
                batch_size=1 if phase == "TEST" else 2,
            )
        first, second = n.to_proto().layer
        assert list(first.top) == list(second.top) == ["data", "label"]
        assert first.name == second.name == "data"
        assert second.include[0].phase == caffe_pb2.TEST

    def test_layers_stand_behind_what_they_need(self):
        n = NetSpec()
        x = data(1, 3)
        n.b = L.TanH(x)
        n.a = x
        assert [layer.name for layer in n.to_proto().layer] == ["a", "b"]

    def test_a_net_deeper_than_the_recursion_limit(self):
        x = data(1, 3)
        for _ in range(3000):
            x = L.TanH(x)
        assert len(to_proto(x).layer) == 3001


class TestScopes:
    def test_a_block_names_its_tops_under_its_scope(self):
        def block(n, x):
            n.conv = L.Convolution(x, num_output=2, kernel_size=1)
            n["conv/relu"] = L.ReLU(n.conv, in_place=True)
            return n["conv/relu"]

        n = NetSpec("blocks")
        n.data = x = data(1, 3, 4, 4)
        for index in (1, 2):
            x = block(n.scope(f"stage{index}/").scope("left_"), x)
        net = n.to_proto()
        assert [layer.name for layer in net.layer] == [
            "data",
            "stage1/left_conv",
            "stage1/left_conv/relu",
            "stage2/left_conv",
            "stage2/left_conv/relu",
        ]
        assert net.layer[3].bottom == ["stage1/left_conv"]
        assert n.scope("stage2/").to_proto() == net
        Net(net, engine="numpy")


class TestValues:
    def test_numbers_of_numpy_and_paths(self):
        n = L.ImageData(source=Path("a/list.txt"), batch_size=np.int64(3), ntop=2)
        layer = n[0].fn.to_layer("data", [], ["data", "label"])
        assert layer.image_data_param.source == "a/list.txt"
        assert layer.image_data_param.batch_size == 3

    def test_arrays_tuples_and_single_elements(self):
        x = data(2, 3, 4)
        for point in ([1, 2], (1, 2), np.array([1, 2])):
            assert L.Slice(x, slice_point=point, ntop=3)[0].fn.to_layer(
                "", [], []
            ).slice_param.slice_point == [1, 2]
        assert L.Convolution(x, num_output=1, kernel_size=3).fn.to_layer(
            "", [], []
        ).convolution_param.kernel_size == [3]

    def test_enums_by_name_by_constant_and_of_the_layer(self):
        x = data(2, 3, 4, 4)
        by_name = L.Pooling(x, pool="AVE", kernel_size=2)
        by_constant = L.Pooling(x, pool=P.Pooling.AVE, kernel_size=2)
        assert to_proto(by_name) == to_proto(by_constant)
        assert P.Data.LMDB == caffe_pb2.DataParameter.LMDB
        assert L.TanH(x, phase="TEST").fn.to_layer("", [], []).phase == caffe_pb2.TEST

    def test_whole_messages(self):
        x = data(2, 3, 4, 4)
        filler = caffe_pb2.FillerParameter(type="msra")
        whole = dict(num_output=2, kernel_size=1, weight_filler=filler)
        shorthand = L.Convolution(x, num_output=2, kernel_size=1, weight_filler=dict(type="msra"))
        assert to_proto(L.Convolution(x, convolution_param=whole)) == to_proto(shorthand)

    @pytest.mark.parametrize(
        ("top", "field"),
        [
            (lambda x: L.Deconvolution(x, num_output=3, kernel_size=2), "convolution_param"),
            (lambda x: L.SoftmaxWithLoss(x, x, ignore_label=255), "loss_param"),
            (lambda x: L.SoftmaxWithLoss(x, x, axis=2), "softmax_param"),
            (lambda x: L.LSTM(x, x, num_output=7), "recurrent_param"),
            (lambda x: L.Data(mean_value=[1, 2, 3], ntop=1), "transform_param"),
        ],
    )
    def test_a_parameter_finds_the_message_it_belongs_to(self, top, field):
        layer = top(data(2, 3, 4, 4)).fn.to_layer("", [], [])
        assert layer.HasField(field)

    def test_none_leaves_a_parameter_out(self):
        x = data(2, 3)
        assert to_proto(L.Dropout(x, dropout_ratio=None)) == to_proto(L.Dropout(x))

    def test_python_layers(self):
        top = L.Python(data(2, 3), module="my.module", layer="Mine", param_str="{'k': 1}")
        layer = top.fn.to_layer("mine", ["data"], ["mine"])
        assert layer.python_param.module == "my.module"
        assert parsed(str(top.to_proto())) == top.to_proto()

    def test_a_top_tells_where_it_comes_from(self):
        assert repr(L.Slice(data(1, 4), ntop=2)[1]) == "<top 1 of L.Slice>"

    def test_the_help_of_a_layer_is_its_documentation(self):
        assert L.Pooling.__name__ == "Pooling"
        assert "maxim" in L.Pooling.__doc__
        assert "Convolution" in dir(L)
        assert "Pooling" in dir(P)
        assert {"MAX", "AVE"} <= set(dir(P.Pooling))

    def test_the_package_of_layers_makes_layers_as_in_pycaffe(self):
        assert to_proto(protocaffe.layers.TanH(data(1))) == to_proto(L.TanH(data(1)))
        assert not hasattr(protocaffe.layers, "TanHH")


X = data(2, 3, 4, 4)
MISTAKES = [
    (lambda: L.Convolutoin(X), r"L\.Convolutoin: unknown layer type.*did you mean 'Convolution'"),
    (lambda: L.Convolution(X, num_ouput=3), r"L\.Convolution: .*'num_ouput'.*'num_output'"),
    (lambda: L.Convolution(X, num_output="3"), "num_output: expected a whole number .* got '3'"),
    (lambda: L.Convolution(X, num_output=-1), "num_output: expected a whole number .* got -1"),
    (lambda: L.Dropout(X, dropout_ratio="half"), "dropout_ratio: expected a number, got 'half'"),
    (lambda: L.Convolution(X, std=0.5), r"inside weight_filler=dict\(std=\.\.\.\) or bias_filler"),
    (lambda: L.Convolution(X, weight_filler="msra"), r"weight_filler: expected a dict\(type="),
    (lambda: L.Convolution(X, weight_filler=dict(type="xavir")), "weight_filler: .*'xavier'"),
    (lambda: L.Convolution(X, weight_filler=dict(sdt=1)), "weight_filler: .*did you mean 'std'"),
    (lambda: L.Convolution(X, convolution_parm={}), "did you mean 'convolution_param'"),
    (lambda: L.Convolution(X, param=[dict(lr_mul=1)]), "param: .*did you mean 'lr_mult'"),
    (lambda: L.Pooling(X, pool="MAXX"), "pool: expected one of MAX, .*got 'MAXX'; did you mean"),
    (lambda: L.Pooling(X, pool=77), "pool: expected one of MAX, .*got 77"),
    (lambda: L.Pooling(X, pool=[0]), r"pool: expected one of MAX, .*got \[0\]"),
    (lambda: L.Data(source=object()), "source: expected text in quotes, got a object"),
    (lambda: L.Data(source="x" * 99), None),
    (lambda: L.Data(batch_size="x" * 99), r"got 'x{59}\.\.\."),
    (lambda: L.Convolution(), "expected at least 1 bottom blob"),
    (lambda: L.Pooling(X, X), r"expected 1 bottom blob\(s\), got 2"),
    (lambda: L.Pooling(X, ntop=5), "top blob"),
    (lambda: L.Split(X, ntop=-1), "ntop is the number of tops"),
    (lambda: L.SoftmaxWithLoss(X), "expected 2 bottom"),
    (lambda: L.SoftmaxWithLoss(X, X, ntop=0), None),
    (lambda: L.Pooling(X, in_place=True), "cannot work in place"),
    (lambda: L.ReLU("conv1"), r"input 0 is not a top but 'conv1'; .* n\['conv1'\]"),
    (lambda: L.Eltwise(X, (X, X)), "input 1 is not a top but a tuple; .*ntop=2"),
    (lambda: L.Eltwise(X, 3), "input 1 is not a top but 3; pass what"),
    (lambda: P.Poling.MAX, r"P\.Poling: unknown message; did you mean 'Pooling'"),
    (lambda: P.Pooling.MAXX, r"P\.Pooling\.MAXX: unknown value; did you mean 'MAX'"),
]


@pytest.mark.parametrize(("make", "message"), MISTAKES)
def test_mistakes_are_found_where_they_are_made(make, message):
    if message is None:
        make()
        return
    with pytest.raises(NetError, match=message):
        make()


class TestMistakesInNets:
    def test_a_top_that_is_not_there(self):
        n = lenet()
        with pytest.raises(NetError, match="no top is named 'conv2' yet; did you mean 'conv1'"):
            n.conv2  # noqa: B018
        assert not hasattr(n, "conv2")

    @pytest.mark.parametrize("name", ["scope", "tops", "to_proto"])
    def test_names_of_the_class_itself(self, name):
        with pytest.raises(NetError, match=rf"NetSpec's own; write n\['{name}'\]"):
            setattr(lenet(), name, X)

    @pytest.mark.parametrize("value", [3, "conv1", None, (X, X)])
    def test_values_that_are_no_layers(self, value):
        n = NetSpec()
        with pytest.raises(NetError, match=r"n\['x'\]: expected what L\.Type"):
            n.x = value

    def test_names_are_errors_that_python_expects(self):
        with pytest.raises(AttributeError):
            L._repr_html_  # noqa: B018
        with pytest.raises(AttributeError):
            P.__wrapped__  # noqa: B018
        assert not hasattr(L, "Convolutoin")
        assert not hasattr(P.Pooling, "MAXX")


UNARY = st.sampled_from(["TanH", "ReLU", "Dropout", "Sigmoid", "BNLL"])


@given(st.lists(st.tuples(UNARY, st.booleans(), st.booleans()), max_size=12))
def test_any_chain_reads_back_and_builds(steps):
    n = NetSpec("chain")
    n.data = x = data(1, 2)
    for index, (kind, in_place, named) in enumerate(steps):
        x = getattr(L, kind)(x, in_place=in_place)
        assert isinstance(x, Top)
        if named:
            n[f"layer/{index}"] = x
    n.end = L.TanH(x)
    net = n.to_proto()
    assert parsed(n.to_prototxt()) == net == parsed(format_text(net))
    assert len(net.layer) == len(steps) + 2
    assert Net(net, engine="numpy").outputs == ["end"]


def test_pycaffes_helpers():
    assert param_name_dict()["InnerProduct"] == "inner_product"
    layer = caffe_pb2.LayerParameter()
    assign_proto(layer, "convolution_param", {"num_output": 3, "kernel_size": [5, 3], "pad": 1})
    assert layer.convolution_param.kernel_size == [5, 3]
    with pytest.raises(LayerError, match=r"LayerParameter: .*did you mean 'convolution_param'"):
        assign_proto(layer, "convolution_params", {})
