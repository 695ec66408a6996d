"""Connections: which settings they are opened with, what becomes of their errors, and who gets which one."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

import psycopg2
import psycopg2.extras
import pytest
import trio

from tests.shell.database_support import FakeConnection, server_error
from tests.support import run
from walstream.errors import DatabaseRefused, DatabaseUnreachable, EnvironmentFailure
from walstream.shell.database import postgres
from walstream.shell.database.postgres import PINNED, Database, PgConnection, connect, connection, cut_lost, translate

REFUSED = [
    ("42501", 'permission denied for output plugin "wal2json"', "plugin_refused"),
    ("42501", "permission denied for table t", "insufficient_privilege"),
    ("42704", 'replication slot "s" does not exist', "slot_missing"),
    ("42704", 'publication "p" does not exist', "missing_object"),
    ("55006", 'replication slot "s" is active for PID 1', "slot_active"),
    ("55000", "cannot read from logical replication slot", "not_in_prerequisite_state"),
    ("58P01", "could not access file", "plugin_missing"),
    ("53400", "all replication slots are in use", "configuration_limit"),
    ("XX000", "something else", ""),
    (None, "FATAL:  sorry, too many clients already", "too_many_connections"),
    (
        None,
        "FATAL:  remaining connection slots are reserved for roles",
        "too_many_connections",
    ),
    (None, 'FATAL:  too many connections for role "u"', "too_many_connections"),
    (None, 'FATAL:  password authentication failed for user "u"', "bad_password"),
    (None, "fe_sendauth: no password supplied", "bad_password"),
    (None, "FATAL:  must be superuser or replication role to start walsender", "no_replication_right"),
    (None, "FATAL:  permission denied to start WAL sender", "no_replication_right"),
    (None, "FATAL:  number of requested standby connections exceeds max_wal_senders", "no_free_wal_sender"),
]


@pytest.mark.parametrize(("state", "text", "reason"), REFUSED)
def test_a_refusal_has_a_stable_reason_and_a_repair(state: str | None, text: str, reason: str) -> None:
    error = translate(server_error(state, text))
    assert isinstance(error, DatabaseRefused)
    assert error.reason == reason
    assert bool(error.repair) is bool(reason)
    assert text in str(error)


@pytest.mark.parametrize("state", ["57P01", "57P02", "57P03", "08006", "08P01", None])
@pytest.mark.parametrize("kind", [psycopg2.OperationalError, psycopg2.DatabaseError, psycopg2.InterfaceError])
def test_a_lost_connection_is_unreachable(state: str | None, kind: type[psycopg2.Error]) -> None:
    if kind is psycopg2.InterfaceError:
        error = translate(psycopg2.InterfaceError("connection already closed"))
    else:
        error = translate(server_error(state, "server closed the connection unexpectedly", kind))
    assert isinstance(error, DatabaseUnreachable)
    assert error.retry


def test_a_name_that_cannot_be_looked_up_is_unreachable_with_a_repair() -> None:
    error = translate(server_error(None, 'could not translate host name "db" to address: Name or service not known'))
    assert isinstance(error, DatabaseUnreachable)
    assert "WALSTREAM_DATABASE_URL" in error.repair


def test_an_error_without_text_is_named_by_its_class() -> None:
    assert translate(psycopg2.OperationalError()).message == "OperationalError"


class Opened:
    """Stands for ``psycopg2.connect``: remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.connections: list[FakeConnection] = []
        self.error: psycopg2.Error | None = None

    def __call__(self, dsn: str, **arguments: Any) -> FakeConnection:
        self.asked.append({"dsn": dsn, **arguments})
        if self.error is not None:
            raise self.error
        made = FakeConnection()
        self.connections.append(made)
        return made

    def options(self) -> dict[str, str]:
        """The settings of the newest connection as libpq hands them to the server: blanks may be escaped."""
        text = self.asked[-1]["options"].replace("\\ ", "\1")
        pairs = [part.partition("=") for part in text.split(" ") if part not in ("", "-c")]
        return {name: value.replace("\1", " ") for name, _, value in pairs}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    stand_in = Opened()
    monkeypatch.setattr(psycopg2, "connect", stand_in)
    return stand_in


def test_settings_that_decide_how_values_print_are_pinned(opened: Opened) -> None:
    connect("host=h", application_name="a")
    assert opened.options() == {**PINNED, "search_path": ""}
    assert opened.asked[-1]["client_encoding"] == "UTF8"
    assert opened.asked[-1]["application_name"] == "a"
    assert opened.connections[0].autocommit


def test_options_of_the_dsn_stay_and_ours_win(opened: Opened) -> None:
    connect("host=h options='-c statement_timeout=5 -c TimeZone=Asia/Tokyo'", application_name="a", search_path=None)
    assert opened.options() == {**PINNED, "statement_timeout": "5"}
    assert opened.asked[-1]["options"].index("Asia/Tokyo") < opened.asked[-1]["options"].index("TimeZone=UTC")


def test_the_time_to_connect_is_bounded_unless_the_dsn_says_else(opened: Opened) -> None:
    connect("host=h", application_name="a")
    assert opened.asked[-1]["connect_timeout"] == postgres.CONNECT_SECONDS
    connect("host=h connect_timeout=3", application_name="a")
    assert opened.asked[-1]["connect_timeout"] == "3"


def test_the_server_tries_to_send_for_as_long_as_it_is_told(opened: Opened) -> None:
    connect("host=h", application_name="a", stall_seconds=2.5)
    assert opened.options()["tcp_user_timeout"] == "2500"
    connect("host=h options='-c tcp_user_timeout=7'", application_name="a", stall_seconds=2.5)
    assert opened.options()["tcp_user_timeout"] == "7"


def test_a_replication_connection_is_of_its_own_kind(opened: Opened) -> None:
    connect("host=h", application_name="a", replication=True)
    assert opened.asked[-1]["connection_factory"] is psycopg2.extras.LogicalReplicationConnection
    assert not opened.connections[0].autocommit


def test_a_connection_that_cannot_be_had_is_our_error(opened: Opened) -> None:
    opened.error = psycopg2.OperationalError("Connection refused")
    with pytest.raises(DatabaseUnreachable, match="Connection refused"):
        connect("host=h", application_name="a")


def test_a_malformed_dsn_is_our_error() -> None:
    with pytest.raises(EnvironmentFailure):
        connect("nonsense", application_name="a")


def test_a_block_closes_its_connection_whatever_happens(opened: Opened) -> None:
    with connection("host=h", "a"):
        assert not opened.connections[0].closed
    assert opened.connections[0].closed


def test_an_error_in_a_block_leaves_it_as_ours(opened: Opened) -> None:
    def refuse() -> None:
        raise server_error("42501")

    with pytest.raises(DatabaseRefused), connection("host=h", "a"):
        refuse()
    assert opened.connections[0].closed


def with_database(scene: Callable[[Database], Any], size: int = 3) -> None:
    async def main() -> None:
        database = Database("host=h", "a", size)
        with trio.fail_after(30):
            await scene(database)
        await database.aclose()

    run(main)


def test_an_idle_connection_is_used_again(opened: Opened) -> None:
    async def scene(database: Database) -> None:
        assert await database.run(lambda _: 1) == 1
        assert await database.run(lambda _: 2) == 2

    with_database(scene)
    assert len(opened.connections) == 1
    assert opened.connections[0].closed


def test_statements_at_once_get_connections_of_their_own_up_to_the_size(opened: Opened) -> None:
    together = threading.Barrier(3, timeout=20)
    users: list[PgConnection] = []

    def work(using: PgConnection) -> None:
        users.append(using)
        together.wait()

    async def scene(database: Database) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(database.run, work)

    with_database(scene, size=3)
    assert len(opened.connections) == 3
    assert len(users) == 6


def test_an_error_is_translated_and_a_sound_connection_is_kept(opened: Opened) -> None:
    def refuse(_: PgConnection) -> None:
        raise server_error("42501")

    async def scene(database: Database) -> None:
        with pytest.raises(DatabaseRefused):
            await database.run(refuse)
        await database.run(lambda _: None)

    with_database(scene)
    assert len(opened.connections) == 1


@pytest.mark.parametrize("state", ["closed", "in a transaction"])
def test_a_connection_that_is_not_sound_is_given_up(opened: Opened, state: str) -> None:
    async def scene(database: Database) -> None:
        def spoil(_: PgConnection) -> None:
            using = opened.connections[-1]
            if state == "closed":
                using.closed = 2
            else:
                using.info.transaction_status = psycopg2.extensions.TRANSACTION_STATUS_INERROR
            raise ValueError(state)

        with pytest.raises(ValueError, match=state):
            await database.run(spoil)
        await database.run(lambda _: None)

    with_database(scene)
    assert len(opened.connections) == 2
    assert opened.connections[0].closed


def test_forgetting_closes_what_is_idle(opened: Opened) -> None:
    async def scene(database: Database) -> None:
        await database.run(lambda _: None)
        database.forget_idle()
        assert opened.connections[0].closed
        await database.run(lambda _: None)

    with_database(scene)
    assert len(opened.connections) == 2


def test_cancelling_cancels_the_statement_and_gives_the_connection_up(opened: Opened) -> None:
    begun, finish = threading.Event(), threading.Event()

    def work(_: PgConnection) -> None:
        begun.set()
        finish.wait(20)

    async def scene(database: Database) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(database.run, work)
            await trio.to_thread.run_sync(begun.wait)
            nursery.cancel_scope.cancel()
        with trio.fail_after(20):
            while not opened.connections[0].cancelled:  # by a thread that nobody waits for
                await trio.lowlevel.checkpoint()
        assert opened.connections[0].cancelled == 1
        finish.set()
        await database.run(lambda _: None)

    with_database(scene)
    assert len(opened.connections) == 2


def test_a_statement_of_which_the_server_knows_nothing_is_cut(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that waits for the answer gets an error; what is idle went the same way."""
    asking = FakeConnection(usual=(FakeConnection().info.backend_pid,))
    ours, theirs = socket.socketpair()
    together, begun = threading.Barrier(2, timeout=20), threading.Event()

    def hang(using: Any) -> None:
        using.descriptor = ours.fileno()
        begun.set()
        assert ours.recv(1) == b""  # until somebody ends the socket
        raise psycopg2.OperationalError("cut")

    async def scene(database: Database) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(database.run, lambda _: together.wait())
        async with trio.open_nursery() as nursery:

            async def fails() -> None:
                with pytest.raises(DatabaseUnreachable, match="cut"):
                    await database.run(hang)

            nursery.start_soon(fails)
            await trio.to_thread.run_sync(begun.wait, 20)
            cut_lost(asking.as_connection(), [database])
            assert not asking.executed, "nothing is overdue"
            monkeypatch.setattr(postgres, "OVERDUE_SECONDS", -1.0)
            cut_lost(asking.as_connection(), [database])
        assert [connection.closed for connection in opened.connections].count(1) == 1
        assert database.overdue() == []

    with ours, theirs:
        with_database(scene)


def test_cancelling_lets_the_thread_go(opened: Opened) -> None:
    """Where the answer to the cancelled statement is lost as well, it would wait for ever."""
    ours, theirs = socket.socketpair()
    begun, ended = threading.Event(), threading.Event()

    def hang(using: Any) -> None:
        using.descriptor = ours.fileno()
        begun.set()
        ours.recv(1)
        ended.set()

    async def scene(database: Database) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(database.run, hang)
            await trio.to_thread.run_sync(begun.wait, 20)
            nursery.cancel_scope.cancel()
        assert await trio.to_thread.run_sync(ended.wait, 20)

    with ours, theirs:
        with_database(scene)
