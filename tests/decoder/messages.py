"""Messages as the two output plugins write them, built from the texts that PostgreSQL prints.

``speak`` makes the same transaction in either plugin's words.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from walstream.decoder import Wanted, make
from walstream.model import Catalog, CatalogMiss, Change, Column, Record, RelationInfo, ReplicaIdentity, TypeInfo

BARE = {20, 21, 23, 26, 700, 701, 1700}
"""Types whose values wal2json prints without quotes."""

TYPES = [
    TypeInfo(16, "bool", category="B"),
    TypeInfo(17, "bytea"),
    TypeInfo(18, "char", category="Z"),
    TypeInfo(20, "int8", category="N"),
    TypeInfo(21, "int2", category="N"),
    TypeInfo(22, "int2vector", category="A", element=21),
    TypeInfo(23, "int4", category="N"),
    TypeInfo(25, "text", category="S"),
    TypeInfo(26, "oid", category="N"),
    TypeInfo(30, "oidvector", category="A", element=26),
    TypeInfo(114, "json"),
    TypeInfo(603, "box", category="G", delimiter=";"),
    TypeInfo(700, "float4", category="N"),
    TypeInfo(701, "float8", category="N"),
    TypeInfo(1007, "_int4", category="A", element=23),
    TypeInfo(1009, "_text", category="A", element=25),
    TypeInfo(1020, "_box", category="A", element=603, delimiter=";"),
    TypeInfo(1042, "bpchar", category="S"),
    TypeInfo(1114, "timestamp", category="D"),
    TypeInfo(1184, "timestamptz", category="D"),
    TypeInfo(1560, "bit", category="V"),
    TypeInfo(1700, "numeric", category="N"),
    TypeInfo(3802, "jsonb"),
    TypeInfo(20000, "mood", kind="e", category="E", labels=("sad", "ok")),
    TypeInfo(20001, "positive", kind="d", category="N", base=23),
    TypeInfo(20002, "pair", kind="c", category="C", fields=(("n", 23), ("t", 25))),
    TypeInfo(20003, "_pair", category="A", element=20002),
    TypeInfo(20004, "blob", kind="d", category="U", base=17),
    TypeInfo(20005, "nothing", kind="c", category="C"),
    TypeInfo(20006, "hstore"),
    TypeInfo(20007, "ints", kind="d", category="A", base=1007),
]


class Table(NamedTuple):
    """A table as the server has it. ``key``: columns of the old row; ``root`` and ``order`` for a partition."""

    columns: tuple[tuple[str, int], ...]
    key: tuple[str, ...] = ()
    identity: ReplicaIdentity = ReplicaIdentity.DEFAULT
    schema: str = "public"
    name: str = "t"
    oid: int = 16400
    root: tuple[str, str] | None = None
    order: tuple[str, ...] = ()

    @property
    def info(self) -> RelationInfo:
        """What the catalog says of it."""
        names = {info.oid: info.name for info in TYPES}
        whole = self.identity is ReplicaIdentity.FULL
        columns = [Column(name, oid, names.get(oid, "?")) for name, oid in self.columns]
        return RelationInfo(
            self.oid,
            self.schema,
            self.name,
            primary_key=self.key,
            replica_identity=self.identity,
            identity_columns=tuple(name for name, _ in self.columns) if whole else self.key,
            root=self.root or (self.schema, self.name),
            column_order=self.order or tuple(name for name, _ in self.columns),
            columns=tuple(columns),
        )


def catalog_of(*tables: Table) -> Catalog:
    """A catalog that knows these tables and every type here."""
    catalog = Catalog()
    catalog.load(
        relations={(table.schema, table.name): table.info for table in tables},
        types={info.oid: info for info in TYPES},
    )
    return catalog


class Reader:
    """A decoder with a shell that loads what is missing. ``asked``: how often that was, for the last message."""

    def __init__(self, plugin: str, *tables: Table, wanted: Wanted = lambda _schema, _name: True) -> None:
        self.truth = catalog_of(*tables)
        self.catalog = catalog_of(*tables)
        self.decoder = make(plugin, self.catalog, wanted=wanted)
        self.asked = 0

    def one(self, payload: bytes) -> Record | None:
        """What one message means."""
        for self.asked in range(5):
            try:
                return self.decoder.decode(payload, 5)
            except CatalogMiss as miss:
                self.load(miss)
        raise AssertionError("asks for ever")

    def load(self, miss: CatalogMiss) -> None:
        """Load what is missing."""
        if not miss.relations and not miss.types:
            raise AssertionError("asks for nothing")
        known = self.truth.relations
        self.catalog.load({name: known.get(name) for name in miss.relations})
        self.catalog.load(types={oid: self.truth.types.get(oid) for oid in miss.types})

    def read(self, payloads: Iterable[bytes]) -> list[Record]:
        """What the messages mean."""
        return [record for payload in payloads if (record := self.one(payload)) is not None]

    def alter(self, *tables: Table) -> None:
        """From now on the catalog says this."""
        self.truth = catalog_of(*tables)


def change(record: Record | None) -> Change:
    """The record as the change that it has to be."""
    assert isinstance(record, Change)
    return record


Values = Mapping[str, str | None]
"""By column: the text that PostgreSQL prints, None for NULL."""


class Speaker:
    """Writes what a plugin sends for one transaction after the other. ``told``: described on this connection."""

    plugin: str

    def begin(self, xid: int = 7) -> bytes:
        raise AssertionError

    def commit(self, end: int = 0x1000) -> bytes:
        raise AssertionError

    def row(self, action: str, table: Table, new: Values | None = None, old: Values | None = None) -> list[bytes]:
        """A row message with what must come before it. Columns that ``new`` lacks are unchanged TOAST."""
        raise AssertionError

    def truncate(self, *tables: Table) -> list[bytes]:
        raise AssertionError

    def message(self, prefix: str, content: str, transactional: bool = True) -> bytes:
        raise AssertionError


class Wal2jsonSpeaker(Speaker):
    plugin = "wal2json"

    def __init__(self) -> None:
        self.head = '"xid":7,"timestamp":"2026-11-23 03:36:38.358214+00","lsn":"0/6244C778"'

    def begin(self, xid: int = 7) -> bytes:
        self.head = f'"xid":{xid},"timestamp":"2026-11-23 03:36:38.358214+00","lsn":"0/6244C778"'
        return f'{{"action":"B",{self.head},"nextlsn":"0/1000"}}'.encode()

    def commit(self, end: int = 0x1000) -> bytes:
        return f'{{"action":"C",{self.head},"nextlsn":"{end >> 32:X}/{end & 0xFFFFFFFF:X}"}}'.encode()

    def row(self, action: str, table: Table, new: Values | None = None, old: Values | None = None) -> list[bytes]:
        parts = [f'{{"action":"{action}",{self.head},"schema":{_text(table.schema)},"table":{_text(table.name)}']
        if new is not None:
            parts.append(f'"columns":{_columns(table, new)}')
        if old is not None:
            parts.append(f'"identity":{_columns(table, old)}')
        return [(",".join(parts) + "}").encode()]

    def truncate(self, *tables: Table) -> list[bytes]:
        return [
            f'{{"action":"T",{self.head},"schema":{_text(table.schema)},"table":{_text(table.name)}}}'.encode()
            for table in tables
        ]

    def message(self, prefix: str, content: str, transactional: bool = True) -> bytes:
        head = self.head if transactional else '"xid":null,"timestamp":null,"lsn":"0/6244C778"'
        return (
            f'{{"action":"M",{head},"transactional":{str(transactional).lower()},'
            f'"prefix":{_text(prefix)},"content":{_text(content)}}}'
        ).encode()


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _columns(table: Table, values: Values) -> str:
    return (
        "["
        + ",".join(
            f'{{"name":{_text(name)},"typeoid":{oid},"value":{wal2json_value(oid, values[name])}}}'
            for name, oid in table.columns
            if name in values
        )
        + "]"
    )


def wal2json_value(oid: int, text: str | None) -> str:
    """A value as wal2json 2.5 prints it."""
    if text is None:
        return "null"
    if oid in BARE:
        return "null" if text.strip("-") in ("NaN", "Infinity") else text
    if oid == 16:
        return {"t": "true", "f": "false"}[text]
    return _text(text[2:] if oid == 17 else text)


class PgoutputSpeaker(Speaker):
    plugin = "pgoutput"

    def __init__(self) -> None:
        self.told: dict[int, Table] = {}

    def begin(self, xid: int = 7) -> bytes:
        return struct.pack("!cQqI", b"B", 0x6244C778, 848_720_198_358_214, xid)

    def commit(self, end: int = 0x1000) -> bytes:
        return struct.pack("!cBQQq", b"C", 0, 0x6244C778, end, 848_720_198_358_214)

    def row(self, action: str, table: Table, new: Values | None = None, old: Values | None = None) -> list[bytes]:
        message = struct.pack("!cI", action.encode(), table.oid)
        if action == "D" or (action == "U" and old is not None and not _same_key(table, new, old)):
            message += (b"O" if table.identity is ReplicaIdentity.FULL else b"K") + _tuple(table, old or {}, b"n")
        if new is not None:
            message += b"N" + _tuple(table, new, b"u")
        return [*self.describe(table), message]

    def truncate(self, *tables: Table) -> list[bytes]:
        told = [message for table in tables for message in self.describe(table)]
        return [*told, struct.pack(f"!cIB{len(tables)}I", b"T", len(tables), 0, *(table.oid for table in tables))]

    def message(self, prefix: str, content: str, transactional: bool = True) -> bytes:
        head = struct.pack("!cBQ", b"M", transactional, 0x6244C778)
        return head + prefix.encode() + b"\0" + struct.pack("!I", len(content.encode())) + content.encode()

    def describe(self, table: Table) -> list[bytes]:
        """The relation message, once for each definition."""
        if self.told.get(table.oid) == table:
            return []
        self.told[table.oid] = table
        keys = [name for name, _ in table.columns] if table.identity is ReplicaIdentity.FULL else table.key
        columns = b"".join(
            struct.pack("!B", name in keys) + name.encode() + b"\0" + struct.pack("!Ii", oid, -1)
            for name, oid in table.columns
        )
        schema = b"" if table.schema == "pg_catalog" else table.schema.encode()
        identity = table.identity.value.encode()
        return [
            struct.pack("!cI", b"R", table.oid)
            + schema + b"\0" + table.name.encode() + b"\0" + identity
            + struct.pack("!H", len(table.columns)) + columns
        ]  # fmt: skip


def _same_key(table: Table, new: Values | None, old: Values) -> bool:
    return table.identity is not ReplicaIdentity.FULL and all(
        (new or {}).get(name) == old.get(name) for name in table.key
    )


def _tuple(table: Table, values: Values, left_out: bytes) -> bytes:
    cells = [struct.pack("!H", len(table.columns))]
    for name, _ in table.columns:
        text = values.get(name)
        if text is not None:
            cells.append(b"t" + struct.pack("!I", len(text.encode())) + text.encode())
        else:
            cells.append(b"n" if name in values else left_out)
    return b"".join(cells)


def speaker(plugin: str) -> Speaker:
    """A speaker on a new connection."""
    return Wal2jsonSpeaker() if plugin == "wal2json" else PgoutputSpeaker()


def shown(change: Change) -> tuple[object, ...]:
    """A change by its contents, for comparisons across decoders."""
    relation = change.relation
    names = [column.name for column in relation.columns]
    return (
        relation.schema, relation.name, relation.leaf, names, [column.type_oid for column in relation.columns],
        relation.primary_key, relation.replica_identity, change.operation, change.new, change.old, change.lsn,
        change.ordinal,
    )  # fmt: skip
