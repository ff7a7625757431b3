import json
import tracemalloc

import pytest

from benchmarks import nets
from protocaffe.errors import NetError, UsageError
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import parse_text
from protocaffe.summary import summarize


def net_of(text):
    return parse_text(text, caffe_pb2.NetParameter())


INPUT = 'layer { name: "data" type: "Input" top: "data" input_param { shape { %s } } } '
IMAGE = INPUT % "dim: 2 dim: 3 dim: 20 dim: 20"


def one_layer(text, inputs=IMAGE):
    summary = summarize(net_of(inputs + text))
    return next(layer for layer in summary.layers if layer.name == "x")


# Published: parameters without statistics, and multiply-adds per image in millions.
@pytest.mark.parametrize(
    ("name", "parameters", "millions"),
    [
        ("lenet", 431_080, 2.3),
        ("caffenet", 60_965_224, 724),
        ("vgg16", 138_357_544, 15_470),
        ("googlenet", 6_998_552, 1_582),
        ("squeezenet", 1_235_496, 388),
    ],
)
def test_published_nets(name, parameters, millions):
    summary = summarize(nets.NETS[name](batch=4))
    assert summary.parameters == parameters
    assert summary.multiply_adds / summary.batch / 1e6 == pytest.approx(millions, rel=5e-3)


def test_shapes_are_those_of_the_net():
    net = Net(nets.NETS["lenet"](batch=3))
    for layer in summarize(nets.NETS["lenet"](batch=3)).layers:
        assert layer.shapes == [net.blobs[top].shape for top in layer.tops]


def test_nothing_is_allocated_to_count():
    net = nets.NETS["vgg16"](batch=64)
    tracemalloc.start()
    summary = summarize(net)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert summary.parameter_memory > 500e6
    assert peak < 20e6


@pytest.mark.parametrize(
    ("layer", "multiply_adds"),
    [
        (
            'type: "Convolution" convolution_param { num_output: 6 kernel_size: 5 group: 3 }',
            2 * 6 * 16 * 16 * 25,
        ),
        (
            'type: "Deconvolution" convolution_param { num_output: 4 kernel_size: 2 stride: 2 }',
            2 * 3 * 20 * 20 * 4 * 4,
        ),
        ('type: "InnerProduct" inner_product_param { num_output: 7 }', 2 * 1200 * 7),
        ('type: "Pooling" pooling_param { kernel_size: 2 }', 0),
        ('type: "ReLU"', 0),
    ],
)
def test_multiply_adds(layer, multiply_adds):
    found = one_layer(f'layer {{ name: "x" bottom: "data" top: "x" {layer} }}')
    assert found.multiply_adds == multiply_adds


def test_multiply_adds_of_a_recurrent_layer():
    shapes = "dim: 5 dim: 2 dim: 7 } shape { dim: 5 dim: 2 } shape { dim: 2 dim: 4"
    inputs = (INPUT % shapes).replace('top: "data"', 'top: "data" top: "cont" top: "static"')
    found = one_layer(
        'layer { name: "x" type: "LSTM" bottom: "data" bottom: "cont" bottom: "static" top: "x" '
        "recurrent_param { num_output: 3 } }",
        inputs,
    )
    assert found.multiply_adds == 5 * 2 * 12 * (7 + 3) + 2 * 12 * 4


@pytest.mark.parametrize(
    ("layers", "field"),
    [
        ('type: "Convolution" convolution_param { num_output: 1 kernel_size: 3 dilation: 2 }', 5),
        ('type: "Pooling" pooling_param { kernel_size: 4 stride: 4 }', 4),
        ('type: "Pooling" pooling_param { global_pooling: true }', 20),
        ('type: "InnerProduct" inner_product_param { num_output: 1 }', 20),
        ('type: "LRN" lrn_param { norm_region: WITHIN_CHANNEL local_size: 7 }', 7),
        ('type: "LRN" lrn_param { local_size: 5 }', 1),
        ('type: "Flatten"', 1),
        ('type: "Interp" interp_param { zoom_factor: 2 }', 2),
        ('type: "Deconvolution" convolution_param { num_output: 1 kernel_size: 5 stride: 2 }', 3),
    ],
)
def test_receptive_field_of_a_layer(layers, field):
    found = one_layer(f'layer {{ name: "x" bottom: "data" top: "x" {layers} }}')
    assert found.receptive_field == (field, field)


def test_receptive_fields_behind_layers_that_rearrange():
    """A head of SSD: values without image axes still see their own part of the image."""
    summary = summarize(
        parse_text(
            INPUT % "dim: 2 dim: 3 dim: 20 dim: 20"
            + """
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 6 kernel_size: 3 stride: 2 } }
layer { name: "perm" type: "Permute" bottom: "conv" top: "perm"
  permute_param { order: 0 order: 2 order: 3 order: 1 } }
layer { name: "flat" type: "Flatten" bottom: "perm" top: "flat" }
layer { name: "rows" type: "Reshape" bottom: "flat" top: "rows"
  reshape_param { shape { dim: 0 dim: -1 dim: 3 } } }
layer { name: "soft" type: "Softmax" bottom: "rows" top: "soft" softmax_param { axis: 2 } }
layer { name: "again" type: "Flatten" bottom: "soft" top: "again" }
layer { name: "ip" type: "InnerProduct" bottom: "again" top: "ip"
  inner_product_param { num_output: 2 } }
layer { name: "prior" type: "PriorBox" bottom: "conv" bottom: "data" top: "prior"
  prior_box_param { min_size: 3 } }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" top: "mask"
  pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "up" type: "Upsample" bottom: "pool" bottom: "mask" top: "up"
  upsample_param { pad_out_h: 1 pad_out_w: 1 } }
layer { name: "conv2" type: "Convolution" bottom: "up" top: "conv2"
  convolution_param { num_output: 6 kernel_size: 3 } }
""",
            caffe_pb2.NetParameter(),
        )
    )
    found = {layer.name: layer.receptive_field for layer in summary.layers}
    assert {name: found[name] and found[name][0] for name in found} == {
        **dict.fromkeys(["conv", "perm", "flat", "rows", "soft", "again"], 3),
        "data": 1,
        "ip": 19,
        "prior": None,
        "pool": 5,
        "up": 5,
        "conv2": 9,
    }


def test_receptive_fields_of_a_published_net():
    fields = {
        layer.name: layer.receptive_field for layer in summarize(nets.NETS["caffenet"]()).layers
    }
    # As listed for AlexNet by Araujo et al., "Computing Receptive Fields of Convolutional
    # Neural Networks", Distill 2019: 11, 19, 51, 67, 99, 131, 163, 195.
    names = ("conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5")
    assert [fields[name] for name in names] == [
        (size, size) for size in (11, 19, 51, 67, 99, 131, 163, 195)
    ]


def test_shared_parameters_and_memory_count_once():
    summary = summarize(
        net_of(
            IMAGE
            + """
            layer { name: "a" type: "Scale" bottom: "data" top: "a" param { name: "w" } }
            layer { name: "b" type: "Scale" bottom: "data" top: "b" param { name: "w" } }
            layer { name: "relu" type: "ReLU" bottom: "b" top: "b" }
            layer { name: "flat" type: "Flatten" bottom: "b" top: "flat" }
            """
        )
    )
    count = 2 * 3 * 20 * 20
    rows = {each.name: each for each in summary.layers}
    assert (rows["a"].parameters, rows["a"].shared_parameters) == (3, 0)
    assert (rows["b"].parameters, rows["b"].shared_parameters) == (0, 3)
    assert rows["relu"].memory == rows["flat"].memory == 0
    assert summary.memory == 4 * 3 * count
    assert rows["b"].bottoms == ["data"]  # not the name of a Split's top
    assert summary.outputs == {"a": (2, 3, 20, 20), "flat": (2, 1200)}


DATA = """
layer { name: "data" type: "Data" top: "data" top: "label"
  transform_param { crop_size: 8 } data_param { source: "nowhere" batch_size: 5 } }
"""


def test_missing_data_are_assumed_or_given():
    summary = summarize(net_of(DATA))
    assert summary.inputs == {"data": (5, 3, 8, 8), "label": (5,)}
    assert len(summary.assumptions) == 1
    assert "assumed to be 5x3x8x8" in summary.assumptions[0]
    summary = summarize(net_of(DATA), shapes={"data": (2, 1, 9, 9)})
    assert summary.inputs == {"data": (2, 1, 9, 9), "label": (2,)}
    assert summary.assumptions == []


def test_missing_data_of_unknown_shape_are_an_error():
    with pytest.raises(NetError, match="nowhere"):
        summarize(net_of(DATA.replace("crop_size: 8", "")))
    with pytest.raises(UsageError, match="'dat' a shape; did you mean 'data'"):
        summarize(net_of(DATA), shapes={"dat": (1, 3, 8, 8)})


def test_phases_levels_and_stages():
    net = net_of(
        IMAGE
        + """
        layer { name: "deploy" type: "ReLU" bottom: "data" top: "y" include { stage: "deploy" } }
        layer { name: "train" type: "ReLU" bottom: "data" top: "y" include { phase: TRAIN } }
        layer { name: "high" type: "ReLU" bottom: "data" top: "z" include { min_level: 2 } }
        """
    )

    def names(**state):
        return [layer.name for layer in summarize(net, **state).layers[1:]]

    assert names(stages=["deploy"]) == ["deploy"]
    assert names(phase=caffe_pb2.TRAIN) == ["train"]
    assert names(level=2) == ["high"]


def test_a_file_for_hdf5_output_is_not_made(tmp_path):
    net = net_of(
        IMAGE
        + f"""layer {{ name: "save" type: "HDF5Output" bottom: "data" bottom: "data"
            hdf5_output_param {{ file_name: "{tmp_path / "out.h5"}" }} }}"""
    )
    summarize(net)
    assert not list(tmp_path.iterdir())


def test_as_dict_is_json():
    summary = summarize(nets.NETS["lenet"](batch=8))
    loaded = json.loads(json.dumps(summary.as_dict()))
    assert loaded["totals"]["parameters"] == 431_080
    assert loaded["totals"]["batch"] == 8
    assert loaded["layers"][1]["shapes"] == [[8, 20, 24, 24]]
