"""What was met lately: bounded, and never forgotten too soon."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.shell.channels_support import snapshot, transaction
from walstream.rooms import Broadcast, RoomKey
from walstream.shell.channels import recent_ids
from walstream.shell.channels.message_store import new_id
from walstream.shell.channels.recent_ids import FreshMessages, RecentIds


@given(st.lists(st.integers(0, 30)), st.integers(1, 5))
def test_the_newest_are_known_and_no_more_than_twice_as_many(numbers: list[int], bound: int) -> None:
    ids = RecentIds(bound)
    distinct: list[int] = []
    for number in numbers:
        if number in distinct[-bound:]:
            assert not ids.add(f"id {number}")
        elif ids.add(f"id {number}"):
            distinct.append(number)
        assert f"id {number}" in ids
    assert all(f"id {number}" in ids for number in distinct[-bound:])
    assert sum(f"id {number}" in ids for number in range(31)) <= 2 * bound


def test_a_uuid_is_the_same_in_any_case() -> None:
    ids = RecentIds()
    id_ = new_id()
    assert ids.add(id_)
    assert not ids.add(id_.upper())


def test_new_ids_rise_with_time_and_are_all_different() -> None:
    ids = [new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(id_[14] == "7" and id_[19] in "89ab" for id_ in ids)
    assert [id_[:12] for id_ in ids] == sorted(id_[:12] for id_ in ids)


def broadcast(id_: str, payload: bytes = b"{}", room: str = "a") -> Broadcast:
    return Broadcast(room=RoomKey(room), event="e", payload=payload, id=id_)


def test_fresh_messages_are_those_that_a_snapshot_does_not_see() -> None:
    fresh = FreshMessages()
    for xid in (99, 100, 101):
        fresh.add(transaction(xid), broadcast(str(xid)))
    fresh.add(transaction(102), broadcast("other", room="b"))
    assert [b.id for b in fresh.unseen(RoomKey("a"), snapshot(100), (), fresh.count)] == ["100", "101"]
    assert [b.id for b in fresh.unseen(RoomKey("a"), snapshot(100), {"100"}, fresh.count)] == ["101"]
    assert [b.id for b in fresh.unseen(RoomKey("a"), snapshot(100), (), 0)] == []


def test_fresh_messages_are_bounded() -> None:
    fresh = FreshMessages()
    for xid in range(recent_ids.FRESH_MAX + 10):
        fresh.add(transaction(xid + 1), broadcast(str(xid)))
    assert len(fresh.unseen(RoomKey("a"), snapshot(1), (), fresh.count)) == recent_ids.FRESH_MAX
    for xid in range(20):
        fresh.add(transaction(xid + 10_000), broadcast("large", b"x" * 1_000_000))
    assert len(fresh.unseen(RoomKey("a"), snapshot(1), (), fresh.count)) == 8
