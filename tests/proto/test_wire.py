import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocaffe.proto.caffe_pb2 import BlobProto, NetParameter, SolverState
from protocaffe.proto.wire import (
    DELIMITED,
    VARINT,
    DamagedError,
    delimited,
    encoded_varint,
    fields,
    signed,
    varint,
)


def test_fields_of_a_message():
    state = SolverState(iter=300, learned_net="net", history=[BlobProto(num=-1)])
    found = list(fields(memoryview(state.SerializeToString())))
    assert [(number, kind) for number, kind, _ in found] == [
        (1, VARINT),
        (2, DELIMITED),
        (3, DELIMITED),
    ]
    assert varint(found[0][2]) == (300, 2)
    assert bytes(found[1][2]) == b"net"
    ((_, _, num),) = fields(found[2][2])
    assert signed(varint(num)[0]) == -1


@given(st.integers(0, 2**64 - 1))
def test_numbers_survive_the_round_trip(value):
    encoded = encoded_varint(value)
    assert varint(memoryview(encoded)) == (value, len(encoded))


@given(st.lists(st.binary(max_size=300), max_size=3))
def test_pieces_make_a_field(parts):
    wire = b"".join(delimited(1, *parts))
    assert NetParameter.FromString(b"".join(delimited(1, b"n"))).name == "n"
    assert [bytes(value) for _, _, value in fields(memoryview(wire))] == [b"".join(parts)]


@pytest.mark.parametrize(
    "damaged",
    [
        b"\x08",
        b"\x0a\x05abc",
        b"\x0d\x00",
        b"\x0b",
        b"\x00\x00",
        b"\xff" * 11,
        b"\x08" + b"\x80" * 10,
    ],
)
def test_damage_is_noticed(damaged):
    with pytest.raises(DamagedError):
        list(fields(memoryview(damaged)))
