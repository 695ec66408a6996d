"""Members who are behind: resuming clients and slow ones, served from the ring at their own pace until they are live.

It is one code for both: a slow client *is* a resuming one. Who gets which change is ``fanout``'s; from where a client
may resume is decided in ``history.resume``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Protocol, TypeAlias

import structlog
import trio

from walstream.history.resume import Start
from walstream.history.ring import Ring
from walstream.lsn import Lsn
from walstream.model import Change, Snapshot, Transaction
from walstream.shell.delivery.audience import Audience, AudienceKey, Gate, Member, Place, Routing
from walstream.shell.delivery.frames import Frames
from walstream.shell.delivery.members import Members
from walstream.shell.delivery.outbox import Outbox
from walstream.telemetry.log import CLIENT_BEHIND

SLICE_CHANGES: Final = 50
"""Changes that one member gets before others have their turn: half a millisecond of work."""

ROOM_BYTES: Final = 256 * 1024
"""A member gets more when less than this waits for it: so it never has more than its share of memory."""

LOOK_SECONDS: Final = 1.0
"""Between looks whether who does not read has fallen off the ring meanwhile."""

HOLD_SECONDS: Final = 10.0
"""Of not reading, after which a member lets go of a transaction that the ring let go of before."""

WAIT_SECONDS: Final = 0.05
"""Between looks at an outbox of which nothing moves but what PostgreSQL has to answer."""

Beginning: TypeAlias = Start | Snapshot
"""Where a binding goes on: after a change, or with what a snapshot does not see."""

EVER: Final = Snapshot(3, 3, frozenset(), 0, 0, 0.0)
"""A snapshot that sees nothing: everything is live for who has it."""

log = structlog.get_logger()


class Source(Protocol):
    """What pursuits need of the fan-out. Everything is synchronous."""

    @property
    def routed(self) -> int:
        """Sequence number of the first transaction that is not routed, or not wholly."""
        ...

    @property
    def is_half_routed(self) -> bool:
        """Whether some changes of that one are routed already."""
        ...

    def queued(self, sequence: int) -> Transaction | None:
        """A transaction that waits to be routed; the ring may have let go of it."""
        ...

    def queued_at(self, commit_lsn: int) -> tuple[int, Transaction] | None:
        """The one of them with this commit end, and its sequence number."""
        ...

    def routing(self, transaction: Transaction) -> Routing:
        """The transaction on its way."""
        ...

    def is_live(self, transaction: Transaction, snapshot: Snapshot) -> bool:
        """Whether the snapshot does not see the transaction."""
        ...

    def deliver(self, change: Change, routing: Routing, audiences: Mapping[int, Mapping[Audience, None]]) -> None:
        """Let these audiences, by ids of their bindings, have a change if it is for them."""
        ...

    def end(self, audience: Audience) -> None:
        """A transaction is over."""
        ...

    def hold_back(self, audience: Audience, gate: Gate) -> None:
        """Tell the audience nothing before what the gate stands for."""
        ...


class Pursuit:
    """One member who is behind, and how far it has got.

    ``starts``: by ids of bindings, where they go on. ``sequence``: of the transaction that is told, or comes next.
    ``refused``: a change for which there was no room, and with which it goes on when its outbox is empty.
    ``kept``: that change's transaction. The ring may let go of a large one while it is told; it is told to its end.
    """

    __slots__ = ("audiences", "changes", "is_over", "kept", "member", "refused", "routing", "sequence", "starts")

    def __init__(self, member: Member, starts: Mapping[int, Beginning], sequence: int) -> None:
        self.member = member
        self.starts = dict(starts)
        self.sequence = sequence
        self.changes: Iterator[Change] | None = None
        self.routing: Routing | None = None
        self.audiences: Mapping[int, Mapping[Audience, None]] | None = None  # of all changes of the transaction
        self.refused: Place | None = None
        self.kept: Transaction | None = None
        self.is_over = False

    @property
    def holds(self) -> bool:
        """Whether what it is told next needs nobody else to keep it."""
        return self.kept is not None or self.changes is not None

    def rewind(self, place: Place, sequence: int, transaction: Transaction) -> None:
        """Tell this change, and all after it, again. ``sequence``: of its transaction."""
        self.refused = place
        self.kept = transaction
        self.sequence = sequence
        self.member.audience.waiting.clear()
        self.changes = self.routing = self.audiences = None


class Pursuits:
    """Everybody who is behind; ``run`` serves them, each by a task of its own.

    A member whose next transaction has left the ring overflows: its socket is closed, for it may have missed some.
    """

    def __init__(self, source: Source, ring: Ring, members: Members, frames: Frames) -> None:
        self._source = source
        self._ring = ring
        self._members = members
        self._frames = frames
        self._all: dict[Pursuit, None] = {}
        self._nursery: trio.Nursery | None = None
        self._more = trio.Event()
        # One member at a time: thousands may come back at once, and whoever is live must not wait for all of them.
        self._turn = trio.Lock()
        self.is_waited_for = False  # whether anybody waits for what is routed next

    def __len__(self) -> int:
        return len(self._all)

    # -- who becomes one, and what it becomes

    def resume(self, outbox: Outbox, key: AudienceKey, starts: Sequence[Beginning], asked_at: int) -> Member:
        """See ``Fanout.resume``."""
        member = self.hold(outbox, key)
        self.release(member, starts, self.first(starts, asked_at))
        return member

    def hold(self, outbox: Outbox, key: AudienceKey) -> Member:
        """Add a socket that gets nothing until it is released. It may be moved, and leave, as any other."""
        member = Member(outbox, Audience(key), EVER)
        self._members.isolate(member, key)
        member.pursuit = Pursuit(member, dict.fromkeys(key.ids, EVER), self._source.routed)
        return member

    def release(self, member: Member, starts: Sequence[Beginning], sequence: int) -> None:
        """Let a held member have its changes. ``starts``: one for each of its key's ids; ``sequence``: ``first``'s."""
        pursuit = member.pursuit
        assert pursuit is not None
        pursuit.starts = dict(zip(member.audience.key.ids, starts, strict=True))
        pursuit.sequence = sequence
        self._go(pursuit)

    def first(self, starts: Iterable[Beginning], asked_at: int) -> int:
        """Sequence number of the first transaction that any of these may want.

        ``asked_at``: the ring's next sequence number when the snapshots among them were asked for.
        """
        firsts = [self._source.routed]
        for start in starts:
            if isinstance(start, Start):
                firsts.append(self._ring.sequence_from(start.commit_lsn))
            else:
                live = self._ring.maybe_live(start, asked_at)
                firsts += next(([at] for at, each in live if self._source.is_live(each, start)), [])
        return min(firsts)

    def is_kept(self, sequence: int) -> bool:
        """Whether this transaction and all after it are there, or are yet to come."""
        return all(self._source.queued(gone) is not None for gone in range(sequence, self._ring.oldest_sequence))

    def fall_behind(self, audience: Audience, outbox: Outbox, place: Place) -> None:
        """A socket has no room: let it go on from there at its own pace, with all that is told meanwhile."""
        member = self._members.of(audience, outbox)
        if member is None:
            return
        found = self._find(place.commit_lsn, member.pursuit)
        if found is not None and member.pursuit is not None:
            member.pursuit.rewind(place, *found)
            # A stand-in of its own from here on: the old one is about to hold the change after the refused one.
            self._members.expel(member)
            self._members.isolate(member, audience.key)
            return
        if found is None or outbox in audience.joining or not self._members.leads_to(audience):
            outbox.overflow()
            return
        log.info(CLIENT_BEHIND, topic=audience.key.topic, bytes=outbox.queued_bytes)
        start = Start(Lsn(place.commit_lsn), place.ordinal - 1)
        self._members.expel(member)
        self._members.isolate(member, audience.key._replace(generation=0))
        member.snapshot = EVER
        sequence, transaction = found
        pursuit = member.pursuit = Pursuit(member, dict.fromkeys(audience.key.ids, start), sequence)
        pursuit.kept = transaction
        self._go(pursuit)

    def move(self, member: Member, pursuit: Pursuit, key: AudienceKey) -> Member:
        """See ``Fanout.move``."""
        members, audience = self._members, member.audience
        moved = Member(member.outbox, audience, member.snapshot)
        member.pursuit, moved.pursuit = None, pursuit
        if audience.waiting:
            moved.before = members.detach(member)
        else:
            self._frames.finish(audience, last=False)
            members.expel(member)
        members.isolate(moved, key)
        if moved.before is not None:
            self._source.hold_back(moved.audience, Gate(moved.before))
        pairs = zip(key.ids, audience.key.ids, strict=True)
        pursuit.starts = {new: pursuit.starts[old] for new, old in pairs}
        pursuit.member, pursuit.audiences = moved, None
        return moved

    def skip(self, member: Member) -> None:
        """Let a member go on with the next transaction that is read: of those under way it gets nothing more."""
        members, sequence = self._members, self._ring.next_sequence
        self._frames.drain(member.audience)  # what it was told before goes before what it is told next
        pursuit = member.pursuit
        if pursuit is not None:
            self.leave(pursuit)
            starts = {id_: EVER if isinstance(start, Start) else start for id_, start in pursuit.starts.items()}
        elif member.audience.waiting or self._source.routed < sequence:
            starts = dict.fromkeys(member.audience.key.ids, member.snapshot if member in members.joining else EVER)
        else:
            return
        if member.before is not None:
            members.leave(member.before)
            member.before = None
        members.expel(member)
        members.isolate(member, member.audience.key._replace(generation=0))
        member.snapshot = EVER
        member.pursuit = Pursuit(member, starts, sequence)
        self._go(member.pursuit)

    def leave(self, pursuit: Pursuit) -> None:
        """The member has gone."""
        pursuit.is_over = True
        pursuit.member.pursuit = None
        self._all.pop(pursuit, None)
        self.routed()

    def _go(self, pursuit: Pursuit) -> None:
        self._all[pursuit] = None
        if self._nursery is not None:
            self._nursery.start_soon(self._serve, pursuit)

    def _find(self, commit_lsn: int, pursuit: Pursuit | None) -> tuple[int, Transaction] | None:
        """A transaction of which changes were told, and its sequence number."""
        routing = pursuit.routing if pursuit is not None else None
        if pursuit is not None and routing is not None and routing.transaction.commit_lsn == commit_lsn:
            return pursuit.sequence, routing.transaction
        sequence = self._ring.sequence_from(commit_lsn)
        kept = self._ring.at(sequence)
        if kept is not None and kept.commit_lsn == commit_lsn:
            return sequence, kept
        return self._source.queued_at(commit_lsn)

    # -- serving

    def routed(self) -> None:
        """There may be more to tell."""
        self._more.set()
        self._more = trio.Event()
        self.is_waited_for = False

    async def run(self) -> None:
        """Serve for ever. Cancelled, it leaves everybody where they are; run again, it goes on."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for pursuit in self._all:
                    nursery.start_soon(self._serve, pursuit)
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def _serve(self, pursuit: Pursuit) -> None:
        await trio.lowlevel.checkpoint()
        while not pursuit.is_over:
            if not await self._has_room(pursuit):
                continue
            async with self._turn:
                is_told = self._take_turn(pursuit)
            if not is_told:
                await self._wait_for_more(pursuit)
        pursuit.is_over = True
        self._all.pop(pursuit, None)

    def _take_turn(self, pursuit: Pursuit) -> bool:
        """Tell some changes in one write, or let the member go live. False: nothing is there to tell, room or not."""
        outbox = pursuit.member.outbox
        told = 0
        while told < SLICE_CHANGES and outbox.queued_bytes < ROOM_BYTES and not pursuit.is_over:
            if pursuit.changes is None and self._go_live(pursuit):
                pursuit.is_over = True
                break
            count = self._step(pursuit, SLICE_CHANGES - told)
            if not count:
                break
            told += count
        is_full = outbox.queued_bytes >= ROOM_BYTES  # another topic of the socket was quicker
        outbox.flush()
        return told > 0 or is_full

    async def _wait_for_more(self, pursuit: Pursuit) -> None:
        if not pursuit.is_over:
            self.is_waited_for = True
            await self._more.wait()

    async def _has_room(self, pursuit: Pursuit) -> bool:
        """Wait for room. False: look again."""
        outbox = pursuit.member.outbox
        room = 1 if pursuit.refused is not None else ROOM_BYTES
        if outbox.queued_bytes >= room:
            outbox.flush()
            holds, sent = pursuit.holds, outbox.sent_bytes
            with trio.move_on_after(HOLD_SECONDS if holds else LOOK_SECONDS):
                await outbox.wait_below(room)
                return False
            is_reading = holds and outbox.sent_bytes > sent
            if not pursuit.is_over and not is_reading and self._is_lost(pursuit):
                self._give_up(pursuit)
            return False
        if pursuit.member.audience.waiting.bytes >= ROOM_BYTES:
            await trio.sleep(WAIT_SECONDS)
            return False
        return True

    def _step(self, pursuit: Pursuit, limit: int) -> int:
        """Tell at most so many changes of one transaction. Returns how many, and 0 if there is nothing to tell now."""
        if pursuit.changes is None and not self._begin(pursuit):
            return 0
        assert pursuit.changes is not None
        assert pursuit.routing is not None
        outbox, changes = pursuit.member.outbox, pursuit.changes
        told = 0
        for told, change in enumerate(changes, start=1):
            self._tell(pursuit, change, pursuit.routing)
            if pursuit.changes is not changes or told == limit or outbox.queued_bytes >= ROOM_BYTES:
                return told  # maybe because there was no room for it
        self._source.end(pursuit.member.audience)
        if pursuit.changes is changes:
            pursuit.refused = pursuit.kept = None
            pursuit.changes = pursuit.routing = pursuit.audiences = None
            pursuit.sequence += 1
        return told or 1

    def _begin(self, pursuit: Pursuit) -> bool:
        transaction = pursuit.kept or self._ring.at(pursuit.sequence) or self._source.queued(pursuit.sequence)
        if transaction is None:
            if self._is_lost(pursuit):
                self._give_up(pursuit)
            return False
        commit_lsn = transaction.commit_lsn
        known = [start for start in pursuit.starts.values() if isinstance(start, Start)]
        inside = [start for start in known if start.commit_lsn == commit_lsn]
        if any(start.xid not in (0, transaction.xid) for start in inside):
            self._give_up(pursuit)  # another commit has taken the place that the member knows
            return False
        if not inside:
            pursuit.audiences = self._wanting(pursuit, transaction, 0)
        pursuit.routing = self._source.routing(transaction)
        pursuit.changes = iter(transaction.changes)
        return True

    def _tell(self, pursuit: Pursuit, change: Change, routing: Routing) -> None:
        refused = pursuit.refused
        if refused is not None and (routing.transaction.commit_lsn, change.ordinal) < refused:
            return
        audiences = pursuit.audiences
        if audiences is None:
            audiences = self._wanting(pursuit, routing.transaction, change.ordinal)
        self._source.deliver(change, routing, audiences)

    def _wanting(
        self, pursuit: Pursuit, transaction: Transaction, ordinal: int
    ) -> Mapping[int, Mapping[Audience, None]]:
        """The member's stand-in audience, by ids of the bindings that are to have a change in this place."""
        alone: Mapping[Audience, None] = {pursuit.member.audience: None}
        return {
            binding_id: alone
            for binding_id, start in pursuit.starts.items()
            if (
                not start.covers(transaction.commit_lsn, ordinal)
                if isinstance(start, Start)
                else self._source.is_live(transaction, start)
            )
        }

    def _go_live(self, pursuit: Pursuit) -> bool:
        """Let a member live on if nothing lies between it and what is routed next."""
        if self._source.is_half_routed or pursuit.sequence != self._source.routed:
            return False
        member = pursuit.member
        starts = pursuit.starts.values()
        known = [start.commit_lsn for start in starts if isinstance(start, Start)]
        next_one = self._ring.at(pursuit.sequence) or self._source.queued(pursuit.sequence)
        if next_one is not None and next_one.commit_lsn <= max(known, default=0):
            return False  # it has some of it already
        # What is read next may be older than where it goes on: after a restart, or on a node that lags.
        if self._ring.newest < max(known, default=0):
            return False
        # Until the snapshots' positions are passed, what comes next may be something that they see.
        seen = max((start.insert_lsn for start in starts if isinstance(start, Snapshot)), default=0)
        if self._ring.newest < seen or (next_one is not None and next_one.commit_lsn <= seen):
            return False
        member.snapshot = EVER
        alone = member.audience
        self._members.expel(member)
        member.pursuit = None
        member.audience = self._members.audience(alone.key)
        if alone.waiting:
            self._members.adopt(member, alone)
        self._members.enter(member)
        return True

    def _is_lost(self, pursuit: Pursuit) -> bool:
        """Whether its next transaction is no longer there; one that it holds on to does not count."""
        sequence = pursuit.sequence
        return sequence < self._ring.oldest_sequence and self._source.queued(sequence) is None

    def _give_up(self, pursuit: Pursuit) -> None:
        pursuit.is_over = True
        pursuit.member.outbox.overflow()
