"""subscribe, unsubscribe and subscriptions against the catalogue of a real server."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest

from integration.cli.conftest import Walstream
from integration.fixtures.postgres import TestDatabase, fresh_cluster, fresh_database, prepared_template

TABLES = """
create table public.users (id integer primary key, name text, born date, mood text[], at timestamptz);
create table public.nokey (a integer, b text);
create table public."Odd Name" (id integer primary key, "Camel" text);
create table public."Users2" (id integer primary key);
create schema shop;
create table shop.orders (id bigint primary key, total numeric(10, 2), state text);
create table public.parted (id integer, day date, primary key (id, day)) partition by range (day);
create table public.parted_1 partition of public.parted for values from ('2026-01-01') to ('2027-01-01');
create view public.seen as select * from public.users;
create unlogged table public.fleeting (id integer primary key);
"""


@pytest.fixture(autouse=True)
def _tables(prepared: TestDatabase) -> None:
    prepared.execute(TABLES)


def rows(database: TestDatabase) -> list[tuple[object, ...]]:
    return database.query("select table_name, events, filter, columns, notify from realtime.subscriptions order by 1")


def test_the_id_alone_is_printed_and_subscribing_again_replaces(walstream: Walstream, prepared: TestDatabase) -> None:
    first = walstream.ok("subscribe", "public.users")
    assert str(uuid.UUID(first.out.strip())) + "\n" == first.out
    assert rows(prepared) == [("public.users", ["INSERT", "UPDATE", "DELETE"], None, None, False)]
    second = walstream.ok(
        "subscribe", "users", " delete, insert,DELETE ", "name = 'x'", "--columns", "id,name", "--notify"
    )
    assert second.out == first.out
    assert rows(prepared) == [("public.users", ["INSERT", "DELETE"], "name = 'x'", ["id", "name"], True)]


def test_subscribing_the_same_writes_nothing(walstream: Walstream, prepared: TestDatabase) -> None:
    walstream.ok("subscribe", "users", "*", "id > 1")
    before = prepared.query("select xmin::text, updated_at from realtime.subscriptions")
    assert walstream.json("subscribe", "users", "*", "id > 1")["changed"] is False
    assert prepared.query("select xmin::text, updated_at from realtime.subscriptions") == before


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("users", "public.users"), ("USERS", "public.users"), ("Public.Users", "public.users"), ("users2", None),
        ("Users2", 'public."Users2"'), ('"Users2"', 'public."Users2"'), ('public."Odd Name"', 'public."Odd Name"'),
        ("shop.*", "shop.*"), ("Shop.*", "shop.*"), ("*.*", "*.*"), ("*", "*.*"), ("parted", "public.parted"),
        ("orders", None),
    ],
)  # fmt: skip
def test_names_are_those_of_the_catalogue(
    walstream: Walstream, prepared: TestDatabase, given: str, stored: str | None
) -> None:
    done = walstream("subscribe", given)
    assert done.code == (0 if stored else 3), done
    assert [name for name, *_ in rows(prepared)] == ([stored] if stored else [])


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["userz"], 3, "did you mean public.users?"),
        (["nowhere.*"], 3, "no schema nowhere"),
        (["a.b.c"], 2, "not the name of a table"),
        (["public.'; drop table users; --"], 3, "there is no table"),
        (["users", "insert,upsert"], 2, "'upsert' is not an event"),
        (["users", ","], 2, "no events"),
        (["users", "*", "nmae = 'x'"], 2, "nmae"),
        (["users", "*", "born = 'tomorrowish'"], 2, 'invalid input syntax for type date: "tomorrowish"'),
        (["users", "*", "id = 'x'"], 2, "column id: invalid input syntax for type integer"),
        (["users", "*", "id ="], 2, "position"),
        (["users", "*", "--columns", "id,nmae"], 2, "did you mean name?"),
        (["users", "*", "--columns", "id,,name"], 2, "columns: not a list of names"),
        (["seen"], 1, "is a view"),
        (["fleeting"], 1, "alter table public.fleeting set logged"),
        (["parted_1"], 1, "subscribe public.parted"),
        (["realtime.messages"], 1, "walstream's own"),
        (["pg_catalog.*"], 1, "the system's"),
    ],
)
def test_what_cannot_be_captured_is_refused_with_its_repair_and_changes_nothing(
    walstream: Walstream, prepared: TestDatabase, arguments: list[str], code: int, told: str
) -> None:
    done = walstream("subscribe", *arguments)
    assert (done.code, done.out) == (code, ""), done
    assert told in done.err
    assert done.err.startswith("error: ")
    assert rows(prepared) == []
    as_json = walstream("subscribe", *arguments, "--json")
    error = json.loads(as_json.err)["error"]
    assert error["code"]
    assert error["message"]


def test_a_filter_has_to_fit_every_table_of_a_wildcard(walstream: Walstream) -> None:
    done = walstream("subscribe", "public.*", "*", "id > 3")
    assert done.code == 2
    assert "public.nokey" in done.err
    walstream.ok("subscribe", "shop.*", "*", "total > 3")


def test_what_the_wal_does_not_tell_is_warned_of_and_mended(walstream: Walstream, prepared: TestDatabase) -> None:
    told = walstream.json("subscribe", "nokey", "*", "a = 1")
    assert [(found["code"], found["subject"]) for found in told["warnings"]] == [("replica_identity", "public.nokey")]
    assert "alter table public.nokey replica identity full" in told["warnings"][0]["repair"]
    assert walstream.json("subscribe", "nokey", "*", "a = 1", "--replica-identity", "full")["warnings"] == []
    assert prepared.scalar("select relreplident from pg_class where oid = 'public.nokey'::regclass") == "f"
    assert walstream.json("subscribe", "nokey", "insert", "a = 1", "--replica-identity", "default")["warnings"] == []
    [found] = walstream.json("subscribe", "users", "*", "name = 'x' and id > 0")["warnings"]
    assert (found["code"], "no name" in found["cause"]) == ("filter_on_delete", True)
    assert walstream.json("subscribe", "users", "insert,update", "name = 'x'")["warnings"] == []
    assert walstream.json("subscribe", "users", "*", "id > 0")["warnings"] == []


def test_the_replica_identity_of_a_partitioned_table_is_that_of_its_partitions(
    walstream: Walstream, prepared: TestDatabase
) -> None:
    assert walstream.json("subscribe", "parted", "*", "--replica-identity", "full")["warnings"] == []
    assert prepared.scalar("select relreplident from pg_class where oid = 'public.parted_1'::regclass") == "f"


@pytest.mark.parametrize("name", ["public.users", "users", "USERS", "id"])
def test_unsubscribe_takes_every_name_and_the_id(walstream: Walstream, prepared: TestDatabase, name: str) -> None:
    row_id = walstream.ok("subscribe", "users").out.strip()
    done = walstream.ok("unsubscribe", row_id if name == "id" else name)
    assert done.out.strip() == row_id
    assert rows(prepared) == []
    again = walstream("unsubscribe", name)
    assert (again.code, again.out) == (3, "")
    assert walstream("unsubscribe", name, "--if-exists").code == 0


def test_unsubscribe_finds_what_sql_stored_and_what_is_gone(walstream: Walstream, prepared: TestDatabase) -> None:
    prepared.execute("insert into realtime.subscriptions (table_name) values ('no name at all'), ('users'), ('*.*')")
    walstream.ok("subscribe", '"Odd Name"')
    prepared.execute('drop table public."Odd Name"')
    for name in ("no name at all", "users", "*", '"Odd Name"'):
        walstream.ok("unsubscribe", name)
    assert rows(prepared) == []


def test_subscriptions_show_health_and_an_exit_code_for_alerts(walstream: Walstream, prepared: TestDatabase) -> None:
    assert walstream.ok("subscriptions", "--check", "json").value == []
    walstream.ok("subscribe", "users", "*", "id > 1")
    walstream.ok("subscribe", "nokey")
    assert walstream("subscriptions", "--check").code == 0
    prepared.execute(
        "insert into realtime.subscriptions (table_name, filter) values"
        " ('public.vanished', null), ('seen', null), ('public.seen', null), ('public.Users', null),"
        " ('shop.orders', 'total = ''much''')"
    )
    listed = {row["table_name"]: row for row in walstream.json("subscriptions")}
    health = {name: row["health"] for name, row in listed.items()}
    problems = {name: row["problem"] for name, row in listed.items()}
    assert health.pop("public.users") != health.pop("public.Users")  # two names of one table: one of them applies
    assert health == {
        "public.nokey": "warning",
        "public.vanished": "error",
        "seen": "error",
        "public.seen": "error",
        "shop.orders": "error",
    }
    assert "no usable replica identity" in problems["public.nokey"]
    assert "without its schema" in problems["seen"]
    assert "is a view" in problems["public.seen"]
    assert "type numeric" in problems["shop.orders"]
    checked = walstream("subscriptions", "--check")
    assert checked.code == 1
    assert "public.vanished" in checked.err


def test_subscriptions_show_what_daemons_report(walstream: Walstream, prepared: TestDatabase) -> None:
    row_id = walstream.ok("subscribe", "users").out.strip()
    other = walstream.ok("subscribe", "shop.orders").out.strip()
    walstream.ok("slot", "create")
    status = {"subscriptions": {row_id: {"last_event_at": "2026-11-24T20:00:00Z"}, other: {"error": "it does not fit"}}}
    prepared.execute("insert into realtime.nodes (node_id, status) values ('a', %s)", (json.dumps(status),))
    listed = {row["id"]: row for row in walstream.json("subscriptions")}
    assert listed[row_id]["last_event_at"] == "2026-11-24T20:00:00Z"
    assert listed[row_id]["health"] == "ok"
    assert isinstance(listed[row_id]["lag_bytes"], int)
    assert (listed[other]["health"], listed[other]["problem"]) == ("error", "it does not fit")


def test_the_listing_has_the_same_columns_in_every_format(walstream: Walstream) -> None:
    walstream.ok("subscribe", "users")
    [row] = walstream.json("subscriptions")
    assert list(row)[:6] == ["id", "table_name", "events", "filter", "created_at", "updated_at"]
    assert walstream.ok("subscriptions", "csv").out.splitlines()[0] == ",".join(row)
    assert walstream.ok("subscriptions").out.split("\n", 1)[0].split() == list(row)


def test_publications_follow_where_pgoutput_may_read(walstream: Walstream, prepared: TestDatabase) -> None:
    def members() -> list[tuple[str, str]]:
        return prepared.query(
            "select pubname::text, tablename::text from pg_publication_tables"
            " where schemaname <> 'realtime' order by 1, 2"
        )

    walstream.ok("subscribe", "users", "--decoder", "wal2json")
    assert members() == []
    walstream.ok("subscribe", "nokey", "--decoder", "pgoutput")
    assert members() == [("walstream_all", "users"), ("walstream_insert", "nokey")]
    walstream.ok("subscribe", "nokey", "*", "--replica-identity", "full", "--decoder", "pgoutput")
    assert members() == [("walstream_all", "nokey"), ("walstream_all", "users")]
    prepared.execute("insert into public.nokey values (1, 'x'); update public.nokey set b = 'y'")
    walstream.ok("unsubscribe", "users", "--decoder", "pgoutput")
    assert members() == [("walstream_all", "nokey")]


def test_without_the_schema_the_repair_is_init(database: TestDatabase) -> None:
    database.execute("create table public.users (id integer primary key)")
    walstream = Walstream(database.dsn)
    for command in (["subscribe", "users"], ["unsubscribe", "users"], ["subscriptions"], ["stats"]):
        done = walstream(*command)
        assert (done.code, done.out) == (1, "")
        assert "repair: run `walstream init`" in done.err


def test_who_may_not_write_is_told_so(tmp_path: Path) -> None:
    with (
        fresh_cluster(tmp_path) as cluster,
        prepared_template(cluster) as template,
        fresh_database(cluster, template) as database,
    ):
        database.execute("create table public.users (id integer primary key); create role guest login")
        walstream = Walstream(cluster.dsn(database.name, "guest"))
        for command in (["subscribe", "users"], ["unsubscribe", "users"], ["subscriptions"], ["slot", "create"]):
            done = walstream(*command)
            assert (done.code, done.out) == (4, ""), done
            assert "repair: " in done.err
