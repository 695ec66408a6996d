"""Joins that want table changes: judged in batches against the database, then bound to the router and the fan-out.

Whether an item can be had is decided in ``join_check``; what the client is told, by its session. From where a join's
changes are live is explained in docs/discussion/live-from.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import structlog
import trio

from walstream.auth.tokens import Claims
from walstream.capture.plan import Plan
from walstream.channel.effects import SUBSCRIBED, Accepted, JoinRequest, Refused
from walstream.channel.session import RESTARTING
from walstream.errors import EnvironmentFailure, WalstreamError
from walstream.history.resume import PlanChange, standing
from walstream.model import Catalog, CatalogMiss, Relation, RelationInfo, Snapshot, TypeInfo
from walstream.policy import Viewer
from walstream.protocol.shapes import Shape
from walstream.router import ANY, Binding, Router, wire_ids
from walstream.shell.clients import join_check, starts
from walstream.shell.clients.connection import JoinOwner
from walstream.shell.clients.join_check import Facts, ItemProblem, Table, Wish
from walstream.shell.clients.join_state import Asked, Joined, JoinKey
from walstream.shell.clients.snapshots import Snapshots, Standing, Wanted
from walstream.shell.database.access import REFRESH_SECONDS, Rights, RoleFacts, TableAccess, load_rights, load_roles
from walstream.shell.database.catalog import load_relations, load_types
from walstream.shell.database.join_facts import cast_literals, tables_of
from walstream.shell.database.plan_source import LoadedPlan
from walstream.shell.database.postgres import Database
from walstream.shell.delivery.audience import AudienceKey, Member
from walstream.shell.delivery.fanout import Fanout
from walstream.shell.health import ReaderState
from walstream.telemetry.log import ACCESS_LOST, FILTER_UNFIT, JOINS_WAITING

if TYPE_CHECKING:
    from psycopg2.extensions import connection as PgConnection  # noqa: N812 - a class under its role's name

BATCH_MAX: Final = 100
"""Joins that are answered together: one trip to the database for all."""

SLICE_JOINS: Final = 8
"""Joins that are settled before others have their turn: about a millisecond of work."""

ANSWER_SECONDS: Final = 2.0
"""How long a reply waits for the database before it goes out without: clients give up after ten."""

PATIENCE_SECONDS: Final = 6.0
"""How long the database may take where no reply waits: a slow one has to get done some time. Joins that come meanwhile
wait for it, too.
"""

RETRY_SECONDS: Final = 1.0

STREAM_LOOK_SECONDS: Final = 0.05

UNFIT_SECONDS: Final = 1.0
"""Between looks for filters that no longer fit their tables."""

MISSES_MAX: Final = 5

DATABASE_AWAY: Final = "The database is not available: the subscription is tried again until it is"
LOST: Final = "The role may not read these changes any more"

log = structlog.get_logger()


class Plans(Protocol):
    """Where the plan comes from. It may be newer in the database than in the stream: a client may join right after
    its table was subscribed.
    """

    @property
    def plan_changes(self) -> Sequence[PlanChange]:
        """Changes of the plan inside the window."""
        ...

    def load(self, connection: PgConnection) -> LoadedPlan:
        """The plan of now, in a worker thread. Raises psycopg2.Error."""
        ...

    async def settle(self, plan: Plan, tables: Collection[int]) -> None:
        """Return when changes of ``tables`` (OIDs) that are committed from now on are captured by ``plan``.

        Raises WalstreamError.
        """
        ...


class _Loaded(NamedTuple):
    plan: Plan
    snapshot: Snapshot
    roles: Mapping[str, RoleFacts]
    rights: Rights
    relations: Mapping[Table, RelationInfo | None]
    types: Mapping[int, TypeInfo | None]
    asked_roles: frozenset[str]
    asked_tables: frozenset[Table]
    new_tables: frozenset[Table]
    known_rights: Rights  # of the roles that were known before, to the new tables


class Joins:
    """Answers ``ask`` from ``run``. All but the trips to the database is synchronous, under trio's one thread.

    ``reader``: what the WAL reader does. Only while it streams is it sure that there is a slot, and that what is
    committed from now on will come out of it.
    """

    def __init__(
        self,
        *,
        database: Database,
        catalog: Catalog,
        router: Router,
        fanout: Fanout,
        access: TableAccess,
        plans: Plans,
        snapshots: Snapshots,
        reader: Callable[[], ReaderState] = lambda: "streaming",
    ) -> None:
        self._database = database
        self._catalog = catalog
        self._router = router
        self._ring = fanout.ring
        self._fanout = fanout
        self._access = access
        access.on_protected = self._protected
        self._plans = plans
        self._snapshots = snapshots
        self._reader = reader
        self._asked: dict[JoinKey, Asked] = {}
        self._unanswered: dict[JoinKey, Asked] = {}  # their reply went out without the database
        self._moving: dict[JoinKey, Claims] = {}  # joined ones with a new role
        self._joined: dict[JoinKey, Joined] = {}
        self._lost: dict[JoinKey, Asked] = {}  # joined ones whose new role may not; another token may make it good
        self._gaps = 0  # told so far
        self._judging = trio.Lock()  # rights that were asked for earlier must not come after newer ones
        self._wake = trio.Event()

    def __len__(self) -> int:
        """Joins whose changes are delivered."""
        return len(self._joined)

    def concerned(self, change: Callable[[Wish], bool]) -> frozenset[JoinKey]:
        """Joins with an item that something concerns, whose changes are delivered now."""
        return frozenset(key for key, joined in self._joined.items() if any(map(change, joined.asked.wishes)))

    def gap(
        self,
        reason: str,
        concerns: Callable[[Wish], bool] = lambda wish: True,
        besides: Collection[Hashable] = (),
    ) -> int:
        """Tell everybody with an item that it concerns that changes may be missing. Returns how many joins that are.

        What they get afterwards is whole transactions, from the next one on that is read. ``besides``: joins that are
        told, too, if they are still there. ``reason``: one of docs/reference/protocol.md.
        """
        self._gaps += 1
        told = 0
        details = {"event": "gap", "reason": reason, "position": str(standing(self._ring, self._ring.end))}
        for key, joined in list(self._joined.items()):
            if key not in besides and not any(map(concerns, joined.asked.wishes)):
                continue
            if key not in self._joined:
                continue  # its socket was closed for having no room for the word of another channel
            told += 1
            if not self._snapshots.abandon(key, reason):
                self._fanout.pursuits.skip(joined.member)
                joined.asked.owner.system(joined.asked.request.serial, "ok", starts.GAP, details)
        return told

    # -- from connections

    def ask(self, owner: JoinOwner, request: JoinRequest) -> None:
        """Answer a join, at once if the database has no say in it."""
        if not request.items:
            owner.join_ready(request.serial, Accepted())
            return
        if self._reader() == "standby":
            owner.join_ready(request.serial, Refused(RESTARTING))
            return
        try:
            wishes = join_check.read(request.items)
        except ItemProblem as problem:
            self._answer_badly(owner, request, problem.message)
            return
        self._asked[owner, request.serial] = Asked(owner, request, wishes)
        self._wake.set()

    def forget(self, owner: JoinOwner, serial: int) -> None:
        """The channel has gone, whatever state its join is in: nothing more is delivered."""
        key = (owner, serial)
        self._asked.pop(key, None)
        self._moving.pop(key, None)
        self._unanswered.pop(key, None)
        self._lost.pop(key, None)
        self._snapshots.forget(key)
        joined = self._joined.pop(key, None)
        if joined is not None:
            self._fanout.leave(joined.member)
            self._release(joined.ids)
            self._access.left(joined.role)

    def refreshed(self, owner: JoinOwner, serial: int, claims: Claims) -> None:
        """The channel has a new token. Until a new role is judged the old one goes on, and so do the old claims."""
        key = (owner, serial)
        for waiting in (self._asked, self._unanswered):
            if key in waiting:
                waiting[key].claims = claims
        lost = self._lost.pop(key, None)
        if lost is not None:
            lost.claims = claims
            self._unanswered[key] = lost
            self._wake.set()
        joined = self._joined.get(key)
        if joined is None:
            return
        self._moving.pop(key, None)
        if joined.role != claims.role:
            self._moving[key] = claims
            self._wake.set()
            return
        joined.asked.claims = claims
        if joined.viewer is not None:
            self._look_as(key, joined, Viewer(claims.role, claims.json))

    def _look_as(self, key: JoinKey, joined: Joined, viewer: Viewer) -> None:
        """Go on with the same bindings for another viewer, from the same change on."""
        if viewer == joined.viewer:
            return
        ids = tuple([self._router.look_as(id_, viewer) for id_ in joined.ids])
        self._go_on_as(key, joined, ids, joined.role, viewer)

    def _go_on_as(self, key: JoinKey, joined: Joined, ids: tuple[int, ...], role: str, viewer: Viewer | None) -> None:
        request = joined.asked.request
        audience = AudienceKey(request.topic, key[0].vsn, request.shape, ids, role, viewer, _wire(ids, joined.wire))
        self._access.enter(role)
        member = self._fanout.move(joined.member, audience)
        self._access.left(joined.role)
        self._release(joined.ids)
        self._joined[key] = joined._replace(member=member, ids=ids, role=role, viewer=viewer)

    def _protected(self, pairs: set[tuple[str, str, str]]) -> None:
        """Policies, or whether there are any, have changed: look at these tables by them from the next change on."""
        self._router.reguard({(schema, table) for _, schema, table in pairs})
        protected = {pair for pair in pairs if (right := self._access.rights.get(pair)) and right.protection}
        if not protected:
            return
        for key, joined in list(self._joined.items()):
            if joined.viewer is None and any(
                joined.role == role and any(wish.means((schema, table)) for wish in joined.asked.wishes)
                for role, schema, table in protected
            ):
                self._look_as(key, joined, Viewer(joined.role, joined.asked.claims.json))

    def _release(self, ids: Iterable[int]) -> None:
        for id_ in ids:
            self._router.remove(id_)

    # -- answering

    async def run(self) -> None:
        """Answer for ever. Cancelling it leaves joins unanswered."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._refresh_rights)
            nursery.start_soon(self._look_for_unfit)
            nursery.start_soon(self._snapshots.run)
            while True:
                patience = RETRY_SECONDS if self._asked or self._moving or self._unanswered else float("inf")
                with trio.move_on_after(patience):
                    await self._wake.wait()
                self._wake = trio.Event()
                await self._answer_all()

    async def _answer_all(self) -> None:
        """Answer what waits, until nothing does or the database fails."""
        while self._asked or self._moving or self._unanswered:
            # Replies first, and without those who have theirs: they have more time.
            batch = [asked for asked in self._asked.values() if asked.is_urgent][:BATCH_MAX]
            if not batch and self._reader() != "streaming":
                return
            seconds = ANSWER_SECONDS if batch else PATIENCE_SECONDS
            batch = batch or [*self._asked.values(), *self._unanswered.values()][:BATCH_MAX]
            moving = dict(list(self._moving.items())[:BATCH_MAX])
            try:
                with trio.fail_after(seconds):
                    async with self._judging:
                        await self._answer(batch, moving)
            except (WalstreamError, trio.TooSlowError) as error:
                self._promise(error)
                return
            await trio.lowlevel.checkpoint()

    async def _answer(self, batch: list[Asked], moving: Mapping[JoinKey, Claims]) -> None:
        while self._reader() != "streaming":  # noqa: ASYNC110 - a value on a board, which may be back in a moment
            await trio.sleep(STREAM_LOOK_SECONDS)
        asked_at, gaps = self._ring.next_sequence, self._gaps
        loaded, facts = await self._load(batch, moving)
        while loaded.asked_roles - self._access.roles.keys() and self._access.tables - loaded.asked_tables:
            loaded, facts = await self._load(batch, moving)  # a table was met meanwhile
        if self._gaps != gaps:
            return  # nobody would tell these of it: they need a newer snapshot
        # No await inside a slice. What is routed between two is to later ones like what came during the question.
        self._access.update(loaded.rights, loaded.asked_roles, loaded.asked_tables)
        self._access.update(loaded.known_rights, self._access.roles, loaded.new_tables)
        for role in loaded.asked_roles:
            self._access.enter(role)  # so that nobody's leaving takes away what was just learnt
        known = self._access.updates, gaps
        try:
            for number, asked in enumerate(batch, 1):
                is_waiting = asked.key in self._asked or asked.key in self._unanswered
                if is_waiting and asked.role in loaded.asked_roles:  # else it has another token since: next time
                    self._settle(asked, facts, loaded.snapshot, asked_at)
                if number % SLICE_JOINS == 0:
                    await self._fanout.flush()
                    await trio.lowlevel.checkpoint()
                    if (self._access.updates, self._gaps) != known:
                        return  # the rest needs newer facts
            for key, claims in moving.items():
                if self._moving.get(key) is claims:
                    self._move(key, self._moving.pop(key), facts)  # of a role that was asked for
        finally:
            for role in loaded.asked_roles:
                self._access.left(role)
        await self._fanout.flush()  # what they had missed, which else waited for the next transaction

    def _settle(self, asked: Asked, facts: Facts, snapshot: Snapshot, asked_at: int) -> None:
        owner, request = asked.owner, asked.request
        try:
            bindings = self._bindings(asked, facts)
        except ItemProblem as problem:
            self._drop(asked)
            if asked.promised:
                self._lost[asked.key] = asked
                owner.system(request.serial, "error", problem.message)
            else:
                self._answer_badly(owner, request, problem.message)
            return
        ids = tuple(self._router.add(binding, facts.literals) for binding in bindings)
        self._drop(asked)
        viewer = bindings[0].viewer
        wire = asked.promised or (ids if viewer is None else wire_ids(bindings))
        if asked.promised:
            owner.system(request.serial, "ok", SUBSCRIBED)
        elif not owner.join_ready(request.serial, Accepted(wire)):
            self._release(ids)
            return
        key = AudienceKey(request.topic, owner.vsn, request.shape, ids, asked.role, viewer, _wire(ids, wire))
        self._access.enter(asked.role)
        member = self._enter(asked, key, snapshot, asked_at)
        self._joined[asked.key] = Joined(asked, member, ids, wire, asked.role, viewer)
        asked.promised = ()

    def _enter(self, asked: Asked, key: AudienceKey, snapshot: Snapshot, asked_at: int) -> Member:
        """Let the join have its changes: from its snapshot on, or from where its client was."""
        owner = asked.owner
        found = starts.find(asked.wishes, self._ring, snapshot, asked_at, self._plans.plan_changes)
        if found.message:
            owner.system(asked.request.serial, "ok", found.message, found.details)
        if not found.begins:
            return self._fanout.join(owner.outbox, key, snapshot, asked_at)
        begins = [begin for begin in found.begins if begin is not None]
        if len(begins) == len(found.begins):
            return self._fanout.resume(owner.outbox, key, begins, asked_at)
        first = self._fanout.pursuits.first(begins, asked_at)
        wanted = Wanted(owner, asked.request.serial, asked.wishes, key.wire or key.ids, found.begins, first)
        self._snapshots.begin(asked.key, wanted, partial(self._standing, asked.key))
        return self._fanout.pursuits.hold(owner.outbox, key)

    def _standing(self, key: JoinKey) -> Standing:
        joined = self._joined[key]
        return Standing(joined.member, joined.ids, Viewer(joined.asked.claims.role, joined.asked.claims.json))

    def _drop(self, asked: Asked) -> None:
        self._asked.pop(asked.key, None)
        self._unanswered.pop(asked.key, None)

    def _bindings(self, asked: Asked, facts: Facts) -> list[Binding]:
        truncate = asked.request.shape is Shape.FEED
        return join_check.bindings(asked.wishes, asked.claims, facts, self._catalog, truncate=truncate)

    def _answer_badly(self, owner: JoinOwner, request: JoinRequest, message: str) -> None:
        """The channel is joined, its table changes are not: as with Supabase, all items together."""
        ids = tuple(range(1, len(request.items) + 1))  # clients match the reply with what they asked
        owner.join_ready(request.serial, Accepted(ids, "error", message))

    def _promise(self, error: Exception) -> None:
        """Answer without the database: the channel works, its table changes come once there is a database.

        A client that waits for its subscription goes on waiting: its session knows for how long.
        """
        waiting = [asked for asked in self._asked.values() if asked.request.wait_seconds is None]
        for asked in self._asked.values():
            asked.tried = True
        if waiting:
            log.warning(JOINS_WAITING, count=len(waiting), error=str(error) or "no answer in time")
        for asked in waiting:
            if self._asked.pop(asked.key, None) is None:
                continue
            self._unanswered[asked.key] = asked
            truncate = asked.request.shape is Shape.FEED
            asked.promised = wire_ids([join_check.unchecked(wish, truncate=truncate) for wish in asked.wishes])
            accepted = Accepted(asked.promised, "error", DATABASE_AWAY)
            if not asked.owner.join_ready(asked.request.serial, accepted):
                self.forget(*asked.key)

    def _move(self, key: JoinKey, claims: Claims, facts: Facts) -> None:
        """Go on under another role, from the same change on."""
        joined = self._joined.get(key)
        if joined is None:
            return
        joined.asked.claims = claims
        try:
            bindings = self._bindings(joined.asked, facts)
        except ItemProblem as problem:
            del self._joined[key]
            self._snapshots.forget(key)
            self._fanout.leave(joined.member)
            self._access.left(joined.role)
            self._release(joined.ids)
            joined.asked.promised = joined.wire
            self._lost[key] = joined.asked
            joined.asked.owner.system(joined.asked.request.serial, "error", problem.message)
            return
        ids = tuple([self._router.add(binding, facts.literals) for binding in bindings])
        self._go_on_as(key, joined, ids, claims.role, bindings[0].viewer)

    # -- facts

    async def _load(self, batch: list[Asked], moving: Mapping[JoinKey, Claims]) -> tuple[_Loaded, Facts]:
        """Everything the batch has to know. Raises WalstreamError."""
        asks = list(batch) + [self._joined[key].asked for key in moving if key in self._joined]
        roles = frozenset([asked.role for asked in batch] + [claims.role for claims in moving.values()])
        wishes = [wish for asked in asks for wish in asked.wishes]
        exact = frozenset((wish.schema, wish.table) for wish in wishes if not wish.is_wildcard)
        schemas = frozenset(None if wish.schema == ANY else wish.schema for wish in wishes if wish.is_wildcard)
        access, catalog = self._access, self._catalog
        known_roles, known_tables = frozenset(access.roles), frozenset(access.tables)
        known_types = frozenset(catalog.types)

        def load(connection: PgConnection) -> _Loaded:
            plan, snapshot = self._plans.load(connection)
            tables = set(exact)
            for schema in schemas:
                tables |= {table for table in tables_of(connection, schema) if plan.wanted(*table)}
            relations = load_relations(connection, tables) if tables else {}
            oids = {column.type_oid for info in relations.values() if info is not None for column in info.columns}
            asked = frozenset(tables) if roles <= known_roles else frozenset(tables | known_tables)
            new_tables = frozenset(tables - known_tables)
            return _Loaded(
                plan,
                snapshot,
                load_roles(connection, roles),
                load_rights(connection, roles, asked),
                relations,
                load_types(connection, oids - known_types),
                roles,
                asked,
                new_tables,
                load_rights(connection, known_roles, new_tables) if known_roles and new_tables else {},
            )

        loaded = await self._database.run(load)
        # Clients make names up: nothing is kept of those that mean no table.
        known = {name: info for name, info in loaded.relations.items() if info is not None or name in catalog.relations}
        catalog.load(known, loaded.types)
        wanted = [info for info in loaded.relations.values() if info and loaded.plan.wanted(info.schema, info.name)]
        await self._plans.settle(loaded.plan, [info.oid for info in wanted])
        relations = join_check.as_clients_see(loaded.relations, loaded.plan)
        literals = await self._cast(wishes, relations)
        return loaded, Facts(loaded.roles, loaded.rights, relations, literals)

    async def _cast(
        self, wishes: Collection[Wish], relations: Mapping[Table, Relation]
    ) -> Mapping[tuple[int, str], bytes | str]:
        for _ in range(MISSES_MAX):
            try:
                needed = join_check.needed(wishes, relations, self._catalog)
            except CatalogMiss as miss:
                missing = miss.types
                self._catalog.load(None, await self._database.run(partial(load_types, oids=missing)))
            else:
                break
        else:
            raise EnvironmentFailure("the catalog never has what a filter needs")
        if not needed:
            return {}
        return await self._database.run(lambda connection: cast_literals(connection, needed, self._catalog))

    # -- rights that change

    async def _refresh_rights(self) -> None:
        """Ask again for every right in use: who loses one gets nothing more within ``REFRESH_SECONDS``."""
        while True:
            await trio.sleep(REFRESH_SECONDS)
            roles, tables = frozenset(self._access.roles), frozenset(self._access.tables)
            if not roles or not tables:
                continue
            try:
                with trio.fail_after(PATIENCE_SECONDS):
                    async with self._judging:
                        lost = await self._refresh(roles, tables)
            except (WalstreamError, trio.TooSlowError):
                continue  # said by whoever watches the database; nobody's rights have changed that we know of
            if lost:
                self._tell_lost(lost)

    async def _refresh(self, roles: Collection[str], tables: Collection[Table]) -> set[tuple[str, str, str]]:
        """Ask for the rights anew. Returns those that are there no more."""
        facts, rights = await self._database.run(partial(_load_rights, roles=roles, tables=tables))
        usable = {role for role, fact in facts.items() if fact.member and not fact.superuser}
        access = self._access
        # Who has left meanwhile is not brought back.
        roles = [role for role in roles if role in access.roles]
        before = {pair for pair, right in access.rights.items() if not right.is_shut}
        access.update({pair: right for pair, right in rights.items() if pair[0] in usable}, roles, tables)
        return before - {pair for pair, right in access.rights.items() if not right.is_shut}

    def _tell_lost(self, lost: set[tuple[str, str, str]]) -> None:
        for role, schema, table in lost:
            log.warning(ACCESS_LOST, role=role, table=f"{schema}.{table}")
        for joined in list(self._joined.values()):
            exact = {(joined.role, wish.schema, wish.table) for wish in joined.asked.wishes if not wish.is_wildcard}
            if exact & lost:
                joined.asked.owner.system(joined.asked.request.serial, "error", LOST)

    # -- filters that no longer fit

    async def _look_for_unfit(self) -> None:
        """Tell clients whose filter does not fit their table as it was altered: nothing of it reaches them."""
        suspects: set[int] = set()
        while True:
            await trio.sleep(UNFIT_SECONDS)
            suspects |= {binding_id for binding_id, _, _ in self._router.drain_faults()}
            if suspects:
                with contextlib.suppress(WalstreamError, trio.TooSlowError):  # then once more
                    with trio.fail_after(PATIENCE_SECONDS):
                        async with self._judging:
                            await self._tell_unfit(suspects)
                    suspects = set()

    async def _tell_unfit(self, suspects: set[int]) -> None:
        """Judge by the table of now: the stream may be where it has not got its newest columns yet."""
        concerned: dict[tuple[tuple[int, ...], str], list[Joined]] = {}
        for joined in self._joined.values():
            if not suspects.isdisjoint(joined.ids):
                concerned.setdefault((joined.ids, joined.role), []).append(joined)
        if not concerned:
            return
        _, facts = await self._load([alike[0].asked for alike in concerned.values()], {})
        for alike in concerned.values():
            try:
                self._bindings(alike[0].asked, facts)
            except ItemProblem as problem:
                log.warning(FILTER_UNFIT, error=problem.message, channels=len(alike))
                for joined in alike:
                    joined.asked.owner.system(joined.asked.request.serial, "error", problem.message)


def _wire(ids: tuple[int, ...], wire: tuple[int, ...]) -> tuple[int, ...]:
    """The form in which an audience's key has them, so that equal audiences have equal keys."""
    return () if ids == wire else wire


def _load_rights(
    connection: PgConnection, roles: Collection[str], tables: Collection[Table]
) -> tuple[Mapping[str, RoleFacts], Rights]:
    return load_roles(connection, roles), load_rights(connection, roles, tables)
