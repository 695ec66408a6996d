"""Rates between two looks at a daemon's metrics."""

from __future__ import annotations

from walstream.shell.commands import top


def test_counters_become_rates_and_gauges_stay() -> None:
    before = {"walstream_messages_in_total": 100.0, "process_cpu_seconds_total": 1.0}
    after = {
        "walstream_messages_in_total": 300.0, "process_cpu_seconds_total": 2.0, "walstream_connections": 7.0,
        "walstream_heartbeat_seconds": 0.0123,
    }  # fmt: skip
    row = top.row(before, after, 2.0)
    assert {"time", *row} == set(top.COLUMNS)
    assert (row["messages_in"], row["cpu"], row["clients"], row["heartbeat_ms"]) == (100, 0.5, 7, 12.3)
    assert (row["changes_in"], row["lag_bytes"]) == (0, None)


def test_a_daemon_that_was_started_anew_has_counted_from_0() -> None:
    name = "walstream_messages_in_total"
    assert top.row({name: 1000.0}, {name: 40.0}, 2.0)["messages_in"] == 20
