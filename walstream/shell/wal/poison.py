"""What the stream cannot get past: counted, and then either stood still for, or set aside.

Broken messages are noticed by the pipeline, and what PostgreSQL cannot decode by the reader. The rules are in
docs/discussion/poison.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

import msgspec
import structlog

from walstream.errors import DatabaseRefused, DecodeError, WalstreamError
from walstream.lsn import Lsn
from walstream.shell.database import parked, slots
from walstream.shell.database.parked import Parked
from walstream.shell.database.postgres import Database
from walstream.telemetry.log import POISON_SKIPPED
from walstream.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from psycopg2.extensions import connection as PgConnection  # noqa: N812 - a class under its role's name

Policy = Literal["stop", "skip"]
Table: TypeAlias = tuple[str, str]

TRIES: Final = 3
"""How often the stream begins again before what stops it counts as poison."""

PARKED_PER_TRANSACTION: Final = 100
"""Messages of one transaction that are kept; those after them are only counted."""

OURS_TO_WAIT_FOR: Final = frozenset({"08", "25", "28", "53", "55", "57", "58"})
"""Classes of SQLSTATEs that are no transaction's fault: connections, rights, memory, locks, shutdown, disks."""

_TABLE: Final = re.compile(rb'"schema":"((?:[^"\\]|\\.)*)","table":"((?:[^"\\]|\\.)*)"')
_ROOT: Final = """
select n.nspname, c.relname
  from (select coalesce(nullif(%s::oid, 0)::regclass,
                        pg_catalog.to_regclass(pg_catalog.format('%%I.%%I', %s::text, %s::text)))) as named (it)
  join pg_catalog.pg_class c on c.oid = coalesce(pg_catalog.pg_partition_root(named.it), named.it)
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
"""
_ROWS: Final = frozenset(b"IUD")

log = structlog.get_logger()


class Broken(NamedTuple):
    """A message that could not be taken, within the transaction that is under way.

    ``commit_lsn``: where that one's commit record begins, 0 if unknown.
    """

    payload: bytes
    lsn: int
    xid: int
    error: DecodeError
    commit_lsn: int = 0


class UnderWay(NamedTuple):
    """The transaction that has begun and not ended. ``lsn``: where its commit record begins, 0 if unknown."""

    xid: int
    lsn: int


class Poison:
    """Counts tries, and sets aside what ``policy`` lets go.

    ``on_skipped``: changes are missing for whoever has not got beyond this commit, named by where its record begins,
    and wants the table, as clients know it; None where nobody knows which it was.
    """

    def __init__(self, database: Database, metrics: Metrics, *, slot: str, schema: str) -> None:
        self.policy: Policy = "stop"
        self.on_skipped: Callable[[Lsn, Table | None], object] = lambda lsn, table: None
        self._database = database
        self._metrics = metrics
        self._slot = slot
        self._schema = schema
        self._key: object = None
        self._tries = 0
        self._let_go: set[bytes] = set()  # tables with a message for which all tries were made
        self._last_xid = -1
        self._parked = 0  # of that transaction
        self._told: set[bytes] = set()  # tables of that transaction
        self.stuck_after = Lsn(0)  # the newest commit before what the stream cannot get past

    @property
    def is_stuck(self) -> bool:
        """Whether the stream stands still, and goes on doing so until somebody acts."""
        return self._tries >= TRIES

    def met(self, key: object, newest: Lsn) -> None:
        """Count a try that ended at ``key``."""
        if key != self._key:
            self._key, self._tries = key, 0
        self._tries += 1
        self.stuck_after = newest

    def passed(self) -> None:
        """The stream has got past it."""
        self._key, self._tries = None, 0

    def repair(self) -> str:
        """What to do about it."""
        return (
            "leave its table out (WALSTREAM_FILTER_TABLES=schema.table, for wal2json); or read with the other plugin"
            f" (walstream slot drop {self._slot}, WALSTREAM_DECODER=pgoutput), which begins with a gap;"
            " or WALSTREAM_POISON=skip, which sets it aside"
        )

    async def set_aside(self, broken: Broken, plugin: str, newest: Lsn) -> bool:
        """Write a message down, if all tries were made and the policy lets it go. Raises WalstreamError."""
        table = table_of(broken.payload)
        if not (table and table in self._let_go):
            self.met(("message", broken.lsn, hash(broken.payload)), newest)
            if self.policy == "stop" or not self.is_stuck:
                return False
            self._let_go |= {table} if table else set()
        elif self.policy == "stop":
            self._let_go.clear()
            return False
        self.passed()
        if broken.xid != self._last_xid:
            self._last_xid, self._parked, self._told = broken.xid, 0, set()
        if self._parked < PARKED_PER_TRANSACTION:
            self._parked += 1
            name = await self._name(broken.payload, table)
            reason = broken.error.message
            content = broken.payload
            await self._park(Parked(self._slot, plugin, Lsn(broken.lsn), broken.xid, name, reason, content))
        self._tell("message", Lsn(broken.lsn), broken.xid, table.decode("utf-8", "replace"), broken.error)
        if table not in self._told:
            root = await self._root(broken.payload)
            self._told.add(table)
            self.on_skipped(Lsn(broken.commit_lsn), root)
        return True

    async def leave_out(
        self, error: DatabaseRefused, plugin: str, begun: UnderWay | None, newest: Lsn, *, holder: int = 0
    ) -> Lsn:
        """PostgreSQL cannot decode the transaction: advance the slot past it, if that is what the policy says.

        Everything before it has been read. ``holder``: PostgreSQL's process of the stream that met it, which may not
        have let the slot go yet. Returns how far, 0 if it was not. Raises WalstreamError.
        """
        self.met(("transaction", newest, begun.xid if begun else 0, error.sqlstate), newest)
        if self.policy == "stop" or not self.is_stuck or begun is None or not begun.lsn:
            return Lsn(0)
        # One more than where the commit record begins: what is confirmed may not lie at or before that.
        position = Lsn(begun.lsn + 1)

        def advance(opened: PgConnection) -> None:
            slots.take_back(opened, self._slot, holder)
            slots.advance(opened, self._slot, position)

        await self._database.run(advance)
        self.passed()
        await self._park(
            Parked(self._slot, plugin, Lsn(begun.lsn), begun.xid, "", f"{error.message} ({error.sqlstate})")
        )
        self._tell("transaction", Lsn(begun.lsn), begun.xid, "", error)
        self.on_skipped(Lsn(begun.lsn), None)
        return position

    async def _park(self, what: Parked) -> None:
        await self._database.run(lambda opened: parked.park(opened, self._schema, what))

    async def _name(self, payload: bytes, table: bytes) -> str:
        if payload[:1] == b"{" or not table:
            return table.decode("utf-8", "replace")
        oid = int.from_bytes(payload[1:5])

        def ask(opened: PgConnection) -> str:
            with opened.cursor() as cursor:
                cursor.execute("select %s::oid::regclass::text", (oid,))
                row = cursor.fetchone()
                return str(row[0]) if row else ""

        return await self._database.run(ask)

    async def _root(self, payload: bytes) -> Table | None:
        """The table, or of a partition the one that it belongs to; None where the catalog does not know it."""
        named = _named(payload)
        if named is None:
            return None

        def ask(opened: PgConnection) -> Table | None:
            with opened.cursor() as cursor:
                cursor.execute(_ROOT, named)
                row = cursor.fetchone()
                return None if row is None else (str(row[0]), str(row[1]))

        return await self._database.run(ask)

    def _tell(self, what: str, lsn: Lsn, xid: int, table: str, error: WalstreamError) -> None:
        self._metrics.poison_skipped.labels(what).inc()
        log.warning(
            POISON_SKIPPED, what=what, slot=self._slot, lsn=str(lsn), xid=xid, table=table, error=error.message,
            repair="clients are told of a gap; walstream slot parked shows what was left out",
        )  # fmt: skip


def table_of(payload: bytes) -> bytes:
    """What tells a row's table: its name in wal2json's words, its OID in pgoutput's; b"" for what is no row."""
    if payload[:1] == b"{":
        found = _TABLE.search(payload)
        return b"" if found is None else found[1] + b"." + found[2]
    return payload[1:5] if payload[:1] and payload[0] in _ROWS and len(payload) >= 5 else b""


def _named(payload: bytes) -> tuple[int, str, str] | None:
    """A row's table as ``_ROOT`` takes it: by its OID, or by its names; None for what is no row."""
    if payload[:1] == b"{":
        found = _TABLE.search(payload)
        if found is None:
            return None
        try:
            schema, name = [msgspec.json.decode(b'"%b"' % text, type=str) for text in found.groups()]
        except msgspec.DecodeError:
            return None
        return 0, schema, name
    table = table_of(payload)
    return (int.from_bytes(table), "", "") if table else None


def is_undecodable(error: WalstreamError) -> bool:
    """Whether PostgreSQL refused in the midst of the stream for what it met there, and not for a known cause."""
    return (
        isinstance(error, DatabaseRefused)
        and not error.reason
        and bool(error.sqlstate)
        and error.sqlstate[:2] not in OURS_TO_WAIT_FOR
    )
