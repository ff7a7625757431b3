"""What ``debug_info: true`` logs: mean absolute values of blobs, parameters and updates.

A net that diverges, or does not learn, shows here which layer does it.

An engine may run a layer that works in place together with the one below; the blob then shows what
both made of it in the lines of both.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from protocaffe.blob import Array, Blob, Storage
from protocaffe.layers import Layer
from protocaffe.log import log, number


def log_forward(layer: Layer, top_names: Sequence[str], tops: Sequence[Blob]) -> None:
    """Log a layer's outputs and parameters."""
    for name, blob in zip(top_names, tops, strict=True):
        mean = _mean(blob.data_storage)
        log.info("    [Forward] Layer %s, top blob %s data: %s", layer.name, name, mean)
    specs = layer.param.param
    for index, blob in enumerate(layer.blobs):
        name = (specs[index].name if index < len(specs) else "") or str(index)
        mean = _mean(blob.data_storage)
        log.info("    [Forward] Layer %s, param blob %s data: %s", layer.name, name, mean)


def log_backward(
    layer: Layer, bottom_names: Sequence[str], bottoms: Sequence[Blob], wanted: Sequence[bool]
) -> None:
    """Log the gradients that a layer computed."""
    for name, blob, want in zip(bottom_names, bottoms, wanted, strict=True):
        if want:
            mean = _mean(blob.diff_storage)
            log.info("    [Backward] Layer %s, bottom blob %s diff: %s", layer.name, name, mean)
    for index, (blob, want) in enumerate(zip(layer.blobs, layer.param_propagate_down, strict=True)):
        if want:
            mean = _mean(blob.diff_storage)
            log.info("    [Backward] Layer %s, param blob %d diff: %s", layer.name, index, mean)


def log_norms(params: Sequence[Blob]) -> None:
    """Log the norms of all parameters together, and of their gradients."""
    storages = [[blob.data_storage for blob in params], [blob.diff_storage for blob in params]]
    l1 = [number(sum(abs(_values(each)).sum() for each in part)) for part in storages]
    l2 = [number(np.sqrt(sum((_values(each) ** 2).sum() for each in part))) for part in storages]
    log.error(  # Caffe's level for this line
        "    [Backward] All net params (data, diff): L1 norm = (%s, %s); L2 norm = (%s, %s)",
        *(*l1, *l2),
    )


def log_update(layer: str, param: str, before: Array, after: Array) -> None:
    """Log a parameter as it was before its update, and what the update changed it by."""
    log.info(
        "    [Update] Layer %s, param %s data: %s; diff: %s",
        *(layer, param, number(_mean_of(before)), number(_mean_of(before - after))),
    )


def _mean(storage: Storage) -> str:
    return number(_mean_of(_values(storage)))


def _mean_of(values: Array) -> float:
    return float(abs(values).mean()) if values.size else 0.0


def _values(storage: Storage) -> Array:
    return np.asarray(storage.host_read(), np.float64)  # a sum of squares may pass float32
