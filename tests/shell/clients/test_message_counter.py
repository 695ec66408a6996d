"""Counting messages by their frame headers agrees with the library that reads the frames, however they are cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import BytesMessage, TextMessage

from tests.shell.edge_support import masked
from walstream.shell.clients.message_counter import MessageCounter

frames = st.lists(
    st.one_of(
        st.tuples(st.just("whole"), st.sampled_from([1, 2]), st.integers(0, 300)),
        st.tuples(st.just("long"), st.sampled_from([1, 2]), st.sampled_from([125, 126, 127, 65535, 65536])),
        st.tuples(st.just("pieces"), st.sampled_from([1, 2]), st.integers(1, 5)),
        st.tuples(st.just("control"), st.sampled_from([9, 10]), st.integers(0, 125)),
    ),
    max_size=8,
)


def build(plan: list[tuple[str, int, int]]) -> bytes:
    data = b""
    for kind, opcode, size in plan:
        if kind == "pieces":
            data += masked(b"a", opcode, final=False)
            for _ in range(size):
                data += masked(b"", 9) + masked(b"bc", 0, final=False)
            data += masked(b"", 0)
        else:
            data += masked(b"x" * size, opcode)
    return data


@given(plan=frames, cuts=st.lists(st.integers(1, 200), min_size=1, max_size=20))
def test_messages_are_counted_exactly_as_the_library_finds_them(
    plan: list[tuple[str, int, int]], cuts: list[int]
) -> None:
    data = build(plan)
    counter = MessageCounter()
    connection = Connection(ConnectionType.SERVER)
    position = index = 0
    while position < len(data):
        # Small pieces around the headers, large ones through the long payloads.
        size = cuts[index % len(cuts)] * (1 if index % 2 else 40)
        piece = data[position : position + size]
        connection.receive_data(piece)
        events = list(connection.events())
        found = sum(isinstance(event, TextMessage | BytesMessage) and event.message_finished for event in events)
        assert counter.feed(piece) == found
        position += size
        index += 1
    assert counter.fragments == 0


@given(data=st.binary(max_size=200))
def test_counting_survives_any_bytes(data: bytes) -> None:
    counter = MessageCounter()
    assert sum(counter.feed(data[index : index + 1]) for index in range(len(data))) == MessageCounter().feed(data)
