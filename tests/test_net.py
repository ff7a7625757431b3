"""Nets: what they refuse, share, reshape, load and save."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from protocaffe.errors import NetError, ProtocaffeError, WeightsError
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import parse_text

GOLDEN = Path(__file__).parent / "golden"

SMALL = """
name: "small"
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y"
        inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
layer { name: "act" type: "ReLU" bottom: "y" top: "y" }
"""


def net(text: str, phase: int = caffe_pb2.TRAIN, **options: object) -> Net:
    return Net(parse_text(text, caffe_pb2.NetParameter()), phase, **options)


@pytest.mark.parametrize("case", sorted(p.name for p in (GOLDEN / "assembly").iterdir()))
def test_recorded_assembly(case: str) -> None:
    """Shapes, parameters, sharing, loss weights and who runs backward, for several states."""
    folder = GOLDEN / "assembly" / case
    expected = json.loads((folder / "expected.json").read_text())
    if "states" not in expected:
        pytest.skip("a solver's nets: see tests/solvers/test_solver.py")
    for state in expected["states"]:
        built = Net(
            folder / "net.prototxt",
            caffe_pb2.Phase.Value(state["phase"]),
            level=state["level"],
            stages=state["stages"],
        )
        assert_assembled(built, state)


def assert_assembled(built: Net, expected: dict) -> None:
    assert list(built.blobs) == expected["blob_names_in_order"]
    assert [list(blob.shape) for blob in built.blobs.values()] == expected["blob_shapes"]
    assert list(built.blob_loss_weights.values()) == expected["blob_loss_weights"]
    assert built.inputs == expected["inputs"]
    assert built.outputs == expected["outputs"]
    learnable = [[p.layer, p.index, list(p.blob.shape)] for p in built.learnable]
    assert learnable == expected["learnable_params"]
    for layer, blobs in expected["params"].items():
        for index, blob in enumerate(blobs):
            mine = built.params[layer][index]
            assert list(mine.shape) == blob["shape"]
            if blob["shares_with"]:
                owner, place = blob["shares_with"]
                assert mine.data_storage is built.params[owner][place].data_storage
    if "needs_backward" in expected:
        flags = zip(built.layer_names, built.layer_needs_backward, strict=True)
        assert [name for name, needs in flags if needs] == expected["needs_backward"]


REFUSED = {
    "batchnorm_lr_mult": "lr_mult",
    "concat_shape_mismatch": "concat",
    "conv_group_not_dividing": "group",
    "include_and_exclude": "include",
    "label_gradient": "label",
    "lrn_even_size": "odd",
    "pooling_three_axes": "4 axes",
    "reshape_two_inferred": "-1",
    "shared_shape_mismatch": "shape",
    "softmax_label_count": "label",
    "too_many_param_entries": "param",
    "two_sources": "y",
    "unknown_bottom": "nosuch",
    "unknown_type": "Frobnicate",
}


def _build_and_run(path: Path, stops_in: str) -> None:
    built = Net(path, caffe_pb2.TRAIN)
    assert stops_in == "backward", "not refused while it was built"
    built.forward()
    built.backward()


@pytest.mark.parametrize("case", REFUSED)
def test_what_caffe_refuses_is_refused(case: str) -> None:
    meta = json.loads((GOLDEN / "errors" / case / "meta.json").read_text())
    with pytest.raises(ProtocaffeError, match=f"(?i){REFUSED[case]}") as caught:
        _build_and_run(GOLDEN / "errors" / case / "net.prototxt", meta["stops_in"])
    assert "net.prototxt" in str(caught.value)


def test_the_same_seed_gives_the_same_weights() -> None:
    one, same, other = (net(SMALL, seed=seed).params["ip"][0].data for seed in (1, 1, 2))
    assert (one == same).all()
    assert not (one == other).all()


@pytest.mark.parametrize("engine", ["numpy", None])
def test_forward_follows_a_new_input_shape(engine: str | None) -> None:
    small = net(SMALL, engine=engine)
    small.blobs["x"].data[...] = 1
    small.forward()
    first = small.blobs["y"].data[0].copy()
    small.blobs["x"].reshape(5, 3)
    small.blobs["x"].data[...] = 1
    small.forward()
    assert small.blobs["y"].shape == (5, 4)
    np.testing.assert_allclose(small.blobs["y"].data, np.tile(first, (5, 1)), rtol=1e-6)


def test_a_shape_that_a_layer_cannot_take_is_refused() -> None:
    small = net(SMALL)
    small.blobs["x"].reshape(2, 7)
    with pytest.raises(NetError, match="layer 'ip'"):
        small.forward()


def test_weights_travel_through_a_file(tmp_path: Path) -> None:
    one, two = net(SMALL, seed=1), net(SMALL, seed=2)
    one.save(tmp_path / "small.caffemodel")
    two.copy_from(tmp_path / "small.caffemodel")
    for mine, theirs in zip(one.params["ip"], two.params["ip"], strict=True):
        assert (mine.data == theirs.data).all()
    assert [path.name for path in tmp_path.iterdir()] == ["small.caffemodel"]


def test_weights_of_another_shape_are_refused_and_change_nothing(tmp_path: Path) -> None:
    net(SMALL.replace("num_output: 4", "num_output: 5")).save(tmp_path / "five.caffemodel")
    small = net(SMALL, seed=1)
    before = small.params["ip"][0].data.copy()
    with pytest.raises(WeightsError, match=r"five.caffemodel: layer 'ip'.*\(5, 3\).*\(4, 3\)"):
        small.copy_from(tmp_path / "five.caffemodel")
    assert (small.params["ip"][0].data == before).all()


def test_layers_the_net_does_not_have_are_ignored(tmp_path: Path) -> None:
    net(SMALL.replace('"ip"', '"other"')).save(tmp_path / "other.caffemodel")
    small = net(SMALL, seed=1)
    before = small.params["ip"][0].data.copy()
    small.copy_from(tmp_path / "other.caffemodel")
    assert (small.params["ip"][0].data == before).all()


def test_a_net_shares_the_weights_of_another() -> None:
    one = net(SMALL, seed=1)
    two = net(SMALL, caffe_pb2.TEST, shared=one)
    one.params["ip"][0].data[0, 0] = 42
    assert two.params["ip"][0].data[0, 0] == 42


def test_float64_is_float64_throughout() -> None:
    small = net(SMALL, engine="numpy", dtype="float64")
    small.forward()
    assert {blob.dtype for blob in small.blobs.values()} == {np.dtype("float64")}


def test_in_place_is_refused_where_it_would_give_wrong_numbers() -> None:
    text = SMALL + 'layer { name: "abs" type: "AbsVal" bottom: "y" top: "y" }'
    with pytest.raises(NetError, match=r"'abs'.*in place"):
        net(text)


def test_parameters_that_share_must_agree_on_their_multipliers() -> None:
    layer = """layer {{ name: "{0}" type: "InnerProduct" bottom: "x" top: "{0}"
        param {{ name: "w" lr_mult: {1} }}
        inner_product_param {{ num_output: 3 bias_term: false }} }}"""
    data = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }'
    with pytest.raises(NetError, match="lr_mult 2, but layer 'a' gives it 1"):
        net(data + layer.format("a", 1) + layer.format("b", 2))
    assert len(net(data + layer.format("a", 1) + layer.format("b", 1)).learnable) == 1


def test_the_input_keeps_its_values_from_forward_to_forward() -> None:
    small = net(SMALL)
    small.blobs["x"].data[...] = np.arange(6).reshape(2, 3)
    small.forward()
    small.forward()
    assert small.blobs["x"].data.ravel().tolist() == list(range(6))


DEEP = """
layer { name: "in" type: "Input" top: "x" top: "label"
        input_param { shape { dim: 2 dim: 16 dim: 9 dim: 9 } shape { dim: 2 } } }
layer { name: "conv" type: "Convolution" bottom: "x" top: "conv"
        convolution_param { num_output: 32 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "norm" type: "BatchNorm" bottom: "conv" top: "norm" }
layer { name: "scale" type: "Scale" bottom: "norm" top: "norm"
        scale_param { bias_term: true filler { type: "gaussian" } } }
layer { name: "relu" type: "ReLU" bottom: "norm" top: "norm" }
layer { name: "conv2" type: "Convolution" bottom: "norm" top: "conv2"
        convolution_param { num_output: 16 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu2" type: "ReLU" bottom: "conv2" top: "conv2" }
layer { name: "pool" type: "Pooling" bottom: "conv2" top: "pool"
        pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "ip" type: "InnerProduct" bottom: "pool" top: "ip"
        inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "sigmoid" type: "Sigmoid" bottom: "ip" top: "ip" }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""


@pytest.mark.parametrize("phase", [caffe_pb2.TRAIN, caffe_pb2.TEST])
@pytest.mark.parametrize("force", ["", "force_backward: true"])
def test_a_pass_may_begin_and_end_anywhere(phase: int, force: str) -> None:
    """After every part of a pass all blobs are those of layers that run one by one."""
    nets = [net(force + DEEP, phase, engine=engine, seed=1) for engine in ("numpy", None)]
    images = np.random.default_rng(0).normal(size=(2, 16, 9, 9))
    for each in nets:
        for blob in each.params["norm"]:
            blob.data[...] = np.arange(blob.count) % 5 + 1
        each.blobs["x"].data[...], each.blobs["label"].data[...] = images, [1, 3]
    names = nets[0].layer_names[1:]
    for name in names:
        assert_same_blobs(*nets, f"end={name}", [each.forward(end=name) for each in nets])
    for first, last in pairwise(names):
        assert_same_blobs(
            *nets, f"start={first}", [each.forward(None, first, last) for each in nets]
        )
    assert_same_blobs(*nets, "all", [each.forward() for each in nets])
    for name in reversed(names):
        results = [each.backward(start=name, end=name) for each in nets]
        assert_same_blobs(*nets, f"backward of {name}", results)
    for each in nets:
        each.forward()
    assert_same_blobs(*nets, "all back", [each.backward(["conv"]) for each in nets])


def assert_same_blobs(one: Net, other: Net, when: str, results: list[dict]) -> None:
    assert list(results[0]) == list(results[1])
    pairs = {f"{name} returned": values for name, values in results[0].items()}
    others = {f"{name} returned": values for name, values in results[1].items()}
    for name in one.blobs:
        pairs |= {name: one.blobs[name].data, f"{name} diff": one.blobs[name].diff}
        others |= {name: other.blobs[name].data, f"{name} diff": other.blobs[name].diff}
    for name, values in pairs.items():
        scale = np.abs(values).max()
        np.testing.assert_allclose(
            others[name], values, rtol=1e-4, atol=1e-4 * scale + 1e-7, err_msg=f"{when}: {name}"
        )


def test_backward_cannot_begin_inside_layers_that_ran_forward_as_one() -> None:
    deep = net(DEEP)
    deep.run_forward()
    if deep.engine.name == "numpy":
        deep.backward(start="scale")
        return
    with pytest.raises(NetError, match=r"norm, scale, relu ran forward as one.*forward again"):
        deep.backward(start="scale")
    deep.forward()
    deep.backward(start="scale")


def test_forward_and_backward_refuse_what_does_not_fit() -> None:
    small = net(SMALL)
    with pytest.raises(NetError, match=r"input 'x' has shape \(2, 3\); values of shape \(3, 3\)"):
        small.forward(x=np.zeros((3, 3)))
    with pytest.raises(NetError, match="has the inputs x; values came for data"):
        small.forward(data=np.zeros((2, 3)))
    with pytest.raises(NetError, match="no layer 'ipp'; did you mean 'ip'"):
        small.forward(end="ipp")
    with pytest.raises(KeyError, match=r"no blob 'prob' \(names: x, y\)"):
        small.forward(["prob"])
    with pytest.raises(KeyError, match="of a layer 'Ip'; did you mean 'ip'"):
        _ = small.params["Ip"]
    assert repr(small) == "<Net 'small': 3 layers; inputs x; outputs y>"
    with pytest.raises(NetError, match=r"nothing in it leads to a loss.*force_backward"):
        small.backward()


@pytest.mark.parametrize("engine", ["numpy", None])
def test_arrays_that_somebody_keeps_stay_the_blobs(engine: str | None) -> None:
    """What is written into them counts, what is computed appears in them, as in pycaffe."""
    deep, fresh = net(DEEP, engine=engine, seed=1), net(DEEP, engine=engine, seed=1)
    kept = [
        *(deep.blobs[name].data for name in ("x", "label", "conv", "norm", "pool", "ip")),
        *(deep.blobs[name].diff for name in ("conv", "norm", "ip")),
        *(array for blob in deep.params["conv"] for array in (blob.data, blob.diff)),
    ]
    rng = np.random.default_rng(2)
    for _ in range(3):
        images, weights = rng.normal(size=(2, 16, 9, 9)), rng.normal(size=(32, 16, 3, 3))
        kept[0][...], kept[1][...], kept[9][...] = images, [1, 2], weights
        fresh.forward(x=images, label=[1, 2])
        fresh.params["conv"][0].data[...] = weights
        for each in (deep, fresh):
            each.clear_param_diffs()
            each.forward()
            each.backward()
        now = [
            *(fresh.blobs[name].data for name in ("x", "label", "conv", "norm", "pool", "ip")),
            *(fresh.blobs[name].diff for name in ("conv", "norm", "ip")),
            *(array for blob in fresh.params["conv"] for array in (blob.data, blob.diff)),
        ]
        for mine, theirs in zip(kept, now, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
        del now


def test_an_input_may_be_kept_while_it_shrinks() -> None:
    small = net(SMALL)
    kept = small.blobs["x"].data
    for rows in (2, 1, 2):
        small.blobs["x"].reshape(rows, 3)
        kept[:rows] = rows
        result = small.forward()["y"]
        expected = np.maximum(kept[:rows] @ small.params["ip"][0].data.T, 0)
        np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_weights_of_a_new_shape_are_noticed() -> None:
    """Net surgery: other storages than those the net was planned with."""
    small, other = net(SMALL, seed=1), net(SMALL, seed=2)
    small.forward(x=np.ones((2, 3)))
    small.share_with(other)
    result = small.forward()["y"]
    np.testing.assert_allclose(
        result, np.maximum(np.ones((2, 3)) @ other.params["ip"][0].data.T, 0), rtol=1e-5
    )


BAD_USE = {
    "an unknown phase": (lambda n: Net(SMALL, 7), "phase is TRAIN"),
    "no text": (lambda n: Net(""), "got an empty string"),
    "text for numbers": (lambda n: n.forward(x="abc"), "input 'x' takes numbers"),
    "rows of many lengths": (lambda n: n.forward(x=[[1], [1, 2]]), "input 'x' takes numbers"),
    "nothing": (lambda n: n.forward(x=None), "input 'x' has shape"),
    "backwards": (lambda n: n.forward(start="act", end="ip"), "'act' comes after 'ip'"),
    "forwards": (lambda n: n.backward(start="ip", end="act"), "'ip' comes before 'act'"),
    "a reshaped parameter": (
        lambda n: (n.params["ip"][0].reshape(2, 2), n.forward()),
        r"layer 'ip'.*parameter 0 was reshaped from \(4, 3\) to \(2, 2\)",
    ),
    "no rows": (lambda n: (n.blobs["x"].reshape(0, 3), n.forward()), r"'x' has shape \(0, 3\)"),
    "parts of a row": (lambda n: n.blobs["x"].reshape(2.5, 3), "whole numbers"),
    "more than memory": (lambda n: n.blobs["x"].reshape(2**20, 2**20), r"at most 2\^31-1"),
    "arrays for MemoryData": (lambda n: n.set_input_arrays(0, 0), "first layer is of type Memory"),
    "a layer by number": (lambda n: n.forward(end=1), "no layer '1'"),
    "one name": (lambda n: n.forward(blobs="y"), r"list of names, such as blobs=.*; got 'y'"),
    "a number of names": (lambda n: n.forward(1), "blobs takes a list of names.*; got 1"),
    "complex numbers": (lambda n: n.forward(x=np.full((2, 3), 1j)), "'x' takes numbers"),
    "digits": (lambda n: n.forward(x=np.full((2, 3), "1")), "'x' takes numbers"),
    "an array for a blob": (
        lambda n: n.blobs.update(x=np.zeros((2, 3))),
        r"'x' cannot be replaced .*\['x'\].data\[...\] = values",
    ),
    "an array for parameters": (
        lambda n: n.params.update(ip=np.zeros((4, 3))),
        r"'ip' cannot be replaced .*\['ip'\]\[0\].data\[...\] = values",
    ),
    "an array for a parameter": (
        lambda n: n.params["ip"].__setitem__(0, np.zeros((4, 3))),
        r"parameter 0 cannot be replaced .*\[0\].data\[...\] = values",
    ),
    "no net to share with": (lambda n: n.share_with("small.caffemodel"), "takes a net"),
    "no examples": (lambda n: n.forward_all(x=np.zeros((0, 3))), "same number of examples"),
}


@pytest.mark.parametrize("case", BAD_USE)
def test_bad_use_is_explained(case: str) -> None:
    use, message = BAD_USE[case]
    with pytest.raises(ProtocaffeError, match=message):
        use(net(SMALL))


@pytest.mark.parametrize("engine", ["numpy", None])
def test_backward_needs_a_forward_pass(engine: str | None) -> None:
    deep = net(DEEP, engine=engine)
    with pytest.raises(NetError, match="layer 'loss' has not run forward yet"):
        deep.backward(start="loss")
    deep.forward(end="pool")
    deep.backward(start="pool")
    with pytest.raises(NetError, match="layer 'ip' has not run forward yet"):
        deep.backward(start="ip")
    deep.forward()
    deep.backward()
    deep.blobs["x"].reshape(1, 16, 9, 9)
    deep.blobs["label"].reshape(1)
    with pytest.raises(NetError, match=r"call net\.forward"):
        deep.backward()


def test_blobs_can_be_copied_and_pickled_and_nets_say_what_to_do_instead() -> None:
    small = net(SMALL)
    small.params["ip"][0].diff = 3
    best = copy.deepcopy(small.params)
    kept = best["ip"][0]
    np.testing.assert_array_equal(kept.data, small.params["ip"][0].data)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(kept)).diff, np.full((4, 3), 3))
    kept.data = 7
    assert small.params["ip"][0].data.max() < 7
    assert (copy.copy(kept).data == 7).all()
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(NetError, match=r"a net cannot be copied or pickled; .*share_with"):
            attempt(small)


def test_results_are_shown_as_a_dict() -> None:
    assert repr(net(SMALL).forward(x=np.zeros((2, 3)))).startswith("{'y': array([[0., 0.")


def test_pycaffes_keywords() -> None:
    by_keyword = Net(network_file=SMALL, phase=caffe_pb2.TEST, level=0, stages=[], weights=None)
    assert by_keyword.outputs == ["y"]


def test_a_net_goes_on_after_an_error() -> None:
    deep = net(DEEP)
    before = deep.forward()["loss"].copy()
    for shape in ((2, 3, 9, 9), (2, 16, 1, 1), (0, 16, 9, 9)):
        deep.blobs["x"].reshape(*shape)
        with pytest.raises(NetError):
            deep.forward()
    deep.blobs["x"].reshape(2, 16, 9, 9)
    deep.blobs["x"].data = 0
    assert deep.forward()["loss"] == before


def test_blobs_live_longer_than_their_net() -> None:
    deep = net(DEEP)
    result, weights = deep.forward(["conv"]), deep.params["conv"][0]
    del deep
    gc.collect()
    result["conv"][...] = 1
    weights.data[...] = 2
    assert result["conv"].sum() == result["conv"].size


def test_threads_take_turns() -> None:
    """One net, and nets that share its weights, used by several threads at once."""
    deep = net(DEEP, caffe_pb2.TEST, seed=1)
    nets = [deep, deep, *(net(DEEP, caffe_pb2.TEST, shared=deep) for _ in range(2))]
    expected = deep.forward()["loss"].copy()
    found: list[bool] = []

    def work(each: Net) -> None:
        found.extend((each.forward()["loss"] == expected).item() for _ in range(10))

    threads = [threading.Thread(target=work, args=(each,)) for each in nets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 40
