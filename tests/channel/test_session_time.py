"""Tokens that are renewed or expire, and rates: everything about a session that depends on the time."""

from __future__ import annotations

import pytest

from tests.channel.channel_support import NOW, SECRET, TODOS, TOPIC, Client, Frame, requests, token
from walstream.auth.rules import Revocations
from walstream.auth.tokens import Verifier, mint
from walstream.channel.effects import Accepted, Close, Complaint, JoinRequest, TokenRefreshed
from walstream.channel.rate import Bucket
from walstream.channel.session import SessionLimits

MALFORMED = "The token provided is not a valid JWT"


def refreshed(client: Client) -> list[TokenRefreshed]:
    return [effect for effect in client.effects if isinstance(effect, TokenRefreshed)]


def goodbye(text: str, event: str = "phx_close") -> list[Frame]:
    """What a channel gets at its end; with ``phx_error`` its client joins again by itself."""
    payload = {"extension": "system", "status": "error", "message": text, "channel": "room1"}
    return [Frame("1", None, TOPIC, "system", payload), Frame("1", "1", TOPIC, event, {})]


def renew(client: Client, value: object) -> list[Frame]:
    return client.send("access_token", {"access_token": value}, ref="12")


# -- ends


@pytest.mark.parametrize(
    ("name", "event"),
    [
        ("Unauthorized", "phx_close"),
        ("ChannelDeleted", "phx_close"),
        ("TrackMessageSizeExceeded", "phx_close"),
        ("ChannelChanged", "phx_error"),
        ("UnableToConnectToProject", "phx_error"),
        ("QueryCanceled", "phx_error"),
        ("IncreaseConnectionPool", "phx_error"),
        ("ConnectionRateLimitReached", "phx_error"),
    ],
)
def test_an_end_says_whether_another_join_may_do(name: str, event: str) -> None:
    client = Client()
    request = client.joined()
    assert client.did(client.session.end(request.serial, name, "why", NOW)) == goodbye("why", event)


@pytest.mark.parametrize(
    ("bad", "event"),
    [
        (token(-1), "phx_error"),
        ("nonsense", "phx_close"),
        (mint("x" * 40, {"role": "anon", "exp": int(NOW) + 60}), "phx_close"),
        (mint(SECRET, {"exp": int(NOW) + 60}), "phx_close"),
        (mint(SECRET, {"role": "anon", "exp": int(NOW) + 60}).replace("eyJ", "", 1), "phx_close"),
    ],
)
def test_only_a_token_that_was_good_once_is_worth_another_try(bad: str, event: str) -> None:
    client = Client()
    client.joined(access_token=token(60))
    assert [frame.event for frame in renew(client, bad)] == ["system", event]


def test_a_revoked_token_ends_what_goes_by_it_and_lets_nobody_in() -> None:
    verifier = Verifier(SECRET)
    own, other = token(sub="ann", jti="a"), token(sub="ann", jti="b")
    client = Client(verifier=verifier, key=own)
    request = client.joined()
    client.joined(topic="realtime:two", ref="2", access_token=other)
    client.join(topic="realtime:three", ref="3")
    assert client.did(client.session.recheck(NOW)) == []
    verifier.revocations = Revocations.parse("a")
    frames = client.did(client.session.recheck(NOW))
    assert frames[:2] == goodbye("The token has been revoked")
    assert frames[2].payload["response"] == {"reason": "TokenRevoked: The token has been revoked"}
    assert not client.session.is_joined(request.serial)
    assert len(client.session) == 1
    [refused] = client.join(ref="4")
    assert refused.payload["response"] == {"reason": "TokenRevoked: The token has been revoked"}
    client.join(ref="5", access_token=other)
    assert client.request.claims.jti == "b"


# -- tokens


def test_a_new_token_is_taken_silently() -> None:
    client = Client()
    request = client.joined(access_token=token(60))
    assert client.session.deadline == int(NOW) + 60
    assert renew(client, token(3600, role="other")) == []
    [told] = refreshed(client)
    assert (told.topic, told.join_ref, told.serial, told.claims.role) == (TOPIC, "1", request.serial, "other")
    assert client.session.deadline == int(NOW) + 3600


@pytest.mark.parametrize("value", ["sb_publishable_1", None, 7, {}, "current"])
def test_what_is_no_new_token_is_ignored(value: object) -> None:
    client = Client()
    current = token()
    client.joined(access_token=current)
    assert renew(client, current if value == "current" else value) == []
    assert client.effects == []


def test_payloads_without_a_token_are_ignored() -> None:
    client = Client()
    client.joined()
    payloads: list[object] = [{}, [], None, "x"]
    for payload in payloads:
        assert client.send("access_token", payload) == []
    topic = TOPIC.encode()
    assert client.raw(bytes((0, 1, 1, len(topic), 12)) + b"12" + topic + b"access_token" + b"\xff") == []
    assert client.effects == []


@pytest.mark.parametrize("value", ["", "nonsense"])
def test_a_bad_token_ends_the_channel(value: str) -> None:
    client = Client()
    client.joined()
    assert renew(client, value) == goodbye(MALFORMED)
    assert client.kinds() == ["Left", "Send", "Send"]
    assert client.session.deadline is None


def test_tokens_that_come_fast_are_put_off_and_the_last_one_counts() -> None:
    client = Client()
    client.joined()
    renew(client, token(1000))
    assert len(refreshed(client)) == 1
    for role in ("first", "second"):
        assert renew(client, token(2000, role=role)) == []
        assert client.effects == []
    assert client.session.deadline == NOW + 10
    client.tick(10)
    assert [told.claims.role for told in refreshed(client)] == ["second"]
    assert client.session.deadline == int(NOW) + 2000


def test_a_bad_token_that_comes_fast_ends_the_channel_at_once() -> None:
    client = Client()
    client.joined()
    renew(client, token(1000))
    assert renew(client, "nonsense") == goodbye(MALFORMED)


def test_a_token_that_was_put_off_saves_a_channel_whose_token_expires() -> None:
    client = Client()
    client.joined()
    renew(client, token(5))
    renew(client, token(1000, role="saved"))
    assert client.tick(5) == []
    assert [told.claims.role for told in refreshed(client)] == ["saved"]


def test_a_token_that_was_put_off_may_have_expired_meanwhile() -> None:
    client = Client()
    client.joined()
    renew(client, token(1000))
    renew(client, token(5))
    assert client.tick(10.5) == goodbye("Token has expired 6 seconds ago", "phx_error")


def test_a_token_for_a_join_without_answer_is_told_after_it() -> None:
    client = Client()
    client.join(access_token=token(60))
    request = client.request
    assert renew(client, token(3600, role="other")) == []
    assert client.effects == []
    client.ready(request)
    assert client.kinds() == ["Send", "Entered", "JoinSettled"]
    assert client.session.deadline == 0
    client.tick()
    assert [told.claims.role for told in refreshed(client)] == ["other"]
    assert client.session.deadline == int(NOW) + 3600


def test_an_expired_token_ends_its_channel_and_no_other() -> None:
    client = Client()
    client.joined(access_token=token(60))
    client.joined(topic="realtime:other", access_token=token(61))
    assert client.tick(59) == []
    assert client.tick(1) == goodbye("Token has expired 0 seconds ago", "phx_error")
    assert client.kinds()[0] == "Left"
    assert len(client.session) == 1


def test_a_token_that_expires_before_the_answer_refuses_the_join() -> None:
    client = Client()
    client.join(access_token=token(60))
    [refused] = client.tick(62)
    assert refused.payload == {
        "status": "error",
        "response": {"reason": "InvalidJWTToken: Token has expired 2 seconds ago"},
    }
    assert client.kinds()[0] == "Left"


# -- joins per second


def slow(joins: float = 1, channels: int = 2, messages: float = 0) -> Client:
    limits = SessionLimits(max_channels=channels, max_joins_per_second=joins, max_messages_per_second=messages)
    return Client(limits=limits)


def churn(client: Client, number: int) -> JoinRequest:
    request = client.joined(ref=str(number))
    client.send("phx_leave", {}, ref="leave", join_ref=str(number))
    return request


def test_joins_above_the_rate_wait_for_their_turn() -> None:
    client = slow()
    churn(client, 1)
    churn(client, 2)
    client.join(ref="3", topic="realtime:a")
    assert client.effects == []
    client.join(ref="4", topic="realtime:b")
    assert client.session.deadline == NOW + 1
    client.tick(1)
    assert [request.topic for request in requests(client.effects)] == ["realtime:a"]
    client.tick(1)
    assert [request.topic for request in requests(client.effects)] == ["realtime:b"]
    assert [frame.ref for frame in client.ready(client.request)] == ["4"]


def test_a_join_that_waits_for_its_turn_can_be_left_unseen() -> None:
    client = slow()
    churn(client, 1)
    churn(client, 2)
    client.join(ref="3")
    assert [frame.event for frame in client.send("phx_leave", {}, join_ref="3")] == ["phx_reply", "phx_close"]
    assert client.kinds() == ["Send", "Send"]
    assert client.tick(5) == []


def test_a_join_that_waits_for_its_turn_takes_the_newest_token() -> None:
    client = slow()
    churn(client, 1)
    churn(client, 2)
    client.join(ref="3")
    renew(client, token(role="newest"))
    client.tick(1)
    assert client.request.claims.role == "newest"
    client.ready(client.request)
    assert refreshed(client) == []


def test_too_many_joins_end_the_connection() -> None:
    client = slow()
    for number in range(2):
        churn(client, number)
    frames: list[Frame] = []
    for number in range(6):
        frames = client.join(ref=f"again {number}", topic="realtime:a")
    [refused] = frames
    reason = "ClientJoinRateLimitReached: Too many joins per second"
    assert refused.payload == {"status": "error", "response": {"reason": reason}}
    assert isinstance(client.effects[-1], Close)
    assert client.effects[-1].code == 1001
    assert len(client.session) == 0
    assert client.join() == []


def test_without_a_rate_joins_never_wait() -> None:
    client = slow(joins=0)
    for number in range(1000):
        churn(client, number)


# -- messages per second


def test_messages_above_the_rate_end_their_channel() -> None:
    client = slow(messages=1)
    client.joined()
    for _ in range(10):
        assert client.send("broadcast", {}) == []
    assert client.send("broadcast", {}) == goodbye("Too many messages per second", "phx_error")
    assert client.send("broadcast", {}) == []
    assert isinstance(client.effects[0], Complaint)
    client.now += 1
    [unmatched] = client.send("broadcast", {})
    assert unmatched.payload["response"] == {"reason": "unmatched topic"}


def test_messages_that_keep_the_connection_in_order_are_not_counted() -> None:
    client = slow(joins=0, messages=1)
    for number in range(50):
        client.send("heartbeat", {}, topic="phoenix")
        churn(client, number)
    client.joined({"postgres_changes": [TODOS], "broadcast": {"ack": True}})
    client.send("broadcast", {})
    assert client.kinds() == ["Pushed"]


def test_messages_above_the_rate_refuse_a_join_without_answer() -> None:
    client = slow(messages=1)
    client.join()
    request = client.request
    for _ in range(10):
        client.send("broadcast", {})
    [refused] = client.send("broadcast", {})
    reason = "MessagePerSecondRateLimitReached: Too many messages per second"
    assert refused.payload["response"] == {"reason": reason}
    assert client.did(client.session.join_ready(request.serial, Accepted(), client.now)) == []


# -- presence calls, and joins of all clients together


def track(client: Client) -> list[Frame]:
    return client.send("presence", {"type": "presence", "event": "track", "payload": {}})


def test_presence_calls_above_the_bound_end_their_channel_alone() -> None:
    client = Client(limits=SessionLimits(max_presence_calls=3, presence_window_seconds=30))
    client.joined({"presence": {"enabled": True}})
    client.joined(topic="realtime:other", ref="2")
    for _ in range(3):
        assert track(client) == []
    assert track(client) == goodbye("Client presence rate limit exceeded", "phx_error")
    assert Complaint("ClientPresenceRateLimitReached", "too many presence calls") in client.effects
    assert len(client.session) == 1


def test_presence_calls_at_the_rate_go_on_for_ever() -> None:
    client = Client(limits=SessionLimits(max_presence_calls=3, presence_window_seconds=30))
    client.joined({"presence": {"enabled": True}})
    for _ in range(100):
        assert track(client) == []
        client.now += 10


def test_presence_calls_may_be_unbounded() -> None:
    client = Client(limits=SessionLimits(max_presence_calls=0, max_messages_per_second=0))
    client.joined({"presence": {"enabled": True}})
    assert all(track(client) == [] for _ in range(1000))


def test_joins_of_all_clients_wait_for_their_turn_and_then_are_refused() -> None:
    together = Bucket(1, 2, NOW)
    clients = [Client(node_joins=together) for _ in range(8)]
    for client in clients[:2]:
        client.join()
        assert client.kinds() == ["JoinRequested"]
    for number, client in enumerate(clients[2:7], 1):
        assert client.join() == []
        assert client.session.deadline == NOW + number
    client = clients[7]
    [refused] = client.join()
    assert refused.payload["response"]["reason"] == "ClientJoinRateLimitReached: Too many joins per second"
    assert "Close" not in client.kinds(), "it is not this client's doing"
    client.now += 6
    client.join()
    assert client.kinds() == ["JoinRequested"]
