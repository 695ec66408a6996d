"""The nouns that travel through the house: relations, changes, transactions, catalog facts.

Plain values, no behaviour beyond look-ups; who makes and who reads them is told in docs/house-plan.md.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from walstream.lsn import Lsn

Cell: TypeAlias = bytes | None
"""One column's value in a row, as JSON text (``b"null"`` for NULL); None when the WAL does not carry it
(an unchanged TOASTed value without REPLICA IDENTITY FULL, or a column that is no part of the old key)."""

Row: TypeAlias = tuple[Cell, ...]
"""Cells in the order of ``Relation.columns``; always of the same length."""


class Operation(enum.Enum):
    """What happened to a row, by PostgreSQL's own word."""

    INSERT = "INSERT"
    UPDATE = "UPDATE"
    DELETE = "DELETE"
    TRUNCATE = "TRUNCATE"

    # Members are looked up for every change; Enum's own hash is a Python function.
    __hash__ = object.__hash__


class ReplicaIdentity(enum.Enum):
    """What the WAL holds of an old row (PostgreSQL 17, ALTER TABLE … REPLICA IDENTITY)."""

    DEFAULT = "d"
    FULL = "f"
    INDEX = "i"
    NOTHING = "n"


class TypeInfo(msgspec.Struct, frozen=True):
    """One row of pg_type, as far as values and filters need it (PostgreSQL 17, 51.64 pg_type)."""

    oid: int
    name: str  # typname, as clients see it: int4, _text, mood
    kind: Literal["b", "c", "d", "e", "p", "r", "m"] = "b"  # typtype
    category: str = "U"  # typcategory
    element: int = 0  # element type's OID, for arrays; 0 else
    base: int = 0  # base type's OID, for domains; 0 else
    delimiter: str = ","  # between array elements
    fields: tuple[tuple[str, int], ...] = ()  # attribute names and type OIDs, for composites
    labels: tuple[str, ...] = ()  # enum labels in sort order


class Column(msgspec.Struct, frozen=True):
    """A column as its row's WAL record names it. ``type_name`` is pg_type.typname."""

    name: str
    type_oid: int
    type_name: str


class RelationInfo(msgspec.Struct, frozen=True):
    """What the catalog knows of a table and its WAL record does not say.

    ``root``: the topmost partitioned table, equal to (schema, name) for anything else.
    """

    oid: int
    schema: str
    name: str
    primary_key: tuple[str, ...] = ()
    replica_identity: ReplicaIdentity = ReplicaIdentity.DEFAULT
    identity_columns: tuple[str, ...] = ()  # columns that the old key holds; all for FULL, () if none
    root: tuple[str, str] = ("", "")
    column_order: tuple[str, ...] = ()  # of the root, by attribute number
    columns: tuple[Column, ...] = ()  # as the catalog has them now, in the root's order
    row_security: bool = False
    ordered_text: frozenset[str] = frozenset()  # text columns whose collation orders by code point
    ascii_case: frozenset[str] = frozenset()  # text columns whose collation gives a case to ASCII letters alone
    fuzzy_text: frozenset[str] = frozenset()  # text columns whose collation is not deterministic


FORMER_MAX = 1000
"""Relations of which the last facts are remembered until somebody asks for them anew."""


class CatalogMiss(Exception):
    """A decoder met a relation or type that its ``Catalog`` does not hold yet.

    Not an error: the reader loads what is missing and hands the same message in again.
    """

    def __init__(self, *, relations: Iterable[tuple[str, str]] = (), types: Iterable[int] = ()) -> None:
        super().__init__(tuple(relations), tuple(types))
        self.relations = frozenset(relations)
        self.types = frozenset(types)


class Catalog:
    """Catalog facts by (schema, name) and by type OID; filled by the shell, read by the core.

    A key that is known to be absent is stored as None, so that it is not asked for again.
    ``version`` rises with every change: caches compare it.
    """

    def __init__(self) -> None:
        self.relations: dict[tuple[str, str], RelationInfo | None] = {}
        self.types: dict[int, TypeInfo | None] = {}
        self.version = 0
        self._former: dict[tuple[str, str], RelationInfo] = {}

    def load(
        self,
        relations: Mapping[tuple[str, str], RelationInfo | None] | None = None,
        types: Mapping[int, TypeInfo | None] | None = None,
    ) -> None:
        """Add or replace facts. Of a table that is gone, what was known of it last stays: its rows may still come."""
        for name, info in (relations or {}).items():
            former = self._former.pop(name, None) or self.relations.get(name)
            self.relations[name] = former if info is None else info
        self.types.update(types or {})
        self.version += 1

    def forget_relations(self) -> None:
        """Drop all relations: something may have been altered, and the next use asks again."""
        for schema, name in list(self.relations):
            self.forget(schema, name)
        self.version += 1

    def forget(self, schema: str, name: str) -> None:
        """Drop one relation: it may have been altered."""
        former = self.relations.pop((schema, name), None)
        if former is not None:
            self._former[schema, name] = former
            if len(self._former) > FORMER_MAX:
                del self._former[next(iter(self._former))]


class Relation(msgspec.Struct, frozen=True, eq=False, dict=True):
    """A table in one state of its definition, under the name that subscribers know.

    Decoders intern these: the same object as long as the definition is unchanged, so identity is a cache key.
    For a partition ``schema`` and ``name`` are the root's and ``leaf`` names the partition itself.
    """

    schema: str
    name: str
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...] = ()
    replica_identity: ReplicaIdentity = ReplicaIdentity.DEFAULT
    leaf: tuple[str, str] | None = None
    oid: int = 0

    @cached_property
    def positions(self) -> Mapping[str, int]:
        """Column name → index into ``columns`` and into every ``Row``."""
        return {column.name: index for index, column in enumerate(self.columns)}


class Change(msgspec.Struct, gc=False):
    """One row change, or the truncation of one table.

    ``new``: the row after INSERT or UPDATE, else None. ``old``: the row before UPDATE or DELETE as far as the
    replica identity gives it (cells outside it are None); None for INSERT and TRUNCATE and where the WAL has nothing.
    ``ordinal``: 0-based index among the row changes that the plugin sent for the transaction, wanted or not.
    Treated as immutable once its transaction is complete.
    """

    relation: Relation
    operation: Operation
    new: Row | None
    old: Row | None
    lsn: int  # of the change's own WAL record; neither unique nor rising (see Lsn)
    ordinal: int = 0


class Begin(msgspec.Struct, frozen=True):
    """A transaction's changes follow. ``commit_at``: microseconds since the Unix epoch.

    ``lsn``: where its commit record begins, 0 if unknown: what confirms more than that leaves the transaction out.
    """

    xid: int  # 32 bits
    commit_at: int
    lsn: int = 0


class Commit(msgspec.Struct, frozen=True):
    """The transaction is complete. ``lsn``: end of its commit record, the only position worth confirming."""

    lsn: int


class Message(msgspec.Struct, frozen=True):
    """A logical message (PostgreSQL 17, 9.28.6 pg_logical_emit_message)."""

    prefix: str
    content: bytes
    transactional: bool
    lsn: int


Record: TypeAlias = Begin | Change | tuple[Change, ...] | Commit | Message
"""What one message of an output plugin means; a tuple where one message truncates several tables."""


class Transaction(msgspec.Struct):
    """Committed changes in the order of the WAL. ``xid``: 32 bits. ``commit_at``: µs since the Unix epoch.

    ``changes`` may be backed by a file: iterate, do not index. ``control``: changes of walstream's own tables.
    ``size``: bytes that it holds in memory.
    """

    xid: int
    commit_lsn: Lsn
    commit_at: int
    changes: Sequence[Change]
    control: tuple[Change, ...] = ()
    messages: tuple[Message, ...] = ()
    size: int = 0


class Snapshot(NamedTuple):
    """``pg_current_snapshot()`` with the WAL positions read beside it; xids are 64-bit.

    A transaction is live for who holds this snapshot exactly when its xid is not visible in it.
    """

    xmin: int
    xmax: int
    in_progress: frozenset[int]
    flush_lsn: int
    insert_lsn: int
    server_start: float  # pg_postmaster_start_time(), seconds since the epoch
