"""What cannot be read of the WAL, from a real server: the daemon stands still, or sets it aside, and says so.

PostgreSQL refuses to decode rows whose text would be larger than 1 GB; a type whose output function fails is refused in
the same place and costs nothing. wal2json writes what is no JSON where it is asked for names of types that need quotes,
which the daemon does not do: here it is made to.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from integration.fixtures.daemon import ROOT
from integration.fixtures.node import eventually
from integration.fixtures.postgres import TestDatabase
from integration.fixtures.ws import PhoenixClient
from integration.wal.conftest import Node, Start

FAILING_TYPE = """
create type failing;
create function failing_in(cstring) returns failing language internal immutable strict as 'int4in';
create function failing_out(failing) returns cstring language internal immutable strict as 'shell_out';
create type failing (input = failing_in, output = failing_out, internallength = 4, passedbyvalue, alignment = int4);
"""

WITH_TYPES = """
from walstream.decoder.wal2json import Wal2json

usual = Wal2json.options
Wal2json.options = lambda self: {**usual(self), "include-types": "true"}
"""


@pytest.fixture
def asking_for_types(tmp_path: Path) -> dict[str, str]:
    """An environment in which the daemon asks wal2json for the names of types."""
    directory = tmp_path / "site"
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(WITH_TYPES, encoding="utf-8")
    return {"PYTHONPATH": f"{directory}:{ROOT}"}


def quoted_type(database: TestDatabase) -> None:
    database.execute('create schema "Sch Q"; create type "Sch Q".mood2 as enum (\'ok\')')


def told(node: Node, *arguments: str) -> Any:
    """What a command says of the daemon's database."""
    done = subprocess.run(
        [sys.executable, "-m", "walstream", *arguments, "--json"],
        env={"WALSTREAM_DATABASE_URL": node.database.dsn, "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    return json.loads(done.stdout)


def slot_parked(node: Node, *arguments: str) -> Any:
    return told(node, "slot", "parked", *arguments)


def doctor(node: Node) -> dict[str, str]:
    """Severities by code."""
    return {finding["code"]: finding["severity"] for finding in told(node, "doctor")}


async def frames(client: PhoenixClient, number: int) -> tuple[list[int], list[str]]:
    """Ids of the rows that come until one has ``number``, and the reasons of the gaps before it."""
    ids, reasons = [], []
    while number not in ids:
        frame = await client.next(seconds=40)
        if frame.event == "postgres_changes":
            ids.append(frame.payload["data"]["record"]["id"])
        elif frame.event == "system" and frame.payload.get("event") == "gap":
            reasons.append(frame.payload["reason"])
    return ids, reasons


def poisoned(node: Node) -> None:
    """It stands still, and everybody can see it."""
    eventually(lambda: node.health()["reader"]["status"] == "poisoned")
    status, body = node.daemon.get("/ready")
    assert (status, json.loads(body)["status"]) == (503, "poisoned")
    reason = node.health()["reader"]["reason"]
    for repair in ("WALSTREAM_FILTER_TABLES", "WALSTREAM_DECODER", "WALSTREAM_POISON=skip"):
        assert repair in reason
    assert node.daemon.get("/live")[0] == 200
    assert sum(line.get("event") == "poison.met" for line in node.daemon.log()) == 1


@pytest.mark.parametrize("decoder", ["wal2json"])
def test_what_is_no_json_stops_the_stream(
    start: Start, prepared: TestDatabase, asking_for_types: dict[str, str]
) -> None:
    with start(prepared, **asking_for_types) as node:
        node.table("t")
        quoted_type(prepared)
        node.table("bad", 'id bigint primary key, m "Sch Q".mood2')
        prepared.execute("insert into bad values (1, 'ok')")
        poisoned(node)
        # As an operator mends it: the table is left out.
        node.daemon.environ["WALSTREAM_FILTER_TABLES"] = "public.bad"
        node.daemon.restart()
        assert node.health()["reader"]["status"] == "streaming"


@pytest.mark.parametrize("decoder", ["wal2json"])
def test_what_is_no_json_is_set_aside_and_the_rest_goes_on(
    start: Start, prepared: TestDatabase, asking_for_types: dict[str, str]
) -> None:
    with start(prepared, WALSTREAM_POISON="skip", **asking_for_types) as node:
        node.table("t")
        quoted_type(prepared)
        node.table("bad", 'id bigint primary key, m "Sch Q".mood2')

        async def main() -> None:
            async with node.client("t") as client, node.client("t", "bad") as concerned:
                prepared.execute("insert into t values (1, 'before')")
                prepared.execute("insert into t values (2, 'in it'); insert into bad values (1, 'ok');"
                                 " insert into t values (3, 'in it')")  # fmt: skip
                prepared.execute("insert into bad select n, 'ok' from generate_series(2, 9) n")
                prepared.execute("insert into t values (4, 'after')")
                assert await frames(concerned, 4) == ([1, 2, 3, 4], ["poison_skipped", "poison_skipped"])
                assert await frames(client, 4) == ([1, 2, 3, 4], []), "of a table that lacks nothing"

        trio.run(main)
        assert node.health()["status"] == "ready"
        rows = slot_parked(node)
        assert [(row["table_name"], row["plugin"]) for row in rows] == [("public.bad", "wal2json")] * 9
        assert '"Sch Q".mood2' in rows[0]["content"]
        assert node.daemon.get("/metrics")[1].count(b'walstream_poison_skipped_total{what="message"} 9.0') == 1
        node.daemon.restart(hard=True)  # read again, and not written down again
        eventually(lambda: b'what="message"} 9.0' in node.daemon.get("/metrics")[1])
        assert len(slot_parked(node)) == 9
        assert slot_parked(node, "--clear", str(rows[0]["id"])) == {"deleted": 1}
        assert slot_parked(node, "--clear-all") == {"deleted": 8}
        assert slot_parked(node) == []


def test_what_postgresql_cannot_decode_stops_the_stream(start: Start, prepared: TestDatabase) -> None:
    with start(prepared) as node:
        prepared.execute(FAILING_TYPE)
        node.table("t")
        node.table("bad", "id bigint primary key, f failing")
        before = node.now
        prepared.execute("insert into bad values (1, '1')")
        poisoned(node)
        assert node.confirmed <= before + (1 << 20), "nothing is confirmed that was not read"
        eventually(lambda: doctor(node).get("poisoned") == "error")
        prepared.execute("insert into t values (1, 'later')")
        # As an operator mends it: what cannot be read may be left out.
        node.daemon.environ["WALSTREAM_POISON"] = "skip"
        node.daemon.restart()
        assert node.health()["reader"]["status"] == "streaming"
        assert len(slot_parked(node)) == 1


def test_what_postgresql_cannot_decode_is_left_out_whole(start: Start, prepared: TestDatabase) -> None:
    with start(prepared, WALSTREAM_POISON="skip") as node:
        prepared.execute(FAILING_TYPE)
        node.table("t")
        node.table("bad", "id bigint primary key, f failing")

        async def main() -> str:
            async with node.client("t") as client:
                prepared.execute("insert into t values (1, 'before')")
                prepared.execute("insert into t values (2, 'lost with it'); insert into bad values (1, '1');"
                                 " insert into t values (3, 'lost with it')")  # fmt: skip
                prepared.execute("insert into t values (4, 'after')")
                changes = await client.changes(1)
                assert await frames(client, 4) == ([4], ["poison_skipped"])
                assert changes[0]["record"]["id"] == 1
                return str(changes[0]["position"])

        async def again(since: str) -> tuple[object, object]:
            async with node.client() as client:
                await client.subscribe("realtime:t", {"event": "*", "schema": "public", "table": "t", "since": since})
                told = (await client.next("system")).payload
                return told["event"], told["reason"]

        position = trio.run(main)
        assert trio.run(again, position) == ("gap", "poison_skipped")
        node.daemon.restart(hard=True)
        assert trio.run(again, position) == ("gap", "poison_skipped"), "the slot begins behind it now"
        rows = slot_parked(node)
        assert [(row["table_name"], row["content"]) for row in rows] == [(None, None)]
        assert "shell type" in rows[0]["reason"]
        assert doctor(node)["parked"] == "warning"
        assert rows[0]["xid"] > 0
        eventually(lambda: node.health()["status"] == "ready")


def test_a_row_of_more_than_a_gigabyte_is_what_postgresql_cannot_decode(start: Start, prepared: TestDatabase) -> None:
    with start(prepared, WALSTREAM_POISON="skip") as node:
        node.table("t")
        node.table("bad", "id bigint primary key, b bytea")

        async def main() -> None:
            async with node.client("t") as client:
                # 600 MB, which are 1.2 GB in hexadecimal; compressed the row is small.
                await trio.to_thread.run_sync(
                    prepared.execute, "insert into bad values (1, convert_to(repeat('x', 600000000), 'utf8'))"
                )
                prepared.execute("insert into t values (1, 'after')")
                assert await frames(client, 1) == ([1], ["poison_skipped"])

        trio.run(main)
        assert "memory alloc" in slot_parked(node)[0]["reason"]
