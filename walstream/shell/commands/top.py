"""What a daemon does, as rates between two looks at its metrics. Asking is ``daemon_health``'s."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

COLUMNS: Final = (
    "time", "clients", "topics", "messages_in", "changes_in", "frames_out", "bytes_out", "outbox_bytes", "lag_bytes",
    "heartbeat_ms", "cpu", "memory_bytes",
)  # fmt: skip
_NOW: Final = {
    "clients": "walstream_connections",
    "topics": "walstream_channels",
    "outbox_bytes": "walstream_outbox_bytes",
    "lag_bytes": "walstream_slot_lag_bytes",
    "memory_bytes": "process_resident_memory_bytes",
}
_RATES: Final = {
    "messages_in": "walstream_messages_in_total",
    "changes_in": "walstream_changes_in_total",
    "frames_out": "walstream_frames_out_total",
    "bytes_out": "walstream_bytes_out_total",
}


def row(before: Mapping[str, float], after: Mapping[str, float], seconds: float) -> dict[str, object]:
    """Numbers of now and rates per second, by column; ``time`` is the caller's.

    A daemon that was started anew between the looks has counted from 0.
    """

    def rate(name: str) -> float:
        gone = after.get(name, 0.0) - before.get(name, 0.0)
        return (gone if gone >= 0 else after.get(name, 0.0)) / seconds

    return {
        **{column: round(after[name]) if name in after else None for column, name in _NOW.items()},
        **{column: round(rate(name)) for column, name in _RATES.items()},
        "heartbeat_ms": round(after.get("walstream_heartbeat_seconds", 0.0) * 1000, 1),
        "cpu": round(rate("process_cpu_seconds_total"), 2),
    }
