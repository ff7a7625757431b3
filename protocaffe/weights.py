"""Loading weights into a net's parameters, by layer name, and saving them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from protocaffe.blob import Array, Blob, Storage
from protocaffe.errors import WeightsError
from protocaffe.layers import Layer
from protocaffe.log import log
from protocaffe.proto import caffe_pb2
from protocaffe.proto.binary import encode_blob
from protocaffe.proto.hdf5 import create_hdf5, reserve
from protocaffe.proto.stored import (
    StoredBlob,
    StoredLayer,
    message_layers,
    stored_layers,
)
from protocaffe.proto.wire import delimited

CHUNK = 1 << 16
"""Numbers that are copied and then looked at while they are in the cache."""

LAYER_NUMBER = caffe_pb2.NetParameter.DESCRIPTOR.fields_by_name["layer"].number
BLOBS_NUMBER = caffe_pb2.LayerParameter.DESCRIPTOR.fields_by_name["blobs"].number


@dataclass
class Matching:
    """Which layers of a file and of a net belong together, by name.

    Attributes:
        pairs: what is to be copied: name of the blob, where to, where from.
        loaded: names of the layers in both.
        left_out: names of layers with weights that the net does not have.
        fresh: names of the net's layers that the file does not have.
        refused: one sentence per layer that the file has with other blobs.
    """

    pairs: list[tuple[str, Storage, StoredBlob]] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def numbered(names: Iterable[str]) -> list[str]:
    """Tell names that occur again apart, as layers of one net may have one name: x, x (2), ..."""
    seen: Counter[str] = Counter()
    keys = []
    for name in names:
        seen[name] += 1
        keys.append(f"{name} ({seen[name]})" if seen[name] > 1 else name)
    return keys


def load_weights(
    source: str | Path | caffe_pb2.NetParameter,
    params: Mapping[str, Sequence[Blob]],
    hdf5: bool = False,
) -> None:
    """Copy the blobs of every layer whose name is in ``params``, and log what was loaded.

    Types and wiring in the file do not matter. Nothing is copied unless everything fits.

    Args:
        source: a ``.caffemodel`` or ``.caffemodel.h5`` file, or a message.
        params: the net's parameter blobs by layer name (see :func:`numbered`).
        hdf5: the file is HDF5 whatever its name.

    Raises:
        FileError: the file is missing or damaged.
        WeightsError: a layer's number of blobs or a shape differs.
    """
    path = "weights" if isinstance(source, caffe_pb2.NetParameter) else str(source)
    with _open(source, hdf5) as layers:
        matching = match_layers(layers, params)
        if matching.refused:
            raise WeightsError(
                "\n".join(f"{path}: {sentence}" for sentence in matching.refused)
                + "\nrename a layer in the prototxt to train it afresh"
            )
        for name, target, blob in matching.pairs:
            copy_blob(blob, target, f"{path}: {name}")
    log.info("Loaded the weights of %d layer(s) from %s", len(matching.loaded), path)
    if matching.left_out:
        log.info("    left out (not in this net): %s", ", ".join(matching.left_out))
    if matching.fresh:
        log.info("    fresh (not in the file): %s", ", ".join(matching.fresh))


def match_layers(layers: Sequence[StoredLayer], params: Mapping[str, Sequence[Blob]]) -> Matching:
    """Find out what of a file goes where."""
    matching = Matching()
    shared = _shared(params)
    names = numbered(layer.name for layer in layers)
    for name, layer in zip(names, layers, strict=True):
        layer = StoredLayer(name, layer.blobs)
        targets = params.get(name)
        if targets is None:
            if layer.blobs:
                matching.left_out.append(layer.name)
            continue
        layer = _reordered(layer, targets)
        refusal = _refusal(layer, targets, shared)
        if refusal:
            matching.refused.append(f"layer '{layer.name}' {refusal}")
            continue
        matching.loaded.append(layer.name)
        for place, blob in layer.blobs.items():
            label = f"layer '{layer.name}' blob {place}"
            matching.pairs.append((label, targets[place].data_storage, blob))
    matching.fresh = [name for name in params if name not in names]
    return matching


@contextmanager
def _open(source: str | Path | caffe_pb2.NetParameter, hdf5: bool) -> Iterator[list[StoredLayer]]:
    if isinstance(source, caffe_pb2.NetParameter):
        yield message_layers(source)
    else:
        with stored_layers(source, hdf5) as layers:
            yield layers


def _shared(params: Mapping[str, Sequence[Blob]]) -> set[tuple[str, int]]:
    """Return layer and place of the parameters that are another layer's before them."""
    owned: set[int] = set()
    shared = set()
    for name, blobs in params.items():
        for place, blob in enumerate(blobs):
            if id(blob.data_storage) in owned:
                shared.add((name, place))
            owned.add(id(blob.data_storage))
    return shared


def _reordered(layer: StoredLayer, targets: Sequence[Blob]) -> StoredLayer:
    """Bring a BatchNorm of NVIDIA's Caffe 0.15 into the order of later ones.

    It stored scale, bias, mean, variance and a number; later ones store mean, variance, number,
    scale, bias. Only the place of the number tells them apart.
    """
    channels = targets[0].count if targets else 0
    counts = [math.prod(blob.shape) for blob in layer.blobs.values()]
    later = [channels, channels, 1, channels, channels]
    if [blob.count for blob in targets] != later or counts != [*[channels] * 4, 1]:
        return layer
    order = (2, 3, 4, 0, 1)
    blobs = {place: layer.blobs[old] for place, old in enumerate(order)}
    return StoredLayer(layer.name, blobs)


def _refusal(layer: StoredLayer, targets: Sequence[Blob], shared: set[tuple[str, int]]) -> str:
    """Say why a layer's blobs do not fit; an empty string if they do."""
    missing = [i for i in range(len(targets)) if i not in layer.blobs]
    unknown = [i for i in layer.blobs if i >= len(targets)]
    if unknown or any((layer.name, i) not in shared for i in missing):
        what = f"has {len(layer.blobs)} blob(s) there but {len(targets)} in the net"
        return what + _nvidia_hint(layer, targets)
    for place, blob in layer.blobs.items():
        wanted = targets[place].shape
        if not _fits(blob.shape, wanted):
            return (
                f"blob {place} has shape {blob.shape} ({math.prod(blob.shape)} values) there "
                f"but {wanted} ({math.prod(wanted)}) in the net"
            )
    return ""


def _nvidia_hint(layer: StoredLayer, targets: Sequence[Blob]) -> str:
    """Say what to do about five blobs for a BatchNorm of three."""
    counts = [blob.count for blob in targets]
    if len(layer.blobs) != 5 or len(counts) != 3 or counts != [counts[0], counts[0], 1]:
        return ""
    return (
        "; a BatchNorm of NVIDIA's Caffe has a scale and a bias of its own: "
        "write batch_norm_param { scale_bias: true }"
    )


def _fits(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Accept equal shapes, old 4-D ones padded with 1 at the front, and vectors as vectors.

    A number per channel is (C) here and (1, C) or (1, C, 1, 1) there.
    """
    padded = (*[1] * (4 - len(wanted)), *wanted)
    vectors = all(sum(extent != 1 for extent in shape) <= 1 for shape in (found, wanted))
    return (
        found == wanted
        or (len(found) == 4 and found == padded)
        or (vectors and math.prod(found) == math.prod(wanted))
    )


def copy_blob(blob: StoredBlob, target: Storage, name: str) -> None:
    """Copy values in one pass over memory; warn if some are not finite."""
    values, out = blob.read().ravel(), target.host_overwrite()
    strange = 0
    with np.errstate(all="ignore"):
        for start in range(0, out.size, CHUNK):
            chunk = out[start : start + CHUNK]
            chunk[...] = values[start : start + CHUNK]
            if not math.isfinite(chunk.sum()):
                strange += np.count_nonzero(~np.isfinite(chunk))
    if strange:
        log.warning("%s has %d value(s) that are not finite numbers", name, strange)


def save_weights(
    path: str, name: str, layers: Sequence[Layer], *, hdf5: bool = False, diff: bool = False
) -> None:
    """Write a model file without copying the weights.

    Args:
        path: the file, which is overwritten.
        name: of the net.
        layers: with their settings and blobs.
        hdf5: write HDF5 instead of a binary ``NetParameter``.
        diff: also write the gradients.

    Raises:
        OSError: the file cannot be written.
    """
    if hdf5:
        _save_hdf5(path, layers, diff)
        return
    with open(path, "wb") as file:
        file.write(caffe_pb2.NetParameter(name=name).SerializeToString())
        for layer in layers:
            file.writelines(delimited(LAYER_NUMBER, *encode_layer(layer, diff)))


def encode_layer(layer: Layer, diff: bool) -> list[bytes | memoryview]:
    """Return the pieces of a layer's wire form: settings, then blobs."""
    settings = caffe_pb2.LayerParameter()
    settings.CopyFrom(layer.param)
    del settings.blobs[:]
    if not settings.loss_weight and any(layer.loss_weights):
        settings.loss_weight.extend(layer.loss_weights)  # Caffe writes its default down too
    pieces: list[bytes | memoryview] = [settings.SerializeToString()]
    for blob in layer.blobs:
        gradient = host_array(blob, blob.diff_storage) if diff else None
        encoded = encode_blob(host_array(blob, blob.data_storage), gradient)
        pieces += delimited(BLOBS_NUMBER, *encoded)
    return pieces


def host_array(blob: Blob, storage: Storage) -> Array:
    """Return one of a blob's two storages as an array that is only read."""
    return storage.host_read().reshape(blob.shape)


def _save_hdf5(path: str, layers: Sequence[Layer], diff: bool) -> None:
    """Write a model as Caffe does: shared data once, with their owner; gradients with everybody."""
    names = numbered(layer.name for layer in layers)
    shared = _shared({name: layer.blobs for name, layer in zip(names, layers, strict=True)})
    with create_hdf5(path) as file:
        blobs = [blob for layer in layers for blob in layer.blobs]
        reserve(file, (1 + diff) * sum(blob.count * blob.dtype.itemsize for blob in blobs))
        parts = [file.create_group("data")] + ([file.create_group("diff")] if diff else [])
        for name, layer in zip(names, layers, strict=True):
            groups = [part.require_group(name) for part in parts]
            for place, blob in enumerate(layer.blobs):
                if (name, place) not in shared:
                    groups[0][str(place)] = host_array(blob, blob.data_storage)
                if diff:
                    groups[1][str(place)] = host_array(blob, blob.diff_storage)
