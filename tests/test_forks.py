"""Small nets as people have them for forks of Caffe: their text, their weights, what comes out."""

import itertools

import numpy as np
import pytest

from protocaffe.engines import get_engine
from protocaffe.errors import UsageError, WeightsError
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.binary import array_to_blob
from protocaffe.proto.text import parse_text
from protocaffe.proto.wire import delimited


def build(text, engine="numpy", phase=caffe_pb2.TEST):
    return Net(parse_text(text, caffe_pb2.NetParameter()), phase, engine=engine, seed=3)


def image(*extents):
    dims = " ".join(f"dim: {extent}" for extent in extents)
    return f'input: "data" input_shape {{ {dims} }}\n'


def conv(name, bottom, outputs, options="kernel_size: 3 pad: 1", kind="Convolution"):
    return f"""
    layer {{ name: "{name}" type: "{kind}" bottom: "{bottom}" top: "{name}"
        convolution_param {{ num_output: {outputs} {options} weight_filler {{ type: "msra" }} }} }}
    """


def relu(name, kind="ReLU"):
    return f'layer {{ name: "{name}_relu" type: "{kind}" bottom: "{name}" top: "{name}" }}\n'


def ssd_head(source, boxes, sizes):
    """Locations, scores and priors of one feature map."""
    text = f"""
    layer {{ name: "{source}_prior" type: "PriorBox" bottom: "{source}" bottom: "data"
        top: "{source}_prior" prior_box_param {{ {sizes} flip: true clip: false
            variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2 offset: 0.5 }} }}
    """
    for part, numbers in (("loc", 4), ("conf", 3)):
        name = f"{source}_{part}"
        text += conv(name, source, boxes * numbers)
        text += f"""
        layer {{ name: "{name}_perm" type: "Permute" bottom: "{name}" top: "{name}_perm"
            permute_param {{ order: 0 order: 2 order: 3 order: 1 }} }}
        layer {{ name: "{name}_flat" type: "Flatten" bottom: "{name}_perm" top: "{name}_flat" }}
        """
    return text


def concat(name, bottoms, axis=1):
    wires = " ".join(f'bottom: "{bottom}"' for bottom in bottoms)
    return f"""
    layer {{ name: "{name}" type: "Concat" {wires} top: "{name}" concat_param {{ axis: {axis} }} }}
    """


SSD = (
    image(2, 3, 48, 48)
    + conv("conv1", "data", 16)
    + relu("conv1")
    + """layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
        pooling_param { pool: MAX kernel_size: 8 stride: 8 } }"""
    + conv("conv4_3", "pool1", 16)
    + relu("conv4_3")
    + """layer { name: "conv4_3_norm" type: "Normalize" bottom: "conv4_3" top: "conv4_3_norm"
        norm_param { across_spatial: false channel_shared: false
            scale_filler { type: "constant" value: 20 } } }"""
    + conv("fc7", "conv4_3", 16, "kernel_size: 3 pad: 3 dilation: 3 stride: 2")
    + relu("fc7")
    + ssd_head("conv4_3_norm", 4, "min_size: 8 max_size: 16 aspect_ratio: 2 step: 8")
    + ssd_head("fc7", 6, "min_size: 16 max_size: 30 aspect_ratio: 2 aspect_ratio: 3")
    + concat("mbox_loc", ["conv4_3_norm_loc_flat", "fc7_loc_flat"])
    + concat("mbox_conf", ["conv4_3_norm_conf_flat", "fc7_conf_flat"])
    + concat("mbox_prior", ["conv4_3_norm_prior", "fc7_prior"], axis=2)
    + """
    layer { name: "mbox_conf_reshape" type: "Reshape" bottom: "mbox_conf" top: "mbox_conf_reshape"
        reshape_param { shape { dim: 0 dim: -1 dim: 3 } } }
    layer { name: "mbox_conf_softmax" type: "Softmax" bottom: "mbox_conf_reshape"
        top: "mbox_conf_softmax" softmax_param { axis: 2 } }
    layer { name: "mbox_conf_flatten" type: "Flatten" bottom: "mbox_conf_softmax"
        top: "mbox_conf_flatten" flatten_param { axis: 1 } }
    layer { name: "detection_out" type: "DetectionOutput" bottom: "mbox_loc"
        bottom: "mbox_conf_flatten" bottom: "mbox_prior" top: "detection_out"
        include { phase: TEST }
        detection_output_param { num_classes: 3 share_location: true background_label_id: 0
            nms_param { nms_threshold: 0.45 top_k: 400 } code_type: CENTER_SIZE keep_top_k: 20
            save_output_param { output_directory: "/nowhere" label_map_file: "labels.prototxt" }
            confidence_threshold: 0.01 } }
    """
)
SHUFFLENET = (
    image(2, 24, 9, 9)
    + conv("in", "data", 24, "kernel_size: 1 group: 3 bias_term: false")
    + """layer { name: "bn" type: "BatchNorm" bottom: "in" top: "in" }
        layer { name: "sc" type: "Scale" bottom: "in" top: "in" scale_param { bias_term: true } }"""
    + relu("in", "ReLU6")
    + """layer { name: "shuffle" type: "ShuffleChannel" bottom: "in" top: "shuffle"
        shuffle_channel_param { group: 3 } }"""
    + conv("dw", "shuffle", 24, "kernel_size: 3 pad: 1 bias_term: false", "ConvolutionDepthwise")
    + conv("out", "dw", 24, "kernel_size: 1 group: 3")
    + """layer { name: "sum" type: "Eltwise" bottom: "data" bottom: "out" top: "sum"
        eltwise_param { operation: SUM } }"""
)
SENET = (
    image(2, 16, 8, 8)
    + conv("branch", "data", 16)
    + """
    layer { name: "pool" type: "Pooling" bottom: "branch" top: "pool"
        pooling_param { pool: AVE engine: CAFFE global_pooling: true } }
    layer { name: "down" type: "InnerProduct" bottom: "pool" top: "down"
        inner_product_param { num_output: 4 weight_filler { type: "msra" } } }
    layer { name: "down_relu" type: "ReLU" bottom: "down" top: "down" }
    layer { name: "up" type: "InnerProduct" bottom: "down" top: "up"
        inner_product_param { num_output: 16 weight_filler { type: "msra" } } }
    layer { name: "gate" type: "Sigmoid" bottom: "up" top: "gate" }
    layer { name: "sum" type: "Axpy" bottom: "gate" bottom: "branch" bottom: "data" top: "sum" }
    """
)
PSPNET = (
    image(1, 3, 17, 17)
    + conv("conv1", "data", 16, "kernel_size: 3 pad: 1 stride: 2 bias_term: false")
    + """
    layer { name: "conv1/bn" type: "BN" bottom: "conv1" top: "conv1" bn_param {
        slope_filler { value: 1 } bias_filler { value: 0.1 } frozen: true momentum: 0.95 } }
    layer { name: "conv1/relu" type: "ReLU" bottom: "conv1" top: "conv1" }
    layer { name: "pool" type: "Pooling" bottom: "conv1" top: "pool"
        pooling_param { pool: AVE kernel_size: 3 stride: 3 } }
    """
    + conv("pool_conv", "pool", 8, "kernel_size: 1")
    + """layer { name: "pool_interp" type: "Interp" bottom: "pool_conv" top: "pool_interp"
        interp_param { height: 9 width: 9 } }"""
    + concat("pyramid", ["conv1", "pool_interp"])
    + conv("score", "pyramid", 5, "kernel_size: 1")
    + """layer { name: "score_interp" type: "Interp" bottom: "score" top: "score_interp"
        interp_param { zoom_factor: 2 } }"""
)
SEGNET = (
    image(2, 3, 13, 14)
    + conv("conv1", "data", 16)
    + """
    layer { name: "conv1_bn" type: "BN" bottom: "conv1" top: "conv1"
        bn_param { bn_mode: INFERENCE scale_filler { type: "constant" value: 1 }
            shift_filler { type: "constant" value: 0.001 } } }
    layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
    layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" top: "pool1_mask"
        pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
    layer { name: "drop" type: "Dropout" bottom: "pool1" top: "pool1" dropout_param {
        dropout_ratio: 0.5 sample_weights_test: false } }
    layer { name: "upsample1" type: "Upsample" bottom: "pool1" bottom: "pool1_mask"
        top: "upsample1" upsample_param { scale: 2 pad_out_h: true } }
    """
    + conv("score", "upsample1", 4)
)
YOLO = (
    image(1, 3, 8, 8)
    + conv("early", "data", 8)
    + """layer { name: "reorg" type: "Reorg" bottom: "early" top: "reorg"
        reorg_param { stride: 2 } }"""
    + conv("late", "early", 16, "kernel_size: 2 stride: 2")
    + concat("both", ["reorg", "late"])
    + conv("out", "both", 8, "kernel_size: 1")
    + """layer { name: "up" type: "Upsample" bottom: "out" top: "up"
        upsample_param { scale: 2 } }"""
)
FASTER_RCNN = (
    image(1, 3, 32, 48)
    + 'input: "rois" input_shape { dim: 3 dim: 5 }\n'
    + conv("conv5", "data", 16, "kernel_size: 3 pad: 1 stride: 4")
    + relu("conv5")
    + """
    layer { name: "roi_pool5" type: "ROIPooling" bottom: "conv5" bottom: "rois" top: "roi_pool5"
        roi_pooling_param { pooled_w: 3 pooled_h: 3 spatial_scale: 0.25 } }
    layer { name: "fc6" type: "InnerProduct" bottom: "roi_pool5" top: "fc6"
        inner_product_param { num_output: 12 weight_filler { type: "xavier" } } }
    layer { name: "relu6" type: "ReLU" bottom: "fc6" top: "fc6" }
    layer { name: "cls_score" type: "InnerProduct" bottom: "fc6" top: "cls_score"
        inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
    layer { name: "bbox_pred" type: "InnerProduct" bottom: "fc6" top: "bbox_pred"
        inner_product_param { num_output: 12 weight_filler { type: "xavier" } } }
    layer { name: "cls_prob" type: "Softmax" bottom: "cls_score" top: "cls_prob" }
    """
)
RFCN = (
    image(1, 3, 32, 48)
    + 'input: "rois" input_shape { dim: 3 dim: 5 }\n'
    + conv("rfcn_cls", "data", 3 * 9, "kernel_size: 3 pad: 1 stride: 4")
    + """
    layer { name: "psroipooled" type: "PSROIPooling" bottom: "rfcn_cls" bottom: "rois"
        top: "psroipooled"
        psroi_pooling_param { spatial_scale: 0.25 output_dim: 3 group_size: 3 } }
    layer { name: "vote" type: "Pooling" bottom: "psroipooled" top: "vote"
        pooling_param { pool: AVE kernel_size: 3 stride: 3 } }
    """
)
NVIDIA = (
    "default_forward_type: FLOAT16 default_backward_type: FLOAT16\n"
    + image(2, 3, 9, 9)
    + conv("conv1", "data", 16, 'kernel_size: 3 bias_term: false conv_algos_override: "1,1,1"')
    + """layer { name: "bn1" type: "BatchNorm" bottom: "conv1" top: "conv1" forward_type: FLOAT
        batch_norm_param { moving_average_fraction: 0.9 eps: 0.0001 scale_bias: true } }"""
    + relu("conv1")
    + conv("conv2", "conv1", 8)
)
INTEL = (
    image(2, 3, 9, 9)
    + conv("conv1", "data", 16, "kernel_size: 3 engine: MKLDNN")
    + """
    layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" engine: "MKL2017"
        relu_param { engine: MKL2017 } }
    layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
        pooling_param { kernel_size: 3 stride: 2 ceil_mode: false engine: MKLDNN } }
    """
)
NETS = {
    "SSD": (SSD, None),
    "ShuffleNet": (SHUFFLENET, (2, 24, 9, 9)),
    "SENet": (SENET, (2, 16, 8, 8)),
    "PSPNet": (PSPNET, (1, 5, 17, 17)),
    "SegNet": (SEGNET, (2, 4, 13, 14)),
    "YOLO": (YOLO, (1, 8, 8, 8)),
    "Faster R-CNN": (FASTER_RCNN, None),
    "R-FCN": (RFCN, (3, 3, 1, 1)),
    "NVIDIA": (NVIDIA, (2, 8, 7, 7)),
    "Intel": (INTEL, (2, 16, 3, 3)),
}
ROIS = [[0, 0, 0, 47, 31], [0, 5, 5, 20, 30], [0, 40, 2, 44, 9]]


def run(text, engine, phase=caffe_pb2.TEST):
    net = build(text, engine, phase)
    rng = np.random.default_rng(0)
    net.blobs["data"].data[...] = rng.normal(size=net.blobs["data"].shape)
    if "rois" in net.blobs:
        net.blobs["rois"].data[...] = ROIS
    net.run_forward()
    return net


@pytest.mark.parametrize("name", NETS)
def test_both_engines_run_it_to_the_same_end(name):
    text, shape = NETS[name]
    try:
        get_engine("onednn")
    except UsageError as reason:
        pytest.skip(str(reason))
    nets = [run(text, engine) for engine in ("numpy", "onednn")]
    for output in nets[0].outputs:
        values = [net.blobs[output].data for net in nets]
        assert shape in (None, values[0].shape)
        assert np.ptp(values[0]) > 0
        np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("engine", ["numpy", "onednn"])
@pytest.mark.parametrize("name", sorted(NETS.keys() - {"SSD"}))
def test_it_learns(name, engine):
    """A step against the gradient makes the loss, a sum of squares, smaller."""
    try:
        get_engine(engine)
    except UsageError as reason:
        pytest.skip(str(reason))
    text = NETS[name][0].replace("dropout_ratio: 0.5", "dropout_ratio: 0")
    outputs = build(text).outputs
    for output in outputs:
        text += f"""layer {{ name: "{output}_loss" type: "Reduction" bottom: "{output}"
            top: "{output}_loss" loss_weight: 1 reduction_param {{ operation: SUMSQ }} }}\n"""
    net = run(text, engine, caffe_pb2.TRAIN)
    before = net.run_forward()
    net.clear_param_diffs()
    net.run_backward()
    total = sum((param.blob.diff**2).sum() for param in net.learnable)
    assert total > 0
    for param in net.learnable:
        if param.lr_mult:
            param.blob.data[...] -= 1e-4 * before / total * param.blob.diff
    assert net.run_forward() < before


def test_ssd_finds_what_its_heads_say():
    """With heads that know one box, that box comes out, once."""
    net = build(SSD)
    for source in ("conv4_3_norm", "fc7"):
        for part in ("loc", "conf"):
            weights, bias = net.params[f"{source}_{part}"]
            weights.data[...] = 0
            bias.data[...] = 0
        bias.data.reshape(-1, 3)[:, 0] = 9  # background everywhere
    for wide in net.params["conv4_3_norm_loc"][1].data.reshape(-1, 4)[:1]:
        wide[...] = [0, 0, 5 * np.log(2), 0]  # twice as wide, variance 0.2
    net.params["conv4_3_norm_conf"][1].data.reshape(-1, 3)[0] = [0, 0, 9]
    net.run_forward()
    rows = net.blobs["detection_out"].data[0, 0]
    best = rows[rows[:, 2] > 0.5]
    # A 16 x 8 box around every pixel of the 6 x 6 map: neighbours in a row overlap by 1/3, which
    # is below the threshold, so all 36 stay; the 20 best are the first ones, in both images.
    assert len(best) == 40
    np.testing.assert_allclose(best[:, 1], 2)
    np.testing.assert_allclose(best[0, 3:], np.array([4 - 8, 0, 4 + 8, 8]) / 48, atol=1e-6)
    np.testing.assert_allclose(best[:20, 3:], best[20:, 3:])
    assert best[:20, 0].tolist() == [0] * 20


def test_ssd_without_detections_says_so():
    text = SSD.replace("confidence_threshold: 0.01", "confidence_threshold: 1")
    rows = run(text, "numpy").blobs["detection_out"].data
    np.testing.assert_array_equal(rows[0, 0], [[0] + [-1] * 6, [1] + [-1] * 6])


def test_a_model_learns_further_from_its_own_file(tmp_path):
    """Settings of forks are written under numbers of our own and do not stand in the way."""
    net = run(SHUFFLENET, "numpy")
    net.save(tmp_path / "net.caffemodel")
    other = build(SHUFFLENET)
    other.copy_from(tmp_path / "net.caffemodel")
    for mine, theirs in zip(net.learnable, other.learnable, strict=True):
        np.testing.assert_array_equal(mine.blob.data, theirs.blob.data)


# -- weights -----------------------------------------------------------------------------


def fork_layer(name, kind, blobs, settings=()):
    """Return a layer as a fork wrote it: ``settings`` are numbers and bytes of its own."""
    layer = caffe_pb2.LayerParameter(name=name, type=kind)
    for blob in blobs:
        array_to_blob(np.asarray(blob, np.float32), layer.blobs.add())
    pieces = [layer.SerializeToString()]
    for number, content in settings:
        pieces += delimited(number, content)
    return b"".join(bytes(piece) for piece in delimited(100, *pieces))


def test_settings_with_clashing_numbers_do_no_harm(tmp_path):
    """146 to 152 mean other things in every fork, and 148 without its fields breaks Caffe."""
    clashing = [(number, b"\x0a\x02\x08\x01") for number in (137, 143, 145, 148, 150, 152, 202)]
    path = tmp_path / "fork.caffemodel"
    path.write_bytes(
        fork_layer("conv", "Convolution", [np.full((2, 1, 1, 1), 3), [1, 2]], clashing)
        + fork_layer("norm", "Normalize", [[5]], [(206, b"\x08\x00")])
    )
    net = build(
        image(1, 1, 2, 2)
        + conv("conv", "data", 2, "kernel_size: 1")
        + 'layer { name: "norm" type: "Normalize" bottom: "conv" top: "norm" }'
    )
    net.copy_from(path)
    assert net.params["conv"][1].data.tolist() == [1, 2]
    assert net.params["norm"][0].data == 5


MEAN, VARIANCE, SCALE, SHIFT = [1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]


def bn_net(kind, settings):
    return build(
        image(1, 3, 2, 2)
        + f'layer {{ name: "bn" type: "{kind}" bottom: "data" top: "bn" {settings} }}'
    )


@pytest.mark.parametrize("shape", [(3,), (1, 3), (1, 3, 1, 1)])
@pytest.mark.parametrize(
    ("kind", "settings", "blobs"),
    [
        (
            "BatchNorm",
            "batch_norm_param { scale_bias: true }",
            [MEAN, VARIANCE, [1], SCALE, SHIFT],
        ),
        (
            "BatchNorm",
            "batch_norm_param { scale_filler { value: 1 } bias_filler { value: 0 } }",
            [SCALE, SHIFT, MEAN, VARIANCE, [1]],
        ),
        ("BN", "", [SCALE, SHIFT, MEAN, VARIANCE]),
    ],
)
def test_normalizations_of_forks_give_the_same_numbers(tmp_path, kind, settings, blobs, shape):
    path = tmp_path / "fork.caffemodel"
    shaped = [np.reshape(blob, shape if len(blob) > 1 else (1,)) for blob in blobs]
    path.write_bytes(fork_layer("bn", kind, shaped))
    net = bn_net(kind, settings)
    net.copy_from(path)
    net.blobs["data"].data[...] = x = np.random.default_rng(0).normal(size=(1, 3, 2, 2))
    net.run_forward()
    for c, i, j in itertools.product(range(3), range(2), range(2)):
        expected = (x[0, c, i, j] - MEAN[c]) / np.sqrt(VARIANCE[c] + 1e-5) * SCALE[c] + SHIFT[c]
        assert net.blobs["bn"].data[0, c, i, j] == pytest.approx(expected, rel=1e-5)


def test_five_blobs_for_a_plain_batch_norm_say_what_to_write(tmp_path):
    path = tmp_path / "fork.caffemodel"
    path.write_bytes(fork_layer("bn", "BatchNorm", [SCALE, SHIFT, MEAN, VARIANCE, [1]]))
    with pytest.raises(WeightsError, match=r"has 5 blob.*: write .*scale_bias: true"):
        bn_net("BatchNorm", "").copy_from(path)
    with pytest.raises(WeightsError, match=r"has 5 blob\(s\) there but 4 in the net\n"):
        bn_net("BN", "").copy_from(path)
