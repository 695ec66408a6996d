"""What becomes of the slot: each turn of its life is logged once, counted, and shown on the board.

Who notices what is ``slot_keeper``'s and ``wal_reader``'s business; what clients are told, ``pipeline``'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog

from walstream.shell.health import Health
from walstream.telemetry import log as logs
from walstream.telemetry.metrics import Metrics

TURNS: Final[dict[str, tuple[str, str, str]]] = {
    # turn: (log event, level, what to do)
    "created": (logs.SLOT_CREATED, "info", ""),
    "adopted": (logs.SLOT_ADOPTED, "info", ""),
    "standby": (
        logs.SLOT_TAKEN, "warning", "none if another node stands in; else give each node its own WALSTREAM_SLOT",
    ),
    "freed": (logs.SLOT_FREED, "info", ""),
    "lost": (
        logs.SLOT_LOST, "warning",
        "raise max_slot_wal_keep_size; the slot is made anew, and clients are told of the gap",
    ),
    "dropped": (logs.SLOT_DROPPED, "warning", "none: the slot is made anew, and clients are told of the gap"),
    "moved": (
        logs.SLOT_MOVED, "warning",
        "clients are told of the gap; see who else uses the slot, and give it another name",
    ),
    "ahead": (logs.SLOT_AHEAD, "warning", "none: the slot is made anew, and clients are told of the gap"),
    "over_limit": (
        logs.SLOT_OVER_LIMIT, "warning",
        "the slot is made anew, and clients are told of the gap; raise slot_drop_bytes, or see why it fell behind",
    ),
    "unpublished": (logs.SLOT_UNPUBLISHED, "warning", "none: both are made anew, and clients are told of the gap"),
    "abandoned": (logs.SLOT_ABANDONED, "warning", ""),
    "other_cluster": (
        logs.CLUSTER_CHANGED, "warning",
        "clients are told of the gap; see that WALSTREAM_DATABASE_URL leads where it should",
    ),
    "promoted": (logs.CLUSTER_PROMOTED, "info", ""),
    "fell_back": (
        logs.CLUSTER_FELL_BACK, "warning",
        "clients are told of the gap: the server was restored to an earlier state",
    ),
}  # fmt: skip
"""The turns of a slot's life, told in docs/reference/health-and-metrics.md."""

_CAUSES: Final = frozenset(
    {"lost", "dropped", "moved", "ahead", "over_limit", "unpublished", "abandoned", "other_cluster", "fell_back"}
)
"""Turns that end what clients had: they are the cause of the slot that streams next."""


class SlotLife:
    """Tells the turns of one slot. Also told: ``on_turn``, after the rest."""

    def __init__(self, slot: str, health: Health, metrics: Metrics) -> None:
        self._slot = slot
        self._health = health
        self._metrics = metrics
        self._cause = ""
        self.on_turn: Callable[[str], object] = lambda turn: None

    def tell(self, turn: str, detail: str = "", *, repair: str = "") -> None:
        """One of ``TURNS`` has come. The same one again, with nothing between, is not news."""
        if self._health.slot_turn.turn == turn and turn != "created":
            return
        event, level, usual = TURNS[turn]
        if turn in _CAUSES:
            self._cause = turn
        cause = self._cause if turn in ("created", "adopted") else ""
        # A logger of the moment, which a reload may have configured anew.
        write = getattr(structlog.get_logger(), level)
        facts = {"detail": detail, "cause": cause, "repair": repair or usual}
        write(event, slot=self._slot, **{name: text for name, text in facts.items() if text})
        self._metrics.slot_turned(turn)
        self._health.slot_turned(turn, cause or detail)
        if turn in ("created", "adopted"):
            self._cause = ""
        self.on_turn(turn)
