"""A transaction that no memory should hold: it reaches its clients whole, and the daemon stays small."""

from __future__ import annotations

import re

import pytest

from integration.fixtures.fast import FastClient
from integration.fixtures.postgres import TestDatabase
from integration.wal.conftest import Start

ROWS = 300_000
MIB = 1024 * 1024
LARGE = 40 * MIB


@pytest.mark.timeout(180)
def test_a_large_transaction_arrives_whole_and_memory_stays_bounded(start: Start, prepared: TestDatabase) -> None:
    with start(prepared, WALSTREAM_HISTORY_BYTES="16MiB") as node:
        node.table("t")
        node.table("witness")
        with FastClient(node.daemon.port) as client:
            before = node.daemon.peak_bytes
            prepared.execute(f"insert into t select n, repeat('x', 100) from generate_series(1, {ROWS}) n")
            prepared.execute("insert into witness values (0, '')")
            client.until(b'"table":"witness"')
            ids = [int(text) for text in re.findall(rb'"record":\{"id":(\d+)', client.received)]
            grown = node.daemon.peak_bytes - before
        assert ids[:ROWS] == list(range(1, ROWS + 1))
        assert grown < 150 * MIB, f"{grown / MIB:.0f} MiB"
        print(f"grown by {grown / MIB:.0f} MiB")


def test_a_large_row_that_comes_in_many_pieces_arrives(start: Start, prepared: TestDatabase) -> None:
    with start(prepared, WALSTREAM_OUTBOX_BYTES="256MiB", WALSTREAM_MAX_RECORD_BYTES="200MiB") as node:
        node.table("t")
        prepared.execute("alter table t replica identity full")
        with FastClient(node.daemon.port) as client:
            prepared.execute(f"insert into t values (1, repeat('x', {LARGE}))")
            prepared.execute(f"update t set v = repeat('y', {LARGE})")
            prepared.execute("insert into t values (2, 'after')")
            client.until(b'"after"')
        assert client.received.count(b"y" * LARGE) == 1
        assert client.received.count(b"x" * LARGE) == 2, "as the new row, and as the old one"
        assert sum(line.get("event") == "reader.started" for line in node.daemon.log()) == 1
