"""Settings of the session that change what the plugins print."""

from __future__ import annotations

import time

import psycopg2
import pytest
from psycopg2.extras import LogicalReplicationConnection

from integration.assumptions.stream import PLUGINS, make_slot, streaming
from integration.fixtures.postgres import TestDatabase, drop_database

FOREIGN = {
    "TimeZone": "Asia/Kolkata",
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "sql_standard",
    "bytea_output": "escape",
    "extra_float_digits": "-5",
}
PINNED_TEXT = (b"2026-03-09 01:02:03+00", b"2026-03-09", b"1 day 02:03:04", b"\\x00ff", b"0.30000000000000004")


@pytest.fixture
def foreign(database: TestDatabase) -> TestDatabase:
    """A database whose owner prefers other formats."""
    for name, value in FOREIGN.items():
        database.execute(f"alter database {database.name} set {name} = '{value}'")
    database.close()
    database.execute("create table t (at timestamptz, day date, span interval, raw bytea, number float8)")
    return database


INSERT = (
    "insert into t values ('2026-03-09 01:02:03+00', '2026-03-09', '1 day 02:03:04', decode('00ff', 'hex'),"
    " 0.1::float8 + 0.2::float8)"
)


def texts(payload: bytes) -> list[bytes]:
    # JSON doubles the backslash, and wal2json cuts bytea's prefix off: look for what is left.
    return [text for text in PINNED_TEXT if text.removeprefix(b"\\x") in payload]


@pytest.mark.parametrize("plugin", PLUGINS)
def test_output_follows_the_session(foreign: TestDatabase, plugin: str) -> None:
    """Why the replication connection has settings of its own: without them values print as the owner prefers."""
    slot = make_slot(foreign, plugin)
    foreign.execute(INSERT)
    with streaming(foreign, slot, plugin) as stream:
        pinned = next(m for m in stream.until(lambda m: m.kind == "C") if m.kind == "I").payload
        assert texts(pinned) == list(PINNED_TEXT)
    loose_connection = psycopg2.connect(foreign.dsn, connection_factory=LogicalReplicationConnection)
    with streaming(foreign, slot, plugin, opened=loose_connection) as stream:
        loose = next(m for m in stream.until(lambda m: m.kind == "C") if m.kind == "I").payload
    found = texts(loose)
    # wal2json prints bytea in hex whatever the setting says.
    assert found in ([], [PINNED_TEXT[3]])
    assert b"09/03/2026" in loose


@pytest.mark.parametrize("plugin", PLUGINS)
def test_output_comes_in_the_encoding_of_the_database(database: TestDatabase, plugin: str) -> None:
    """Why databases that are not UTF-8 are refused: wal2json, unlike pgoutput, ignores ``client_encoding``."""
    name = f"{database.name}_latin1"
    database.execute(f"create database {name} encoding latin1 locale 'C' template template0")
    latin = TestDatabase(database.cluster, name)
    try:
        latin.execute("create table t (v text)")
        slot = make_slot(latin, plugin)
        latin.execute("insert into t values (convert_from('\\xe9'::bytea, 'latin1'))")
        with streaming(latin, slot, plugin) as stream:
            seen = b""
            deadline = time.monotonic() + 20
            while b"\xe9" not in seen and "é".encode() not in seen:
                assert time.monotonic() < deadline
                message = stream.cursor.read_message()
                seen += message.payload if message is not None else b""
        assert ("é".encode() in seen) is (plugin == "pgoutput")
    finally:
        latin.close()
        drop_database(database.cluster, name)
