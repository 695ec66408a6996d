"""Clients that take a snapshot and fold what follows into it: what they hold is their tables, whenever all is quiet.

They always come back: within their pages they begin anew, after them they go on from their position, as documented.
The rows that are not in a snapshot are the other subscribers' business, and how often a change comes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from integration.faults.oracles import Complaints
from integration.faults.subscribers import TOPIC, Subscriber, encode
from integration.fixtures.postgres import TestDatabase
from walstream.history.position import Position

SHOWN: Final = 3

Rows = dict[tuple[str, int], dict[str, Any]]
"""By table and key."""


class Folder(Subscriber):
    """One client with an item for each of its tables. ``pages``: of the snapshot under way, or of the last one."""

    queue = 1  # while it does not read, what has yet to come is at the daemon

    def __init__(self, name: str, url: str, tables: Sequence[str]) -> None:
        super().__init__(name, url, resumes=True, tables=tables)
        self.rows: Rows = {}
        self.pages = 0
        self.snapshots = 0  # that came to their end
        self.broken = 0  # that did not, though some pages had come
        self.is_whole = False
        self.starts_anew = False
        self._is_within = False  # a transaction
        self._stops_at = 0

    def has(self, end: int) -> bool:
        """See ``Subscriber``: which of its rows show what ends there, only a comparison can tell."""
        del end
        return self.is_subscribed and self.is_whole and not self.starts_anew

    @property
    def rests(self) -> bool:
        """Whether it has its pages, and whole transactions."""
        return self.is_whole and not self._is_within

    def begin_anew(self, *, stop_at: int = 0) -> None:
        """Hang up, and forget everything. ``stop_at``: read no more once so many pages came, until ``reads`` is set."""
        self._stops_at = stop_at
        self.starts_anew = True

    def compare(self, table: Rows) -> Complaints:
        """What it holds against what there is."""
        held = dict(self.rows)
        found = [f"{self.name}: lacks {key}" for key in table.keys() - held.keys()]
        found += [f"{self.name}: still has {key}" for key in held.keys() - table.keys()]
        found += [
            f"{self.name}: has {held[key]} where {row} is" for key, row in table.items() if held.get(key, row) != row
        ]
        return found[:SHOWN]

    def _join(self) -> bytes:
        self.broken += not self.starts_anew and not self.is_whole and self.pages > 0
        if self.starts_anew or not self.is_whole:
            self.position, self.is_whole, self.starts_anew = "", False, False
            self.rows.clear()
            self.pages = 0
        more = {"since": self.position} if self.position else {}
        assert self.tables is not None
        items = [{"event": "*", "schema": "public", "table": name, "snapshot": True, **more} for name in self.tables]
        return encode(["1", "1", TOPIC, "phx_join", {"config": {"postgres_changes": items}}])

    async def _take(self, frame: Any) -> None:
        event, payload = frame[3], frame[4]
        if self.starts_anew:
            raise OSError("hung up to begin anew")
        if event == "snapshot":
            self._page(payload["data"])
        else:
            await super()._take(frame)

    def _page(self, page: Mapping[str, Any]) -> None:
        if self.is_whole:  # there was no going on after its position
            self.is_whole = False
            self.rows.clear()
            self.pages = 0
        assert page["errors"] is None
        self.pages += 1
        for row in page["rows"]:
            self.rows[page["table"], row["id"]] = row
        if self.pages == self._stops_at:
            self._stops_at, self.reads = 0, False

    async def _told(self, payload: Mapping[str, Any]) -> None:
        event = payload.get("event")
        if event == "gap":
            self.is_whole = False
            raise OSError(f"told of a gap: {payload['reason']}")
        if event == "resumed":
            if not self.is_whole:
                self.snapshots += 1
            self.is_whole = self.is_subscribed = True
            self.position = payload["position"]
            self._is_within = False

    def _change(self, data: Mapping[str, Any]) -> None:
        assert self.is_whole, "a change before the last page"
        new, old, table = data.get("record") or {}, data.get("old_record") or {}, data["table"]
        if data["type"] == "DELETE":
            self.rows.pop((table, old["id"]), None)
        else:
            key = table, new["id"]
            self.rows[key] = {**self.rows.get(key, {}), **new}  # long values that did not change are not told
        self.position, self._is_within = data["position"], data.get("last") is not True
        self.newest = int(Position.parse(self.position).commit_lsn)


def stored(database: TestDatabase, tables: Sequence[str]) -> Rows:
    """The tables as they are."""
    found: Rows = {}
    for table in tables:
        for (row,) in database.query(f"select to_jsonb(t) from public.{table} t"):
            found[table, row["id"]] = row
    return found
