"""Outboxes over TLS: the same promises as over a plain socket, while encrypted bytes wait as well."""

from __future__ import annotations

import gc
import socket

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.shell.tls_support import TlsPeer, tls_pair
from walstream.shell.delivery.outbox import Outbox, State, broadcast
from walstream.shell.delivery.tls import WRITE_BYTES, TlsEngine, TlsOutbox


def outbox_of(
    ours: socket.socket, engine: TlsEngine, limit: int = 1_000_000, parked: list[Outbox] | None = None
) -> TlsOutbox:
    parked = parked if parked is not None else []
    return TlsOutbox(ours, engine, limit, parked.append)


def write_again(outbox: Outbox) -> None:
    """What ``drain`` does when the socket has room."""
    if outbox.parked and outbox._queue is not None:
        outbox._write(outbox._queue)


def read_all(outbox: Outbox, peer: TlsPeer) -> bytes:
    data = peer.read()
    while outbox.queued_bytes:
        write_again(outbox)
        data += peer.read()
    return data + peer.read()


def test_frames_are_written_at_once_and_encrypted() -> None:
    with tls_pair() as (ours, engine, peer):
        outbox = outbox_of(ours, engine)
        assert broadcast([outbox], b"one") == []
        assert peer.read() == b"one"
        outbox.push(b"two")
        outbox.push(b"three")
        assert peer.read() == b""
        outbox.flush()
        assert peer.read() == b"twothree"
        assert (outbox.queued_bytes, outbox.sent_bytes, outbox._queue, outbox.parked) == (0, 11, None, False)


def test_what_the_kernel_does_not_take_is_parked_once_and_nothing_is_lost() -> None:
    parked: list[Outbox] = []
    with tls_pair(send_buffer=4096) as (ours, engine, peer):
        outbox = outbox_of(ours, engine, 100_000_000, parked)
        sent = bytes(range(256)) * 4000
        broadcast([outbox], sent)
        assert outbox.parked
        assert 0 < engine.rest < WRITE_BYTES + 1000
        assert outbox.queued_bytes >= len(sent) - outbox.sent_bytes
        broadcast([outbox], b"more")
        outbox.push(b"and more")
        outbox.flush()
        assert parked == [outbox]
        assert read_all(outbox, peer) == sent + b"moreand more"
        assert (outbox.queued_bytes, outbox.parked, outbox._queue) == (0, False, None)


def test_a_frame_whose_plain_bytes_are_all_taken_still_keeps_others_behind_it() -> None:
    with tls_pair(send_buffer=4096) as (ours, engine, peer):
        outbox = outbox_of(ours, engine)
        sent = b""
        while not outbox.parked:
            broadcast([outbox], b"x" * 1000)
            sent += b"x" * 1000
        assert (outbox._queue, outbox.queued_bytes) == ([], engine.rest)
        outbox.push_urgent(b"urgent")
        broadcast([outbox], b"next")
        assert read_all(outbox, peer) == sent + b"urgentnext"


def test_finish_completes_the_begun_frame_and_drops_the_others() -> None:
    with tls_pair(send_buffer=4096) as (ours, engine, peer):
        outbox = outbox_of(ours, engine, 100_000_000)
        frame = bytes(range(250)) * 1000
        broadcast([outbox], frame)
        outbox.push(b"never sent")
        outbox.finish(b"LAST")
        assert outbox.queued_bytes > len(b"LAST")
        assert read_all(outbox, peer) == frame + b"LAST"
        assert not outbox.push(b"too late")


def test_a_reset_connection_is_remembered_and_never_raises() -> None:
    with tls_pair() as (ours, engine, peer):
        outbox = outbox_of(ours, engine)
        peer.sock.close()
        assert broadcast([outbox], b"frame") == []
        assert outbox.state is State.DEAD
        broadcast([outbox], b"frame")
        outbox.answered()
        outbox.seal(b"last")
        assert (outbox.queued_bytes, outbox.held_bytes) == (0, 0)


def test_a_dead_outbox_is_in_no_cycle() -> None:
    with tls_pair() as (ours, engine, _):
        outbox = outbox_of(ours, engine)
        assert any(getattr(found, "__self__", None) is outbox for found in gc.get_referrers(outbox))
        outbox.die()
        assert not any(getattr(found, "__self__", None) is outbox for found in gc.get_referrers(outbox))


def test_a_goodbye_is_heard() -> None:
    with tls_pair() as (ours, engine, peer):
        outbox = outbox_of(ours, engine)
        broadcast([outbox], b"last")
        engine.say_goodbye()
        engine.say_goodbye()
        assert peer.read() == b"last"
        peer.sock.close()


@settings(max_examples=60)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("push"), st.integers(1, 9000)),
            st.tuples(st.just("broadcast"), st.integers(1, 90_000)),
            st.tuples(st.just("urgent"), st.integers(1, 100)),
            st.tuples(st.just("flush"), st.just(0)),
            st.tuples(st.just("answered"), st.just(0)),
            st.tuples(st.just("read"), st.integers(1, 20_000)),
        ),
        max_size=50,
    ),
    ends=st.booleans(),
)
def test_accepted_frames_arrive_whole_and_in_order(steps: list[tuple[str, int]], ends: bool) -> None:
    """Urgent frames may overtake; every frame begins with its kind and size, so whole frames can be told apart."""
    with tls_pair(send_buffer=4096) as (ours, engine, peer):
        outbox = outbox_of(ours, engine, 120_000)
        expected: dict[bytes, list[bytes]] = {b"N": [], b"U": [], b"E": []}
        received = b""
        for number, (action, size) in enumerate(steps):
            kind = b"U" if action == "urgent" else b"N"
            frame = kind + number.to_bytes(2, "big") + size.to_bytes(4, "big") + b"." * size
            accepted = False
            if action == "push":
                accepted = outbox.push(frame)
            elif action == "urgent":
                accepted = outbox.push_urgent(frame)
            elif action == "broadcast":
                before = outbox.state
                accepted = not broadcast([outbox], frame) and before is State.OPEN
            elif action == "flush":
                outbox.flush()
            elif action == "answered":
                outbox.answered()
            else:
                received += peer.read(size)
                write_again(outbox)
            if accepted:
                expected[kind].append(frame)
            queued = sum(map(len, outbox._queue or ())) - outbox._offset
            assert outbox.queued_bytes == queued + engine.rest
        if ends:
            outbox.finish(b"E\0\0\0\0\0\0")
        else:
            outbox.flush()
        received += read_all(outbox, peer)
        arrived: dict[bytes, list[bytes]] = {b"N": [], b"U": [], b"E": []}
        while received:
            size = int.from_bytes(received[3:7], "big") + 7
            arrived[received[:1]].append(received[:size])
            received = received[size:]
        if ends:
            assert arrived.pop(b"E") == [b"E\0\0\0\0\0\0"]
            assert all(got == expected[kind][: len(got)] for kind, got in arrived.items() if kind != b"U")
        else:
            assert {**arrived, b"U": sorted(arrived[b"U"])} == expected
