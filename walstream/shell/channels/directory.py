"""Registered channels in memory, and who may be in which room: asked of the database, then followed through the WAL.

What roles may do is in ``channel.registry``; the statements are in ``shell.database.channel_rows``. Why nothing is
missed between an answer and the WAL is told in docs/discussion/stored-messages.md.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog
import trio

from walstream.auth.tokens import Claims
from walstream.channel.permission import (
    POLICY_ERROR,
    READS_NOTHING,
    UNREACHED,
    Answer,
    Question,
    Trouble,
    Writing,
    push_code,
)
from walstream.channel.registry import RegisteredChannel, Registry
from walstream.errors import WalstreamError
from walstream.history.visibility import is_live
from walstream.model import Change, Snapshot, Transaction
from walstream.rooms import RoomKey
from walstream.shell.channels.authorizer import Authorizer, NoPolicies
from walstream.shell.channels.memberships import Memberships
from walstream.shell.channels.recent_changes import RecentChanges, put, update
from walstream.shell.channels.seats import Seat, Verdict
from walstream.shell.database.channel_rows import (
    CHANNELS,
    MEMBERS,
    LoadedMembers,
    Pair,
    Rows,
)
from walstream.telemetry.log import CHANNEL_FAULTY, CHANNELS_LOADED, CHANNELS_UNKNOWN

ANSWER_SECONDS: Final = 2.0
"""How long an answer waits for the database."""

RETRY_SECONDS: Final = 1.0
ROLES_MAX: Final = 1000
ROLE_SECONDS: Final = 60.0
"""How long it may stay unnoticed that a role has got or lost BYPASSRLS."""

BATCH_MAX: Final = 1000

FORBIDDEN: Final = "Unauthorized: You do not have permissions to read from this Channel topic: {}"
PRIVATE_ONLY: Final = "PrivateOnly: This project only allows private channels"
UNABLE: Final = ": ".join(UNREACHED)
LOST: Final = ("Unauthorized", "You no longer have permission to read from this Channel topic: {}")
DELETED: Final = ("ChannelDeleted", "The channel was deleted")
CHANGED: Final = ("ChannelChanged", "The channel has become another one: join it again")

log = structlog.get_logger()


class _Unknown(enum.Enum):
    """What has to be asked for before a verdict."""

    ROWS = "rows"
    POLICIES = "policies"


class _Ask:
    """A question that waits for the database. ``answered``: None for a seat that is judged again."""

    __slots__ = ("answered", "claims", "deadline", "seat", "writes")

    def __init__(self, seat: Seat, answered: Callable[[Seat | str], None] | None, *, writes: bool = False) -> None:
        self.seat = seat
        self.claims = seat.claims
        self.answered = answered
        self.writes = writes
        self.deadline = trio.current_time() + ANSWER_SECONDS

    @property
    def wanted(self) -> RoomKey:
        return self.seat.wanted

    @property
    def is_moot(self) -> bool:
        """Whether its seat has gone, or has another token by now."""
        return self.answered is None and (self.seat.is_left or self.seat.claims is not self.claims)


class Directory:
    """Answers who may be in a room, and goes on watching over it.

    Everything but ``run`` is synchronous. ``applied`` takes the committed changes of ``channels`` and
    ``channel_members`` in their order; ``changed`` is for nodes that do not read the WAL, or have missed some of it.
    Before the channels could be loaded every topic is unregistered; what was let in meanwhile is judged again.
    ``on_loaded`` gets the snapshot of each load. ``private_only``: nobody comes into a public room.
    """

    def __init__(self, rows: Rows, authorizer: Authorizer | None = None, *, private_only: bool = False) -> None:
        self.on_loaded: Callable[[Snapshot], None] = lambda snapshot: None
        self._rows = rows
        self._authorizer = authorizer if authorizer is not None else NoPolicies()
        self._private_only = private_only
        self._registry = Registry()
        self._snapshot: Snapshot | None = None
        self._server_start: float | None = None
        self._topics: dict[str, dict[Seat, None]] = {}
        self._memberships = Memberships(self._is_open)
        self._roles: dict[str, tuple[bool, float]] = {}
        self._asks: list[_Ask] = []
        self._later: list[_Ask] = []  # seats to be judged again once the database answers
        self._later_due = math.inf
        self._asked = trio.Event()
        self._stale = trio.Event()
        self._stale.set()
        self._recent = RecentChanges()

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

    def ask(self, seat: Seat, answered: Callable[[Seat | str], None], *, writes: bool = False) -> None:
        """Ask for a seat, one just made. ``answered`` is called once, maybe before this returns.

        It gets the seat, to be given back by ``leave``, or the refusal ("Code: text") for the client, within
        ``ANSWER_SECONDS`` for each trip to the database. ``writes``: policies are asked for the right to send and not
        for that to be there.
        While the database is away public channels go on letting people in, who are judged when it is back.
        """
        self._try(_Ask(seat, answered, writes=writes))

    async def seat(self, seat: Seat, *, writes: bool = False) -> Seat | str:
        """As ``ask``, for whoever can wait. Cancelled, it leaves no seat behind."""
        answers: list[Seat | str] = []
        answered = trio.Event()
        is_wanted = True

        def take(answer: Seat | str) -> None:
            answers.append(answer)
            answered.set()
            if not is_wanted and isinstance(answer, Seat):
                self.leave(answer)

        self.ask(seat, take, writes=writes)
        try:
            await answered.wait()
        except trio.Cancelled:
            is_wanted = False
            for answer in answers:
                if isinstance(answer, Seat):
                    self.leave(answer)
            raise
        return answers[0]

    def ask_writing(self, seat: Seat, answered: Callable[[str], None]) -> None:
        """Find out what a seat of policies may write. ``answered`` gets "", and the seat has it then, or a code."""
        question = self._question(seat, writes=True)
        self._authorizer.ask(question, partial(self._may_write, seat, seat.claims, answered))

    def _may_write(self, seat: Seat, claims: Claims, answered: Callable[[str], None], answer: Answer) -> None:
        if seat.is_left or not seat.by_policy:
            answered("")
        elif seat.claims is not claims:
            self.ask_writing(seat, answered)
        elif isinstance(answer, Writing):
            seat.writing = answer
            answered("")
        else:
            answered(push_code(answer) if isinstance(answer, Trouble) else push_code(UNREACHED))

    def leave(self, seat: Seat) -> None:
        """Give a seat back. Nothing happens with one that has ended."""
        if seat.is_left:
            return
        seat.is_left = True
        seat.ended = seat.changed = None  # who has it has these, and they have whom they tell
        seats = self._topics.get(seat.wanted.subtopic, {})
        seats.pop(seat, None)
        if not seats:
            self._topics.pop(seat.wanted.subtopic, None)
        self._unwatch(seat)

    def refreshed(self, seat: Seat, claims: Claims) -> None:
        """Its holder has a new token: the seat is judged again if it is somebody else's, or if policies may read it."""
        same = (seat.claims.sub, seat.claims.role) == (claims.sub, claims.role)
        if same and not seat.by_policy:
            seat.claims = claims
            return
        self._unwatch(seat)
        seat.claims = claims
        seat.doubt()
        self._rejudge(seat)

    def policies_changed(self) -> None:
        """Policies may say something else now: everybody whom they let in is judged again, in the background."""
        for seats in list(self._topics.values()):
            for seat in [seat for seat in seats if seat.by_policy]:
                self._rejudge(seat)

    # -- what the WAL says

    def applied(self, transaction: Transaction, server_start: float) -> None:
        """Changes of our two tables in a committed transaction, in commit order. ``server_start``: see ``is_live``."""
        self._server_start = server_start
        changes = tuple(change for change in transaction.control if change.relation.name in (CHANNELS, MEMBERS))
        if not changes:
            return
        if not self._recent.remember(transaction, changes):
            self.changed()
        is_new = self._snapshot is not None and is_live(transaction, self._snapshot, server_start)
        touched: dict[Seat, None] = {}
        for change in changes:
            if change.relation.name == MEMBERS:
                self._memberships.changed(transaction, change, server_start, touched)
            elif is_new:
                self._channel_changed(change, touched)
        # Not before the whole transaction counts: it may take a membership away and give it again.
        for seat in touched:
            self._rejudge(seat)

    def changed(self) -> None:
        """Something may have changed that the WAL has not brought here: ask for everything again."""
        self._memberships.forget_idle()
        self._stale.set()

    def _channel_changed(self, change: Change, touched: dict[Seat, None]) -> None:
        versions = put(self._registry, change)
        for version in versions:
            if self._registry.by_id(version.id) is version:
                _report(version)
            touched |= self._topics.get(version.slug, {})

    # -- judging

    def _try(self, ask: _Ask) -> None:
        """Answer a new question, or have the database asked."""
        assert ask.answered is not None
        verdict = self._judge(ask.wanted, ask.claims)
        if verdict is _Unknown.ROWS:
            self._asks.append(ask)
            self._asked.set()
        elif verdict is _Unknown.POLICIES:
            self._authorize(ask)
        else:
            ask.answered(verdict if isinstance(verdict, str) else self._seated(ask.seat, verdict))

    def _judge(self, wanted: RoomKey, claims: Claims, answer: Answer | None = None) -> Verdict | str | _Unknown:
        """What somebody is in a room, or the refusal. ``answer``: what policies say, where they were asked."""
        channel = self._registry.find(wanted.subtopic)
        if self._private_only and not (channel.room if channel is not None else wanted).private:
            return PRIVATE_ONLY
        if channel is None and not wanted.private:
            return Verdict(wanted, None)
        is_service, known_at = self._roles.get(claims.role, (False, -math.inf))
        if trio.current_time() - known_at > ROLE_SECONDS:
            return _Unknown.ROWS
        if is_service:
            return Verdict(channel.room if channel is not None else wanted, channel, "service")
        if channel is None:
            return _by_policy(wanted, None, answer)
        membership = None
        if claims.sub:
            pair = (channel.id, claims.sub)
            if not self._memberships.knows(pair):
                return _Unknown.ROWS
            membership = self._memberships.membership(pair)
        if membership is not None:
            return Verdict(channel.room, channel, membership.role, membership.muted)
        if channel.is_private:
            return _by_policy(channel.room, channel, answer)
        return Verdict(channel.room, channel)

    def _seated(self, seat: Seat, verdict: Verdict) -> Seat:
        seat.use(verdict)
        self._topics.setdefault(seat.wanted.subtopic, {})[seat] = None
        self._watch(seat)
        return seat

    def _watch(self, seat: Seat) -> None:
        if seat.channel is not None:
            self._memberships.watch((seat.channel.id, seat.claims.sub), seat)

    def _unwatch(self, seat: Seat) -> None:
        if seat.channel is not None:
            self._memberships.unwatch((seat.channel.id, seat.claims.sub), seat)

    def _is_open(self, pair: Pair) -> bool:
        channel = self._registry.by_id(pair[0])
        return channel is not None and not channel.is_private

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
        if verdict is _Unknown.ROWS:
            self._asks.append(_Ask(seat, None))
            self._asked.set()
        elif verdict is _Unknown.POLICIES:
            self._authorize(_Ask(seat, None))
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
            code, text = why
            ended(code, text.format(seat.wanted.subtopic) if why is LOST else text)

    # -- asking the policies

    def _question(self, seat: Seat, *, writes: bool) -> Question:
        channel = self._registry.find(seat.wanted.subtopic)
        claims = seat.claims
        return Question(
            claims.role, claims.sub, claims.json, seat.headers, seat.wanted.subtopic,
            channel.id if channel is not None else None, writes,
        )  # fmt: skip

    def _authorize(self, ask: _Ask) -> None:
        seat = ask.seat
        is_again = ask.answered is None
        if is_again and not seat.by_policy and not self._authorizer.may_admit():
            self._end(seat, LOST)  # who was a member loses the seat with what takes the membership
            return
        if is_again and not seat.by_policy:
            seat.doubt()
        question = self._question(seat, writes=ask.writes)
        if question.channel_id is not None:
            self._memberships.pin((question.channel_id, question.sub))
        # A seat that nobody doubts can wait; one that is doubted still hears what it may have lost.
        self._authorizer.ask(question, partial(self._authorized, ask, question), patient=is_again and seat.is_settled)

    def _authorized(self, ask: _Ask, question: Question, answer: Answer) -> None:
        seat = ask.seat
        channel = self._registry.find(seat.wanted.subtopic)
        is_current = (channel.id if channel is not None else None) == question.channel_id
        verdict = self._judge(seat.wanted, ask.claims, answer)
        if ask.writes and isinstance(verdict, str) and isinstance(answer, Trouble):
            verdict = ": ".join(answer)  # who sends is told of a policy that fails
        if question.channel_id is not None:
            self._memberships.unpin((question.channel_id, question.sub))
        if ask.is_moot:
            return
        if ask.answered is None:
            self._use_answer(ask, answer, verdict if is_current else _Unknown.POLICIES)
        elif not is_current or isinstance(verdict, _Unknown):
            self._try(ask)
        else:
            ask.answered(verdict if isinstance(verdict, str) else self._seated(seat, verdict))

    def _use_answer(self, ask: _Ask, answer: Answer, verdict: Verdict | str | _Unknown) -> None:
        seat = ask.seat
        if isinstance(verdict, _Unknown):
            self._rejudge(seat)
        elif isinstance(verdict, Verdict) or not isinstance(answer, Trouble) or answer.code == POLICY_ERROR:
            self._use(seat, verdict)
        elif seat.is_settled:
            self._put_off(ask)
        else:
            self._end(seat, answer)

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
        self._memberships.forget_idle()
        pairs = list(self._memberships)
        registry, snapshot = await self._rows.channels()
        members = None
        if pairs:
            members = await self._rows.members(pairs, ())
        for change in self._recent.since(snapshot, CHANNELS, self._server_start):
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
        self._memberships.rest(pairs)

    def _know(self, loaded: LoadedMembers) -> None:
        """Take over an answer, with what the WAL has brought since. Seats are judged by the caller."""
        members = dict(loaded.members)
        for change in self._recent.since(loaded.snapshot, MEMBERS, self._server_start):
            update(members, change)
        self._memberships.know(members, loaded.snapshot)

    def _put_off(self, ask: _Ask) -> None:
        """Judge a seat again once the database may answer."""
        self._later.append(ask)
        if self._later_due == math.inf:
            self._later_due = trio.current_time() + RETRY_SECONDS
            self._asked.set()

    async def _answer_forever(self) -> None:
        while True:
            with trio.move_on_at(self._later_due):
                await self._asked.wait()
            self._asked = trio.Event()
            asks, self._asks = self._asks[:BATCH_MAX], self._asks[BATCH_MAX:]
            if self._asks:
                self._asked.set()
            if trio.current_time() >= self._later_due:
                asks += self._later
                self._later, self._later_due = [], math.inf
            asks = [ask for ask in asks if not ask.is_moot]
            if asks:
                await self._answer(asks)

    async def _answer(self, asks: list[_Ask]) -> None:
        channels = [(ask, self._registry.find(ask.wanted.subtopic)) for ask in asks]
        pairs = {(channel.id, ask.claims.sub) for ask, channel in channels if channel is not None and ask.claims.sub}
        pairs = {pair for pair in pairs if not self._memberships.knows(pair)}
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
            if ask.answered is None:
                self._judge_again(ask)
            else:
                self._reply(ask, is_known=loaded is not None)
        self._memberships.rest(pairs)
        if len(self._roles) > ROLES_MAX:
            self._roles.clear()

    def _judge_again(self, ask: _Ask) -> None:
        if ask.is_moot:
            return
        seat = ask.seat
        verdict = self._judge(seat.wanted, seat.claims)
        if verdict is _Unknown.POLICIES:
            self._authorize(ask)
        elif verdict is not _Unknown.ROWS:
            self._use(seat, verdict)
        elif seat.room.private and not seat.is_settled:
            self._end(seat, UNREACHED)  # somebody else's token, and nobody knows whether they may
        else:
            self._put_off(ask)

    def _reply(self, ask: _Ask, *, is_known: bool) -> None:
        assert ask.answered is not None
        verdict = self._judge(ask.wanted, ask.claims)
        if verdict is not _Unknown.ROWS or (is_known and trio.current_time() < ask.deadline):
            self._try(ask)  # once more where the topic has become another channel's meanwhile
            return
        channel = self._registry.find(ask.wanted.subtopic)
        if channel is None or channel.is_private:
            ask.answered(UNABLE)
            return
        seat = self._seated(ask.seat, Verdict(channel.room, channel))
        self._put_off(_Ask(seat, None))
        ask.answered(seat)


def _by_policy(room: RoomKey, channel: RegisteredChannel | None, answer: Answer | None) -> Verdict | str | _Unknown:
    if answer is None:
        return _Unknown.POLICIES
    if isinstance(answer, Trouble):
        # A policy that fails is nobody's business but the operator's, for whoever only wants to listen.
        return FORBIDDEN.format(room.subtopic) if answer.code == POLICY_ERROR else ": ".join(answer)
    if isinstance(answer, Writing):
        return Verdict(room, channel, reading=READS_NOTHING, writing=answer, by_policy=True)
    if not answer.any:
        return FORBIDDEN.format(room.subtopic)
    return Verdict(room, channel, reading=answer, writing=None, by_policy=True)


def _report(channel: RegisteredChannel) -> None:
    for event, fault in channel.schemas.faults.items():
        log.warning(CHANNEL_FAULTY, channel=channel.slug, event=event, error=fault)
