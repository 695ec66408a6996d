"""The tap: PostgreSQL's own ``pg_recvlogical`` on a slot of its own. What it writes down is what was committed.

It knows nothing of the daemon, is never killed, and is started again when the server ended it. Like every reader it may
get transactions again after a restart of the server; they are known by their commit's end. Its plugin is wal2json, and
``pgoutput`` (``raw_pgoutput``) on a server that has no wal2json.
"""

from __future__ import annotations

import os
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import msgspec

from integration.faults import raw_pgoutput
from integration.faults.observed import Committed, Event, digest
from integration.fixtures.beside import Beside
from integration.fixtures.postgres import TestDatabase
from walstream.lsn import Lsn

SLOT = "tap"
RETRY_SECONDS = 0.1
READ_BYTES = 16 << 20
WAL2JSON_OPTIONS = (
    "format-version=2", "include-transaction=true", "include-lsn=true", "include-xids=true",
    "include-timestamp=true", "include-types=false", "add-tables=public.*",
)  # fmt: skip
_decode = msgspec.json.Decoder().decode
_OPERATIONS = {"I": "INSERT", "U": "UPDATE", "D": "DELETE"}


class Tap(Beside):
    """A running ``pg_recvlogical``; used as a context manager. ``committed`` reads what it has written so far.

    Tables are captured if they are in ``public`` and have ``id`` as their key. ``path``: where its output goes.
    """

    def __init__(self, database: TestDatabase, path: Path) -> None:
        super().__init__(self._keep_running)
        self._database = database
        self._path = path
        self._program = database.cluster.binaries.bin_dir / "pg_recvlogical"
        self._offset = 0
        self._reader = Wal2json() if database.cluster.binaries.wal2json else raw_pgoutput.RawPgoutput()
        self._known: list[Committed] = []

    def __enter__(self) -> Self:
        plugin = "wal2json"
        if isinstance(self._reader, raw_pgoutput.RawPgoutput):
            plugin = "pgoutput"
            self._database.execute(f"create publication {raw_pgoutput.PUBLICATION} for tables in schema public")
        self._database.execute("select pg_create_logical_replication_slot(%s, %s)", (SLOT, plugin))
        self._path.touch()
        return super().__enter__()

    def _keep_running(self) -> None:
        wanted = WAL2JSON_OPTIONS if isinstance(self._reader, Wal2json) else raw_pgoutput.OPTIONS
        options = [argument for option in wanted for argument in ("-o", option)]
        command = [
            str(self._program), "--start", "--slot", SLOT, "--dbname", self._database.dsn, "--no-loop",
            "--fsync-interval", "1", "--status-interval", "1", "--file", str(self._path), *options,
        ]  # fmt: skip
        environ = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
        with Path(f"{self._path}.log").open("ab") as log:
            while not self.over.is_set():
                process = subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True)
                while process.poll() is None:
                    if self.over.wait(RETRY_SECONDS):
                        process.terminate()
                        process.wait()
                self.over.wait(RETRY_SECONDS)

    def committed(self) -> list[Committed]:
        """Every transaction so far that changed something, in the order of the commits."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            while data := file.read(READ_BYTES):
                self._offset += len(data)
                self._known += self._reader.feed(data)
        return self._known

    def forget(self, end: int) -> None:
        """Let go of what ends at or below ``end``."""
        self._known = [transaction for transaction in self._known if transaction.end > end]

    @property
    def newest(self) -> int:
        """The newest commit end that it has seen."""
        self.committed()
        return self._reader.newest


class Wal2json:
    """Lines in, transactions out. ``newest``: where the newest commit ends, whether it changed anything or not."""

    def __init__(self) -> None:
        self.newest = 0
        self._rest = b""
        self._open: list[Event] = []

    def feed(self, data: bytes) -> list[Committed]:
        """Transactions that end in ``data``, which may be cut anywhere."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [done for line in lines if (done := self._take(_decode(line))) is not None]

    def _take(self, line: dict[str, Any]) -> Committed | None:
        action = line["action"]
        if action == "B":
            self._open = []
        elif action in _OPERATIONS:
            self._open.append(event_of(line))
        elif action == "C":
            end, events, self._open = Lsn.parse(line["nextlsn"]), self._open, []
            if end > self.newest:
                self.newest = end
                if events:
                    at = datetime.fromisoformat(line["timestamp"]).timestamp()
                    return Committed(end, line["xid"], at, events)
        return None


def event_of(line: dict[str, Any]) -> Event:
    """A row's message as wal2json writes it (format 2): it leaves long values that an UPDATE did not touch out.

    Where the replica identity is FULL they are in the old row.
    """
    operation = _OPERATIONS[line["action"]]
    table = line["table"]
    row = {column["name"]: column["value"] for column in line.get("columns", ())}
    old = {column["name"]: column["value"] for column in line.get("identity", ())}
    return Event(table, digest(table, operation, {**old, **row}, old.get("id")))
