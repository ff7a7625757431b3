"""Loading weights into a net's parameters, by layer name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from protocaffe.blob import Blob
from protocaffe.errors import WeightsError
from protocaffe.proto import caffe_pb2
from protocaffe.proto.binary import blob_to_array, read_binary
from protocaffe.proto.upgrade import upgrade_net


def load_weights(
    source: str | Path | caffe_pb2.NetParameter, params: Mapping[str, Sequence[Blob]]
) -> None:
    """Copy the blobs of every layer whose name is in ``params``.

    Types and wiring in the file do not matter. Nothing is copied unless everything fits.

    Args:
        source: a ``.caffemodel`` file, or its message.
        params: the net's parameter blobs by layer name.

    Raises:
        FileError: the file is missing or damaged.
        WeightsError: a layer's number of blobs or a shape differs.
    """
    if isinstance(source, caffe_pb2.NetParameter):
        weights, path = source, "weights"
    else:
        weights, path = read_binary(source, caffe_pb2.NetParameter()), str(source)
        upgrade_net(weights, path)
    pairs: list[tuple[Blob, caffe_pb2.BlobProto, str]] = []
    for layer in weights.layer:
        targets = params.get(layer.name)
        if targets is None:
            continue
        if len(targets) != len(layer.blobs):
            raise WeightsError(
                f"{path}: layer '{layer.name}' has {len(layer.blobs)} blob(s) there but "
                f"{len(targets)} in the net; rename the layer in the prototxt to train it afresh"
            )
        for index, (target, proto) in enumerate(zip(targets, layer.blobs, strict=True)):
            _check_shape(path, layer.name, index, target.shape, _shape(proto))
            pairs.append((target, proto, f"{path}: layer '{layer.name}' blob {index}"))
    for target, proto, _ in pairs:
        target.data_storage.host_overwrite()[:] = blob_to_array(proto).ravel()


def _shape(proto: caffe_pb2.BlobProto) -> tuple[int, ...]:
    legacy = ("num", "channels", "height", "width")
    if any(proto.HasField(field) for field in legacy):
        return tuple(getattr(proto, field) for field in legacy)
    return tuple(proto.shape.dim)


def _check_shape(
    path: str, layer: str, index: int, wanted: tuple[int, ...], found: tuple[int, ...]
) -> None:
    """Accept equal shapes, and old 4-D ones padded with 1 at the front."""
    padded = (*[1] * (4 - len(wanted)), *wanted)
    if found == wanted or (len(found) == 4 and found == padded):
        return
    raise WeightsError(
        f"{path}: layer '{layer}' blob {index} has shape {found} ({math.prod(found)} values) "
        f"there but {wanted} ({math.prod(wanted)}) in the net; rename the layer in the prototxt "
        f"to train it afresh"
    )
