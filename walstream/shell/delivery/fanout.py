"""Fan-out: what the router matched becomes frames, encoded once, and reaches every outbox that asked for it.

Sockets that get exactly the same bytes form an *audience* (``audience``); a frame is built per audience, never per
socket. Who may join and from where its changes are live is decided in ``joins``; writing to sockets is ``outbox``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from operator import attrgetter
from typing import NamedTuple, Protocol

import trio

from walstream.history.ring import Ring
from walstream.history.visibility import is_live, settled
from walstream.model import Change, Operation, Relation, Row, Snapshot, Transaction
from walstream.policy import Ask, Viewer
from walstream.predicate import columns_of
from walstream.protocol.changes import RECORD_BYTES_MAX
from walstream.protocol.shapes import TransactionText
from walstream.router.binding import Binding
from walstream.router.index import Router
from walstream.router.lanes import Sight, View, deciding_row
from walstream.shell.database.access import TableRight
from walstream.shell.delivery.audience import (
    Audience,
    AudienceKey,
    End,
    Gate,
    Group,
    Member,
    Place,
    Routing,
    Step,
    Telling,
    values_size,
)
from walstream.shell.delivery.doubts import Doubts
from walstream.shell.delivery.frames import Frames
from walstream.shell.delivery.judge import Verdict
from walstream.shell.delivery.members import Members
from walstream.shell.delivery.outbox import Outbox
from walstream.shell.delivery.pursuit import Beginning, Pursuits
from walstream.shell.delivery.runs import InsertRuns
from walstream.telemetry.delays import Delays

SLICE_CHANGES = 500
"""Changes of a large transaction that are routed before other tasks get a turn: a few milliseconds of work."""

SLICE_BYTES = 256 * 1024
"""Of their values: a slice of large ones ends earlier, before its frames fill memory and outboxes."""

RUN_CHANGES_MIN = 2

_KIND = attrgetter("relation", "operation")


class Access(Protocol):
    """Which role may see which table's changes; answers from memory and fails closed."""

    def is_open(self, role: str, relation: Relation) -> bool:
        """Whether a role may see all of a relation, every row and column."""
        ...

    def right(self, role: str, relation: Relation) -> TableRight:
        """What a role may see of a relation."""
        ...


class Asking(Protocol):
    """Who finds out whether PostgreSQL lets a viewer see a row."""

    def ask(
        self, viewer: Viewer, ask: Ask, transaction: Transaction, relation: Relation, row: Row, *, is_old: bool
    ) -> Verdict:
        """The answer, which may come later. ``is_old``: the row is the one before the change."""
        ...

    def cluster_changed(self) -> None:
        """Transactions of before are of another cluster: they cannot be waited for."""
        ...


class _Queued(NamedTuple):
    """A transaction that waits for its slices."""

    sequence: int
    routing: Routing


class Fanout:
    """Routes transactions to audiences, synchronously and in commit order; ``flush`` ends a tick.

    Every method but ``flush`` and ``run`` is synchronous, so that a join, a leave and a transaction never see each
    other half done. A transaction that lives in a file, and all that come after it, are routed by ``run`` in slices.

    Where PostgreSQL has to say whether a row may be seen, the change and all that come after it wait in the audience
    concerned, and in no other; ``run`` goes on with them after ``judged``. Who joins meanwhile gets an audience of
    another generation, for what waits is older than that join.
    """

    def __init__(
        self,
        router: Router,
        ring: Ring,
        access: Access,
        *,
        judge: Asking | None = None,
        doubts: Doubts | None = None,
        max_record_bytes: int = RECORD_BYTES_MAX,
    ) -> None:
        self._max_record_bytes = max_record_bytes
        self._router = router
        self.ring = ring
        self._access = access
        self._judge = judge
        self._doubts = doubts
        self._frames = Frames(lambda *refused: self.pursuits.fall_behind(*refused))
        self._members = Members(self._frames)
        self.pursuits = Pursuits(self, ring, self._members, self._frames)
        self._backlog: deque[_Queued] = deque()
        self._backlog_done = 0  # changes of the backlog's first transaction that are routed already
        self._leaving: tuple[_Queued, ...] = ()  # routed, and not yet written: who has no room for it needs it
        self._woken = trio.Event()
        self._touched: dict[Audience, None] = {}  # audiences that hold a change of the half-routed transaction
        self._server_start: float | None = None
        self._runs = InsertRuns(router, self._members.by_binding)
        self.changes_out = 0
        self.delays = Delays()

    @property
    def frames_out(self) -> int:
        """Frames to sockets, so far."""
        return self._frames.count

    async def flush(self) -> None:
        """End a tick: see ``Frames.flush``."""
        await self._frames.flush()
        self.delays.sent()

    def server_started(self, server_start: float) -> None:
        """Remember when PostgreSQL started: snapshots of an earlier run are compared by position, not by xid."""
        self._server_start = server_start

    def cluster_changed(self) -> None:
        """Forget the snapshots: they say nothing of another cluster's transactions, which are live for everyone."""
        for member in self._members.joining:
            self._members.settle(member)
        self._members.joining.clear()
        if self._judge is not None:
            self._judge.cluster_changed()

    # -- joining and leaving

    def join(self, outbox: Outbox, key: AudienceKey, snapshot: Snapshot, asked_at: int) -> Member:
        """Add a socket. ``asked_at``: the ring's next sequence number when the snapshot was asked for.

        Transactions that were routed before this call although they are live for ``snapshot`` are delivered now.
        """
        member = Member(outbox, self._members.audience(key), snapshot)
        self._members.share(outbox)
        self._catch_up(member, asked_at)
        self._members.enter(member)
        return member

    def move(self, member: Member, key: AudienceKey) -> Member:
        """Go on in another audience, which gets the same changes, without missing or repeating any.

        What waits for an answer goes on waiting for it, and what comes from now on waits behind it.
        """
        members = self._members
        if not member.audience.waiting:
            # A large transaction is half routed: what is held is for who was there.
            self._frames.finish(member.audience, last=False)
            self._frames.drain(member.audience)
        if member.pursuit is not None:
            return self.pursuits.move(member, member.pursuit, key)
        if member.audience.waiting:
            moved = members.moved(member, members.audience(key, fresh=True))
            moved.before = members.detach(member)
            members.enter(moved)
            self.hold_back(moved.audience, Gate(moved.before))
            return moved
        audience = members.audience(key)
        self._frames.finish(audience, last=False)
        moved = members.moved(member, audience)
        members.leave(member)
        members.enter(moved)
        return moved

    def leave(self, member: Member) -> None:
        """Remove a socket from an audience; nothing more of it is delivered."""
        self._members.leave(member)
        if member.pursuit is not None:
            self.pursuits.leave(member.pursuit)
            self._members.leave(member)  # it may have fallen behind by what was just written for the last time

    # -- who is behind

    def resume(self, outbox: Outbox, key: AudienceKey, starts: Sequence[Beginning], asked_at: int) -> Member:
        """Add a socket that goes on where it was, at its own pace until it is live.

        ``starts``: one for each of the key's ids: a snapshot for a binding that begins as with ``join``.
        """
        return self.pursuits.resume(outbox, key, starts, asked_at)

    @property
    def routed(self) -> int:
        """See ``pursuit.Source``."""
        return self._backlog[0].sequence if self._backlog else self.ring.next_sequence

    @property
    def is_half_routed(self) -> bool:
        """See ``pursuit.Source``."""
        return self._backlog_done > 0

    def queued(self, sequence: int) -> Transaction | None:
        """See ``pursuit.Source``."""
        return next((each.routing.transaction for each in self._kept() if each.sequence == sequence), None)

    def queued_at(self, commit_lsn: int) -> tuple[int, Transaction] | None:
        """See ``pursuit.Source``."""
        found = (each for each in self._kept() if each.routing.transaction.commit_lsn == commit_lsn)
        return next(((each.sequence, each.routing.transaction) for each in found), None)

    def _kept(self) -> Iterator[_Queued]:
        return chain(self._leaving, self._backlog)

    def deliver(self, change: Change, routing: Routing, audiences: Mapping[int, Mapping[Audience, None]]) -> None:
        """See ``pursuit.Source``."""
        self._deliver(change, routing, audiences, {})

    def hold_back(self, audience: Audience, gate: Gate) -> None:
        """See ``pursuit.Source``."""
        self._wait(audience, gate)
        self._woken.set()  # of what waited it may be that nothing was for this member

    def end(self, audience: Audience) -> None:
        """A transaction is over."""
        if not audience.waiting:
            self._frames.finish(audience, last=True)
        elif audience:  # else everybody has left since
            self._wait(audience, End(audience.live))

    def _catch_up(self, member: Member, asked_at: int) -> None:
        routed = self.routed
        alone = Audience(member.audience.key)  # a stand-in
        alone.shared[member.outbox] = member
        for sequence, transaction in self.ring.maybe_live(member.snapshot, asked_at):
            if sequence < routed and self.is_live(transaction, member.snapshot):
                self._replay(alone, self.routing(transaction), transaction.changes)
                self.end(alone)
        # The ring may have let go of a large one already.
        if self._backlog and self.is_live(self._backlog[0].routing.transaction, member.snapshot):
            self._replay_begun(member, alone, self._backlog[0].routing)
        elif alone.waiting:
            self._members.adopt(member, alone)

    def _replay(self, alone: Audience, routing: Routing, changes: Iterable[Change]) -> None:
        """Deliver to one socket alone, through its stand-in audience, which goes on holding the newest change."""
        audiences = {binding_id: {alone: None} for binding_id in alone.key.ids}
        for change in changes:
            self._deliver(change, routing, audiences, {})

    def _replay_begun(self, member: Member, alone: Audience, routing: Routing) -> None:
        """The backlog's first transaction is half routed: deliver that half, the rest comes with everybody's."""
        self._replay(alone, routing, islice(routing.transaction.changes, self._backlog_done))
        member.live = True
        if alone.waiting:
            self._members.adopt(member, alone)
            self._touched[member.audience] = None
            return
        audience = member.audience
        if alone.holds != audience.holds:
            self._frames.finish(audience, last=False)  # rights have changed meanwhile: it is not for the new member
            if audience.has_listeners():
                self._frames.finish(alone, last=False)  # the others have it already
            elif alone.held:
                # Nobody else waits for the newest change; the new member does, until it is known to be the last one.
                audience.held = alone.held
                self._touched[audience] = None

    def is_live(self, transaction: Transaction, snapshot: Snapshot) -> bool:
        """See ``pursuit.Source``."""
        return is_live(transaction, snapshot, self._server_start)

    # -- routing

    def route(self, sequence: int, transaction: Transaction, *, spilled: bool) -> None:
        """Route one transaction, or queue it behind a large one. ``sequence``: its number in the ring."""
        if spilled or self._backlog:
            self._backlog.append(_Queued(sequence, self.routing(transaction)))
            self._woken.set()
            self.pursuits.routed()
            return
        if self.pursuits.is_waited_for:
            self.pursuits.routed()
        self._begin(transaction)
        routing = self.routing(transaction)
        touched: dict[Audience, None] = {}
        if not (is_told := self._route_run(routing)):
            for change in transaction.changes:
                self._deliver(change, routing, self._members.by_binding, touched)
            for audience in touched:
                self.end(audience)
        self.delays.routed(transaction.commit_at, told=is_told or bool(touched))

    def _route_run(self, routing: Routing) -> bool:
        """Route a transaction of nothing but INSERTs into one table of which everybody gets all: the usual bulk.

        Says the same as ``_deliver`` for each, in a fraction of the time. Returns False, with nothing done, where the
        transaction is not like that.
        """
        changes, text = routing.transaction.changes, routing.text
        if len(changes) < RUN_CHANGES_MIN or changes[0].operation is not Operation.INSERT:
            return False
        if len(set(map(_KIND, changes))) > 1:
            return False
        relation = changes[0].relation
        runs = []
        for audience, run in self._runs.of(relation, self._members.changes) or ():
            if audience.waiting:
                return False
            if self._access.is_open(audience.key.role, relation):
                payloads = run.fill(
                    changes, text.moment.commit_timestamp, text.position_head, text.max_record_bytes
                )  # fmt: skip
                if payloads is None:
                    return False
                runs.append((audience, payloads))
            elif self._permitted(audience.key, relation, ((None, ()),)):
                return False
        if not runs:
            return False
        for audience, payloads in runs:
            self._frames.add(audience, payloads, Place(routing.transaction.commit_lsn, 0))
        self.changes_out += len(changes)
        return True

    def judged(self) -> None:
        """Answers have come: let ``run`` go on where they were missing."""
        self._woken.set()

    async def run(self) -> None:
        """Route what ``route`` queued, a slice at a time, and what waited for ``judged``, for ever.

        Cancelling it loses nothing; run again, it goes on where it was.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.pursuits.run)
            while True:
                if not self._backlog:
                    await self._woken.wait()
                self._woken = trio.Event()
                await self._go_on()
                while self._backlog:
                    await self._route_sliced(self._backlog[0])

    async def _route_sliced(self, queued: _Queued) -> None:
        routing = queued.routing
        transaction = routing.transaction
        changes: Iterator[Change] = islice(transaction.changes, self._backlog_done, None)
        while True:
            # No await from here to the end of the slice: a join must see either all of it or none.
            self._begin(transaction)
            if not self._route_slice(changes, routing):
                break
            await self._go_on()
            await trio.lowlevel.checkpoint()
        for audience in self._touched:
            self.end(audience)
        self.delays.routed(transaction.commit_at, told=bool(self._touched))
        self._touched.clear()
        self._leaving = (self._backlog.popleft(),)
        self._backlog_done = 0
        self.pursuits.routed()
        await self._go_on()
        self._leaving = ()
        await trio.lowlevel.checkpoint()

    def _route_slice(self, changes: Iterator[Change], routing: Routing) -> bool:
        """Whether there may be more. A function of its own, so that nothing holds on to a large row after its slice."""
        size = 0
        for count, change in enumerate(changes, 1):
            self._deliver(change, routing, self._members.by_binding, self._touched)
            self._backlog_done += 1
            size += values_size(change)
            if count >= SLICE_CHANGES or size > SLICE_BYTES:
                return True
        return False

    def _begin(self, transaction: Transaction) -> None:
        if not self._members.joining:
            return
        done = []
        for member in self._members.joining:
            if not member.audience.waiting and settled(transaction, member.snapshot):
                done.append(member)
            else:
                member.live = self.is_live(transaction, member.snapshot)
        for member in done:
            self._members.settle(member)
            del self._members.joining[member]

    def routing(self, transaction: Transaction) -> Routing:
        """See ``pursuit.Source``."""
        return Routing(transaction, TransactionText.of(transaction, self.ring.cluster, self._max_record_bytes))

    def _deliver(
        self,
        change: Change,
        routing: Routing,
        audiences: Mapping[int, Mapping[Audience, None]],
        touched: dict[Audience, None],
    ) -> None:
        view = self._router.view(change.relation)
        matched = view.match(change)
        if view.sifted:
            self._doubt(change, view)
        if not matched:
            return
        self.changes_out += 1
        telling = Telling(change, routing)
        sights = view.sights
        if len(matched) == 1:
            binding = matched[0]
            for audience in tuple(audiences.get(binding.id, ())):  # who has no room leaves, and may be the only one
                self._tell(audience, telling, ((binding.select, (binding.id,)),), sights.get(binding.id))
                touched[audience] = None
            return
        hits: dict[Audience, list[Binding]] = {}
        for binding in matched:
            for audience in audiences.get(binding.id, ()):
                hits.setdefault(audience, []).append(binding)
        for audience, bindings in hits.items():
            groups: dict[tuple[str, ...] | None, list[int]] = {}
            for binding in bindings:
                groups.setdefault(binding.select, []).append(binding.id)
            told = [(key, tuple(ids)) for key, ids in groups.items()]
            # All bindings of one audience have the same viewer, who sees the table through the same policies.
            self._tell(audience, telling, told, sights.get(bindings[0].id) if sights else None)
            touched[audience] = None

    def _tell(self, audience: Audience, telling: Telling, groups: Sequence[Group], sight: Sight | None) -> None:
        """Have the audience get a change, now or when it is known whether it may. ``sight``: None for who sees all."""
        relation = telling.change.relation
        if not self._access.is_open(audience.key.role, relation):
            groups = self._permitted(audience.key, relation, groups)
            if not groups:
                return
            if sight is not None and (sight.ask is not None or sight.sees is not None):
                self._look(audience, telling, groups, sight)
                return
        self._later_or_now(audience, telling, groups, None, None, whole=True)

    def _permitted(self, key: AudienceKey, relation: Relation, groups: Sequence[Group]) -> Sequence[Group]:
        """The groups with the columns that the role may see, without bindings that look at others."""
        right = self._access.right(key.role, relation)
        if not right.allowed or (right.protection is not None and key.viewer is None):
            return ()
        if right.columns is None:
            return groups
        permitted = []
        for columns, ids in groups:
            seen = right.columns if columns is None else right.columns.intersection(columns)
            kept = [binding_id for binding_id in ids if self._looks_at(binding_id) <= right.columns]
            if kept or not ids:
                permitted.append((tuple(sorted(seen)), tuple(kept)))
        return permitted

    def _looks_at(self, binding_id: int) -> frozenset[str]:
        expression = self._router[binding_id].expression
        return frozenset() if expression is None else columns_of(expression)

    def _look(self, audience: Audience, telling: Telling, groups: Sequence[Group], sight: Sight) -> None:
        """As ``_tell``, for a viewer of whom policies say which rows are seen: the old row of an UPDATE, too."""
        change = telling.change
        is_wide = telling.has_more_than_the_key
        if change.operation is Operation.DELETE and self._router.loose_deletes:
            self._later_or_now(audience, telling, groups, None, None, whole=False)
            return
        whole = not is_wide or (sight.sees is not None and sight.sees(change.old or ()) is True)
        seen = old_seen = None
        if sight.ask is not None:
            seen = self._ask(audience, telling, sight.ask, telling.row, is_old=change.new is None)
            old_seen = self._ask(audience, telling, sight.ask, change.old, is_old=True) if is_wide else None
        self._later_or_now(audience, telling, groups, seen, old_seen, whole=whole)

    def _later_or_now(
        self,
        audience: Audience,
        telling: Telling,
        groups: Sequence[Group],
        seen: Verdict | None,
        old_seen: Verdict | None,
        *,
        whole: bool,
    ) -> None:
        if not audience.waiting and seen is None:
            self._hold(audience, telling, groups, whole=whole)
            return
        step = Step(telling, groups, audience.live, seen, old_seen, whole=whole, size=telling.size)
        self._wait(audience, step)
        if step.is_ready and len(audience.waiting) == 1:
            self._woken.set()

    def _ask(self, audience: Audience, telling: Telling, ask: Ask, row: Row | None, *, is_old: bool) -> Verdict | None:
        viewer = audience.key.viewer
        if row is None:
            return None  # a TRUNCATE, which shows no row
        assert viewer is not None
        assert self._judge is not None
        relation = telling.change.relation
        return self._judge.ask(viewer, ask, telling.routing.transaction, relation, row, is_old=is_old)

    def _doubt(self, change: Change, view: View) -> None:
        """Count a row of which policies want to know what the WAL does not say: who it is for is not known."""
        row = deciding_row(change)
        is_loose = change.operation is Operation.DELETE and self._router.loose_deletes
        if self._doubts is None or row is None or is_loose or all(row[at] is not None for at in view.sifted):
            return
        relation = change.relation
        reason = "key_only_old_row" if change.operation is Operation.DELETE else "unchanged_toast"
        self._doubts.count(relation.schema, relation.name, reason)

    def _hold(self, audience: Audience, telling: Telling, groups: Sequence[Group], *, whole: bool) -> None:
        change = telling.change
        if audience.held:
            self._frames.finish(audience, last=False)
        for columns, ids in groups:
            rendered = telling.render(audience.key.shape, columns, whole=whole)
            audience.held.append((rendered, audience.prefix(change.operation, ids)))

    # -- what waits for answers

    def _wait(self, audience: Audience, item: Step | End | Gate) -> None:
        audience.waiting.append(item)
        self._members.waiting[audience] = None
        if isinstance(item, Step):
            # As an outbox takes one chunk of any size: a row is not refused for being larger than all the room.
            queued = audience.waiting.bytes - audience.waiting.largest
            for outbox in (*audience.solo, *audience.shared, *audience.joining):
                if queued > outbox.limit_bytes:
                    outbox.overflow()

    async def _go_on(self) -> None:
        """Tell what is not waited for any more, and write it."""
        for audience in list(self._members.waiting):
            if audience in self._members.waiting:
                self._go_on_with(audience)
        await self.flush()

    def _go_on_with(self, audience: Audience) -> None:
        now = audience.live
        waiting = audience.waiting
        while waiting:
            item = waiting[0]
            if isinstance(item, Gate):
                if item.member.audience.waiting:
                    break
                waiting.popleft()
                self._pass(audience, item.member)
            elif isinstance(item, End):
                waiting.popleft()
                self._enliven(audience, item.live)
                self._frames.finish(audience, last=True)
            elif item.is_ready:
                waiting.popleft()
                self._enliven(audience, item.live)
                self._answered(audience, item)
            else:
                break
        self._enliven(audience, now)
        if not waiting:
            self._members.waiting.pop(audience, None)

    def _enliven(self, audience: Audience, live: Sequence[Member]) -> None:
        """Let these joining members, and no others, be who gets the transaction that is told now."""
        for member in audience.joining.values():
            member.live = member in live

    def _pass(self, audience: Audience, old: Member) -> None:
        """Nothing waits in a member's old audience any more."""
        self._frames.finish(old.audience, last=False)
        self._members.leave(old)
        for members in (audience.solo, audience.shared, audience.joining):
            for member in members.values():
                if member.before is old:
                    member.before = None

    def _answered(self, audience: Audience, step: Step) -> None:
        relation = step.telling.change.relation
        is_seen = step.seen is None or step.seen.answer is True
        if is_seen and self._access.right(audience.key.role, relation).allowed:
            whole = step.whole or (step.old_seen is not None and step.old_seen.answer is True)
            self._hold(audience, step.telling, step.groups, whole=whole)
