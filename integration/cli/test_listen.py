"""``walstream listen`` against a real server: what it prints of every kind of change, and how it ends."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from integration.cli.conftest import Walstream
from integration.fixtures.daemon import SECRET, running_daemon
from integration.fixtures.postgres import TestDatabase, fresh_cluster, fresh_database
from walstream.shell.commands.private_cluster import Cluster

SECONDS = 20.0


class Listening:
    """A running ``walstream listen`` that has begun; its lines as they come."""

    def __init__(self, walstream: Walstream, *arguments: str, ready: str = "listening to") -> None:
        self.process = walstream.start("listen", *arguments)
        self._out: queue.Queue[str | None] = queue.Queue()
        self._err: queue.Queue[str | None] = queue.Queue()
        self.told: list[str] = []
        self._pumps = [
            threading.Thread(target=self._pump, args=(stream, lines), daemon=True)
            for stream, lines in ((self.process.stdout, self._out), (self.process.stderr, self._err))
        ]
        for pump in self._pumps:
            pump.start()
        while ready not in (self.told[-1] if self.told else ""):
            line = self._err.get(timeout=SECONDS)
            assert line is not None, self.told
            self.told.append(line)

    @staticmethod
    def _pump(stream: Any, lines: queue.Queue[str | None]) -> None:
        with stream:
            for line in stream:
                lines.put(line)
        lines.put(None)

    def line(self) -> str:
        line = self._out.get(timeout=SECONDS)
        assert line is not None, (self.process.wait(), self.rest())
        return line.rstrip("\n")

    def change(self) -> tuple[str, dict[str, Any]]:
        """The two lines of a change."""
        head, payload = self.line(), self.line()
        assert payload.startswith("Payload: ")
        return head, json.loads(payload.removeprefix("Payload: "))

    def payloads(self, count: int) -> list[dict[str, Any]]:
        return [self.change()[1] for _ in range(count)]

    def rest(self) -> str:
        """What is left of stderr, once the process has ended."""
        lines = []
        while (line := self._err.get(timeout=SECONDS)) is not None:
            lines.append(line)
        return "".join(lines)

    def end(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(SECONDS)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pump in self._pumps:
            pump.join(SECONDS)


@pytest.fixture(params=["wal2json", "pgoutput"])
def listener(walstream: Walstream, prepared: TestDatabase, request: pytest.FixtureRequest) -> Iterator[Walstream]:
    prepared.execute("create table public.users (id int primary key, name text, body text)")
    walstream.environ["WALSTREAM_DECODER"] = request.param
    yield walstream
    deadline = time.monotonic() + SECONDS
    while left(prepared) != ([], []):
        assert time.monotonic() < deadline, left(prepared)
        time.sleep(0.05)


def left(database: TestDatabase) -> tuple[list[Any], list[Any]]:
    """Slots and publications of listeners that are still there."""
    return (
        database.query("select slot_name from pg_replication_slots where slot_name like 'walstream_listen%'"),
        database.query("select pubname from pg_publication where pubname like 'walstream_listen%'"),
    )


def rows(changes: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(change["operation"], change["new"], change["old"]) for change in changes]


def test_every_operation_is_printed_in_two_lines(listener: Walstream, prepared: TestDatabase) -> None:
    listening = Listening(listener, "public.users")
    try:
        assert "no subscription names public.users" in listening.told[0]
        pid = prepared.scalar(
            "select active_pid from pg_replication_slots where slot_name like 'walstream_listen%%' and database = %s",
            (prepared.name,),
        )
        prepared.execute("insert into users values (1, 'Ann', null)")
        head, payload = listening.change()
        assert head == (
            f'Asynchronous notification "realtime:table:public.users" received from server process with PID {pid}.'
        )
        assert payload == {
            "timestamp": pytest.approx(time.time(), abs=60),
            "operation": "INSERT",
            "schema": "public",
            "table": "users",
            "new": {"id": 1, "name": "Ann", "body": None},
            "old": None,
            "commit_timestamp": payload["commit_timestamp"],
            "position": payload["position"],
            "xid": payload["xid"],
            "last": True,
        }
        prepared.execute("update users set name = 'Bea'; update users set id = 2; delete from users; truncate users")
        assert rows(listening.payloads(4)) == [
            ("UPDATE", {"id": 1, "name": "Bea", "body": None}, {"id": 1}),
            ("UPDATE", {"id": 2, "name": "Bea", "body": None}, {"id": 1}),
            ("DELETE", None, {"id": 2}),
            ("TRUNCATE", None, None),
        ]
        assert listening.end() == 0
        assert listening.rest() == ""
    finally:
        listening.close()


def test_json_is_one_object_a_line_and_a_subscription_applies(listener: Walstream, prepared: TestDatabase) -> None:
    listener.ok("subscribe", "users", "INSERT", "name like 'A%'", "--columns", "name")
    listening = Listening(listener, "users", "--json")
    try:
        assert len(listening.told) == 1
        prepared.execute(
            "insert into users values (1, 'Ann', 'x'), (2, 'Bea', 'x'), (3, 'Abe', 'x'); delete from users"
        )
        found = [json.loads(listening.line()) for _ in range(2)]
        assert rows(found) == [("INSERT", {"id": 1, "name": "Ann"}, None), ("INSERT", {"id": 3, "name": "Abe"}, None)]
        assert [change.get("last", False) for change in found] == [False, True]
        assert listening.end(signal.SIGTERM) == 0
    finally:
        listening.close()


def test_names_in_quotes_and_every_table_of_a_schema(listener: Walstream, prepared: TestDatabase) -> None:
    prepared.execute(
        'create schema "Odd.One"; create table "Odd.One"."My ""T""" (a int); create table "Odd.One".b (a int)'
    )
    one = Listening(listener, '"Odd.One"."My ""T"""')
    every = Listening(listener, '"Odd.One".*')
    try:
        prepared.execute("insert into users values (1)")
        prepared.execute('insert into "Odd.One".b values (7); insert into "Odd.One"."My ""T""" values (8)')
        head, payload = one.change()
        assert '"realtime:table:"Odd.One"."My ""T""""' in head
        assert (payload["schema"], payload["table"], payload["new"]) == ("Odd.One", 'My "T"', {"a": 8})
        assert [(change["table"], change["new"]) for change in every.payloads(2)] == [
            ("b", {"a": 7}),
            ('My "T"', {"a": 8}),
        ]
        # A table whose rows the WAL does not identify: nobody's UPDATE fails because of us.
        prepared.execute('update "Odd.One".b set a = 9')
        assert (one.end(), every.end()) == (0, 0)
    finally:
        one.close()
        every.close()


def test_partitions_are_their_root(listener: Walstream, prepared: TestDatabase) -> None:
    prepared.execute(
        "create table parts (id int primary key, v text) partition by range (id);"
        "create table parts_1 partition of parts for values from (0) to (100)"
    )
    listening = Listening(listener, "parts")
    try:
        prepared.execute("insert into parts values (1, 'x'); update parts set v = 'y'")
        assert [(change["table"], change["operation"]) for change in listening.payloads(2)] == [
            ("parts", "INSERT"),
            ("parts", "UPDATE"),
        ]
        assert listening.end() == 0
    finally:
        listening.close()


def test_a_large_transaction_comes_whole_and_in_order(listener: Walstream, prepared: TestDatabase) -> None:
    listening = Listening(listener, "users", "--json")
    try:
        prepared.execute("insert into users select n, 'Ann', repeat('x', 1000) from generate_series(1, 60000) n")
        found = [json.loads(listening.line()) for _ in range(60_000)]
        assert [change["new"]["id"] for change in found] == list(range(1, 60_001))
        assert [change["new"]["id"] for change in found if change.get("last")] == [60_000]
        assert listening.end() == 0
    finally:
        listening.close()


def test_ctrl_c_while_nobody_takes_what_is_printed(listener: Walstream, prepared: TestDatabase) -> None:
    with listener.start("listen", "users") as process:
        assert process.stderr is not None
        while "listening to" not in process.stderr.readline():
            pass
        prepared.execute("insert into users select n, 'Ann', repeat('x', 1000) from generate_series(1, 2000) n")
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0
        assert process.stderr.read() == ""


@pytest.mark.parametrize("quiet", [False, True])
def test_a_reader_that_has_enough_ends_it(listener: Walstream, prepared: TestDatabase, quiet: bool) -> None:
    with listener.start("listen", "users") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while "listening to" not in process.stderr.readline():
            pass
        prepared.execute("insert into users values (1, 'Ann')")
        assert process.stdout.readline().startswith("Asynchronous notification ")
        process.stdout.close()
        if not quiet:
            prepared.execute("insert into users select n from generate_series(2, 100) n")
        assert process.wait(SECONDS) == 0
        assert process.stderr.read() == ""


def test_seconds_end_it(listener: Walstream) -> None:
    done = listener("listen", "users", "1.5", "--json")
    assert (done.code, done.out) == (0, "")


def test_ctrl_c_while_a_slot_waits_for_a_transaction(listener: Walstream, prepared: TestDatabase) -> None:
    other = prepared.connect(autocommit=False)
    try:
        other.cursor().execute("insert into users values (1)")
        with listener.start("listen", "users") as process:
            assert process.stderr is not None
            while "waiting for the transactions" not in process.stderr.readline():
                pass
            process.send_signal(signal.SIGINT)
            assert process.wait(SECONDS) == 0
        assert prepared.query("select 1 from pg_stat_activity where application_name = 'walstream listen'") == []
    finally:
        other.close()


def test_a_publication_that_a_killed_listener_left_is_swept(walstream: Walstream, prepared: TestDatabase) -> None:
    prepared.execute("create table public.users (id int primary key)")
    walstream.environ["WALSTREAM_DECODER"] = "pgoutput"
    killed = Listening(walstream, "users")
    other = Listening(walstream, "users")
    try:
        assert len(left(prepared)[1]) == 2
        killed.end(signal.SIGKILL)
        while prepared.scalar("select count(*) from pg_stat_activity where application_name = 'walstream listen'") > 2:
            time.sleep(0.05)
        third = Listening(walstream, "users")
        try:
            assert len(left(prepared)[1]) == 2
            prepared.execute("insert into users values (1)")
            assert rows(other.payloads(1)) == rows(third.payloads(1)) == [("INSERT", {"id": 1}, None)]
        finally:
            third.end()
        assert other.end() == 0
        assert left(prepared) == ([], [])
    finally:
        killed.close()
        other.close()


def test_what_is_not_there_is_told(walstream: Walstream, prepared: TestDatabase, database: TestDatabase) -> None:
    prepared.execute("create table public.users (id int primary key)")
    done = walstream("listen", "userz")
    assert (done.code, done.out) == (3, "")
    assert done.err == "error: there is no table userz [not_found]\nrepair: did you mean public.users?\n"
    assert walstream("listen", "users", "--format", "csv").code == 2
    assert walstream("listen", "users", "soon").code == 2
    assert walstream("listen", "users", "--token", "t").code == 2
    # A database that walstream init has not seen.
    database.execute("create table public.t (a int)")
    bare = Walstream(database.dsn)
    done = bare("listen", "t", "1")
    assert done.code == 0
    assert "no subscription names public.t" in done.err


def test_who_may_not(walstream: Walstream, prepared: TestDatabase, cluster: Cluster) -> None:
    prepared.execute("create table public.users (id int primary key)")
    role = f"reader_{prepared.name}"
    prepared.execute(f"create role {role} login; grant usage on schema realtime to {role};")
    prepared.execute(f"grant select on realtime.subscriptions to {role}")
    try:
        walstream.environ["WALSTREAM_DATABASE_URL"] = cluster.dsn(prepared.name, role)
        done = walstream("listen", "users", "5")
        assert done.code == 4
        assert "no_replication_right" in done.err
        prepared.execute(f"alter role {role} replication")
        walstream.environ["WALSTREAM_DECODER"] = "pgoutput"
        done = walstream("listen", "users", "5")
        assert done.code == 4
        assert "no_publication" in done.err
        assert left(prepared) == ([], [])
        # walstream's own publications will do.
        Walstream(prepared.dsn, {"WALSTREAM_SLOT": "none_such"}).ok("subscribe", "users")
        assert walstream("listen", "users", "1").code == 0
    finally:
        prepared.execute(f"drop owned by {role}; drop role {role}")


def test_a_server_that_ends(tmp_path: Path) -> None:
    with fresh_cluster(tmp_path) as own, fresh_database(own) as database:
        database.execute("create table public.users (id int primary key)")
        walstream = Walstream(database.dsn)
        listening = Listening(walstream, "users")
        try:
            database.close()
            own.stop()
            assert listening.process.wait(SECONDS) == 5
            told = listening.rest()
            assert "error: terminating connection due to administrator command [database_unreachable]" in told
            assert "repair: " in told
        finally:
            listening.close()


@pytest.mark.parametrize("decoder", ["wal2json", "pgoutput"])
def test_commits_that_wait_for_every_standby_do_not_wait_for_a_listener_for_long(tmp_path: Path, decoder: str) -> None:
    with fresh_cluster(tmp_path) as own, fresh_database(own) as database:
        database.execute("create table public.users (id int primary key); create table public.other (id int)")
        listening = Listening(Walstream(database.dsn, {"WALSTREAM_DECODER": decoder}), "users")
        try:
            database.execute("alter system set synchronous_standby_names = '*'")
            database.execute("select pg_reload_conf()")
            while database.scalar("show synchronous_standby_names") != "*":
                time.sleep(0.05)
            database.execute("set statement_timeout = '15s'")
            for number in range(3):
                database.execute("insert into users values (%s)", (number,))
                database.execute("insert into other values (%s)", (number,))
            assert len(listening.payloads(3)) == 3
        finally:
            # While the listener is still there: afterwards nobody could confirm what cleaning up commits.
            database.execute("alter system reset synchronous_standby_names")
            database.execute("select pg_reload_conf()")
            while database.scalar("show synchronous_standby_names"):
                time.sleep(0.05)
            listening.close()


def test_a_stream_that_somebody_ends(listener: Walstream, prepared: TestDatabase) -> None:
    for terminated in (
        "select active_pid from pg_replication_slots where slot_name like 'walstream_listen%%' and database = %s",
        """
        select pid from pg_stat_activity
         where application_name = 'walstream listen' and backend_type = 'client backend' and datname = %s
        """,
    ):
        listening = Listening(listener, "users")
        try:
            prepared.execute(f"select pg_terminate_backend(({terminated}))", (prepared.name,))
            assert listening.process.wait(SECONDS) == 5
            assert "terminating connection due to administrator command" in listening.rest()
        finally:
            listening.close()


def test_live_prints_what_the_daemon_sends(walstream: Walstream, prepared: TestDatabase, tmp_path: Path) -> None:
    prepared.execute("create table public.users (id int primary key, name text)")
    walstream.ok("subscribe", "users")
    with running_daemon(prepared.dsn, tmp_path) as daemon:
        walstream.environ |= {"WALSTREAM_LISTEN": f"127.0.0.1:{daemon.port}", "WALSTREAM_SLOT": daemon.slot}
        refused = walstream("listen", "users", "5", "--live")
        assert refused.code == 4
        walstream.environ["WALSTREAM_JWT_SECRET"] = SECRET
        listening = Listening(walstream, "users", "--live", ready="Subscribed")
        every = Listening(walstream, "public.*", "--live", "--json", ready="Subscribed")
        try:
            prepared.execute("insert into users values (1, 'Ann')")
            head, payload = listening.change()
            pid = prepared.scalar("select active_pid from pg_replication_slots where slot_name = %s", (daemon.slot,))
            assert head == (
                f'Asynchronous notification "realtime:table:public.users" received from server process with PID {pid}.'
            )
            assert (payload["operation"], payload["new"]) == ("INSERT", {"id": 1, "name": "Ann"})
            assert json.loads(every.line()) == payload
            assert listening.end() == 0
            daemon.stop()
            assert every.process.wait(SECONDS) == 1
            assert "daemon_unreachable" in every.rest()
        finally:
            listening.close()
            every.close()
    gone = walstream("listen", "users", "5", "--live")
    assert gone.code == 1
    assert "no daemon answers" in gone.err


def test_live_begins_with_rows_or_where_it_was(walstream: Walstream, prepared: TestDatabase, tmp_path: Path) -> None:
    prepared.execute("create table public.users (id int primary key, name text); insert into users values (1, 'Ann')")
    walstream.ok("subscribe", "users")
    with running_daemon(prepared.dsn, tmp_path) as daemon, contextlib.ExitStack() as stack:
        walstream.environ |= {
            "WALSTREAM_LISTEN": f"127.0.0.1:{daemon.port}",
            "WALSTREAM_SLOT": daemon.slot,
            "WALSTREAM_JWT_SECRET": SECRET,
        }

        def listening(*arguments: str, ready: str) -> Listening:
            return stack.enter_context(contextlib.closing(Listening(walstream, "users", *arguments, ready=ready)))

        refused = listening("--snapshot", ready="Changes may be missing")
        assert refused.told[-1].endswith("permission denied for table users [snapshot_failed]\n")
        prepared.execute("grant select on users to service_role")
        rows = listening("--snapshot", ready="is complete")
        assert "all 1 rows" in "".join(rows.told)
        assert rows.change()[1] == {
            "operation": "SNAPSHOT", "schema": "public", "table": "users", "new": {"id": 1, "name": "Ann"}, "old": None,
        }  # fmt: skip
        prepared.execute("insert into users values (2, 'Eve')")
        prepared.execute("insert into users values (3, 'Bob')")
        second, third = rows.payloads(2)
        assert [change["new"]["id"] for change in (second, third)] == [2, 3]
        again = listening("--json", "--since", second["position"], ready="Going on")
        assert json.loads(again.line()) == third
        lost = listening("--since", "00000000.1.1.0", ready="Changes may be missing")
        assert lost.told[-1].endswith("[other_cluster]\n")
        both = listening("--since", "00000000.1.1.0", "--snapshot", ready="is complete")
        assert [change["operation"] for change in both.payloads(3)] == ["SNAPSHOT"] * 3
        wild = walstream("listen", "public.*", "9", "--snapshot")
        assert wild.code == 1
        assert "not supported for wildcard subscriptions" in wild.err
    odd = walstream("listen", "users", "--since", "yesterday")
    assert odd.code == 2
    assert "not a position" in odd.err


def test_the_documented_script(walstream: Walstream, prepared: TestDatabase) -> None:
    """Listening in the background while another session inserts."""
    prepared.execute("create table public.todos (id int generated always as identity primary key, title text)")
    listening = Listening(walstream, "public.todos", "30")
    try:
        connection = psycopg2.connect(prepared.dsn)
        with connection, connection.cursor() as cursor:
            cursor.execute("insert into public.todos (title) values ('buy milk')")
        connection.close()
        assert rows(listening.payloads(1)) == [("INSERT", {"id": 1, "title": "buy milk"}, None)]
    finally:
        listening.close()
