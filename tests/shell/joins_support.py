"""A database for joins made of a few dictionaries; connections that keep what they were told. No test lives here."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Literal, Protocol, TypeVar, cast
from unittest import mock

import trio

from tests.predicate.rows import COLUMNS
from tests.shell.fanout_support import Got, Wire, got, is_clean
from walstream.auth.tokens import Claims
from walstream.capture.plan import Plan, subscription_row
from walstream.channel.effects import SUBSCRIBED, Accepted, JoinOutcome, JoinRequest, Refused
from walstream.channel.join import parse_join
from walstream.channel.topic import parse_topic
from walstream.errors import DatabaseUnreachable
from walstream.history.resume import PlanChange
from walstream.history.ring import Ring
from walstream.lsn import Lsn
from walstream.model import Catalog, Change, Column, Operation, Relation, RelationInfo, Snapshot, Transaction, TypeInfo
from walstream.policy import Protection
from walstream.router import Router
from walstream.shell.clients import joins as joins_module
from walstream.shell.clients.joins import LOST, Joins
from walstream.shell.clients.snapshots import Limits, Snapshots
from walstream.shell.database.access import RoleFacts, TableAccess, TableRight
from walstream.shell.database.plan_source import LoadedPlan
from walstream.shell.database.postgres import Database
from walstream.shell.delivery.fanout import Fanout
from walstream.shell.delivery.outbox import Outbox
from walstream.shell.health import ReaderState

T = TypeVar("T")
Table = tuple[str, str]
USER = RoleFacts(bypasses_rls=False, superuser=False, member=True)


class World:
    """What PostgreSQL would say, and a ``Database`` that asks it."""

    def __init__(self, *roles: str, tables: Collection[str] = ("things",)) -> None:
        self.roles = dict.fromkeys(roles or ("reader", "writer"), USER)
        self.tables: dict[Table, RelationInfo] = {}
        self.granted: set[tuple[str, str, str]] = set()
        self.secured: dict[Table, Protection] = {}
        self.replanned: list[PlanChange] = []
        self.subscriptions: set[str] = set()
        self.casts: dict[tuple[int, str], bytes | str] = {}
        self.xid = 100
        self.is_away = False
        self.trips = 0
        self.asked: list[str] = []
        self.settled: list[tuple[int, ...]] = []
        self.on_trip: Callable[[], object] = lambda: None
        self.on_answer: Callable[[], object] = lambda: None
        self.seconds = 0.0
        self._oids = itertools.count(1000)
        for table in tables:
            self.table(table)

    def table(
        self,
        name: str,
        *,
        schema: str = "public",
        roles: Collection[str] | None = None,
        columns: tuple[Column, ...] = COLUMNS,
    ) -> None:
        """A captured table that all roles may read, unless only some."""
        names = frozenset(column.name for column in columns)
        self.tables[schema, name] = RelationInfo(
            next(self._oids), schema, name, ("n",), root=(schema, name), columns=columns, ordered_text=names
        )
        self.subscriptions.add(f"{schema}.{name}")
        self.granted |= {(role, schema, name) for role in (self.roles if roles is None else roles)}

    @property
    def plan(self) -> Plan:
        return Plan([subscription_row(name, name, ["*"]) for name in sorted(self.subscriptions)], own_schema="realtime")

    @property
    def snapshot(self) -> Snapshot:
        return Snapshot(self.xid, self.xid, frozenset(), 0, 0, 1.0)

    # -- as Database

    async def run(self, work: Callable[[Any], T]) -> T:
        await trio.lowlevel.checkpoint()
        self.trips += 1
        if self.is_away:
            raise DatabaseUnreachable("the server is not there")
        self.on_trip()
        answer = work(self)
        await trio.sleep(self.seconds)
        self.on_answer()
        return answer

    # -- as Plans

    lacks_generated = False

    @property
    def plan_changes(self) -> list[PlanChange]:
        return self.replanned

    def load(self, connection: object) -> LoadedPlan:
        return LoadedPlan(self.plan, self.snapshot)

    async def settle(self, plan: Plan, tables: Collection[int]) -> None:
        self.settled.append(tuple(tables))
        await trio.lowlevel.checkpoint()

    # -- as the statements

    def load_roles(self, connection: object, roles: Collection[str]) -> dict[str, RoleFacts]:
        return {role: self.roles[role] for role in roles if role in self.roles}

    def load_rights(
        self, connection: object, roles: Collection[str], tables: Collection[Table]
    ) -> dict[tuple[str, str, str], TableRight]:
        self.asked.append(f"rights of {sorted(roles)} to {sorted(tables)}")
        return {
            (role, *table): TableRight((role, *table) in self.granted, protection=self.secured.get(table))
            for role in roles
            for table in tables
            if role in self.roles and table in self.tables
        }

    def load_relations(self, connection: object, names: Collection[Table]) -> dict[Table, RelationInfo | None]:
        return {name: self.tables.get(name) for name in names}

    def load_types(self, connection: object, oids: Collection[int]) -> dict[int, TypeInfo | None]:
        names = {column.type_oid: column.type_name for info in self.tables.values() for column in info.columns}
        return {oid: TypeInfo(oid, names[oid]) if oid in names else None for oid in oids}

    def tables_of(self, connection: object, schema: str | None) -> set[Table]:
        return {table for table in self.tables if schema in (None, table[0])}

    def cast_literals(
        self, connection: object, literals: Collection[tuple[int, str]], catalog: Catalog
    ) -> Mapping[tuple[int, str], bytes | str]:
        return {each: self.casts.get(each, each[1].encode()) for each in literals}

    @contextlib.contextmanager
    def instead_of_postgresql(self) -> Iterator[None]:
        names = ("load_roles", "load_rights", "load_relations", "load_types", "tables_of", "cast_literals")
        with mock.patch.multiple(joins_module, **{name: getattr(self, name) for name in names}):
            yield


def join_request(serial: int, *items: bytes, role: str = "reader", topic: str = "", wait: bool = False) -> JoinRequest:
    """A join with these ``postgres_changes``."""
    name = parse_topic(f"realtime:{topic or f't{serial}'}")
    assert name is not None
    options = b'"postgres_changes_options":{"wait":%b},' % (b"true" if wait else b"false")
    config = parse_join(name, b'{"config":{%b"postgres_changes":[%b]}}' % (options, b",".join(items)))
    return JoinRequest(serial, name, "1", "1", Claims(role), config)


class HasJoins(Protocol):
    """Who answers an owner's joins."""

    joins: Joins


class Owner:
    """A connection: what its client was told, and whether each join is still there."""

    vsn = "1.0.0"

    def __init__(self, rig: HasJoins, wire: Wire | None = None, limit: int = 1 << 30) -> None:
        self.wire = wire or Wire()
        self.outbox = Outbox(cast(Any, self.wire), limit, lambda outbox: None)
        self.rig = rig
        self.outcomes: dict[int, JoinOutcome] = {}
        self.told: dict[int, list[tuple[str, str]]] = {}
        self.details: dict[int, list[Mapping[str, str]]] = {}
        self.pushed: dict[int, list[tuple[str, Any]]] = {}
        self.present: set[int] = set()  # joins that were not left
        self.joined: set[int] = set()
        self.waiting: set[int] = set()
        self.on_ready: Callable[[int], object] = lambda serial: None

    def join_ready(self, serial: int, outcome: JoinOutcome) -> bool:
        assert serial not in self.outcomes, "answered twice"
        if serial not in self.present:
            return False
        self.outcomes[serial] = outcome
        if isinstance(outcome, Refused) or (outcome.status == "error" and serial in self.waiting):
            self.leave(serial)
            return False
        self.joined.add(serial)
        self.on_ready(serial)
        return serial in self.present

    def system(
        self, serial: int, status: Literal["ok", "error"], message: str, details: Mapping[str, str] | None = None
    ) -> None:
        if serial in self.present:
            self.told.setdefault(serial, []).append((status, message))
            self.details.setdefault(serial, []).append(details or {})

    def push(self, serial: int, event: str, payload: bytes) -> None:
        if serial in self.present:
            self.pushed.setdefault(serial, []).append((event, json.loads(payload)))

    def end(self, serial: int, name: str, text: str) -> None:
        self.leave(serial)

    def leave(self, serial: int) -> None:
        self.present.discard(serial)
        self.joined.discard(serial)
        self.waiting.discard(serial)
        self.rig.joins.forget(self, serial)

    def accepted(self, serial: int) -> Accepted:
        outcome = self.outcomes[serial]
        assert isinstance(outcome, Accepted), outcome
        return outcome

    def is_subscribed(self, serial: int) -> bool:
        """Whether its last word about table changes was good; LOST may heal by itself."""
        outcome = self.outcomes[serial]
        assert isinstance(outcome, Accepted)
        words = [(outcome.status, outcome.message), *self.told.get(serial, [])]
        told = [word for word in words if word != ("error", LOST)]
        return bool(outcome.ids) and told[-1] == ("ok", SUBSCRIBED)

    @property
    def frames(self) -> list[Got]:
        return got(self.wire)


class Rig:
    """Joins with all they need, over a ``World``."""

    def __init__(self, world: World | None = None) -> None:
        self.world = world or World()
        self.catalog = Catalog()
        self.ring = Ring(bytes_max=1 << 30, seconds=1e9, wal_bytes=1 << 60)
        self.access = TableAccess(self.catalog)
        self.router = Router(self.catalog, self.access.guard)
        self.fanout = Fanout(self.router, self.ring, self.access)
        self.reader: ReaderState = "streaming"
        self.snapshots = Snapshots(
            lambda: cast(Any, self.world),
            database=cast(Database, self.world),
            catalog=self.catalog,
            router=self.router,
            fanout=self.fanout,
            plans=self.world,
            limits=Limits(seconds=60.0, at_once=1, rows=2, record_bytes=1000),
        )
        self.joins = Joins(
            database=cast(Database, self.world),
            catalog=self.catalog,
            router=self.router,
            fanout=self.fanout,
            access=self.access,
            plans=self.world,
            snapshots=self.snapshots,
            reader=lambda: self.reader,
        )
        self.commit = 0
        self._serials = itertools.count(1)
        self._relations: dict[int, Relation] = {}

    def ask(self, owner: Owner, *items: bytes, role: str = "reader", topic: str = "", wait: bool = False) -> int:
        """Join with these ``postgres_changes``; the join's serial."""
        serial = next(self._serials)
        owner.present.add(serial)
        if wait:
            owner.waiting.add(serial)
        self.joins.ask(owner, join_request(serial, *items, role=role, topic=topic, wait=wait))
        return serial

    async def commit_row(self, table: str = "things", n: int = 1, schema: str = "public") -> int:
        """A transaction with one row comes out of the stream. Returns its commit end."""
        info = self.world.tables[schema, table]
        relation = self._relations.get(info.oid)
        if relation is None:
            relation = self._relations[info.oid] = Relation(schema, table, COLUMNS, ("n",), oid=info.oid)
        self.world.xid += 1
        self.commit += 10
        change = Change(relation, Operation.INSERT, (b"%d" % n, b'"a"', b"true"), None, 0, 0)
        transaction = Transaction(self.world.xid - 1, Lsn(self.commit), 0, (change,), size=1)
        self.fanout.route(self.ring.append(transaction, 0), transaction, spilled=False)
        await self.fanout.flush()
        return self.commit

    @property
    def is_clean(self) -> bool:
        """Whether nothing is left of any join."""
        held = [getattr(self.joins, name) for name in ("_asked", "_unanswered", "_moving", "_joined", "_lost")]
        held += [self.router.faults, self.access.roles, self.access.rights, self.access._open]
        return not len(self.router) and not any(held) and is_clean(self.fanout)
