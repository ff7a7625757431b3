"""Every exported model runs in ONNX Runtime and gives what the net gives."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import nets
from protocaffe.errors import LayerError, NetError, ProtocaffeError, UsageError
from protocaffe.export import compare, export_onnx
from protocaffe.export.graph import _converters as CONVERTERS
from protocaffe.export.onnx_model import OPSET, REASONS
from protocaffe.layers import register
from protocaffe.layers.activation import ReLU
from protocaffe.layers.base import layer_class, layer_types
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import parse_text
from protocaffe.zoo.catalogue import models_folder

TOLERANCE = 1e-4
GOLDEN = Path(__file__).parents[1] / "golden"
CASES = sorted(path.parent for path in GOLDEN.glob("*/*/case.npz"))


def net_of(text, **options):
    return Net(parse_text(text, caffe_pb2.NetParameter()), engine="numpy", seed=1, **options)


def input_layer(name, shape):
    shape = " ".join(f"dim: {extent}" for extent in shape)
    param = f"input_param {{ shape {{ {shape} }} }}"
    return f'layer {{ name: "{name}" type: "Input" top: "{name}" {param} }}'


def assert_same(net, inputs=None, **options):
    exported = export_onnx(net, **options)
    differences = compare(net, exported.model, inputs)
    assert max(differences.values()) <= TOLERANCE, differences
    return exported


def randomize(net):
    """Give every parameter random values, and BatchNorm statistics that can be ones."""
    rng = np.random.default_rng(7)
    for layer in net.layers:
        for blob in layer.blobs:
            blob.data[...] = rng.uniform(-1, 1, blob.shape)
        if layer.type == "BatchNorm":
            layer.blobs[1].data[...] = rng.uniform(0.5, 3, layer.blobs[1].shape)
            layer.blobs[2].data[...] = 2
        if layer.type in ("BN", "SyncBN") and len(layer.blobs) == 4:
            layer.variance.data[...] = rng.uniform(0.5, 3, layer.variance.shape)


# -- recorded cases --------------------------------------------------------------------------


@pytest.mark.parametrize("folder", CASES, ids=[f"{c.parent.name}/{c.name}" for c in CASES])
def test_recorded_cases(folder, monkeypatch):
    monkeypatch.chdir(folder)
    meta = json.loads((folder / "meta.json").read_text())
    arrays = np.load(folder / "case.npz")
    net = Net(folder / "net.prototxt", caffe_pb2.TEST, engine="numpy")
    layers = dict(zip(net.layer_names, net.layers, strict=True))
    for key in arrays.files:
        if key.startswith("param/"):
            name, index = key.removeprefix("param/").rsplit("/", 1)
            layers[name].blobs[int(index)].data[...] = arrays[key]
    refused = sorted({layer.type for layer in net.layers} & REASONS.keys())
    if refused:
        with pytest.raises(LayerError, match=rf"\({refused[0]}\): cannot be exported: (it|how)"):
            export_onnx(net)
        return
    if not net.outputs:
        with pytest.raises(NetError, match="has no outputs"):
            export_onnx(net)
        return
    inputs = {name: arrays[f"bottom/{name}"] for name in net.inputs}
    exported = assert_same(net, inputs)
    if meta["phase"] == "TEST":  # the model against Caffe's own numbers
        assert set(meta["outputs"]) == set(net.outputs)
        for name in net.outputs:
            np.testing.assert_allclose(
                net.blobs[name].data, arrays[f"top/{name}"], rtol=1e-4, atol=1e-5
            )
    assert exported.model.opset_import[0].version == OPSET


# -- whole nets ------------------------------------------------------------------------------


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize(
    ("model", "normalized"),
    [
        ("lenet", 0),
        ("cifar10_full", 0),
        ("bvlc_googlenet", 0),
        ("squeezenet_v1.0", 0),
        ("squeezenet_v1.1", 0),
        ("mobilenet_v1", 54),
        ("mobilenet_v2", 106),
        ("resnet50", 106),
    ],
)
def test_published_nets(model, normalized, fold):
    net = Net(models_folder() / model / "deploy.prototxt", engine="numpy", seed=1)
    for index, layer in enumerate(net.layers):
        if layer.type == "BatchNorm":
            layer.blobs[1].data[...] = 1.5
            layer.blobs[2].data[...] = 1
        elif layer.type in ("Convolution", "InnerProduct"):  # deploy nets have no fillers
            weights = layer.blobs[0]
            deviation = (2 * weights.shape[0] / weights.count) ** 0.5
            weights.data[...] = np.random.default_rng(index).normal(0, deviation, weights.shape)
    exported = export_onnx(net, fold=fold)
    assert exported.batch is None
    net.blobs["data"].reshape(1, *net.blobs["data"].shape[1:])
    net.reshape()
    assert max(compare(net, exported.model).values()) <= TOLERANCE
    kinds = [node.op_type for node in exported.model.graph.node]
    assert len(exported.folded) == (normalized if fold else 0)
    assert ("BatchNormalization" in kinds) == bool(normalized and not fold)


# -- single layers with random settings ------------------------------------------------------

LAYER = 'layer {{ name: "x" type: "{}" bottom: "data" top: "x" {} }}'


def check_layer(kind, settings_text, shape, values=None):
    """Build, export and compare one layer, unless the net refuses the settings."""
    try:
        net = net_of(input_layer("data", shape) + LAYER.format(kind, settings_text))
    except ProtocaffeError:
        return None
    randomize(net)
    return assert_same(net, None if values is None else {"data": values})


small = st.integers(1, 3)
extents = st.integers(1, 12)


@st.composite
def images(draw, axes=2):
    return [draw(small), draw(st.sampled_from([1, 2, 4, 6])), *(draw(extents) for _ in range(axes))]


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_pooling(data):
    shape = data.draw(images())
    kernel, stride = (data.draw(st.integers(1, 5)) for _ in range(2))
    pad = data.draw(st.integers(0, kernel - 1))
    mode = data.draw(st.sampled_from(["", "round_mode: FLOOR"]))
    pool = data.draw(st.sampled_from(["MAX", "AVE"]))
    if not pad and stride > kernel and not mode:
        stride = kernel  # else a window may lie wholly outside the image
    text = f"pool: {pool} kernel_size: {kernel} stride: {stride} pad: {pad} {mode}"
    check_layer("Pooling", f"pooling_param {{ {text} }}", shape)


@settings(deadline=None, max_examples=100)
@given(st.data(), st.sampled_from(["Convolution", "Deconvolution"]), st.integers(1, 3))
def test_convolutions(data, kind, axes):
    shape = data.draw(images(axes))
    group = data.draw(st.sampled_from([1, shape[1]]))
    text = f"num_output: {group * data.draw(small)} group: {group}"
    for field, values in (
        ("kernel_size", small),
        ("stride", small),
        ("pad", st.integers(0, 2)),
        ("dilation", small),
    ):
        text += "".join(f" {field}: {data.draw(values)}" for _ in range(axes))
    text += data.draw(st.sampled_from(["", " bias_term: false"]))
    check_layer(kind, f"convolution_param {{ {text} }}", shape)


@settings(deadline=None, max_examples=60)
@given(images(), st.sampled_from([1, 3, 5]), st.booleans(), st.floats(0.1, 2), st.floats(0.1, 1.5))
def test_lrn(shape, size, across, alpha, beta):
    region = "ACROSS_CHANNELS" if across else "WITHIN_CHANNEL"
    text = f"local_size: {size} norm_region: {region} alpha: {alpha} beta: {beta} k: 2"
    check_layer("LRN", f"lrn_param {{ {text} }}", shape)


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_axes_of_shape_layers(data):
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    booleans = st.sampled_from(["true", "false"])
    kind, text = data.draw(
        st.sampled_from(
            [
                ("InnerProduct", f"inner_product_param {{ num_output: 3 axis: {axis} %s }}"),
                ("Flatten", f"flatten_param {{ axis: {axis} }}%s"),
                ("Softmax", f"softmax_param {{ axis: {axis} }}%s"),
                ("Tile", f"tile_param {{ axis: {axis} tiles: 2 }}%s"),
                ("Reduction", f"reduction_param {{ axis: {axis} operation: MEAN coeff: 3 }}%s"),
                ("Reduction", f"reduction_param {{ axis: {axis} operation: SUMSQ }}%s"),
                ("ArgMax", f"argmax_param {{ axis: {axis} }}%s"),
                ("Scale", f"scale_param {{ axis: {axis} bias_term: true }}%s"),
                ("Scale", f"scale_param {{ axis: {axis} num_axes: -1 }}%s"),
                ("Bias", f"bias_param {{ axis: {axis} }}%s"),
            ]
        )
    )
    transposed = f"transpose: {data.draw(booleans)}" if kind == "InnerProduct" else ""
    check_layer(kind, text % transposed, shape)


numbers = st.floats(-2, 2, width=16)


@settings(deadline=None, max_examples=80)
@given(st.data(), numbers, numbers, numbers)
def test_functions(data, a, b, c):
    kind, text, positive = data.draw(
        st.sampled_from(
            [
                ("Power", f"power_param {{ power: {a} scale: {b} shift: {c} }}", True),
                ("Power", f"power_param {{ power: 2 scale: {b} shift: {c} }}", False),
                ("Exp", f"exp_param {{ base: 2 scale: {b} shift: {c} }}", False),
                ("Log", f"log_param {{ base: 3 scale: {abs(b) + 0.1} shift: {abs(c)} }}", True),
                ("ELU", f"elu_param {{ alpha: {a} }}", False),
                ("ReLU", f"relu_param {{ negative_slope: {a} }}", False),
                ("Clip", f"clip_param {{ min: {a} max: {b} }}", False),
                ("Swish", f"swish_param {{ beta: {a} }}", False),
                ("Threshold", f"threshold_param {{ threshold: {a} }}", False),
                ("PReLU", "prelu_param { channel_shared: true }", False),
                ("PReLU", "", False),
                ("BNLL", "", False),
                ("MVN", f"mvn_param {{ eps: {abs(a) + 0.01} }}", False),
                ("MVN", "mvn_param { normalize_variance: false across_channels: true }", False),
                ("BatchNorm", "batch_norm_param { use_global_stats: false }", False),
                ("BatchNorm", f"batch_norm_param {{ eps: {abs(a) + 0.01} }}", False),
            ]
        )
    )
    rng = np.random.default_rng(3)
    values = rng.uniform(0.5 if positive else -3, 3, (2, 3, 4, 5)).astype(np.float32)
    if positive and kind == "Power" and (b < 0 or c < 0):
        text = f"power_param {{ power: {a} scale: {abs(b)} shift: {abs(c)} }}"
        if b == c == 0:
            return  # a power of 0, which may be infinite
    check_layer(kind, text, values.shape, values)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("ReLU6", ""),
        ("ConvolutionDepthwise", "convolution_param { kernel_size: 3 pad: 1 }"),
        ("DepthwiseConvolution", "convolution_param { kernel_size: 2 stride: 2 }"),
        ("BatchNorm", "batch_norm_param { scale_bias: true }"),
        ("BN", "bn_param { }"),
        ("BN", "bn_param { bn_mode: LEARN }"),
        ("BN", "bn_param { bn_mode: INFERENCE }"),
        ("SyncBN", "bn_param { frozen: true }"),
        ("Normalize", "norm_param { across_spatial: false channel_shared: false }"),
        ("Normalize", "norm_param { }"),
        ("Permute", "permute_param { order: 0 order: 2 order: 3 order: 1 }"),
        ("Permute", "permute_param { order: 1 }"),
        ("ShuffleChannel", "shuffle_channel_param { group: 2 }"),
        ("Reorg", "reorg_param { stride: 2 }"),
        ("Reorg", "reorg_param { stride: 2 reverse: true }"),
        ("Interp", "interp_param { height: 9 width: 5 }"),
        ("Interp", "interp_param { zoom_factor: 2 pad_beg: -1 pad_end: -2 }"),
        ("Upsample", "upsample_param { scale: 3 }"),
    ],
)
def test_layers_of_forks(kind, text):
    exported = check_layer(kind, text, (2, 4, 6, 8))
    assert exported is not None
    assert exported.batch == (2 if "order: 1 }" in text and "order: 0" not in text else None)


def test_gates_and_priors():
    net = net_of(
        input_layer("data", (2, 4, 6, 8))
        + input_layer("gate", (2, 4))
        + """
        layer { name: "axpy" type: "Axpy" bottom: "gate" bottom: "data" bottom: "data" top: "y" }
        layer { name: "prior" type: "PriorBox" bottom: "y" bottom: "data" top: "boxes"
            prior_box_param { min_size: 3 } }
        """
    )
    assert_same(net)


def test_every_layer_is_exported_or_there_is_a_reason():
    for kind in layer_types():
        found = layer_class(kind)
        if found.__module__.startswith("protocaffe.") and kind != "Input":
            assert (found in CONVERTERS) != (kind in REASONS), kind


REGIONS = [
    [0, 0, 0, 63, 47],
    [1, 8.5, 7.5, 40.2, 30.9],
    [1, 20, 20, 20, 20],
    [0, 30, 10, 12, 40],
    [1, -30, -20, 10, 200],
    [0, 900, 900, 950, 990],
]


@pytest.mark.parametrize(
    "layer",
    [
        "roi_pooling_param { pooled_h: 3 pooled_w: 5 spatial_scale: 0.25 }",
        "roi_pooling_param { pooled_h: 7 pooled_w: 7 spatial_scale: 0.0625 }",
        "psroi_pooling_param { output_dim: 2 group_size: 3 spatial_scale: 0.25 }",
        "psroi_pooling_param { output_dim: 2 group_size: 3 spatial_scale: 0.0625 }",
    ],
)
def test_regions(layer):
    kind = "PSROIPooling" if layer.startswith("ps") else "ROIPooling"
    wires = 'bottom: "data" bottom: "rois" top: "y"'
    net = net_of(
        input_layer("data", (2, 18, 12, 16))
        + input_layer("rois", (6, 5))
        + f'layer {{ name: "y" type: "{kind}" {wires} {layer} }}'
    )
    values = np.random.default_rng(0).normal(3, 1, (2, 18, 12, 16)).astype(np.float32)
    exported = assert_same(net, {"data": values, "rois": np.array(REGIONS, np.float32)})
    assert exported.batch is None


def detections(text, images=1):
    """A net that finds objects of 4 classes among 30 priors, and its inputs."""
    net = net_of(
        "".join(
            input_layer(name, shape)
            for name, shape in (
                ("loc", (images, 120)),
                ("conf", (images, 120)),
                ("priors", (1, 2, 120)),
            )
        )
        + f"""
        layer {{ name: "found" type: "DetectionOutput" bottom: "loc" bottom: "conf"
            bottom: "priors" top: "found"
            detection_output_param {{ num_classes: 4 {text} }} }}
        """
    )
    rng = np.random.default_rng(0)
    low, size = rng.uniform(0, 0.7, (30, 2)), rng.uniform(0.1, 0.4, (30, 2))
    boxes = np.concatenate([low, low + size], axis=1)
    priors = np.stack([boxes.ravel(), np.tile([0.1, 0.1, 0.2, 0.2], 30)])[None]
    conf = rng.dirichlet(np.ones(4) / 2, (images, 30)).reshape(images, -1)
    loc = rng.normal(0, 0.3, (images, 120))
    inputs = {"loc": loc, "conf": conf, "priors": priors}
    return net, {name: each.astype(np.float32) for name, each in inputs.items()}


@pytest.mark.parametrize(
    "text",
    [
        "code_type: CENTER_SIZE confidence_threshold: 0.3 nms_param { nms_threshold: 0.45 }",
        "code_type: CENTER_SIZE nms_param { nms_threshold: 0.2 top_k: 9 } keep_top_k: 7",
        "code_type: CENTER_SIZE nms_param { top_k: 400 } keep_top_k: 200",
        "code_type: CORNER confidence_threshold: 0.1 keep_top_k: 5 background_label_id: 2",
        "code_type: CORNER_SIZE variance_encoded_in_target: true background_label_id: -1",
        "code_type: CENTER_SIZE confidence_threshold: 2",
        "code_type: CENTER_SIZE confidence_threshold: 2 keep_top_k: 10",
    ],
)
def test_objects_that_are_found(text):
    net, inputs = detections(text)
    exported = assert_same(net, inputs)
    assert exported.batch == 1
    (output,) = exported.model.graph.output
    assert [each.dim_value for each in output.type.tensor_type.shape.dim] == [1, 1, 0, 7]


@pytest.mark.parametrize(
    ("text", "images", "reason"),
    [
        ("", 2, "one image at a time"),
        ("nms_param { eta: 0.9 }", 1, "an eta below 1"),
    ],
)
def test_objects_that_are_found_in_another_way(text, images, reason):
    net, _ = detections(text, images)
    with pytest.raises(LayerError, match=reason):
        export_onnx(net)


@pytest.mark.parametrize("size", ["scale: 2", "upsample_h: 11 upsample_w: 15"])
def test_unpooling(size):
    net = net_of(
        input_layer("data", (2, 3, 12, 16))
        + input_layer("places", (2, 3, 6, 8))
        + f"""
        layer {{ name: "pool" type: "Pooling" bottom: "data" top: "pool" top: "mask"
            pooling_param {{ kernel_size: 2 stride: 2 }} }}
        layer {{ name: "up" type: "Upsample" bottom: "pool" bottom: "mask" top: "up"
            upsample_param {{ scale: 2 }} }}
        layer {{ name: "odd" type: "Upsample" bottom: "pool" bottom: "places" top: "odd"
            upsample_param {{ {size} }} }}
        """
    )
    rng = np.random.default_rng(0)
    places = np.stack([rng.permutation(11 * 15)[:48] for _ in range(6)]).reshape(2, 3, 6, 8)
    data = rng.normal(size=(2, 3, 12, 16)).astype(np.float32)
    exported = assert_same(net, {"data": data, "places": places.astype(np.float32)})
    assert exported.batch is None


def test_a_layer_of_a_users_own_is_refused():
    @register("OnnxTestDouble")
    class Double(ReLU):
        pass

    net = net_of(input_layer("data", (1, 3)) + LAYER.format("OnnxTestDouble", ""))
    with pytest.raises(LayerError, match="there is no ONNX form of this type yet"):
        export_onnx(net)


def test_ties_of_arg_max_go_to_the_larger_index():
    values = np.array([[1, 3, 3, 2], [5, 5, 5, 5]], np.float32)
    for text in ("", "top_k: 3 out_max_val: true", "axis: 1 top_k: 2", "axis: 1 out_max_val: true"):
        check_layer("ArgMax", f"argmax_param {{ {text} }}", (2, 4), values)


@pytest.mark.parametrize("pad", [0, 1])
def test_the_second_top_of_pooling(pad):
    net = net_of(
        input_layer("data", (2, 3, 7, 6))
        + 'layer { name: "p" type: "Pooling" bottom: "data" top: "y" top: "index" '
        f"pooling_param {{ kernel_size: 3 stride: 2 pad: {pad} }} }}"
    )
    assert_same(net)


# -- the batch -------------------------------------------------------------------------------

CONV = """layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
    convolution_param { num_output: 4 kernel_size: 3 } }"""


def first_extents(values):
    extents = [value.type.tensor_type.shape.dim[0] for value in values]
    return [extent.dim_param or extent.dim_value for extent in extents]


def test_any_batch():
    net = net_of(
        input_layer("data", (2, 3, 8, 8))
        + CONV
        + """layer { name: "flat" type: "Reshape" bottom: "conv" top: "flat"
            reshape_param { shape { dim: 0 dim: -1 } } }"""
    )
    exported = export_onnx(net)
    assert exported.batch is None
    assert exported.reason == ""
    assert first_extents(exported.model.graph.input) == ["N"]
    assert first_extents(exported.model.graph.output) == ["N"]
    net.blobs["data"].reshape(5, 3, 8, 8)
    net.reshape()
    assert max(compare(net, exported.model).values()) <= TOLERANCE


def test_the_batch_can_be_chosen():
    net = net_of(input_layer("data", (2, 3, 8, 8)) + CONV)
    exported = assert_same(net, batch=3)
    assert exported.batch == 3
    assert first_extents(exported.model.graph.output) == [3]
    with pytest.raises(UsageError, match="batch must be at least 1, got 0"):
        export_onnx(net, batch=0)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (
            'type: "Reshape" reshape_param { shape { dim: 2 dim: -1 } }',
            "layer 'x' (Reshape): with twice the images its top has shape (2, 384)",
        ),
        ('type: "InnerProduct" inner_product_param { num_output: 2 axis: 0 }', "has weights for"),
        ('type: "Slice" top: "y" slice_param { axis: 0 }', "cuts the batch into parts"),
        ('type: "ArgMax" argmax_param { axis: 0 }', "looks for the maximum along the batch"),
        ('type: "Reshape" reshape_param { shape { dim: -1 dim: 8 } }', ""),
    ],
)
def test_layers_that_fix_the_batch_are_named(layer, reason):
    net = net_of(
        input_layer("data", (2, 3, 8, 8)) + f'layer {{ name: "x" bottom: "data" top: "x" {layer} }}'
    )
    exported = assert_same(net)
    assert exported.batch == (2 if reason else None)
    assert reason in exported.reason


# -- names -----------------------------------------------------------------------------------


def test_values_have_the_names_of_their_blobs():
    net = net_of(
        input_layer("data", (1, 3, 8, 8))
        + CONV
        + """
        layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
        layer { name: "drop" type: "Dropout" bottom: "conv" top: "dropped" }
        layer { name: "a" type: "Sigmoid" bottom: "conv" top: "a" }
        """
    )
    graph = assert_same(net).model.graph
    assert [value.name for value in graph.output] == ["a", "dropped"]
    assert {node.op_type: list(node.output) for node in graph.node}["Relu"] == ["conv"] or (
        {node.op_type: list(node.output) for node in graph.node}["Relu"] == ["dropped"]
    )


def test_outputs_that_are_inputs_or_constants():
    net = net_of(
        input_layer("data", (2, 3))
        + input_layer("other", (2, 3))
        + """
        layer { name: "relu" type: "ReLU" bottom: "data" top: "data" }
        layer { name: "drop" type: "Dropout" bottom: "other" top: "dropped" }
        layer { name: "p" type: "Parameter" top: "p" parameter_param { shape { dim: 4 } } }
        layer { name: "q" type: "Split" bottom: "p" top: "q" top: "r" }
        """
    )
    randomize(net)
    model = assert_same(net).model
    assert [value.name for value in model.graph.output] == ["data_out", "dropped", "q", "r"]
    onnx.checker.check_model(model, full_check=True)


# -- folding ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "weights",
    [
        'type: "Convolution" convolution_param { num_output: 6 kernel_size: 3 group: 3 }',
        'type: "Convolution" convolution_param { num_output: 6 kernel_size: 3 bias_term: false }',
        'type: "Deconvolution" convolution_param { num_output: 6 kernel_size: 3 group: 3 }',
        'type: "InnerProduct" inner_product_param { num_output: 6 }',
        'type: "InnerProduct" inner_product_param { num_output: 6 transpose: true }',
    ],
)
def test_folding(weights):
    net = net_of(
        input_layer("data", (2, 3, 5, 5))
        + f'layer {{ name: "w" bottom: "data" top: "w" {weights} }}'
        + """
        layer { name: "bn" type: "BatchNorm" bottom: "w" top: "bn" }
        layer { name: "scale" type: "Scale" bottom: "bn" top: "bn" scale_param { bias_term: true } }
        layer { name: "bias" type: "Bias" bottom: "bn" top: "bias" }
        layer { name: "own" type: "BN" bottom: "bias" top: "own" }
        layer { name: "segnet" type: "BN" bottom: "own" top: "y" bn_param { bn_mode: INFERENCE } }
        """
    )
    randomize(net)
    exported = assert_same(net, fold=True)
    assert exported.folded == ["bn", "scale", "bias", "own", "segnet"]
    kinds = [node.op_type for node in exported.model.graph.node]
    assert not {"BatchNormalization", "Mul", "Add"} & set(kinds)


@pytest.mark.parametrize(
    "layers",
    [
        # The convolution's own values are wanted, too.
        """layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "bn" }
        layer { name: "other" type: "ReLU" bottom: "conv" top: "other" }""",
        # Not per channel.
        """layer { name: "s" type: "Scale" bottom: "conv" top: "s" scale_param { axis: 3 } }""",
        """layer { name: "s" type: "Scale" bottom: "conv" top: "s" scale_param { num_axes: 0 } }""",
        # The batch's own statistics.
        """layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "bn"
            batch_norm_param { use_global_stats: false } }""",
    ],
)
def test_what_cannot_be_folded_stays(layers):
    net = net_of(input_layer("data", (2, 3, 6, 6)) + CONV + layers)
    randomize(net)
    assert assert_same(net, fold=True).folded == []


# -- refusals --------------------------------------------------------------------------------


def test_all_refused_layers_are_named_at_once(tmp_path):
    (tmp_path / "net.prototxt").write_text(
        input_layer("data", (4, 3))
        + "\n"
        + input_layer("label", (4,))
        + """
        layer { name: "filter" type: "Filter" bottom: "data" bottom: "label" top: "f" }
        layer { name: "loss" type: "SoftmaxWithLoss" bottom: "data" bottom: "label" }
        """
    )
    with pytest.raises(LayerError) as error:
        export_onnx(Net(tmp_path / "net.prototxt", engine="numpy"))
    filter_line, loss_line = str(error.value).splitlines()
    assert "net.prototxt:3: layer 'filter' (Filter): cannot be exported: how many" in filter_line
    assert (
        "net.prototxt:4: layer 'loss' (SoftmaxWithLoss): cannot be exported: it compares with "
        in loss_line
    )


def test_windows_outside_the_image_are_refused():
    net = net_of(
        input_layer("data", (1, 1, 4, 4))
        + LAYER.format("Pooling", "pooling_param { kernel_size: 1 stride: 4 round_mode: CEIL }")
    )
    with pytest.raises(LayerError, match=r"layer 'x'.*last window lies wholly outside"):
        export_onnx(net)


def test_wrong_phase_and_no_inputs():
    with pytest.raises(UsageError, match="TRAIN"):
        export_onnx(net_of(input_layer("data", (1, 3)), phase=caffe_pb2.TRAIN))
    with pytest.raises(NetError, match="no Input layer"):
        export_onnx(Net(nets.NETS["lenet"](), engine="numpy"))


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(UsageError, match=r"pip install 'protocaffe\[onnx\]'"):
        export_onnx(net_of(input_layer("data", (1, 3))))
