"""Damaged files: whatever is in them, loading ends well or in an error for people.

Real files of every kind are cut, spliced and overwritten at random. No other exception may come
out, and a small file may not cost much memory or time.
"""

from __future__ import annotations

import time
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocaffe.data.hdf5 import HDF5Rows
from protocaffe.errors import ProtocaffeError
from protocaffe.net import Net
from protocaffe.proto.binary import blob_to_array, read_binary
from protocaffe.proto.caffe_pb2 import BlobProto
from protocaffe.proto.stored import stored_layers, stored_state
from protocaffe.proto.text import read_net, read_solver
from protocaffe.solvers.snapshot import SnapshotPaths, read_memory

GOLDEN = Path(__file__).parent / "golden"
RUN = GOLDEN / "solvers" / "adam"
HDF5_RUN = GOLDEN / "solvers" / "snapshot_hdf5_adam_resume"
FILES = GOLDEN / "files"

EXAMPLES = settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
MEMORY = 4 << 20
"""Bytes that reading one of these files of a few kilobytes may take."""


@st.composite
def damaged(draw: st.DrawFn, sources: list[Path]) -> bytes:
    """The content of a file after a few accidents."""
    content = bytearray(draw(st.sampled_from([path.read_bytes() for path in sources])))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        length = draw(st.integers(0, 20))
        match draw(st.sampled_from(["overwrite", "insert", "delete", "cut", "repeat"])):
            case "overwrite":
                content[at : at + length] = draw(st.binary(min_size=length, max_size=length))
            case "insert":
                content[at:at] = draw(st.binary(max_size=20))
            case "delete":
                del content[at : at + length]
            case "cut":
                del content[at:]
            case "repeat":
                content[at:at] = content[max(0, at - 10 * length) : at]
    return bytes(content)


def check(path: Path, content: bytes, read: object) -> None:
    """Read the damaged file within bounds."""
    path.write_bytes(content)
    tracemalloc.start()
    start = time.monotonic()
    try:
        with suppress(ProtocaffeError):
            read(path)
    finally:
        seconds = time.monotonic() - start
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < MEMORY
    assert seconds < 5


def read_layers(path: Path) -> None:
    with stored_layers(path) as layers:
        for layer in layers:
            for blob in layer.blobs.values():
                blob.read()


def read_state(path: Path) -> None:
    with stored_state(path) as state:
        for blob in state.history:
            blob.read()


def read_rows(path: Path) -> None:
    rows = HDF5Rows(path.with_name("list.txt"), ["x", "y"])
    if len(rows) < 100:
        rows.read(0, [np.empty((len(rows), *shape), np.float32) for shape in rows.row_shapes])


MODELS = [
    RUN / "snap_iter_10.caffemodel",
    FILES / "model_v1_legacy_shapes" / "model.caffemodel",
]
BLOBS = [
    FILES / "blobproto" / name for name in ("legacy.binaryproto", "shaped_with_diff.binaryproto")
]


@EXAMPLES
@given(content=damaged(MODELS))
def test_models(tmp_path: Path, content: bytes) -> None:
    check(tmp_path / "m.caffemodel", content, read_layers)


@EXAMPLES
@given(content=damaged(MODELS[:1]))
def test_models_into_a_net(tmp_path: Path, content: bytes, net: Net) -> None:
    check(tmp_path / "m.caffemodel", content, net.copy_from)


@EXAMPLES
@given(content=damaged([RUN / "snap_iter_10.solverstate"]))
def test_states(tmp_path: Path, content: bytes) -> None:
    check(tmp_path / "s.solverstate", content, read_state)


@EXAMPLES
@given(content=damaged([HDF5_RUN / "snap_iter_10.caffemodel.h5"]))
def test_hdf5_models(tmp_path: Path, content: bytes) -> None:
    check(tmp_path / "m.caffemodel.h5", content, read_layers)


@EXAMPLES
@given(content=damaged([HDF5_RUN / "snap_iter_10.solverstate.h5"]))
def test_hdf5_states(tmp_path: Path, content: bytes) -> None:
    check(tmp_path / "s.solverstate.h5", content, read_state)


@EXAMPLES
@given(content=damaged([RUN / "data.h5"]))
def test_hdf5_data(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "list.txt").write_text(str(tmp_path / "data.h5"))
    check(tmp_path / "data.h5", content, read_rows)


@EXAMPLES
@given(content=damaged(BLOBS))
def test_blobs(tmp_path: Path, content: bytes) -> None:
    check(tmp_path / "b", content, lambda path: blob_to_array(read_binary(path, BlobProto())))


@EXAMPLES
@given(content=damaged(sorted(FILES.glob("*/old.prototxt"))))
def test_nets(tmp_path: Path, content: bytes) -> None:
    check(tmp_path / "net.prototxt", content, read_net)


@EXAMPLES
@given(content=damaged([FILES / "solver_adam" / "old_solver.prototxt", RUN / "solver.prototxt"]))
def test_solvers(tmp_path: Path, content: bytes) -> None:
    check(tmp_path / "solver.prototxt", content, read_solver)


RESUME = b'{"model": "00", "state": "00", "memory": {"losses": [1.5], "net": {"drop": {}}}}'


@EXAMPLES
@given(at=st.integers(0, len(RESUME)), extra=st.binary(max_size=5))
def test_memories(tmp_path: Path, at: int, extra: bytes) -> None:
    paths = SnapshotPaths(str(tmp_path / "m"), str(tmp_path / "s"))
    for name in (paths.model, paths.state):
        Path(name).touch()
    content = RESUME[:at] + extra + RESUME[at + len(extra) :]
    check(Path(paths.resume), content, lambda _: read_memory(paths))


@pytest.mark.parametrize("depth", [10, 5000])
def test_deep_nesting(tmp_path: Path, depth: int) -> None:
    check(tmp_path / "net.prototxt", b"layer { " * depth + b"} " * depth, read_net)
    check(tmp_path / "m.caffemodel", b"\x0b" * depth + b"\x0c" * depth, read_layers)


@pytest.fixture(scope="module")
def net() -> Net:
    folder = pytest.MonkeyPatch()
    folder.chdir(RUN)
    made = Net("net.prototxt")
    folder.undo()
    return made
