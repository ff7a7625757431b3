"""Brings messages of earlier years to the current format, as Caffe's upgrade tools do.

A net goes through these steps, each only where the net needs it: V0 layers to V1, data
transformation fields to ``transform_param``, V1 layers to the current ones, ``input`` fields
to an Input layer, and the three parameter entries of BatchNorm.
"""

from __future__ import annotations

import logging
from itertools import zip_longest

from protocaffe.errors import NetError, SolverError
from protocaffe.proto.caffe_pb2 import (
    LayerParameter,
    NetParameter,
    ParamSpec,
    SolverParameter,
    V1LayerParameter,
)
from protocaffe.proto.upgrade_v0 import upgrade_v0_layers

log = logging.getLogger("protocaffe")

_V1 = V1LayerParameter
_TYPE_NAMES = {
    _V1.NONE: "",
    _V1.ABSVAL: "AbsVal",
    _V1.ACCURACY: "Accuracy",
    _V1.ARGMAX: "ArgMax",
    _V1.BNLL: "BNLL",
    _V1.CONCAT: "Concat",
    _V1.CONTRASTIVE_LOSS: "ContrastiveLoss",
    _V1.CONVOLUTION: "Convolution",
    _V1.DATA: "Data",
    _V1.DECONVOLUTION: "Deconvolution",
    _V1.DROPOUT: "Dropout",
    _V1.DUMMY_DATA: "DummyData",
    _V1.ELTWISE: "Eltwise",
    _V1.EUCLIDEAN_LOSS: "EuclideanLoss",
    _V1.EXP: "Exp",
    _V1.FLATTEN: "Flatten",
    _V1.HDF5_DATA: "HDF5Data",
    _V1.HDF5_OUTPUT: "HDF5Output",
    _V1.HINGE_LOSS: "HingeLoss",
    _V1.IM2COL: "Im2col",
    _V1.IMAGE_DATA: "ImageData",
    _V1.INFOGAIN_LOSS: "InfogainLoss",
    _V1.INNER_PRODUCT: "InnerProduct",
    _V1.LRN: "LRN",
    _V1.MEMORY_DATA: "MemoryData",
    _V1.MULTINOMIAL_LOGISTIC_LOSS: "MultinomialLogisticLoss",
    _V1.MVN: "MVN",
    _V1.POOLING: "Pooling",
    _V1.POWER: "Power",
    _V1.RELU: "ReLU",
    _V1.SIGMOID: "Sigmoid",
    _V1.SIGMOID_CROSS_ENTROPY_LOSS: "SigmoidCrossEntropyLoss",
    _V1.SILENCE: "Silence",
    _V1.SLICE: "Slice",
    _V1.SOFTMAX: "Softmax",
    _V1.SOFTMAX_LOSS: "SoftmaxWithLoss",
    _V1.SPLIT: "Split",
    _V1.TANH: "TanH",
    _V1.THRESHOLD: "Threshold",
    _V1.WINDOW_DATA: "WindowData",
}
_DATA_PARAMS = {
    _V1.DATA: "data_param",
    _V1.IMAGE_DATA: "image_data_param",
    _V1.WINDOW_DATA: "window_data_param",
}
_TRANSFORM_FIELDS = ("scale", "mean_file", "crop_size", "mirror")
_SPELLED_ANEW = ("layer", "type", "param", "blob_share_mode", "blobs_lr", "weight_decay")
_SOLVER_TYPES = {
    SolverParameter.SGD: "SGD",
    SolverParameter.NESTEROV: "Nesterov",
    SolverParameter.ADAGRAD: "AdaGrad",
    SolverParameter.RMSPROP: "RMSProp",
    SolverParameter.ADADELTA: "AdaDelta",
    SolverParameter.ADAM: "Adam",
}


def upgrade_net(net: NetParameter, path: str) -> list[str]:
    """Upgrade a net in place and return what was done, one sentence each, also logged.

    Args:
        net: as read from a text or binary file of any age.
        path: the file, for messages.

    Raises:
        NetError: the net mixes formats, or its old fields contradict each other.
    """
    if net.layers and net.layer:
        raise NetError(
            f"{path}: the net has both 'layer' and 'layers'; "
            f"'layers' is the old format, and a file has to keep to one of them"
        )
    notes: list[str] = []
    if any(layer.HasField("layer") for layer in net.layers):
        notes += upgrade_v0_layers(net, path)
    if net.layers:
        notes += _move_transform_fields(net)
        notes += _upgrade_v1_layers(net)
    if net.input:
        notes += _upgrade_input(net, path)
    notes += _freeze_batch_norm(net)
    notes = [f"{path}: {note}" for note in notes]
    for note in notes:
        log.info(note)
    return notes


def upgrade_solver(solver: SolverParameter, path: str) -> list[str]:
    """Upgrade a solver, and the nets written inside it, in place; return what was done.

    Raises:
        SolverError: the solver has both ``type`` and ``solver_type``.
        NetError: a net inside it cannot be upgraded.
    """
    notes: list[str] = []
    if solver.HasField("solver_type"):
        if solver.HasField("type"):
            raise SolverError(
                f"{path}: the solver has both 'type' and 'solver_type'; "
                f"'solver_type' is the old form, remove it"
            )
        solver.type = _SOLVER_TYPES[solver.solver_type]
        solver.ClearField("solver_type")
        note = f'{path}: solver_type became type: "{solver.type}"'
        log.info(note)
        notes.append(note)
    nets = list(solver.test_net_param)
    nets += [
        getattr(solver, field)
        for field in ("net_param", "train_net_param")
        if solver.HasField(field)
    ]
    for net in nets:
        notes += upgrade_net(net, path)
    return notes


def _move_transform_fields(net: NetParameter) -> list[str]:
    moved = False
    for layer in net.layers:
        if layer.type not in _DATA_PARAMS:
            continue
        param = getattr(layer, _DATA_PARAMS[layer.type])
        for field in _TRANSFORM_FIELDS:
            if param.HasField(field):
                setattr(layer.transform_param, field, getattr(param, field))
                param.ClearField(field)
                moved = True
    return ["moved the data layers' transformation fields to transform_param"] if moved else []


def _upgrade_v1_layers(net: NetParameter) -> list[str]:
    net.layer.extend(_from_v1(layer) for layer in net.layers)
    net.ClearField("layers")
    return [f"upgraded {len(net.layer)} layers from the V1 format"]


def _from_v1(old: V1LayerParameter) -> LayerParameter:
    copied = {
        field.name: value for field, value in old.ListFields() if field.name not in _SPELLED_ANEW
    }
    return LayerParameter(type=_TYPE_NAMES[old.type], param=_param_entries(old), **copied)


def _param_entries(old: V1LayerParameter) -> list[ParamSpec]:
    """Turn the parallel lists into one entry per parameter; the lists may differ in length."""
    return [
        ParamSpec(
            name=name,
            share_mode=None if mode is None else _V1.DimCheckMode.Name(mode),
            lr_mult=lr_mult,
            decay_mult=decay_mult,
        )
        for name, mode, lr_mult, decay_mult in zip_longest(
            old.param, old.blob_share_mode, old.blobs_lr, old.weight_decay
        )
    ]


def _upgrade_input(net: NetParameter, path: str) -> list[str]:
    count = len(net.input)
    if not net.input_shape and not net.input_dim:
        note = f"dropped {count} input fields that have no shape"
    else:
        layer = LayerParameter(name="input", type="Input", top=net.input)
        for dims in _input_dims(net, path):
            layer.input_param.shape.add(dim=dims)
        net.layer.insert(0, layer)
        note = f"turned {count} input fields into an Input layer"
    for field in ("input", "input_shape", "input_dim"):
        net.ClearField(field)
    return [note]


def _input_dims(net: NetParameter, path: str) -> list[list[int]]:
    count = len(net.input)
    if net.input_shape:
        if len(net.input_shape) < count:
            raise NetError(
                f"{path}: {count} inputs need {count} input_shape, got {len(net.input_shape)}"
            )
        return [list(shape.dim) for shape in net.input_shape[:count]]
    if len(net.input_dim) < 4 * count:
        raise NetError(
            f"{path}: {count} inputs need {4 * count} input_dim, four each, "
            f"got {len(net.input_dim)}"
        )
    return [list(net.input_dim[4 * i : 4 * i + 4]) for i in range(count)]


def _freeze_batch_norm(net: NetParameter) -> list[str]:
    """Set lr_mult and decay_mult to 0 where BatchNorm has its three entries.

    The blobs are statistics, but files of earlier versions gave them a rate.
    """
    notes = []
    for layer in net.layer:
        if layer.type != "BatchNorm" or len(layer.param) != 3:
            continue
        if any(spec.lr_mult or spec.decay_mult for spec in layer.param):
            notes.append(f"layer '{layer.name}': set lr_mult and decay_mult of BatchNorm to 0")
        for spec in layer.param:
            spec.lr_mult = spec.decay_mult = 0
    return notes
