"""The health board: when a node is ready, degraded or neither, and what it shows."""

from __future__ import annotations

import msgspec
from structlog.testing import capture_logs

from walstream.history.budget import Budget
from walstream.shell.health import Health, SlotFacts


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def board(clock: Clock | None = None) -> Health:
    return Health(version="1.0", node="here", heartbeat_seconds=10, clock=clock or Clock())


def bring_up(health: Health) -> None:
    health.database_up()
    health.reader_is("streaming")
    health.heartbeat_emitted()
    health.heartbeat_received()


def test_a_new_node_is_live_and_not_ready() -> None:
    health = board()
    assert health.live()[0] == 200
    status, body = health.ready()
    assert (status, body["status"]) == (503, "starting")


def test_a_node_is_ready_once_it_streams_and_a_heartbeat_came_back() -> None:
    health = board()
    health.database_up()
    health.reader_is("streaming")
    assert health.ready() == (503, {"status": "starting", "reasons": ["heartbeat: none has come back yet"]})
    health.heartbeat_emitted()
    assert health.ready()[0] == 503
    health.heartbeat_received()
    assert health.ready() == (200, {"status": "ready", "reasons": []})


def test_a_standby_is_not_ready() -> None:
    health = board()
    health.database_up()
    health.heartbeat_received()
    health.reader_is("standby", "another daemon streams the slot")
    assert health.ready() == (
        503,
        {
            "status": "starting",
            "reasons": ["reader: standby: another daemon streams the slot", "heartbeat: none has come back yet"],
        },
    )


def test_a_node_whose_slot_was_taken_is_not_ready_until_it_has_it_back() -> None:
    health = board()
    bring_up(health)
    health.reader_is("standby", "another daemon streams the slot")
    assert health.ready()[0] == 503
    health.reader_is("streaming")
    assert health.ready()[0] == 503
    health.heartbeat_received()
    assert health.ready() == (200, {"status": "ready", "reasons": []})


def test_a_budget_that_is_half_used_degrades() -> None:
    health = board()
    bring_up(health)
    health.slot = SlotFacts("s", "wal2json", True, budget=Budget("ok", 10, 5, 5, 60.0, is_alarming=True))
    status, body = health.ready()
    assert (status, body["status"]) == (200, "degraded")
    assert body["reasons"] == [f"slot: {health.slot.budget}"]


def test_whoever_keeps_wal_back_or_lets_a_slot_wait_is_named() -> None:
    health = board()
    bring_up(health)
    budget = Budget("ok", 10, 5, 5, 60.0, is_alarming=True)
    health.slot = SlotFacts("s", "wal2json", True, budget=budget, kept_by="somebody: end it")
    assert health.ready()[1]["reasons"] == [f"slot: {budget}, kept by somebody: end it"]
    health.slot = SlotFacts("s", "wal2json", True, is_made=False, kept_by="somebody: end it")
    assert health.ready()[1]["reasons"] == ["slot: it is made after somebody: end it"]
    health.slot = SlotFacts("s", "wal2json", True, kept_by="somebody: end it")
    assert health.ready()[1]["reasons"] == []


def test_a_node_that_lost_its_database_stays_ready_but_degraded() -> None:
    health = board()
    bring_up(health)
    health.database_down("connection refused")
    health.reader_is("retrying", "connection refused")
    status, body = health.ready()
    assert (status, body["status"]) == (200, "degraded")
    assert body["reasons"] == ["database: connection refused", "reader: retrying: connection refused"]
    bring_up(health)
    assert health.ready()[1]["status"] == "ready"


def test_overdue_heartbeats_degrade() -> None:
    clock = Clock()
    health = board(clock)
    bring_up(health)
    clock.now += 30
    assert health.ready()[1]["status"] == "ready"
    clock.now += 1
    assert health.ready() == (200, {"status": "degraded", "reasons": ["heartbeat: overdue"]})


def test_a_draining_node_is_not_ready() -> None:
    health = board()
    bring_up(health)
    health.drain()
    assert health.ready() == (503, {"status": "draining", "reasons": ["draining"]})


def test_the_board_shows_everything_that_the_contract_names() -> None:
    clock = Clock()
    health = board(clock)
    health.clients = lambda: 3
    health.subscriptions = lambda: 2
    health.doubts = lambda: [{"table": "public.t", "reason": "policy_error", "rows": 7}]
    health.slot = SlotFacts("walstream", "wal2json", True, 10, "reserved", 20, budget=Budget("ok", 100, 20, 80, 8.0))
    health.slot_turned("created", "lost")
    bring_up(health)
    health.heartbeat_emitted()
    clock.now += 0.25
    health.heartbeat_received()
    clock.now += 2
    shown = health.health()
    assert msgspec.json.decode(msgspec.json.encode(shown)) == shown
    assert shown == {
        "status": "ready",
        "reasons": [],
        "version": "1.0",
        "node": "here",
        "draining": False,
        "database": {"status": "up", "reason": ""},
        "slot": {
            "name": "walstream",
            "plugin": "wal2json",
            "active": True,
            "lag_bytes": 10,
            "wal_status": "reserved",
            "retained_bytes": 20,
            "safe_bytes": None,
            "failover": None,
            "budget": {
                "state": "ok",
                "limit_bytes": 100,
                "used_bytes": 20,
                "left_bytes": 80,
                "left_seconds": 8.0,
                "is_alarming": False,
            },
            "is_made": True,
            "kept_by": None,
        },
        "slot_life": {"state": "created", "cause": "lost", "seconds_ago": 2.25},
        "reader": {"status": "streaming", "reason": ""},
        "heartbeat": {"emitted_seconds_ago": 2.25, "received_seconds_ago": 2.0, "round_trip_seconds": 0.25},
        "clients": 3,
        "subscriptions": 2,
        "doubts": [{"table": "public.t", "reason": "policy_error", "rows": 7}],
        "uptime": 2.25,
    }


def test_only_changes_of_state_are_logged() -> None:
    health = board()
    with capture_logs() as logs:
        bring_up(health)
        bring_up(health)
        health.database_down("gone")
        health.database_down("gone")
    assert [(line["event"], line["status"], line["log_level"]) for line in logs] == [
        ("health.changed", "starting", "info"),
        ("health.changed", "ready", "info"),
        ("health.changed", "degraded", "warning"),
    ]
