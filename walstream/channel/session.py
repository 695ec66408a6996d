"""One connection's state machine: what its client sends, and what the daemon answers to its joins, become effects.

Plain values in, ``effects`` out; what a join's payload says is read in ``join``, and nothing here waits or looks at a
clock. Times are seconds since the epoch, since tokens name theirs so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from walstream.auth.tokens import Claims, ExpiredTokenError, Verifier
from walstream.channel.channel import REFRESH_SECONDS, Channel, State
from walstream.channel.effects import (
    Accepted,
    Close,
    Complaint,
    Effect,
    Entered,
    JoinOutcome,
    JoinRequest,
    JoinRequested,
    JoinSettled,
    Left,
    Pushed,
    Refused,
    Send,
    TokenRefreshed,
)
from walstream.channel.join import parse_join
from walstream.channel.pushes import Misread, read_broadcast, read_moderation, read_presence
from walstream.channel.rate import Bucket
from walstream.channel.topic import Topic, parse_topic
from walstream.errors import Invariant, ProtocolError, TokenError
from walstream.protocol.binary import Encoding
from walstream.protocol.phoenix import VSN_2, ClientMessage, Ref, codec

PHOENIX_TOPIC: Final = "phoenix"
GOING_AWAY: Final = 1001

REF_MAX: Final = 255
"""Characters of a ref, which is kept as long as its channel lives; clients count from 1."""

TOPIC_TEXT_MAX: Final = 4096
"""Characters of a topic on connections without binary frames, whose bound is lower."""

JOIN_PATIENCE_SECONDS: Final = 5.0
"""How long a join above the rate may wait for its turn: half of what clients wait for the reply."""

MESSAGE_BURST_SECONDS: Final = 10.0
"""Seconds' worth of messages that may come at once: clients send what they buffered when they connect again."""

RESTARTING: Final = "RealtimeRestarting: Realtime is restarting, please standby"
TOO_MANY_JOINS: Final = "ClientJoinRateLimitReached: Too many joins per second"
TOO_MANY_CHANNELS: Final = "ChannelRateLimitReached: Too many channels"
TOO_MANY_USERS: Final = "ConnectionRateLimitReached: Too many connected users"
NO_TOPIC_NAME: Final = "TopicNameRequired: You must provide a topic name"
TOPIC_TOO_LONG: Final = "TopicNameTooLong: A topic has at most {} bytes, its prefix included"
WAITED_TOO_LONG: Final = (
    "PostgresChangesSubscribeTimeout: Timed out after {}ms waiting for the postgres_changes subscription"
)
RECOVERABLE: Final = frozenset(
    {
        "ChannelChanged", "ClientPresenceRateLimitReached", "ConnectionRateLimitReached", "IncreaseConnectionPool",
        "JwtSignerError", "MessagePerSecondRateLimitReached", "QueryCanceled", "UnableToConnectToProject",
    }
)  # fmt: skip
"""Ends after which another join may do: the client is told so by ``phx_error``, and official ones join again."""

DISCONNECT: Final = b'{"extension":"system","status":"ok","message":"Server requested disconnect"}'

_UNMATCHED: Final = b'{"reason":"unmatched topic"}'
_OPAQUE_KEY: Final = "sb_"
_READERS: Final = {"broadcast": read_broadcast, "presence": read_presence, "moderation": read_moderation}
_encode = msgspec.json.Encoder().encode


class SessionLimits(msgspec.Struct, frozen=True):
    """Bounds of one connection; rates per second, 0 for none."""

    max_channels: int = 100
    max_joins_per_second: float = 50
    max_messages_per_second: float = 200
    max_presence_calls: int = 100  # per channel and presence_window_seconds; 0 for no bound
    presence_window_seconds: float = 30.0


class Session:
    """The channels of one connection. No method raises for anything that a client can send.

    ``token`` and ``claims``: of the connection, for joins that bring no token of their own. Effects are to be performed
    in order and at once. ``deadline`` says when ``tick`` is due next; it may change with every call.
    """

    __slots__ = (
        "_channels", "_claims", "_codec", "_deadline", "_deadline_known", "_draining", "_ended", "_joins", "_limits",
        "_messages", "_node_joins", "_serial", "_serials", "_token", "_verifier", "vsn",
    )  # fmt: skip

    def __init__(
        self,
        vsn: str,
        claims: Claims,
        verifier: Verifier,
        limits: SessionLimits,
        now: float,
        *,
        token: str = "",
        node_joins: Bucket | None = None,
    ) -> None:
        """``node_joins``: what the joins of all connections together are counted in."""
        self.vsn = vsn
        self._codec = codec(vsn)
        self._claims = claims
        self._token = token
        self._verifier = verifier
        self._limits = limits
        self._joins = Bucket(limits.max_joins_per_second, limits.max_channels, now)
        self._node_joins = node_joins
        rate = limits.max_messages_per_second
        self._messages = Bucket(rate, rate * MESSAGE_BURST_SECONDS, now)
        self._channels: dict[str, Channel] = {}  # by topic, in the order of their joins
        self._serials: dict[int, Channel] = {}
        self._serial = 0
        self._draining = False
        self._ended = False
        self._deadline: float | None = None
        self._deadline_known = True

    def __len__(self) -> int:
        """Topics joined or being joined."""
        return len(self._channels)

    @property
    def user(self) -> str:
        """Whom the connection's token names, or else the first join's that names somebody; "" for nobody.

        Official clients connect with a key that all of them share, and bring the user's token with each join.
        """
        return self._claims.sub or next((c.claims.sub for c in self._channels.values() if c.claims.sub), "")

    @property
    def deadline(self) -> float | None:
        """When ``tick`` is due; None: not before something else happens."""
        if not self._deadline_known:
            deadlines = (channel.deadline for channel in self._channels.values())
            self._deadline = min((time for time in deadlines if time is not None), default=None)
            self._deadline_known = True
        return self._deadline

    # -- from the client

    def receive(self, data: str | bytes, now: float) -> list[Effect]:
        """One whole message of the client."""
        if self._ended:
            return []
        try:
            message = self._codec.decode(data)
            _check_refs(message)
        except ProtocolError as error:
            return [Complaint("MalformedWebSocketMessage", error.message)]
        if message.topic == PHOENIX_TOPIC and message.event == "heartbeat":
            return [Send(self._codec.encode_reply(message, "ok"), urgent=True)]
        if message.event == "phx_join":
            return self._join(message, now)
        channel = self._channels.get(message.topic)
        if channel is not None and message.event == "phx_leave":
            return self._leave(channel, message)
        if self._messages.take(now) is None:
            return self._too_many_messages(channel, now)
        if channel is not None:
            return self._push(channel, message, now)
        if message.event == "phx_leave":
            return [Send(self._codec.encode_reply(message, "ok"))]
        return [self._unmatched(message)]

    def _push(self, channel: Channel, message: ClientMessage, now: float) -> list[Effect]:
        # A stale or missing join ref does not matter here, as with the reference server: clients rely on it.
        if message.event == "access_token":
            return self._access_token(channel, message, now)
        read = _READERS.get(message.event)
        if read is None:
            return []
        if channel.state is not State.JOINED:
            return [self._unmatched(message)]
        if message.event == "presence" and not self._may_call_presence(channel, now):
            complaint = Complaint("ClientPresenceRateLimitReached", "too many presence calls")
            text = "Client presence rate limit exceeded"
            return [complaint, *self._end(channel, "ClientPresenceRateLimitReached", text, now)]
        asked = message if channel.ack or message.event != "broadcast" else None
        push = read(message)
        if isinstance(push, Misread):
            return self.answer(asked, push.status, push.response) if asked is not None else []
        return [Pushed(channel.serial, push, asked)]

    def _may_call_presence(self, channel: Channel, now: float) -> bool:
        calls, seconds = self._limits.max_presence_calls, self._limits.presence_window_seconds
        if channel.presence_calls is None:
            channel.presence_calls = Bucket(calls / seconds, calls, now)
        return channel.presence_calls.take(now) is not None

    def _unmatched(self, message: ClientMessage) -> Send:
        nobodys = msgspec.structs.replace(message, join_ref=None)
        return Send(self._codec.encode_reply(nobodys, "error", _UNMATCHED))

    def _too_many_messages(self, channel: Channel | None, now: float) -> list[Effect]:
        if channel is None:
            return [Complaint("MessagePerSecondRateLimitReached", "messages to topics that are not joined")]
        complaint = Complaint("MessagePerSecondRateLimitReached", "too many messages per second")
        return [complaint, *self._end(channel, "MessagePerSecondRateLimitReached", "Too many messages per second", now)]

    # -- joining

    def _join(self, message: ClientMessage, now: float) -> list[Effect]:
        wait = self._joins.take(now, patience=JOIN_PATIENCE_SECONDS)
        if wait is None:
            self._ended = True  # only a loop joins so often, and each reply would keep it going
            return [*self._refuse(message, TOO_MANY_JOINS), *self.leave_all(), Close(GOING_AWAY, "too many joins")]
        topic = parse_topic(message.topic)
        if topic is None:
            return [self._unmatched(message)]
        effects: list[Effect] = []
        old = self._channels.get(message.topic)
        if old is not None:
            effects += self._forget(old)
            effects.append(self._close_frame(old))
        problem = self._problem(topic)
        node_wait = 0.0
        if not problem and self._node_joins is not None:
            turn = self._node_joins.take(now, patience=JOIN_PATIENCE_SECONDS)
            # Not this client's doing alone: it keeps its connection and tries again.
            problem, node_wait = (TOO_MANY_JOINS, 0.0) if turn is None else ("", turn)
        if problem:
            return effects + self._refuse(message, problem)
        wait = max(wait, node_wait)
        config = parse_join(topic, _json_payload(message))
        effects += [Complaint("InvalidJoinPayload", text) for text in config.complaints]
        try:
            token, claims = self._authenticate(config.token, now)
        except TokenError as error:
            return effects + self._refuse(message, f"{error.name}: {error.text}")
        if config.broadcast.replay_problem:
            return effects + self._refuse(message, f"UnableToReplayMessages: {config.broadcast.replay_problem}")
        self._serial += 1
        request = JoinRequest(self._serial, topic, message.join_ref, message.ref, claims, config)
        channel = Channel(request, token, now, now + wait)
        self._channels[message.topic] = self._serials[channel.serial] = channel
        self._deadline_known = False
        if not wait:
            effects += self._request(channel)
        return effects

    def _problem(self, topic: Topic) -> str:
        """Why nobody may join this topic now, whatever else the join says."""
        if self._draining:
            return RESTARTING
        if not topic.subtopic:
            return NO_TOPIC_NAME
        if self.vsn == VSN_2 and not topic.fits_binary_frames:
            return TOPIC_TOO_LONG.format(255)
        if len(topic.text) > TOPIC_TEXT_MAX:
            return TOPIC_TOO_LONG.format(TOPIC_TEXT_MAX)
        return TOO_MANY_CHANNELS if len(self._channels) >= self._limits.max_channels else ""

    def _authenticate(self, token: str | None, now: float) -> tuple[str, Claims]:
        """The token that a join goes by, and its claims. Raises TokenError."""
        if token is None or token == self._token or token.startswith(_OPAQUE_KEY):
            self._verifier.check(self._claims, now)
            return self._token, self._claims
        return token, self._verifier.verify(token, now)

    def _request(self, channel: Channel) -> list[Effect]:
        if channel.request is None:
            return []
        channel.state = State.ASKED
        # A token that came while the join waited for its turn is the one to judge it by.
        channel.request = msgspec.structs.replace(channel.request, claims=channel.claims)
        self._deadline_known = False
        return [JoinRequested(channel.request)]

    def _refuse(self, message: ClientMessage, reason: str, seconds: float = 0.0) -> list[Effect]:
        reply = self._codec.encode_reply(message, "error", _encode({"reason": reason}))
        return [Send(reply), JoinSettled(message.topic, "refused", reason, seconds, self._claims)]

    def is_joined(self, serial: int) -> bool:
        """Whether that join was accepted and its topic not left since."""
        channel = self._serials.get(serial)
        return channel is not None and channel.state is State.JOINED

    def join_ready(self, serial: int, outcome: JoinOutcome, now: float) -> list[Effect]:
        """Answer a join. Nothing for one that was left, or answered, meanwhile.

        A request whose client waits is refused by an ``Accepted`` with an error, and ``Left`` follows.
        Raises Invariant for ids that do not fit the request.
        """
        channel = self._serials.get(serial)
        if channel is None or channel.request is None or channel.state is not State.ASKED:
            return []
        request = channel.request
        if isinstance(outcome, Refused):
            return self._settle_badly(channel, outcome.reason, now)
        if outcome.status == "error" and request.wait_seconds and request.items:
            reason = f"RealtimeDisabledForConfiguration: {outcome.message}"
            return [*self._left(channel), *self._settle_badly(channel, reason, now)]
        if len(outcome.ids) != len(request.items) or not all(id_ > 0 for id_ in outcome.ids):
            raise Invariant(f"{len(outcome.ids)} ids for {len(request.items)} items")
        channel.state = State.JOINED
        channel.request = channel.wait_until = None
        self._deadline_known = False
        # Told by the next tick: whoever answers is not done with the join before this returns.
        channel.untold = channel.claims is not request.claims
        return self._welcome(channel, request, outcome, now)

    def _welcome(self, channel: Channel, request: JoinRequest, outcome: Accepted, now: float) -> list[Effect]:
        items = (item.echo(id_) for item, id_ in zip(request.config.echoed, outcome.ids, strict=False))
        response = b'{"postgres_changes":[%b]}' % b",".join(items)
        effects: list[Effect] = [Send(self._codec.encode_reply(_join_message(channel), "ok", response))]
        effects.append(Entered(channel.serial))
        if request.items and outcome.message:
            effects.append(self._system(channel, "postgres_changes", outcome.status, outcome.message))
        effects.append(JoinSettled(channel.topic.text, "ok", "", now - channel.requested_at))
        return effects

    def _settle_badly(
        self, channel: Channel, reason: str, now: float, result: Literal["refused", "failed"] = "refused"
    ) -> list[Effect]:
        self._drop(channel)
        reply = self._codec.encode_reply(_join_message(channel), "error", _encode({"reason": reason}))
        return [
            Send(reply),
            JoinSettled(channel.topic.text, result, reason, now - channel.requested_at, channel.claims),
        ]

    # -- joined channels, from the daemon

    def system(
        self,
        serial: int,
        status: Literal["ok", "error"],
        message: str,
        details: Mapping[str, str] | None = None,
    ) -> list[Effect]:
        """Tell a joined channel about its table changes; nothing for one that is not joined (any more).

        ``details``: further members of the frame.
        """
        channel = self._serials.get(serial)
        if channel is None or channel.state is not State.JOINED:
            return []
        return [self._system(channel, "postgres_changes", status, message, details)]

    def push(self, serial: int, event: str, payload: bytes) -> list[Effect]:
        """A frame to this socket's channel alone; nothing for one that is not joined. ``payload``: JSON text."""
        channel = self._serials.get(serial)
        if channel is None or channel.state is not State.JOINED:
            return []
        return [self._frame(channel, event, payload)]

    def answer(self, asked: ClientMessage, status: str, response: bytes = b"{}") -> list[Effect]:
        """The reply to a push, whatever has become of its channel. ``response``: JSON object text."""
        return [Send(self._codec.encode_reply(asked, status, response))]

    def end(self, serial: int, name: str, text: str, now: float) -> list[Effect]:
        """End a channel, joined or not, for a reason that the client is told. Where the reason passes (``RECOVERABLE``)
        its client joins again by itself.
        """
        channel = self._serials.get(serial)
        return self._end(channel, name, text, now) if channel is not None else []

    def recheck(self, now: float) -> list[Effect]:
        """More tokens are revoked than before: end what goes by one of them."""
        effects: list[Effect] = []
        for channel in list(self._channels.values()):
            try:
                self._verifier.check(channel.claims, now)
            except TokenError as error:
                effects += self._end_token(channel, error, now)
        return effects

    def drain(self) -> list[Effect]:
        """Tell every joined channel that the server is going away, and refuse all further joins."""
        self._draining = True
        joined = (channel for channel in self._channels.values() if channel.state is State.JOINED)
        return [self._frame(channel, "system", DISCONNECT) for channel in joined]

    def leave_all(self) -> list[Effect]:
        """The connection is gone, or about to be: every requested join is left, and nothing is sent."""
        self._ended = True
        effects: list[Effect] = []
        for channel in list(self._channels.values()):
            effects += self._forget(channel)
        return effects

    # -- time

    def tick(self, now: float) -> list[Effect]:
        """Do what is due: joins whose turn has come, tokens that were put off, tokens and waits that ended."""
        effects: list[Effect] = []
        for channel in list(self._channels.values()):
            due = channel.deadline
            if due is not None and due <= now:
                effects += self._tick(channel, now)
        self._deadline_known = False
        return effects

    def _tick(self, channel: Channel, now: float) -> list[Effect]:
        effects: list[Effect] = []
        expired = channel.claims.exp is not None and channel.claims.exp <= now
        if channel.held_token is not None and (expired or channel.refreshed_at + REFRESH_SECONDS <= now):
            effects += self._refresh(channel, channel.held_token, now)
            if channel.serial not in self._serials:
                return effects
        try:
            channel.claims.check(now)
        except ExpiredTokenError as error:
            return effects + self._end_token(channel, error, now)
        if channel.wait_until is not None and channel.wait_until <= now:
            waited = round((channel.wait_until - channel.requested_at) * 1000)
            effects += self._left(channel)
            return effects + self._settle_badly(channel, WAITED_TOO_LONG.format(waited), now, "failed")
        if channel.untold:
            channel.untold = False
            effects.append(TokenRefreshed(channel.topic.text, channel.join_ref, channel.serial, channel.claims))
        if channel.state is State.HELD and channel.turn_at <= now:
            effects += self._request(channel)
        return effects

    # -- tokens

    def _access_token(self, channel: Channel, message: ClientMessage, now: float) -> list[Effect]:
        try:
            payload = message.value()
        except ProtocolError:
            return []
        token = payload.get("access_token") if isinstance(payload, dict) else None
        newest = channel.held_token if channel.held_token is not None else channel.token
        if not isinstance(token, str) or token.startswith(_OPAQUE_KEY) or token == newest:
            return []
        since = now - channel.refreshed_at
        if 0 <= since < REFRESH_SECONDS and self._is_good(token, now):
            channel.held_token = token
            self._deadline_known = False
            return []
        return self._refresh(channel, token, now)

    def _is_good(self, token: str, now: float) -> bool:
        try:
            self._verifier.verify(token, now)
        except TokenError:
            return False
        return True

    def _refresh(self, channel: Channel, token: str, now: float) -> list[Effect]:
        channel.held_token = None
        self._deadline_known = False
        try:
            claims = self._verifier.verify(token, now)
        except TokenError as error:
            return self._end_token(channel, error, now)
        channel.token, channel.claims, channel.refreshed_at = token, claims, now
        if channel.state is not State.JOINED:
            return []  # told after the join is answered
        channel.untold = False
        return [TokenRefreshed(channel.topic.text, channel.join_ref, channel.serial, claims)]

    # -- ends

    def _leave(self, channel: Channel, message: ClientMessage) -> list[Effect]:
        if message.join_ref is not None and message.join_ref not in (channel.join_ref, channel.ref):
            return []  # about an earlier join of the topic, which has ended already
        effects = self._forget(channel)
        return [*effects, Send(self._codec.encode_reply(message, "ok")), self._close_frame(channel)]

    def _end(
        self, channel: Channel, name: str, text: str, now: float, *, is_recoverable: bool | None = None
    ) -> list[Effect]:
        """``is_recoverable``: by the name, unless given."""
        effects = self._left(channel)
        if channel.state is not State.JOINED:
            return effects + self._settle_badly(channel, f"{name}: {text}", now)
        self._drop(channel)
        event = "phx_error" if (name in RECOVERABLE if is_recoverable is None else is_recoverable) else "phx_close"
        return [*effects, self._system(channel, "system", "error", text), self._close_frame(channel, event)]

    def _end_token(self, channel: Channel, error: TokenError, now: float) -> list[Effect]:
        """A token that ended is followed by a new one; one that never was good is not."""
        recoverable = isinstance(error, ExpiredTokenError) or error.name in RECOVERABLE
        return self._end(channel, error.name, error.text, now, is_recoverable=recoverable)

    def _forget(self, channel: Channel) -> list[Effect]:
        effects = self._left(channel)
        self._drop(channel)
        return effects

    def _left(self, channel: Channel) -> list[Effect]:
        """First of a channel's last effects, so that what is due to it is sent before its goodbye."""
        if channel.state is State.HELD:
            return []
        return [Left(channel.topic.text, channel.join_ref, channel.serial)]

    def _drop(self, channel: Channel) -> None:
        del self._serials[channel.serial]
        del self._channels[channel.topic.text]
        self._deadline_known = False

    # -- frames

    def _frame(self, channel: Channel, event: str, payload: bytes) -> Send:
        return Send(self._codec.encode_push(channel.topic.text, event, payload, join_ref=channel.join_ref))

    def _close_frame(self, channel: Channel, event: str = "phx_close") -> Send:
        join_ref = channel.join_ref
        # Clients without join refs tell by this ref whether it is their present join that ended.
        ref = join_ref if join_ref is not None else channel.ref
        return Send(self._codec.encode_push(channel.topic.text, event, b"{}", join_ref=join_ref, ref=ref))

    def _system(
        self,
        channel: Channel,
        extension: str,
        status: str,
        message: str,
        details: Mapping[str, str] | None = None,
    ) -> Send:
        payload = {"extension": extension, "status": status, "message": message, "channel": channel.topic.subtopic}
        return self._frame(channel, "system", _encode({**payload, **(details or {})}))


def _join_message(channel: Channel) -> ClientMessage:
    return ClientMessage(channel.topic.text, "phx_join", ref=channel.ref, join_ref=channel.join_ref)


def _json_payload(message: ClientMessage) -> bytes:
    """The payload, which is echoed in text frames and therefore has to be text."""
    if message.encoding is Encoding.RAW:
        try:
            message.payload.decode("utf-8")
        except UnicodeDecodeError:
            return b'{"config":{}}'
    return message.payload


def _check_refs(message: ClientMessage) -> None:
    """Raises ProtocolError."""
    for ref in (message.ref, message.join_ref):
        if _length(ref) > REF_MAX:
            raise ProtocolError(f"a ref of more than {REF_MAX} characters")


def _length(ref: Ref) -> int:
    return len(ref) if isinstance(ref, str) else 0
