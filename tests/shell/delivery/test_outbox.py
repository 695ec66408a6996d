"""Outboxes over socket pairs: order, whole frames, bounds, and a task only for who does not read."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.shell.edge_support import read_all, read_exactly, socket_pair
from tests.support import run
from walstream.shell.delivery.outbox import EARLY_FLUSH_BYTES, Drains, Outbox, State, broadcast


class Parked:
    """Collects the outboxes that ask to be drained."""

    def __init__(self) -> None:
        self.outboxes: list[Outbox] = []

    def __call__(self, outbox: Outbox) -> None:
        self.outboxes.append(outbox)


@pytest.fixture
def parked() -> Parked:
    return Parked()


def fill(outbox: Outbox, chunk: bytes = b"x" * 1000) -> bytes:
    """Send until the kernel takes no more. Returns everything that was accepted."""
    accepted = []
    while not outbox.parked:
        assert outbox.push(chunk)
        outbox.flush()
        accepted.append(chunk)
    return b"".join(accepted)


def test_pushed_frames_go_out_at_the_flush_in_one_piece(parked: Parked) -> None:
    with socket_pair() as (ours, theirs):
        outbox = Outbox(ours, 1000, parked)
        assert outbox.push(b"one")
        assert outbox.push(b"two")
        assert read_all(theirs) == b""
        outbox.flush()
        assert read_all(theirs) == b"onetwo"
        assert (outbox.queued_bytes, outbox.sent_bytes, parked.outboxes) == (0, 6, [])


def test_flushing_nothing_writes_nothing(parked: Parked) -> None:
    with socket_pair() as (ours, theirs):
        Outbox(ours, 1000, parked).flush()
        assert read_all(theirs) == b""


def test_a_burst_does_not_wait_for_the_flush(parked: Parked) -> None:
    with socket_pair() as (ours, theirs):
        outbox = Outbox(ours, 10 * EARLY_FLUSH_BYTES, parked)
        outbox.push(b"x" * EARLY_FLUSH_BYTES)
        outbox.push(b"y")
        assert read_all(theirs) != b""


def test_broadcast_writes_at_once_and_reaches_everyone(parked: Parked) -> None:
    with socket_pair() as (ours, theirs), socket_pair() as (ours2, theirs2):
        outboxes = [Outbox(ours, 1000, parked), Outbox(ours2, 1000, parked)]
        assert broadcast(outboxes, b"frame") == []
        assert (read_all(theirs), read_all(theirs2)) == (b"frame", b"frame")
        assert [outbox.sent_bytes for outbox in outboxes] == [5, 5]


def test_broadcast_comes_after_what_was_pushed_before(parked: Parked) -> None:
    with socket_pair() as (ours, theirs):
        outbox = Outbox(ours, 1000, parked)
        outbox.push(b"first")
        broadcast([outbox], b"second")
        assert read_all(theirs) == b"firstsecond"


def test_what_the_kernel_does_not_take_is_parked_once_and_nothing_is_lost(parked: Parked) -> None:
    with socket_pair(send_buffer=4096) as (ours, theirs):
        outbox = Outbox(ours, 1_000_000, parked)
        accepted = fill(outbox)
        broadcast([outbox], b"more")
        outbox.push(b"and more")
        outbox.flush()
        assert parked.outboxes == [outbox]

        async def drain_all() -> bytes:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(outbox.drain)
                return await read_exactly(theirs, len(accepted) + 12)

        assert run(drain_all) == accepted + b"moreand more"
        assert (outbox.queued_bytes, outbox.parked) == (0, False)


def test_a_dead_socket_is_remembered_and_never_raises(parked: Parked) -> None:
    with socket_pair() as (ours, theirs):
        outbox = Outbox(ours, 1000, parked)
        theirs.close()
        assert broadcast([outbox], b"frame") == []
        assert outbox.state is State.DEAD
        assert not outbox.push(b"frame")
        outbox.flush()
        outbox.finish(b"last")
        outbox.seal(b"last")
        assert outbox.queued_bytes == 0


def test_a_closed_socket_is_a_dead_one(parked: Parked) -> None:
    with socket_pair() as (ours, _):
        outbox = Outbox(ours, 1000, parked)
        ours.close()
        broadcast([outbox], b"frame")
        assert outbox.state is State.DEAD


def test_overflow_is_reported_once_and_by_the_broadcast_that_caused_it(parked: Parked) -> None:
    reported: list[Outbox] = []
    with socket_pair(send_buffer=4096) as (ours, _):
        outbox = Outbox(ours, 5000, parked, reported.append)
        fill(outbox)
        while not (overflowed := broadcast([outbox], b"x" * 1000)):
            pass
        assert overflowed == reported == [outbox]
        assert broadcast([outbox], b"x") == []
        assert not outbox.push(b"x")
        assert reported == [outbox]
        assert outbox.state is State.OVERFLOW


def test_a_closed_overflow_is_still_reported_by_the_broadcast(parked: Parked) -> None:
    with socket_pair(send_buffer=4096) as (ours, _):
        outbox = Outbox(ours, 5000, parked, lambda outbox: outbox.finish(b"bye"))
        fill(outbox)
        while not (overflowed := broadcast([outbox], b"x" * 1000)):
            pass
        assert overflowed == [outbox]
        assert outbox.state is State.SEALED


def test_an_empty_outbox_takes_a_chunk_of_any_size(parked: Parked) -> None:
    with socket_pair() as (ours, theirs):
        outbox = Outbox(ours, 10, parked)
        assert broadcast([outbox], b"x" * 100) == []
        assert outbox.push(b"y" * 100)
        outbox.flush()
        assert len(read_all(theirs)) == 200


def test_an_outbox_that_had_no_room_for_an_offer_goes_on_where_it_refused(parked: Parked) -> None:
    with socket_pair(send_buffer=4096) as (ours, theirs):
        outbox = Outbox(ours, 5000, parked)
        accepted = fill(outbox)
        while outbox.offer(b"z" * 1000):
            accepted += b"z" * 1000

        async def catch_up() -> bytes:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(outbox.drain)
                data = await read_exactly(theirs, len(accepted))
                await outbox.wait_empty()
                broadcast([outbox], b"again")
                return data + await read_exactly(theirs, 5)

        assert run(catch_up) == accepted + b"again"


def test_finish_completes_the_begun_frame_and_drops_the_others(parked: Parked) -> None:
    with socket_pair(send_buffer=4096) as (ours, theirs):
        outbox = Outbox(ours, 1_000_000, parked)
        chunk = bytes(range(250)) * 40
        accepted = fill(outbox, chunk)
        assert outbox.sent_bytes % len(chunk) > 0  # a frame is half sent
        outbox.push(b"never sent")
        outbox.finish(b"LAST")
        assert not outbox.push(b"too late")

        async def read_rest() -> bytes:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(outbox.drain)
                return await read_exactly(theirs, len(accepted) + 4)

        assert run(read_rest) == accepted + b"LAST"
        assert read_all(theirs) == b""


def test_seal_sends_all_that_waits_and_then_the_last_frame(parked: Parked) -> None:
    with socket_pair() as (ours, theirs):
        outbox = Outbox(ours, 1000, parked)
        outbox.push(b"waiting")
        outbox.seal(b"LAST")
        assert broadcast([outbox], b"late") == []
        assert read_all(theirs) == b"waitingLAST"
        assert outbox.state is State.SEALED


def test_an_urgent_frame_overtakes_whole_frames_but_not_a_begun_one(parked: Parked) -> None:
    with socket_pair(send_buffer=4096) as (ours, theirs):
        outbox = Outbox(ours, 1_000_000, parked)
        accepted = fill(outbox, b"a" * 10_000)
        outbox.push(b"later")
        assert outbox.push_urgent(b"URGENT")

        async def read_rest() -> bytes:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(outbox.drain)
                return await read_exactly(theirs, len(accepted) + 11)

        assert run(read_rest) == accepted + b"URGENTlater"


def test_urgent_frames_have_a_bound_of_their_own(parked: Parked) -> None:
    with socket_pair(send_buffer=4096) as (ours, _):
        outbox = Outbox(ours, 5000, parked)
        fill(outbox)
        while outbox.push_urgent(b"u" * 1000):
            assert outbox.queued_bytes < 5000 + 70_000
        assert outbox.state is State.OPEN


def test_draining_a_socket_that_is_closed_meanwhile_ends() -> None:
    async def main() -> None:
        with socket_pair(send_buffer=4096) as (ours, _):
            async with trio.open_nursery() as nursery:
                drains = Drains()
                await nursery.start(drains.run)
                outbox = Outbox(ours, 1_000_000, drains.wake)
                fill(outbox)
                await trio.testing.wait_all_tasks_blocked()
                trio.lowlevel.notify_closing(ours)
                ours.close()
                await outbox.wait_empty()
                assert outbox.state is State.DEAD
                nursery.cancel_scope.cancel()

    run(main)


def test_no_outbox_has_a_task_unless_it_is_parked() -> None:
    async def main() -> None:
        with socket_pair(send_buffer=4096) as (ours, theirs):
            async with trio.open_nursery() as nursery:
                drains = Drains()
                await nursery.start(drains.run)
                idle = trio.lowlevel.current_statistics().tasks_living
                outbox = Outbox(ours, 1_000_000, drains.wake)
                broadcast([outbox], b"x")
                assert trio.lowlevel.current_statistics().tasks_living == idle
                accepted = fill(outbox)
                assert trio.lowlevel.current_statistics().tasks_living == idle + 1
                await read_exactly(theirs, len(accepted) + 1)
                await outbox.wait_empty()
                await trio.testing.wait_all_tasks_blocked()
                assert trio.lowlevel.current_statistics().tasks_living == idle
                nursery.cancel_scope.cancel()

    run(main)


def test_one_socket_that_never_reads_does_not_keep_the_others_from_theirs(parked: Parked) -> None:
    pairs = [socket.socketpair() for _ in range(20)]
    try:
        for ours, theirs in pairs:
            ours.setblocking(False)
            theirs.setblocking(False)
        outboxes = [Outbox(ours, 50_000, parked) for ours, _ in pairs]
        frame = b"f" * 1000
        overflowed: list[Outbox] = []
        for _ in range(1000):
            overflowed += broadcast(outboxes, frame)
            for _, theirs in pairs[1:]:
                assert read_all(theirs) == frame
        assert overflowed == outboxes[:1]
    finally:
        for ours, theirs in pairs:
            ours.close()
            theirs.close()


@settings(max_examples=60)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("push"), st.integers(1, 9000)),
            st.tuples(st.just("broadcast"), st.integers(1, 9000)),
            st.tuples(st.just("urgent"), st.integers(1, 100)),
            st.tuples(st.just("flush"), st.just(0)),
            st.tuples(st.just("read"), st.integers(1, 20_000)),
        ),
        max_size=60,
    ),
)
def test_accepted_frames_arrive_whole_and_in_order_whatever_happens_between(steps: list[tuple[str, int]]) -> None:
    """Urgent frames may overtake; every frame begins with its kind and number, so whole frames can be told apart."""
    with socket_pair(send_buffer=4096) as (ours, theirs):
        outbox = Outbox(ours, 30_000, lambda outbox: None)
        expected: dict[bytes, list[bytes]] = {b"N": [], b"U": []}
        received = b""
        for number, (action, size) in enumerate(steps):
            kind = b"U" if action == "urgent" else b"N"
            frame = kind + number.to_bytes(2, "big") + size.to_bytes(2, "big") + b"." * size
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
            else:
                received += _read(theirs, size)
                write_again(outbox)
            if accepted:
                expected[kind].append(frame)
        while True:
            write_again(outbox)
            more = _read(theirs, 1 << 20)
            received += more
            if not more and not outbox.queued_bytes:
                break
        arrived: dict[bytes, list[bytes]] = {b"N": [], b"U": []}
        while received:
            size = 5 + int.from_bytes(received[3:5], "big")
            arrived[received[:1]].append(received[:size])
            received = received[size:]
        assert arrived[b"N"] == expected[b"N"]
        assert sorted(arrived[b"U"]) == sorted(expected[b"U"])


def _read(sock: socket.socket, size: int) -> bytes:
    try:
        return sock.recv(size)
    except BlockingIOError:
        return b""


def write_again(outbox: Outbox) -> None:
    """What the drain task does when the socket is writable, or a flush where nothing is parked."""
    outbox.parked = False
    outbox.flush()
