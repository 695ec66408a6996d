"""Registered channels in memory, and who may be in which room: asked of the database, then followed through the WAL.

What roles may do is in ``channel.registry``; the statements are in ``shell.database.channel_rows``. Why nothing is
missed between an answer and the WAL is told in docs/discussion/stored-messages.md.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from typing import Final

import structlog
import trio

from walstream.auth.tokens import Claims
from walstream.channel.registry import Membership, RegisteredChannel, Registry
from walstream.errors import WalstreamError
from walstream.history.visibility import is_live
from walstream.model import Change, Operation, Snapshot, Transaction
from walstream.rooms import RoomKey
from walstream.shell.channels.seats import Seat, Verdict
from walstream.shell.database.channel_rows import (
    CHANNELS,
    MEMBERS,
    LoadedMembers,
    Pair,
    Rows,
    channel_change,
    member_change,
)
from walstream.telemetry.log import CHANNEL_FAULTY, CHANNELS_LOADED, CHANNELS_UNKNOWN

ANSWER_SECONDS: Final = 2.0
"""How long an answer waits for the database."""

RETRY_SECONDS: Final = 1.0
ROLES_MAX: Final = 1000
ROLE_SECONDS: Final = 60.0
"""How long it may stay unnoticed that a role has got or lost BYPASSRLS."""

BATCH_MAX: Final = 1000

IDLE_SECONDS: Final = 5.0
IDLE_MAX: Final = 10_000
"""How long, and of how many, an answer counts that nobody sits on. The WAL keeps it fresh meanwhile."""

RECENT_SECONDS: Final = 60.0
RECENT_MAX: Final = 5000
"""Changes of the two tables that are kept: an answer of the database may be older than what the WAL has brought, for a
commit is in the WAL before others see it.
"""

FORBIDDEN: Final = "Unauthorized: You do not have permissions to read from this Channel topic: {}"
UNREACHED: Final = ("UnableToConnectToProject", "Realtime was unable to connect to the project database")
UNABLE: Final = ": ".join(UNREACHED)
LOST: Final = ("Unauthorized", "You no longer have permission to read from this Channel topic")
DELETED: Final = ("ChannelDeleted", "The channel was deleted")
CHANGED: Final = ("ChannelChanged", "The channel has become another one: join it again")

log = structlog.get_logger()


class _Ask:
    """A question that waits for the database. ``seat``: the one that is judged again, None for a new one."""

    __slots__ = ("answered", "claims", "deadline", "ended", "seat", "wanted")

    def __init__(
        self,
        wanted: RoomKey,
        claims: Claims,
        answered: Callable[[Seat | str], None] | None,
        ended: Callable[[str, str], None] | None,
        *,
        seat: Seat | None = None,
    ) -> None:
        self.wanted = wanted
        self.claims = claims
        self.answered = answered
        self.ended = ended
        self.seat = seat
        self.deadline = trio.current_time() + ANSWER_SECONDS


class _Entry:
    """What is known of a pair while somebody sits on it. ``snapshot``: the changes in it are those it sees."""

    __slots__ = ("idle_since", "membership", "seats", "snapshot")

    def __init__(self, membership: Membership | None, snapshot: Snapshot) -> None:
        self.membership = membership
        self.snapshot = snapshot
        self.seats: dict[Seat, None] = {}
        self.idle_since = trio.current_time()


class Directory:
    """Answers who may be in a room, and goes on watching over it.

    Everything but ``run`` is synchronous. ``applied`` takes the committed changes of ``channels`` and
    ``channel_members`` in their order; ``changed`` is for nodes that do not read the WAL, or have missed some of it.
    Before the channels could be loaded every topic is unregistered; what was let in meanwhile is judged again.
    ``on_loaded`` gets the snapshot of each load.
    """

    def __init__(self, rows: Rows) -> None:
        self.on_loaded: Callable[[Snapshot], None] = lambda snapshot: None
        self._rows = rows
        self._registry = Registry()
        self._snapshot: Snapshot | None = None
        self._server_start: float | None = None
        self._topics: dict[str, dict[Seat, None]] = {}
        self._entries: dict[Pair, _Entry] = {}
        self._idle: dict[Pair, None] = {}  # those without seats, the longest idle first
        self._roles: dict[str, tuple[bool, float]] = {}
        self._asks: list[_Ask] = []
        self._later: list[_Ask] = []  # seats to be judged again once the database answers
        self._asked = trio.Event()
        self._stale = trio.Event()
        self._stale.set()
        self._recent: deque[tuple[float, Transaction, tuple[Change, ...]]] = deque()
        self._recent_count = 0

    # -- what others ask

    @property
    def is_loaded(self) -> bool:
        """Whether the channels are known."""
        return self._snapshot is not None

    def __len__(self) -> int:
        """Registered channels."""
        return len(self._registry)

    def find(self, subtopic: str) -> RegisteredChannel | None:
        """The registered channel that a topic names."""
        return self._registry.find(subtopic)

    def by_id(self, channel_id: str) -> RegisteredChannel | None:
        """The registered channel with this id."""
        return self._registry.by_id(channel_id)

    def ask(
        self,
        room: RoomKey,
        claims: Claims,
        answered: Callable[[Seat | str], None],
        ended: Callable[[str, str], None] | None = None,
    ) -> None:
        """Ask for a seat in the room that ``room`` means. ``answered`` is called once, maybe before this returns.

        It gets a ``Seat``, to be given back by ``leave``, or the refusal ("Code: text") for the client, within
        ``ANSWER_SECONDS``. ``ended``: called once, with a code and a text, if the seat is lost later.
        While the database is away public channels go on letting people in, who are judged when it is back.
        """
        verdict = self._judge(room, claims)
        if verdict is None:
            self._asks.append(_Ask(room, claims, answered, ended))
            self._asked.set()
        else:
            answered(verdict if isinstance(verdict, str) else self._seated(room, claims, verdict, ended))

    async def seat(self, room: RoomKey, claims: Claims) -> Seat | str:
        """As ``ask``, for whoever can wait. Cancelled, it leaves no seat behind."""
        answers: list[Seat | str] = []
        answered = trio.Event()
        is_wanted = True

        def take(answer: Seat | str) -> None:
            answers.append(answer)
            answered.set()
            if not is_wanted and isinstance(answer, Seat):
                self.leave(answer)

        self.ask(room, claims, take)
        try:
            await answered.wait()
        except trio.Cancelled:
            is_wanted = False
            for answer in answers:
                if isinstance(answer, Seat):
                    self.leave(answer)
            raise
        return answers[0]

    def leave(self, seat: Seat) -> None:
        """Give a seat back. Nothing happens with one that has ended."""
        if seat.is_left:
            return
        seat.is_left = True
        seats = self._topics.get(seat.wanted.subtopic, {})
        seats.pop(seat, None)
        if not seats:
            self._topics.pop(seat.wanted.subtopic, None)
        self._unwatch(seat)

    def refreshed(self, seat: Seat, claims: Claims) -> None:
        """Its holder has a new token: the seat is judged again if it says who somebody else is."""
        same = (seat.claims.sub, seat.claims.role) == (claims.sub, claims.role)
        if same:
            seat.claims = claims
            return
        self._unwatch(seat)
        seat.claims = claims
        seat.role = None
        self._rejudge(seat)

    # -- what the WAL says

    def applied(self, transaction: Transaction, server_start: float) -> None:
        """Changes of our two tables in a committed transaction, in commit order. ``server_start``: see ``is_live``."""
        self._server_start = server_start
        changes = tuple(change for change in transaction.control if change.relation.name in (CHANNELS, MEMBERS))
        if not changes:
            return
        self._remember(transaction, changes)
        is_new = self._snapshot is not None and is_live(transaction, self._snapshot, server_start)
        touched: dict[Seat, None] = {}
        for change in changes:
            if change.relation.name == MEMBERS:
                self._member_changed(transaction, change, touched)
            elif is_new:
                self._channel_changed(change, touched)
        # Not before the whole transaction counts: it may take a membership away and give it again.
        for seat in touched:
            self._rejudge(seat)

    def changed(self) -> None:
        """Something may have changed that the WAL has not brought here: ask for everything again."""
        for pair in list(self._idle):
            self._drop(pair)
        self._stale.set()

    def _remember(self, transaction: Transaction, changes: tuple[Change, ...]) -> None:
        now = trio.current_time()
        self._recent.append((now, transaction, changes))
        self._recent_count += len(changes)
        while self._recent and (self._recent_count > RECENT_MAX or now - self._recent[0][0] > RECENT_SECONDS):
            at, _, dropped = self._recent.popleft()
            self._recent_count -= len(dropped)
            if now - at <= RECENT_SECONDS:
                self.changed()  # an answer that is under way may lack it

    def _since(self, snapshot: Snapshot, table: str) -> Iterator[Change]:
        """Changes of a table that the WAL has brought and the snapshot does not see, in their order."""
        for _, transaction, changes in self._recent:
            if is_live(transaction, snapshot, self._server_start):
                yield from (change for change in changes if change.relation.name == table)

    def _channel_changed(self, change: Change, touched: dict[Seat, None]) -> None:
        versions = put(self._registry, change)
        for version in versions:
            if self._registry.by_id(version.id) is version:
                _report(version)
            touched |= self._topics.get(version.slug, {})

    def _member_changed(self, transaction: Transaction, change: Change, touched: dict[Seat, None]) -> None:
        pairs: dict[Pair, Membership | None] = {}
        if change.operation is Operation.TRUNCATE:
            pairs = dict.fromkeys(self._entries)
        else:
            ended, membership = member_change(change)
            if ended is not None:
                pairs[ended] = None
            if membership is not None:
                pairs[membership.channel_id, membership.user] = membership
        for pair, membership in pairs.items():
            entry = self._entries.get(pair)
            if entry is not None and is_live(transaction, entry.snapshot, self._server_start):
                entry.membership = membership
                touched |= entry.seats

    # -- judging

    def _judge(self, wanted: RoomKey, claims: Claims) -> Verdict | str | None:
        """What somebody is in a room, or the refusal; None where the database has to be asked."""
        channel = self._registry.find(wanted.subtopic)
        if channel is None and not wanted.private:
            return Verdict(wanted, None, None, muted=False)
        is_service, known_at = self._roles.get(claims.role, (False, -math.inf))
        if trio.current_time() - known_at > ROLE_SECONDS:
            return None
        if is_service:
            return Verdict(channel.room if channel is not None else wanted, channel, "service", muted=False)
        if channel is None:
            return FORBIDDEN.format(wanted.subtopic)
        membership = None
        if claims.sub:
            pair = (channel.id, claims.sub)
            if not self._is_known(pair):
                return None
            membership = self._entries[pair].membership
        if membership is None:
            if channel.is_private:
                return FORBIDDEN.format(wanted.subtopic)
            return Verdict(channel.room, channel, None, muted=False)
        return Verdict(channel.room, channel, membership.role, muted=membership.muted)

    def _seated(
        self, wanted: RoomKey, claims: Claims, verdict: Verdict, ended: Callable[[str, str], None] | None
    ) -> Seat:
        seat = Seat(wanted, claims, verdict, ended)
        self._topics.setdefault(wanted.subtopic, {})[seat] = None
        self._watch(seat)
        return seat

    def _watch(self, seat: Seat) -> None:
        entry = self._entries.get((seat.channel.id, seat.claims.sub)) if seat.channel is not None else None
        if entry is not None:
            assert seat.channel is not None
            entry.seats[seat] = None
            self._idle.pop((seat.channel.id, seat.claims.sub), None)

    def _unwatch(self, seat: Seat) -> None:
        if seat.channel is None:
            return
        pair = (seat.channel.id, seat.claims.sub)
        entry = self._entries.get(pair)
        if entry is not None:
            entry.seats.pop(seat, None)
            self._rest((pair,))

    def _is_known(self, pair: Pair) -> bool:
        entry = self._entries.get(pair)
        if entry is None:
            return False
        return bool(entry.seats) or trio.current_time() - entry.idle_since <= IDLE_SECONDS

    def _rest(self, pairs: Iterable[Pair]) -> None:
        """Keep what is known of pairs that nobody sits on for a moment: requests and refused joins come in rows."""
        now = trio.current_time()
        for pair in pairs:
            entry = self._entries.get(pair)
            if entry is None or entry.seats:
                continue
            channel = self._registry.by_id(pair[0])
            if entry.membership is None and (channel is None or channel.is_private):
                # Who has just been made a member comes at once, maybe before the WAL has said so here.
                self._drop(pair)
                continue
            entry.idle_since = now
            self._idle.pop(pair, None)
            self._idle[pair] = None
        while len(self._idle) > IDLE_MAX:
            self._drop(next(iter(self._idle)))

    def _drop(self, pair: Pair) -> None:
        self._idle.pop(pair, None)
        entry = self._entries.get(pair)
        if entry is not None and not entry.seats:
            del self._entries[pair]

    def _rejudge(self, seat: Seat) -> None:
        if seat.is_left:
            return
        if seat.channel is not None and self._registry.by_id(seat.channel.id) is None:
            self._end(seat, DELETED)
            return
        channel = self._registry.find(seat.wanted.subtopic)
        if seat.channel is not None and (channel is None or channel.id != seat.channel.id):
            self._end(seat, CHANGED)
            return
        if channel is not None and channel.room != seat.room:
            self._end(seat, CHANGED)
            return
        verdict = self._judge(seat.wanted, seat.claims)
        if verdict is None:
            self._asks.append(_Ask(seat.wanted, seat.claims, None, None, seat=seat))
            self._asked.set()
        else:
            self._use(seat, verdict)

    def _use(self, seat: Seat, verdict: Verdict | str) -> None:
        if isinstance(verdict, str):
            self._end(seat, LOST)
        elif verdict.room != seat.room:
            self._end(seat, CHANGED)
        else:
            if verdict.channel is None or seat.channel is None or verdict.channel.id != seat.channel.id:
                self._unwatch(seat)
            seat.use(verdict)
            self._watch(seat)

    def _end(self, seat: Seat, why: tuple[str, str]) -> None:
        ended = seat.ended
        self.leave(seat)
        if ended is not None:
            ended(*why)

    # -- asking the database

    async def run(self) -> None:
        """Load, answer and load again, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._load_forever)
            nursery.start_soon(self._answer_forever)

    async def _load_forever(self) -> None:
        told = ""
        while True:
            await self._stale.wait()
            self._stale = trio.Event()
            try:
                await self._load()
            except WalstreamError as error:
                self._stale.set()
                if str(error) != told:
                    told = str(error)
                    log.warning(CHANNELS_UNKNOWN, code=error.code, error=error.message, repair=error.repair)
                await trio.sleep(RETRY_SECONDS)
            else:
                told = ""

    async def _load(self) -> None:
        """Everything anew. Raises WalstreamError."""
        for pair in list(self._idle):
            self._drop(pair)
        pairs = list(self._entries)
        registry, snapshot = await self._rows.channels()
        members = None
        if pairs:
            members = await self._rows.members(pairs, ())
        for change in self._since(snapshot, CHANNELS):
            put(registry, change)
        self._registry, self._snapshot = registry, snapshot
        for channel in registry:
            _report(channel)
        log.info(CHANNELS_LOADED, channels=len(registry))
        self.on_loaded(snapshot)
        if members is not None:
            self._know(members)
        for seats in list(self._topics.values()):
            for seat in list(seats):
                self._rejudge(seat)
        self._rest(pairs)

    def _know(self, loaded: LoadedMembers) -> None:
        """Take over an answer, with what the WAL has brought since. Seats are judged by the caller."""
        members = dict(loaded.members)
        for change in self._since(loaded.snapshot, MEMBERS):
            update(members, change)
        for pair, membership in members.items():
            entry = self._entries.get(pair)
            if entry is None:
                self._entries[pair] = _Entry(membership, loaded.snapshot)
            else:
                entry.membership, entry.snapshot = membership, loaded.snapshot

    async def _answer_forever(self) -> None:
        while True:
            with trio.move_on_after(RETRY_SECONDS if self._later else math.inf):
                await self._asked.wait()
            self._asked = trio.Event()
            asks = [*self._asks[:BATCH_MAX], *self._later]
            self._asks, self._later = self._asks[BATCH_MAX:], []
            if self._asks:
                self._asked.set()
            asks = [ask for ask in asks if ask.seat is None or not ask.seat.is_left]
            if asks:
                await self._answer(asks)

    async def _answer(self, asks: list[_Ask]) -> None:
        channels = [(ask, self._registry.find(ask.wanted.subtopic)) for ask in asks]
        pairs = {(channel.id, ask.claims.sub) for ask, channel in channels if channel is not None and ask.claims.sub}
        pairs = {pair for pair in pairs if not self._is_known(pair)}
        roles = {ask.claims.role for ask in asks}
        loaded = None
        now = trio.current_time()
        deadline = min((ask.deadline for ask in asks if ask.answered is not None), default=math.inf)
        with trio.move_on_at(min(deadline, now + ANSWER_SECONDS)):
            try:
                loaded = await self._rows.members(pairs, roles)
            except WalstreamError as error:
                log.debug(CHANNELS_UNKNOWN, code=error.code, error=error.message)
        if loaded is not None:
            self._know(loaded)
            for role in roles:
                facts = loaded.roles.get(role)
                is_service = facts is not None and facts.bypasses_rls and facts.member and not facts.superuser
                self._roles[role] = (is_service, now)
        for ask in asks:
            if ask.seat is not None:
                self._judge_again(ask, ask.seat)
            else:
                self._reply(ask, is_known=loaded is not None)
        self._rest(pairs)
        if len(self._roles) > ROLES_MAX:
            self._roles.clear()

    def _judge_again(self, ask: _Ask, seat: Seat) -> None:
        if seat.is_left or seat.claims is not ask.claims:
            return
        verdict = self._judge(ask.wanted, ask.claims)
        if verdict is not None:
            self._use(seat, verdict)
        elif seat.room.private and seat.role is None:
            self._end(seat, UNREACHED)  # somebody else's token, and nobody knows whether they may
        else:
            self._later.append(ask)

    def _reply(self, ask: _Ask, *, is_known: bool) -> None:
        assert ask.answered is not None
        verdict = self._judge(ask.wanted, ask.claims)
        if verdict is None and is_known and trio.current_time() < ask.deadline:
            self._asks.append(ask)  # the topic has become another channel's meanwhile
            self._asked.set()
            return
        channel = self._registry.find(ask.wanted.subtopic)
        if verdict is None and (channel is None or channel.is_private):
            verdict = UNABLE
        if isinstance(verdict, str):
            ask.answered(verdict)
            return
        if verdict is not None:
            ask.answered(self._seated(ask.wanted, ask.claims, verdict, ask.ended))
            return
        assert channel is not None
        seat = self._seated(ask.wanted, ask.claims, Verdict(channel.room, channel, None, muted=False), ask.ended)
        self._later.append(_Ask(ask.wanted, ask.claims, None, None, seat=seat))
        ask.answered(seat)


def put(registry: Registry, change: Change) -> list[RegisteredChannel]:
    """Apply a change of ``channels``. Returns every version that it ends or begins."""
    if change.operation is Operation.TRUNCATE:
        gone = list(registry)
        registry.clear()
        return gone
    id_, channel = channel_change(change)
    before = registry.remove(id_) if channel is None else registry.put(channel)
    return [version for version in (before, channel) if version is not None]


def update(members: MutableMapping[Pair, Membership | None], change: Change) -> None:
    """Apply a change of ``channel_members`` to those pairs that are in ``members``."""
    if change.operation is Operation.TRUNCATE:
        members.update(dict.fromkeys(members))
        return
    ended, membership = member_change(change)
    if ended is not None and ended in members:
        members[ended] = None
    if membership is not None and (membership.channel_id, membership.user) in members:
        members[membership.channel_id, membership.user] = membership


def _report(channel: RegisteredChannel) -> None:
    for event, fault in channel.schemas.faults.items():
        log.warning(CHANNEL_FAULTY, channel=channel.slug, event=event, error=fault)
