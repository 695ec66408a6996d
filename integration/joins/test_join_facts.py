"""What a join asks PostgreSQL: tables, literals as rows would show them, and the snapshot that it starts from."""

from __future__ import annotations

import threading

import psycopg2
import pytest
from psycopg2.extensions import connection as PgConnection  # noqa: N812 - a class under its role's name

from integration.fixtures.postgres import TestDatabase
from walstream.decoder.values import from_text
from walstream.history.visibility import is_live, settled
from walstream.lsn import Lsn
from walstream.model import Catalog, Column, Snapshot, Transaction
from walstream.shell.database.catalog import load_relations, load_types
from walstream.shell.database.join_facts import (
    LITERALS_AT_ONCE,
    Literal,
    cast_literals,
    load_snapshot,
    tables_of,
)

DECLARATIONS = """
create schema types;
create type types."mood %s" as enum ('sad', 'so so');
create domain types.few as int check (value < 5);
create domain types.loud as text check (types.is_loud(value));
create type types.pair as (a types.few, b text[]);
"""
LOUD = """
create schema types;
create function types.is_loud(text) returns bool language plpgsql as
$$ begin if $1 <> upper($1) then raise exception 'too quiet: %', $1; end if; return true; end $$;
"""
VALUES = [
    ("bool", "t"),
    ("bool", "no"),
    ("int4", " 7 "),
    ("int8", "9223372036854775807"),
    ("numeric", "1.50"),
    ("numeric(4,1)", "1.55"),
    ("float8", "1e3"),
    ("text", "O'Brien \\ %s é"),
    ("char(5)", "ab   "),
    ("bpchar", "abcdef"),
    ("varchar(2)", "ab"),
    ('"char"', "x"),
    ("name", "n"),
    ("bytea", "\\xDEAD"),
    ("inet", "10.0.0.1"),
    ("inet", "10.0.0.1/8"),
    ("cidr", "10/8"),
    ("bit(3)", "101"),
    ("varbit", "10111"),
    ("date", "2024-2-3"),
    ("timestamp", "2024-02-03 04:05"),
    ("timestamptz", "2024-02-03 04:05+02"),
    ("time", "4:05"),
    ("interval", "90 minutes"),
    ("uuid", "A0EEBC999C0B4EF8BB6D6BB9BD380A11"),
    ("json", '{"a" : 1}'),
    ("jsonb", '{"b":1,  "a":[1]}'),
    ("int4[]", "{1,NULL,3}"),
    ("text[]", '{"a,b",c}'),
    ("bpchar[]", "{ab,cde}"),
    ("int4range", "[1,3]"),
    ('types."mood %s"', "so so"),
    ('types."mood %s"[]', '{sad,"so so"}'),
    ("types.few", "4"),
    ("types.few[]", "{1,2}"),
    ("types.loud", "HEY"),
    ("types.pair", '(1,"{x,y}")'),
    ("regtype", "int4"),
    ("xid", "7"),
    ("pg_lsn", "0/16B3748"),
    ("money", "$1.50"),
]
REFUSED = [
    ("int4", "seven", "invalid input syntax"),
    ("int2", "40000", "out of range"),
    ("uuid", "'); drop table t; --", "invalid input syntax"),
    ("types.few", "9", "violates check constraint"),
    ("types.loud", "hey", "too quiet: hey"),
    ('types."mood %s"', "glad", "invalid input value for enum"),
    ("date", "2024-02-30", "out of range"),
    ("jsonb", "[" * 100_000, "stack depth limit exceeded"),
    ("text", "a\0b", "U+0000"),
    ("text", "\ud800", "Unicode"),
    ("anyarray", "{}", "cannot accept a value"),
]


def prepare(database: TestDatabase) -> None:
    database.execute(LOUD + DECLARATIONS.replace("create schema types;", ""))


def oid_of(database: TestDatabase, name: str) -> int:
    oid = database.scalar("select %s::regtype::oid::int8", (name.split("(")[0] if "(" in name else name,))
    assert isinstance(oid, int)
    return oid


def loaded(connection: PgConnection, *oids: int) -> Catalog:
    catalog = Catalog()
    catalog.load(types=load_types(connection, oids))
    return catalog


def test_a_literal_is_what_a_row_would_hold(any_database: TestDatabase, facts: PgConnection) -> None:
    prepare(any_database)
    literals = [(oid_of(any_database, name), text) for name, text in VALUES]
    catalog = loaded(facts, *(oid for oid, _ in literals))
    answers = cast_literals(facts, literals, catalog)
    with facts.cursor() as cursor:
        for (name, text), literal in zip(VALUES, literals, strict=True):
            # A value as it lies in a row of an unrestricted column, printed by its type's output function.
            wide = name.split("(")[0] if "(" in name else name
            wide = {"char": "bpchar", "bit": '"bit"'}.get(wide, wide)
            cursor.execute(f"create temp table row_of (v {wide.replace('%', '%%')})", ())
            cursor.execute("insert into pg_temp.row_of values (%s)", (text,))
            cursor.execute("select pg_catalog.format('%s', v) from pg_temp.row_of")
            row = cursor.fetchone()
            assert row is not None
            cursor.execute("drop table pg_temp.row_of")
            expected = from_text(catalog.types[literal[0]], catalog)(row[0].encode())
            assert answers[literal] == expected, name
    assert answers[oid_of(any_database, "bool"), "t"] == b"true"
    assert answers[oid_of(any_database, "inet"), "10.0.0.1"] == b'"10.0.0.1"'
    assert answers[1042, "abcdef"] == b'"abcdef"'


def test_a_refused_literal_harms_no_other(any_database: TestDatabase, facts: PgConnection) -> None:
    prepare(any_database)
    literals: list[Literal] = []
    expected: dict[Literal, str] = {}
    for number, (name, text, said) in enumerate(REFUSED):
        literals += [(23, str(number)), (oid_of(any_database, name), text)]
        expected[literals[-1]] = said
    literals += [(999_999, "x"), (0, "x")]
    expected |= {(999_999, "x"): "unknown type 999999", (0, "x"): "unknown type 0"}
    catalog = loaded(facts, *(oid for oid, _ in literals))
    answers = cast_literals(facts, iter(literals), catalog)
    assert answers.keys() == set(literals)
    for literal, said in expected.items():
        answer = answers[literal]
        assert isinstance(answer, str)
        assert said in answer, literal
    for number in range(len(REFUSED)):
        assert answers[23, str(number)] == b"%d" % number


def test_many_literals_take_few_statements(facts: PgConnection) -> None:
    catalog = loaded(facts, 23, 25)
    literals = [(23, str(number)) for number in range(3 * LITERALS_AT_ONCE)]
    answers = cast_literals(facts, [*literals, *literals, (25, "")], catalog)
    assert [answers[literal] for literal in literals] == [text.encode() for _, text in literals]
    assert answers[25, ""] == b'""'
    assert cast_literals(facts, [], catalog) == {}


def test_a_lost_connection_is_no_refusal(any_database: TestDatabase, facts: PgConnection) -> None:
    catalog = loaded(facts, 23)
    any_database.execute("select pg_terminate_backend(%s)", (facts.info.backend_pid,))
    with pytest.raises(psycopg2.OperationalError):
        cast_literals(facts, [(23, "1")], catalog)


def test_a_literal_that_takes_too_long_is_no_refusal(any_database: TestDatabase, facts: PgConnection) -> None:
    any_database.execute(
        "create function slow(int) returns bool language sql as 'select pg_sleep(60) is not null';"
        "create domain slowly as int check (public.slow(value))"
    )
    catalog = loaded(facts, oid_of(any_database, "slowly"))
    with facts.cursor() as cursor:
        cursor.execute("set statement_timeout = '50ms'")
    with pytest.raises(psycopg2.errors.QueryCanceled):
        cast_literals(facts, [(oid_of(any_database, "slowly"), "1")], catalog)


# -- tables


def test_tables_are_ordinary_and_partitioned_ones(any_database: TestDatabase, facts: PgConnection) -> None:
    any_database.execute(
        'create table "T %s" ("Gone" int, b text, "A" int primary key); alter table "T %s" drop column "Gone";'
        "create table root (a int) partition by range (a); create table leaf partition of root default;"
        "create view v as select 1; create materialized view m as select 1; create unlogged table u (a int);"
        "create schema other; create table other.t (a int); create temp table temporary (a int);"
        "create table empty ()"
    )
    names = [("public", name) for name in ("T %s", "empty", "v", "t", "nul\0", "x" * 64)]
    found = load_relations(facts, names)
    assert {name for name, info in found.items() if info is not None} == {("public", "T %s"), ("public", "empty")}
    relation, empty = found["public", "T %s"], found["public", "empty"]
    assert relation is not None
    assert empty is not None
    assert relation.columns == (Column("b", 25, "text"), Column("A", 23, "int4"))
    assert relation.primary_key == ("A",)
    assert relation.oid == any_database.scalar("select '\"T %%s\"'::regclass::oid::int8", ())
    assert empty.columns == ()
    public = tables_of(facts, "public")
    assert public == {("public", name) for name in ("T %s", "root", "empty")}
    assert tables_of(facts, None) == public | {("other", "t")}
    assert tables_of(facts, "nowhere") == set()
    for name in ("nul\0", "\ud800", "public" * 20, "%s", ""):
        assert tables_of(facts, name) == set()
    assert tables_of(facts, "pg_catalog") == set()


# -- snapshots


def transaction(xid: int, commit_lsn: int) -> Transaction:
    return Transaction(xid & 0xFFFFFFFF, Lsn(commit_lsn), 0, ())


def wal_end(database: TestDatabase) -> int:
    return int(database.scalar("select (pg_current_wal_insert_lsn() - '0/0')::int8"))


def test_a_snapshot_tells_what_ended_from_what_runs_and_what_comes(
    any_database: TestDatabase, facts: PgConnection
) -> None:
    any_database.execute("create table t (a int)")

    def begin() -> tuple[PgConnection, int]:
        connection = any_database.connect(autocommit=False)
        with connection.cursor() as cursor:
            cursor.execute("insert into public.t values (1)")
            cursor.execute("select pg_current_xact_id()::text::int8")
            row = cursor.fetchone()
        assert row is not None
        return connection, row[0]

    def commit(connection: PgConnection) -> int:
        connection.commit()
        connection.close()
        return wal_end(any_database)

    running, running_xid = begin()
    ended, ended_xid = begin()
    ended_at = commit(ended)
    open_above, above_xid = begin()
    snapshot = load_snapshot(facts)
    assert running_xid in snapshot.in_progress
    assert above_xid >= snapshot.xmax
    assert snapshot.flush_lsn <= snapshot.insert_lsn
    later, later_xid = begin()
    commits = {xid: commit(connection) for xid, connection in
               ((later_xid, later), (running_xid, running), (above_xid, open_above))}  # fmt: skip
    assert not is_live(transaction(ended_xid, ended_at), snapshot)
    assert not settled(transaction(ended_xid, ended_at), snapshot)
    for xid, at in commits.items():
        assert is_live(transaction(xid, at), snapshot)
        assert settled(transaction(xid, at), snapshot)
    again = load_snapshot(facts)
    assert again.server_start == snapshot.server_start
    for xid, at in (*commits.items(), (ended_xid, ended_at)):
        assert not is_live(transaction(xid, at), again)
        assert not settled(transaction(xid, at), again)


def test_snapshots_agree_with_what_queries_see_under_writers(any_database: TestDatabase, facts: PgConnection) -> None:
    """Each row tells its xid; the same query that takes the snapshot counts what it sees."""
    any_database.execute("create table t (xid int8)")
    done = threading.Event()

    def write() -> None:
        connection = any_database.connect()
        with connection.cursor() as cursor:
            while not done.is_set():
                cursor.execute("insert into public.t values (pg_current_xact_id()::text::int8)")
        connection.close()

    writers = [threading.Thread(target=write) for _ in range(3)]
    for writer in writers:
        writer.start()
    taken: list[tuple[Snapshot, set[int]]] = []
    try:
        with facts.cursor() as cursor:
            while len(taken) < 20:
                cursor.execute("begin transaction isolation level repeatable read")
                snapshot = load_snapshot(facts)
                cursor.execute("select xid from public.t")
                taken.append((snapshot, {row[0] for row in cursor.fetchall()}))
                cursor.execute("commit")
    finally:
        done.set()
        for writer in writers:
            writer.join()
    every = {row[0] for row in any_database.query("select xid from t")}
    for snapshot, seen in taken:
        assert {xid for xid in every if not is_live(transaction(xid, 0), snapshot)} == seen
