"""Fan-out: what the router matched becomes frames, encoded once, and reaches every outbox that asked for it.

Sockets that get exactly the same bytes form an *audience*; a frame is built per audience, never per socket.
Who may join and from where its changes are live is decided in ``joins``; writing to sockets is ``outbox``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from operator import attrgetter
from typing import NamedTuple, Protocol

import trio

from walstream.history.ring import Ring
from walstream.history.visibility import is_live, settled
from walstream.model import Change, Operation, Relation, Snapshot, Transaction
from walstream.protocol.changes import RECORD_BYTES_MAX, InsertRun
from walstream.protocol.shapes import Shape, TransactionText
from walstream.protocol.websocket import frame_header, text_frames
from walstream.router.binding import Binding
from walstream.router.index import Router
from walstream.shell.delivery.outbox import Outbox, broadcast

SLICE_CHANGES = 500
"""Changes of a large transaction that are routed before other tasks get a turn: a few milliseconds of work."""

RUN_CHANGES_MIN = 2
RUN_AUDIENCES_MAX = 4
RUNS_MAX = 1000

SLICE_SOCKETS = 512
"""Sockets that are written to before other tasks get a turn."""


_KIND = attrgetter("relation", "operation")


class AudienceKey(NamedTuple):
    """What has to be equal for two sockets to get the same bytes."""

    topic: str
    vsn: str
    shape: Shape
    ids: tuple[int, ...]
    role: str


class Access(Protocol):
    """Which role may see which table's changes; answers from memory and fails closed."""

    def allowed(self, role: str, relation: Relation) -> bool:
        """Whether changes of ``relation`` may go to ``role``."""
        ...


class Member:
    """One joined topic of one socket, as far as fan-out is concerned."""

    __slots__ = ("audience", "live", "outbox", "snapshot")

    def __init__(self, outbox: Outbox, audience: Audience, snapshot: Snapshot) -> None:
        self.outbox = outbox
        self.audience = audience
        self.snapshot = snapshot
        self.live = False  # for the transaction being routed, while ``snapshot`` is not settled


class Rendered:
    """One change in one shape and column selection, encoded when first asked for."""

    __slots__ = ("change", "columns", "final", "plain", "shape", "text")

    def __init__(self, change: Change, text: TransactionText, shape: Shape, columns: tuple[str, ...] | None) -> None:
        self.change = change
        self.text = text
        self.shape = shape
        self.columns = columns
        self.plain: bytes | None = None
        self.final: bytes | None = None

    def data(self, last: bool) -> bytes:
        """The encoded change, marked as the transaction's last one if ``last``."""
        if last:
            if self.final is None:
                self.final = self.shape.render(self.change, self.text, self.columns, last=True)
            return self.final
        if self.plain is None:
            self.plain = self.shape.render(self.change, self.text, self.columns, last=False)
        return self.plain


class Audience:
    """The sockets behind one ``AudienceKey`` and the frames that wait for the end of the tick."""

    __slots__ = ("chunk", "held", "joining", "key", "pending", "prefixes", "rest", "shared", "solo", "suffix")

    def __init__(self, key: AudienceKey) -> None:
        self.key = key
        self.solo: dict[Outbox, Member] = {}  # sockets whose only audience this is: one write per tick
        self.shared: dict[Outbox, Member] = {}  # sockets with several: frames go in as they come, in commit order
        self.joining: dict[Outbox, Member] = {}  # sockets for which a transaction may still be older than their join
        self.pending: list[bytes] = []
        self.chunk = b""  # what is being written in slices, older than ``pending``
        self.rest: list[Outbox] = []  # who has not got it yet
        self.prefixes: dict[tuple[object, tuple[int, ...]], bytes] = {}
        self.suffix = key.shape.suffix(key.vsn)
        # Frames of the newest change; they wait to learn whether it is their transaction's last one.
        self.held: list[tuple[Rendered, bytes]] = []

    @property
    def holds(self) -> int:
        """Ordinal of the change that is held, -1 for none."""
        return self.held[0][0].change.ordinal if self.held else -1

    def has_listeners(self) -> bool:
        """Whether anyone gets the frames of the transaction being routed."""
        return bool(self.solo or self.shared) or any(member.live for member in self.joining.values())

    def __len__(self) -> int:
        return len(self.solo) + len(self.shared) + len(self.joining)

    def prefix(self, operation: Operation, ids: tuple[int, ...]) -> bytes:
        """What stands before the change's own text in a frame with these ids."""
        key = (operation, ids)
        prefix = self.prefixes.get(key)
        if prefix is None:
            prefix = self.key.shape.prefix(self.key.vsn, self.key.topic, operation, ids)
            self.prefixes[key] = prefix
        return prefix


class _Queued(NamedTuple):
    """A transaction that waits for its slices."""

    sequence: int
    transaction: Transaction
    text: TransactionText


class _Runs(NamedTuple):
    """What ``_insert_runs`` found, and what it was found from."""

    matched: Sequence[Binding] | None
    members: int
    runs: list[tuple[Audience, InsertRun]] | None


class Fanout:
    """Routes transactions to audiences, synchronously and in commit order; ``flush`` ends a tick.

    Every method but ``flush`` and ``run`` is synchronous, so that a join, a leave and a transaction never see each
    other half done. A transaction that lives in a file, and all that come after it, are routed by ``run`` in slices.
    """

    def __init__(self, router: Router, ring: Ring, access: Access, *, max_record_bytes: int = RECORD_BYTES_MAX) -> None:
        self._max_record_bytes = max_record_bytes
        self._router = router
        self._ring = ring
        self._access = access
        self._audiences: dict[AudienceKey, Audience] = {}
        self._by_binding: dict[int, dict[Audience, None]] = {}
        self._memberships: dict[Outbox, list[Member]] = {}
        self._joining: dict[Member, None] = {}
        self._dirty: dict[Audience, None] = {}
        self._dirty_outboxes: dict[Outbox, None] = {}
        self._backlog: deque[_Queued] = deque()
        self._backlog_done = 0  # changes of the backlog's first transaction that are routed already
        self._backlog_waiting = trio.Event()
        self._touched: dict[Audience, None] = {}  # audiences that hold a change of the half-routed transaction
        self._server_start: float | None = None
        self._runs: dict[Relation, _Runs] = {}
        self._changed_members = 0  # counts every change of who is in which audience, and how
        self.frames_out = 0
        self.changes_out = 0

    def server_started(self, server_start: float) -> None:
        """Remember when PostgreSQL started: snapshots of an earlier run are compared by position, not by xid."""
        self._server_start = server_start

    def cluster_changed(self) -> None:
        """Forget the snapshots: they say nothing of another cluster's transactions, which are live for everyone."""
        for member in self._joining:
            self._settle(member)
        self._joining.clear()

    # -- joining and leaving

    def join(self, outbox: Outbox, key: AudienceKey, snapshot: Snapshot, asked_at: int) -> Member:
        """Add a socket. ``asked_at``: the ring's next sequence number when the snapshot was asked for.

        Transactions that were routed before this call although they are live for ``snapshot`` are delivered now.
        """
        audience = self._audience(key)
        member = Member(outbox, audience, snapshot)
        for other in self._memberships.get(outbox, ()):
            self._share(other)  # what it was sent before has to go out before what follows now
        self._catch_up(member, asked_at)
        self._enter(member)
        return member

    def _audience(self, key: AudienceKey) -> Audience:
        audience = self._audiences.get(key)
        if audience is None:
            audience = self._audiences[key] = Audience(key)
            for binding_id in set(key.ids):
                self._by_binding.setdefault(binding_id, {})[audience] = None
        return audience

    def _enter(self, member: Member) -> None:
        self._changed_members += 1
        audience, outbox = member.audience, member.outbox
        memberships = self._memberships.setdefault(outbox, [])
        memberships.append(member)
        if len(memberships) == 2:
            self._share(memberships[0])
        audience.joining[outbox] = member
        self._joining[member] = None

    def move(self, member: Member, key: AudienceKey) -> Member:
        """Go on in another audience, which gets the same changes, without missing or repeating any."""
        audience = self._audience(key)
        for each in (member.audience, audience):
            self._finish(each, last=False)  # a large transaction is half routed: what is held is for who was there
        moved = Member(member.outbox, audience, member.snapshot)
        moved.live = member.live or member not in self._joining
        self.leave(member)
        self._enter(moved)
        return moved

    def leave(self, member: Member) -> None:
        """Remove a socket from an audience; nothing more of it is delivered."""
        self._changed_members += 1
        audience, outbox = member.audience, member.outbox
        self._drain(audience)
        for place in (audience.solo, audience.shared, audience.joining):
            if place.get(outbox) is member:
                del place[outbox]
        self._joining.pop(member, None)
        memberships = self._memberships.get(outbox, [])
        if member in memberships:
            memberships.remove(member)
        if not memberships:
            self._memberships.pop(outbox, None)
        if not audience:
            self._forget(audience)

    def _forget(self, audience: Audience) -> None:
        if self._audiences.get(audience.key) is audience:
            del self._audiences[audience.key]
        for binding_id in set(audience.key.ids):
            audiences = self._by_binding.get(binding_id, {})
            audiences.pop(audience, None)
            if not audiences:
                self._by_binding.pop(binding_id, None)

    def _share(self, member: Member) -> None:
        """The socket has a second audience now: from here on its frames are queued one by one."""
        self._changed_members += 1
        audience = member.audience
        if audience.solo.get(member.outbox) is member:
            self._drain(audience)
            del audience.solo[member.outbox]
            audience.shared[member.outbox] = member

    def _settle(self, member: Member) -> None:
        self._changed_members += 1
        audience, outbox = member.audience, member.outbox
        self._drain(audience)
        del audience.joining[outbox]
        place = audience.solo if len(self._memberships[outbox]) == 1 else audience.shared
        place[outbox] = member

    def _catch_up(self, member: Member, asked_at: int) -> None:
        routed = self._backlog[0].sequence if self._backlog else self._ring.next_sequence
        for sequence, transaction in self._ring.maybe_live(member.snapshot, asked_at):
            if sequence < routed and self._is_live(transaction, member.snapshot):
                text = self._text(transaction)
                self._finish(self._replay(member, text, transaction.changes), last=True)
        # The ring may have let go of a large one already.
        if self._backlog and self._is_live(self._backlog[0].transaction, member.snapshot):
            self._replay_begun(member, self._backlog[0])

    def _replay(self, member: Member, text: TransactionText, changes: Iterable[Change]) -> Audience:
        """Deliver to one socket alone. Returns its stand-in audience, which still holds the newest change."""
        alone = Audience(member.audience.key)
        alone.shared[member.outbox] = member
        audiences = {binding_id: {alone: None} for binding_id in member.audience.key.ids}
        for change in changes:
            self._deliver(change, text, audiences, {})
        return alone

    def _replay_begun(self, member: Member, queued: _Queued) -> None:
        """The backlog's first transaction is half routed: deliver that half, the rest comes with everybody's."""
        audience = member.audience
        alone = self._replay(member, queued.text, islice(queued.transaction.changes, self._backlog_done))
        if alone.holds != audience.holds:
            self._finish(audience, last=False)  # rights have changed meanwhile: it is not for the new member
            if audience.has_listeners():
                self._finish(alone, last=False)  # the others have it already
            elif alone.held:
                # Nobody else waits for the newest change; the new member does, until it is known to be the last one.
                audience.held = alone.held
                self._touched[audience] = None
        member.live = True

    def _is_live(self, transaction: Transaction, snapshot: Snapshot) -> bool:
        return is_live(transaction, snapshot, self._server_start)

    # -- routing

    def route(self, sequence: int, transaction: Transaction, *, spilled: bool) -> None:
        """Route one transaction, or queue it behind a large one. ``sequence``: its number in the ring."""
        if spilled or self._backlog:
            self._backlog.append(_Queued(sequence, transaction, self._text(transaction)))
            self._backlog_waiting.set()
            return
        self._begin(transaction)
        text = self._text(transaction)
        if self._route_run(transaction.changes, text):
            return
        touched: dict[Audience, None] = {}
        for change in transaction.changes:
            self._deliver(change, text, self._by_binding, touched)
        for audience in touched:
            self._finish(audience, last=True)

    def _route_run(self, changes: Sequence[Change], text: TransactionText) -> bool:
        """Route a transaction of nothing but INSERTs into one table of which everybody gets all: the usual bulk.

        Says the same as ``_deliver`` for each, in a fraction of the time. Returns False, with nothing done, where the
        transaction is not like that.
        """
        if len(changes) < RUN_CHANGES_MIN or changes[0].operation is not Operation.INSERT:
            return False
        if len(set(map(_KIND, changes))) > 1:
            return False
        relation = changes[0].relation
        runs = []
        for audience, run in self._insert_runs(relation) or ():
            if self._access.allowed(audience.key.role, relation):
                payloads = run.fill(
                    changes, text.moment.commit_timestamp, text.position_head, text.max_record_bytes
                )  # fmt: skip
                if payloads is None:
                    return False
                runs.append((audience, payloads))
        if not runs:
            return False
        for audience, payloads in runs:
            audience.pending += text_frames(payloads)
            self._dirty[audience] = None
            self.frames_out += len(payloads) * len(audience.solo)
        self.changes_out += len(changes)
        return True

    def _insert_runs(self, relation: Relation) -> list[tuple[Audience, InsertRun]] | None:
        """Who gets every INSERT of a table, and in what text; None where that depends on the row or on the socket.

        None for many audiences, too: they share what ``_deliver`` renders. Kept until somebody comes or goes.
        """
        matched = self._router.everyone(relation, Operation.INSERT)
        known = self._runs.get(relation)
        if known is not None and known.matched is matched and known.members == self._changed_members:
            return known.runs
        if len(self._runs) >= RUNS_MAX:
            self._runs.clear()
        runs = self._plan_runs(relation, matched) if matched else None
        self._runs[relation] = _Runs(matched, self._changed_members, runs)
        return runs

    def _plan_runs(self, relation: Relation, matched: Sequence[Binding]) -> list[tuple[Audience, InsertRun]] | None:
        wanted: dict[Audience, list[Binding]] = {}
        for binding in matched:
            for audience in self._by_binding.get(binding.id, ()):
                wanted.setdefault(audience, []).append(binding)
        if len(wanted) > RUN_AUDIENCES_MAX:
            return None
        runs = []
        for audience, bindings in wanted.items():
            columns = bindings[0].select
            if audience.shared or audience.joining or any(binding.select != columns for binding in bindings):
                return None
            prefix = audience.prefix(Operation.INSERT, tuple([binding.id for binding in bindings]))
            run = audience.key.shape.insert_run(relation, columns, prefix, audience.suffix)
            if run is None:
                return None
            runs.append((audience, run))
        return runs

    async def run(self) -> None:
        """Route what ``route`` queued, a slice at a time, for ever.

        Cancelling it loses nothing; run again, it goes on where it was.
        """
        while True:
            await self._backlog_waiting.wait()
            while self._backlog:
                await self._route_sliced(self._backlog[0])
            self._backlog_waiting = trio.Event()

    async def _route_sliced(self, queued: _Queued) -> None:
        transaction, text = queued.transaction, queued.text
        changes: Iterator[Change] = islice(transaction.changes, self._backlog_done, None)
        touched = self._touched
        while True:
            # No await from here to the end of the slice: a join must see either all of it or none.
            self._begin(transaction)
            count = 0
            for change in islice(changes, SLICE_CHANGES):
                self._deliver(change, text, self._by_binding, touched)
                count += 1
            self._backlog_done += count
            if count < SLICE_CHANGES:
                break
            await self.flush()
            await trio.lowlevel.checkpoint()
        for audience in touched:
            self._finish(audience, last=True)
        touched.clear()
        self._backlog.popleft()
        self._backlog_done = 0
        await self.flush()
        await trio.lowlevel.checkpoint()

    def _begin(self, transaction: Transaction) -> None:
        if not self._joining:
            return
        done = []
        for member in self._joining:
            if settled(transaction, member.snapshot):
                done.append(member)
            else:
                member.live = self._is_live(transaction, member.snapshot)
        for member in done:
            self._settle(member)
            del self._joining[member]

    def _text(self, transaction: Transaction) -> TransactionText:
        return TransactionText.of(transaction, self._ring.cluster, self._max_record_bytes)

    def _deliver(
        self,
        change: Change,
        text: TransactionText,
        audiences: Mapping[int, Mapping[Audience, None]],
        touched: dict[Audience, None],
    ) -> None:
        matched = self._router.match(change)
        if not matched:
            return
        self.changes_out += 1
        rendered: dict[tuple[Shape, tuple[str, ...] | None], Rendered] = {}
        if len(matched) == 1:
            binding = matched[0]
            for audience in audiences.get(binding.id, ()):
                self._hold(audience, change, text, ((binding.select, (binding.id,)),), rendered)
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
            self._hold(audience, change, text, [(key, tuple(ids)) for key, ids in groups.items()], rendered)
            touched[audience] = None

    def _hold(
        self,
        audience: Audience,
        change: Change,
        text: TransactionText,
        groups: Sequence[tuple[tuple[str, ...] | None, tuple[int, ...]]],
        rendered: dict[tuple[Shape, tuple[str, ...] | None], Rendered],
    ) -> None:
        key = audience.key
        if not self._access.allowed(key.role, change.relation):
            return
        if audience.held:
            self._finish(audience, last=False)
        for columns, ids in groups:
            shared = rendered.get((key.shape, columns))
            if shared is None:
                shared = rendered[key.shape, columns] = Rendered(change, text, key.shape, columns)
            audience.held.append((shared, audience.prefix(change.operation, ids)))

    def _finish(self, audience: Audience, *, last: bool) -> None:
        """Turn the held change into frames: for the tick's one write, and at once for who is not part of it."""
        suffix = audience.suffix
        for rendered, prefix in audience.held:
            data = rendered.data(last)
            header = frame_header(len(prefix) + len(data) + len(suffix))
            if audience.solo:
                audience.pending += (header, prefix, data, suffix)
                self._dirty[audience] = None
            if audience.shared or audience.joining:
                self._push(audience, b"".join((header, prefix, data, suffix)))
            self.frames_out += len(audience.solo)
        audience.held.clear()

    def _push(self, audience: Audience, frame: bytes) -> None:
        for outbox in audience.shared:
            outbox.push(frame)
            self._dirty_outboxes[outbox] = None
        for outbox, member in audience.joining.items():
            if member.live:
                outbox.push(frame)
                self._dirty_outboxes[outbox] = None
                self.frames_out += 1
        self.frames_out += len(audience.shared)

    # -- writing

    def _drain(self, audience: Audience) -> None:
        """Write what waits before the audience's sockets change."""
        if audience.rest:
            broadcast(audience.rest, audience.chunk)
            audience.rest = []
        if audience.pending:
            chunk = b"".join(audience.pending)
            audience.pending.clear()
            broadcast(audience.solo, chunk)
        self._dirty.pop(audience, None)

    async def flush(self) -> None:
        """End a tick: one write per socket with something to send. Waits only for its turn, never for a reader.

        May be called while another call waits for its turn. Cancelled, it leaves the rest to the next call.
        """
        written = 0
        while self._dirty:
            audience = next(iter(self._dirty))
            if len(audience.solo) <= SLICE_SOCKETS and not audience.rest:
                written += len(audience.solo)
                self._drain(audience)
            else:
                await self._drain_sliced(audience)
            if written > SLICE_SOCKETS:
                written = 0
                await trio.lowlevel.checkpoint()
        for outbox in self._dirty_outboxes:
            outbox.flush()
        self._dirty_outboxes.clear()

    async def _drain_sliced(self, audience: Audience) -> None:
        """Write a chunk to the audience's sockets with turns for others in between, who may add to ``pending`` only.

        Whoever has to change the sockets meanwhile, or write what is newer, finishes this first: see ``_drain``.
        """
        if not audience.rest:
            audience.chunk = b"".join(audience.pending)
            audience.rest = list(audience.solo)
            audience.pending.clear()
        while audience.rest:
            part = audience.rest[:SLICE_SOCKETS]
            del audience.rest[:SLICE_SOCKETS]
            broadcast(part, audience.chunk)
            if audience.rest:
                await trio.lowlevel.checkpoint()
        audience.chunk = b""
        if not audience.pending:
            self._dirty.pop(audience, None)
