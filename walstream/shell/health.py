"""Health: the board on which every part of the daemon writes its state, and the answers that are read from it.

Plain values and no I/O; who writes what is named at each method.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Literal

import msgspec
import structlog

from walstream.history.budget import Budget
from walstream.telemetry.log import HEALTH_CHANGED

ReaderState = Literal["starting", "streaming", "standby", "retrying", "poisoned", "stopped"]
Body = dict[str, object]

STALE_HEARTBEATS: Final = 3
"""Heartbeats that may be overdue before the stream counts as degraded."""

log = structlog.get_logger()


class SlotFacts(msgspec.Struct, frozen=True):
    """What pg_replication_slots says about our slot; None where the server does not say.

    ``lag_bytes``: written but not confirmed. ``retained_bytes``: WAL kept because of the slot. ``safe_bytes``: what may
    still be written before the slot is lost. ``failover``: whether standbys keep a copy of it. ``kept_by``: the open
    transaction because of which WAL is kept, or after which the slot ``is_made``, and what ends it.
    """

    name: str
    plugin: str
    active: bool
    lag_bytes: int | None = None
    wal_status: str | None = None
    retained_bytes: int | None = None
    safe_bytes: int | None = None
    failover: bool | None = None
    budget: Budget | None = None
    is_made: bool = True
    kept_by: str | None = None


class SlotTurn(msgspec.Struct, frozen=True):
    """The newest turn of the slot's life, why it came, and when: in monotonic seconds."""

    turn: str = "unknown"
    detail: str = ""
    at: float = 0.0


class Health:
    """The state of this node. ``clock``: monotonic seconds."""

    def __init__(
        self,
        *,
        version: str,
        node: str,
        heartbeat_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.version = version
        self.node = node
        self.clients: Callable[[], int] = lambda: 0
        self.subscriptions: Callable[[], int] = lambda: 0
        self.doubts: Callable[[], list[Body]] = list
        self.slot: SlotFacts | None = None
        self.slot_turn = SlotTurn()
        self.draining = False
        self.reader: ReaderState = "starting"
        self.reader_reason = ""
        self.plan_reason = ""
        self.round_trip_seconds: float | None = None
        self._clock = clock
        self._started = clock()
        self._stale_seconds = heartbeat_seconds * STALE_HEARTBEATS
        self._database: bool | None = None
        self._database_reason = "not asked yet"
        self._emitted: float | None = None
        self._received: float | None = None
        self._was_ready = False
        self._announced = ""

    # -- written

    def database_up(self) -> None:
        """By whoever got an answer from PostgreSQL."""
        self._database, self._database_reason = True, ""
        self._announce()

    def database_down(self, reason: str) -> None:
        """By whoever did not."""
        self._database, self._database_reason = False, reason
        self._announce()

    def reader_is(self, state: ReaderState, reason: str = "") -> None:
        """By the WAL reader at each change.

        ``standby``: another daemon holds the slot. ``poisoned``: there is something in the WAL that it cannot read.
        """
        self.reader, self.reader_reason = state, reason
        if state == "standby":
            # Another node streams: clients are better off there, and here everything begins anew.
            self._was_ready, self._received = False, None
        self._announce()

    def plan_is(self, reason: str) -> None:
        """By whoever watches the table of subscriptions. ``reason``: what is the matter with it, "" for nothing."""
        self.plan_reason = reason
        self._announce()

    def slot_turned(self, turn: str, detail: str) -> None:
        """By whoever tells the turns of the slot's life."""
        self.slot_turn = SlotTurn(turn, detail, self._clock())

    def heartbeat_emitted(self) -> None:
        """By the heartbeat, when it has written to the WAL."""
        self._emitted = self._clock()

    def heartbeat_received(self) -> None:
        """By the reader, when a heartbeat came back through the slot."""
        self._received = self._clock()
        if self._emitted is not None:
            self.round_trip_seconds = self._received - self._emitted
        self._announce()

    def drain(self) -> None:
        """By the edge, before anything else is shut down."""
        self.draining = True
        self._announce()

    # -- read

    def live(self) -> tuple[int, Body]:
        """Whether the process runs: it does, if it can say so."""
        return 200, {"status": "live"}

    def ready(self) -> tuple[int, Body]:
        """Whether clients should be sent here.

        503 until the slot streams and a heartbeat has come back once; then 200, with ``degraded`` and the reasons
        while something is amiss, since that may be over soon; 503 again when draining, while another node has the slot,
        and while something in the WAL keeps the stream from going on.
        """
        status, reasons = self._judge()
        return (200 if status in ("ready", "degraded") else 503), {"status": status, "reasons": reasons}

    def health(self) -> Body:
        """Everything on the board, for ``/health``."""
        now = self._clock()
        status, reasons = self._judge()
        database = {None: "unknown", True: "up", False: "down"}[self._database]
        return {
            "status": status,
            "reasons": reasons,
            "version": self.version,
            "node": self.node,
            "draining": self.draining,
            "database": {"status": database, "reason": self._database_reason},
            "slot": msgspec.to_builtins(self.slot) if self.slot is not None else None,
            "slot_life": {
                "state": self.slot_turn.turn,
                "cause": self.slot_turn.detail,
                "seconds_ago": round(now - self.slot_turn.at, 3) if self.slot_turn.at else None,
            },
            "reader": {"status": self.reader, "reason": self.reader_reason},
            "heartbeat": {
                "emitted_seconds_ago": None if self._emitted is None else round(now - self._emitted, 3),
                "received_seconds_ago": None if self._received is None else round(now - self._received, 3),
                "round_trip_seconds": None if self.round_trip_seconds is None else round(self.round_trip_seconds, 6),
            },
            "clients": self.clients(),
            "subscriptions": self.subscriptions(),
            "doubts": self.doubts(),
            "uptime": round(now - self._started, 3),
        }

    def _judge(self) -> tuple[str, list[str]]:
        reasons = []
        if self._database is not True:
            reasons.append(f"database: {self._database_reason}")
        if self.reader != "streaming":
            reasons.append(f"reader: {self.reader}" + (f": {self.reader_reason}" if self.reader_reason else ""))
        if self.plan_reason:
            reasons.append(f"plan: {self.plan_reason}")
        slot = self.slot
        if slot is not None and slot.kept_by and not slot.is_made:
            reasons.append(f"slot: it is made after {slot.kept_by}")
        elif slot is not None and slot.budget is not None and slot.budget.is_alarming:
            reasons.append(f"slot: {slot.budget}" + (f", kept by {slot.kept_by}" if slot.kept_by else ""))
        if self._received is None:
            reasons.append("heartbeat: none has come back yet")
        elif self._clock() - self._received > self._stale_seconds:
            reasons.append("heartbeat: overdue")
        if self.reader == "streaming" and self._received is not None:
            self._was_ready = True
        if self.draining:
            return "draining", ["draining", *reasons]
        if self.reader == "poisoned":
            return "poisoned", reasons
        if not self._was_ready:
            return "starting", reasons
        return ("degraded" if reasons else "ready"), reasons

    def _announce(self) -> None:
        status, reasons = self._judge()
        if status != self._announced:
            self._announced = status
            write = log.warning if status in ("degraded", "poisoned") else log.info
            write(HEALTH_CHANGED, status=status, reasons=reasons, node=self.node)
