"""A slot and a stream from it, as bare as psycopg2 gives them: the tests look at what the daemon is built upon."""

from __future__ import annotations

import json
import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

from integration.fixtures.postgres import TestDatabase
from walstream.lsn import Lsn
from walstream.shell.database.postgres import connect

PLUGINS = ("wal2json", "pgoutput")
APPLICATION = "walstream assumption"
SECONDS = 20.0

_OPTIONS = {
    "wal2json": {
        "format-version": "2",
        "include-transaction": "true",
        "include-lsn": "true",
        "include-xids": "true",
        "include-types": "false",
        "include-type-oids": "true",
    },
    "pgoutput": {"proto_version": "1", "publication_names": "everything", "messages": "true"},
}


class Message(NamedTuple):
    """One message. ``kind``: B, I, U, D, T, C … as both plugins name it. ``end``: of a C, where its commit ends."""

    kind: str
    start: Lsn
    end: Lsn
    payload: bytes

    @property
    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.payload)
        return value


def _message(plugin: str, payload: bytes, start: int) -> Message:
    if plugin == "wal2json":
        value = json.loads(payload)
        kind = value["action"]
        return Message(kind, Lsn(start), Lsn.parse(value["nextlsn"]) if kind == "C" else Lsn(0), payload)
    kind = chr(payload[0])
    # Commit: flags in one byte, the commit's LSN, its end (PostgreSQL 17, 53.9).
    return Message(kind, Lsn(start), Lsn(int.from_bytes(payload[10:18], "big")) if kind == "C" else Lsn(0), payload)


class Stream:
    """A running stream. Nothing is confirmed unless the test does it, or psycopg2 by itself.

    ``opened``: a replication connection to be used instead of one that the daemon would make.
    """

    def __init__(
        self, dsn: str, slot: str, plugin: str, *, start: int = 0, name: str = APPLICATION, opened: Any = None
    ) -> None:
        self.plugin = plugin
        self.connection: Any = opened or connect(dsn, application_name=name, replication=True)
        self.cursor = cast("Any", self.connection.cursor())
        self.cursor.start_replication(
            slot_name=slot, start_lsn=start, options=_OPTIONS[plugin], decode=False, status_interval=1
        )

    def poll(self) -> Message | None:
        """The next message if one has arrived."""
        found = self.cursor.read_message()
        return None if found is None else _message(self.plugin, found.payload, found.data_start)

    def next(self, *, seconds: float = SECONDS) -> Message:
        """The next message. Fails after ``seconds``."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            message = self.poll()
            if message is not None:
                return message
            select.select([self.connection], [], [], 0.05)
        raise AssertionError(f"no message within {seconds} s")

    def until(self, fits: Callable[[Message], bool], *, seconds: float = SECONDS) -> list[Message]:
        """All messages up to the first that fits."""
        messages = [self.next(seconds=seconds)]
        while not fits(messages[-1]):
            messages.append(self.next(seconds=seconds))
        return messages

    def commits(self, count: int, *, seconds: float = SECONDS) -> list[Message]:
        """The next commits; what lies between them is passed over."""
        return [self.until(lambda message: message.kind == "C", seconds=seconds)[-1] for _ in range(count)]

    def rest(self, *, seconds: float = 0.5) -> list[Message]:
        """Everything that comes until nothing has come for ``seconds``."""
        messages = []
        try:
            while True:
                messages.append(self.next(seconds=seconds))
        except AssertionError:
            return messages

    def confirm(self, position: int) -> None:
        """Report ``position`` as flushed, at once."""
        self.cursor.send_feedback(flush_lsn=position, force=True)

    def close(self) -> None:
        self.connection.close()


@contextmanager
def streaming(
    database: TestDatabase, slot: str, plugin: str, *, start: int = 0, name: str = APPLICATION, opened: Any = None
) -> Iterator[Stream]:
    """A stream from ``slot``, waited for until the server lets go of the slot again."""
    stream = Stream(database.dsn, slot, plugin, start=start, name=name, opened=opened)
    try:
        yield stream
    finally:
        stream.close()
        eventually(lambda: not slot_row(database, slot)[0])


def make_slot(database: TestDatabase, plugin: str, name: str | None = None) -> str:
    """A new slot, and for pgoutput the publication of all tables that it reads through."""
    slot = name or f"s_{database.name}"
    if plugin == "pgoutput":
        database.execute("create publication everything for all tables")
    database.execute("select pg_create_logical_replication_slot(%s, %s)", (slot, plugin))
    return slot


def slot_row(database: TestDatabase, slot: str) -> tuple[bool, Lsn]:
    """Whether somebody streams from it, and what is confirmed."""
    active, confirmed = database.query(
        "select active, confirmed_flush_lsn::text from pg_replication_slots where slot_name = %s", (slot,)
    )[0]
    return active, Lsn.parse(confirmed)


def confirmed(database: TestDatabase, slot: str) -> Lsn:
    """What the slot has confirmed."""
    return slot_row(database, slot)[1]


def wal_lsn(database: TestDatabase) -> Lsn:
    """Where the WAL ends now."""
    return Lsn.parse(database.scalar("select pg_current_wal_insert_lsn()::text"))


def eventually(holds: Callable[[], bool], *, seconds: float = SECONDS) -> None:
    """Wait until ``holds``. Fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"did not come true within {seconds} s"
        time.sleep(0.02)
