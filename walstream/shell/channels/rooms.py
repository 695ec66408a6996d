"""Rooms: who is in which, what they send each other, and what goes to other nodes and into the history.

Joins come admitted by their session and are judged by the ``directory``; frames leave through ``delivery.groups``;
presence is ``presences``. Nothing here waits but the tasks of ``run``.
"""

from __future__ import annotations

import base64
import itertools
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

import msgspec
import trio

from walstream.auth.tokens import Claims
from walstream.bus.items import (
    AskState,
    BroadcastItem,
    ChannelsChanged,
    Deaf,
    Hello,
    Item,
    PresenceItem,
    StateItem,
    StoredItem,
)
from walstream.channel.broadcast import Frames, frames, text_frames
from walstream.channel.effects import JoinRequest
from walstream.channel.join import Replay
from walstream.channel.permission import BUSY, Trouble, push_code
from walstream.channel.pushes import BroadcastPush, ModerationPush, PresencePush, Push
from walstream.errors import WalstreamError
from walstream.model import Transaction
from walstream.protocol.phoenix import ClientMessage
from walstream.rooms import Broadcast, PresenceEntry, RoomKey
from walstream.shell.channels.audiences import Audiences
from walstream.shell.channels.bus import Bus
from walstream.shell.channels.directory import Directory
from walstream.shell.channels.guests import Guest, RoomOwner
from walstream.shell.channels.message_store import MessageStore
from walstream.shell.channels.moderation import Denied, Moderation
from walstream.shell.channels.presences import Mirror, Presences
from walstream.shell.channels.relay import Relay
from walstream.shell.channels.seam import Live, Seam
from walstream.shell.channels.seats import Seat
from walstream.shell.delivery.groups import GroupMember

REPLAY_SECONDS: Final = 5.0
"""How long a join waits for its replay: clients give up after ten."""

SEAMS_SECONDS: Final = 1.0
"""Between looks for replays that are over."""

SEAM_SECONDS_MAX: Final = 600.0
"""A node that stands by does not read the WAL, and nothing tells it that a replay is over."""

LOOKUP_MAX: Final = 500

EVENT_MAX: Final = 1000
"""Characters of an event's name."""

REPLAY_OF_PUBLIC: Final = "UnableToReplayMessages: Replay is not allowed for public channels"
REPLAY_FAILED: Final = "UnableToReplayMessages: Realtime was unable to replay messages"
TRACK_TOO_LARGE: Final = "Track message size exceeded"
UNAUTHORIZED: Final = "unauthorized"
TOO_LARGE: Final = "payload_size_exceeded"
INVALID: Final = "payload_invalid"

_CODES: Final = {"Unauthorized": UNAUTHORIZED, "PrivateOnly": "private_only"}
_encode = msgspec.json.Encoder().encode


class Rooms:
    """All rooms of a node: the ``BusListener``, and what connections, REST and the WAL hand messages to.

    Every method but ``publish`` and ``run`` is synchronous; none raises.
    """

    def __init__(
        self,
        *,
        bus: Bus,
        directory: Directory,
        store: MessageStore,
        moderation: Moderation,
        mirror: Mirror,
        relay: Relay,
        max_message_bytes: int,
    ) -> None:
        self._bus = bus
        self._directory = directory
        self._store = store
        self._moderation = moderation
        self._relay = relay
        self._max_bytes = max_message_bytes
        self.audiences = Audiences()
        self.groups = self.audiences.groups
        self._guests: dict[tuple[RoomOwner, int], Guest] = {}
        self._seams_due = 0.0
        self._seams: dict[RoomKey, list[Guest]] = {}  # to whom some of what comes may have been replayed
        self.presences = Presences(bus, mirror, tell=self._tell_presence, size=self.audiences.size)
        self._lookups: dict[str, None] = {}
        self._lookup_wanted = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._numbers = itertools.count()
        self._boot = base64.urlsafe_b64encode(os.urandom(6)).decode("ascii")
        self.broadcasts_in = self.broadcasts_refused = 0
        bus.listen(self)

    def __len__(self) -> int:
        """Rooms with somebody in them."""
        return len(self.audiences)

    # -- joins

    def ask(
        self, owner: RoomOwner, request: JoinRequest, admitted: Callable[[], None], refused: Callable[[str], None]
    ) -> None:
        """May this client be in the room? One of the two is called, now or later, unless it is left before."""
        guest = Guest(owner, request)
        self._guests[owner, request.serial] = guest
        room = RoomKey(request.name.subtopic, request.private)
        answered = partial(self._judged, guest, request.broadcast.replay, admitted, refused)
        seat = Seat(
            room, request.claims, headers=owner.headers, ended=partial(owner.end, request.serial),
            changed=partial(self._reading_changed, guest),
        )  # fmt: skip
        self._directory.ask(seat, answered)

    def _is_here(self, guest: Guest) -> bool:
        return self._guests.get((guest.owner, guest.serial)) is guest

    def _judged(
        self,
        guest: Guest,
        replay: Replay | None,
        admitted: Callable[[], None],
        refused: Callable[[str], None],
        verdict: Seat | str,
    ) -> None:
        if not self._is_here(guest):
            if isinstance(verdict, Seat):
                self._directory.leave(verdict)
            return
        if isinstance(verdict, str):
            self._refuse(guest, refused, verdict)
            return
        guest.seat = verdict
        if replay is None or not verdict.reading.broadcast:
            admitted()
        elif verdict.channel is None and not verdict.room.private:
            self._refuse(guest, refused, REPLAY_OF_PUBLIC)
        elif self._nursery is not None:
            guest.seam = Seam(trio.current_time())
            self._seams.setdefault(verdict.room, []).append(guest)
            self._nursery.start_soon(self._fetch_replay, guest, verdict, replay, admitted, refused)

    def _refuse(self, guest: Guest, refused: Callable[[str], None], reason: str) -> None:
        self.leave(guest.owner, guest.serial)
        refused(reason)

    async def _fetch_replay(
        self, guest: Guest, seat: Seat, replay: Replay, admitted: Callable[[], None], refused: Callable[[str], None]
    ) -> None:
        try:
            with trio.fail_after(REPLAY_SECONDS):
                found = await self._store.replay(seat.room, replay.since, replay.limit)
        except (WalstreamError, trio.TooSlowError):
            if self._is_here(guest):
                self._refuse(guest, refused, REPLAY_FAILED)
            return
        if not self._is_here(guest):
            return
        assert guest.seam is not None
        guest.seam.answer(found)
        admitted()

    def enter(self, owner: RoomOwner, serial: int) -> None:
        """The client has its ok reply: it is in the room from here on, and gets what was there before it."""
        guest = self._guests.get((owner, serial))
        if guest is None or guest.seat is None:
            return
        guest.reading = guest.seat.reading
        guest.member = self.audiences.join(guest.seat.room, owner.outbox, guest.ear, guest.reading)
        if guest.seam is not None:
            for broadcast, replayed in guest.seam.messages():
                _push(guest, frames(broadcast, replayed=replayed))
        channel = guest.seat.channel
        tracks_itself = channel is not None and channel.type == "presence"
        if guest.hears_presence or tracks_itself:
            self._show_presence(guest, guest.seat)
        if tracks_itself:
            self._track(guest, _encode({"user_id": guest.seat.user} if guest.seat.user else {}))

    def leave(self, owner: RoomOwner, serial: int) -> None:
        """The channel has gone, whatever state its join is in."""
        guest = self._guests.pop((owner, serial), None)
        if guest is None or guest.seat is None:
            return
        if guest.seam is not None:
            self._end_seam(guest, guest.seat.room)
        if guest.entry is not None:
            self._untrack(guest, guest.entry)
        if guest.member is not None:
            self.audiences.leave(guest.seat.room, guest.member)
            guest.member = None
        self._directory.leave(guest.seat)

    def _reading_changed(self, guest: Guest) -> None:
        """Policies let a member hear something else now."""
        seat, member = guest.seat, guest.member
        if seat is None or member is None:
            return
        heard_presence, guest.reading = guest.reading.presence, seat.reading
        self.audiences.leave(seat.room, member)
        guest.member = self.audiences.join(seat.room, guest.owner.outbox, guest.ear, guest.reading)
        if guest.hears_presence and not heard_presence:
            self._show_presence(guest, seat)

    def _show_presence(self, guest: Guest, seat: Seat) -> None:
        guest.hears_presence = True
        if seat.reading.presence:
            guest.owner.push(guest.serial, "presence_state", self.presences.state(seat.room))

    def _end_seam(self, guest: Guest, room: RoomKey) -> None:
        guest.seam = None
        guests = self._seams[room]
        guests.remove(guest)
        if not guests:
            del self._seams[room]

    def refreshed(self, owner: RoomOwner, serial: int, claims: Claims) -> None:
        """A joined topic has new claims: judge again whether it may stay."""
        guest = self._guests.get((owner, serial))
        if guest is not None and guest.seat is not None:
            self._directory.refreshed(guest.seat, claims)

    # -- from clients

    def pushed(self, owner: RoomOwner, serial: int, push: Push, asked: ClientMessage | None) -> None:
        """A joined client pushed something. ``asked``: the message to answer, None where nobody waits."""
        guest = self._guests.get((owner, serial))
        if guest is None or guest.seat is None:
            return
        if guest.entry is not None:
            self.presences.touched(guest.entry.entry)
        if isinstance(push, ModerationPush):
            if self._nursery is not None:
                self._nursery.start_soon(self._moderate, guest, guest.seat, push, asked)
        elif guest.held or guest.seat.writing is None:
            self._hold(guest, guest.seat, push, asked)
        else:
            self._pushed(guest, guest.seat, push, asked)

    def _pushed(
        self, guest: Guest, seat: Seat, push: BroadcastPush | PresencePush, asked: ClientMessage | None
    ) -> None:
        if isinstance(push, BroadcastPush):
            self._broadcast(guest, seat, push, asked)
        else:
            self._presence(guest, seat, push, asked)

    def _hold(self, guest: Guest, seat: Seat, push: BroadcastPush | PresencePush, asked: ClientMessage | None) -> None:
        """Keep a push, and those after it, until policies have been asked about the first."""
        size = len(push.payload) + len(push.whole) if isinstance(push, BroadcastPush) else len(push.meta or b"")
        if guest.held and guest.held_bytes + size > self._max_bytes:
            self._deny(guest, push, asked, push_code(BUSY))
            return
        guest.held.append((push, asked))
        guest.held_bytes += size
        if len(guest.held) == 1:
            self._directory.ask_writing(seat, partial(self._writable, guest, seat))

    def _writable(self, guest: Guest, seat: Seat, code: str) -> None:
        held, guest.held, guest.held_bytes = guest.held, [], 0
        for push, asked in held:
            if not self._is_here(guest):
                return
            if code:
                self._deny(guest, push, asked, code)
            elif guest.held or seat.writing is None:
                self._hold(guest, seat, push, asked)  # it has another token by now
            else:
                self._pushed(guest, seat, push, asked)
        self.groups.wake.set()

    def _deny(self, guest: Guest, push: BroadcastPush | PresencePush, asked: ClientMessage | None, code: str) -> None:
        self.broadcasts_refused += isinstance(push, BroadcastPush)
        if asked is not None and isinstance(push, BroadcastPush):
            _answer(guest.owner, asked, code)
        elif asked is not None:
            guest.owner.answer(asked, "error")

    def _broadcast(self, guest: Guest, seat: Seat, push: BroadcastPush, asked: ClientMessage | None) -> None:
        self.broadcasts_in += 1
        broadcast = Broadcast(
            room=seat.room, event=push.event, payload=push.payload, binary=push.binary, whole=push.whole
        )

        def done(outcome: Broadcast | str) -> None:
            if isinstance(outcome, str):
                self.broadcasts_refused += 1
            else:
                self._deliver(outcome, guest)
            if asked is not None:
                _answer(guest.owner, asked, outcome)

        self._send(seat, broadcast, done, persist=push.persist)

    def _send(
        self, seat: Seat, broadcast: Broadcast, done: Callable[[Broadcast | str], None], *, persist: bool | int
    ) -> None:
        """Have a message stored if it is to be, and sent to other nodes. ``done`` gets it, or why not, now or later."""
        channel = seat.channel
        is_kept = (channel is not None and channel.persist) or bool(persist and seat.room.private)
        if not seat.may_send or (is_kept and persist and not seat.may_store):
            done(UNAUTHORIZED)
            return
        if max(len(broadcast.payload), len(broadcast.whole)) > self._max_bytes:
            done(TOO_LARGE)
            return
        if len(broadcast.event) > EVENT_MAX:
            done(f"{INVALID}: an event has at most {EVENT_MAX} characters")
            return
        if channel is not None:
            refusal = channel.refusal(broadcast.event, broadcast.payload, binary=broadcast.binary)
            if refusal:
                done(f"{INVALID}: {refusal}")
                return
        if is_kept:
            self._store.append(
                msgspec.structs.replace(broadcast, whole=b""),
                done,
                channel_id=channel.id if channel is not None else None,
                sender=seat.user,
                ttl_seconds=persist if persist is not True and persist else None,
            )
            return
        self._tell_others(broadcast)
        done(broadcast)

    def _tell_others(self, broadcast: Broadcast) -> None:
        """Hand a message that is not stored to the other nodes, if there are any."""
        if self._bus.peers:
            # They send on what the client wrote, and need no second copy of it.
            slim = msgspec.structs.replace(broadcast, payload=b"") if broadcast.whole else broadcast
            self._bus.publish(BroadcastItem(slim))

    async def publish(
        self, claims: Claims, broadcast: Broadcast, *, persist: bool | int = False, headers: str = "{}"
    ) -> str:
        """A message that comes without a socket. Returns "" once it is on its way, stored if it is to be; else a code.

        ``headers``: the request's, for policies: JSON object text. Cancelled, it may still be sent.
        """
        return (await self.publish_all(claims, [broadcast], persist=persist, headers=headers))[0]

    async def publish_all(
        self, claims: Claims, broadcasts: Sequence[Broadcast], *, persist: bool | int = False, headers: str = "{}"
    ) -> list[str]:
        """As ``publish``, for messages to one room, at least one, in their order: what is stored shares commits."""
        seat = await self._directory.seat(Seat(broadcasts[0].room, claims, headers=headers), writes=True)
        if isinstance(seat, str):
            return [_refused(seat)] * len(broadcasts)
        codes = [""] * len(broadcasts)
        waiting = set(range(len(broadcasts)))
        sent = trio.Event()

        def done(number: int, result: Broadcast | str) -> None:
            if isinstance(result, Broadcast):
                self._deliver(result, None)
            else:
                codes[number] = result
            waiting.discard(number)
            if not waiting:
                sent.set()

        try:
            for number, broadcast in enumerate(broadcasts):
                moved = msgspec.structs.replace(broadcast, room=seat.room)
                self._send(seat, moved, partial(done, number), persist=persist)
            await sent.wait()
        finally:
            self._directory.leave(seat)
        return codes

    async def _moderate(self, guest: Guest, seat: Seat, push: ModerationPush, asked: ClientMessage | None) -> None:
        done = await self._moderation.perform(seat, push.action, push.params)
        if isinstance(done, Denied):
            if asked is not None:
                guest.owner.answer(asked, "error", _encode({"error": done.error, "reason": done.message}))
            return
        if asked is not None:
            guest.owner.answer(asked, "ok", _encode(done.response))
        for event, payload in done.announce:
            broadcast = Broadcast(room=seat.room, event=event, payload=_encode(payload))
            self._tell_others(broadcast)
            self._deliver(broadcast, None)

    # -- delivering

    def _deliver(self, broadcast: Broadcast, sender: Guest | None, transaction: Transaction | None = None) -> None:
        """To everybody here but the sender, if it did not ask for its own. ``transaction``: see ``Live``."""
        room = broadcast.room
        without: list[GroupMember] = []
        if sender is not None and not sender.own and sender.member is not None:
            without.append(sender.member)
        if room in self._seams:
            without += self._had_it(Live(broadcast, transaction), room)
        self.audiences.say(room, frames(broadcast), without)

    def _had_it(self, live: Live, room: RoomKey) -> Iterator[GroupMember]:
        """Members to whom it was replayed, or for whom it is too old. Keeps it for those who are not inside yet."""
        for guest in list(self._seams[room]):
            seam = guest.seam
            assert seam is not None
            if guest.member is None:
                seam.keep(live)
            elif seam.had(live):
                yield guest.member

    def passed(self, transaction: Transaction) -> None:
        """The WAL has been read up to this commit."""
        if self._seams and trio.current_time() >= self._seams_due:
            self._end_seams(transaction)

    def _end_seams(self, transaction: Transaction | None) -> None:
        """Forget replays that nothing old can follow any more."""
        now = trio.current_time()
        self._seams_due = now + SEAMS_SECONDS
        for room, guests in list(self._seams.items()):
            for guest in list(guests):
                seam = guest.seam
                if seam is None or guest.member is None:
                    continue
                if seam.began < now - SEAM_SECONDS_MAX or (transaction is not None and seam.is_over(transaction)):
                    self._end_seam(guest, room)

    def _tell_presence(self, room: RoomKey, diff: bytes) -> None:
        self.audiences.tell_presence(room, text_frames(room, "presence_diff", diff))

    def stored(self, broadcast: Broadcast, transaction: Transaction | None) -> None:
        """A stored message that nobody here has delivered yet. ``transaction``: where it comes right out of the WAL."""
        self._relay.message(broadcast.id)
        self._deliver(broadcast, None, transaction)

    # -- presence

    def _presence(self, guest: Guest, seat: Seat, push: PresencePush, asked: ClientMessage | None) -> None:
        owner, serial = guest.owner, guest.serial
        if push.meta is None:
            if guest.entry is not None:
                self._untrack(guest, guest.entry)
        elif not seat.may_track:
            self._deny(guest, push, asked, UNAUTHORIZED)
            return
        elif len(push.meta) > self._max_bytes:
            owner.end(serial, "TrackMessageSizeExceeded", TRACK_TOO_LARGE)
            return
        else:
            if not guest.hears_presence:
                self._show_presence(guest, seat)
            self._track(guest, push.meta)
        if asked is not None:
            owner.answer(asked, "ok")

    def _track(self, guest: Guest, meta: bytes) -> None:
        seat, known = guest.seat, guest.entry
        assert seat is not None
        if known is not None and known.meta == meta:
            return
        if not guest.key:
            guest.key = (seat.user if seat.channel is not None and seat.channel.type == "presence" else None) or str(
                uuid.uuid4()
            )
        number = next(self._numbers)
        ref = self._boot + base64.urlsafe_b64encode(number.to_bytes(6, "big")).decode("ascii")
        entry = known.entry if known is not None else f"{number:x}"
        guest.entry = PresenceEntry(seat.room, entry, guest.key, ref, meta)
        self.presences.changed(guest.entry, seat.user)
        self.groups.wake.set()

    def _untrack(self, guest: Guest, entry: PresenceEntry) -> None:
        guest.entry = None
        assert guest.seat is not None
        self.presences.changed(msgspec.structs.replace(entry, meta=None), guest.seat.user)
        self.groups.wake.set()

    def outside(self, entries: Sequence[PresenceEntry]) -> None:
        """Everything that SQL and the command line track now."""
        self.presences.outside(entries)
        self.groups.wake.set()

    # -- from other nodes

    def item(self, node: str, item: Item) -> None:
        """See ``BusListener``. ``node``: "" for what carries no seal."""
        match item:
            case BroadcastItem(broadcast):
                if broadcast.seq is None or not self._store.delivered(broadcast.id):
                    self._deliver(broadcast, None)
            case PresenceItem(entries):
                self.presences.heard(node, entries)
            case StateItem():
                self.presences.heard_state(node, item)
            case AskState():
                self.presences.tell_state()
            case StoredItem(ids):
                self._lookups.update(dict.fromkeys(ids))
                self._lookup_wanted.set()
            case ChannelsChanged():
                self._directory.changed()
            case Deaf():
                self._relay.heard_deaf()
            case Hello():
                self.presences.ask()  # for what it tracks already; it asks for ours by itself
            case _:
                pass
        self.groups.wake.set()

    def gap(self) -> None:
        """See ``BusListener``: others tell their state again."""
        self.presences.ask()
        self.groups.wake.set()

    def peer_lost(self, node: str) -> None:
        """See ``BusListener``."""
        self.presences.lost(node)
        self.groups.wake.set()

    # -- tasks

    async def run(self) -> None:
        """Write what was pushed, once per round of the scheduler, and wait for the database where a client does."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._look_up)
            due: float | None = None
            while True:
                with trio.move_on_at(due if due is not None else trio.current_time() + 60.0):
                    await self.groups.wake.wait()
                due = self.presences.commit(trio.current_time())
                if self._seams and trio.current_time() >= self._seams_due + SEAM_SECONDS_MAX / 10:
                    self._end_seams(None)
                await self.groups.flush()

    async def _look_up(self) -> None:
        """Fetch stored messages that only their ids are known of."""
        while True:
            await self._lookup_wanted.wait()
            self._lookup_wanted = trio.Event()
            while self._lookups:
                ids = list(self._lookups)[:LOOKUP_MAX]
                for id_ in ids:
                    del self._lookups[id_]
                try:
                    found = await self._store.fetch(ids)
                except WalstreamError:
                    continue  # the WAL brings them
                for broadcast in found:
                    if not self._store.delivered(broadcast.id):
                        self._deliver(broadcast, None)


def _refused(reason: str) -> str:
    """The code of a refused seat, for whoever wanted to send."""
    code, _, text = reason.partition(": ")
    return _CODES.get(code) or push_code(Trouble(code, text))


def _push(guest: Guest, encoded: Frames) -> None:
    if encoded[guest.ear]:
        guest.owner.outbox.push(encoded[guest.ear])


def _answer(owner: RoomOwner, asked: ClientMessage, outcome: Broadcast | str) -> None:
    if isinstance(outcome, str):
        code, _, reason = outcome.partition(": ")
        owner.answer(asked, "error", _encode({"error": code, "reason": reason} if reason else {"error": code}))
    elif outcome.id:
        owner.answer(asked, "ok", _encode({"id": outcome.id}))
    else:
        owner.answer(asked, "ok")
