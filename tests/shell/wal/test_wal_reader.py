"""The reader over a stream that is made up: what it hands on, what it confirms, and when it lets go."""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import psycopg2
import pytest
import trio
import trio.lowlevel
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.shell.database_support import server_error
from tests.support import run
from walstream.errors import DatabaseRefused, DatabaseUnreachable, DecodeError
from walstream.history.lineage import Lineage
from walstream.lsn import Lsn
from walstream.model import CatalogMiss
from walstream.shell.database.postgres import Database
from walstream.shell.health import Health
from walstream.shell.wal import wal_reader
from walstream.shell.wal.poison import Broken, UnderWay
from walstream.shell.wal.slot_keeper import Reading, Stream
from walstream.shell.wal.wal_reader import STANDBY_SECONDS, STORM_READS, WalReader
from walstream.telemetry.metrics import Metrics

STREAM = Stream("wal2json", Lineage("abcd"), 1.0, False)
TIMEOUT = 60.0


class Wire:
    """The stream's connection and its cursor. ``script``: messages, None, errors to raise, and what to call."""

    def __init__(self, *script: Any) -> None:
        self.script: deque[Any] = deque(script)
        self.closed = 0
        self.reads = 0
        self.wal_end = 0
        self.io_timestamp = 0  # moves with every read: something whole was there, if only a keepalive
        self.hears = 1
        self.info = SimpleNamespace(backend_pid=4711, error_message="")
        self.feedback: list[tuple[int, bool]] = []
        self.started: dict[str, Any] = {}
        self.on_start: Exception | None = None
        self.on_empty: Callable[[], object] = lambda: None
        self.readable, self._other = socket.socketpair()
        self.readable.setblocking(False)

    def wake(self) -> None:
        """From now on there is always something to read from the socket."""
        self._other.send(b"x")

    def calm(self) -> None:
        """Nothing to read from the socket any more."""
        with contextlib.suppress(BlockingIOError):
            self.readable.recv(100)

    def cursor(self) -> Wire:
        return self

    def fileno(self) -> int:
        return self.readable.fileno()

    def close(self) -> None:
        self.closed = 1

    def release(self) -> None:
        self.readable.close()
        self._other.close()

    def start_replication(self, **options: Any) -> None:
        self.started = options
        if self.on_start is not None:
            raise self.on_start

    def read_message(self) -> Any:
        self.reads += 1
        self.io_timestamp += self.hears
        if not self.script:
            self.on_empty()
            return None
        each = self.script.popleft()
        if isinstance(each, Exception):
            raise each
        if callable(each):
            return each()
        return each

    def send_feedback(self, *, flush_lsn: int, force: bool = False) -> None:
        assert not self.closed
        self.feedback.append((flush_lsn, force))


class Base:
    """The ``Database`` that prepares the slot, and the ``Sink``."""

    def __init__(self) -> None:
        self.answers: deque[Any] = deque()
        self.prepared = 0
        self.received: list[bytes] = []
        self.waiting: deque[bytes] = deque()
        self.gulps: list[int] = []
        self.missing: dict[bytes, float] = {}
        self.position = 0
        self.skipped: list[bytes] = []
        self.under_way: UnderWay | None = None
        self.flushed = 0
        self.trailing: list[bool] = []
        self.opened: list[Stream] = []

    async def run(self, work: Callable[[Any], Any]) -> Any:
        await trio.lowlevel.checkpoint()
        self.prepared += 1
        answer = self.answers.popleft() if self.answers else (STREAM, TIMEOUT)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def forget_idle(self) -> None:
        pass

    async def open(self, stream: Stream) -> Mapping[str, str]:
        await trio.lowlevel.checkpoint()
        self.opened.append(stream)
        self.waiting.clear()
        return {"an": "option"}

    def receive(self, payloads: Sequence[bytes], starts: Sequence[int]) -> None:
        assert len(payloads) == len(starts)
        assert not self.waiting
        self.gulps += [len(payloads)] if payloads else []
        self.waiting.extend(payloads)
        self._take()

    def _take(self) -> None:
        while self.waiting:
            payload = self.waiting[0]
            if payload in self.missing:
                raise CatalogMiss(relations=[("public", "t")])
            if payload == b"broken":
                raise DecodeError("broken")
            self.received.append(self.waiting.popleft())

    async def recover(self, miss: CatalogMiss) -> None:
        await trio.sleep(self.missing.pop(self.waiting[0]))
        self._take()

    def broken(self, error: DecodeError) -> Broken | None:
        return Broken(self.waiting[0], 5, 7, error)

    def skip(self) -> None:
        self.skipped.append(self.waiting.popleft())
        self._take()

    @property
    def newest(self) -> Lsn:
        return Lsn(len(set(self.received)))

    async def flush(self) -> None:
        self.flushed += 1
        await trio.lowlevel.checkpoint()

    def confirmable(self, *, trailing: bool) -> Lsn:
        self.trailing.append(trailing)
        return Lsn(self.position)


class Rig:
    """A reader with streams that it opens one after the other."""

    def __init__(self, *wires: Wire, trails: bool = True, decoder: str = "auto") -> None:
        self.base = Base()
        self.wires = list(wires) or [Wire()]
        self.opened: list[Wire] = []
        self.timeouts: list[float] = []
        self.health = Health(version="1", node="n")
        self.started = 0
        self.states: list[str] = []
        self.boot = 0.0
        self.trails = trails
        self.reader = WalReader(
            Reading("host=/nowhere", "s", decoder),
            self.base,
            self.health,
            Metrics(),
            trailing=lambda: self.trails,
            started=self._started,
            database=cast(Database, self.base),
            open_connection=self._open,
        )

    def _now(self) -> float:
        return self.boot

    def _started(self) -> None:
        self.started += 1

    def _open(self, wal_sender_timeout: float) -> Any:
        self.timeouts.append(wal_sender_timeout)
        wire = self.wires[min(len(self.opened), len(self.wires) - 1)]
        wire.closed = 0
        self.opened.append(wire)
        return wire

    def run(self, main: Callable[[], Any] | None = None, *, seconds: float = 3.0) -> None:
        """Run the reader and ``main`` for a time that does not pass."""

        async def whole() -> None:
            with trio.move_on_after(seconds):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.reader.run)
                    if main is not None:
                        await main()
                    await trio.sleep_forever()

        try:
            with self._inline():
                run(whole, autojump=True)
        finally:
            for wire in self.wires:
                wire.release()

    @contextmanager
    def _inline(self) -> Iterator[None]:
        async def run_sync(work: Callable[..., Any], *args: Any, **_: Any) -> Any:
            await trio.lowlevel.checkpoint()
            return work(*args)

        is_now = self.health.reader_is

        def remember(state: Any, reason: str = "") -> None:
            self.states.append(state)
            is_now(state, reason)

        with (
            mock.patch("trio.to_thread.run_sync", run_sync),
            mock.patch.object(wal_reader, "boot_clock", self._now),
            mock.patch.object(self.health, "reader_is", remember),
        ):
            yield


def message(payload: bytes, at: int = 0) -> Any:
    return SimpleNamespace(payload=payload, data_start=at)


def test_every_stream_begins_at_the_slots_own_position() -> None:
    rig = Rig()
    rig.run()
    started = rig.wires[0].started
    assert (started["start_lsn"], started["slot_name"], started["decode"]) == (0, "s", False)
    assert started["options"] == {"an": "option"}
    assert started["status_interval"] == 10
    assert rig.started == 1
    assert rig.states == ["streaming", "stopped"]


@pytest.mark.parametrize(("timeout", "interval"), [(0, 10), (3, 1), (1, 1), (15, 5), (600, 10)])
def test_status_updates_are_frequent_enough_for_the_server(timeout: float, interval: int) -> None:
    rig = Rig()
    rig.base.answers.append((STREAM, float(timeout)))
    rig.run()
    assert rig.wires[0].started["status_interval"] == interval
    assert rig.timeouts == [timeout]


@given(st.lists(st.lists(st.binary(min_size=1, max_size=3), max_size=5), max_size=6))
@settings(max_examples=50)
def test_messages_are_handed_on_in_their_order_whatever_comes_between(ticks: list[list[bytes]]) -> None:
    wire = Wire(*[each for tick in ticks for each in (*map(message, tick), None)])
    rig = Rig(wire)
    rig.run(seconds=30)
    assert rig.base.received == [payload for tick in ticks for payload in tick]
    assert rig.base.flushed >= sum(1 for tick in ticks if tick)


# -- confirming


def test_only_what_may_be_confirmed_is_and_once() -> None:
    rig = Rig(Wire(message(b"a"), None, message(b"b")))

    async def main() -> None:
        rig.base.position = 10
        await trio.sleep(2.5)
        rig.base.position = 30
        await trio.sleep(1.5)
        rig.base.position = 20  # never back
        await trio.sleep(1.5)

    rig.run(main, seconds=6)
    assert rig.wires[0].feedback == [(10, False), (30, False), (30, True)]
    assert set(rig.base.trailing) == {True}


def test_an_idle_stream_confirms_too() -> None:
    rig = Rig()
    rig.base.position = 5
    rig.run(seconds=2.5)
    assert rig.wires[0].feedback[0] == (5, False)
    assert rig.wires[0].reads >= 2, "psycopg2 sends its status from within a read"


def test_who_holds_commits_confirms_at_once() -> None:
    rig = Rig(Wire(message(b"a")), trails=False)
    rig.base.position = 5
    rig.run(seconds=0.5)
    assert rig.wires[0].feedback[0] == (5, True)
    assert set(rig.base.trailing) == {False}


def test_nothing_is_confirmed_before_there_is_anything() -> None:
    rig = Rig(Wire(message(b"a")))
    rig.run()
    assert rig.wires[0].feedback == []


def test_a_last_word_that_is_lost_does_not_matter() -> None:
    rig = Rig(Wire(message(b"a")))
    rig.base.position = 7

    async def main() -> None:
        await trio.sleep(0.5)
        mock.patch.object(rig.wires[0], "send_feedback", side_effect=psycopg2.OperationalError("gone")).start()

    rig.run(main)
    assert rig.states[-1] == "stopped"


# -- what is missing in the catalog


def test_a_message_that_lacks_something_is_finished_before_the_next() -> None:
    rig = Rig(Wire(message(b"a"), message(b"miss"), message(b"b")))
    rig.base.missing = {b"miss": 3.0}
    rig.run(seconds=10)
    assert rig.base.received == [b"a", b"miss", b"b"]
    assert rig.base.gulps == [3]


def test_a_catalog_that_does_not_answer_ends_the_stream() -> None:
    first = Wire(message(b"miss"), message(b"b"))
    rig = Rig(first, Wire(message(b"miss"), message(b"b")))
    rig.base.missing = {b"miss": TIMEOUT}
    rig.run(seconds=TIMEOUT)
    assert len(rig.opened) == 2
    assert first.reads == 3, "nothing is read after so long a pause"
    assert first.closed


# -- letting go


def test_a_large_message_that_comes_in_pieces_is_no_storm() -> None:
    wire = Wire()
    wire.hears = 0

    def go_on() -> None:
        if wire.reads == 20 * STORM_READS:
            wire.script.append(message(b"large"))
            wire.calm()

    wire.on_empty = go_on
    wire.wake()
    rig = Rig(wire)
    rig.run(seconds=2)
    assert rig.base.received == [b"large"]
    assert rig.states == ["streaming", "stopped"]


def test_a_storm_of_keepalives_at_one_place_is_a_server_that_leaves() -> None:
    wire = Wire()
    wire.wake()
    rig = Rig(wire, Wire())
    rig.run(seconds=0.05)
    assert wire.closed
    assert wire.reads <= STORM_READS + 3
    assert "retrying" in rig.states


def test_a_storm_whose_place_moves_is_a_neighbour_who_writes() -> None:
    wire = Wire()
    wire.wake()

    def move() -> None:
        wire.wal_end += 1
        if wire.reads > 20 * STORM_READS:
            wire.calm()

    wire.on_empty = move
    rig = Rig(wire)
    rig.run(seconds=2)
    assert wire.reads > 20 * STORM_READS
    assert rig.states == ["streaming", "stopped"]


def test_a_storm_is_not_summed_up_over_messages_and_pauses() -> None:
    wire = Wire(*[each for _ in range(5) for each in [*[None] * (STORM_READS - 2), message(b"x"), None]])
    wire.wake()
    rig = Rig(wire)
    wire.on_empty = wire.calm
    rig.run(seconds=0.5)
    assert len(rig.base.received) == 5
    assert rig.states == ["streaming", "stopped"]


def test_leaving_closes_at_once_and_comes_back() -> None:
    rig = Rig(Wire(message(b"a")), Wire())
    rig.base.position = 9

    async def main() -> None:
        await trio.sleep(0.5)
        rig.reader.leave("the server is going")
        await trio.lowlevel.checkpoint()
        await trio.sleep(0.0001)
        assert rig.wires[0].closed
        assert rig.wires[0].feedback[-1] == (9, True)
        assert rig.health.reader_reason == "the server is going"

    rig.run(main)
    assert len(rig.opened) == 2


def test_a_server_that_leaves_while_the_stream_begins_is_heard() -> None:
    rig = Rig(Wire(), Wire())
    opening = rig.base.open

    async def open_(stream: Stream) -> Mapping[str, str]:
        if len(rig.base.opened) == 0:
            rig.reader.leave("the server is going")
        return await opening(stream)

    with mock.patch.object(rig.base, "open", open_):
        rig.run()
    assert rig.opened[0].started == {}
    assert rig.opened[1].started != {}


def test_a_stream_that_was_not_read_for_too_long_is_not_touched_again() -> None:
    wire = Wire()

    def suspend() -> None:
        rig.boot += TIMEOUT / 3 + 1

    wire.script.append(None)
    rig = Rig(wire, Wire())
    rig.base.position = 3

    async def main() -> None:
        await trio.sleep(0.5)
        reads = wire.reads
        suspend()
        await trio.sleep(1.0)
        assert wire.reads == reads
        assert wire.closed

    rig.run(main)
    assert len(rig.opened) == 2


def test_what_is_read_after_a_long_stop_in_the_midst_of_it_is_not_taken() -> None:
    """The next stream has it, or somebody else: nobody may believe that it came."""

    def suspended() -> Any:
        rig.boot += TIMEOUT / 3 + 1
        wire.wal_end = 900
        return message(b"c", 800)

    wire = Wire(message(b"a", 100), None, message(b"b", 200), suspended, message(b"d", 900))
    rig = Rig(wire, Wire())
    rig.run()
    assert rig.base.received == [b"a"]
    assert len(rig.opened) == 2
    assert rig.reader._read_to.position < 200


def test_without_a_timeout_of_the_server_a_pause_does_not_matter() -> None:
    rig = Rig()
    rig.base.answers.append((STREAM, 0.0))

    async def main() -> None:
        await trio.sleep(0.5)
        rig.boot += 1e6

    rig.run(main)
    assert len(rig.opened) == 1


# -- errors


@pytest.mark.parametrize(
    "error",
    [
        server_error(None, "server closed the connection unexpectedly"),
        server_error("57P01", "terminating connection"),
        server_error("XX000", "broken", psycopg2.DatabaseError),
        DecodeError("what is this"),
        OSError(28, "No space left on device"),
    ],
)
def test_an_error_in_the_stream_is_told_and_the_stream_begins_again(error: Exception) -> None:
    rig = Rig(Wire(message(b"a"), error), Wire(message(b"b")))
    rig.run()
    assert rig.base.received == [b"a", b"b"]
    assert rig.states == ["streaming", "retrying", "streaming", "stopped"]
    assert rig.wires[0].closed


@pytest.mark.parametrize(
    ("error", "said", "code"),
    [
        (MemoryError(), "", "out_of_memory"),
        (server_error(None, "no message from the libpq"), "out of memory\n", "out_of_memory"),
        (server_error("XX000", "broken"), "invalid memory alloc request", "database_refused"),
    ],
)
def test_a_row_without_memory_for_it_is_told_with_its_repair(error: Exception, said: str, code: str) -> None:
    wire = Wire(message(b"a"), error)
    wire.info.error_message = said
    rig = Rig(wire, Wire(message(b"b")))
    with capture_logs() as logs:
        rig.run(seconds=40)
    assert rig.base.received == [b"a", b"b"]
    assert [line["code"] for line in logs if line["event"] == "reader.failed"] == [code]
    assert [line["seconds"] > 10 for line in logs if line["event"] == "reader.failed"] == [code == "out_of_memory"]


def test_a_broken_message_is_counted() -> None:
    rig = Rig(Wire(message(b"a"), message(b"broken"), message(b"b")), Wire(message(b"c")))
    rig.run()
    assert rig.states[:3] == ["streaming", "retrying", "streaming"]
    assert rig.base.received == [b"a", b"c"]


def test_a_bug_is_no_error_of_the_stream() -> None:
    rig = Rig(Wire(message(b"a"), ZeroDivisionError()))
    with pytest.raises(BaseExceptionGroup):
        rig.run()


def test_tries_become_rarer() -> None:
    rig = Rig()
    rig.base.answers.extend([DatabaseUnreachable("away")] * 1000)
    rig.run(seconds=60)
    assert 8 < rig.base.prepared < 30


def test_a_slot_that_is_taken_is_looked_at_each_second() -> None:
    rig = Rig()
    rig.base.answers.extend([DatabaseRefused("taken", reason="slot_active")] * 40)
    rig.run(seconds=39.5 * STANDBY_SECONDS)
    assert 38 <= rig.base.prepared <= 41
    assert set(rig.states) == {"standby", "stopped"}


def test_a_slot_that_is_taken_at_the_last_moment_is_stood_by_for() -> None:
    wire = Wire()
    wire.on_start = server_error("55006", 'replication slot "s" is active for PID 1')
    rig = Rig(wire, Wire())
    rig.run(seconds=3)
    assert rig.states == ["standby", "streaming", "stopped"]
    assert wire.closed


@pytest.mark.parametrize(("decoder", "runs"), [("auto", 3), ("wal2json", 2)])
def test_a_plugin_that_is_refused_gives_its_slot_up_where_another_will_do(decoder: str, runs: int) -> None:
    wire = Wire()
    wire.on_start = server_error("42501", 'permission denied for output plugin "wal2json"')
    rig = Rig(wire, Wire(), decoder=decoder)
    rig.run(seconds=2)
    assert rig.base.prepared == runs  # twice to prepare, and once to drop
    assert rig.states == ["retrying", "streaming", "stopped"]
