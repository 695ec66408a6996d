"""Snapshots: a table's rows as of one moment, in pages, before a join's changes; then exactly what came after it.

Which joins want that is ``starts``'s; the statements are ``database.table_snapshot``'s. What is promised is in
docs/discussion/resume.md.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeVar

import msgspec
import psycopg2
import structlog
import trio

from walstream.capture.plan import Admission, Plan
from walstream.decoder.nested import NULL
from walstream.decoder.values import Converter, from_text, type_info, types_inside
from walstream.errors import EnvironmentFailure, WalstreamError
from walstream.history.resume import standing
from walstream.model import Catalog, CatalogMiss, Cell, Relation
from walstream.policy import Viewer
from walstream.predicate import Predicate, columns_of
from walstream.protocol.snapshot import EVENT, Pages
from walstream.router import Router
from walstream.shell.clients.connection import JoinOwner
from walstream.shell.clients.join_check import Wish, as_relation
from walstream.shell.clients.starts import GAP
from walstream.shell.database import table_snapshot
from walstream.shell.database.access import TableRight
from walstream.shell.database.catalog import load_types
from walstream.shell.database.join_facts import cast_literals
from walstream.shell.database.plan_source import LoadedPlan
from walstream.shell.database.postgres import Database, translate
from walstream.shell.database.table_snapshot import Facts, Moment, Reading, Table
from walstream.shell.delivery.audience import Member
from walstream.shell.delivery.fanout import Fanout
from walstream.shell.delivery.outbox import Outbox
from walstream.shell.delivery.pursuit import EVER, ROOM_BYTES, Beginning
from walstream.telemetry.log import SNAPSHOT_BROKEN

if TYPE_CHECKING:
    from psycopg2.extensions import connection as PgConnection  # noqa: N812 - a class under its role's name

FETCH_BYTES: Final = 64 * 1024
"""Text of rows that is fetched at once, about."""

SLICE_ROWS: Final = 50
SLICE_BYTES: Final = 16 * 1024
"""What is converted before other tasks have their turn: half a millisecond of work."""

FETCH_FIRST: Final = 50
"""Rows that are fetched while nobody knows how large they are."""

MISSES_MAX: Final = 5

TOO_LONG: Final = "snapshot_too_long"
FAILED: Final = "snapshot_failed"
COMPLETE: Final = "The snapshot is complete: what was committed after it follows"

T = TypeVar("T")

log = structlog.get_logger()


class Plans(Protocol):
    """Where the plan comes from, and what the stream leaves out."""

    @property
    def lacks_generated(self) -> bool:
        """Whether changes come without stored generated columns."""
        ...

    def load(self, connection: PgConnection) -> LoadedPlan:
        """The plan of the connection's moment, in a worker thread. Raises psycopg2.Error."""
        ...


class Limits(NamedTuple):
    """``seconds``: from a snapshot's moment to its last page. ``at_once``: snapshots under way; others wait.

    ``rows``: of one page. ``record_bytes``: above which a row loses its large values.
    """

    seconds: float
    at_once: int
    rows: int
    record_bytes: int


class Wanted(NamedTuple):
    """A join some of whose items' rows are to be read: those without a ``begins``.

    ``wire``: what the client knows its items by. ``first``: sequence number of the first transaction that the others
    may want.
    """

    owner: JoinOwner
    serial: int
    wishes: Sequence[Wish]
    wire: Sequence[int]
    begins: Sequence[Beginning | None]
    first: int


class Standing(NamedTuple):
    """The join as it is now: its member, who is held; ids of its bindings; who looks."""

    member: Member
    ids: Sequence[int]
    viewer: Viewer


class _Job:
    """One join's snapshot. ``oids``: its tables as the join found them. ``reason``, ``text``: why there is a gap."""

    def __init__(self, wanted: Wanted, standing: Callable[[], Standing], oids: dict[Table, int]) -> None:
        self.wanted = wanted
        self.standing = standing
        self.oids = oids
        self.scope = trio.CancelScope()
        self.reading = trio.CancelScope()
        self.reason = TOO_LONG
        self.text = ""
        self.is_abandoned = False


class _Taken(NamedTuple):
    """All pages are sent. ``begins``: where every item goes on; ``first``: with which transaction at the earliest.

    ``asked_at``: the ring's next number when the snapshot was asked for.
    """

    begins: Sequence[Beginning]
    first: int
    asked_at: int


class Snapshots:
    """Reads what joins want, each by a task and a connection of its own, while ``run`` is running.

    A join's member is held meanwhile, so that pages hold up nobody; at the end it goes on from the ring. Whatever goes
    wrong, the client is told of a gap, and what follows is live. Who asks for many has one after the other, so that it
    takes nobody else's turn.
    """

    def __init__(
        self,
        open_connection: Callable[[], PgConnection],
        *,
        database: Database,
        catalog: Catalog,
        router: Router,
        fanout: Fanout,
        plans: Plans,
        limits: Limits,
    ) -> None:
        """``database``: for what is asked beside the snapshot."""
        self._open = open_connection
        self._database = database
        self._catalog = catalog
        self._router = router
        self._ring = fanout.ring
        self._fanout = fanout
        self._plans = plans
        self._limits = limits
        self._turns = trio.Semaphore(limits.at_once)
        self._own_turns: dict[JoinOwner, trio.Lock] = {}
        self.pages_out = self.rows_out = 0
        self._jobs: dict[Hashable, _Job] = {}
        self._nursery: trio.Nursery | None = None

    def __len__(self) -> int:
        """Snapshots under way, or waiting for their turn."""
        return len(self._jobs)

    @property
    def running(self) -> int:
        """Those under way."""
        return self._limits.at_once - self._turns.value

    def begin(self, key: Hashable, wanted: Wanted, standing: Callable[[], Standing]) -> None:
        """Send pages soon, then release the join's member. ``standing`` holds until ``forget``."""
        known = self._catalog.relations
        tables = [(wish.schema, wish.table) for wish in wanted.wishes]
        oids = {table: info.oid for table in tables if (info := known.get(table)) is not None}
        job = self._jobs[key] = _Job(wanted, standing, oids)
        if self._nursery is not None:
            self._nursery.start_soon(self._take, key, job)

    def forget(self, key: Hashable) -> None:
        """The join has gone: end its snapshot at once, and tell nobody."""
        job = self._jobs.pop(key, None)
        if job is not None:
            job.scope.cancel()

    def abandon(self, key: Hashable, reason: str) -> bool:
        """What follows the snapshot's moment is not to be had: tell the client soon. False where there is none."""
        job = self._jobs.get(key)
        if job is None:
            return False
        job.reason, job.is_abandoned = reason, True
        job.reading.cancel()
        return True

    async def run(self) -> None:
        """Own the tasks, for ever. Cancelling it leaves joins without their pages."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for key, job in self._jobs.items():
                    nursery.start_soon(self._take, key, job)
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def _take(self, key: Hashable, job: _Job) -> None:
        with job.scope:
            taken = None
            with job.reading:
                async with self._turn(job.wanted.owner):
                    job.reading.deadline = trio.current_time() + self._limits.seconds
                    taken = await self._read(job)
            # No await from here on: what is found in the ring is there when the member is released.
            if self._jobs.get(key) is job:
                del self._jobs[key]
                self._go_on(job, taken)

    @asynccontextmanager
    async def _turn(self, owner: JoinOwner) -> AsyncIterator[None]:
        own = self._own_turns.setdefault(owner, trio.Lock())
        try:
            async with own, self._turns:
                yield
        finally:
            if not own.locked():
                self._own_turns.pop(owner, None)

    def _go_on(self, job: _Job, taken: _Taken | None) -> None:
        """Let the join have its changes: those after the snapshot, or only what is live."""
        wanted, pursuits = job.wanted, self._fanout.pursuits
        if taken is not None and not job.is_abandoned and pursuits.is_kept(taken.first):
            # Later than ``taken.first`` where nothing was live: who comes back with the position gets less again.
            first = pursuits.first(taken.begins, taken.asked_at)
            details, message = {"event": "resumed"}, COMPLETE
        else:
            first = self._fanout.routed
            taken = _Taken([EVER] * len(wanted.begins), first, first)
            details, message = {"event": "gap", "reason": job.reason}, f"{GAP}: {job.text}" if job.text else GAP
            names = [".".join(table) for table in job.oids]
            log.warning(SNAPSHOT_BROKEN, reason=job.reason, error=job.text, tables=names)
        details["position"] = str(standing(self._ring, self._ring.before(first)))
        wanted.owner.system(wanted.serial, "ok", message, details)
        pursuits.release(job.standing().member, taken.begins, taken.first)

    # -- reading

    async def _read(self, job: _Job) -> _Taken | None:
        """Send all pages. None where something went wrong, which ``job`` then tells."""
        session = _Session(self._open)
        try:
            return await self._send(job, session)
        except WalstreamError as error:
            if job.is_abandoned:
                return None
            job.reason, job.text = FAILED, error.message
            return None
        finally:
            session.give_up()

    async def _send(self, job: _Job, session: _Session) -> _Taken | None:
        wanted, ring = job.wanted, self._ring
        viewer = job.standing().viewer
        items = [
            (at, wish)
            for at, (wish, begin) in enumerate(zip(wanted.wishes, wanted.begins, strict=True))
            if begin is None
        ]
        tables = list(dict.fromkeys([(wish.schema, wish.table) for _, wish in items]))
        asked_at = ring.next_sequence
        moment = await session.run(
            partial(
                table_snapshot.begin,
                viewer=viewer,
                tables=tables,
                load_plan=self._plans.load,
                seconds=self._limits.seconds,
                stored=self._plans.lacks_generated,
            )
        )
        snapshot = moment.loaded.snapshot
        begins = [snapshot if begin is None else begin for begin in wanted.begins]
        pursuits = self._fanout.pursuits
        if not pursuits.is_kept(asked_at):
            return None
        first = min(wanted.first, pursuits.first([snapshot], asked_at))
        for at, wish in items:
            source = await self._source(job, at, wish, moment, viewer.role)
            await self._send_item(wanted, session, source)
        return _Taken(begins, first, asked_at)

    async def _send_item(self, wanted: Wanted, session: _Session, source: _Source) -> None:
        owner = wanted.owner
        await session.run(source.open)
        while not source.has_ended:
            if source.is_empty:
                await session.run(source.read)
            rows = source.rows
            try:
                pages = source.take()
            except CatalogMiss as miss:
                await self._learn(miss)  # the row is still there
                continue
            for page in pages:
                await _room(owner.outbox, len(page))
                owner.push(wanted.serial, EVENT, page)
                self.pages_out += 1
            self.rows_out += source.rows - rows
            await trio.lowlevel.checkpoint()

    async def _source(self, job: _Job, at: int, wish: Wish, moment: Moment, role: str) -> _Source:
        """What is to be read for one item, and how. Raises WalstreamError."""
        table = (wish.schema, wish.table)
        facts, plan = moment.tables.get(table), moment.loaded.plan
        right = moment.rights.get((role, *table))
        if facts is None or right is None or job.oids.get(table) not in (None, facts.relation.oid):
            raise EnvironmentFailure(f"the table {'.'.join(table)} is not the one that was joined any more")
        relation = as_relation(facts.relation)
        columns = tuple(column for column in relation.columns if column.name not in facts.unseen)
        relation = msgspec.structs.replace(relation, columns=columns)
        for _ in range(MISSES_MAX):
            try:
                admission = await self._admission(plan, relation)
                return self._made(job, at, wish, admission, relation, facts, right)
            except CatalogMiss as miss:
                await self._learn(miss)
        raise EnvironmentFailure("the catalog never has what a snapshot needs")

    async def _admission(self, plan: Plan, relation: Relation) -> Admission:
        """What the plan lets through. Raises WalstreamError, CatalogMiss."""
        types_inside([column.type_oid for column in relation.columns], self._catalog)
        needed = plan.literals_needed(relation, self._catalog)
        literals = (
            await self._database.run(lambda connection: cast_literals(connection, needed, self._catalog))
            if needed
            else {}
        )
        admission = plan.admission(relation, self._catalog, literals)
        if admission is None:
            raise EnvironmentFailure(f"{relation.schema}.{relation.name} is not captured")
        return admission

    def _made(
        self,
        job: _Job,
        at: int,
        wish: Wish,
        admission: Admission,
        relation: Relation,
        facts: Facts,
        right: TableRight,
    ) -> _Source:
        select = wish.item.select
        if right.columns is not None:
            select = tuple(sorted(right.columns if select is None else right.columns.intersection(select)))
        limits = self._limits
        # How many rows there are is nobody's business who may not see them all.
        is_whole = right.protection is None and not admission.looks_at
        pages = Pages(
            admission.relation,
            select,
            [job.wanted.wire[at]],
            estimate=facts.estimate if is_whole else None,
            rows_max=limits.rows,
            record_bytes=limits.record_bytes,
        )
        shown = {column.name for column in admission.relation.columns}
        if select is not None:
            shown &= {*select, *admission.relation.primary_key}
        wanted = shown | admission.looks_at | (columns_of(wish.expression) if wish.expression is not None else set())
        places = [place for place, column in enumerate(relation.columns) if column.name in wanted]
        converters = [
            from_text(type_info(relation.columns[place].type_oid, self._catalog), self._catalog) for place in places
        ]
        condition = self._router.condition(job.standing().ids[at], admission.relation)
        return _Source(relation, facts, places, converters, admission, condition, pages)

    async def _learn(self, miss: CatalogMiss) -> None:
        self._catalog.load(None, await self._database.run(partial(load_types, oids=miss.types)))


class _Source:
    """Rows of one item on their way into pages. ``open`` and ``read`` block, and raise psycopg2.Error."""

    def __init__(
        self,
        relation: Relation,
        facts: Facts,
        places: Sequence[int],
        converters: Sequence[Converter],
        admission: Admission,
        condition: Predicate | None,
        pages: Pages,
    ) -> None:
        """``places``: indexes of the columns that are read, with one converter each."""
        self._relation = relation
        self._facts = facts
        self._places = places
        self._converters = converters
        self._admission = admission
        self._condition = condition
        self._pages = pages
        self._reading: Reading | None = None
        self._rows: list[tuple[str | None, ...]] = []  # read and not yet converted, the last one first
        self._ready: list[bytes] = []
        self._is_read = False
        self._count = FETCH_FIRST
        self.has_ended = False

    def open(self, connection: PgConnection) -> None:
        """Begin to read."""
        columns = [self._relation.columns[place] for place in self._places]
        named = [(column.name, column.type_oid) for column in columns]
        self._reading = Reading(connection, self._facts, named)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to take before the next ``read``."""
        return not self._rows and not self._is_read

    @property
    def rows(self) -> int:
        """In pages so far."""
        return self._pages.total

    def read(self, connection: PgConnection) -> None:
        """Fetch some more rows."""
        assert self._reading is not None
        self._rows = self._reading.fetch(self._count)
        self._is_read = len(self._rows) < self._count
        if self._is_read:
            self._reading.close()
        self._rows.reverse()
        size = sum([len(value) for row in self._rows for value in row if value is not None])
        self._count = max(1, min(1000, FETCH_BYTES * self._count // max(size, 1)))

    def take(self) -> list[bytes]:
        """The pages that some of the rows make full. Raises CatalogMiss, after which it is to be called again."""
        size = 0
        for _ in range(SLICE_ROWS):
            if not self._rows or size > SLICE_BYTES:
                break
            values = self._rows[-1]
            self._convert(values)
            self._rows.pop()
            size += sum([len(value) for value in values if value is not None])
        if self._is_read and not self._rows:
            self._ready.append(self._pages.end())
            self.has_ended = True
        pages, self._ready = self._ready, []
        return pages

    def _convert(self, values: Sequence[str | None]) -> None:
        cells: list[Cell] = [None] * len(self._relation.columns)
        for place, convert, value in zip(self._places, self._converters, values):  # noqa: B905 - see Reading
            cells[place] = NULL if value is None else convert(value.encode())
        row = self._admission.admit_row(tuple(cells))
        if row is not None and (self._condition is None or self._condition(row) is True):
            self._ready += self._pages.add(row)


class _Session:
    """One connection, used by one thread at a time."""

    def __init__(self, open_connection: Callable[[], PgConnection]) -> None:
        self._open = open_connection
        self._connection: PgConnection | None = None
        self._is_given_up = False
        self._is_busy = False

    async def run(self, work: Callable[[PgConnection], T]) -> T:
        """Call ``work`` in a thread. Raises WalstreamError. After a cancellation only ``give_up``."""

        def call() -> T:
            try:
                if self._connection is None:
                    self._connection = self._open()
                if self._is_given_up:
                    raise EnvironmentFailure("nobody waits for it any more")
                return work(self._connection)
            finally:
                self._is_busy = False
                if self._is_given_up:
                    self._close()

        self._is_busy = True
        try:
            return await trio.to_thread.run_sync(call, abandon_on_cancel=True)
        except psycopg2.Error as error:
            raise translate(error) from error

    def give_up(self) -> None:
        """End the transaction, whatever is running, without waiting for it."""
        self._is_given_up = True
        # In a thread: it asks the server, which takes minutes where the network swallows everything.
        threading.Thread(target=self._cancel if self._is_busy else self._close, daemon=True).start()

    def _cancel(self) -> None:
        connection = self._connection
        if connection is not None:
            try:
                connection.cancel()
            except psycopg2.Error:
                return
            if not self._is_busy:
                self._close()

    def _close(self) -> None:
        if self._connection is not None:
            table_snapshot.end(self._connection)


async def _room(outbox: Outbox, size: int) -> None:
    """Wait until a page of that size leaves the rest of the outbox to others."""
    room = ROOM_BYTES if 2 * ROOM_BYTES + size <= outbox.limit_bytes else 1
    while outbox.queued_bytes >= room:
        outbox.flush()
        await outbox.wait_below(room)
