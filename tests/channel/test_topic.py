"""Topics, and the tables that they name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.channel.topic import TableName, parse_legacy, parse_topic


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("realtime:room1", None),
        ("realtime:public:todos", None),
        ("realtime:table:public.users", TableName("public", "users")),
        ("realtime:realtime:table:public.users", TableName("public", "users")),
        ('realtime:table:"My.Schema"."a ""b"""', TableName("My.Schema", 'a "b"')),
        ("realtime:table:Public.Users", TableName("Public", "Users")),
        ("realtime:table:public.*", TableName("public", "*")),
        ("realtime:table:users", None),
        ("realtime:table:a.b.c", None),
        ("realtime:table:.b", None),
        ('realtime:table:""."b"', None),
    ],
)
def test_table_feeds_are_told_from_rooms(text: str, table: TableName | None) -> None:
    topic = parse_topic(text)
    assert topic is not None
    assert (topic.text, topic.subtopic, topic.table) == (text, text.removeprefix("realtime:"), table)


@pytest.mark.parametrize("text", ["", "room", "Realtime:x", "phoenix"])
def test_topics_have_a_prefix(text: str) -> None:
    assert parse_topic(text) is None


@pytest.mark.parametrize(
    ("subtopic", "parts"),
    [
        ("public", ("public", None, None)),
        ("public:todos", ("public", "todos", None)),
        ("public:todos:owner=eq.7", ("public", "todos", "owner=eq.7")),
        ("public:todos:at=eq.10:30", ("public", "todos", "at=eq.10:30")),
        ("*", ("*", None, None)),
    ],
)
def test_legacy_topics_name_a_table_and_a_filter(subtopic: str, parts: tuple[str, str | None, str | None]) -> None:
    assert parse_legacy(subtopic) == parts


@given(st.text(max_size=300))
def test_any_text_is_a_topic_or_none(text: str) -> None:
    topic = parse_topic("realtime:" + text)
    assert topic is not None
    assert topic.subtopic == text


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_quoted_names_read_back(schema: str, table: str) -> None:
    quoted = ".".join('"' + name.replace('"', '""') + '"' for name in (schema, table))
    topic = parse_topic(f"realtime:table:{quoted}")
    assert topic is not None
    assert topic.table == (schema, table)
