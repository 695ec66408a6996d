"""What members of a room are told of who is present: payloads, merging, refs, several nodes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from walstream.channel.presence import PresenceRoom, count_people
from walstream.rooms import PresenceEntry, RoomKey

ROOM = RoomKey("lobby")
refs = iter(f"r{number}" for number in range(10**9))


def entry(name: str, meta: bytes | None = b"{}", *, key: str = "", ref: str = "") -> PresenceEntry:
    return PresenceEntry(ROOM, name, key or name, ref or next(refs), meta)


def committed(room: PresenceRoom) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The next diff: joins and leaves, each metas by key."""
    diff = room.commit()
    assert diff is not None
    return {
        side: {key: under["metas"] for key, under in metas.items()}
        for side, metas in json.loads(diff, object_pairs_hook=unique).items()
    }


def state(room: PresenceRoom) -> dict[str, list[dict[str, Any]]]:
    return {key: under["metas"] for key, under in json.loads(room.state, object_pairs_hook=unique).items()}


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len({key for key, _ in pairs}) == len(pairs), f"a name twice: {pairs}"
    return dict(pairs)


def test_nobody_is_an_empty_state_and_no_diff() -> None:
    room = PresenceRoom()
    assert (room.state, room.commit(), room.is_dirty, room.is_empty, len(room)) == (b"{}", None, False, True, 0)


def test_a_presence_comes_changes_and_goes() -> None:
    room = PresenceRoom()
    assert room.apply("n", entry("e", b'{"name":"Ada"}', key="ada", ref="one"))
    assert (room.is_dirty, room.is_empty, len(room), room.state) == (True, False, 0, b"{}")
    assert room.commit() == b'{"joins":{"ada":{"metas":[{"phx_ref":"one","name":"Ada"}]}},"leaves":{}}'
    assert room.state == b'{"ada":{"metas":[{"phx_ref":"one","name":"Ada"}]}}'
    assert (room.is_dirty, len(room)) == (False, 1)

    assert room.apply("n", entry("e", b'{"name":"Eve"}', key="ada", ref="two"))
    assert committed(room) == {
        "joins": {"ada": [{"phx_ref": "two", "phx_ref_prev": "one", "name": "Eve"}]},
        "leaves": {"ada": [{"phx_ref": "one", "name": "Ada"}]},
    }
    assert state(room) == {"ada": [{"phx_ref": "two", "name": "Eve"}]}

    assert room.apply("n", entry("e", None))
    assert not room.is_empty, "its leaving has to be told"
    assert committed(room) == {"joins": {}, "leaves": {"ada": [{"phx_ref": "two", "name": "Eve"}]}}
    assert (room.state, room.is_empty, len(room)) == (b"{}", True, 0)


def test_the_same_meta_again_is_no_change() -> None:
    room = PresenceRoom()
    room.apply("n", entry("e", b'{"a":1}', ref="one"))
    assert not room.apply("n", entry("e", b'{"a":1}', ref="two"))
    assert state_refs(room) == ["one"]
    assert room.entries("n")[0].ref == "one"
    assert not room.apply("n", entry("x", None)), "who was not there cannot leave"


def state_refs(room: PresenceRoom) -> list[str]:
    room.commit()
    return [meta["phx_ref"] for metas in state(room).values() for meta in metas]


def test_what_comes_and_goes_within_a_tick_is_not_told() -> None:
    room = PresenceRoom()
    room.apply("n", entry("e"))
    assert room.apply("n", entry("e", None))
    assert room.is_dirty
    assert (room.commit(), room.state, room.is_empty) == (None, b"{}", True)


def test_several_updates_within_a_tick_are_one() -> None:
    room = PresenceRoom()
    room.apply("n", entry("e", b'{"at":1}', ref="a"))
    room.commit()
    room.apply("n", entry("e", b'{"at":2}', ref="b"))
    room.apply("n", entry("e", b'{"at":3}', ref="c"))
    assert committed(room) == {
        "joins": {"e": [{"phx_ref": "c", "phx_ref_prev": "a", "at": 3}]},
        "leaves": {"e": [{"phx_ref": "a", "at": 1}]},
    }


def test_leaving_and_coming_back_within_a_tick_is_an_update() -> None:
    room = PresenceRoom()
    room.apply("n", entry("e", b'{"at":1}', ref="a"))
    room.commit()
    room.apply("n", entry("e", None))
    room.apply("n", entry("e", b'{"at":1}', ref="b"))
    assert committed(room) == {
        "joins": {"e": [{"phx_ref": "b", "phx_ref_prev": "a", "at": 1}]},
        "leaves": {"e": [{"phx_ref": "a", "at": 1}]},
    }


def test_another_key_is_a_leave_and_a_join() -> None:
    room = PresenceRoom()
    room.apply("n", entry("e", key="ada", ref="a"))
    room.commit()
    room.apply("n", entry("e", key="eve", ref="b"))
    assert committed(room) == {"joins": {"eve": [{"phx_ref": "b"}]}, "leaves": {"ada": [{"phx_ref": "a"}]}}
    assert state(room) == {"eve": [{"phx_ref": "b"}]}


def test_entries_share_a_key_in_the_order_of_arrival() -> None:
    room = PresenceRoom()
    for name in ("z", "a", "m"):
        room.apply("n", entry(name, key="ada", ref=name))
    room.apply("far", entry("z", key="ada", ref="far"))
    assert state_refs(room) == ["z", "a", "m", "far"]
    room.apply("n", entry("a", None))
    room.apply("n", entry("z", b'{"new":1}', key="ada", ref="new"))
    assert state_refs(room) == ["m", "far", "new"]
    assert len(room) == 1


def test_a_node_that_is_lost_takes_its_presences_along() -> None:
    room = PresenceRoom()
    room.apply("near", entry("e", key="ada", ref="near"))
    room.apply("far", entry("e", key="ada", ref="far"))
    room.commit()
    assert room.drop("far")
    assert not room.drop("far")
    assert committed(room) == {"joins": {}, "leaves": {"ada": [{"phx_ref": "far"}]}}
    assert state(room) == {"ada": [{"phx_ref": "near"}]}


def test_a_node_that_is_back_within_the_tick_was_never_lost() -> None:
    room = PresenceRoom()
    kept = [entry("a", ref="a"), entry("b", ref="b")]
    assert room.replace("far", kept)
    room.commit()
    room.drop("far")
    assert room.replace("far", reversed(kept))
    assert room.commit() is None
    assert state_refs(room) == ["a", "b"]


def test_a_whole_state_changes_what_is_different_in_it() -> None:
    room = PresenceRoom()
    room.replace("far", [entry("a", ref="a"), entry("b", ref="b"), entry("c", ref="c")])
    room.commit()
    assert not room.replace("far", [entry("a"), entry("b"), entry("c")]), "the same metas"
    assert room.replace("far", [entry("a"), entry("b", b'{"x":1}', ref="B"), entry("d", ref="d"), entry("c", None)])
    diff = committed(room)
    assert diff["joins"] == {"b": [{"phx_ref": "B", "phx_ref_prev": "b", "x": 1}], "d": [{"phx_ref": "d"}]}
    assert diff["leaves"] == {"c": [{"phx_ref": "c"}], "b": [{"phx_ref": "b"}]}
    assert [held.entry for held in room.entries("far")] == ["a", "b", "d"]
    assert room.entries("near") == []


@pytest.mark.parametrize(
    ("meta", "members"),
    [
        (b"{}", {}),
        (b" { } ", {}),
        (b'\n{ "a" : [1, {"phx": 2}] }\t', {"a": [1, {"phx": 2}]}),
        (b'{"phx_ref":"mine","a":1,"phx_ref_prev":"b"}', {"a": 1}),
        (b'{"phx_ref":"mine"}', {}),
        (rb'{"\u0070hx_ref":"mine","a":"\u00e9"}', {"a": "é"}),
        (rb'{"phx_ref":1,"\u0070hx_ref":2}', {}),
        (rb'{"deep":{"phx_ref":"kept"},"b":"\u0041"}', {"deep": {"phx_ref": "kept"}, "b": "A"}),
        ('{"phx_refs":1,"ü":"\\\\u0041"}'.encode(), {"phx_refs": 1, "ü": "\\u0041"}),
    ],
)
def test_the_refs_are_the_servers(meta: bytes, members: dict[str, Any]) -> None:
    room = PresenceRoom()
    room.apply("n", entry("e", b'{"before":1}', ref="a"))
    room.commit()
    room.apply("n", entry("e", meta, ref="b"))
    assert committed(room)["joins"] == {"e": [{"phx_ref": "b", "phx_ref_prev": "a", **members}]}
    assert state(room) == {"e": [{"phx_ref": "b", **members}]}
    assert room.entries("n")[0].meta == meta


@pytest.mark.parametrize("key", ["", 'a"b', "\\", "метрика", "🙂", "\x00\n", "</script>", "__proto__"])
def test_any_text_is_a_key(key: str) -> None:
    room = PresenceRoom()
    room.apply("n", PresenceEntry(ROOM, "e", key, 'r"\\', b"{}"))
    assert committed(room)["joins"] == {key: [{"phx_ref": 'r"\\'}]}
    assert state(room) == {key: [{"phx_ref": 'r"\\'}]}


def test_the_state_is_one_object_until_something_is_told() -> None:
    room = PresenceRoom()
    room.apply("n", entry("a"))
    room.commit()
    first = room.state
    room.apply("n", entry("b"))
    room.apply("n", entry("b", None))
    assert room.state is first
    room.commit()
    assert room.state is first
    room.apply("n", entry("b"))
    assert room.state is first, "a joiner gets what is told already; the rest comes with the tick's diff"
    room.commit()
    assert room.state != first


def test_people_are_counted_once() -> None:
    rooms = [PresenceRoom(), PresenceRoom()]
    for room in rooms:
        room.apply("n", entry("phone", key="ada"))
        room.apply("n", entry("desk", key="ada"))
    rooms[0].apply("far", entry("e", key="eve"))
    for room in rooms:
        room.commit()
    assert (count_people(rooms), len(rooms[0]), len(rooms[1])) == (2, 2, 1)
