"""Every oneDNN kernel against the layer's own code, over random shapes and options.

Each example is a small chain of layers, run by both engines with the same weights, inputs and
top gradients. All blobs, all diffs and all parameter gradients must agree; two backward passes
without clearing check that parameter gradients add up.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from protocaffe.engines import get_engine
from protocaffe.engines.onednn.plan import kernels
from protocaffe.errors import NetError, UsageError
from protocaffe.layers.activation import ReLU6
from protocaffe.layers.convolution import ConvolutionDepthwise, DepthwiseConvolution
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import parse_text

TOLERANCE = 2e-5
"""Largest difference, relative to the largest entry of the array."""

try:
    get_engine("onednn")
except UsageError as reason:  # pragma: no cover - depends on the machine
    pytest.skip(f"no oneDNN here: {reason}", allow_module_level=True)

quick = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def layer(name: str, kind: str, bottoms: str, tops: str, options: str = "") -> str:
    wires = "".join(f' bottom: "{name}"' for name in bottoms.split())
    wires += "".join(f' top: "{name}"' for name in tops.split())
    return f'layer {{ name: "{name}" type: "{kind}"{wires} {options} }}\n'


def inputs(*shapes: tuple[int, ...]) -> str:
    text = "force_backward: true\n"
    for index, shape in enumerate(shapes):
        dims = " ".join(f"dim: {extent}" for extent in shape)
        name = "xyz"[index]
        text += layer(name, "Input", "", name, f"input_param {{ shape {{ {dims} }} }}")
    return text


def build(text: str, engine: str) -> Net:
    return Net(parse_text(text, caffe_pb2.NetParameter()), caffe_pb2.TRAIN, engine=engine, seed=1)


def assert_engines_agree(
    text: str, seed: int = 0, distinct: bool = False, statistics: bool = False
) -> None:
    """Run both engines twice, forward and backward, and compare everything.

    Args:
        text: the net.
        seed: of parameters, inputs and gradients.
        distinct: let no two inputs be equal.
        statistics: start from running statistics other than zero.
    """
    nets = [build(text, "numpy"), build(text, "onednn")]
    for values in zip(*(_parameters(net) for net in nets), strict=True):
        drawn = np.random.default_rng(seed).standard_normal(values[0].shape) * 0.3
        for array in values:
            array[...] = drawn + (1 if array.ndim == 1 else 0)
    for net in nets if statistics else ():
        mean, variance, weight = (blob.data for blob in net.params["bn"])
        mean[...], variance[...] = np.arange(mean.size) % 5 - 2, np.arange(mean.size) % 3 + 1
        weight[...] = 2
    rng = np.random.default_rng(seed + 1)
    for _ in range(2):
        for name in nets[0].inputs:
            shape = nets[0].blobs[name].shape
            drawn = rng.standard_normal(shape)
            if distinct:
                drawn = rng.permutation(drawn.size).reshape(shape) / drawn.size
            for net in nets:
                net.blobs[name].data[...] = drawn
        for net in nets:
            net.run_forward()
        for name in nets[0].outputs:
            drawn = rng.standard_normal(nets[0].blobs[name].shape)
            for net in nets:
                net.blobs[name].diff[...] = drawn
        for net in nets:
            net.run_backward()
    for name, blob in nets[0].blobs.items():
        _assert_close(blob.data, nets[1].blobs[name].data, f"data of {name}")
        _assert_close(blob.diff, nets[1].blobs[name].diff, f"diff of {name}")
    for name, blobs in nets[0].params.items():
        for index, blob in enumerate(blobs):
            other = nets[1].params[name][index]
            _assert_close(blob.data, other.data, f"parameter {index} of {name}")
            _assert_close(blob.diff, other.diff, f"gradient {index} of {name}")


def _parameters(net: Net) -> Iterator[np.ndarray]:
    for name, blobs in net.params.items():
        if name.startswith("bn"):
            continue  # running statistics start at zero
        yield from (blob.data for blob in blobs)


def _assert_close(expected: np.ndarray, got: np.ndarray, what: str) -> None:
    scale = max(1e-3, float(np.abs(expected).max(initial=0)))
    error = float(np.abs(expected - got).max(initial=0)) / scale
    assert error < TOLERANCE, f"{what}: relative error {error:g}"


channels = st.sampled_from([1, 2, 3, 5, 8, 16, 17, 32, 48])
images = st.tuples(st.integers(1, 4), channels, st.integers(1, 11), st.integers(1, 11))


@st.composite
def convolutions(draw: st.DrawFn) -> str:
    shape = draw(images)
    group = draw(st.sampled_from([g for g in (1, 2, 3, shape[1]) if shape[1] % g == 0]))
    kernel = [draw(st.integers(1, 5)) for _ in range(2)]
    pad = [draw(st.integers(0, 6)) for _ in range(2)]
    dilation = [draw(st.integers(1, 2)) for _ in range(2)]
    for axis in range(2):
        reach = dilation[axis] * (kernel[axis] - 1) + 1
        pad[axis] = max(pad[axis], -((shape[2 + axis] - reach) // 2))
    fields = {"kernel_size": kernel, "pad": pad, "dilation": dilation}
    fields["stride"] = [draw(st.integers(1, 6)) for _ in range(2)]
    options = " ".join(f"{name}: {value}" for name, each in fields.items() for value in each)
    outputs = group * draw(st.integers(1, max(1, 40 // group)))
    bias = draw(st.sampled_from(["true", "false"]))
    text = inputs(shape) + layer(
        "conv",
        "Convolution",
        *("x", "c"),
        f"convolution_param {{ num_output: {outputs} group: {group} bias_term: {bias} {options} }}",
    )
    slope = draw(st.sampled_from([None, 0, 0.1]))
    if slope is not None:
        text += layer("relu", "ReLU", "c", "c", f"relu_param {{ negative_slope: {slope} }}")
    return text


@quick
@given(convolutions(), st.integers(0, 9))
def test_convolution_with_and_without_relu(text: str, seed: int) -> None:
    assert_engines_agree(text, seed)


@quick
@given(convolutions(), st.integers(0, 9))
def test_deconvolution(text: str, seed: int) -> None:
    """The same options, where the deconvolved image has any pixels."""
    text = text.replace('"Convolution"', '"Deconvolution"')
    try:
        build(text, "numpy")
    except NetError:
        assume(False)
    assert_engines_agree(text, seed)


@quick
@given(
    images,
    st.sampled_from(["TanH", "Sigmoid", "ELU", "ReLU", "PReLU", "Clip", "Swish"]),
    st.sampled_from([0.0, 0.5, -0.5]),
    st.booleans(),
    st.booleans(),
)
def test_activations(
    shape: tuple[int, ...], kind: str, slope: float, in_place: bool, convolved: bool
) -> None:
    slope = abs(slope) if in_place else slope
    options = {
        "ELU": f"elu_param {{ alpha: {slope} }}",
        "ReLU": f"relu_param {{ negative_slope: {slope} }}",
        "Swish": f"swish_param {{ beta: {1 + slope} }}",
        "Clip": f"clip_param {{ min: {slope - 0.6} max: 0.7 }}",
    }
    text = inputs(shape)
    if convolved:
        fields = "convolution_param { num_output: 17 kernel_size: 1 bias_term: false }"
        text += layer("copy", "Convolution", "x", "y", fields)
    else:
        text += layer("copy", "Power", "x", "y")
    text += layer("act", kind, "y", "y" if in_place else "z", options.get(kind, ""))
    assert_engines_agree(text)


@quick
@given(images, st.integers(1, 40), st.booleans(), st.booleans(), st.sampled_from([1, 2, -1]))
def test_inner_product(
    shape: tuple[int, ...], outputs: int, bias: bool, relu: bool, axis: int
) -> None:
    text = inputs(shape) + layer(
        "ip",
        "InnerProduct",
        *("x", "y"),
        f"inner_product_param {{ num_output: {outputs} bias_term: {str(bias).lower()} "
        f"axis: {axis} }}",
    )
    assert_engines_agree(text + (layer("relu", "ReLU", "y", "y") if relu else ""))


@st.composite
def poolings(draw: st.DrawFn) -> str:
    shape = draw(images)
    method = draw(st.sampled_from(["MAX", "AVE"]))
    if draw(st.booleans()) and draw(st.booleans()):
        return inputs(shape) + layer(
            "pool", "Pooling", "x", "p", f"pooling_param {{ pool: {method} global_pooling: true }}"
        )
    kernel = draw(st.integers(1, 5))
    pad = draw(st.integers(0, kernel - 1))
    kernel = min(kernel, min(shape[2:]) + 2 * pad)
    pad = min(pad, kernel - 1)
    stride = draw(st.integers(1, kernel))
    mode = draw(st.sampled_from(["CEIL", "FLOOR"]))
    options = f"kernel_size: {kernel} stride: {stride} pad: {pad} round_mode: {mode}"
    return inputs(shape) + layer(
        "pool", "Pooling", "x", "p", f"pooling_param {{ pool: {method} {options} }}"
    )


@quick
@given(poolings(), st.integers(0, 9))
def test_pooling(text: str, seed: int) -> None:
    assert_engines_agree(text, seed, distinct=True)


def test_equal_maxima_give_the_gradient_to_the_first_pixel() -> None:
    text = inputs((1, 16, 4, 4)) + layer(
        "pool", "Pooling", "x", "p", "pooling_param { kernel_size: 3 stride: 1 }"
    )
    nets = [build(text, engine) for engine in ("numpy", "onednn")]
    for net in nets:
        net.blobs["x"].data[...] = 1
        net.run_forward()
        net.blobs["p"].diff[...] = np.arange(4).reshape(2, 2) + 1
        net.run_backward()
    assert (nets[0].blobs["x"].diff == nets[1].blobs["x"].diff).all()


@quick
@given(images, st.sampled_from([1, 3, 5, 7]), st.floats(0.5, 2), st.sampled_from([0.75, 0.6]))
def test_lrn(shape: tuple[int, ...], size: int, k: float, beta: float) -> None:
    options = f"lrn_param {{ local_size: {size} alpha: 0.3 beta: {beta} k: {k} }}"
    assert_engines_agree(inputs(shape) + layer("norm", "LRN", "x", "y", options))


@quick
@given(images, st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_batch_norm_scale_relu(
    shape: tuple[int, ...],
    in_place: bool,
    bias: bool,
    global_stats: bool,
    convolved: bool,
    backward: bool,
) -> None:
    if shape[0] * shape[2] * shape[3] < 4:
        shape = (4, *shape[1:])  # a variance of one or two numbers amplifies rounding
    names = ["y", "y", "y", "y"] if in_place else ["y", "b", "s", "r"]
    stats = str(global_stats).lower()
    text = inputs(shape)
    kind = "Convolution" if convolved else "Power"
    options = "convolution_param { num_output: 17 kernel_size: 1 bias_term: false }"
    text += layer("first", kind, "x", names[0], options if convolved else "")
    text += layer(
        "bn", "BatchNorm", *names[:2], f"batch_norm_param {{ use_global_stats: {stats} eps: 0.01 }}"
    )
    text += layer(
        "scale", "Scale", *names[1:3], f"scale_param {{ bias_term: {str(bias).lower()} }}"
    )
    text += layer("relu", "ReLU", *names[2:4])
    if not backward:
        text = text.replace("force_backward: true", "")
    assert_engines_agree(text, statistics=True)


@quick
@given(images, st.lists(st.sampled_from([1.0, -2.0, 0.5]), min_size=3, max_size=3), st.booleans())
def test_eltwise_sum(shape: tuple[int, ...], coefficients: list[float], in_place: bool) -> None:
    options = " ".join(f"coeff: {each}" for each in coefficients)
    text = inputs(shape, shape, shape) + layer("copy", "Power", "x", "c")
    text += layer(
        "sum", "Eltwise", "c y z", "c" if in_place else "s", f"eltwise_param {{ {options} }}"
    )
    assert_engines_agree(text)


@quick
@given(st.lists(channels, min_size=1, max_size=3), st.integers(1, 5), st.booleans())
def test_concat_of_convolutions(widths: list[int], extent: int, split: bool) -> None:
    text = inputs((2, 16, extent, extent))
    for index, width in enumerate(widths):
        text += layer(
            f"conv{index}",
            "Convolution",
            *("x", f"c{index}"),
            f"convolution_param {{ num_output: {width} kernel_size: 1 }}",
        )
    names = " ".join(f"c{index}" for index in range(len(widths)))
    text += layer("concat", "Concat", names, "all")
    if split:
        for index in range(2):
            text += layer(f"r{index}", "ReLU", "all", f"r{index}")
    assert_engines_agree(text)


def test_own_code_between_kernels_sees_and_gives_the_right_numbers() -> None:
    text = inputs((2, 16, 6, 6))
    conv = "convolution_param { num_output: 32 kernel_size: 3 }"
    text += layer("c1", "Convolution", "x", "a", conv) + layer("t", "TanH", "a", "a")
    text += layer("c2", "Convolution", "a", "b", conv) + layer("s", "Sigmoid", "b", "c")
    text += layer("flat", "Flatten", "c", "f") + layer(
        "ip", "InnerProduct", "f", "y", "inner_product_param { num_output: 3 }"
    )
    assert_engines_agree(text)


def test_engine_caffe_forces_the_layers_own_code() -> None:
    text = inputs((2, 16, 6, 6)) + layer(
        "c",
        "Convolution",
        *("x", "y"),
        "convolution_param { num_output: 16 kernel_size: 3 engine: CAFFE }",
    )
    net = build(text, "onednn")
    net.blobs["x"].data[...] = 1
    net.run_forward()
    assert net.params["c"][0].data_storage.native is None
    assert_engines_agree(text)


def test_shared_weights_and_a_new_input_shape() -> None:
    shared = 'param { name: "w" } param { name: "b" }'
    conv = "convolution_param { num_output: 16 kernel_size: 3 pad: 1 }"
    text = inputs((2, 16, 6, 6)) + layer("c1", "Convolution", "x", "a", shared + conv)
    text += layer("c2", "Convolution", "a", "b", shared + conv)
    assert_engines_agree(text)
    net = build(text, "onednn")
    net.run_forward()
    net.blobs["x"].reshape(3, 16, 9, 5)
    net.run_forward()
    assert net.blobs["b"].data.shape == (3, 16, 9, 5)


@quick
@given(images, st.booleans(), st.booleans(), st.sampled_from([None, 0, 0.1]))
def test_normalisation_folds_into_the_convolution_where_no_backward_runs(
    shape: tuple[int, ...], conv_bias: bool, scale_bias: bool, slope: float | None
) -> None:
    flags = [str(flag).lower() for flag in (conv_bias, scale_bias)]
    options = f"convolution_param {{ num_output: 17 kernel_size: 1 bias_term: {flags[0]} }}"
    text = inputs(shape).replace("force_backward: true", "")
    text += layer("first", "Convolution", "x", "y", options)
    text += layer("bn", "BatchNorm", "y", "y", "batch_norm_param { use_global_stats: true }")
    text += layer("scale", "Scale", "y", "y", f"scale_param {{ bias_term: {flags[1]} }}")
    if slope is not None:
        text += layer("relu", "ReLU", "y", "y", f"relu_param {{ negative_slope: {slope} }}")
    assert_engines_agree(text, statistics=True)


@quick
@given(images, st.sampled_from(["alone", "conv", "norm", "scale"]), st.booleans(), st.booleans())
def test_relu6_behind_whatever_ends_at_six(
    shape: tuple[int, ...], behind: str, in_place: bool, learns: bool
) -> None:
    text = inputs(shape)
    if not learns:
        text = text.replace("force_backward: true", "")
    text += layer("wide", "Power", "x", "y", "power_param { scale: 5 }")
    top = "y"
    if behind != "alone":
        fields = "convolution_param { num_output: 17 kernel_size: 1 bias_term: false }"
        text, top = text + layer("conv", "Convolution", "y", "c", fields), "c"
    if behind in ("norm", "scale"):
        statistics = "batch_norm_param { use_global_stats: true }"
        text += layer("bn", "BatchNorm", "c", "c", statistics)
    if behind == "scale":
        text += layer("scale", "Scale", "c", "c", "scale_param { bias_term: true }")
    text += layer("act", "ReLU6", top, top if in_place else "z")
    assert_engines_agree(text, statistics=behind in ("norm", "scale"))


FILLED = '{}_filler {{ type: "uniform" min: 0.5 max: 2 }} {}_filler {{ type: "gaussian" }}'


@quick
@given(
    images,
    st.sampled_from(
        [
            ("BN", f"bn_param {{ {FILLED.format('slope', 'bias')} }}"),
            ("SyncBN", f"bn_param {{ {FILLED.format('slope', 'bias')} }}"),
            ("BN", f"bn_param {{ {FILLED.format('slope', 'bias')} frozen: true }}"),
            ("BN", f"bn_param {{ {FILLED.format('scale', 'shift')} }}"),
            ("BN", f"bn_param {{ {FILLED.format('scale', 'shift')} bn_mode: INFERENCE }}"),
            ("BatchNorm", f"batch_norm_param {{ {FILLED.format('scale', 'bias')} }}"),
            (
                "BatchNorm",
                f"batch_norm_param {{ {FILLED.format('scale', 'bias')} use_global_stats: true }}",
            ),
        ]
    ),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_normalisations_with_a_scale_of_their_own(
    shape: tuple[int, ...], kind: tuple[str, str], convolved: bool, in_place: bool, learns: bool
) -> None:
    assume(shape[0] * shape[2] * shape[3] > 8)  # two equal numbers have a variance of rounding
    text = inputs(shape)
    if not learns:
        text = text.replace("force_backward: true", "")
    fields = "convolution_param { num_output: 17 kernel_size: 1 bias_term: false }"
    text += layer("conv", "Convolution", "x", "c", fields) if convolved else ""
    text += "" if convolved else layer("copy", "Power", "x", "c")
    text += layer("bn", kind[0], "c", "c" if in_place else "y", kind[1])
    assert_engines_agree(text + layer("relu", "ReLU", "c" if in_place else "y", "z"))


@quick
@given(images, st.sampled_from([1, 2]), st.booleans(), st.sampled_from(["", "ReLU", "ReLU6"]))
def test_depthwise_convolutions(
    shape: tuple[int, ...], stride: int, bias: bool, activation: str
) -> None:
    options = f"kernel_size: 3 pad: 1 stride: {stride} bias_term: {str(bias).lower()}"
    text = inputs(shape)
    for kind, bottom, top in (
        ("ConvolutionDepthwise", "x", "a"),
        ("DepthwiseConvolution", "a", "b"),
    ):
        text += layer(kind, kind, bottom, top, f"convolution_param {{ {options} }}")
        if activation:
            text += layer(f"{kind}_act", activation, top, top)
    assert_engines_agree(text)


def test_relu6_and_depthwise_convolutions_have_kernels() -> None:
    assert {ReLU6, ConvolutionDepthwise, DepthwiseConvolution} <= kernels.keys()


def test_weights_shared_by_layers_that_see_them_differently() -> None:
    """A grouped and an ungrouped view, and an inner product, of the same numbers."""
    shared = 'param { name: "w" share_mode: PERMISSIVE }'
    text = inputs((2, 16, 1, 1))
    options = "convolution_param { num_output: 16 kernel_size: 1 bias_term: false"
    text += layer("c1", "Convolution", "x", "a", f"{shared} {options} }}")
    text += layer("c2", "Convolution", "a", "b", f"{shared} {options} }}")
    fields = "inner_product_param { num_output: 16 bias_term: false }"
    text += layer("ip", "InnerProduct", "b", "y", f"{shared} {fields}")
    assert_engines_agree(text)


@pytest.mark.parametrize("low", [0, -1, 0.25])
def test_the_limits_of_clip_are_inside(low: float) -> None:
    options = f"clip_param {{ min: {low} max: 2 }}"
    text = inputs((1, 1, 1, 5)) + layer("clip", "Clip", "x", "y", options)
    net = build(text, "onednn")
    net.blobs["x"].data[...] = [low - 1e-3, low, 1, 2, 2.001]
    net.run_forward()
    net.blobs["y"].diff[...] = 1
    net.run_backward()
    assert net.blobs["x"].diff.ravel().tolist() == [0, 1, 1, 1, 0]


def test_a_steady_iteration_allocates_no_arrays() -> None:
    text = inputs((8, 16, 24, 24))
    conv = "convolution_param { num_output: 32 kernel_size: 3 pad: 1 }"
    text += layer("c1", "Convolution", "x", "a", conv) + layer("r1", "ReLU", "a", "a")
    text += layer("p", "Pooling", "a", "p", "pooling_param { kernel_size: 2 stride: 2 }")
    text += layer("c2", "Convolution", "p", "b", conv) + layer("bn", "BatchNorm", "b", "b")
    text += layer("s", "Scale", "b", "b", "scale_param { bias_term: true }")
    text += layer("r2", "ReLU", "b", "b")
    text += layer("ip", "InnerProduct", "b", "y", "inner_product_param { num_output: 10 }")
    net = build(text, "onednn")
    net.blobs["y"].diff[...] = 1
    smallest = min(blob.count for blob in net.blobs.values() if blob.num_axes == 4) * 4

    def iterate() -> None:
        net.clear_param_diffs()
        net.run_forward()
        net.run_backward()

    iterate()
    tracemalloc.start()
    iterate()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < smallest / 10


@pytest.mark.parametrize("shape", [(), (1,) * 12 + (3,)])
def test_shapes_that_onednn_has_no_axes_for(shape: tuple[int, ...]) -> None:
    """A single number, and more axes than 12, read by two layers."""
    text = inputs(shape) + layer("sum", "Eltwise", "x x", "s") + layer("act", "ReLU", "s", "s")
    text += layer("a", "TanH", "s", "a") + layer("b", "ELU", "s", "b")
    text += layer("join", "Eltwise", "a b", "y")
    assert_engines_agree(text)


@pytest.mark.parametrize("kind", ["Convolution", "InnerProduct"])
def test_a_result_that_is_only_silenced(kind: str) -> None:
    options = "convolution_param { num_output: 2 kernel_size: 1 }"
    options += " inner_product_param { num_output: 2 }"
    text = inputs((1, 2, 3, 3)).replace("force_backward: true", "")
    text += layer("op", kind, "x", "y", options) + layer("silence", "Silence", "y", "")
    assert_engines_agree(text)


def test_gradients_go_on_below_a_layer_that_changes_shapes_in_mid_pass() -> None:
    """Filter lets another number of samples through in every pass."""
    text = inputs((4, 16, 8, 8), (4,)).replace("force_backward: true", "")
    conv = "convolution_param { num_output: 16 kernel_size: 3 bias_term: false }"
    text += layer("c", "Convolution", "x", "c", conv) + layer("bn", "BatchNorm", "c", "c")
    text += layer("s", "Scale", "c", "c", "scale_param { bias_term: true }")
    text += layer("r", "ReLU", "c", "c") + layer("p", "Pooling", "c", "p", POOL)
    text += layer("lrn", "LRN", "p", "n") + layer("f", "Filter", "n y", "f")
    text += layer("c2", "Convolution", "f", "d", conv) + layer("r2", "ReLU", "d", "d")
    text += layer("c3", "Convolution", "n", "e", conv) + layer("r3", "ReLU", "e", "e")
    sums = "reduction_param { operation: SUMSQ } loss_weight: 1"
    text += layer("l1", "Reduction", "d", "l1", sums) + layer("l2", "Reduction", "e", "l2", sums)
    nets = [build(text, "numpy"), build(text, "onednn")]
    rng = np.random.default_rng(0)
    for one, other in zip(nets[0].learnable, nets[1].learnable, strict=True):
        one.blob.data[...] = rng.standard_normal(one.blob.shape) * 0.1
        other.blob.data[...] = one.blob.data
    for passing in ([1, 1, 1, 1], [1, 0, 1, 0], [1, 0, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]):
        x = rng.standard_normal((4, 16, 8, 8))
        losses = []
        for net in nets:
            net.blobs["x"].data[...], net.blobs["y"].data[...] = x, passing
            net.clear_param_diffs()
            losses.append(net.run_forward())
            net.run_backward()
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        for one, other in zip(nets[0].learnable, nets[1].learnable, strict=True):
            _assert_close(one.blob.diff, other.blob.diff, f"{passing}: gradient of {one.layer}")


POOL = "pooling_param { kernel_size: 3 stride: 2 }"


@pytest.mark.parametrize("kinds", [["PReLU", "Clip"], ["BatchNorm", "Scale", "PReLU"]])
@pytest.mark.parametrize("kernel", [True, False])
def test_in_place_layers_that_need_their_input_one_after_the_other(
    kinds: list[str], kernel: bool
) -> None:
    """Each finds what it read again in backward, although the next one overwrote it."""
    operation = "SUM" if kernel else "MAX"
    text = inputs((2, 6, 5, 5), (2, 6, 5, 5))
    text += layer("e", "Eltwise", "x y", "a", f"eltwise_param {{ operation: {operation} }}")
    for index, kind in enumerate(kinds):
        name = "bn" if kind == "BatchNorm" else f"n{index}"
        text += layer(name, kind, "a", "a", "clip_param { min: -1 max: 1 }" * (kind == "Clip"))
    assert_engines_agree(text)
