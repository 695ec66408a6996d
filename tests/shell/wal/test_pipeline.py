"""From records to the ring and to clients, with a decoder and a database that say what the test wants."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from operator import itemgetter
from typing import Any, cast
from unittest import mock

import msgspec
import pytest

from tests.predicate.rows import TABLE, catalog
from tests.shell.fanout_support import Wire, got, outbox
from tests.support import run
from walstream import decoder
from walstream.capture.plan import Plan, subscription_row
from walstream.decoder import MESSAGE_PREFIX
from walstream.decoder.runs import cut
from walstream.errors import EnvironmentFailure, WalstreamError
from walstream.history.lineage import Lineage
from walstream.history.ring import Ring
from walstream.model import (
    Begin,
    Catalog,
    CatalogMiss,
    Change,
    Column,
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
from walstream.protocol.shapes import Shape
from walstream.router import Binding, Router
from walstream.shell.channels.notify_mirror import NotifyMirror
from walstream.shell.database import plan_source
from walstream.shell.database.access import TableAccess, TableRight
from walstream.shell.database.plan_source import LoadedPlan
from walstream.shell.database.postgres import Database
from walstream.shell.delivery.audience import AudienceKey
from walstream.shell.delivery.fanout import Fanout
from walstream.shell.wal import pipeline as pipeline_module
from walstream.shell.wal.pipeline import MISSES_MAX, Pipeline, PipelineSettings
from walstream.shell.wal.publication_keeper import PublicationKeeper
from walstream.shell.wal.slot_keeper import Stream

NAMES = ("id", "table_name", "events", "filter", "columns", "notify")
PLAN_TABLE = Relation("realtime", "subscriptions", tuple(Column(name, 25, "text") for name in NAMES), ("id",))
BEFORE = Snapshot(3, 3, frozenset(), 0, 0, 1.0)
_encode = msgspec.json.Encoder().encode


class Script:
    """A decoder: message ``n`` is its nth record; a miss is raised until what it misses was loaded."""

    plugin = "wal2json"

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.replanned = 0
        self.tried: list[int] = []  # how many messages each run had

    def options(self) -> dict[str, str]:
        return {"an": "option"}

    def decode(self, payload: bytes, data_start: int) -> Record | None:
        record = self.rig.records[int(payload[1:])]
        if isinstance(record, CatalogMiss):
            if record.relations <= self.rig.catalog.relations.keys():
                return None
            raise record
        return record

    def decode_run(self, payloads: Sequence[bytes], starts: Sequence[int]) -> list[Change] | None:
        self.tried.append(len(payloads))
        records = [self.rig.records[int(payload[1:])] for payload in payloads]
        changes = [record for record in records if isinstance(record, Change) and record.relation is TABLE]
        return changes if len(changes) == len(records) else None

    def runs(self, payloads: Sequence[bytes], first: int) -> Iterable[tuple[int, int]]:
        return cut(payloads, first, itemgetter(0))

    def replan(self) -> None:
        self.replanned += 1


class Rig:
    """A pipeline and one client who may read ``things``."""

    def __init__(self, *subscriptions: str, snapshot: Snapshot = BEFORE) -> None:
        self.catalog = catalog()
        self.router = Router(self.catalog)
        self.ring = Ring(bytes_max=1 << 20, seconds=1e9, wal_bytes=1 << 60)
        self.access = TableAccess(self.catalog)
        self.fanout = Fanout(self.router, self.ring, self.access)
        self.records: list[Record | CatalogMiss | None] = []
        self.returned: list[bytes] = []
        self.gaps: list[str] = []
        self.rights: list[tuple[Collection[str], Collection[tuple[str, str]]]] = []
        self.casts: list[frozenset[tuple[int, str]]] = []
        self.loaded: deque[Plan] = deque()
        self.plan = Plan([subscription_row(name, name, ["*"]) for name in subscriptions], own_schema="realtime")
        self.snapshot = snapshot
        self.plan_oid = 1
        self.trips = 0
        self.on_trip: Callable[[], object] = lambda: None
        self.absent = False
        self.decoder = Script(self)
        self.pipeline = Pipeline(
            PipelineSettings(),
            catalog=self.catalog,
            ring=self.ring,
            fanout=self.fanout,
            access=self.access,
            database=cast(Database, self),
            keeper=PublicationKeeper(cast(Database, self), "realtime"),
            returned=self.returned.append,
        )
        self.pipeline.on_gap = self.gaps.append
        self.wire = Wire()
        self.commit = 100

    # -- as Database

    async def run(self, work: Callable[[Any], Any]) -> Any:
        self.trips += 1
        with (
            mock.patch.object(plan_source, "load", self._load_plan),
            mock.patch.object(plan_source, "table_oid", return_value=self.plan_oid),
            mock.patch.object(pipeline_module, "load_relations", self._load_relations),
            mock.patch.object(pipeline_module, "load_types", self._load_types),
            mock.patch.object(pipeline_module, "load_rights", self._load_rights),
            mock.patch.object(pipeline_module, "cast_literals", self._cast),
        ):
            answer = work(None)
        self.on_trip()
        return answer

    def _load_plan(self, *_: object) -> LoadedPlan:
        return LoadedPlan(self.plan, self.snapshot)

    def _load_relations(self, _: object, names: Collection[tuple[str, str]]) -> dict[tuple[str, str], Any]:
        return {} if self.absent else {name: RelationInfo(1, *name) for name in names}

    def _load_types(self, _: object, oids: Collection[int]) -> dict[int, TypeInfo | None]:
        return dict.fromkeys(oids)

    def _load_rights(
        self, _: object, roles: Collection[str], tables: Collection[tuple[str, str]]
    ) -> dict[tuple[str, str, str], TableRight]:
        self.rights.append((sorted(roles), sorted(tables)))
        return {(role, *table): TableRight(True) for role in roles for table in tables}

    def _cast(self, _: object, literals: frozenset[tuple[int, str]], catalog: Catalog) -> dict[Any, Any]:
        self.casts.append(literals)
        return {each: _encode(each[1]) for each in literals}

    # -- a client and a stream

    def listen(self, role: str = "reader") -> None:
        """Join all tables."""
        number = self.router.add(Binding("*", "*", "*"), {})
        self.access.enter(role)
        key = AudienceKey("realtime:t", "1.0.0", Shape.CHANGES, (number,), role)
        self.fanout.join(outbox(self.wire), key, BEFORE, self.ring.next_sequence)

    async def open(self, cluster: str = "c", *, is_new: bool = False) -> None:
        with mock.patch.object(decoder, "make", return_value=self.decoder):
            await self.pipeline.open(Stream("wal2json", Lineage(cluster), 1.0, is_new))

    async def feed(self, *records: Record | CatalogMiss | None) -> None:
        """As the reader does."""
        payloads = []
        for record in records:
            is_insert = isinstance(record, CatalogMiss) or getattr(record, "operation", None) is Operation.INSERT
            payloads.append(b"%b%d" % (b"I" if is_insert else b"-", len(self.records)))
            self.records.append(record)
        try:
            self.pipeline.receive(payloads, [0] * len(payloads))
        except CatalogMiss as miss:
            await self.pipeline.recover(miss)
        await self.pipeline.flush()

    async def transaction(self, *records: Record | CatalogMiss, xid: int = 0, at: int = 0) -> int:
        """A whole one. Returns its commit end."""
        self.commit += 10
        end = at or self.commit
        await self.feed(Begin(xid or self.commit, 0), *records, Commit(end))
        return end

    @property
    def ordinals(self) -> list[int]:
        """Of the changes that the client was told of."""
        return [each.ordinal for each in got(self.wire)]

    @property
    def commits(self) -> list[int]:
        """Commit ends that the client was told of."""
        return [each.commit for each in got(self.wire)]


def insert(n: int = 1, relation: Relation = TABLE) -> Change:
    return Change(relation, Operation.INSERT, (b"%d" % n, b'"a"', b"true"), None, 0, n - 1)


def planned(table: str, operation: Operation = Operation.INSERT, **values: Any) -> Change:
    row = {
        "id": table,
        "table_name": table,
        "events": ["*"],
        "filter": None,
        "columns": None,
        "notify": False,
        **values,
    }
    cells = tuple(_encode(row[name]) for name in NAMES)
    if operation is Operation.DELETE:
        return Change(PLAN_TABLE, operation, None, cells, 0, 0)
    return Change(PLAN_TABLE, operation, cells, None, 0, 0)


def scene(main: Callable[[Rig], Any], *subscriptions: str, snapshot: Snapshot = BEFORE) -> Rig:
    async def whole() -> Rig:
        rig = Rig(*subscriptions, snapshot=snapshot)
        await rig.open()
        rig.listen()
        await main(rig)
        return rig

    return run(whole, autojump=True)


def test_a_transaction_reaches_ring_and_client() -> None:
    async def main(rig: Rig) -> None:
        ends = [await rig.transaction(insert()), await rig.transaction(insert(), insert(2))]
        assert rig.commits == [ends[0], ends[1], ends[1]]
        assert (len(rig.ring), rig.ring.newest, rig.pipeline.changes_in) == (2, ends[1], 3)

    scene(main, "public.things")


def test_what_is_not_captured_passes_by_and_may_be_confirmed() -> None:
    async def main(rig: Rig) -> None:
        end = await rig.transaction(insert())
        assert rig.commits == []
        assert rig.pipeline.confirmable(trailing=True) == end

    scene(main)


def test_the_window_is_not_confirmed_unless_commits_wait_for_it() -> None:
    async def main(rig: Rig) -> None:
        passed = await rig.transaction()
        end = await rig.transaction(insert())
        assert rig.pipeline.confirmable(trailing=True) == passed
        assert rig.pipeline.confirmable(trailing=False) == end

    scene(main, "public.things")


def test_a_transaction_that_is_read_again_is_not_delivered_again() -> None:
    async def main(rig: Rig) -> None:
        first = await rig.transaction(insert(), xid=50)
        second = await rig.transaction(insert(), xid=51)
        await rig.feed(Begin(52, 0), insert())  # cut off
        await rig.open()
        await rig.transaction(insert(), xid=50, at=first)
        await rig.transaction(insert(), xid=51, at=second)
        third = await rig.transaction(insert(), xid=52)
        assert rig.commits == [first, second, third]
        assert rig.gaps == ["other_cluster"]

    scene(main, "public.things")


@pytest.mark.parametrize(("cluster", "is_new", "gap"), [("d", False, "other_cluster"), ("c", True, "slot_lost")])
def test_positions_that_mean_nothing_any_more_are_forgotten(cluster: str, is_new: bool, gap: str) -> None:
    async def main(rig: Rig) -> None:
        delivered = await rig.transaction(insert())
        await rig.open(cluster, is_new=is_new)
        is_other = gap == "other_cluster"
        assert (len(rig.ring), rig.ring.newest) == (0, 0 if is_other else delivered)
        assert rig.gaps[-1] == gap
        low = await rig.transaction(insert(), at=7)
        assert (rig.commits[-1] == low) is is_other, "below what was delivered: the slot went back"

    scene(main, "public.things")


def test_what_was_routed_before_a_gap_goes_out_before_its_word() -> None:
    """A stream may break within a tick, whose frames nobody has written yet."""

    async def main(rig: Rig) -> None:
        told: list[tuple[str, list[int]]] = []
        rig.pipeline.on_gap = lambda reason: told.append((reason, rig.commits))
        with mock.patch.object(rig.fanout, "flush", mock.AsyncMock()):
            delivered = await rig.transaction(insert())
        assert rig.commits == []
        await rig.open(is_new=True)
        assert told == [("slot_lost", [delivered])]

    scene(main, "public.things")


def test_only_our_own_transactional_messages_return() -> None:
    async def main(rig: Rig) -> None:
        await rig.transaction(
            Message(MESSAGE_PREFIX, b"ours", True, 0), Message(MESSAGE_PREFIX, b"loose", False, 0),
            Message("theirs", b"theirs", True, 0),
        )  # fmt: skip
        assert rig.returned == [b"ours"]

    scene(main)


# -- rows that wait for those after them


def test_the_inserts_of_a_transaction_are_decoded_together() -> None:
    async def main(rig: Rig) -> None:
        for _ in range(2):
            await rig.transaction(*[insert(n) for n in range(1, 7)])
        assert rig.decoder.tried == [6, 6]
        assert rig.ordinals == [*range(6)] * 2
        assert [each.last for each in got(rig.wire)] == [*[False] * 5, True] * 2

    scene(main, "public.things")


def test_a_transaction_may_come_in_pieces() -> None:
    async def main(rig: Rig) -> None:
        for _ in range(2):
            rig.commit += 10
            await rig.feed(Begin(rig.commit, 0), insert(1), insert(2))
            await rig.feed(insert(3))
            await rig.feed(*[insert(n) for n in range(4, 8)])
            assert len(rig.ring) == len(set(rig.commits))
            await rig.feed(insert(8), Commit(rig.commit))
        assert rig.ordinals == [*range(8)] * 2
        assert rig.pipeline.changes_in == 16

    scene(main, "public.things")


def test_rows_that_wait_for_the_assembler_are_bounded() -> None:
    async def main(rig: Rig) -> None:
        await rig.transaction(insert())
        with mock.patch.object(pipeline_module, "BATCH_BYTES", 5):
            await rig.feed(Begin(70, 0), *[insert(n) for n in range(1, 9)])
            assert rig.pipeline._batch == []
            await rig.feed(Commit(700))
        assert rig.ordinals == [0, *range(8)]

    scene(main, "public.things")


def test_among_other_changes_inserts_keep_their_order() -> None:
    other = Relation("public", "others", TABLE.columns, ("n",))
    update = Change(TABLE, Operation.UPDATE, (b"1", b'"a"', b"true"), None, 0, 5)

    async def main(rig: Rig) -> None:
        await rig.transaction(
            insert(1), insert(2), insert(3), insert(4, other), insert(5), update, insert(7), insert(8), insert(9)
        )
        assert rig.ordinals == [*range(9)]
        assert rig.pipeline.changes_in == 9

    scene(main, "public.*")


def test_what_waited_in_a_transaction_that_was_cut_off_is_forgotten() -> None:
    async def main(rig: Rig) -> None:
        await rig.feed(Begin(70, 0), *[insert(n) for n in range(1, 6)])
        await rig.open()
        await rig.transaction(insert(1), insert(2), insert(3))
        assert rig.ordinals == [0, 1, 2]

    scene(main, "public.things")


def test_a_row_that_waited_may_miss_something() -> None:
    other = Relation("public", "others", TABLE.columns, ("n",))

    async def main(rig: Rig) -> None:
        misses = [CatalogMiss(relations=[("public", f"new{n}")]) for n in range(2 * MISSES_MAX)]
        end = await rig.transaction(insert(1), insert(2), insert(3), *misses, insert(4), insert(5, other), insert(6))
        assert rig.commits == [end] * 6
        assert rig.ordinals == [*range(6)]
        assert rig.rights[-1] == (["reader"], [("public", "others")])
        assert rig.ring.newest == end

    scene(main, "public.*")


def test_a_row_that_waited_is_not_waited_for_for_ever() -> None:
    async def main(rig: Rig) -> None:
        rig.absent = True
        with pytest.raises(EnvironmentFailure, match="never has"):
            await rig.transaction(insert(1), insert(2), insert(3), CatalogMiss(relations=[("public", "new")]))

    scene(main, "public.things")


# -- what is missing


def test_what_a_message_misses_is_loaded_and_it_goes_on() -> None:
    async def main(rig: Rig) -> None:
        end = await rig.transaction(CatalogMiss(relations=[("public", "new")]), insert())
        assert ("public", "new") in rig.catalog.relations
        assert rig.commits == [end]

    scene(main, "public.things")


def test_what_is_never_there_does_not_hang_the_stream() -> None:
    async def main(rig: Rig) -> None:
        rig.absent = True
        before = rig.trips
        with pytest.raises(EnvironmentFailure, match="never has"):
            await rig.transaction(CatalogMiss(relations=[("public", "new")]))
        assert rig.trips == before + MISSES_MAX

    scene(main, "public.things")


def test_rights_to_a_table_are_asked_for_before_its_first_row_goes_out() -> None:
    async def main(rig: Rig) -> None:
        end = await rig.transaction(insert(), insert(2))
        await rig.transaction(insert())
        assert rig.rights == [(["reader"], [("public", "things")])]
        assert rig.commits[:2] == [end, end]

    scene(main, "public.things")


def test_a_role_that_comes_while_rights_are_asked_for_is_asked_for_too() -> None:
    async def main(rig: Rig) -> None:
        def enter() -> None:
            rig.on_trip = lambda: None
            rig.access.enter("late")

        rig.on_trip = enter
        await rig.transaction(insert())
        assert rig.rights[-1] == (["late", "reader"], [("public", "things")])
        assert rig.access.is_open("late", TABLE)

    scene(main, "public.things")


def test_a_role_that_leaves_while_rights_are_asked_for_is_not_brought_back() -> None:
    async def main(rig: Rig) -> None:
        rig.on_trip = lambda: rig.access.left("reader")
        await rig.transaction(insert())
        assert not rig.access.rights
        assert not rig.access.is_open("reader", TABLE)

    scene(main, "public.things")


def test_a_table_that_is_met_before_anybody_joins_is_remembered() -> None:
    """A role whose join is on its way has to be told of it."""

    async def main(rig: Rig) -> None:
        rig.access.left("reader")
        await rig.transaction(insert())
        assert ("public", "things") in rig.access.tables
        assert rig.rights == []

    scene(main, "public.things")


def test_one_message_that_empties_tables_is_taken_whole_or_not_at_all() -> None:
    other = Relation("public", "others", TABLE.columns, ("n",))

    async def main(rig: Rig) -> None:
        empties = tuple(Change(each, Operation.TRUNCATE, None, None, 0, at) for at, each in enumerate((TABLE, other)))
        await rig.transaction(empties)
        transaction = rig.ring.at(0)
        assert transaction is not None
        assert [change.relation.name for change in transaction.changes] == ["things", "others"]
        assert len(rig.rights) == 2

    run_all = subscription_row("all", "public.*", ["TRUNCATE"])

    async def whole() -> None:
        rig = Rig()
        rig.plan = Plan([run_all], own_schema="realtime")
        await rig.open()
        rig.listen()
        await main(rig)

    run(whole, autojump=True)


def test_a_database_that_is_away_ends_the_stream_and_nothing_is_lost() -> None:
    async def main(rig: Rig) -> None:
        rig.on_trip = mock.Mock(side_effect=EnvironmentFailure("away"))
        with pytest.raises(WalstreamError):
            await rig.transaction(insert(), xid=90, at=900)
        rig.on_trip = lambda: None
        await rig.open()
        await rig.transaction(insert(), xid=90, at=900)
        assert rig.commits == [900]

    scene(main, "public.things")


class _Mirror:
    """As much of ``NotifyMirror`` as the pipeline knows."""

    def __init__(self) -> None:
        self.is_needed = False
        self.taken: list[int] = []

    def use(self, plan: Plan) -> None:
        self.is_needed = any(row.notify for row in plan.rows)

    def committed(self, transaction: Transaction) -> None:
        self.taken.append(transaction.commit_lsn)


def test_the_mirror_is_told_what_is_new_once_while_a_row_asks_for_it() -> None:
    async def main(rig: Rig) -> None:
        mirror = _Mirror()
        rig.pipeline.mirror = cast(NotifyMirror, mirror)
        await rig.transaction(insert(), xid=120)
        await rig.transaction(planned("public.things", Operation.UPDATE, notify=True), xid=121)
        await rig.transaction(insert(), xid=90)  # the snapshot sees it: an earlier process has told of it
        first = await rig.transaction(insert(), xid=122)
        rig.plan = rig.pipeline.plan
        await rig.open()
        await rig.transaction(insert(), xid=122, at=first)
        second = await rig.transaction(insert(), xid=123)
        assert mirror.taken == [first, second]

    scene(main, "public.things", snapshot=Snapshot(100, 100, frozenset(), 0, 1000, 1.0))
