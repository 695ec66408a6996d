"""A PostgreSQL in memory, as far as the road from the WAL needs it: transactions, snapshots, one slot and its stream.

It writes what wal2json writes, in the order of commits, and remembers everything: what it says was committed is the
truth that ``judging`` compares with. No test lives here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import psycopg2
import trio

from tests.decoder.messages import TYPES, Table, Values, Wal2jsonSpeaker
from tests.shell.joins_support import World
from walstream.capture.plan import Plan, subscription_row
from walstream.errors import DatabaseUnreachable
from walstream.history.lineage import Lineage
from walstream.lsn import Lsn
from walstream.model import Column, ReplicaIdentity, Snapshot, TypeInfo
from walstream.shell.wal.slot_keeper import Stream

T = TypeVar("T")
NAMES: Final = ("apples", "pears")
TABLES: Final = {
    name: Table((("n", 23), ("t", 25), ("b", 16)), ("n",), name=name, oid=1000 + at) for at, name in enumerate(NAMES)
}
PLAN: Final = Table(
    (("id", 25), ("table_name", 25), ("events", 1009), ("filter", 25), ("columns", 1009), ("notify", 16)),
    ("id",), ReplicaIdentity.FULL, "realtime", "subscriptions", 1999,
)  # fmt: skip
SENDER_SECONDS: Final = 60.0
PAUSE_SECONDS: Final = 0.03
ROW_BYTES_MAX: Final = 1000
"""More than the daemon counts for any row here."""


class Row(NamedTuple):
    """A change of a row. ``n``: no other change has it."""

    table: str
    action: str
    n: int
    t: str


class Committed:
    """A transaction whose commit is in the WAL. ``ended``: the server's tick from which on queries see it.

    ``planned``: the table whose line of the plan it changes, and the line's filter, None for none.
    """

    def __init__(self, xid: int, rows: Sequence[Row], planned: tuple[str, str | None] | None) -> None:
        self.xid = xid
        self.rows = rows
        self.planned = planned
        self.end = 0
        self.at = 0.0
        self.index = 0
        self.ended: int | None = None
        self.plan: Mapping[str, str | None] = {}  # as of before it: by it its rows are captured
        self.messages: list[tuple[bytes, int]] = []


class Slot:
    """The slot. ``saved``: what it falls back to when the server restarts; ``start``: where it begins."""

    def __init__(self, start: int) -> None:
        self.start = self.confirmed = self.saved = start
        self.reader: Replication | None = None
        self.is_looked_at = False  # by who is about to read


class Postgres(World):
    """The server. ``on_confirm`` gets every position that is confirmed."""

    def __init__(self) -> None:
        super().__init__("reader", tables=())
        for name in NAMES:
            self.table(name)
            info = msgspec.structs.replace(TABLES[name].info, ordered_text=frozenset({"t"}))
            self.tables["public", name] = info
        names = {info.oid: info.name for info in TYPES}
        columns = tuple(Column(name, oid, names[oid]) for name, oid in PLAN.columns)
        self.table(PLAN.name, schema=PLAN.schema, columns=columns)
        self.tables[PLAN.schema, PLAN.name] = PLAN.info
        self.planned: dict[str, str | None] = dict.fromkeys(NAMES, "")
        self.wal: list[Committed] = []
        self.keys: dict[int, tuple[int, int]] = {}  # by the row's n: where it is in the WAL
        self.pace = 0  # messages after which the stream pauses, 0 for none
        self.upsets = 0  # how often what was read had no continuation
        self.wal_end = 0x1000
        self.tick = 0
        self.cluster = "0000000a"
        self.started = 1.0
        self.slot: Slot | None = None
        self.open: list[tuple[int, int]] = []  # xids of transactions under way, and where their rows lie
        self.ended: set[int] = set()
        self.changed = trio.Event()
        self.epoch = 0
        self.on_confirm: Callable[[int], object] = lambda position: None
        self._numbers = itertools.count(1)

    # -- what is written

    def begin(self) -> None:
        """A transaction writes, and goes on: what is committed meanwhile overtakes it."""
        self.xid += 1
        self.wal_end += 8
        self.open.append((self.xid - 1, self.wal_end))

    def rollback(self) -> None:
        """The oldest of them leaves nothing; without one, a transaction of no use burns its xid."""
        if not self.open:
            self.begin()
        self.ended.add(self.open.pop(0)[0])
        self.tick += 1

    def row(self, table: str, t: str, *, update: bool = False) -> Row:
        """A row that is yet to be committed."""
        return Row(table, "U" if update else "I", next(self._numbers), t)

    def commit(
        self,
        rows: Sequence[Row] = (),
        planned: tuple[str, str | None] | None = None,
        *,
        early: bool = False,
        hangs: bool = False,
    ) -> None:
        """``early``: it is the oldest under way; ``hangs``: its commit is flushed, and no query sees it yet."""
        if not (early and self.open):
            self.begin()
        xid, at = self.open.pop(0 if early else -1)
        done = Committed(xid, rows, planned)
        done.plan = dict(self.planned)
        speaker = Wal2jsonSpeaker()
        done.messages.append((speaker.begin(xid), at))
        for row in rows:
            values = {"n": str(row.n), "t": row.t, "b": "t"}
            key = {"n": str(row.n)} if row.action == "U" else None
            done.messages += [(each, at) for each in speaker.row(row.action, TABLES[row.table], values, key)]
        if planned is not None:
            done.messages += [(each, at) for each in self._replan(speaker, *planned)]
        self.wal_end += 8 + 8 * len(rows)
        done.end, done.at, done.index = self.wal_end, trio.current_time(), len(self.wal)
        done.messages.append((speaker.commit(done.end), done.end))
        self.keys |= {row.n: (done.index, number) for number, row in enumerate(rows)}
        self.wal.append(done)
        if not hangs:
            self._end(done)
        self.wake()

    def _replan(self, speaker: Wal2jsonSpeaker, table: str, condition: str | None) -> list[bytes]:
        old, new = _line(table, self.planned.get(table)), _line(table, condition)
        if condition is None:
            self.planned.pop(table, None)
        else:
            self.planned[table] = condition
        if old is None and new is None:
            return []
        action = "U" if old and new else "I" if new else "D"
        return speaker.row(action, PLAN, new, old)

    def end_all(self) -> None:
        """What hangs at its end ends."""
        for done in self.wal:
            if done.ended is None:
                self._end(done)

    def _end(self, done: Committed) -> None:
        self.tick += 1
        done.ended = self.tick
        self.ended.add(done.xid)

    # -- what is asked

    @property
    def plan(self) -> Plan:
        rows = [
            subscription_row(name, f"public.{name}", ["*"], condition)
            for name, condition in sorted(self.planned.items())
        ]
        return Plan(rows, own_schema="realtime")

    def plan_at(self, index: int) -> Mapping[str, str | None]:
        """As of the commit with this index, which may be yet to come."""
        return self.wal[index].plan if index < len(self.wal) else self.planned

    @property
    def snapshot(self) -> Snapshot:
        top = max(self.ended, default=99) + 1
        running = frozenset(xid for xid in range(100, top) if xid not in self.ended)
        return Snapshot(min(running, default=top), top, running, self.wal_end, self.wal_end, self.started)

    async def run(self, work: Callable[[Any], T]) -> T:
        epoch = self.epoch
        answer = await super().run(work)
        if self.epoch != epoch:
            raise DatabaseUnreachable("the server went away")
        return answer

    def load_types(self, connection: object, oids: Collection[int]) -> dict[int, TypeInfo | None]:
        return {oid: next((info for info in TYPES if info.oid == oid), None) for oid in oids}

    # -- the slot

    def prepare(self) -> tuple[Stream, float]:
        """As ``SlotKeeper.prepare``."""
        if self.is_away:
            raise DatabaseUnreachable("the server is not there")
        is_new = self.slot is None
        if self.slot is None:
            self.upsets += 1
            self.make_slot()
        assert self.slot is not None
        if self.slot.reader is not None:
            raise DatabaseUnreachable("our last stream has not ended yet")
        self.slot.is_looked_at = True
        stream = Stream(
            "wal2json", Lineage(self.cluster), self.started, is_new, Lsn(self.slot.confirmed), Lsn(self.wal_end)
        )  # fmt: skip
        return stream, SENDER_SECONDS

    def make_slot(self) -> None:
        """Waits for who is under way, as PostgreSQL does: here they have come to nothing."""
        while self.open:
            self.rollback()
        self.end_all()
        self.slot = Slot(self.wal_end)

    def drop_slot(self) -> None:
        """Its stream ends, too."""
        self.cut()
        self.slot = None

    def move_slot(self) -> None:
        """Somebody else has read from it; not between the daemon's look and its stream, which nobody could notice."""
        self.cut()
        if self.slot is not None and self.wal and not self.slot.is_looked_at:
            self.upsets += 1
            self.end_all()
            self.slot.confirmed = self.slot.saved = self.slot.start = self.wal_end

    def promote(self) -> None:
        """Another cluster answers that shares nothing with this one's history but its contents, the slot among them."""
        self.restart()
        self.upsets += 1
        self.cluster = f"{int(self.cluster, 16) + 1:08x}"

    def cut(self) -> None:
        """The stream breaks."""
        if self.slot is not None and self.slot.reader is not None:
            self.slot.reader.end("terminating connection")

    def restart(self) -> None:
        """What was under way is gone, what was flushed is not, and the slot remembers an older position."""
        self.cut()
        self.epoch += 1
        self.started += 1.0
        while self.open:
            self.rollback()
        self.end_all()
        if self.slot is not None:
            self.slot.confirmed = self.slot.saved

    def checkpoint(self) -> None:
        """The slot's position is on disk."""
        if self.slot is not None:
            self.slot.saved = self.slot.confirmed

    def wake(self) -> None:
        """There is something to read."""
        self.changed.set()
        self.changed = trio.Event()


def _line(table: str, condition: str | None) -> Values | None:
    """A line of ``realtime.subscriptions``."""
    if condition is None:
        return None
    return {
        "id": table, "table_name": f"public.{table}", "events": "{*}", "filter": condition or None, "columns": None,
        "notify": "f",
    }  # fmt: skip


class Replication:
    """The stream's connection and its cursor, as psycopg2 has them."""

    def __init__(self, postgres: Postgres) -> None:
        if postgres.is_away:
            raise DatabaseUnreachable("the server is not there")
        self.info = SimpleNamespace(backend_pid=4711, error_message="")
        self.closed = 0
        self.wal_end = 0
        self.io_timestamp = 0.0
        self._postgres = postgres
        self._slot: Slot | None = None
        self._why = ""
        self._next = 0  # index of the transaction that is sent
        self._part = 0  # of its messages
        self._sent = 0  # messages since the last pause
        self._last = 0  # where the newest message began
        self._explicit = 0
        self._waiting: int | None = None  # a position that the next status update brings

    def cursor(self) -> Replication:
        return self

    def fileno(self) -> Replication:
        return self

    async def readable(self) -> None:
        """There is something to read, or nothing ever again."""
        if self._is_pausing:
            await trio.sleep(PAUSE_SECONDS)
            self._sent = 0
        elif not self._why and not self.has_more:
            await self._postgres.changed.wait()

    def start_replication(self, **options: object) -> None:
        assert options["start_lsn"] == 0
        slot = self._postgres.slot
        if slot is None or self._postgres.is_away:
            raise psycopg2.OperationalError("replication slot does not exist")
        self._slot, slot.reader, slot.is_looked_at = slot, self, False
        self._next = next((each.index for each in self._postgres.wal if each.end > slot.confirmed), self._count)

    @property
    def _count(self) -> int:
        return len(self._postgres.wal)

    @property
    def has_more(self) -> bool:
        return self._next < self._count

    @property
    def _is_pausing(self) -> bool:
        return 0 < self._postgres.pace <= self._sent and self.has_more

    def read_message(self) -> Any:
        self._check()
        if not self.has_more:
            self._keepalive()
            return None
        if self._is_pausing:
            return None
        self._sent += 1
        done = self._postgres.wal[self._next]
        payload, start = done.messages[self._part]
        self._part += 1
        if self._part == len(done.messages):
            self._next, self._part = self._next + 1, 0
        self.wal_end = self._last = start
        return SimpleNamespace(payload=payload, data_start=start)

    def _keepalive(self) -> None:
        """All is sent. psycopg2 answers by itself, and may confirm more than it was told to."""
        self.wal_end = self._postgres.wal[-1].end if self._postgres.wal else self.wal_end
        if self._explicit >= self._last:
            self._explicit = self.wal_end
        self._confirm(self._explicit)

    def send_feedback(self, *, flush_lsn: int, force: bool = False) -> None:
        if self._why or self.closed:
            return
        self._explicit = max(self._explicit, flush_lsn)
        if force:
            self._confirm(self._explicit)

    def _confirm(self, position: int) -> None:
        if self._slot is not None and position > self._slot.confirmed:
            sent = self._postgres.wal[self._next - 1].end if self._next else 0
            assert position <= max(sent, self._slot.confirmed), "confirmed what was never sent"
            self._slot.confirmed = position
            self._postgres.on_confirm(position)

    def _check(self) -> None:
        if self._why:
            self.closed = 1
            raise psycopg2.OperationalError(self._why)

    def end(self, why: str) -> None:
        """The server's side goes away."""
        self._why = why
        if self._slot is not None and self._slot.reader is self:
            self._slot.reader = None
        self._postgres.wake()

    def close(self) -> None:
        self.closed = 1
        if not self._why:
            self.end("closed")


class Preparing:
    """The ``Database`` that prepares the slot."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def run(self, work: object) -> tuple[Stream, float]:
        await trio.lowlevel.checkpoint()
        return self._postgres.prepare()

    def forget_idle(self) -> None:
        pass
