"""The slot's watch: what its answers mean, and what it does when its connection ends."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import structlog.testing
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.shell.database_support import FakeConnection, server_error
from tests.support import run
from walstream.errors import DatabaseRefused, DatabaseUnreachable, WalstreamError
from walstream.history.budget import Budget
from walstream.lsn import Lsn
from walstream.shell.database.open_transactions import MAKING_SECONDS, OPEN_SECONDS, may_hold
from walstream.shell.database.postgres import PgConnection
from walstream.shell.health import Health
from walstream.shell.wal.slot_watch import ANSWER_SECONDS, SLACK_BYTES, Look, SlotWatch
from walstream.telemetry.log import SLOT_FELL_BEHIND, SLOT_WAITS, STREAM_HELD_COMMITS
from walstream.telemetry.metrics import Metrics

MIB = 1024 * 1024
WINDOW = 128 * MIB


def row(**changes: Any) -> tuple[Any, ...]:
    """One row of the question, as psycopg2 gives it."""
    values = {
        "plugin": "wal2json",
        "active_pid": 4711,
        "restart_lsn": "0/10",
        "confirmed_lsn": "0/20",
        "wal_status": "reserved",
        "safe_bytes": None,
        "lag_bytes": 100,
        "retained_bytes": 200,
        "sync_state": "async",
        "application_name": "walstream/n",
        "standby_names": "",
        "keep_bytes": -1,
        "failover": None,
    }
    assert set(changes) <= set(values)
    return tuple({**values, **changes}.values())


def answer(**changes: Any) -> Look:
    return Look(*row(**changes))


@given(st.integers(0, 2**40), st.integers(-1, 2**45))
def test_the_window_is_never_more_than_a_quarter_of_what_the_server_keeps(wanted: int, keep: int) -> None:
    window = answer(keep_bytes=keep).window(wanted)
    assert 0 <= window <= wanted
    if keep < 0:
        assert window == wanted
    else:
        assert window * 4 <= keep


@pytest.mark.parametrize(
    ("sync_state", "holds"), [(None, False), ("async", False), ("potential", True), ("sync", True), ("quorum", True)]
)
def test_whoever_is_not_async_holds_commits(sync_state: str | None, holds: bool) -> None:
    assert answer(sync_state=sync_state).holds_commits is holds


@pytest.mark.parametrize(
    ("standby_names", "holds"),
    [
        ("", False),
        ("*", True),
        ('"*"', True),
        ("replica1", False),
        ("WALSTREAM_n", True),
        ('first 1 (replica1, "walstream_N")', True),
        ("any 2 (replica1, replica2, *)", True),
        ("2 (walstream, n)", False),
        ('"a "" b", c', False),
    ],
)
def test_a_stream_that_is_named_holds_commits_before_it_is_shown(standby_names: str, holds: bool) -> None:
    assert answer(application_name="walstream_n", standby_names=standby_names).holds_commits is holds
    assert not answer(sync_state=None, application_name=None, standby_names=standby_names).holds_commits


@given(st.integers(0, 2**42), st.integers(0, 2**38))
def test_much_wal_kept_back_is_an_alarm(retained: int, window: int) -> None:
    assert answer(retained_bytes=retained).is_behind(window) is (retained > 2 * window + SLACK_BYTES)
    assert answer(retained_bytes=None, wal_status="unreserved").is_behind(window)
    assert not answer(retained_bytes=None, wal_status="lost").is_behind(window)


class Server:
    """Hands out connections over socket pairs; ``ends`` are the server's ends of them."""

    def __init__(self) -> None:
        self.connections: list[FakeConnection] = []
        self.ends: list[socket.socket] = []
        self.ours: list[socket.socket] = []
        self.usual = row()
        self.refusals: list[WalstreamError] = []

    def open(self) -> PgConnection:
        if self.refusals:
            raise self.refusals.pop(0)
        connection = FakeConnection(usual=self.usual)
        ours, theirs = socket.socketpair()
        self.ours.append(ours)
        self.ends.append(theirs)
        connection.descriptor = ours.fileno()
        self.connections.append(connection)
        return connection.as_connection()

    def end(self, number: int, error: Exception) -> None:
        """End a connection: the next statement on it fails, and its socket shows it."""
        self.connections[number].answers.append(error)
        self.ends[number].close()

    def close(self) -> None:
        for end in (*self.ours, *self.ends):
            end.close()


class Scene:
    """A watch over a server that is not there, beside which a test runs."""

    def __init__(self, server: Server, seconds: float) -> None:
        self.server = server
        self.health = Health(version="0", node="n")
        self.metrics = Metrics()
        self.left: list[WalstreamError] = []
        self.leaving = trio.Event()
        self.watch = SlotWatch(
            server.open,
            "walstream",
            self.health,
            wal_bytes=WINDOW,
            on_server_leaving=self._leave,
            metrics=self.metrics,
            seconds=seconds,
        )

    def _leave(self, error: WalstreamError) -> None:
        self.left.append(error)
        self.leaving.set()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def watching(server: Server, scene: Callable[[Scene], Awaitable[None]], seconds: float = 3600.0) -> Scene:
    """Run ``scene`` beside a watch that looks again only when told so, unless ``seconds`` says else."""

    async def main() -> Scene:
        made = Scene(server, seconds)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.watch.run)
            with trio.fail_after(30):
                await scene(made)
            nursery.cancel_scope.cancel()
        return made

    return run(main)


def test_facts_reach_the_board_and_the_metrics(server: Server) -> None:
    async def scene(on: Scene) -> None:
        assert (on.watch.restart_lsn, on.watch.confirmed_lsn, on.watch.wal_bytes) == (0, 0, WINDOW)
        assert not on.watch.must_not_trail
        on.watch.gauge.own_bytes = 1000
        look = await on.watch.looked()
        assert look == (*row()[:2], Lsn(0x10), Lsn(0x20), *row()[4:], None)
        assert (on.watch.restart_lsn, on.watch.confirmed_lsn, on.watch.wal_bytes) == (0x10, 0x20, WINDOW)
        assert on.health.slot is not None
        assert (on.health.slot.lag_bytes, on.health.slot.retained_bytes, on.health.slot.active) == (100, 200, True)
        assert on.metrics.registry.get_sample_value("walstream_slot_lag_bytes") == 100
        assert on.metrics.registry.get_sample_value("walstream_slot_retained_bytes") == 200
        assert on.health.slot.budget == Budget("ok", 1000, 200, 800)
        assert on.metrics.registry.get_sample_value("walstream_slot_left_bytes") == 800

    made = watching(server, scene)
    assert server.connections[0].executed[0][1] == ("walstream",)
    assert made.left == []


def test_no_slot_is_no_facts(server: Server) -> None:
    async def scene(on: Scene) -> None:
        await on.watch.looked()
        server.connections[0].answers.append(None)
        on.watch.look_now()
        assert await on.watch.looked() is None
        assert on.health.slot is None
        assert (on.watch.restart_lsn, on.watch.must_not_trail) == (0, False)

    watching(server, scene)


def test_a_stream_that_holds_commits_keeps_nothing_back(server: Server) -> None:
    server.usual = row(sync_state="sync")

    async def scene(on: Scene) -> None:
        await on.watch.looked()
        assert (on.watch.must_not_trail, on.watch.wal_bytes) == (True, 0)
        server.connections[0].answers.append(row(keep_bytes=100 * MIB))
        on.watch.look_now()
        await on.watch.looked()
        assert (on.watch.must_not_trail, on.watch.wal_bytes) == (False, 25 * MIB)

    watching(server, scene)


def test_it_looks_again_by_itself(server: Server) -> None:
    async def scene(on: Scene) -> None:
        for _ in range(3):
            await on.watch.looked()

    watching(server, scene, seconds=0.001)


def test_the_end_of_the_connection_is_noticed_between_two_looks(server: Server) -> None:
    async def scene(on: Scene) -> None:
        await on.watch.looked()
        server.end(0, server_error("57P01", "terminating connection due to administrator command"))
        await on.leaving.wait()
        assert on.health.health()["database"] == {
            "status": "down",
            "reason": "terminating connection due to administrator command",
        }
        await on.watch.looked()
        assert len(server.connections) == 2

    made = watching(server, scene)
    assert [type(error) for error in made.left] == [DatabaseUnreachable]
    assert server.connections[0].closed


@pytest.mark.parametrize("state", [None, "57P01", "57P02", "57P03", "08006"])
def test_it_is_noticed_with_and_without_a_state(server: Server, state: str | None) -> None:
    async def scene(on: Scene) -> None:
        await on.watch.looked()
        server.end(0, server_error(state))
        await on.leaving.wait()

    watching(server, scene)


def test_a_notice_of_the_server_is_not_its_end(server: Server) -> None:
    """A reload may send a changed setting: the socket is readable, and the next look reads it."""

    async def scene(on: Scene) -> None:
        await on.watch.looked()
        server.ends[0].send(b"S")
        await on.watch.looked()
        server.ours[0].recv(1)
        on.watch.look_now()
        await on.watch.looked()

    assert watching(server, scene).left == []
    assert len(server.connections) == 1


def test_a_refused_question_is_not_the_servers_end(server: Server) -> None:
    async def scene(on: Scene) -> None:
        await on.watch.looked()
        server.connections[0].answers.append(server_error("42501", "permission denied"))
        on.watch.look_now()
        await on.watch.looked()

    assert watching(server, scene).left == []


class _NoAnswer(Exception):
    """Stands for a statement whose answer never comes."""


def test_an_answer_that_does_not_come_is_waited_for_on_another_connection(server: Server) -> None:
    """And is no reason to close the stream: a slow server is none that leaves."""

    async def run_sync(work: Callable[..., Any], *_: Any, **__: Any) -> Any:
        await trio.lowlevel.checkpoint()
        try:
            return work()
        except _NoAnswer:
            await trio.sleep_forever()

    left: list[WalstreamError] = []
    health = Health(version="0", node="n")
    also: list[PgConnection] = []

    async def main() -> None:
        watch = SlotWatch(server.open, "s", health, wal_bytes=1, on_server_leaving=left.append, seconds=3600.0)
        watch.ask_also = also.append
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.run)
            await watch.looked()
            server.connections[0].answers.append(_NoAnswer())
            begun = trio.current_time()
            watch.look_now()
            await watch.looked()
            assert ANSWER_SECONDS <= trio.current_time() - begun < ANSWER_SECONDS + 1
            nursery.cancel_scope.cancel()

    with mock.patch("trio.to_thread.run_sync", run_sync):
        run(main, autojump=True)
    assert left == []
    assert [connection.closed for connection in server.connections] == [1, 0]
    assert len(also) == 2


def test_no_connection_to_be_had_is_no_reason_to_close_the_stream(server: Server) -> None:
    server.refusals += [DatabaseRefused("too many"), DatabaseUnreachable("starting up")]

    async def scene(on: Scene) -> None:
        await on.watch.looked()
        assert on.health.health()["database"] == {"status": "up", "reason": ""}

    assert watching(server, scene).left == []


KEEPER = (None, 4712, "app", "shop", 61.0)
END_IT = "end that transaction, or run: select pg_terminate_backend(4712)"


@pytest.mark.parametrize(
    ("sight", "seconds", "event", "repair"),
    [
        (row(confirmed_lsn=None, lag_bytes=None), MAKING_SECONDS, SLOT_WAITS, END_IT),
        (row(retained_bytes=2 * WINDOW + SLACK_BYTES + 1), OPEN_SECONDS, SLOT_FELL_BEHIND, END_IT),
    ],
)
def test_an_open_transaction_is_named(
    server: Server, sight: tuple[Any, ...], seconds: float, event: str, repair: str
) -> None:
    async def scene(on: Scene) -> None:
        await on.watch.looked()
        server.connections[0].answers += [sight, KEEPER]
        on.watch.look_now()
        await on.watch.looked()
        assert on.health.slot is not None
        assert on.health.slot.kept_by == f"the transaction of 4712 (app in shop, open for 61 s): {repair}"
        assert on.health.slot.is_made is (event != SLOT_WAITS)
        assert server.connections[0].executed[-1][1] == (seconds,)

    with structlog.testing.capture_logs() as logs:
        watching(server, scene)
    assert [line["repair"] for line in logs if line["event"] == event] == [repair]


def test_a_slot_in_the_making_that_waits_for_nobody_old_is_no_trouble(server: Server) -> None:
    async def scene(on: Scene) -> None:
        await on.watch.looked()
        server.connections[0].answers += [row(confirmed_lsn=None, lag_bytes=None), None]
        on.watch.look_now()
        await on.watch.looked()

    with structlog.testing.capture_logs() as logs:
        watching(server, scene)
    assert [line for line in logs if line["event"] == SLOT_WAITS] == []


@pytest.mark.parametrize(
    ("changes", "event"),
    [
        ({"retained_bytes": 41 * MIB, "safe_bytes": 59 * MIB, "keep_bytes": 100 * MIB}, SLOT_FELL_BEHIND),
        ({"sync_state": "potential"}, STREAM_HELD_COMMITS),
        ({"wal_status": "unreserved"}, SLOT_FELL_BEHIND),
        ({"retained_bytes": 2 * WINDOW + SLACK_BYTES + 1}, SLOT_FELL_BEHIND),
    ],
)
def test_a_trouble_is_told_when_it_begins(server: Server, changes: dict[str, Any], event: str) -> None:
    async def scene(on: Scene) -> None:
        await on.watch.looked()
        for sight in (row(**changes), row(**changes), row(), row(**changes)):
            server.connections[0].answers += [sight, None] if may_hold(Look(*sight).retained_bytes, 100) else [sight]
            on.watch.look_now()
            await on.watch.looked()

    with structlog.testing.capture_logs() as logs:
        watching(server, scene)
    told = [line for line in logs if line["event"] == event]
    assert len(told) == 2
    assert all(line["slot"] == "walstream" and line["repair"] for line in told)
