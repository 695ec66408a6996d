"""Whatever a client and the daemon do to a session: it never raises, and each join is settled once and in order."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.channel.channel_support import TODOS, VSN_1, VSN_2, Client, Frame, requests, token
from walstream.channel.effects import (
    Accepted,
    Close,
    Entered,
    JoinOutcome,
    JoinRequest,
    JoinRequested,
    Left,
    Pushed,
    Refused,
    Send,
    TokenRefreshed,
)
from walstream.channel.session import SessionLimits

TOPICS = ["realtime:a", "realtime:b:c", "realtime:table:public.todos", "realtime:", "room", "phoenix"]
EVENTS = ["phx_join", "phx_leave", "access_token", "broadcast", "presence", "heartbeat", "dance"]
TOKENS = [token(5), token(20, "a"), token(3600, "b"), token(-1), "nonsense", "", "sb_x", "opaque"]
CONFIGS: list[Any] = [
    {},
    {"postgres_changes": [TODOS]},
    {"postgres_changes": [TODOS, {"schema": "*"}], "presence": {"enabled": True}},
    {"postgres_changes": [TODOS], "postgres_changes_options": {"wait": True, "timeout": 4000}},
    {"broadcast": {"ack": True, "replay": {"limit": 1}}},
    [],
]
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
PAYLOADS = JSON | st.builds(
    lambda config, key, value: {"config": config, key: value},
    st.sampled_from(CONFIGS),
    st.sampled_from(["access_token", "user_token", "event"]),
    st.sampled_from(TOKENS),
)


class SessionMachine(RuleBasedStateMachine):
    """Remembers of each requested join whether it is open, and checks every effect against that."""

    def __init__(self) -> None:
        super().__init__()
        self.client = Client()
        self.counter = 0
        self.asked: dict[int, JoinRequest] = {}  # requested, not settled
        self.joined: dict[int, JoinRequest] = {}
        self.replies: dict[str, int] = {}  # by the ref of a join
        self.over = False

    @initialize(
        vsn=st.sampled_from([VSN_1, VSN_2]),
        joins=st.sampled_from([0, 1, 50]),
        messages=st.sampled_from([0, 0.3, 200]),
        channels=st.integers(1, 3),
        key=st.sampled_from(["opaque", token(10)]),
    )
    def start(self, vsn: str, joins: float, messages: float, channels: int, key: str) -> None:
        limits = SessionLimits(channels, joins, messages)
        self.client = Client(vsn=vsn, limits=limits, key=key)

    def see(self, frames: list[Frame]) -> None:
        """Follow the effects of the newest call in order."""
        waiting = iter(frames)
        for effect in self.client.effects:
            match effect:
                case JoinRequested(request):
                    assert request.serial not in self.asked | self.joined
                    assert all(request.topic != other.topic for other in (self.asked | self.joined).values())
                    self.asked[request.serial] = request
                case Left(topic, join_ref, serial):
                    request = (self.asked | self.joined)[serial]
                    assert (request.topic, request.join_ref) == (topic, join_ref)
                    self.asked.pop(serial, None)
                    self.joined.pop(serial, None)
                case TokenRefreshed(topic, join_ref, serial, _):
                    assert (self.joined[serial].topic, self.joined[serial].join_ref) == (topic, join_ref)
                case Entered(serial) | Pushed(serial):
                    assert serial in self.asked | self.joined
                case Close():
                    self.over = True
                case Send():
                    self.see_frame(next(waiting))

    def see_frame(self, frame: Frame) -> None:
        if frame.event == "phx_reply":
            assert set(frame.payload) == {"status", "response"}
            assert isinstance(frame.payload["response"], dict)
            if frame.ref in self.replies:
                self.replies[frame.ref] += 1
                assert self.replies[frame.ref] == 1
        elif frame.event == "system":
            assert {"extension", "status", "message"} <= set(frame.payload)
        else:
            assert frame.event in ("phx_close", "phx_error")
            assert all(request.topic != frame.topic for request in self.joined.values())

    @rule(topic=st.sampled_from(TOPICS), event=st.sampled_from(EVENTS[1:]), payload=PAYLOADS, stale=st.booleans())
    def send(self, topic: str, event: str, payload: object, stale: bool) -> None:
        self.counter += 1
        ref = f"m{self.counter}"
        frames = self.client.send(event, payload, topic=topic, ref=ref, join_ref="stale" if stale else None)
        self.see(frames)
        for frame in frames:
            # A message above the rate refuses the join that it belongs to.
            assert frame.event != "phx_reply" or frame.ref == ref or frame.ref in self.replies

    @rule(topic=st.sampled_from(TOPICS[:3]), payload=PAYLOADS)
    def join(self, topic: str, payload: object) -> None:
        self.counter += 1
        ref = f"j{self.counter}"
        self.replies[ref] = 0
        self.see(self.client.send("phx_join", payload, topic=topic, ref=ref, join_ref=ref))
        if self.over:
            self.replies.pop(ref)

    @rule(topic=st.sampled_from(TOPICS[:3]), value=st.sampled_from(TOKENS))
    def renew(self, topic: str, value: str) -> None:
        self.see(self.client.send("access_token", {"access_token": value}, topic=topic, ref="t"))

    @rule(choice=st.integers(0, 9), outcome=st.sampled_from(["ok", "error", "refused"]))
    def answer(self, choice: int, outcome: str) -> None:
        if not self.asked:
            return
        request = list(self.asked.values())[choice % len(self.asked)]
        ids = tuple(range(1, len(request.items) + 1))
        answer: JoinOutcome = Refused("Unauthorized: no")
        if outcome != "refused":
            answer = Accepted(ids, "ok" if outcome == "ok" else "error", "message")
        frames = self.client.ready(request, answer)
        assert (
            frames[0][:4]
            == Frame(
                request.join_ref if self.client.vsn == VSN_2 else None, request.ref, request.topic, "phx_reply", None
            )[:4]
        )
        if self.client.session.is_joined(request.serial):
            self.joined[request.serial] = self.asked.pop(request.serial)
        else:
            # The refused join was asked for by who refuses it; Left comes only when the session is who refuses.
            if "Left" not in self.client.kinds():
                del self.asked[request.serial]
        self.see(frames)
        assert self.client.ready(request, answer) == []

    @rule(seconds=st.sampled_from([0.0, 0.5, 3.0, 11.0]))
    def wait(self, seconds: float) -> None:
        self.see(self.client.tick(seconds))
        assert self.client.session.deadline is None or self.client.session.deadline > self.client.now

    @rule(choice=st.integers(0, 9))
    def tell(self, choice: int) -> None:
        if self.joined:
            serial = list(self.joined)[choice % len(self.joined)]
            assert len(self.client.did(self.client.session.system(serial, "ok", "m"))) == 1

    @rule()
    def drain(self) -> None:
        self.see(self.client.did(self.client.session.drain()))

    @invariant()
    def the_books_agree(self) -> None:
        session = self.client.session
        assert len(session) >= len(self.asked) + len(self.joined)
        for serial in self.joined:
            assert session.is_joined(serial)
        for serial in self.asked:
            assert not session.is_joined(serial)

    def teardown(self) -> None:
        self.see(self.client.did(self.client.session.leave_all()))
        assert not self.asked
        assert not self.joined
        assert len(self.client.session) == 0


SessionMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestSession = SessionMachine.TestCase


@given(
    st.sampled_from([VSN_1, VSN_2]),
    st.lists(
        st.binary(max_size=40)
        | st.text(max_size=40)
        | st.builds(lambda kind, rest: kind + rest, st.sampled_from([b"\x00", b"\x03"]), st.binary(max_size=60))
        | st.builds(
            lambda *parts: json.dumps(parts),
            JSON,
            JSON,
            st.sampled_from(TOPICS) | JSON,
            st.sampled_from(EVENTS) | JSON,
            PAYLOADS,
        )
        | st.builds(
            lambda topic, event, payload, ref: json.dumps(
                {"topic": topic, "event": event, "payload": payload, "ref": ref}
            ),
            st.sampled_from(TOPICS) | JSON,
            st.sampled_from(EVENTS) | JSON,
            PAYLOADS,
            JSON,
        ),
        max_size=8,
    ),
)
def test_no_bytes_make_it_raise(vsn: str, messages: list[str | bytes]) -> None:
    client = Client(vsn=vsn)
    for message in messages:
        client.raw(message)
        for effect in client.effects:
            if isinstance(effect, JoinRequested):
                client.ready(effect.request)


@given(st.sampled_from([VSN_1, VSN_2]), st.lists(st.sampled_from(CONFIGS), max_size=6), st.booleans())
def test_every_join_gets_exactly_one_reply(vsn: str, configs: list[Any], bad: bool) -> None:
    client = Client(vsn=vsn, limits=SessionLimits(max_channels=4))
    replies: list[Any] = []
    for number, config in enumerate(configs):
        extra = {"access_token": "nonsense"} if bad and number % 2 else {}
        frames = client.join(config, topic=f"realtime:{number}", ref=str(number), **extra)
        asked = requests(client.effects)
        if not frames and not asked:  # above the rate: its turn comes
            client.tick(1.0)
            asked = requests(client.effects)
        for request in asked:
            frames += client.ready(request)
        replies += [frame.ref for frame in frames if frame.event == "phx_reply"]
    assert replies == [str(number) for number in range(len(configs))]
