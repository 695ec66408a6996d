"""Both output plugins of a real server, read side by side through replication connections and our decoders."""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Iterator

from psycopg2.extras import LogicalReplicationConnection

from integration.fixtures.postgres import TestDatabase
from walstream.decoder import DECODERS, MESSAGE_PREFIX, make
from walstream.model import Catalog, CatalogMiss, Change, Message, Record
from walstream.shell.database.catalog import load_relations, load_types
from walstream.shell.database.postgres import connect

SECONDS = 20


class Reader:
    """One slot and its decoder. ``asked``: how often the catalog was asked."""

    def __init__(self, database: TestDatabase, plugin: str) -> None:
        self.catalog = Catalog()
        self.decoder = make(plugin, self.catalog, wanted=lambda _schema, _name: True, publication_names=("everything",))
        self.asked = 0
        self.records: list[Record] = []
        self._catalog_connection = connect(database.dsn, application_name="catalog")
        slot = f"{database.name}_{plugin}"
        database.execute("select pg_create_logical_replication_slot(%s, %s)", (slot, plugin))
        connection = connect(database.dsn, application_name="reader", replication=True)
        assert isinstance(connection, LogicalReplicationConnection)
        self._connection = connection
        self._cursor = connection.cursor()
        self._cursor.start_replication(slot_name=slot, decode=False, options=self.decoder.options())

    def changes(self, mark: bytes) -> list[Change]:
        """The changes up to the logical message ``mark``."""
        self.records = []
        found: list[Change] = []
        ends = time.monotonic() + SECONDS
        while time.monotonic() < ends:
            message = self._cursor.read_message()
            if message is None:
                select.select([self._cursor], [], [], 1)
                continue
            record = self._decode(bytes(message.payload), message.data_start)
            if record is None:
                continue
            self.records.append(record)
            if isinstance(record, Change):
                found.append(record)
            elif isinstance(record, tuple):
                found += record
            elif isinstance(record, Message) and record.content == mark:
                return found
        raise AssertionError(f"{self.decoder.plugin} never sent {mark!r}")

    def _decode(self, payload: bytes, data_start: int) -> Record | None:
        for _ in range(5):
            try:
                return self.decoder.decode(payload, data_start)
            except CatalogMiss as miss:
                self.asked += 1
                self.catalog.load(
                    load_relations(self._catalog_connection, miss.relations),
                    load_types(self._catalog_connection, miss.types),
                )
        raise AssertionError(f"asks for ever: {payload!r}")

    def close(self) -> None:
        self._connection.close()
        self._catalog_connection.close()


class Readers:
    """One reader for each plugin."""

    def __init__(self, database: TestDatabase) -> None:
        self._database = database
        self._marks = 0
        self.all = {plugin: Reader(database, plugin) for plugin in DECODERS}

    def changes(self) -> dict[str, list[Change]]:
        """By plugin: what was committed since the last time."""
        self._marks += 1
        mark = f"mark {self._marks}"
        self._database.execute("select pg_logical_emit_message(true, %s, %s)", (MESSAGE_PREFIX, mark))
        return {plugin: reader.changes(mark.encode()) for plugin, reader in self.all.items()}


@contextlib.contextmanager
def readers(database: TestDatabase) -> Iterator[Readers]:
    """Slots of both plugins; the publication is of all tables, and was there before them."""
    database.execute("create publication everything for all tables")
    opened = Readers(database)
    try:
        yield opened
    finally:
        for reader in opened.all.values():
            reader.close()
