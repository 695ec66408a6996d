"""What joins ask for, read as tolerantly as official clients need."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.channel.join import ITEMS_MAX, ChangeItem, JoinConfig, Replay, parse_join
from walstream.channel.topic import Topic, parse_topic
from walstream.protocol.shapes import Shape


def topic(text: str = "realtime:room1") -> Topic:
    found = parse_topic(text)
    assert found is not None
    return found


def parse(config: object, **extra: object) -> JoinConfig:
    return parse_join(topic(), json.dumps({"config": config, **extra}).encode())


def item(**members: object) -> ChangeItem:
    [found] = parse({"postgres_changes": [members]}).items
    return found


def test_a_presence_key_is_bounded() -> None:
    config = parse({"presence": {"key": "k" * 1001}})
    assert (config.presence.key, config.complaints) == ("", ("presence.key is too long",))


def test_who_says_broadcast_decodes_bytes() -> None:
    assert parse({"broadcast": {}}).hears_bytes
    assert not parse({"presence": {}}).hears_bytes


def test_an_empty_config_asks_for_nothing() -> None:
    assert parse({}) == JoinConfig(Shape.CHANGES)


def test_everything_that_official_clients_say_is_read() -> None:
    config = parse(
        {
            "broadcast": {"ack": True, "self": "TRUE", "replay": {"since": 1760000000000, "limit": 100}},
            "presence": {"key": 7, "enabled": "true"},
            "postgres_changes": [None, {"event": "insert", "schema": "public", "table": "todos"}],
            "private": True,
            "postgres_changes_options": {"wait": True, "timeout": 9000},
        },
        access_token="t",
        version="realtime-js/2.119.1",
    )
    assert config.complaints == ()
    assert (config.broadcast.ack, config.broadcast.own) == (True, True)
    assert config.broadcast.replay == Replay(1760000000000, 25)
    assert (config.presence.key, config.presence.enabled) == ("7", True)
    assert (config.private, config.wait_seconds, config.token) == (True, 9.0, "t")
    [found] = config.items
    assert (found.event, found.schema, found.table, found.problem) == ("INSERT", "public", "todos", "")


@pytest.mark.parametrize(
    ("members", "schema", "table"),
    [
        ({"schema": "public", "table": "a"}, "public", "a"),
        ({"table": "a"}, "public", "a"),
        ({"schema": "s"}, "s", "*"),
        ({"schema": "*", "table": "*"}, "*", "*"),
    ],
)
def test_missing_names_have_a_meaning(members: dict[str, object], schema: str, table: str) -> None:
    found = item(**members)
    assert (found.event, found.schema, found.table, found.problem) == ("*", schema, table, "")


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ({}, "No subscription params provided."),
        ({"schema": "public", "filter": "a=eq.1"}, "No subscription params provided."),
        ({"table": "a", "filter": ["wrong"]}, 'Error parsing `filter` params: [["wrong"]]'),
        ({"table": "a", "select": "b"}, "Error parsing `select` params: expected a list of column name strings"),
        ({"table": "a", "select": [1]}, "Error parsing `select` params: expected a list of column name strings"),
        ({"schema": "s", "select": ["b"]}, "Column selection is not supported for wildcard subscriptions."),
        ({"schema": "*", "table": "a", "select": ["b"]}, "Column selection is not supported for wildcard"),
    ],
)
def test_an_item_that_means_nothing_says_why(members: dict[str, object], problem: str) -> None:
    assert item(**members).problem.startswith(problem)


@pytest.mark.parametrize("text", ["", "  ", None])
def test_a_blank_filter_is_none(text: object) -> None:
    assert item(table="a", filter=text).filter is None


def test_items_are_bounded() -> None:
    config = parse({"postgres_changes": [{"table": "a"}] * (ITEMS_MAX + 1)})
    assert "Too many items" in config.problem
    assert len(config.items) == ITEMS_MAX + 1


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        ({"wait": True}, 15.0),
        ({"wait": "true", "timeout": 60_000}, 20.0),
        ({"wait": True, "timeout": -1}, 15.0),
        ({"wait": True, "timeout": "x"}, 15.0),
        ({"wait": False, "timeout": 9}, None),
        (None, None),
        (7, None),
    ],
)
def test_waiting_is_bounded(options: object, seconds: float | None) -> None:
    assert parse({"postgres_changes_options": options}).wait_seconds == seconds


def test_a_join_without_config_is_legacy() -> None:
    config = parse_join(topic("realtime:public:todos:owner=eq.7"), b'{"user_token":"t","access_token":"u"}')
    [found] = config.items
    assert (config.shape, config.token) == (Shape.LEGACY, "t")
    assert (found.schema, found.table, found.filter) == ("public", "todos", "owner=eq.7")
    assert config.echoed == config.items


@pytest.mark.parametrize("payload", [b"{}", b'{"config":{}}', b'{"config":{"postgres_changes":[]}}'])
def test_a_table_topic_without_items_is_a_feed(payload: bytes) -> None:
    config = parse_join(topic("realtime:table:public.users"), payload)
    [found] = config.items
    assert (config.shape, found.schema, found.table, config.echoed) == (Shape.FEED, "public", "users", ())


def test_a_table_topic_with_items_is_a_room() -> None:
    config = parse_join(topic("realtime:table:public.users"), b'{"config":{"postgres_changes":[{"table":"a"}]}}')
    assert (config.shape, len(config.echoed)) == (Shape.CHANGES, 1)


def test_an_echo_keeps_the_clients_own_text() -> None:
    assert ChangeItem(b'{ "a" : 1.50 }').echo(7) == b'{"a" : 1.50,"id":7}'
    assert ChangeItem(b"{}").echo(7) == b'{"id":7}'


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
MEMBERS = ["schema", "table", "filter", "select", "event", "since", "snapshot", "id"]
ITEM = st.dictionaries(st.sampled_from(MEMBERS), JSON)
CONFIG = st.dictionaries(
    st.sampled_from(["broadcast", "presence", "private", "postgres_changes", "postgres_changes_options"]),
    JSON | st.lists(ITEM | JSON, max_size=4),
)


@given(CONFIG | JSON)
def test_any_config_is_read_and_any_item_echoed(config: object) -> None:
    found = parse(config)
    for each in found.items:
        assert each.problem or (each.schema and each.table)
        echoed = json.loads(each.echo(5))
        assert echoed["id"] == 5
        sent = json.loads(each.raw)
        assert set(echoed) == {*sent, "id"}


@given(st.binary(max_size=60))
def test_any_payload_is_read(payload: bytes) -> None:
    assert parse_join(topic(), payload).shape in (Shape.LEGACY, Shape.CHANGES)


@pytest.mark.parametrize("where", [{}, {"table": "*"}, {"schema": "*", "table": "t"}, {"schema": "public"}])
def test_a_snapshot_is_of_one_table(where: dict[str, str]) -> None:
    found = item(**{"schema": "public", **where}, snapshot=True)
    assert found.problem.startswith("A snapshot is not supported for wildcard subscriptions") == bool(found.problem)
    assert bool(found.problem) == (found.table == "*" or found.schema == "*")
    assert item(schema="public", table="t", snapshot="true").snapshot


@pytest.mark.parametrize("config", [{"config": {}}, {}])
def test_a_feed_says_beside_its_config_where_it_begins(config: dict[str, object]) -> None:
    def feed(text: str, **members: object) -> ChangeItem:
        [found] = parse_join(topic(text), json.dumps({**config, **members}).encode()).items
        return found

    one = feed("realtime:table:public.users", since="c.1.2.3", snapshot=True)
    assert (one.since, one.snapshot, one.problem) == ("c.1.2.3", True, "")
    plain = feed("realtime:table:public.users", since=7, snapshot="odd")
    assert (plain.since, plain.snapshot, plain.problem) == (None, False, "")
    assert feed("realtime:table:public.*", snapshot=True).problem
    assert not feed("realtime:table:public.*", since="c.1.2.3").problem
