"""Whatever happens in a room: a client that applies state and diffs has what the room has, whenever it came."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from walstream.channel.presence import PresenceRoom, count_people
from walstream.rooms import PresenceEntry, RoomKey

ROOM = RoomKey("lobby")
NODES = st.sampled_from(["near", "far", "sql"])
NAMES = st.sampled_from(["e1", "e2", "e3"])
KEYS = st.sampled_from(["ada", "eve", "", 'q"'])
METAS = st.sampled_from([b"{}", b'{"a":1}', b' {"a": 2 } ', b'{"phx_ref":"x","b":[]}', rb'{"phx_re\u0066":0}'])

Metas = dict[str, list[dict[str, Any]]]


def _metas(text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs), pairs
        return dict(pairs)

    value: dict[str, Any] = json.loads(text, object_pairs_hook=unique)
    return value


class PhoenixClient:
    """What a browser's client does with state and diffs, by the behaviour of Phoenix' and Supabase's own."""

    def __init__(self, state: bytes) -> None:
        self.state: Metas = {key: under["metas"] for key, under in _metas(state).items()}

    def take(self, diff: bytes) -> None:
        """Joins first: what is new under a key stands behind what is known; then leaves, by ref."""
        value = _metas(diff)
        for key, under in value["joins"].items():
            new = [{name: held for name, held in meta.items() if name != "phx_ref_prev"} for meta in under["metas"]]
            refs = [meta["phx_ref"] for meta in new]
            self.state[key] = [meta for meta in self.state.get(key, []) if meta["phx_ref"] not in refs] + new
        for key, under in value["leaves"].items():
            assert key in self.state, "somebody leaves who never came"
            refs = [meta["phx_ref"] for meta in under["metas"]]
            assert set(refs) <= {meta["phx_ref"] for meta in self.state[key]}, "a version leaves that never came"
            left = [meta for meta in self.state[key] if meta["phx_ref"] not in refs]
            if left:
                self.state[key] = left
            else:
                del self.state[key]


class RoomMachine(RuleBasedStateMachine):
    """A room beside the plainest model of it, and clients that joined at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.room = PresenceRoom()
        self.model: dict[tuple[str, str], tuple[str, str, bytes]] = {}  # node, entry → key, ref, meta
        self.told = dict(self.model)
        self.clients = [PhoenixClient(self.room.state)]
        self.version = 0

    def _entry(self, name: str, key: str, meta: bytes | None) -> PresenceEntry:
        self.version += 1
        return PresenceEntry(ROOM, name, key, f"v{self.version}", meta)

    def _put(self, node: str, entry: PresenceEntry) -> bool:
        assert entry.meta is not None
        known = self.model.get((node, entry.entry))
        if known is not None and (known[0], known[2]) == (entry.key, entry.meta):
            return False
        self.model[node, entry.entry] = (entry.key, entry.ref, entry.meta)
        return True

    @rule(node=NODES, name=NAMES, key=KEYS, meta=METAS)
    def track(self, node: str, name: str, key: str, meta: bytes) -> None:
        entry = self._entry(name, key, meta)
        assert self.room.apply(node, entry) == self._put(node, entry)

    @rule(node=NODES, name=NAMES)
    def untrack(self, node: str, name: str) -> None:
        was_there = self.model.pop((node, name), None) is not None
        assert self.room.apply(node, self._entry(name, "whatever", None)) == was_there

    @rule(node=NODES, wanted=st.dictionaries(NAMES, st.tuples(KEYS, METAS)))
    def replace(self, node: str, wanted: dict[str, tuple[str, bytes]]) -> None:
        entries = [self._entry(name, key, meta) for name, (key, meta) in wanted.items()]
        gone = [known for known in self.model if known[0] == node and known[1] not in wanted]
        for known in gone:
            del self.model[known]
        changed = [self._put(node, entry) for entry in entries]
        assert self.room.replace(node, entries) == (bool(gone) or any(changed))

    @rule(node=NODES)
    def drop(self, node: str) -> None:
        gone = [known for known in self.model if known[0] == node]
        for known in gone:
            del self.model[known]
        assert self.room.drop(node) == bool(gone)

    @rule(node=NODES)
    def lose_and_find_again(self, node: str) -> None:
        held = self.room.entries(node)
        self.room.drop(node)
        self.room.replace(node, held)

    @rule()
    def join(self) -> None:
        self.clients.append(PhoenixClient(self.room.state))

    @rule()
    def commit(self) -> None:
        diff = self.room.commit()
        assert (diff is None) == (self.told == self.model), "told exactly when something is different"
        self.told = dict(self.model)
        if diff is not None:
            for client in self.clients:
                client.take(diff)

    @invariant()
    def every_client_has_what_was_told(self) -> None:
        wanted: dict[str, set[tuple[str, str]]] = {}
        for key, ref, meta in self.told.values():
            members = {name: held for name, held in json.loads(meta).items() if name != "phx_ref"}
            wanted.setdefault(key, set()).add((ref, json.dumps(members)))
        state = PhoenixClient(self.room.state).state
        found = {
            key: {(meta.pop("phx_ref"), json.dumps(meta)) for meta in [dict(meta) for meta in metas]}
            for key, metas in state.items()
        }
        assert found == wanted
        assert all(client.state == state for client in self.clients), "also the order under each key"
        assert len(self.room) == len(wanted) == count_people([self.room, self.room])

    @invariant()
    def the_books_are_right(self) -> None:
        assert self.room.is_empty == (not self.model and not self.room.is_dirty)
        held = {(node, entry.entry) for node in ("near", "far", "sql") for entry in self.room.entries(node)}
        assert held == set(self.model)


TestRoom = RoomMachine.TestCase


@given(st.text(max_size=8), st.dictionaries(st.text(max_size=8), st.text(max_size=8) | st.integers()), st.booleans())
def test_any_meta_goes_through_as_it_is(key: str, members: dict[str, Any], ascii_only: bool) -> None:
    room = PresenceRoom()
    room.apply("n", PresenceEntry(ROOM, "e", key, "ref", json.dumps(members, ensure_ascii=ascii_only).encode()))
    diff = room.commit()
    assert diff is not None
    kept = {name: value for name, value in members.items() if name not in ("phx_ref", "phx_ref_prev")}
    assert _metas(diff)["joins"] == _metas(room.state) == {key: {"metas": [{"phx_ref": "ref", **kept}]}}
