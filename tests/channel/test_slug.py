"""Slugs in every script, and which of them are refused."""

from __future__ import annotations

import unicodedata
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.channel.slug import SLUG_BYTES_MAX, is_uuid, slug_of, slug_problem
from walstream.channel.topic import PREFIX, TOPIC_BYTES_MAX, parse_topic


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("General", "general"), ("Team  Alpha", "team-alpha"), (" - a - b - ", "a-b"), ("O'Brien", "obrien"),
        ("a.b/c", "abc"), ("snake_case", "snake_case"), ("Größe", "grösse"), ("ΣΊΣΥΦΟΣ", "σίσυφοσ"),
        ("日本 語", "日本-語"), ("مرحبا بالعالم", "مرحبا-بالعالم"), ("नमस्ते", "नमस्ते"), ("🎉", "🎉"),
        ("👩‍👩‍👧 Family", "👩‍👩‍👧-family"), ("👍🏽", "👍🏽"),
        ("ﬁx ①", "fix-1"), ("", ""), ("!?", ""), ("'; drop table x; --", "drop-table-x"), ("\u202egnp.exe", "gnpexe"),
        ("cafe\u0301", "café"),
    ],
)  # fmt: skip
def test_names_become_slugs(name: str, slug: str) -> None:
    assert slug_of(name) == slug


@given(st.text())
def test_a_slug_is_its_own_slug_and_one_for_all_normal_forms(name: str) -> None:
    slug = slug_of(name)
    assert slug_of(slug) == slug
    assert not any(character.isspace() or unicodedata.category(character) in ("Cc", "Cs") for character in slug)


@given(st.text())
def test_a_slug_without_a_problem_is_a_topic(name: str) -> None:
    slug = slug_of(name)
    if slug_problem(slug) == "":
        topic = parse_topic(PREFIX + slug)
        assert topic is not None
        assert (topic.subtopic, topic.table, topic.fits_binary_frames) == (slug, None, True)


@pytest.mark.parametrize(
    "slug",
    [
        "", "a\nb", "\x7f", "é" * 124, str(uuid.UUID(int=5)), str(uuid.UUID(int=0xABC)).upper(), "table:public.users",
        "realtime:x",
    ],
)  # fmt: skip
def test_slugs_that_no_channel_can_have(slug: str) -> None:
    assert slug_problem(slug)


def test_a_slug_may_have_whatever_else_a_topic_may() -> None:
    for slug in ("a", "a.b", 'it\'s "quoted"', "Mixed Case", "é" * 123, "x" * SLUG_BYTES_MAX, "tables", "' or 1=1 --"):
        assert slug_problem(slug) == ""
    assert len(PREFIX) + SLUG_BYTES_MAX == TOPIC_BYTES_MAX


@given(st.uuids())
def test_ids_are_told_from_slugs(found: uuid.UUID) -> None:
    assert is_uuid(str(found))
    assert is_uuid(str(found).upper())
    for other in (found.hex, f"{{{found}}}", f" {found}", f"{found}\n", f"{found}0"):
        assert not is_uuid(other)
