"""Fillers: the values that a learnable blob starts with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from protocaffe.blob import Array, Blob
from protocaffe.errors import did_you_mean
from protocaffe.proto.caffe_pb2 import FillerParameter

ErrorMaker = Callable[[str], Exception]
Filler = Callable[[FillerParameter, tuple[int, ...], "Random"], Array]


class Random:
    """A generator that draws in the blob's own precision."""

    def __init__(self, rng: np.random.Generator, dtype: np.dtype[Any]) -> None:
        self.rng = rng
        # NumPy draws these two types only.
        self.dtype = dtype if dtype in (np.float32, np.float64) else np.dtype(np.float64)

    def uniform(self, low: float, high: float, shape: tuple[int, ...]) -> Array:
        values = self.rng.random(shape, self.dtype)
        values *= self.dtype.type(high) - self.dtype.type(low)
        values += self.dtype.type(low)
        return values

    def gaussian(self, mean: float, std: float, shape: tuple[int, ...]) -> Array:
        values = self.rng.standard_normal(shape, self.dtype)
        values *= self.dtype.type(std)
        values += self.dtype.type(mean)
        return values


def fill(blob: Blob, filler: FillerParameter, rng: np.random.Generator, error: ErrorMaker) -> None:
    """Set ``blob.data`` by one of Caffe's seven fillers.

    ========================  =====================================================
    ``constant``              ``value`` (0)
    ``uniform``               U[``min`` (0), ``max`` (1)]
    ``gaussian``              N(``mean`` (0), ``std`` (1)); with ``sparse`` s, each value
                              is kept with probability s / shape[0] and 0 otherwise
    ``positive_unitball``     U[0, 1], each row divided by its sum
    ``xavier``                U[-a, a], a = sqrt(3 / n) (Glorot & Bengio, AISTATS 2010)
    ``msra``                  N(0, sqrt(2 / n)) (He et al., ICCV 2015)
    ``bilinear``              upsampling weights for a square kernel, 4 axes
    ========================  =====================================================

    n is fan_in = count / shape[0], fan_out = count / shape[1], or their mean, by
    ``variance_norm``.

    Args:
        blob: what to fill; its shape gives the fans.
        filler: the message of the prototxt.
        rng: where random values come from.
        error: makes the exception for an unknown or impossible filler.
    """
    check_filler(filler, blob.shape, error)
    if blob.count:
        host = blob.data_storage.host_overwrite().reshape(blob.shape)
        host[...] = _FILLERS[filler.type](filler, blob.shape, Random(rng, blob.dtype))


def check_filler(filler: FillerParameter, shape: tuple[int, ...], error: ErrorMaker) -> None:
    """Raise what ``error`` makes if there is no such filler or it cannot fill this shape."""
    check_type(filler, error)
    problem = _problem(filler, shape)
    if problem:
        raise error(f"{filler.type} filler: {problem}")


def check_type(filler: FillerParameter, error: ErrorMaker) -> None:
    """Refuse a filler of a type that does not exist, with an exception that ``error`` makes."""
    if filler.type not in _FILLERS:
        raise error(
            f"unknown filler '{filler.type}'{did_you_mean(filler.type, _FILLERS)} "
            f"(known fillers: {', '.join(_FILLERS)})"
        )


def _problem(filler: FillerParameter, shape: tuple[int, ...]) -> str | None:
    """Return what is wrong with the filler's settings for this shape."""
    if filler.sparse != -1:
        if filler.type != "gaussian":
            return "'sparse' works with the gaussian filler only"
        if not 0 <= filler.sparse <= (shape[0] if shape else 0):
            return (
                f"sparse must be between 0 and the first extent of shape {shape}, "
                f"got {filler.sparse}"
            )
    if filler.type == "uniform" and filler.min > filler.max:
        return f"min must not exceed max, got min {filler.min:g} and max {filler.max:g}"
    if filler.type == "gaussian" and filler.std < 0:
        return f"std must not be negative, got {filler.std:g}"
    if filler.type == "bilinear" and (len(shape) != 4 or shape[2] != shape[3]):
        return f"needs 4 axes and a square kernel, got shape {shape}"
    return None


def _fan(filler: FillerParameter, shape: tuple[int, ...]) -> float:
    count = math.prod(shape)
    fan_in = count / shape[0] if shape else count
    fan_out = count / shape[1] if len(shape) > 1 else count
    if filler.variance_norm == FillerParameter.FAN_OUT:
        return fan_out
    if filler.variance_norm == FillerParameter.AVERAGE:
        return (fan_in + fan_out) / 2
    return fan_in


def _constant(filler: FillerParameter, shape: tuple[int, ...], random: Random) -> Array:
    return np.full(shape, filler.value, random.dtype)


def _uniform(filler: FillerParameter, shape: tuple[int, ...], random: Random) -> Array:
    return random.uniform(filler.min, filler.max, shape)


def _gaussian(filler: FillerParameter, shape: tuple[int, ...], random: Random) -> Array:
    values = random.gaussian(filler.mean, filler.std, shape)
    if filler.sparse >= 0:
        values *= random.rng.random(shape, np.float32) < filler.sparse / shape[0]
    return values


def _positive_unitball(filler: FillerParameter, shape: tuple[int, ...], random: Random) -> Array:
    rows = random.uniform(0, 1, (shape[0] if shape else 1, math.prod(shape[1:])))
    rows /= rows.sum(axis=1, keepdims=True)
    return rows.reshape(shape)


def _xavier(filler: FillerParameter, shape: tuple[int, ...], random: Random) -> Array:
    limit = math.sqrt(3 / _fan(filler, shape))
    return random.uniform(-limit, limit, shape)


def _msra(filler: FillerParameter, shape: tuple[int, ...], random: Random) -> Array:
    return random.gaussian(0, math.sqrt(2 / _fan(filler, shape)), shape)


def _bilinear(filler: FillerParameter, shape: tuple[int, ...], random: Random) -> Array:
    kernel = shape[3]
    factor = math.ceil(kernel / 2)
    centre = (kernel - 1) / (2 * factor)
    tent = 1 - np.abs(np.arange(kernel) / factor - centre)
    return np.broadcast_to(np.outer(tent, tent).astype(random.dtype), shape)


_FILLERS: dict[str, Filler] = {
    "constant": _constant,
    "uniform": _uniform,
    "gaussian": _gaussian,
    "positive_unitball": _positive_unitball,
    "xavier": _xavier,
    "msra": _msra,
    "bilinear": _bilinear,
}
