"""The main road: a message of the slot becomes a record, a captured change, a transaction in the ring, and frames.

Each step is a room of its own (``decoder``, ``capture``, ``history``, ``router``); here they are joined, synchronously,
for as many messages as the reader hands over. Reading the slot is ``wal_reader``; sending is ``fanout``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import structlog
import trio

from walstream import decoder
from walstream.capture.plan import Admission, Fault, Plan
from walstream.capture.tally import Tally
from walstream.decoder import MESSAGE_PREFIX, Decoder
from walstream.errors import DecodeError, EnvironmentFailure, Invariant
from walstream.history.assemble import Assembler
from walstream.history.plan_log import ANY_TABLE, Anew, PlanLog
from walstream.history.resume import SLOT_LOST, PlanChange
from walstream.history.ring import Ring
from walstream.history.visibility import is_live, settled
from walstream.lsn import Lsn
from walstream.model import (
    Begin,
    Catalog,
    CatalogMiss,
    Change,
    Commit,
    Message,
    Operation,
    Record,
    Relation,
    RelationInfo,
    Snapshot,
    Transaction,
    TypeInfo,
)
from walstream.shell.channels.notify_mirror import NotifyMirror
from walstream.shell.channels.wal_feed import WalFeed
from walstream.shell.database import plan_source, publications
from walstream.shell.database.access import Rights, TableAccess, load_rights
from walstream.shell.database.catalog import load_relations, load_types
from walstream.shell.database.join_facts import Literal, cast_literals
from walstream.shell.database.plan_source import LoadedPlan
from walstream.shell.database.postgres import Database
from walstream.shell.delivery.fanout import Fanout
from walstream.shell.wal.poison import Broken, UnderWay
from walstream.shell.wal.publication_keeper import PublicationKeeper
from walstream.shell.wal.slot_keeper import Stream
from walstream.shell.wal.spill import FileSpill
from walstream.telemetry.log import PLAN_CHANGED, PLAN_FAULTY

if TYPE_CHECKING:
    from psycopg2.extensions import connection as PgConnection  # noqa: N812 - a class under its role's name

BATCH_BYTES: Final = 64 * 1024
LARGE_BYTES: Final = 256 * 1024
"""A message above this does not stay in memory beside its record, which has its values."""

EVICT_SECONDS: Final = 1.0
ADMISSIONS_MAX: Final = 4096
MISSES_MAX: Final = 20
"""Rounds of loading for one message: relation, its types, the types inside them, the filter's literals."""

log = structlog.get_logger()


class _LiteralMiss(CatalogMiss):
    """A plan's filter compares with literals that PostgreSQL has not cast yet."""

    def __init__(self, literals: frozenset[Literal]) -> None:
        super().__init__()
        self.literals = literals


class _RightsMiss(CatalogMiss):
    """A table that nobody has asked about yet: somebody may have joined all tables."""

    def __init__(self, table: tuple[str, str]) -> None:
        super().__init__()
        self.table = table


class PipelineSettings(msgspec.Struct, frozen=True):
    """What the pipeline has to know from the configuration. ``publication``: also capture its tables, "" for none."""

    schema: str = "realtime"
    publication: str = ""
    filter_tables: str = ""


class Pipeline:
    """The ``Sink`` of the reader.

    ``returned``: called with the content of each transactional message of ours. What the slot keeps back is told by
    who watches it, through ``slot_seen``. ``on_gap`` gets a reason when changes may be missing before what comes next,
    and ``on_overtaken`` a change of the plan before which what was captured is not what should have been, with joins
    that it concerns besides those that resumed from before it. ``on_anew`` gets tables that are captured anew.
    ``feed``: who is told of channels, members and stored messages; to be set before the first stream.
    """

    def __init__(
        self,
        settings: PipelineSettings,
        *,
        catalog: Catalog,
        ring: Ring,
        fanout: Fanout,
        access: TableAccess,
        database: Database,
        keeper: PublicationKeeper,
        returned: Callable[[bytes], object],
    ) -> None:
        self.plan = Plan(own_schema=settings.schema)
        self.tally = Tally()
        self.changes_in = 0
        self.on_gap: Callable[[str], object] = lambda reason: None
        self.on_overtaken: Callable[[PlanChange, Collection[Hashable]], object] = lambda change, joins: None
        self.on_anew: Callable[[Anew], object] = lambda anew: None
        self.mirror: NotifyMirror | None = None
        self.feed: WalFeed | None = None
        self._settings = settings
        self._catalog = catalog
        self._ring = ring
        self._fanout = fanout
        self._access = access
        self._database = database
        self._keeper = keeper
        self._returned = returned
        self._assembler = Assembler(spill_bytes=max(1, ring.bytes_max // 4), new_spill=FileSpill)
        self._admissions: dict[Relation, Admission | None] = {}
        self._literals: dict[Literal, bytes | str] = {}
        self._decoder: Decoder | None = None
        self._decode: Callable[[bytes, int], Record | None] = _no_stream
        self._open_relation: Relation | None = None  # of the newest row, if every change of it is captured as it is
        self._batch: list[Change] = []  # rows of it, not yet with the assembler
        self._batch_bytes = 0
        self._payloads: list[bytes] = []  # messages that the reader has handed over; b"" for a large one that is done
        self._starts: Sequence[int] = ()  # their LSNs
        self._done = 0  # how many of them were decoded, and taken but for the one that is held
        self._truncated: set[tuple[str, str]] = set()  # tables emptied since the transaction's last row
        self._held: tuple[Record, int] | None = None  # what misses something, and the bytes of its message
        self.plan_oid = 0  # of the table that the plan was loaded from, 0 for none
        self._reloaded: LoadedPlan | None = None  # and to be used when the transaction that is under way ends
        self._plan_snapshot: Snapshot | None = None
        self._first_snapshot: Snapshot | None = None  # until everything is newer than it
        self._server_start = 0.0
        self._restart_lsn = self._wal_end = 0
        self._evict_at = 0.0
        self._faulty: frozenset[Fault] = frozenset()
        self._plan_log = PlanLog(ring)

    # -- the stream

    async def open(self, stream: Stream) -> Mapping[str, str]:
        """See ``Sink.open``. Raises DatabaseRefused where ``walstream init`` is due.

        A plan that was loaded is one of now. Where the stream goes on, the plan as of what was read last is the right
        one: what follows was committed under it, until a change of it comes. One of another table is not.
        """
        oid, loaded = await self._database.run(self._load_with_oid)
        is_ours = stream.lineage.has(self._ring.cluster, self._ring.newest)
        gap = stream.gap if is_ours else "other_cluster"
        is_gap = bool(gap) or stream.is_new_slot
        if is_gap:
            # Another cluster, or a slot that begins now: what the ring holds has no continuation. What the stream that
            # broke has brought goes out first, for the gap lies behind it.
            await self._fanout.flush()
            start, newest = stream.confirmed, self._ring.newest
            if gap == "other_cluster":
                self._fanout.cluster_changed()
                newest = stream.lineage.ancestors.get(self._ring.cluster, Lsn(0))
                start = max(start, newest)
            lost = SLOT_LOST if stream.is_new_slot or gap == SLOT_LOST else stream.lost
            self._ring.restart(stream.lineage, start, lost=lost)
            # Should the slot go back, what was delivered, and is of this history, is still known.
            self._ring.newest = max(newest, self._ring.newest)
            self._plan_log.clear()
            self.on_gap(gap or SLOT_LOST)
        self._ring.lineage = stream.lineage
        if stream.anew is not None:
            self.on_anew(stream.anew)
        self._fanout.server_started(stream.server_start)
        self._server_start = stream.server_start
        self._keeper.is_needed = stream.plugin == "pgoutput"
        self._decoder = decoder.make(
            stream.plugin,
            self._catalog,
            wanted=self._wanted,
            publication_names=(*publications.NAMES, *filter(None, [self._settings.publication])),
            filter_tables=self._settings.filter_tables,
        )
        self._decode = self._decoder.decode
        self._catalog.forget_relations()
        self._assembler.reset()
        self._batch = []
        self._batch_bytes = 0
        self._forget_messages()
        self.tally.forget()
        self._held = None
        if self._plan_snapshot is None:
            self._first_snapshot = loaded.snapshot
        is_other = self.plan_oid not in (0, oid)
        if self._plan_snapshot is None or is_gap or is_other:
            self._plan_snapshot, self.plan = loaded.snapshot, loaded.plan
        self.plan_oid, self._reloaded = oid, None
        if is_other:
            self.on_anew(Anew(ANY_TABLE, loaded.snapshot.insert_lsn))
        self._use(self.plan)
        if self.feed is not None:
            self.feed.opened(loaded.snapshot, stream.server_start, missed=is_gap)
        return self._decoder.options()

    def receive(self, payloads: list[bytes], starts: Sequence[int]) -> None:
        """See ``Sink.receive``."""
        self._payloads, self._starts, self._done = payloads, starts, 0
        self._go_on()

    def _go_on(self) -> None:
        """Take the messages that are not done, in order. Whatever this raises, ``_done`` of them are."""
        assert self._decoder is not None
        payloads, starts = self._payloads, self._starts
        for first, end in self._decoder.runs(payloads, self._done):
            if end - first > 1:
                size = sum(map(len, payloads[first:end]))
                changes = self._decoder.decode_run(payloads[first:end], starts[first:end])
                if changes is not None:
                    self._done = end
                    if size > LARGE_BYTES:
                        payloads[first:end] = [b""] * (end - first)
                    self._take_run(changes, size)
                    continue
            for at in range(first, end):
                size = len(payloads[at])
                record = self._decode(payloads[at], starts[at])
                self._done = at + 1  # a record that misses something is held
                if size > LARGE_BYTES:
                    payloads[at] = b""
                if record is not None:
                    self._take_one(record, size)
        self._forget_messages()

    def _forget_messages(self) -> None:
        self._payloads, self._starts = [], ()
        self._done = 0

    def _take_run(self, changes: list[Change], size: int) -> None:
        """INSERTs into one table."""
        if changes[0].relation is self._open_relation:
            self._batch += changes
            self._batch_bytes += size
            if self._batch_bytes > BATCH_BYTES:
                self._end_batch()
        else:
            self._end_batch()
            self._take(tuple(changes), size)

    def _take_one(self, record: Record, size: int) -> None:
        if type(record) is Change and record.relation is self._open_relation and record.new is not None:
            self._batch.append(record)
            self._batch_bytes += size
            if self._batch_bytes > BATCH_BYTES:
                self._end_batch()
        else:
            self._end_batch()
            self._take(record, size)

    async def recover(self, miss: CatalogMiss) -> None:
        """See ``Sink.recover``."""
        tries = 0
        while tries < MISSES_MAX:
            tries += 1
            await self._load(miss)
            done = self._done
            try:
                held, self._held = self._held, None
                if held is not None:
                    self._take(*held)
                self._go_on()
            except CatalogMiss as another:
                miss = another.with_traceback(None)  # which holds on to the message
                if self._done > done:
                    tries = 0  # another message's miss
            else:
                return
        raise EnvironmentFailure(f"the catalog never has what a message needs: {miss}")

    def broken(self, error: DecodeError) -> Broken | None:
        """See ``Sink.broken``."""
        begun = self._assembler.begun
        if begun is None or self._done >= len(self._payloads):
            return None
        return Broken(self._payloads[self._done], self._starts[self._done], begun.xid, error, begun.lsn)

    def skip(self) -> None:
        """See ``Sink.skip``."""
        self._done += 1
        self._go_on()

    @property
    def newest(self) -> Lsn:
        """See ``Sink.newest``."""
        return self._ring.newest

    @property
    def under_way(self) -> UnderWay | None:
        """See ``Sink.under_way``."""
        begun = self._assembler.begun
        return None if begun is None else UnderWay(begun.xid, begun.lsn)

    async def flush(self) -> None:
        """See ``Sink.flush``."""
        await self._fanout.flush()

    def confirmable(self, *, trailing: bool) -> Lsn:
        """See ``Sink.confirmable``."""
        if not trailing:
            return self._ring.newest
        self._evict()
        return self._ring.confirmable

    def _evict(self) -> None:
        now = trio.current_time()
        if now >= self._evict_at:
            self._evict_at = now + EVICT_SECONDS
            self._ring.evict(now, self._restart_lsn, self._wal_end)

    def slot_seen(self, restart_lsn: int, wal_end: int) -> None:
        """From where on the slot keeps WAL back, and how far the WAL goes; 0 for what is not known."""
        self._restart_lsn, self._wal_end = restart_lsn, wal_end

    # -- records

    def _wanted(self, schema: str, name: str) -> bool:
        return self.plan.wanted(schema, name) or self._is_control(schema, name)

    def _is_control(self, schema: str, name: str) -> bool:
        return schema == self._settings.schema and (
            name == plan_source.TABLE or (self.feed is not None and name in WalFeed.tables)
        )

    def _take(self, record: Record, size: int) -> None:
        if isinstance(record, Change):
            self._change(record, size)
        elif isinstance(record, Begin):
            self._truncated.clear()
            self._assembler.begin(record)
            if self.feed is not None:
                self.feed.begin()
        elif isinstance(record, Commit):
            self._commit(record)
        elif isinstance(record, Message):
            if record.transactional and record.prefix == MESSAGE_PREFIX:
                self._assembler.message(record)
        else:
            self._several(record, size)

    def _several(self, changes: tuple[Change, ...], size: int) -> None:
        try:
            for relation in dict.fromkeys([change.relation for change in changes]):
                self._admission(relation)
        except CatalogMiss:
            self._held = changes, size
            raise
        for change in changes:
            self._change(change, size // len(changes))

    def _end_batch(self) -> None:
        """Hand over the rows of the table whose changes are all captured as they are: the usual ones, and the bulk."""
        if self._batch:
            admission = self._admissions[self._batch[0].relation]
            assert admission is not None
            self._admitted(admission, len(self._batch))
            self._assembler.extend(self._batch, self._batch_bytes)
            self._batch = []
            self._truncated.clear()
        self._batch_bytes = 0

    def _is_repeated_truncate(self, change: Change) -> bool:
        """Whether the table was just emptied: the WAL tells of each partition, and wal2json of the root as well."""
        if change.operation is not Operation.TRUNCATE:
            self._truncated.clear()
            return False
        name = (change.relation.schema, change.relation.name)
        repeated = name in self._truncated
        self._truncated.add(name)
        return repeated

    def _admitted(self, admission: Admission, count: int) -> None:
        if not admission.pending:
            self.tally.touch(admission)
        admission.pending += count

    def _change(self, change: Change, size: int) -> None:
        relation = change.relation
        try:
            admission = self._admission(relation)
        except CatalogMiss:
            self._held = change, size
            raise
        is_control = self._is_control(relation.schema, relation.name)
        if is_control and not (self.feed is not None and self.feed.row(change, size)):
            self._assembler.control(change, size)
        if admission is not None:
            self._open_relation = relation if admission.is_open and not is_control else None
            if self._is_repeated_truncate(change):
                return
            admitted = admission.admit(change)
            if admitted is not None:
                self._admitted(admission, 1)
                self._assembler.change(admitted, size)

    def _admission(self, relation: Relation) -> Admission | None:
        if relation in self._admissions:
            return self._admissions[relation]
        admission = None
        if (relation.schema, relation.name) != (self._settings.schema, plan_source.TABLE):
            table = (relation.schema, relation.name)
            if table not in self._access.tables and self.plan.wanted(*table):
                if self._access.roles:
                    raise _RightsMiss(table)
                # The first role may be about to come: whoever brings it has to ask about this table, too.
                self._access.update({}, (), [table])
            needed = self.plan.literals_needed(relation, self._catalog)
            missing = needed - self._literals.keys()
            if missing:
                raise _LiteralMiss(frozenset(missing))
            admission = self.plan.admission(relation, self._catalog, self._literals)
            self._report_faults(self.plan.faults(relation))
        if len(self._admissions) >= ADMISSIONS_MAX:
            self._admissions.clear()
            self._open_relation = None
        self._admissions[relation] = admission
        return admission

    def _commit(self, record: Commit) -> None:
        transaction, spilled = self._assembler.commit(record)
        ring = self._ring
        if ring.is_known(transaction.commit_lsn):
            self.tally.forget()
            return
        for change, joins in self._plan_log.reached(transaction):
            self.on_overtaken(change, joins)
        self.tally.commit(transaction.commit_at)
        overtaken = self._change_plan(transaction) if transaction.control else None
        if self.feed is not None:
            self.feed.committed(transaction)
        for message in transaction.messages:
            self._returned(message.content)
        if len(transaction.changes):
            self.changes_in += len(transaction.changes)
            sequence = ring.append(transaction, trio.current_time())
            self._fanout.route(sequence, transaction, spilled=spilled)
            if self.mirror is not None and self.mirror.is_needed and self._is_news(transaction):
                self.mirror.committed(transaction)
        else:
            ring.pass_by(transaction.commit_lsn)
        if overtaken is not None:
            self.on_overtaken(overtaken, ())  # what is told afterwards comes after it
        self._use_reloaded()

    def _is_news(self, transaction: Transaction) -> bool:
        """Whether it was committed since this process began, so that no other has told of it."""
        since = self._first_snapshot
        if since is not None and settled(transaction, since):
            since = self._first_snapshot = None
        return since is None or is_live(transaction, since, self._server_start)

    # -- the plan

    def _change_plan(self, transaction: Transaction) -> PlanChange | None:
        """Somebody committed changes of ``subscriptions``: what follows in the WAL obeys them.

        Returns the change if the plan that was loaded has it, so that it has overtaken what was committed before it.
        """
        changes = [change for change in transaction.control if change.relation.name == plan_source.TABLE]
        if not changes:
            return None
        tables = plan_source.concerned(changes)
        if tables:
            self._plan_log.add(PlanChange(transaction.commit_lsn, tables))
        since = self._plan_snapshot
        # Settled first: xids come round, and a plan may have been loaded years ago.
        if (
            since is not None
            and not settled(transaction, since)
            and not is_live(transaction, since, self._server_start)
        ):
            # Read again after a restart: what came before it was captured by the plan of now.
            return PlanChange(transaction.commit_lsn, tables) if tables else None
        self._use(plan_source.applied(self.plan, changes))
        log.info(PLAN_CHANGED, rows=len(self.plan.rows), lsn=str(transaction.commit_lsn))
        return None

    @property
    def plan_changes(self) -> Sequence[PlanChange]:
        """See ``Plans.plan_changes``."""
        return self._plan_log.changes

    def left_out(self, record_lsn: int, table: tuple[str, str] | None) -> PlanChange:
        """See ``PlanLog.left_out``."""
        return self._plan_log.left_out(record_lsn, table)

    def expect(self, anew: Anew, joins: Collection[Hashable]) -> None:
        """Tables are captured anew: ``on_overtaken`` when the stream is there. ``joins``: those that are concerned."""
        self._plan_log.expect(anew, joins)

    async def reload(self) -> None:
        """The plan's table was made anew: capture by what it says now. Raises WalstreamError.

        Rows of the old one are not deleted in the WAL; those of the new one may have been, before it was published.
        """
        await self._keeper.settle(self.plan, anew=True)
        self.plan_oid, loaded = await self._database.run(self._load_with_oid)
        self._reloaded = loaded
        self.on_anew(Anew(ANY_TABLE, loaded.snapshot.insert_lsn))
        if not self._assembler.is_open:
            self._use_reloaded()

    def _use_reloaded(self) -> None:
        loaded, self._reloaded = self._reloaded, None
        if loaded is not None:
            self._plan_snapshot = loaded.snapshot
            self._use(loaded.plan)

    @property
    def lacks_generated(self) -> bool:
        """Whether changes come without stored generated columns: pgoutput leaves them out."""
        return self._keeper.is_needed

    def load(self, connection: PgConnection) -> LoadedPlan:
        """The plan of now, which may be newer than what the stream has reached. Blocks; raises psycopg2.Error."""
        return plan_source.load(connection, self._settings.schema, self._settings.publication)

    def _load_with_oid(self, connection: PgConnection) -> tuple[int, LoadedPlan]:
        # Its OID first: if the table is exchanged in between, that is noticed later.
        return plan_source.table_oid(connection, self._settings.schema), self.load(connection)

    async def settle(self, plan: Plan, tables: Collection[int]) -> None:
        """See ``Plans.settle``."""
        await self._keeper.settle(plan, tables)

    def _use(self, plan: Plan) -> None:
        self.plan = plan
        self.tally.retain(row.id for row in plan.rows)
        self._keeper.use(plan)
        if self.mirror is not None:
            self.mirror.use(plan)
        self._admissions.clear()
        self._open_relation = None
        self._literals.clear()
        if self._decoder is not None:
            self._decoder.replan()
        self._report_faults(plan.problems)

    def _report_faults(self, faults: tuple[Fault, ...]) -> None:
        for fault in faults:
            if fault not in self._faulty:
                log.warning(PLAN_FAULTY, subscription=fault.row_id, error=fault.message)
        self._faulty |= frozenset(faults)

    # -- what is loaded

    async def _load(self, miss: CatalogMiss) -> None:
        literals = miss.literals if isinstance(miss, _LiteralMiss) else frozenset()
        tables = (miss.table,) if isinstance(miss, _RightsMiss) else ()
        roles = frozenset(self._access.roles)

        def load(connection: PgConnection) -> _Loaded:
            return _Loaded(
                load_relations(connection, miss.relations) if miss.relations else {},
                load_types(connection, miss.types) if miss.types else {},
                cast_literals(connection, literals, self._catalog) if literals else {},
                load_rights(connection, roles, tables) if tables else {},
            )

        loaded = await self._database.run(load)
        self._catalog.load(loaded.relations, loaded.types)
        self._literals.update(loaded.literals)
        if roles >= self._access.roles.keys():  # else a role has come meanwhile: the miss is met, and loaded, again
            # Who has left meanwhile is not brought back: nobody would keep that role's rights fresh.
            self._access.update(loaded.rights, list(self._access.roles), tables)


def _no_stream(payload: bytes, data_start: int) -> Record | None:
    raise Invariant(f"{len(payload)} bytes at {Lsn(data_start)} before a stream was opened")


class _Loaded(NamedTuple):
    relations: Mapping[tuple[str, str], RelationInfo | None]
    types: Mapping[int, TypeInfo | None]
    literals: Mapping[Literal, bytes | str]
    rights: Rights
