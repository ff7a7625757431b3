"""Solver snapshots: the ``.solverstate`` beside each ``.caffemodel``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from protocaffe.blob import Blob
from protocaffe.errors import SolverError, WeightsError
from protocaffe.proto import caffe_pb2
from protocaffe.proto.binary import array_to_blob, blob_to_array, read_binary, write_atomic


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
        raise SolverError(
            f"cannot write snapshots to '{prefix}*': {error.strerror}; create the folder "
            f"'{probe.parent}' or change snapshot_prefix"
        ) from None


def write_state(
    path: str, iteration: int, learned_net: str, current_step: int, history: Sequence[Blob]
) -> None:
    """Write a ``.solverstate``, all or nothing."""
    state = caffe_pb2.SolverState(
        iter=iteration, learned_net=learned_net, current_step=current_step
    )
    for blob in history:
        array_to_blob(blob.data_storage.host_read().reshape(blob.shape), state.history.add())
    write_atomic(path, state.SerializeToString())


def read_state(path: str, history: Sequence[Blob]) -> caffe_pb2.SolverState:
    """Read a ``.solverstate`` into the history blobs; return the message.

    Raises:
        FileError: the file is missing or damaged.
        WeightsError: its history does not fit; nothing was changed then.
    """
    state = read_binary(path, caffe_pb2.SolverState())
    if len(state.history) != len(history):
        raise WeightsError(
            f"{path}: has the history of {len(state.history)} parameter(s), but this solver "
            f"has {len(history)}; it belongs to another net or solver type"
        )
    arrays = [blob_to_array(proto) for proto in state.history]
    for index, (blob, array) in enumerate(zip(history, arrays, strict=True)):
        if array.size != blob.count:
            raise WeightsError(
                f"{path}: history blob {index} has shape {array.shape} there but {blob.shape} "
                f"in this net; the snapshot belongs to another net"
            )
    for blob, array in zip(history, arrays, strict=True):
        blob.data_storage.host_overwrite()[:] = array.ravel()
    return state


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
