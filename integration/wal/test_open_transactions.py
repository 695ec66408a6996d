"""Transactions that stay open, prepared ones above all: nothing of them is lost, and who waits for them says so."""

from __future__ import annotations

import json

import pytest
import trio

from integration.fixtures.node import eventually
from integration.fixtures.postgres import TestDatabase
from integration.wal.conftest import Node, Start

UNDONE_BY_THIRDS = """do $$ begin
  for n in 1..3000 loop
    begin
      insert into t values (100000 + n, 'x');
      if n % 3 = 0 then raise division_by_zero; end if;
    exception when division_by_zero then null;
    end;
  end loop;
end $$"""
WRITE = "begin; insert into t select n, 'prepared' from generate_series(1, 3) n; prepare transaction 'later'"


def test_a_prepared_transaction_is_told_once_when_it_is_committed(node: Node) -> None:
    """In the order of the commits, also to who was away, and though the daemon died while it was open.

    One that is rolled back is never told, nor what was undone of many subtransactions.
    """
    node.table("t")
    item = {"event": "*", "schema": "public", "table": "t"}

    async def main() -> None:
        async with node.client("t") as client:
            node.database.execute("insert into t values (10, 'before')")
            since = (await client.changes(1))[0]["position"]
            await trio.to_thread.run_sync(node.database.execute, WRITE)
            node.database.execute("insert into t values (11, 'between')")
            assert [change["record"]["id"] for change in await client.changes(1)] == [11]
        node.daemon.kill()
        node.database.execute("insert into t values (12, 'while it was dead')")
        await trio.to_thread.run_sync(node.daemon.start)
        async with node.client() as client:
            await client.subscribe("realtime:t", item | {"since": since})
            await trio.to_thread.run_sync(node.database.execute, "commit prepared 'later'")
            node.database.execute("insert into t values (13, 'after')")
            told = await client.changes(6)
            assert [change["record"]["id"] for change in told] == [11, 12, 1, 2, 3, 13]
            assert [change.get("last", False) for change in told] == [True, True, False, False, True, True]
            node.database.execute(WRITE.replace("n,", "1000 + n,"))
            node.database.execute("rollback prepared 'later'")
            node.database.execute(UNDONE_BY_THIRDS)
            told = await client.changes(2000, seconds=60)
            assert [change["record"]["id"] for change in told] == [100_000 + n for n in range(3000) if n % 3]
            assert [change["position"] for change in told if change.get("last")] == [told[-1]["position"]]

    trio.run(main)


@pytest.mark.parametrize("decoder", ["wal2json"])
def test_a_first_start_says_for_what_it_waits(start: Start, prepared: TestDatabase) -> None:
    prepared.execute("create table t (id int, v text)")
    prepared.execute(WRITE)
    with start(prepared, wait="/live") as node:
        reason = "slot: it is made after the prepared transaction 'later' (postgres in"

        def says() -> bool:
            return any(text.startswith(reason) for text in json.loads(node.daemon.get("/ready")[1])["reasons"])

        eventually(says)
        prepared.execute("commit prepared 'later'")
        eventually(lambda: node.daemon.get("/ready")[0] == 200)
        assert (node.health()["slot"]["is_made"], node.health()["slot"]["kept_by"]) == (True, None)
        told = [line for line in node.daemon.log() if line.get("event") == "slot.waits"]
        assert [line["repair"].endswith("rollback prepared 'later'") for line in told] == [True]
