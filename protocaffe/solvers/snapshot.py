"""Solver snapshots: a model, the ``.solverstate`` beside it, and what Caffe forgets.

A snapshot is three files. ``PREFIX_iter_N.caffemodel`` and ``.solverstate`` are Caffe's;
``.solverstate.resume`` has what a resumed run needs to be the run it would have been: random
states, data positions, the losses that are averaged. It also knows the digests of the other two,
so that files of different snapshots are never taken for one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from protocaffe.blob import Blob
from protocaffe.errors import FileError, ProtocaffeError, SolverError, WeightsError
from protocaffe.log import log
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.binary import encode_blob
from protocaffe.proto.files import read_bytes, replacing
from protocaffe.proto.hdf5 import create_hdf5, reserve
from protocaffe.proto.stored import StoredState, is_hdf5, stored_layers, stored_state
from protocaffe.proto.wire import delimited
from protocaffe.weights import copy_blob, host_array, save_weights

HISTORY_NUMBER = caffe_pb2.SolverState.DESCRIPTOR.fields_by_name["history"].number

LEFTOVER = re.compile(r"\..+_iter_\d+\.(caffemodel|solverstate).*\.[0-9a-f]{8}\.tmp")
"""Temporary files of :func:`~protocaffe.proto.files.replacing` for the files of a snapshot."""


@dataclass(frozen=True)
class SnapshotPaths:
    """Where the files of one snapshot are."""

    model: str
    state: str

    @classmethod
    def of(cls, prefix: str, iteration: int, hdf5: bool) -> SnapshotPaths:
        """Return Caffe's names for the snapshot of an iteration."""
        stem, ending = f"{prefix}_iter_{iteration}", ".h5" if hdf5 else ""
        return cls(f"{stem}.caffemodel{ending}", f"{stem}.solverstate{ending}")

    @property
    def resume(self) -> str:
        """What belongs to the state but has no place in Caffe's file."""
        return f"{self.state}.resume"


def snapshot_prefix(param: caffe_pb2.SolverParameter, solver_path: str) -> str:
    """Return where snapshots go: ``snapshot_prefix``, or after the solver file's name.

    A prefix that is a folder gets the solver file's stem added.
    """
    stem = Path(solver_path).stem if solver_path else "snapshot"
    prefix: str = param.snapshot_prefix
    if not prefix:
        return str(Path(solver_path).with_suffix("")) if solver_path else stem
    return str(Path(prefix) / stem) if Path(prefix).is_dir() else prefix


def check_writable(prefix: str) -> None:
    """Refuse a snapshot prefix that cannot be written, before any training is done.

    Raises:
        SolverError: the folder is missing or not writable.
    """
    probe = Path(f"{prefix}.writable.tmp")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        create = "" if probe.parent.is_dir() else f"create the folder '{probe.parent}' or "
        raise SolverError(
            f"cannot write snapshots to '{prefix}*': {error.strerror}; {create}change "
            f"snapshot_prefix"
        ) from None


def write_snapshot(
    paths: SnapshotPaths,
    net: Net,
    state: caffe_pb2.SolverState,
    history: Sequence[Blob],
    memory: dict[str, Any],
    *,
    diff: bool = False,
) -> None:
    """Write all files of a snapshot, all or nothing.

    Args:
        paths: where to.
        net: whose weights to write.
        state: iteration, model and step; its history is not looked at.
        history: the update rule's.
        memory: JSON values for :func:`read_memory`.
        diff: also write the net's gradients.

    Raises:
        FileError: one of them cannot be written; what was there before is there still.
    """
    hdf5 = is_hdf5(paths.state)
    # Each replaces an older file of its name in turn. The digests come first, so that whoever
    # reads after a break between two of them sees that they do not belong together.
    with replacing(paths.resume, paths.model, paths.state) as (resume, new_model, new_state):
        save_weights(new_model, net.name, net.layers, hdf5=hdf5, diff=diff)
        (_write_state_hdf5 if hdf5 else _write_state)(new_state, state, history)
        digests = {"model": _digest(new_model), "state": _digest(new_state)}
        Path(resume).write_text(json.dumps({**digests, "memory": memory}), "utf-8")


def read_memory(paths: SnapshotPaths) -> dict[str, Any] | None:
    """Return what was written as ``memory``, or None if there is nothing for these files.

    Raises:
        FileError: the file is damaged.
        WeightsError: model and state are of different snapshots.
    """
    if not Path(paths.resume).exists():
        return None
    try:
        content = json.loads(read_bytes(paths.resume))
        same = [content[part] == _digest(getattr(paths, part)) for part in ("model", "state")]
        memory: dict[str, Any] = content["memory"]
    except (ValueError, TypeError, KeyError):
        raise FileError(
            f"{paths.resume}: the file is damaged; without it Caffe's part of the "
            f"snapshot can still be used"
        ) from None
    if all(same):
        return memory
    if any(same):
        raise WeightsError(
            f"{paths.state}: belongs to another snapshot than its model '{paths.model}'; writing "
            f"one over the other was interrupted"
        )
    log.warning("%s: belongs to other files than those beside it and is not used", paths.resume)
    return None


ANEW = "to begin anew with its weights, give its .caffemodel as weights instead"
"""What may be done with the snapshot of a net that was changed since."""


def check_history(state: StoredState, path: str, history: Sequence[Blob]) -> None:
    """Refuse a state whose history is not that of this solver.

    Raises:
        WeightsError: the number of blobs or a shape differs.
    """
    if len(state.history) != len(history):
        raise WeightsError(
            f"{path}: has the history of {len(state.history)} parameter(s), but this solver "
            f"has {len(history)}; it belongs to another net or solver type; {ANEW}"
        )
    for index, (blob, stored) in enumerate(zip(history, state.history, strict=True)):
        if np.prod(stored.shape, dtype=object) != blob.count:
            raise WeightsError(
                f"{path}: history blob {index} has shape {stored.shape} there but {blob.shape} "
                f"in this net; the snapshot belongs to another net; {ANEW}"
            )


def load_history(state: StoredState, path: str, history: Sequence[Blob]) -> None:
    """Copy a state's history, checked before, into the solver's."""
    for index, (blob, stored) in enumerate(zip(history, state.history, strict=True)):
        copy_blob(stored, blob.data_storage, f"{path}: history blob {index}")


def find_model(learned_net: str, state_path: str) -> str:
    """Return the model that a snapshot names, as written or beside the state file.

    Raises:
        WeightsError: it is in neither place.
    """
    beside = Path(state_path).parent / Path(learned_net).name
    for candidate in (Path(learned_net), beside):
        if candidate.is_file():
            return str(candidate)
    raise WeightsError(
        f"{state_path}: names the model '{learned_net}', which is neither there (seen from the "
        f"working directory) nor beside the snapshot"
    )


def newest_snapshot(prefix: str) -> str | None:
    """Return the state file of the newest complete snapshot, or None if there is none.

    Snapshots that are damaged or lack a file are passed over with a warning.
    """
    for path in _state_files(prefix):
        try:
            with stored_state(path) as state:
                paths = SnapshotPaths(find_model(state.learned_net, path), path)
            if read_memory(paths) is None:
                if Path(paths.resume).exists():
                    continue  # perhaps the first of three files that were to be replaced
                with stored_layers(paths.model):
                    pass
        except ProtocaffeError as error:
            log.warning("Passing over a snapshot: %s", error)
        else:
            return path
    return None


def remove_leftovers(prefix: str) -> None:
    """Delete the temporary files of snapshots that were interrupted by a kill."""
    folder, name = Path(prefix).parent, Path(prefix).name
    for path in folder.glob(".*.tmp"):
        if path.name.startswith(f".{name}_iter_") and LEFTOVER.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()


def _state_files(prefix: str) -> Iterator[str]:
    """Yield the states of a prefix, the one with most iterations first."""
    folder, name = Path(prefix).parent, Path(prefix).name
    pattern = re.compile(re.escape(name) + r"_iter_(\d+)\.solverstate(\.h5)?")
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = pattern.fullmatch(path.name)
        if match:
            found.append((int(match[1]), str(path)))
    for _, each in sorted(found, reverse=True):
        yield each


def _write_state(path: str, state: caffe_pb2.SolverState, history: Sequence[Blob]) -> None:
    with open(path, "wb") as file:
        file.write(state.SerializeToString())
        for blob in history:
            pieces = encode_blob(host_array(blob, blob.data_storage))
            file.writelines(delimited(HISTORY_NUMBER, *pieces))


def _write_state_hdf5(path: str, state: caffe_pb2.SolverState, history: Sequence[Blob]) -> None:
    name = state.learned_net.encode()
    with create_hdf5(path) as file:
        reserve(file, sum(blob.count * blob.dtype.itemsize for blob in history))
        file["iter"] = np.array([state.iter], np.int32)
        # Caffe reads the name up to a zero byte, which has to be part of it.
        file["learned_net"] = np.array(name, f"S{len(name) + 1}")
        file["current_step"] = np.array([state.current_step], np.int32)
        group = file.create_group("history")
        for index, blob in enumerate(history):
            group[str(index)] = host_array(blob, blob.data_storage)


def _digest(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
