"""Upgrades the oldest format, in which one flat message served every layer type."""

from __future__ import annotations

from typing import Any

from protocaffe.errors import NetError, did_you_mean
from protocaffe.proto.caffe_pb2 import NetParameter, V0LayerParameter, V1LayerParameter

_V1 = V1LayerParameter
_TYPES = {
    "accuracy": _V1.ACCURACY,
    "bnll": _V1.BNLL,
    "concat": _V1.CONCAT,
    "conv": _V1.CONVOLUTION,
    "data": _V1.DATA,
    "dropout": _V1.DROPOUT,
    "euclidean_loss": _V1.EUCLIDEAN_LOSS,
    "flatten": _V1.FLATTEN,
    "hdf5_data": _V1.HDF5_DATA,
    "hdf5_output": _V1.HDF5_OUTPUT,
    "im2col": _V1.IM2COL,
    "images": _V1.IMAGE_DATA,
    "infogain_loss": _V1.INFOGAIN_LOSS,
    "innerproduct": _V1.INNER_PRODUCT,
    "lrn": _V1.LRN,
    "multinomial_logistic_loss": _V1.MULTINOMIAL_LOGISTIC_LOSS,
    "pool": _V1.POOLING,
    "relu": _V1.RELU,
    "sigmoid": _V1.SIGMOID,
    "softmax": _V1.SOFTMAX,
    "softmax_loss": _V1.SOFTMAX_LOSS,
    "split": _V1.SPLIT,
    "tanh": _V1.TANH,
    "window_data": _V1.WINDOW_DATA,
}

# What became of each flat field: its new name, and for each layer type that has it, the message.
_CONV, _POOL, _FC = "convolution_param", "pooling_param", "inner_product_param"
_WINDOW = "window_data_param"
_SOURCES = {
    "data": "data_param",
    "hdf5_data": "hdf5_data_param",
    "images": "image_data_param",
    "window_data": _WINDOW,
}
_MOVES: dict[str, tuple[str, dict[str, str]]] = {
    "num_output": ("num_output", {"conv": _CONV, "innerproduct": _FC}),
    "biasterm": ("bias_term", {"conv": _CONV, "innerproduct": _FC}),
    "weight_filler": ("weight_filler", {"conv": _CONV, "innerproduct": _FC}),
    "bias_filler": ("bias_filler", {"conv": _CONV, "innerproduct": _FC}),
    "pad": ("pad", {"conv": _CONV, "pool": _POOL}),
    "kernelsize": ("kernel_size", {"conv": _CONV, "pool": _POOL}),
    "group": ("group", {"conv": _CONV}),
    "stride": ("stride", {"conv": _CONV, "pool": _POOL}),
    "pool": ("pool", {"pool": _POOL}),
    "dropout_ratio": ("dropout_ratio", {"dropout": "dropout_param"}),
    "local_size": ("local_size", {"lrn": "lrn_param"}),
    "alpha": ("alpha", {"lrn": "lrn_param"}),
    "beta": ("beta", {"lrn": "lrn_param"}),
    "k": ("k", {"lrn": "lrn_param"}),
    "source": ("source", {**_SOURCES, "infogain_loss": "infogain_loss_param"}),
    "batchsize": ("batch_size", _SOURCES),
    "rand_skip": ("rand_skip", {"data": "data_param", "images": "image_data_param"}),
    "shuffle_images": ("shuffle", {"images": "image_data_param"}),
    "new_height": ("new_height", {"images": "image_data_param"}),
    "new_width": ("new_width", {"images": "image_data_param"}),
    "concat_dim": ("concat_dim", {"concat": "concat_param"}),
    "det_fg_threshold": ("fg_threshold", {"window_data": _WINDOW}),
    "det_bg_threshold": ("bg_threshold", {"window_data": _WINDOW}),
    "det_fg_fraction": ("fg_fraction", {"window_data": _WINDOW}),
    "det_context_pad": ("context_pad", {"window_data": _WINDOW}),
    "det_crop_mode": ("crop_mode", {"window_data": _WINDOW}),
}
_TRANSFORM_FIELDS = {
    "scale": "scale",
    "meanfile": "mean_file",
    "cropsize": "crop_size",
    "mirror": "mirror",
}
_KEPT = ("name", "blobs", "blobs_lr", "weight_decay")
_CONV_LISTS = ("pad", "kernel_size", "stride")


def upgrade_v0_layers(net: NetParameter, path: str) -> list[str]:
    """Turn the net's V0 layers into V1 layers in place and return what was done.

    Padding layers disappear into the convolution or pooling that reads them. Only name, input,
    input_dim and force_backward survive beside the layers, as in Caffe.

    Raises:
        NetError: the file mixes V0 and V1 layers, a layer type is unknown, or a padding layer
            is read by something else.
    """
    for layer in net.layers:
        if not layer.HasField("layer"):
            raise NetError(
                f"{path}: layer '{layer.name}' is of the V1 format, others are V0 "
                f"('layers {{ layer {{ ... }} }}'); a file has to keep to one of them"
            )
    notes = [f"upgraded {len(net.layers)} layers from the V0 format"]
    layers = [_to_v1(layer, path, notes) for layer in _without_padding(net, path)]
    for field, _ in net.ListFields():
        if field.name not in ("name", "input", "input_dim", "force_backward"):
            net.ClearField(field.name)
    net.layers.extend(layers)
    return notes


def _without_padding(net: NetParameter, path: str) -> list[V1LayerParameter]:
    """Return the layers without those of type padding, whose pad their readers take over."""
    kept: list[V1LayerParameter] = []
    writer: dict[str, V1LayerParameter] = {}
    for layer in net.layers:
        if layer.layer.type != "padding":
            kept.append(layer)
        for i, bottom in enumerate(layer.bottom):
            source = writer.get(bottom)
            if source is None or source.layer.type != "padding":
                continue
            if layer.layer.type not in ("conv", "pool") or len(source.bottom) != 1:
                raise NetError(
                    f"{path}: padding layer '{source.layer.name}' needs one bottom and a conv or "
                    f"pool layer as its reader; '{layer.layer.name}' is of type "
                    f"'{layer.layer.type}'"
                )
            layer.layer.pad = source.layer.pad
            layer.bottom[i] = source.bottom[0]
        writer.update(dict.fromkeys(layer.top, layer))
    return kept


def _to_v1(connection: V1LayerParameter, path: str, notes: list[str]) -> V1LayerParameter:
    old = connection.layer
    if old.HasField("type") and old.type not in _TYPES:
        raise NetError(
            f"{path}: layer '{old.name}': unknown V0 layer type '{old.type}'"
            f"{did_you_mean(old.type, _TYPES)}"
        )
    fields, dropped = _typed_fields(old)
    if dropped:
        notes.append(
            f"layer '{old.name}': dropped {', '.join(dropped)}, which type '{old.type}' lacks"
        )
    new = V1LayerParameter(bottom=connection.bottom, top=connection.top, **fields)
    if old.HasField("type"):
        new.type = _TYPES[old.type]
    return new


def _typed_fields(old: V0LayerParameter) -> tuple[dict[str, Any], list[str]]:
    """Return the flat fields as those of a V1 layer, and the names of those it cannot have."""
    fields: dict[str, Any] = {}
    dropped = []
    for field, value in old.ListFields():
        name, places = _MOVES.get(field.name, ("", {}))
        if field.name in _KEPT:
            fields[field.name] = value
        elif field.name in _TRANSFORM_FIELDS:
            fields.setdefault("transform_param", {})[_TRANSFORM_FIELDS[field.name]] = value
        elif old.type in places:
            is_list = old.type == "conv" and name in _CONV_LISTS
            fields.setdefault(places[old.type], {})[name] = [value] if is_list else value
        elif field.name == "hdf5_output_param" and old.type == "hdf5_output":
            fields[field.name] = value
        elif field.name != "type":
            dropped.append(field.name)
    return fields, dropped
