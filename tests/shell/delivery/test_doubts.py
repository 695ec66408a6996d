"""Rows in doubt are counted by table and reason, in a bounded number of counts."""

from __future__ import annotations

from walstream.shell.delivery.doubts import KEYS_MAX, Doubts
from walstream.telemetry.metrics import Metrics


def test_rows_are_counted_by_table_and_reason() -> None:
    doubts = Doubts()
    doubts.count("public", "t", "unchanged_toast")
    doubts.count("public", "t", "unchanged_toast", 4)
    doubts.count("public", "t", "policy_error")
    assert doubts.health() == [
        {"table": "public.t", "reason": "policy_error", "rows": 1},
        {"table": "public.t", "reason": "unchanged_toast", "rows": 5},
    ]
    metrics = Metrics()
    metrics.watch_doubts(doubts.metrics)
    assert (
        'walstream_rows_in_doubt_total{reason="unchanged_toast",table="public.t"} 5.0' in metrics.page()[0].decode()
    )  # fmt: skip


def test_tables_beyond_the_bound_are_counted_together() -> None:
    doubts = Doubts()
    for number in range(KEYS_MAX + 10):
        doubts.count("public", f"t{number}", "policy_error", 2)
    doubts.count("public", "t0", "policy_error")
    counted = {doubt.name: doubt.rows for doubt in doubts}
    assert len(counted) == KEYS_MAX + 1
    assert (counted["public.t0"], counted["other tables"]) == (3, 20)
