"""Captured changes come to whoever LISTENs in the database, where the subscription asks for it."""

from __future__ import annotations

import json
import select
import time
from typing import Any

import psycopg2
import psycopg2.extensions

from integration.bus.conftest import Start
from integration.fixtures.node import Node, eventually
from integration.fixtures.postgres import TestDatabase
from walstream.bus.names import notify_channel


class Listener:
    """A session of anybody's."""

    def __init__(self, database: TestDatabase, *channels: str) -> None:
        self.connection: psycopg2.extensions.connection = database.connect()
        self.payloads: list[str] = []
        with self.connection.cursor() as cursor:
            for channel in channels:
                cursor.execute(f'listen "{channel}"')

    def next(self, count: int = 1, seconds: float = 20) -> list[dict[str, Any]]:
        """The next messages, of any channel."""
        deadline = time.monotonic() + seconds
        while len(self.payloads) < count:
            assert time.monotonic() < deadline, f"{len(self.payloads)} of {count} notifications"
            select.select([self.connection], [], [], 0.5)
            self.connection.poll()
            self.payloads += [notify.payload for notify in self.connection.notifies]
            self.connection.notifies.clear()
        taken, self.payloads = self.payloads[:count], self.payloads[count:]
        return [json.loads(payload) for payload in taken]

    def close(self) -> None:
        self.connection.close()


def subscribe(node: Node, table: str, events: str = "{INSERT,UPDATE,DELETE}") -> None:
    node.database.execute(
        "insert into realtime.subscriptions (table_name, events, notify) values (%s, %s, true)", (table, events)
    )


def mirroring(node: Node) -> bool:
    return any(line["event"] == "mirror.started" for line in node.daemon.log())


def connections(database: TestDatabase) -> int:
    count = database.scalar(
        "select count(*) from pg_stat_activity where datname = current_database()"
        " and application_name = 'walstream (mirror)'"
    )
    return int(count)


def test_changes_come_to_a_listening_session_in_commit_order(prepared: TestDatabase, start: Start) -> None:
    with start(prepared) as node:
        node.table("users", "id bigint primary key, name text, note text", captured=False)
        node.table("quiet", captured=True)
        prepared.execute("insert into public.quiet values (1, 'x')")
        assert connections(prepared) == 0  # it costs nothing while nobody asks for it
        subscribe(node, "public.users", "{INSERT,UPDATE,DELETE,TRUNCATE}")
        listener = Listener(prepared, "realtime:table:public.users", "realtime:table:public.quiet")
        eventually(lambda: mirroring(node))
        before = time.time()
        prepared.execute("insert into public.users values (1, 'ada', null)")
        [inserted] = listener.next()
        assert {key: inserted[key] for key in ("operation", "schema", "table", "new", "old")} == {
            "operation": "INSERT",
            "schema": "public",
            "table": "users",
            "new": {"id": 1, "name": "ada", "note": None},
            "old": None,
        }
        assert before - 5 < inserted["timestamp"] < before + 60
        prepared.execute("insert into public.quiet values (2, 'x')")
        prepared.execute(
            "update public.users set name = 'eve'; delete from public.users;"
            "insert into public.users select n, 'n' || n, null from generate_series(1, 2000) n; truncate public.users"
        )
        rest = listener.next(2003)
        assert [message["operation"] for message in rest] == ["UPDATE", "DELETE", *["INSERT"] * 2000, "TRUNCATE"]
        assert [message["new"]["id"] for message in rest[2:-1]] == list(range(1, 2001))
        assert len({message["position"] for message in rest}) == 2003

        prepared.execute("update realtime.subscriptions set notify = false where table_name = 'public.users'")
        eventually(lambda: connections(prepared) == 0)
        listener.close()


def test_a_row_too_large_for_a_notification_is_told_in_part(prepared: TestDatabase, start: Start) -> None:
    with start(prepared) as node:
        columns = ", ".join(f"c{number} text" for number in range(150))
        node.table("wide", f"id bigint primary key, v text, {columns}", captured=False)
        subscribe(node, "public.wide")
        listener = Listener(prepared, "realtime:table:public.wide")
        eventually(lambda: mirroring(node))
        prepared.execute("insert into public.wide (id, v) values (1, repeat('x', 9000)), (2, 'small')")
        large, small = listener.next(2)
        assert large["truncated"] is True
        assert large["new"]["id"] == 1
        assert "v" not in large["new"]
        assert "truncated" not in small
        names = ", ".join(f"c{number}" for number in range(150))
        values = ", ".join(["repeat('y', 60)"] * 150)
        prepared.execute(f"insert into public.wide (id, {names}) values (3, {values})")
        [bare] = listener.next()
        assert bare["truncated"] is True
        assert not bare["new"]
        assert bare["position"]
        listener.close()


def test_a_long_name_is_found_under_its_short_form(prepared: TestDatabase, start: Start) -> None:
    with start(prepared) as node:
        name = "a" * 63
        node.table(name, captured=False)
        subscribe(node, f"public.{name}")
        listener = Listener(prepared, notify_channel(f"realtime:table:public.{name}"))
        eventually(lambda: mirroring(node))
        prepared.execute(f"insert into public.{name} values (1, 'v')")
        assert listener.next()[0]["table"] == name
        listener.close()


def test_of_two_daemons_one_mirrors_and_the_other_takes_over(prepared: TestDatabase, start: Start) -> None:
    with start(prepared) as first:
        first.table("t", captured=False)
        subscribe(first, "public.t")
        eventually(lambda: mirroring(first))
        listener = Listener(prepared, "realtime:table:public.t")
        with start(prepared, WALSTREAM_SLOT="second") as second:
            eventually(lambda: connections(prepared) == 2)
            prepared.execute("insert into public.t values (1, 'a'), (2, 'b')")
            assert [message["new"]["id"] for message in listener.next(2)] == [1, 2]
            assert not mirroring(second)
            first.daemon.stop()
            eventually(lambda: mirroring(second))
            prepared.execute("insert into public.t values (3, 'c')")
            assert listener.next()[0]["new"]["id"] == 3
            assert listener.payloads == []
        listener.close()


def test_what_was_committed_before_the_start_is_not_told_again(prepared: TestDatabase, start: Start) -> None:
    with start(prepared) as node:
        node.table("t", captured=False)
        subscribe(node, "public.t")
        eventually(lambda: mirroring(node))
        prepared.execute("insert into public.t values (1, 'a')")
    listener = Listener(prepared, "realtime:table:public.t")
    with start(prepared) as node:
        eventually(lambda: mirroring(node))
        prepared.execute("insert into public.t values (2, 'b')")
        assert [message["new"]["id"] for message in listener.next()] == [2]
    listener.close()


def test_a_lost_connection_loses_no_change(prepared: TestDatabase, start: Start) -> None:
    with start(prepared) as node:
        node.table("t", captured=False)
        subscribe(node, "public.t")
        eventually(lambda: mirroring(node))
        listener = Listener(prepared, "realtime:table:public.t")
        for number in range(100):
            if number % 40 == 20:
                prepared.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where application_name = 'walstream (mirror)' and datname = current_database()"
                )
            prepared.execute("insert into public.t values (%s, 'v')", (number,))
        seen: list[int] = []
        while len(set(seen)) < 100:
            seen.append(listener.next()[0]["new"]["id"])
        assert sorted(set(seen)) == list(range(100))
        listener.close()
