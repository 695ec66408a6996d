"""A session with a client's side of it, for the tests of this room; no test lives here."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from walstream.auth.tokens import Verifier, mint
from walstream.channel.effects import Accepted, Effect, JoinOutcome, JoinRequest, JoinRequested, Send
from walstream.channel.rate import Bucket
from walstream.channel.session import Session, SessionLimits
from walstream.protocol.phoenix import VSN_1, VSN_2

SECRET = "super-secret-jwt-token-with-at-least-32-characters-long"
NOW = 1_700_000_000.5
VERIFIER = Verifier(SECRET, api_keys={"opaque": "anon", "sb_publishable_1": "anon"})
TODOS = {"event": "INSERT", "schema": "public", "table": "todos"}
TOPIC = "realtime:room1"


def token(seconds: int = 3600, role: str = "authenticated", **claims: object) -> str:
    """A good token that expires in that time from ``NOW``."""
    return mint(SECRET, {"role": role, "exp": int(NOW) + seconds, **claims})


class Frame(NamedTuple):
    """A server's frame as clients see it; vsn 1 has no join ref."""

    join_ref: Any
    ref: Any
    topic: str
    event: str
    payload: Any


def read(vsn: str, data: bytes) -> Frame:
    """Decode a frame, and see that it has exactly what its version demands."""
    decoded = json.loads(data)
    if vsn == VSN_2:
        return Frame(*decoded)
    assert set(decoded) == {"topic", "event", "payload", "ref"}
    return Frame(None, decoded["ref"], decoded["topic"], decoded["event"], decoded["payload"])


class Client:
    """Talks to a session; remembers the effects of the newest call."""

    def __init__(
        self,
        *,
        vsn: str = VSN_2,
        limits: SessionLimits | None = None,
        key: str = "opaque",
        verifier: Verifier = VERIFIER,
        node_joins: Bucket | None = None,
    ) -> None:
        self.vsn = vsn
        self.now = NOW
        limits = limits or SessionLimits()
        self.session = Session(vsn, verifier.verify(key, NOW), verifier, limits, NOW, token=key, node_joins=node_joins)
        self.effects: list[Effect] = []

    def did(self, effects: list[Effect]) -> list[Frame]:
        self.effects = effects
        return self.frames

    @property
    def frames(self) -> list[Frame]:
        return [read(self.vsn, effect.data) for effect in self.effects if isinstance(effect, Send)]

    def kinds(self) -> list[str]:
        return [type(effect).__name__ for effect in self.effects]

    def raw(self, data: str | bytes) -> list[Frame]:
        return self.did(self.session.receive(data, self.now))

    def send(
        self, event: str, payload: object, *, topic: str = TOPIC, ref: object = "1", join_ref: object = "1"
    ) -> list[Frame]:
        if self.vsn == VSN_2:
            return self.raw(json.dumps([join_ref, ref, topic, event, payload]))
        frame = {"topic": topic, "event": event, "payload": payload, "ref": ref, "join_ref": join_ref}
        return self.raw(json.dumps(frame))

    def join(
        self, config: object = None, *, topic: str = TOPIC, ref: object = "1", join_ref: object = "", **extra: object
    ) -> list[Frame]:
        payload = {"config": config if config is not None else {}, **extra}
        return self.send("phx_join", payload, topic=topic, ref=ref, join_ref=ref if join_ref == "" else join_ref)

    @property
    def request(self) -> JoinRequest:
        """The one join that the newest call requested."""
        [request] = requests(self.effects)
        return request

    def ready(self, request: JoinRequest, outcome: JoinOutcome | None = None) -> list[Frame]:
        outcome = outcome or Accepted(tuple(range(1, len(request.items) + 1)))
        return self.did(self.session.join_ready(request.serial, outcome, self.now))

    def joined(
        self, config: object = None, *, topic: str = TOPIC, ref: object = "1", join_ref: object = "", **extra: object
    ) -> JoinRequest:
        """Join and be accepted."""
        self.join(config, topic=topic, ref=ref, join_ref=join_ref, **extra)
        request = self.request
        self.ready(request)
        return request

    def tick(self, seconds: float = 0.0) -> list[Frame]:
        self.now += seconds
        return self.did(self.session.tick(self.now))


def requests(effects: Iterable[Effect]) -> list[JoinRequest]:
    return [effect.request for effect in effects if isinstance(effect, JoinRequested)]


__all__ = [
    "NOW",
    "SECRET",
    "TODOS",
    "TOPIC",
    "VERIFIER",
    "VSN_1",
    "VSN_2",
    "Client",
    "Frame",
    "read",
    "requests",
    "token",
]
