"""Channels and members of rows, and what roles may do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.channel.registry import (
    RegisteredChannel,
    Registry,
    Role,
    channel_from,
    may_administer,
    may_moderate,
    may_send,
    membership_from,
    outranks,
)
from walstream.rooms import RoomKey

ROW = {
    "id": "c1", "slug": "general", "name": "General", "type": "private", "persist": False, "retention_hours": 5,
    "metadata": {"max_members": 3, "max_message_bytes": 10, "schemas": {"e": {"type": "object"}}},
}  # fmt: skip


def test_a_row_becomes_a_channel() -> None:
    channel = channel_from(ROW)
    assert channel.room == RoomKey("general", private=True)
    assert (channel.persist, channel.retention_hours, channel.max_members) == (False, 5, 3)
    assert channel.refusal("e", b"{}") == ""
    assert channel.refusal("e", b"[]") != ""
    assert channel.refusal("x", b"[1,2,3,4,5,6]") == "the channel's messages have at most 10 bytes"


@pytest.mark.parametrize("metadata", [None, [], "x", {"max_members": "many", "schemas": 7, "max_message_bytes": -1}])
def test_metadata_that_mean_nothing_bound_nothing(metadata: object) -> None:
    channel = channel_from({**ROW, "metadata": metadata})
    assert channel.max_members is None
    assert channel.refusal("e", b"x" * 100) == ""


def test_a_type_that_nobody_knows_is_private() -> None:
    assert channel_from({**ROW, "type": "secret"}).is_private


@pytest.mark.parametrize(
    ("private", "role", "muted", "allowed"),
    [
        (False, None, False, True),
        (False, None, True, False),
        (True, None, False, False),
        (True, "member", False, True),
        (True, "admin", True, False),
        (True, "service", True, True),
    ],
)
def test_who_may_send(private: bool, role: Role | None, muted: bool, allowed: bool) -> None:
    channel = RegisteredChannel("c", "c", "c", "private" if private else "public")
    assert may_send(channel, role, muted=muted) is allowed


def test_anyone_may_send_where_there_is_no_channel() -> None:
    assert may_send(None, None, muted=False)


def test_what_roles_may_do() -> None:
    roles: tuple[Role | None, ...] = (None, "member", "moderator", "admin", "service")
    assert [may_moderate(role) for role in roles] == [False, False, True, True, True]
    assert [may_administer(role) for role in roles] == [False, False, False, True, True]
    assert outranks("moderator", "member")
    assert not outranks("moderator", "moderator")
    assert not outranks("moderator", "admin")
    assert outranks("admin", "admin")


def test_a_membership_of_a_row() -> None:
    found = membership_from({"channel_id": "c", "user_id": "u", "role": "moderator", "muted": True})
    assert (found.channel_id, found.user, found.role, found.muted) == ("c", "u", "moderator", True)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.booleans())))
def test_the_registry_finds_what_was_put_last(steps: list[tuple[str, str, bool]]) -> None:
    registry, model = Registry(), dict[str, str]()
    for id_, slug, put in steps:
        if put and slug not in {other for key, other in model.items() if key != id_}:
            registry.put(RegisteredChannel(id_, slug, slug))
            model[id_] = slug
        elif not put:
            registry.remove(id_)
            model.pop(id_, None)
    assert {channel.id: channel.slug for channel in registry} == model
    for slug in "xyz":
        found = registry.find(slug)
        assert (found.slug if found else None) == (slug if slug in model.values() else None)
    registry.clear()
    assert len(registry) == 0
