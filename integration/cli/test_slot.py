"""slot list, create and drop; Ctrl+C while the server keeps a command waiting."""

from __future__ import annotations

import signal
import time

import pytest

from integration.cli.conftest import Walstream
from integration.fixtures.postgres import TestDatabase

WAITING = "select pid from pg_stat_activity where application_name = 'walstream cli' and wait_event_type = 'Lock'"


def names(walstream: Walstream, database: TestDatabase) -> dict[str, str]:
    """Slots of the test's own database: the server is shared."""
    return {
        slot["name"]: slot["plugin"] for slot in walstream.json("slot", "list") if slot["database"] == database.name
    }


def test_a_slot_is_created_listed_and_dropped(walstream: Walstream, prepared: TestDatabase) -> None:
    done = walstream.ok("slot", "create")
    name = done.out.strip()
    assert name == f"walstream_{prepared.name}"
    assert names(walstream, prepared) == {name: "wal2json"}
    [row] = [row for row in walstream.ok("slot", "list", "csv").out.splitlines() if row.startswith(name)]
    assert row.split(",")[:4] == [name, "wal2json", prepared.name, "no"]
    assert walstream.ok("slot", "drop", name).out == ""
    assert names(walstream, prepared) == {}


def test_a_slot_has_the_name_and_the_plugin_that_were_asked_for(walstream: Walstream, prepared: TestDatabase) -> None:
    made = walstream.json("slot", "create", f"other_{prepared.name}", "--decoder", "pgoutput")
    assert (made["name"], made["plugin"]) == (f"other_{prepared.name}", "pgoutput")
    assert names(walstream, prepared) == {made["name"]: "pgoutput"}


def test_what_cannot_be_done_says_why(walstream: Walstream, prepared: TestDatabase) -> None:
    walstream.ok("slot", "create")
    again = walstream("slot", "create")
    assert (again.code, "duplicate_object" in again.err) == (1, True)
    gone = walstream("slot", "drop", "no_such_slot")
    assert (gone.code, "[not_found]" in gone.err) == (3, True)
    bad = walstream("slot", "create", "Not-A-Slot")
    assert (bad.code, "invalid_name" in bad.err) == (1, True)


@pytest.mark.parametrize("signalled", [signal.SIGINT])
def test_ctrl_c_ends_a_command_that_waits_and_leaves_no_slot(
    walstream: Walstream, prepared: TestDatabase, signalled: signal.Signals
) -> None:
    """Creating a slot waits for running transactions: the server must stop waiting when we do."""
    blocker = prepared.connect(autocommit=False)
    try:
        with blocker.cursor() as cursor:
            cursor.execute("create table public.held ()")  # a transaction with an id
        with walstream.start("slot", "create") as process:
            deadline = time.monotonic() + 60
            while not prepared.query(WAITING):
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
            process.send_signal(signalled)
            out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (130, "", "")
        while prepared.query(WAITING):
            assert time.monotonic() < deadline
    finally:
        blocker.close()
    assert names(walstream, prepared) == {}
