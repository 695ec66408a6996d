"""What the WAL holds of rows that are changed or deleted."""

from __future__ import annotations

import pytest

from integration.assumptions.stream import make_slot, streaming
from integration.fixtures.postgres import TestDatabase

NO_IDENTITY = (
    "create table t (id int, v text)",
    "create table t (id int primary key, v text); alter table t replica identity nothing",
    "create table t (id int unique, v text)",
)


def changes(database: TestDatabase, slot: str) -> list[str]:
    with streaming(database, slot, "wal2json") as stream:
        return [message.kind for message in stream.rest() if message.kind not in "BC"]


@pytest.mark.parametrize("table", NO_IDENTITY)
def test_wal2json_drops_updates_and_deletes_without_identity(database: TestDatabase, table: str) -> None:
    """Why preflight and health look at ``relreplident``: nothing in the stream says that something is missing."""
    database.execute(table)
    slot = make_slot(database, "wal2json")
    database.execute("insert into t values (1, 'a')")
    database.execute("update t set v = 'b'")
    database.execute("delete from t")
    assert changes(database, slot) == ["I"]


@pytest.mark.parametrize(
    "cure",
    [
        "alter table t replica identity full",
        "alter table t add primary key (id)",
        (
            "alter table t alter id set not null; create unique index i on t (id);"
            "alter table t replica identity using index i"
        ),
    ],
)
def test_a_usable_identity_is_enough(database: TestDatabase, cure: str) -> None:
    """The cures that doctor prints, each of them."""
    database.execute("create table t (id int, v text)")
    database.execute(cure)
    slot = make_slot(database, "wal2json")
    database.execute("insert into t values (1, 'a')")
    database.execute("update t set v = 'b'")
    database.execute("delete from t")
    assert changes(database, slot) == ["I", "U", "D"]


def test_the_identity_counts_as_it_was_when_the_row_was_written(database: TestDatabase) -> None:
    """Why the cure helps from its commit on, and not for what lies in the window before it."""
    database.execute("create table t (id int, v text)")
    slot = make_slot(database, "wal2json")
    database.execute("insert into t values (1, 'a')")
    database.execute("update t set v = 'b'")
    database.execute("alter table t replica identity full")
    database.execute("update t set v = 'c'")
    assert changes(database, slot) == ["I", "U"]
