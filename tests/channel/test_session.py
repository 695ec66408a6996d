"""Joins, leaves, refs and answers, as official clients rely on them."""

from __future__ import annotations

import json

import pytest

from tests.channel.channel_support import TODOS, TOPIC, VSN_1, VSN_2, Client, Frame, token
from walstream.auth.tokens import mint
from walstream.channel.effects import Accepted, Complaint, JoinSettled, Left, Pushed, Refused, Send
from walstream.channel.pushes import BroadcastPush, ModerationPush, PresencePush
from walstream.channel.session import SessionLimits
from walstream.errors import Invariant

OK = {"status": "ok", "response": {}}
EMPTY = {"status": "ok", "response": {"postgres_changes": []}}


def error(reason: str) -> dict[str, object]:
    return {"status": "error", "response": {"reason": reason}}


def system(extension: str, status: str, message: str, channel: str = "room1") -> dict[str, str]:
    return {"extension": extension, "status": status, "message": message, "channel": channel}


# -- joining


def test_the_captured_join_of_the_javascript_client_is_answered_as_captured() -> None:
    client = Client()
    item = {"event": "INSERT", "schema": "public", "table": "todos"}
    config = {
        "broadcast": {"ack": True, "self": True},
        "presence": {"key": "k", "enabled": True},
        "postgres_changes": [item],
        "private": False,
    }
    assert client.join(config, ref="6") == []
    assert client.ready(client.request, Accepted((1000,))) == [
        Frame("6", "6", TOPIC, "phx_reply", {"status": "ok", "response": {"postgres_changes": [{**item, "id": 1000}]}}),
        Frame("6", None, TOPIC, "system", system("postgres_changes", "ok", "Subscribed to PostgreSQL")),
    ]
    assert client.effects[-1] == JoinSettled(TOPIC, "ok", "", 0.0)


def test_the_captured_join_of_the_python_client_is_answered_as_captured() -> None:
    client = Client(vsn=VSN_1)
    client.join({"presence": {"enabled": True}, "postgres_changes": [TODOS]}, access_token="opaque")
    [reply, subscribed] = client.ready(client.request, Accepted((7,)))
    assert reply == Frame(
        None, "1", TOPIC, "phx_reply", {"status": "ok", "response": {"postgres_changes": [{**TODOS, "id": 7}]}}
    )
    assert subscribed.ref is None
    assert client.kinds() == ["Send", "Entered", "Send", "JoinSettled"]


def test_items_are_echoed_to_the_letter() -> None:
    client = Client()
    item = '{"event":"*", "schema":"public","table":"todos","filter":null,"other":[1.50,"\\u00e9"]}'
    client.raw(f'["1","1","{TOPIC}","phx_join",{{"config":{{"postgres_changes":[{item}]}}}}]')
    client.ready(client.request, Accepted((5,)))
    reply = next(effect.data for effect in client.effects if isinstance(effect, Send))
    assert item[:-1].encode() + b',"id":5}' in reply


def test_a_join_without_items_gets_no_system_frame() -> None:
    client = Client()
    client.join()
    assert client.ready(client.request) == [Frame("1", "1", TOPIC, "phx_reply", EMPTY)]


def test_a_table_feed_gets_its_system_frame_and_no_items() -> None:
    client = Client()
    client.join(topic="realtime:table:public.users")
    request = client.request
    assert request.feed == ("public", "users")
    [reply, subscribed] = client.ready(request, Accepted((3,)))
    assert reply.payload == EMPTY
    assert subscribed.payload["channel"] == "table:public.users"


def test_a_legacy_join_has_its_one_item_in_the_reply() -> None:
    client = Client(vsn=VSN_1)
    client.send("phx_join", {}, topic="realtime:public:todos")
    [reply, _] = client.ready(client.request, Accepted((3,)))
    [item] = reply.payload["response"]["postgres_changes"]
    assert item["id"] == 3


def test_trouble_with_the_database_leaves_the_channel_joined() -> None:
    client = Client()
    client.join({"postgres_changes": [TODOS]})
    request = client.request
    [reply, trouble] = client.ready(request, Accepted((1,), "error", "no such table"))
    assert reply.payload["status"] == "ok"
    assert trouble.payload == system("postgres_changes", "error", "no such table")
    assert client.session.is_joined(request.serial)
    later = client.did(client.session.system(request.serial, "ok", "Subscribed to PostgreSQL"))
    assert later == [Frame("1", None, TOPIC, "system", system("postgres_changes", "ok", "Subscribed to PostgreSQL"))]


def test_a_system_frame_may_carry_more_members() -> None:
    client = Client()
    serial = client.joined().serial
    [frame] = client.did(client.session.system(serial, "ok", "m", {"event": "gap", "reason": "too_old"}))
    assert frame.payload == system("postgres_changes", "ok", "m") | {"event": "gap", "reason": "too_old"}


def test_no_message_no_system_frame() -> None:
    client = Client()
    client.join({"postgres_changes": [TODOS]})
    assert len(client.ready(client.request, Accepted((1,), "ok", ""))) == 1


def test_a_refused_join_is_answered_and_forgotten() -> None:
    client = Client()
    client.join()
    request = client.request
    reason = "Unauthorized: You do not have permissions to read from this Channel topic: room1"
    assert client.ready(request, Refused(reason)) == [Frame("1", "1", TOPIC, "phx_reply", error(reason))]
    assert client.kinds() == ["Send", "JoinSettled"]
    assert len(client.session) == 0
    assert client.ready(request) == []


def test_ids_have_to_fit_the_request() -> None:
    client = Client()
    client.join({"postgres_changes": [TODOS]})
    request = client.request
    for ids in ((), (1, 2), (0,)):
        with pytest.raises(Invariant):
            client.ready(request, Accepted(ids))


@pytest.mark.parametrize("vsn", [VSN_1, VSN_2])
@pytest.mark.parametrize("topic", ["room1", "phoenix", "", "realtimer:x"])
def test_other_topics_match_nothing(vsn: str, topic: str) -> None:
    client = Client(vsn=vsn)
    unmatched = [Frame(None, "1", topic, "phx_reply", error("unmatched topic"))]
    assert client.join(topic=topic) == unmatched
    assert client.send("broadcast", {}, topic=topic) == unmatched


def test_a_topic_needs_a_name() -> None:
    reason = "TopicNameRequired: You must provide a topic name"
    assert Client().join(topic="realtime:") == [Frame("1", "1", "realtime:", "phx_reply", error(reason))]


@pytest.mark.parametrize(("vsn", "longest"), [(VSN_1, 4096), (VSN_2, 255)])
def test_topics_are_bounded(vsn: str, longest: int) -> None:
    client = Client(vsn=vsn)
    prefix = "realtime:"
    assert client.join(topic=prefix + "x" * (longest - len(prefix))) == []
    [refused] = client.join(topic=prefix + "x" * (longest - len(prefix) + 1))
    assert refused.payload["response"]["reason"].startswith("TopicNameTooLong: ")


def test_channels_are_bounded_but_a_join_again_is_no_further_one() -> None:
    client = Client(limits=SessionLimits(max_channels=2, max_joins_per_second=0))
    client.joined(topic="realtime:a")
    client.join(topic="realtime:b")
    [refused] = client.join(topic="realtime:c")
    assert refused.payload == error("ChannelRateLimitReached: Too many channels")
    client.join(topic="realtime:a", ref="9")
    assert client.request.join_ref == "9"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"broadcast": {"replay": {"since": "x"}}}, "UnableToReplayMessages: Replay params are not valid"),
    ],
)
def test_replay_that_cannot_be_is_refused(config: object, reason: str) -> None:
    [refused] = Client().join(config)
    assert refused.payload == error(reason)


def test_what_cannot_be_read_in_a_join_is_reported_and_passed_over() -> None:
    client = Client()
    client.join({"private": "perhaps", "postgres_changes": 7})
    assert "InvalidJoinPayload" in [effect.code for effect in client.effects if isinstance(effect, Complaint)]
    assert client.request.items == ()


def test_a_join_in_a_binary_frame_is_answered_as_text() -> None:
    client = Client()
    payload = b'{"config":{"postgres_changes":[{"table":"\xff"}]}}'
    topic = TOPIC.encode()
    client.raw(bytes((0, 1, 1, len(topic), 8)) + b"11" + topic + b"phx_join" + payload)
    [reply] = client.ready(client.request, Accepted(()))
    assert reply.payload == EMPTY


# -- joining again, leaving


@pytest.mark.parametrize(("vsn", "join_ref"), [(VSN_1, None), (VSN_2, "1")])
def test_a_join_again_closes_the_earlier_one_by_its_own_ref(vsn: str, join_ref: str | None) -> None:
    client = Client(vsn=vsn)
    serial = client.joined().serial
    assert client.join(ref="5") == [Frame(join_ref, "1", TOPIC, "phx_close", {})]
    assert client.effects[0] == Left(TOPIC, "1", serial)
    assert client.kinds() == ["Left", "Send", "JoinRequested"]
    [reply] = client.ready(client.request)
    assert reply.ref == "5"


def test_a_join_again_before_the_answer_leaves_the_earlier_one_unanswered() -> None:
    client = Client()
    client.join()
    first = client.request
    assert client.join(ref="2") == [Frame("1", "1", TOPIC, "phx_close", {})]
    second = client.request
    assert client.ready(first) == []
    assert [frame.ref for frame in client.ready(second)] == ["2"]


@pytest.mark.parametrize("join_ref", ["6", None])
def test_leaving_is_answered_and_then_closed(join_ref: str | None) -> None:
    client = Client()
    serial = client.joined(ref="6").serial
    assert client.send("phx_leave", {}, ref="13", join_ref=join_ref) == [
        Frame(join_ref, "13", TOPIC, "phx_reply", OK),
        Frame("6", "6", TOPIC, "phx_close", {}),
    ]
    assert client.effects[0] == Left(TOPIC, "6", serial)
    assert client.did(client.session.system(serial, "ok", "late")) == []
    assert not client.session.is_joined(serial)


def test_leaving_with_the_ref_of_an_earlier_join_is_ignored() -> None:
    client = Client()
    client.joined(ref="1")
    serial = client.joined(ref="4").serial
    assert client.send("phx_leave", {}, ref="5", join_ref="1") == []
    assert client.session.is_joined(serial)


def test_leaving_before_the_answer_ends_the_join_without_one() -> None:
    client = Client()
    client.join()
    request = client.request
    assert [frame.event for frame in client.send("phx_leave", {}, ref="2")] == ["phx_reply", "phx_close"]
    assert client.kinds()[0] == "Left"
    assert client.ready(request) == []


def test_leaving_what_was_not_joined_is_fine() -> None:
    assert Client().send("phx_leave", {}, ref="3") == [Frame("1", "3", TOPIC, "phx_reply", OK)]


def test_a_join_without_join_ref_is_closed_by_its_ref() -> None:
    client = Client(vsn=VSN_1)
    client.joined(ref="3", join_ref=None)
    assert client.send("phx_leave", {}, ref="4", join_ref=None)[-1] == Frame(None, "3", TOPIC, "phx_close", {})


# -- other messages


@pytest.mark.parametrize("vsn", [VSN_1, VSN_2])
@pytest.mark.parametrize("ref", [None, "11"])
def test_heartbeats_are_answered_before_all_else(vsn: str, ref: str | None) -> None:
    client = Client(vsn=vsn)
    assert client.send("heartbeat", {}, topic="phoenix", ref=ref, join_ref=None) == [
        Frame(None, ref, "phoenix", "phx_reply", OK)
    ]
    [effect] = client.effects
    assert isinstance(effect, Send)
    assert effect.urgent


@pytest.mark.parametrize("frame", ["", "null", "{}", "[]", '["1","1","t"]', "\ud800", b"", b"\x09", b"\x03\x01"])
def test_malformed_frames_are_dropped_and_reported(frame: str | bytes) -> None:
    client = Client()
    assert client.raw(frame) == []
    [complaint] = client.effects
    assert isinstance(complaint, Complaint)
    assert complaint.code == "MalformedWebSocketMessage"


def test_refs_are_bounded() -> None:
    client = Client()
    assert client.join(ref="r" * 256) == []
    assert client.kinds() == ["Complaint"]


def pushed(client: Client) -> Pushed:
    [effect] = client.effects
    assert isinstance(effect, Pushed)
    return effect


def test_broadcasts_are_to_be_answered_only_where_asked() -> None:
    client = Client()
    asking = client.joined({"broadcast": {"ack": True}}, topic="realtime:acked")
    client.joined()
    assert client.send("broadcast", {"event": "e", "payload": {"n": 1}}, ref="7") == []
    assert pushed(client).asked is None
    assert pushed(client).push == BroadcastPush("e", b'{"n": 1}', whole=b'{"event": "e", "payload": {"n": 1}}')
    client.send("broadcast", {"event": "e"}, topic="realtime:acked", ref="8", join_ref="stale")
    found = pushed(client)
    assert found.serial == asking.serial
    assert found.asked is not None
    [reply] = client.did(client.session.answer(found.asked, "ok", b'{"id":"x"}'))
    assert reply == Frame("stale", "8", "realtime:acked", "phx_reply", {"status": "ok", "response": {"id": "x"}})


def test_a_binary_broadcast_is_answered_as_text() -> None:
    client = Client()
    client.joined({"broadcast": {"ack": True}})
    client.raw(bytes((3, 1, 1, 14, 5, 0, 1)) + b"17realtime:room1hello{}")
    found = pushed(client)
    assert found.push == BroadcastPush("hello", b"{}")
    assert found.asked is not None
    assert client.did(client.session.answer(found.asked, "ok")) == [Frame("1", "7", TOPIC, "phx_reply", OK)]


def test_a_broadcast_that_is_no_object_is_refused() -> None:
    client = Client()
    client.joined({"broadcast": {"ack": True}})
    [reply] = client.send("broadcast", None)
    assert reply.payload["status"] == "error"
    assert reply.payload["response"]["error"] == "payload_invalid"


def test_nothing_is_pushed_before_the_join_is_answered() -> None:
    client = Client()
    client.join()
    for event in ("broadcast", "presence", "moderation"):
        [reply] = client.send(event, {"event": "track"})
        assert reply.payload == error("unmatched topic")


@pytest.mark.parametrize(
    ("payload", "meta"),
    [
        ({"type": "presence", "event": "track", "payload": {"name": "Ada"}}, b'{"name": "Ada"}'),
        ({"event": "TRACK"}, b"{}"),
        ({"event": "untrack"}, None),
    ],
)
def test_presence_is_read(payload: object, meta: bytes | None) -> None:
    client = Client()
    client.joined()
    assert client.send("presence", payload, ref="9") == []
    assert pushed(client).push == PresencePush(meta)
    assert pushed(client).asked is not None


@pytest.mark.parametrize(
    ("payload", "answer"),
    [
        ({}, OK),
        ([], OK),
        ({"event": "track", "payload": 7}, error("Presence track payload must be a map")),
        ({"event": "dance"}, {"status": "error", "response": {}}),
        ({"event": None}, {"status": "error", "response": {}}),
    ],
)
def test_presence_that_means_nothing_is_answered(payload: object, answer: object) -> None:
    client = Client()
    client.joined()
    assert client.send("presence", payload, ref="9") == [Frame("1", "9", TOPIC, "phx_reply", answer)]


def test_moderation_names_an_action() -> None:
    client = Client()
    client.joined()
    client.send("moderation", {"action": "mute", "user": "u"})
    assert pushed(client).push == ModerationPush("mute", {"user": "u"})
    [reply] = client.send("moderation", {"user": "u"})
    assert reply.payload["response"]["error"] == "action_invalid"


def test_frames_for_one_client_need_its_channel() -> None:
    client = Client()
    request = client.joined()
    [frame] = client.did(client.session.push(request.serial, "presence_state", b"{}"))
    assert frame == Frame("1", None, TOPIC, "presence_state", {})
    client.send("phx_leave", {})
    assert client.session.push(request.serial, "presence_state", b"{}") == []


def test_unknown_events_are_ignored() -> None:
    client = Client()
    client.joined()
    assert client.send("dance", {}) == []
    assert client.effects == []


# -- the end of a connection


def test_a_drain_tells_joined_channels_and_refuses_joins() -> None:
    client = Client()
    client.joined()
    client.join(topic="realtime:asked")
    message = {"extension": "system", "status": "ok", "message": "Server requested disconnect"}
    assert client.did(client.session.drain()) == [Frame("1", None, TOPIC, "system", message)]
    [refused] = client.join(topic="realtime:late")
    assert refused.payload == error("RealtimeRestarting: Realtime is restarting, please standby")


def test_the_end_of_a_connection_leaves_what_was_requested_and_sends_nothing() -> None:
    client = Client(limits=SessionLimits(max_channels=2, max_joins_per_second=1))
    first = client.joined().serial
    client.join(topic="realtime:b")
    second = client.request.serial
    client.send("phx_leave", {}, topic=TOPIC)
    client.join(topic="realtime:held")
    assert client.effects == []
    assert client.did(client.session.leave_all()) == []
    assert [effect.serial for effect in client.effects if isinstance(effect, Left)] == [second]
    assert second != first
    assert client.session.deadline is None
    assert client.join() == []
    assert client.effects == []


def test_the_daemon_can_end_a_channel() -> None:
    client = Client()
    serial = client.joined().serial
    assert client.did(client.session.end(serial, "Unauthorized", "no longer", client.now)) == [
        Frame("1", None, TOPIC, "system", system("system", "error", "no longer")),
        Frame("1", "1", TOPIC, "phx_close", {}),
    ]
    assert client.kinds() == ["Left", "Send", "Send"]
    client.join()
    serial = client.request.serial
    [refused] = client.did(client.session.end(serial, "Unauthorized", "no", client.now))
    assert refused.payload == error("Unauthorized: no")
    assert client.did(client.session.end(serial, "Unauthorized", "no", client.now)) == []


# -- waiting for the subscription

WAIT = {"postgres_changes": [TODOS], "postgres_changes_options": {"wait": True, "timeout": 9000}}


def test_a_waiting_join_is_answered_like_any_other_once_it_is_live() -> None:
    client = Client()
    client.join(WAIT)
    assert client.request.wait_seconds == 9
    assert [frame.event for frame in client.ready(client.request)] == ["phx_reply", "system"]
    assert client.session.deadline is None


def test_a_waiting_join_fails_where_another_would_be_told_later() -> None:
    client = Client()
    client.join(WAIT)
    [refused] = client.ready(client.request, Accepted((1,), "error", "no such table"))
    assert refused.payload == error("RealtimeDisabledForConfiguration: no such table")
    assert client.kinds() == ["Left", "Send", "JoinSettled"]


def test_a_waiting_join_gives_up() -> None:
    client = Client()
    client.join(WAIT)
    request = client.request
    assert client.session.deadline == client.now + 9
    assert client.tick(8.9) == []
    [failed] = client.tick(0.1)
    reason = "PostgresChangesSubscribeTimeout: Timed out after 9000ms waiting for the postgres_changes subscription"
    assert failed == Frame("1", "1", TOPIC, "phx_reply", error(reason))
    assert client.effects[0] == Left(TOPIC, "1", request.serial)
    settled = client.effects[-1]
    assert isinstance(settled, JoinSettled)
    assert (settled.result, settled.reason, round(settled.seconds, 3)) == ("failed", reason, 9.0)
    assert client.ready(request) == []


def test_who_has_nothing_to_wait_for_does_not() -> None:
    client = Client()
    client.join({"postgres_changes_options": {"wait": True}})
    assert client.session.deadline is None


# -- tokens of joins


def test_a_join_goes_by_its_own_token() -> None:
    client = Client()
    client.join(access_token=token(role="service_role"))
    assert client.request.claims.role == "service_role"
    client.join(topic="realtime:b", access_token="ignored", user_token=token(role="other"))
    assert client.request.claims.role == "other"
    for own in ("sb_publishable_unknown", None, 7, "opaque"):
        client.join(topic="realtime:c", ref=str(own), access_token=own)
        assert client.request.claims.role == "anon"


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        (token(-100), "InvalidJWTToken: Token has expired 100 seconds ago"),
        ("", "MalformedJWT: The token provided is not a valid JWT"),
        (mint("x" * 32, {"role": "anon", "exp": 2_000_000_000}), "JwtSignatureError: Failed to validate JWT signature"),
    ],
)
def test_a_join_with_a_bad_token_is_refused(own: str, reason: str) -> None:
    [refused] = Client().join(access_token=own)
    assert refused.payload == error(reason)


def test_a_join_without_a_token_needs_the_connections_to_be_good_still() -> None:
    client = Client(key=token(60))
    client.now += 61
    [refused] = client.join()
    assert refused.payload == error("InvalidJWTToken: Token has expired 1 seconds ago")
    client.join(access_token=token(120))
    assert client.request.claims.role == "authenticated"


def test_frames_are_json() -> None:
    client = Client(vsn=VSN_1)
    client.join({"postgres_changes": [TODOS, {"table": "x", "extra": "\u2028é\\"}]}, topic='realtime:"q"\\')
    for effect in client.session.join_ready(client.request.serial, Accepted((1, 2)), client.now):
        if isinstance(effect, Send):
            assert json.loads(effect.data)["topic"] == 'realtime:"q"\\'


def test_a_connection_is_of_whom_its_tokens_name() -> None:
    client = Client()
    assert client.session.user == ""
    client.join(topic="realtime:a")
    client.join(topic="realtime:b", access_token=token(sub="ada"))
    client.join(topic="realtime:c", access_token=token(sub="eve"))
    assert client.session.user == "ada"
    client.send("access_token", {"access_token": token(sub="bob")}, topic="realtime:b")
    assert client.session.user == "bob"
    client.send("phx_leave", {}, topic="realtime:b")
    assert client.session.user == "eve"
    assert Client(key=token(sub="own")).session.user == "own"
