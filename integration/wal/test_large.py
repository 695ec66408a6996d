"""A transaction that no memory should hold: it reaches its clients whole, and the daemon stays small."""

from __future__ import annotations

import json
import re
import socket
import time
from pathlib import Path

import pytest

from integration.fixtures.daemon import token
from integration.fixtures.postgres import TestDatabase
from integration.wal.conftest import Node, Start

ROWS = 300_000
MIB = 1024 * 1024
LARGE = 40 * MIB
BINDING = {"event": "*", "schema": "public", "table": "*"}


def peak_bytes(node: Node) -> int:
    """The daemon's highest resident size so far."""
    for line in Path(f"/proc/{node.daemon.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


class FastClient:
    """A client that only takes bytes: one that decoded each frame as it comes would be closed as too slow."""

    def __init__(self, node: Node) -> None:
        self.received = bytearray()
        self._socket = socket.create_connection(("127.0.0.1", node.daemon.port), timeout=60)
        self._socket.sendall(
            f"GET /realtime/v1/websocket?vsn=2.0.0&apikey={token('anon')} HTTP/1.1\r\n"
            f"Host: 127.0.0.1:{node.daemon.port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        self.until(b"\r\n\r\n")
        text = json.dumps(["1", "1", "realtime:all", "phx_join", {"config": {"postgres_changes": [BINDING]}}]).encode()
        assert len(text) < 126
        # A text frame whose mask changes nothing (RFC 6455, 5.2).
        self._socket.sendall(bytes((0x81, 0x80 | len(text))) + bytes(4) + text)
        self.until(b"Subscribed to PostgreSQL")

    def until(self, text: bytes, *, seconds: float = 90.0) -> None:
        """Take bytes until ``text`` has come."""
        deadline = time.monotonic() + seconds
        start = len(self.received)
        while text not in self.received[max(0, start - len(text)) :]:
            start = len(self.received)
            assert time.monotonic() < deadline, f"no {text!r} within {seconds} s"
            taken = self._socket.recv(MIB)
            assert taken, f"closed: {bytes(self.received[-200:])!r}"
            self.received += taken

    def close(self) -> None:
        self._socket.close()


@pytest.mark.timeout(180)
def test_a_large_transaction_arrives_whole_and_memory_stays_bounded(start: Start, prepared: TestDatabase) -> None:
    with start(prepared, WALSTREAM_HISTORY_BYTES="16MiB") as node:
        node.table("t")
        node.table("witness")
        client = FastClient(node)
        try:
            before = peak_bytes(node)
            prepared.execute(f"insert into t select n, repeat('x', 100) from generate_series(1, {ROWS}) n")
            prepared.execute("insert into witness values (0, '')")
            client.until(b'"table":"witness"')
            ids = [int(text) for text in re.findall(rb'"record":\{"id":(\d+)', client.received)]
            grown = peak_bytes(node) - before
        finally:
            client.close()
        assert ids[:ROWS] == list(range(1, ROWS + 1))
        assert grown < 150 * MIB, f"{grown / MIB:.0f} MiB"
        print(f"grown by {grown / MIB:.0f} MiB")


def test_a_large_row_that_comes_in_many_pieces_arrives(start: Start, prepared: TestDatabase) -> None:
    with start(prepared, WALSTREAM_OUTBOX_BYTES="256MiB", WALSTREAM_MAX_RECORD_BYTES="200MiB") as node:
        node.table("t")
        prepared.execute("alter table t replica identity full")
        client = FastClient(node)
        try:
            prepared.execute(f"insert into t values (1, repeat('x', {LARGE}))")
            prepared.execute(f"update t set v = repeat('y', {LARGE})")
            prepared.execute("insert into t values (2, 'after')")
            client.until(b'"after"')
        finally:
            client.close()
        assert client.received.count(b"y" * LARGE) == 1
        assert client.received.count(b"x" * LARGE) == 2, "as the new row, and as the old one"
        assert sum(line.get("event") == "reader.started" for line in node.daemon.log()) == 1
