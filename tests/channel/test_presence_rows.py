"""Rows of one node's presences: whatever happens and fails, the table comes to be what it should be."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from walstream.channel.presence_rows import BATCH_BYTES, NAME_BYTES_MAX, PresenceRow, PresenceRows, RowKey
from walstream.rooms import PresenceEntry, RoomKey

NAMES = st.sampled_from(["e1", "e2", "e3", "e4"])
USERS = st.sampled_from(["ada", "eve", None])
TOPICS = st.sampled_from(["lobby", "kitchen"])
METAS = st.sampled_from([b"{}", b'{"status":"away"}', b'{"a":1}'])
IDLE = 300.0


def entry(name: str, meta: bytes | None = b"{}", *, key: str = "key", topic: str = "lobby") -> PresenceEntry:
    return PresenceEntry(RoomKey(topic), name, key, "ref", meta)


def rows_of(*users: str) -> PresenceRows:
    rows = PresenceRows()
    for user in users:
        rows.changed(entry(user), user, 0.0)
    return rows


def flush(rows: PresenceRows, limit: int = 100) -> tuple[list[PresenceRow], list[RowKey]]:
    pending = rows.pending(limit)
    rows.wrote(*pending)
    return pending


class TableMachine(RuleBasedStateMachine):
    """A table that takes what is pending, loses it, or is changed by others."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = PresenceRows(IDLE)
        self.now = 0.0
        self.entries: dict[str, tuple[RowKey, bytes, float]] = {}  # in the order of latest change
        self.table: dict[RowKey, tuple[str, bytes]] = {}

    @rule(name=NAMES, user=USERS, topic=TOPICS, meta=METAS)
    def track(self, name: str, user: str | None, topic: str, meta: bytes) -> None:
        self.rows.changed(entry(name, meta, topic=topic), user, self.now)
        self.entries.pop(name, None)
        self.entries[name] = (RowKey(user or "key", topic), meta, self.now)

    @rule(name=NAMES)
    def untrack(self, name: str) -> None:
        self.rows.changed(entry(name, None), None, self.now)
        self.entries.pop(name, None)

    @rule(name=NAMES)
    def touch(self, name: str) -> None:
        self.rows.touched(name, self.now)
        if name in self.entries:
            key, meta, _ = self.entries[name]
            self.entries[name] = (key, meta, self.now)

    @rule(seconds=st.sampled_from([0.0, 100.0, IDLE]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.rows.age(self.now)

    @rule(limit=st.integers(1, 3), fails=st.booleans(), effect=st.booleans())
    def write(self, limit: int, fails: bool, effect: bool) -> None:
        rows, gone = self.rows.pending(limit)
        assert len(rows) + len(gone) <= limit
        if not fails or effect:
            for row in rows:
                self.table[row.key] = (row.status, row.metadata)
            for key in gone:
                self.table.pop(key, None)
        if not fails:
            self.rows.wrote(rows, gone)

    @rule(how=st.sampled_from(["nothing", "crash", "cleanup", "tampered", "stranger"]))
    def check(self, how: str) -> None:
        if how == "crash":
            self.table.clear()
        elif how == "cleanup" and self.table:
            self.table.pop(next(iter(self.table)))
        elif how == "tampered" and self.table:
            key = next(iter(self.table))
            self.table[key] = ("away" if self.table[key][0] == "online" else "online", b"{}")
        elif how == "stranger":
            self.table[RowKey("stranger", "lobby")] = ("online", b"{}")
        self.rows.found({key: status for key, (status, _) in self.table.items()})

    @rule()
    def settle(self) -> None:
        self.rows.age(self.now)
        self.rows.found({key: status for key, (status, _) in self.table.items()})
        while (pending := self.rows.pending(2)) != ([], []):
            for row in pending[0]:
                self.table[row.key] = (row.status, row.metadata)
            for key in pending[1]:
                self.table.pop(key)
            self.rows.wrote(*pending)
        assert self.table == self.wanted()
        assert self.rows.backlog == 0

    def wanted(self) -> dict[RowKey, tuple[str, bytes]]:
        wanted: dict[RowKey, tuple[str, bytes]] = {}
        for key, meta, heard in self.entries.values():
            is_online = meta != b'{"status":"away"}' and self.now - heard < IDLE
            known = wanted.get(key, ("away", b""))[0]
            wanted[key] = ("online" if is_online or known == "online" else "away", meta)
        return wanted

    @invariant()
    def people_are_counted(self) -> None:
        assert len(self.rows) == len({key for key, _, _ in self.entries.values()})


TestTable = TableMachine.TestCase


def test_only_what_is_different_in_the_end_is_written() -> None:
    rows = rows_of("ada")
    assert flush(rows) == ([PresenceRow(RowKey("ada", "lobby"), "online", b"{}")], [])
    rows.changed(entry("ada", b'{"x":1}'), "ada", 1.0)
    rows.changed(entry("ada", b"{}"), "ada", 1.0)
    rows.changed(entry("eve"), "eve", 1.0)
    rows.changed(entry("eve", None), None, 1.0)
    rows.touched("ada", 2.0)
    assert (rows.pending(100), rows.backlog) == (([], []), 0)


def test_who_was_idle_is_back_at_the_next_sign_of_life() -> None:
    rows = rows_of("ada")
    flush(rows)
    rows.age(IDLE - 1)
    assert flush(rows) == ([], [])
    rows.age(IDLE)
    assert [row.status for row in flush(rows)[0]] == ["away"]
    assert flush(rows) == ([], [])
    rows.touched("ada", IDLE + 1)
    assert [row.status for row in flush(rows)[0]] == ["online"]
    rows.touched("ada", IDLE + 2)
    assert flush(rows) == ([], [])


def test_a_status_that_is_none_is_online() -> None:
    told: dict[bytes, Any] = {
        b'{"status":"away"}': "away",
        b'{ "status" : "away" , "a": [] }': "away",
        b'{"status":"online"}': "online",
        b'{"status":"offline"}': "online",
        b'{"status":"busy"}': "online",
        b'{"status":{"away":"away"}}': "online",
        b'{"a":{"status":"away"}}': "online",
        b'{"status":': "online",
        b'["status"]': "online",
    }
    for meta, status in told.items():
        rows = PresenceRows()
        rows.changed(entry("e", meta), "ada", 0.0)
        assert rows.pending(1)[0][0].status == status, meta


def test_who_is_named_in_no_way_is_named_by_the_entry() -> None:
    rows = PresenceRows()
    rows.changed(entry("e1", key=""), None, 0.0)
    rows.changed(entry("e2", key="k\0"), "", 0.0)
    rows.changed(entry("e3", key="k"), "\0", 0.0)
    assert [row.key.user_id for row in rows.pending(9)[0]] == ["e1", "k"]


def test_a_name_that_no_index_holds_gets_no_row() -> None:
    rows = PresenceRows()
    rows.changed(entry("e", topic="t" * 10), "ä" * (NAME_BYTES_MAX // 2 - 5), 0.0)
    rows.changed(entry("f", topic="t" * 10), "ä" * (NAME_BYTES_MAX // 2 - 4), 0.0)
    rows.touched("f", 1.0)
    rows.changed(entry("f", None), None, 1.0)
    assert len(flush(rows)[0]) == 1


def test_a_batch_is_bounded_in_bytes_too() -> None:
    rows = PresenceRows()
    large = b'{"a":"' + b"x" * BATCH_BYTES + b'"}'
    for name in ("a", "b"):
        rows.changed(entry(name, large), name, 0.0)
    rows.changed(entry("c"), "c", 0.0)
    assert [row.key.user_id for row in flush(rows)[0]] == ["a"]
    assert [row.key.user_id for row in flush(rows)[0]] == ["b"]
    assert [row.key.user_id for row in flush(rows)[0]] == ["c"]


def test_a_write_that_failed_may_have_taken_effect() -> None:
    rows = rows_of("ada")
    flush(rows)
    rows.changed(entry("ada", b'{"x":1}'), "ada", 1.0)
    assert len(rows.pending(9)[0]) == 1  # and nobody says that it was written
    rows.changed(entry("ada", b"{}"), "ada", 2.0)
    assert flush(rows) == ([PresenceRow(RowKey("ada", "lobby"), "online", b"{}")], [])
    rows.changed(entry("eve"), "eve", 3.0)
    rows.pending(9)
    rows.changed(entry("eve", None), None, 4.0)
    assert flush(rows) == ([], [RowKey("eve", "lobby")])
    assert rows.pending(9) == ([], [])
