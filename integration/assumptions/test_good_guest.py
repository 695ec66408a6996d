"""How a reader that keeps WAL back can be in the way of the server's owner, and how it gets out of it."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import trio

from integration.assumptions.stream import APPLICATION, PLUGINS, Stream, confirmed, eventually, make_slot, streaming
from integration.fixtures.daemon import free_port
from integration.fixtures.postgres import TestDatabase, fresh_cluster, fresh_database
from walstream.errors import WalstreamError
from walstream.shell.commands.private_cluster import Cluster
from walstream.shell.database.postgres import connect, translate
from walstream.shell.health import Health
from walstream.shell.wal.heartbeat import emit
from walstream.shell.wal.slot_watch import SlotWatch, look


@pytest.fixture
def own(tmp_path: Path) -> Iterator[TestDatabase]:
    """A database on a server of the test's own."""
    with fresh_cluster(tmp_path) as cluster, fresh_database(cluster) as database:
        database.execute("create table t (id bigserial primary key, v text)")
        yield database


def set_standbys(database: TestDatabase, names: str | None) -> None:
    """Set ``synchronous_standby_names`` for the server, None to forget it, and wait until it is in force."""
    database.execute(
        "alter system reset synchronous_standby_names"
        if names is None
        else f"alter system set synchronous_standby_names = '{names}'"
    )
    database.execute("select pg_reload_conf()")
    eventually(lambda: database.scalar("select current_setting('synchronous_standby_names')") == (names or ""))


def fast_stop(cluster: Cluster) -> None:
    os.kill(cluster.pid, signal.SIGINT)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_fast_shutdown_waits_for_a_reader_that_trails(own: TestDatabase, plugin: str) -> None:
    """Why the stream is closed when the server leaves: it waits for all to be confirmed, and asks without pause."""
    slot = make_slot(own, plugin)
    for number in range(5):
        own.execute("insert into t (v) values (%s)", (str(number),))
    with streaming_and_left(own, slot, plugin) as stream:
        ends = [message.end for message in stream.commits(5)]
        stream.confirm(ends[0])
        fast_stop(own.cluster)
        empty, deadline = 0, time.monotonic() + 1.5
        while time.monotonic() < deadline:
            assert stream.poll() is None
            empty += 1
        assert own.cluster.is_running, "it should have waited"
        assert empty > 1000
        stream.close()
        eventually(lambda: not own.cluster.is_running, seconds=10)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_it_does_not_wait_for_one_that_has_confirmed_everything(own: TestDatabase, plugin: str) -> None:
    """The counter-test: what holds the shutdown up is the window, not the connection."""
    slot = make_slot(own, plugin)
    own.execute("insert into t (v) values ('x')")
    with streaming_and_left(own, slot, plugin) as stream:
        stream.confirm(stream.commits(1)[0].end)
        fast_stop(own.cluster)
        with pytest.raises(psycopg2.Error):
            stream.rest(seconds=10)
        eventually(lambda: not own.cluster.is_running, seconds=10)


@contextmanager
def streaming_and_left(database: TestDatabase, slot: str, plugin: str, opened: Any = None) -> Iterator[Stream]:
    """A stream whose server may be gone at the end."""
    stream = Stream(database.dsn, slot, plugin, opened=opened)
    try:
        yield stream
    finally:
        stream.close()


def watching(database: TestDatabase, slot: str, act: Callable[[], None]) -> list[WalstreamError]:
    """What the watch says when ``act`` makes the server go. Fails if it says nothing."""
    left: list[WalstreamError] = []

    async def main() -> None:
        done = trio.Event()

        def leave(error: WalstreamError) -> None:
            left.append(error)
            done.set()

        watch = SlotWatch(
            functools.partial(connect, database.dsn, application_name=APPLICATION),
            slot,
            Health(version="0", node="n"),
            wal_bytes=1,
            on_server_leaving=leave,
            seconds=3600.0,
        )
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch.run)
                await watch.looked()
                await trio.to_thread.run_sync(act)
                await done.wait()
                nursery.cancel_scope.cancel()

    trio.run(main)
    return left


@pytest.mark.parametrize("how", ["fast", "immediate", "kill"])
def test_an_ordinary_connection_is_ended_first(own: TestDatabase, how: str) -> None:
    """Why one ordinary connection is watched: it ends at once, while the stream is still asked to confirm."""
    slot = make_slot(own, "pgoutput")
    own.execute("insert into t (v) values ('x')")
    with streaming_and_left(own, slot, "pgoutput") as stream:
        stream.commits(1)
        acts: dict[str, Callable[[], None]] = {
            "fast": lambda: fast_stop(own.cluster),
            "immediate": lambda: os.kill(own.cluster.pid, signal.SIGQUIT),
            "kill": own.cluster.kill,
        }
        left = watching(own, slot, acts[how])
        assert [error.code for error in left] == ["database_unreachable"]
        if how == "fast":
            assert own.cluster.is_running, "it waits for the stream"
        stream.close()
        eventually(lambda: not own.cluster.is_running, seconds=10)


def test_a_reload_is_no_end(own: TestDatabase) -> None:
    """A changed setting makes the watched socket readable: the watch asks, and stays."""
    slot = make_slot(own, "pgoutput")

    def act() -> None:
        own.execute("alter system set intervalstyle = 'iso_8601'")
        own.execute("select pg_reload_conf()")
        time.sleep(0.3)
        fast_stop(own.cluster)

    assert len(watching(own, slot, act)) == 1
    eventually(lambda: not own.cluster.is_running)


def commit_in_background(database: TestDatabase) -> tuple[threading.Thread, threading.Event]:
    """A commit of a user, who waits for it."""
    done = threading.Event()

    def work() -> None:
        connection = database.connect()
        connection.cursor().execute("insert into t (v) values ('waiting')")
        connection.close()
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    return thread, done


def test_a_stream_that_is_taken_for_a_standby_makes_every_commit_wait(own: TestDatabase) -> None:
    """Why the daemon asks for its ``sync_state`` and stops trailing: users wait for what it confirms."""
    slot = make_slot(own, "pgoutput")
    set_standbys(own, "*")
    with streaming(own, slot, "pgoutput") as stream:
        asking = connect(own.dsn, application_name="test")
        eventually(lambda: (seen := look(asking, slot)) is not None and seen.holds_commits)
        thread, done = commit_in_background(own)
        end = stream.commits(1)[0].end
        assert not done.wait(0.5)
        seen = look(asking, slot)
        assert seen is not None
        assert (seen.sync_state, seen.holds_commits) == ("async", True), "shown wrongly until something is confirmed"
        emit(asking, "a heartbeat waits for nobody")
        stream.confirm(end)
        deadline = time.monotonic() + 10
        while not done.is_set():
            assert time.monotonic() < deadline
            message = stream.poll()
            if message is not None and message.kind == "C":
                stream.confirm(message.end)
            time.sleep(0.01)
        thread.join()
        eventually(lambda: (seen := look(asking, slot)) is not None and seen.sync_state == "sync")
        asking.close()
    set_standbys(own, None)


@pytest.mark.parametrize("names", ["", "standby1", "first 1 (standby1)", "any 1 (standby1, standby2)"])
def test_a_name_of_our_own_is_async(own: TestDatabase, names: str) -> None:
    """Why the stream has a reserved ``application_name``: who names the real standbys never means us."""
    slot = make_slot(own, "pgoutput")
    set_standbys(own, names)
    with streaming(own, slot, "pgoutput"):
        asking = connect(own.dsn, application_name="test")
        eventually(lambda: (seen := look(asking, slot)) is not None and seen.sync_state is not None)
        time.sleep(0.1)
        seen = look(asking, slot)
        assert seen is not None
        assert seen.sync_state == "async"
        assert not seen.holds_commits
        asking.close()
    set_standbys(own, None)


def test_a_slot_beyond_the_limit_is_lost_for_good(tmp_path: Path) -> None:
    """Why the window is a quarter of ``max_slot_wal_keep_size``: what is over the limit cannot be had back."""
    settings = {"max_slot_wal_keep_size": "2MB", "min_wal_size": "32MB", "max_wal_size": "32MB", "autovacuum": "off"}
    with fresh_cluster(tmp_path, settings) as cluster, fresh_database(cluster) as database:
        slot = make_slot(database, "pgoutput")
        asking = connect(database.dsn, application_name="test")
        seen = look(asking, slot)
        assert seen is not None
        assert (seen.keep_bytes, seen.window(1 << 30)) == (2 << 20, 512 << 10)
        assert seen.safe_bytes is not None
        for _ in range(4):
            database.execute("create table if not exists junk (v text)")
            database.execute("insert into junk select repeat('x', 1000) from generate_series(1, 20000)")
            database.execute("select pg_switch_wal()")
        database.execute("checkpoint")
        seen = look(asking, slot)
        asking.close()
        assert seen is not None
        assert seen.is_lost
        assert seen.restart_lsn is None
        with pytest.raises(psycopg2.Error) as caught:
            Stream(database.dsn, slot, "pgoutput")
        assert translate(caught.value).args[0]
        assert caught.value.pgcode == "55000"


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_fast_shutdown_waits_for_a_stream_that_is_not_read_as_long_as_the_server_waits_for_a_word(
    own: TestDatabase, plugin: str
) -> None:
    """What bounds the harm of a daemon that is suspended: it says nothing. Set for the stream, it is ours alone."""
    slot = make_slot(own, plugin)
    own.execute("insert into t (v) select repeat('x', 1000) from generate_series(1, 20000)")
    opened = connect(f"{own.dsn} options='-c wal_sender_timeout=1s'", application_name=APPLICATION, replication=True)
    with streaming_and_left(own, slot, plugin, opened):
        fast_stop(own.cluster)
        eventually(lambda: not own.cluster.is_running, seconds=30)


def test_a_checkpoint_waits_for_a_stream_that_is_not_read_until_its_network_gives_it_up(tmp_path: Path) -> None:
    """Why the stream asks for ``tcp_user_timeout``: who is told to end writes why, and nobody reads."""
    port = free_port()
    settings = {
        "max_slot_wal_keep_size": "16MB", "min_wal_size": "32MB", "max_wal_size": "1GB", "autovacuum": "off",
        "listen_addresses": "127.0.0.1", "port": str(port),
    }  # fmt: skip
    with fresh_cluster(tmp_path, settings) as cluster, fresh_database(cluster) as database:
        slot = make_slot(database, "pgoutput")
        where = f"host=127.0.0.1 port={port} dbname={database.name} user=postgres"
        opened = connect(where, application_name=APPLICATION, replication=True, stall_seconds=1)
        stuck = "select wait_event from pg_stat_activity where backend_type = 'walsender'"
        with streaming_and_left(database, slot, "pgoutput", opened):
            database.execute("create table t (v text)")
            database.execute("insert into t select repeat('x', 1000) from generate_series(1, 40000)")
            database.execute("select pg_switch_wal()")
            eventually(lambda: database.query(stuck) == [("WalSenderWriteData",)])
            database.execute("set statement_timeout = '20s'")
            database.execute("checkpoint")
            assert database.query("select wal_status, active from pg_replication_slots") == [("lost", False)]


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_killed_client_frees_its_slot_only_when_the_server_notices(own: TestDatabase, plugin: str) -> None:
    """Why 55006 means "wait" and not "somebody else": our own stream of a moment ago may still hold the slot."""
    slot = make_slot(own, plugin)
    with streaming(own, slot, plugin):
        with pytest.raises(psycopg2.Error) as caught:
            Stream(own.dsn, slot, plugin)
        assert caught.value.pgcode == "55006"
    own.execute("insert into t (v) values ('x')")
    with streaming(own, slot, plugin) as stream:
        stream.commits(1)
    assert confirmed(own, slot)
