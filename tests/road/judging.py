"""The oracles of the road: each frame that a client gets is compared with what was committed, in the order it came.

P1 to P4 are the promises of docs/reliability.md. Nothing here knows what the daemon has in memory, but for the moment
at which it loaded its plan: what was committed before is read again by that one. No test lives here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import trio

from tests.road.server import ROW_BYTES_MAX, Committed, Postgres, Row

HISTORY_BYTES: Final = 40_000
HISTORY_SECONDS: Final = 300.0
LAST: Final = 1 << 30
"""A row after all of a transaction."""

Key = tuple[int, int]
"""A change in the order of commits: the transaction's index, and the row's within it."""


class Wish(Protocol):
    """What a client asked for."""

    @property
    def table(self) -> str: ...

    def wants(self, row: Row) -> bool:
        """Whether the row is for it."""
        ...


class Reading(Protocol):
    """The daemon that tells. ``loaded``: how many commits were made when it loaded its plan.

    ``upsets``: the server's when its stream began.
    """

    loaded: int
    upsets: int


class Broken(AssertionError):
    """A promise was not kept."""


def may_be_gone(postgres: Postgres, done: Committed) -> bool:
    """Whether the window need not hold a transaction any more."""
    later = postgres.wal[done.index :]
    size = sum(ROW_BYTES_MAX * (1 + len(each.rows)) for each in later)
    return trio.current_time() - done.at > HISTORY_SECONDS or size > HISTORY_BYTES


def is_captured(plan: Mapping[str, str | None], row: Row) -> bool:
    condition = plan.get(row.table)
    return condition is not None and condition in ("", f"t = '{row.t}'")


def is_large(done: Committed) -> bool:
    """Whether it may have gone to a file, of which the end is not remembered."""
    return ROW_BYTES_MAX * len(done.rows) > HISTORY_BYTES / 4


def may_be_captured(postgres: Postgres, done: Committed) -> bool:
    """By the plan of its time, or by one that it is read again by."""
    plans = [each.plan for each in postgres.wal[done.index :]] + [postgres.planned]
    return any(is_captured(plan, row) for plan in plans for row in done.rows)


def confirmed(postgres: Postgres, position: int) -> None:
    """P4: what is confirmed lies below the oldest commit that the window has to hold."""
    plans = [done.plan for done in postgres.wal] + [postgres.planned]
    start = postgres.slot.start if postgres.slot is not None else 0
    for done in postgres.wal:
        if done.end > position:
            break
        if done.end <= start:
            continue
        always = any(all(is_captured(plan, row) for plan in plans[done.index :]) for row in done.rows)
        if always and not may_be_gone(postgres, done):
            raise Broken(f"P4: {position:x} is confirmed, and the window has to hold what ends at {done.end:x}")


class Judge:
    """Follows one subscriber. ``position``: where it goes on when it comes back."""

    def __init__(self, postgres: Postgres, name: str, wishes: Sequence[Wish]) -> None:
        self.position = ""
        self._postgres = postgres
        self._name = name
        self._wishes = wishes
        self._at: Key = (0, -1)  # everything up to here is judged
        self._asked_at = 0
        self._since = ""
        self._since_key: Key = (0, -1)
        self._key: Key = (0, -1)  # of ``position``
        self._is_subscribed = self._is_told = self._goes_on = False
        self._ids: Sequence[int] = ()
        self._must: Callable[[Committed, Key], bool] = lambda done, key: False
        self._may: Callable[[Committed, Key], bool] = lambda done, key: False
        self._node: Reading | None = None
        self._upsets = 0
        self._overtaken: Key | None = None  # a change that a newer plan kept back, of which a gap has to tell
        self._group: tuple[int, bool] | None = None  # the newest change's transaction, and whether it was marked
        self.outcomes: Counter[str] = Counter()

    def fail(self, text: str) -> None:
        raise Broken(f"{self._name}: {text}")

    # -- what happens to the subscriber

    def asked(self, since: str, node: Reading) -> None:
        self._asked_at = self._postgres.tick
        self._since, self._since_key = since, self._key
        self._is_told = not since
        self._group = None
        self._upsets = node.upsets
        self._node = node

    def lost(self) -> None:
        self._is_subscribed = False
        self._group = None

    def joined(self, said: Mapping[str, Any]) -> None:
        """Everything that queries do not see yet comes from here on, and nothing that they saw before the join."""
        self._is_subscribed = True
        self._ids = said["ids"]
        self.outcomes["joined"] += 1
        if not self._since:
            self._begin(said, self._ended_by)

    def _ended_by(self, done: Committed, tick: int) -> bool:
        return done.ended is not None and done.ended <= tick

    def _begin(self, said: Mapping[str, Any], sees: Callable[[Committed, int], bool]) -> None:
        asked_at, tick = self._asked_at, said["tick"]
        gone = {done.index for done in self._postgres.wal if may_be_gone(self._postgres, done)}
        self._must = lambda done, key: not sees(done, tick) and done.index not in gone
        self._may = lambda done, key: not sees(done, asked_at)
        self._at = (0, -1)
        self._goes_on = False

    @property
    def _loaded(self) -> int:
        return self._node.loaded if self._node is not None else 0

    def resumed(self, said: Mapping[str, Any]) -> None:
        if not self._since:
            self.fail("resumed without a position")
        self.outcomes["resumed"] += 1
        self._is_told = self._goes_on = True
        after = self._at = self._since_key
        self._must = self._may = lambda done, key: key > after

    def gap(self, said: Mapping[str, Any]) -> None:
        """Changes may be missing here, for a reason that has to be true."""
        self.outcomes[said["reason"]] += 1
        self._check_reason(said["reason"], said)
        joins, self._is_told = not self._is_told, True
        self._overtaken = None
        self._group = None
        end = int(said["position"].split(".")[2], 16)
        self.position, self._key = said["position"], self._after(end)
        if joins:
            self._begin(said, self._ended_by)
            return
        # Nothing that was read before comes any more, and everything that comes later does.
        self._at = self._key
        self._must = self._may = lambda done, key: done.end > end

    def _after(self, end: int) -> Key:
        """After everything that ends up to there."""
        index = sum(done.end <= end for done in self._postgres.wal) - 1
        return (index, LAST) if index >= 0 else (0, -1)

    def _check_reason(self, reason: str, said: Mapping[str, Any]) -> None:
        postgres, (index, row) = self._postgres, self._since_key
        after = [done for done in postgres.wal if done.index > index]
        if reason == "too_old":
            within = [done for done in postgres.wal[index : index + 1] if row < len(done.rows) - 1 or is_large(done)]
            lost = [done for done in [*within, *after] if may_be_captured(postgres, done)]
            is_true = said["began"] >= self._lsn or any(may_be_gone(postgres, done) for done in lost)
        elif reason == "plan_changed":
            is_true = any(done.planned and self._wishes_for(done.planned[0]) for done in after)
        else:
            is_true = postgres.upsets > self._upsets or self._since[:8] not in ("", postgres.cluster)
            is_true |= reason == "slot_lost" and said["began"] > self._lsn
        if not is_true:
            self.fail(f"P1: told of a gap ({reason}) that there is none, since {self._since or 'its join'}")

    @property
    def _lsn(self) -> int:
        return int(self._since.split(".")[2], 16) if self._since else 0

    def _wishes_for(self, table: str) -> bool:
        return any(wish.table in ("*", table) for wish in self._wishes)

    # -- changes

    def got(self, data: Mapping[str, Any], ids: Sequence[int]) -> None:
        record = data["record"]
        key = self._postgres.keys.get(record["n"])
        if key is None:
            raise Broken(f"{self._name}: got {record}, which nobody committed")
        done, row = self._postgres.wal[key[0]], self._postgres.wal[key[0]].rows[key[1]]
        where = f"{key} of {row}"
        if not self._is_told:
            self.fail(f"P3: got {where} before it was told what became of {self._since}")
        kind = {"I": "INSERT", "U": "UPDATE"}[row.action]
        if (data["table"], record["t"], data["type"]) != (row.table, row.t, kind):
            self.fail(f"got {where} with other contents: {json.dumps(data)}")
        if list(ids) != [id_ for id_, wish in zip(self._ids, self._wishes, strict=True) if wish.wants(row)] or not ids:
            self.fail(f"got {where} for {ids} of {self._ids}")
        if not is_captured(done.plan, row) and not (self._is_read_late(done) and is_captured(self._late, row)):
            self.fail(f"got {where}, which the plan keeps back")
        if not self._may(done, key):
            self.fail(f"got {where}, which it had or could see before")
        if key <= self._at:
            self.fail(f"P1: got {where} again, or after what was committed later")
        for hole in self._due(key):
            self.fail(f"P1, P3: {hole} of {self._row(hole)} never came, and {where} did")
        self._mark(key, data.get("last") is True)
        self._at = self._key = key
        self.position = data["position"]
        self.outcomes["got"] += 1

    def _row(self, key: Key) -> Row:
        return self._postgres.wal[key[0]].rows[key[1]]

    def _mark(self, key: Key, is_last: bool) -> None:
        """P2: whole transactions, the last change marked."""
        if self._group is not None:
            index, was_last = self._group
            if was_last and index == key[0]:
                self.fail(f"P2: a transaction was marked as over before {key}")
            if not was_last and index != key[0]:
                self.fail(f"P2: {key} came without the end of transaction {index}")
        self._group = key[0], is_last

    def _is_read_late(self, done: Committed) -> bool:
        """Whether the daemon reads it by a plan that it has loaded later."""
        return done.index < self._loaded

    @property
    def _late(self) -> Mapping[str, str | None]:
        return self._postgres.plan_at(self._loaded)

    def _due(self, end: Key) -> Iterator[Key]:
        """Changes before this one that have to come first, and did not."""
        for index in range(self._at[0], min(end[0] + 1, len(self._postgres.wal))):
            done = self._postgres.wal[index]
            for number, row in enumerate(done.rows):
                key = index, number
                if not self._at < key < end or not any(wish.wants(row) for wish in self._wishes):
                    continue
                if not is_captured(done.plan, row) or not self._must(done, key):
                    continue
                if not self._is_read_late(done) or is_captured(self._late, row):
                    yield key
                elif self._goes_on:
                    self._overtaken = key
        if self._overtaken is not None and end[0] >= self._loaded:
            yield self._overtaken

    def settled(self) -> None:
        """All is quiet: who is subscribed has to have everything."""
        if not self._is_subscribed:
            return
        for hole in self._due((len(self._postgres.wal), 0)):
            self.fail(f"P1, P3: {hole} of {self._row(hole)} never came")
        if not self._is_told:
            self.fail(f"P3: was never told what became of {self._since}")
        if self._group is not None and not self._group[1]:
            self.fail(f"P2: transaction {self._group[0]} never ended")

    @property
    def is_subscribed(self) -> bool:
        return self._is_subscribed
