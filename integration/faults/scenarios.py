"""The scenarios: what each breaks, and what has to hold nevertheless."""

from __future__ import annotations

from integration.faults.lab import Lab


def drop_the_slot(lab: Lab) -> None:
    """The daemon's slot is dropped behind its back, and changes are committed before there is another."""
    before = len(lab.supervisor.deaths)
    with lab.suspended():
        lab.end_walsender()
        lab.database.execute("select pg_drop_replication_slot(%s)", (lab.daemon.slot,))
        lab.write(0.5)
    lab.until_streaming()
    assert len(lab.supervisor.deaths) == before
