"""A connection of one's own: what hangs is given up and cut."""

from __future__ import annotations

import socket
import threading
from functools import partial

import psycopg2
import pytest
import trio

from tests.shell.database_support import FakeConnection
from tests.support import run
from walstream.errors import DatabaseUnreachable
from walstream.shell.channels.line import Line
from walstream.shell.database.postgres import PgConnection


def test_an_error_leaves_as_ours_and_the_line_can_be_closed() -> None:
    def fail(connection: PgConnection) -> None:
        raise psycopg2.OperationalError("gone")

    async def main() -> None:
        fake = FakeConnection()
        line = await Line.open(fake.as_connection)
        with pytest.raises(DatabaseUnreachable, match="gone"):
            await line.do(fail, seconds=10)
        line.close()
        assert fake.closed

    run(main)


def test_an_answer_that_does_not_come_in_time_is_a_lost_connection() -> None:
    async def main() -> None:
        fake = FakeConnection()
        line = await Line.open(fake.as_connection)
        with pytest.raises(DatabaseUnreachable, match="no answer"):
            await line.do(lambda connection: None, seconds=0)
        line.close()
        assert fake.closed

    run(main)


def test_a_statement_that_hangs_is_given_up_and_its_socket_cut() -> None:
    ours, theirs = socket.socketpair()
    began, ended = threading.Event(), threading.Event()

    def hang(connection: PgConnection) -> None:
        began.set()
        ours.recv(1)  # until somebody ends the socket
        ended.set()

    async def main() -> None:
        fake = FakeConnection()
        fake.descriptor = ours.fileno()
        line = await Line.open(fake.as_connection)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(line.do, hang, seconds=60))
            await trio.to_thread.run_sync(began.wait, 20)
            nursery.cancel_scope.cancel()
        line.close()
        assert not fake.closed  # that would wait for the thread
        assert await trio.to_thread.run_sync(ended.wait, 20)

    with ours, theirs:
        run(main)


def test_a_connection_that_comes_too_late_is_closed() -> None:
    fake = FakeConnection()
    began, wanted = threading.Event(), threading.Event()

    def connect() -> PgConnection:
        began.set()
        wanted.wait(20)
        return fake.as_connection()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Line.open, connect)
            await trio.to_thread.run_sync(began.wait, 20)
            nursery.cancel_scope.cancel()
        wanted.set()
        with trio.fail_after(20):
            while not fake.closed:
                await trio.lowlevel.checkpoint()

    run(main)
