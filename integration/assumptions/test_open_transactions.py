"""An open transaction keeps WAL back for every slot of the server, and who it is can be told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from integration.assumptions.stream import make_slot
from integration.fixtures.postgres import TestDatabase, fresh_database
from walstream.lsn import Lsn
from walstream.shell.database import open_transactions, slots
from walstream.shell.database.open_transactions import HELD_BYTES, OpenTransaction


def pass_by(database: TestDatabase, slot: str) -> slots.Slot:
    """Confirm everything up to now; the slot starts as late as the server lets it."""
    for _ in range(2):
        database.execute("checkpoint")  # writes the list of open transactions, too
        database.execute("select pg_replication_slot_advance(%s, pg_current_wal_lsn())", (slot,))
    found = slots.find(database.connect(), slot)
    assert found is not None
    return found


@pytest.fixture
def other(database: TestDatabase) -> Iterator[TestDatabase]:
    with fresh_database(database.cluster) as made:
        made.execute("create table t (id int)")
        yield made


@pytest.mark.parametrize("is_prepared", [True, False])
def test_one_of_another_database_keeps_what_is_confirmed(
    database: TestDatabase, other: TestDatabase, *, is_prepared: bool
) -> None:
    slot = make_slot(database, "pgoutput")
    writer = other.connect(autocommit=False)
    with writer.cursor() as cursor:
        cursor.execute("insert into t values (1)")
        if is_prepared:
            cursor.execute("prepare transaction 'it''s open'")
    database.execute("select pg_logical_emit_message(false, 'x', repeat('x', %s))", (HELD_BYTES + 1,))
    held = pass_by(database, slot)
    assert open_transactions.may_hold(held.retained_bytes, held.lag_bytes)
    assert open_transactions.oldest(database.connect()) is None, "none is old"
    keeper = open_transactions.oldest(database.connect(), seconds=0)
    assert keeper is not None
    whose: dict[str, Any] = {"gid": "it's open"} if is_prepared else {"pid": writer.info.backend_pid}
    assert keeper._replace(seconds=0) == OpenTransaction(
        **{"gid": None, "pid": None, **whose}, user="postgres", database=other.name, seconds=0
    )
    if is_prepared:
        other.execute(keeper.repair.split(" or ")[1])
    else:
        database.execute(keeper.repair.split(": ")[1])
    let_go = pass_by(database, slot)
    assert not open_transactions.may_hold(let_go.retained_bytes, let_go.lag_bytes)
    assert (let_go.restart_lsn or Lsn(0)) > (held.restart_lsn or Lsn(0))
    assert open_transactions.oldest(database.connect(), seconds=0) is None
    writer.close()
