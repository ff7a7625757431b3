"""Blobs: shapes, sharing, and where the truth is."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocaffe.blob import Array, Blob, Storage, Truth, aligned_empty
from protocaffe.errors import NetError


class Doubled:
    """An engine buffer in a layout of its own: every number is stored twice as large."""

    def __init__(self, count: int) -> None:
        self.values = np.zeros(count, np.float32)

    def host_view(self) -> Array | None:
        return None

    def load(self, host: Array) -> None:
        self.values[:] = host * 2

    def store(self, host: Array) -> None:
        host[:] = self.values / 2

    def forget_host(self) -> None:
        """Remembers none."""


class Plain(Doubled):
    """An engine buffer that lies as the host's array does."""

    def host_view(self) -> Array | None:
        return self.values

    def load(self, host: Array) -> None:
        self.values[:] = host

    def store(self, host: Array) -> None:
        host[:] = self.values


def test_a_new_blob_reads_as_zeros() -> None:
    blob = Blob((2, 3))
    assert blob.data.shape == (2, 3)
    assert not blob.data.any()
    assert not blob.diff.any()
    assert blob.dtype == np.float32


def test_a_scalar_has_no_axes_and_one_number() -> None:
    blob = Blob(())
    assert (blob.count, blob.num_axes, blob.data.shape) == (1, 0, ())


def test_what_is_written_stays_through_a_reshape_of_equal_count() -> None:
    blob = Blob((2, 3))
    blob.data[...] = np.arange(6).reshape(2, 3)
    blob.reshape(3, 2)
    assert blob.data.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_a_reshape_to_another_count_gives_new_zeros() -> None:
    blob = Blob((2, 3))
    blob.data[...] = 1
    blob.reshape((4, 3))
    assert blob.shape == (4, 3)
    assert not blob.data.any()


def test_shared_data_is_one_memory_under_two_shapes() -> None:
    one, other = Blob((2, 3)), Blob((6,))
    other.share_data(one)
    one.data[1, 2] = 7
    assert other.data[5] == 7
    other.diff[0] = 1
    assert not one.diff.any()


def test_sharing_needs_equal_counts() -> None:
    with pytest.raises(NetError, match=r"\(4,\) has 4 and \(2, 3\) has 6|equal counts"):
        Blob((4,)).share_data(Blob((2, 3)))


@pytest.mark.parametrize("shape", [[1] * 33, (-1, 2), (2**16, 2**16)])
def test_impossible_shapes_are_refused(shape: list[int]) -> None:
    with pytest.raises(NetError):
        Blob(shape)


def test_legacy_names_count_from_the_front() -> None:
    blob = Blob((5, 4))
    assert (blob.num, blob.channels, blob.height, blob.width) == (5, 4, 1, 1)
    with pytest.raises(NetError, match="up to 4 axes"):
        _ = Blob((1, 1, 1, 1, 1)).num


def test_memory_is_aligned() -> None:
    assert all(aligned_empty(n, np.float32).ctypes.data % 64 == 0 for n in (1, 7, 1000))


MOVES = ["host_read", "host_write", "native_read", "native_overwrite", "add", "zero", "bind"]


@given(st.lists(st.sampled_from(MOVES)))
def test_truth_follows_every_order_of_reads_and_writes(moves: list[str]) -> None:
    """Whoever reads, on either side, sees the last number written, on either side."""
    storage = Storage(3)
    storage.bind(Doubled(3))
    expected, fresh = 0.0, 1.0
    for move in moves:
        fresh += 1
        if move == "host_read":
            assert (storage.host_read() == expected).all()
        elif move == "host_write":
            storage.host_write()[:] = expected = fresh
        elif move == "native_read":
            assert (storage.native_read().values == 2 * expected).all()
        elif move == "native_overwrite":
            storage.native_overwrite().values[:] = 2 * fresh
            expected = fresh
        elif move == "add":
            storage.native_write().values[:] += 2
            expected += 1
        elif move == "zero":
            storage.zero()
            expected = 0.0
        else:
            storage.bind(Doubled(3))
    assert (storage.host_read() == expected).all()


def test_an_update_by_the_engine_gives_up_the_host_copy_that_nobody_holds() -> None:
    storage = Storage(3)
    storage.bind(Doubled(3))
    kept = storage.array()
    copy = weakref.ref(storage.host_memory())
    storage.native_write()
    assert np.shares_memory(storage.host_memory(), kept)
    del kept
    storage.native_write()
    assert copy() is None


def test_binding_a_plain_buffer_makes_one_memory_of_both() -> None:
    storage = Storage(3)
    storage.host_write()[:] = 5
    native = Plain(3)
    storage.bind(native)
    assert (native.values == 5).all()
    storage.host_write()[0] = 9
    assert storage.native_read().values[0] == 9
    assert storage.truth is Truth.BOTH


def test_a_kept_array_is_the_memory_of_every_later_one() -> None:
    blob = Blob((4, 3))
    rows = blob.data[1:]
    assert blob.data_storage.is_held
    blob.data[2] = 7
    assert rows[1].tolist() == [7, 7, 7]
    blob.reshape(2, 3)
    rows[0] = 5
    assert blob.data[1].tolist() == [5, 5, 5]
    blob.reshape(4, 3)
    assert blob.data[2].tolist() == [7, 7, 7]
    assert np.shares_memory(blob.data, rows)
    del rows
    assert not blob.data_storage.is_held


def test_fewer_numbers_keep_their_values() -> None:
    blob = Blob((2, 3))
    blob.data[...] = np.arange(6).reshape(2, 3)
    blob.reshape(1, 3)
    assert blob.data.tolist() == [[0, 1, 2]]


def test_data_can_be_assigned() -> None:
    blob = Blob((2, 3))
    blob.data = [[1, 2, 3], [4, 5, 6]]
    blob.data *= 2
    blob.diff = 1
    assert blob.data.tolist() == [[2, 4, 6], [8, 10, 12]]
    assert blob.diff.tolist() == [[1] * 3] * 2
    with pytest.raises(NetError, match=r"the blob's data has shape \(2, 3\).*shape \(4, 3\)"):
        blob.data = np.zeros((4, 3))


KEEPING = ["keep", "drop", "write", "run", "read", "zero", "rebind", "rebind plain"]


@given(st.lists(st.sampled_from(KEEPING)))
def test_who_keeps_an_array_reads_and_writes_the_truth(moves: list[str]) -> None:
    """An engine that counts up in its own buffer, and somebody with an old array."""
    storage = Storage(3)
    storage.bind(Doubled(3))
    kept: Array | None = None
    expected, fresh = 0.0, 1.0
    for move in moves:
        fresh += 1
        if move == "keep":
            kept = storage.array()[1:]
        elif move == "drop":
            kept = None
        elif move == "write":
            (storage.array()[1:] if kept is None else kept)[...] = fresh
            storage.array()[0] = expected = fresh
        elif move == "run":
            storage.take_from_holders()
            factor = 1 if isinstance(storage.native, Plain) else 2
            assert (storage.native_read().values == factor * expected).all()
            expected += 1
            storage.native_overwrite().values[:] = factor * expected
            storage.give_to_holders()
        elif move == "zero":
            storage.zero()
            expected = 0.0
        elif move.startswith("rebind"):
            storage.bind(Doubled(3) if move == "rebind" else Plain(3))
        if kept is not None:
            assert (kept == expected).all()
    assert (storage.host_read() == expected).all()
