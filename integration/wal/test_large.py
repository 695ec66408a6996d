"""A transaction that no memory should hold: it reaches its clients whole, and the daemon stays small."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from integration.fixtures.postgres import TestDatabase
from integration.wal.conftest import Node, Start

ROWS = 300_000
MIB = 1024 * 1024


def peak_bytes(node: Node) -> int:
    """The daemon's highest resident size so far."""
    for line in Path(f"/proc/{node.daemon.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


@pytest.mark.timeout(180)
def test_a_large_transaction_arrives_whole_and_memory_stays_bounded(start: Start, prepared: TestDatabase) -> None:
    with start(prepared, WALSTREAM_HISTORY_BYTES="16MiB") as node:
        node.table("t")
        node.table("witness")

        async def main() -> None:
            async with node.client("t", "witness") as client:
                before = peak_bytes(node)
                prepared.execute(f"insert into t select n, repeat('x', 100) from generate_series(1, {ROWS}) n")
                prepared.execute("insert into witness values (1, '')")
                ids = set()
                with trio.fail_after(150):
                    for _ in range(ROWS):
                        text = ""
                        while '"postgres_changes"' not in text[:200]:
                            text = str(await client.connection.get_message())
                        _, _, tail = text.partition('"record":{"id":')
                        ids.add(int(tail.partition(",")[0]))
                assert ids == set(range(1, ROWS + 1))
                assert (await client.changes(1))[0]["table"] == "witness"
                assert peak_bytes(node) - before < 150 * MIB

        trio.run(main)
