"""Weights and solver states as they stand in files, binary or HDF5.

Binary models are read through a skeleton: a layer's name and its blobs, whose field numbers are
the same in all forks of Caffe. All other fields clash between forks and do not matter here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from protocaffe.errors import FileError
from protocaffe.proto.binary import damaged, decode_blob, other_kind, read_content
from protocaffe.proto.caffe_pb2 import NetParameter
from protocaffe.proto.files import StrPath
from protocaffe.proto.hdf5 import check_size, open_hdf5, plain_errors
from protocaffe.proto.wire import DELIMITED, VARINT, DamagedError, fields, varint

Array = npt.NDArray[Any]

HDF5_SUFFIX = ".h5"


@dataclass
class StoredBlob:
    """An array in a file.

    Attributes:
        shape: its shape there.
        read: returns its values in that shape.
    """

    shape: tuple[int, ...]
    read: Callable[[], Array]


@dataclass
class StoredLayer:
    """A layer's blobs in a file.

    Attributes:
        name: the layer's name.
        blobs: by their place in the layer; HDF5 files leave out shared ones.
    """

    name: str
    blobs: dict[int, StoredBlob]


@dataclass
class StoredState:
    """A solver state in a file; see ``SolverState`` in caffe.proto."""

    iter: int
    learned_net: str
    current_step: int
    history: list[StoredBlob]


def is_hdf5(path: StrPath) -> bool:
    """Whether a file's name says that it is an HDF5 file."""
    return str(path).endswith(HDF5_SUFFIX)


@contextmanager
def stored_layers(path: StrPath, hdf5: bool = False) -> Iterator[list[StoredLayer]]:
    """Open a model file; its blobs can be read within the with block.

    Args:
        path: the file; HDF5 if its name ends in ``.h5``.
        hdf5: HDF5 whatever its name.

    Raises:
        FileError: the file is missing, damaged, of another kind, or has no layers.
    """
    if hdf5 or is_hdf5(path):
        with open_hdf5(path) as file:
            yield _hdf5_layers(file, path)
    else:
        yield _binary_layers(path)


@contextmanager
def stored_state(path: StrPath) -> Iterator[StoredState]:
    """Open a solver state; its blobs can be read within the with block.

    Raises:
        FileError: the file is missing, damaged or of another kind.
    """
    if is_hdf5(path):
        with open_hdf5(path) as file:
            yield _hdf5_state(file, path)
    else:
        yield _binary_state(path)


def message_layers(net: NetParameter) -> list[StoredLayer]:
    """Return the layers of a message, which may be of an old format.

    Raises:
        FileError: a blob does not hold as many values as its shape has.
    """
    return _parsed_layers(net.SerializePartialToString(), "weights")


# -- binary ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Numbers:
    """The field numbers of what matters in one generation of layer messages."""

    name: int
    blobs: int
    inner: Numbers | None = None
    """V0 files have a layer within every V1 layer, in field 1."""


CURRENT = Numbers(name=1, blobs=7)
V1 = Numbers(name=4, blobs=6, inner=Numbers(name=1, blobs=50))
LAYER_FIELDS = {100: CURRENT, 2: V1}
"""Where a NetParameter has layers, and of which generation they are."""


def _binary_layers(path: StrPath) -> list[StoredLayer]:
    content = read_content(path, "NetParameter")
    layers = _parsed_layers(content, path)
    if not layers:
        raise other_kind(path, "NetParameter")
    return layers


def _parsed_layers(content: bytes, path: StrPath) -> list[StoredLayer]:
    layers = []
    try:
        for number, kind, value in fields(memoryview(content)):
            if number == 1 and kind != DELIMITED:
                raise other_kind(path, "NetParameter")
            if number in LAYER_FIELDS and kind == DELIMITED:
                layers.append(_skeleton(value, path, LAYER_FIELDS[number]))
    except DamagedError:
        raise damaged(path, "NetParameter", content) from None
    return layers


def _skeleton(data: memoryview, path: StrPath, numbers: Numbers) -> StoredLayer:
    """Return a layer's name and blobs."""
    layer = StoredLayer("", {})
    blobs: list[memoryview] = []
    for number, kind, value in fields(data):
        if kind != DELIMITED:
            continue
        if number == numbers.name:
            layer.name = bytes(value).decode("utf-8", "replace")
        elif number == numbers.blobs:
            blobs.append(value)
        elif number == 1 and numbers.inner:
            layer = _skeleton(value, path, numbers.inner)
    for value in blobs:
        place = len(layer.blobs)
        layer.blobs[place] = _decoded(value, f"{path}: layer '{layer.name}' blob {place}")
    return layer


def _decoded(data: memoryview, name: str) -> StoredBlob:
    try:
        array = decode_blob(data)
    except FileError as error:
        raise FileError(f"{name}: {error}") from None
    return StoredBlob(array.shape, lambda: array)


def _binary_state(path: StrPath) -> StoredState:
    kind = "SolverState"
    content = read_content(path, kind)
    state = StoredState(0, "", 0, [])
    try:
        for number, wire_type, value in fields(memoryview(content)):
            if STATE_KINDS.get(number, wire_type) != wire_type:
                raise other_kind(path, kind)
            if number == 1:
                state.iter = varint(value)[0]
            elif number == 2:
                state.learned_net = bytes(value).decode("utf-8", "replace")
            elif number == 3:
                name = f"{path}: history blob {len(state.history)}"
                state.history.append(_decoded(value, name))
            elif number == 4:
                state.current_step = varint(value)[0]
    except DamagedError:
        raise damaged(path, kind, content) from None
    return _checked_state(state, path)


STATE_KINDS = {1: VARINT, 2: DELIMITED, 3: DELIMITED, 4: VARINT}
"""Wire types of the fields of a SolverState."""


def _checked_state(state: StoredState, path: StrPath) -> StoredState:
    if not state.learned_net:
        raise FileError(f"{path}: names no model; the file is damaged or of another kind")
    if not 0 <= state.iter < 2**31 or not 0 <= state.current_step < 2**31:
        raise FileError(f"{path}: has an impossible iteration; the file is damaged")
    return state


# -- HDF5 --------------------------------------------------------------------------------


def _hdf5_layers(file: Any, path: StrPath) -> list[StoredLayer]:
    import h5py

    layers: list[StoredLayer] = []

    def collect(name: str, item: Any) -> None:
        if isinstance(item, h5py.Group):
            layers.append(StoredLayer(name, _numbered(item, path)))

    data = file.get("data")
    if not isinstance(data, h5py.Group):
        raise FileError(f"{path}: expected a model with a group 'data', got another HDF5 file")
    with plain_errors(path):
        data.visititems(collect)
    return layers


def _hdf5_state(file: Any, path: StrPath) -> StoredState:
    with plain_errors(path):
        try:
            name = file["learned_net"][()]
            history = _numbered(file["history"], path)
            state = StoredState(
                int(file["iter"][0]),
                bytes(name).split(b"\0")[0].decode("utf-8", "replace"),
                int(file["current_step"][0]),
                [history[place] for place in range(len(history))],
            )
        except (KeyError, TypeError, ValueError, IndexError):
            raise FileError(
                f"{path}: expected a solver state with iter, current_step, learned_net and "
                f"history, got another HDF5 file"
            ) from None
    return _checked_state(state, path)


def _numbered(group: Any, path: StrPath) -> dict[int, StoredBlob]:
    """Return a group's data sets 0, 1, ... by number."""
    import h5py

    found = {}
    for name, item in group.items():
        if isinstance(item, h5py.Dataset) and name.isdecimal() and item.dtype.kind in "fiu":
            found[int(name)] = StoredBlob(tuple(item.shape), _reader(item, path))
    return dict(sorted(found.items()))


def _reader(dataset: Any, path: StrPath) -> Callable[[], Array]:
    def read() -> Array:
        with plain_errors(path):
            check_size(dataset, path)
            return np.asarray(dataset[...])

    return read
