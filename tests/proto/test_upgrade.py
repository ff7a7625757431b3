import logging
from pathlib import Path

import pytest

from protocaffe.errors import NetError, SolverError
from protocaffe.proto.binary import read_binary
from protocaffe.proto.caffe_pb2 import NetParameter, SolverParameter, V1LayerParameter
from protocaffe.proto.text import format_text, parse_text, read_net, read_solver
from protocaffe.proto.upgrade import upgrade_net, upgrade_solver

GOLDEN = Path(__file__).parents[1] / "golden" / "files"


def upgraded(text):
    net = parse_text(text, NetParameter())
    notes = upgrade_net(net, "old.prototxt")
    return net, notes


def refusal(text):
    with pytest.raises(NetError) as caught:
        upgraded(text)
    message = str(caught.value)
    assert message.startswith("old.prototxt: ")
    return message


@pytest.mark.parametrize(
    "case",
    [
        "batchnorm_three_params",
        "input_shape_new_layers",
        "v0_padding",
        "v1_classifier",
        "v1_input_dim",
    ],
)
def test_net_becomes_what_caffe_makes_of_it(case):
    net, _ = read_net(GOLDEN / case / "old.prototxt")
    assert format_text(net) == (GOLDEN / case / "upgraded.prototxt").read_text()
    assert upgrade_net(net, "current") == []


def test_solver_becomes_what_caffe_makes_of_it():
    folder = GOLDEN / "solver_adam"
    solver, _ = read_solver(folder / "old_solver.prototxt")
    assert format_text(solver) == (folder / "upgraded_solver.prototxt").read_text()
    assert upgrade_solver(solver, "current") == []


@pytest.mark.parametrize("case", ["model_current", "model_v1_legacy_shapes"])
def test_model_becomes_what_caffe_makes_of_it(case):
    net = read_binary(GOLDEN / case / "model.caffemodel", NetParameter())
    upgrade_net(net, "model")
    assert net == read_binary(GOLDEN / case / "upgraded.caffemodel", NetParameter())


def test_what_was_done_is_told_and_logged(caplog):
    caplog.set_level(logging.INFO, "protocaffe")
    _, notes = upgraded(
        'input: "x" input_dim: [1, 2, 3, 4]'
        "layers { layer { name: 'd' type: 'data' cropsize: 3 group: 2 } }"
        "layers { layer { name: 'r' type: 'relu' } }"
    )
    assert notes == [
        "old.prototxt: upgraded 2 layers from the V0 format",
        "old.prototxt: layer 'd': dropped group, which type 'data' lacks",
        "old.prototxt: upgraded 2 layers from the V1 format",
        "old.prototxt: turned 1 input fields into an Input layer",
    ]
    assert caplog.messages == notes


def test_every_v1_type_has_a_current_name():
    for value in V1LayerParameter.LayerType.values():
        net = NetParameter(layers=[{"type": value}])
        upgrade_net(net, "n")
        name = V1LayerParameter.LayerType.Name(value)
        expected = {"NONE": "", "SOFTMAX_LOSS": "softmaxwithloss"}.get(
            name, name.replace("_", "").lower()
        )
        assert net.layer[0].type.lower() == expected


def test_parallel_lists_may_differ_in_length():
    net, _ = upgraded(
        "layers { param: 'w' blobs_lr: [1, 2] weight_decay: [3, 4, 5] blob_share_mode: PERMISSIVE }"
    )
    expected = parse_text(
        "layer { type: '' param { name: 'w' lr_mult: 1 decay_mult: 3 share_mode: PERMISSIVE }"
        " param { lr_mult: 2 decay_mult: 4 } param { decay_mult: 5 } }",
        NetParameter(),
    )
    assert net == expected


def test_v0_fields_move_to_typed_messages():
    net, _ = upgraded(
        """
        layers { top: 'x' layer { name: 'w' type: 'window_data' source: 's' batchsize: 2 scale: 3
          meanfile: 'm' cropsize: 4 mirror: true det_fg_threshold: 0.1 det_bg_threshold: 0.2
          det_fg_fraction: 0.3 det_context_pad: 5 det_crop_mode: 'square' } }
        layers { top: 'y' layer { name: 'i' type: 'images' source: 's' batchsize: 2 rand_skip: 3
          shuffle_images: true new_height: 4 new_width: 5 } }
        layers { bottom: 'x' bottom: 'y' top: 'z' layer { name: 'c' type: 'concat' concat_dim: 0 } }
        layers { bottom: 'z' layer { name: 'h' type: 'hdf5_output'
          hdf5_output_param { file_name: 'f' } } }
        """
    )
    expected = parse_text(
        """
        layer { name: 'w' type: 'WindowData' top: 'x'
          window_data_param { source: 's' batch_size: 2 fg_threshold: 0.1 bg_threshold: 0.2
            fg_fraction: 0.3 context_pad: 5 crop_mode: 'square' }
          transform_param { scale: 3 mean_file: 'm' crop_size: 4 mirror: true } }
        layer { name: 'i' type: 'ImageData' top: 'y'
          image_data_param { source: 's' batch_size: 2 rand_skip: 3 shuffle: true new_height: 4
            new_width: 5 } }
        layer { name: 'c' type: 'Concat' bottom: 'x' bottom: 'y' top: 'z'
          concat_param { concat_dim: 0 } }
        layer { name: 'h' type: 'HDF5Output' bottom: 'z' hdf5_output_param { file_name: 'f' } }
        """,
        NetParameter(),
    )
    assert net == expected


def test_v0_padding_goes_into_pooling_too():
    net, _ = upgraded(
        "layers { bottom: 'x' top: 'p' layer { name: 'p' type: 'padding' pad: 1 } }"
        "layers { bottom: 'p' top: 'y' layer { name: 'y' type: 'pool' kernelsize: 3 } }"
    )
    (layer,) = net.layer
    assert (layer.bottom, layer.pooling_param.pad) == (["x"], 1)


def test_v0_blobs_and_their_rates_stay():
    net, _ = upgraded(
        "layers { layer { type: 'conv' num_output: 1 kernelsize: 1 stride: 2 "
        "blobs { num: 1 channels: 1 height: 1 width: 1 data: 5 } blobs_lr: 2 } }"
    )
    assert list(net.layer[0].blobs[0].data) == [5]
    assert net.layer[0].param[0].lr_mult == 2
    assert net.layer[0].convolution_param.stride == [2]


def test_v0_keeps_only_some_fields_of_the_net():
    net, _ = upgraded("name: 'n' force_backward: true debug_info: true layers { layer {} }")
    assert net == NetParameter(name="n", force_backward=True, layer=[{"type": ""}])


def test_transform_fields_move_only_in_v1_data_layers():
    new = "layer { type: 'Data' data_param { scale: 2 } }"
    assert upgraded(new) == (parse_text(new, NetParameter()), [])
    net, _ = upgraded("layers { type: IMAGE_DATA image_data_param { crop_size: 2 mirror: false } }")
    transform = net.layer[0].transform_param
    assert (transform.crop_size, transform.HasField("mirror")) == (2, True)
    assert not net.layer[0].image_data_param.ListFields()


def test_input_fields():
    net, _ = upgraded("input: ['a', 'b'] input_dim: [1, 2, 3, 4, 5, 6, 7, 8] layer { name: 'l' }")
    assert [layer.name for layer in net.layer] == ["input", "l"]
    assert [list(shape.dim) for shape in net.layer[0].input_param.shape] == [
        [1, 2, 3, 4],
        [5, 6, 7, 8],
    ]
    net, notes = upgraded("input: 'a' layer { name: 'l' }")
    assert net == NetParameter(layer=[{"name": "l"}])
    assert "have no shape" in notes[0]


def test_batch_norm_with_fewer_entries_is_left_alone():
    text = "layer { type: 'BatchNorm' param { lr_mult: 1 } param { lr_mult: 1 } }"
    assert upgraded(text)[0] == parse_text(text, NetParameter())


def test_mixed_formats_are_refused():
    assert "both 'layer' and 'layers'" in refusal("layer { } layers { }")
    assert "layer 'b' is of the V1 format" in refusal(
        "layers { layer { name: 'a' } } layers { name: 'b' }"
    )


def test_contradictions_are_refused():
    assert "unknown V0 layer type 'convv'; did you mean 'conv'?" in refusal(
        "layers { layer { name: 'a' type: 'convv' } }"
    )
    assert "padding layer 'p' needs one bottom and a conv or pool layer" in refusal(
        "layers { bottom: 'x' top: 'p' layer { name: 'p' type: 'padding' } }"
        "layers { bottom: 'p' top: 'y' layer { name: 'y' type: 'relu' } }"
    )
    assert "2 inputs need 8 input_dim, four each, got 4" in refusal(
        "input: ['a', 'b'] input_dim: [1, 2, 3, 4]"
    )
    assert "2 inputs need 2 input_shape, got 1" in refusal("input: ['a', 'b'] input_shape { }")


def test_solver_with_both_types_is_refused():
    solver = SolverParameter(type="SGD", solver_type=SolverParameter.ADAM)
    with pytest.raises(SolverError, match=r"s\.prototxt: .* both 'type' and 'solver_type'"):
        upgrade_solver(solver, "s.prototxt")


def test_nets_inside_a_solver_are_upgraded():
    old, new = {"layers": [{"type": "RELU"}]}, NetParameter(layer=[{"type": "ReLU"}])
    solver = SolverParameter(net_param=old, train_net_param=old, test_net_param=[old])
    assert len(upgrade_solver(solver, "s.prototxt")) == 3
    assert [solver.net_param, solver.train_net_param, *solver.test_net_param] == [new] * 3
