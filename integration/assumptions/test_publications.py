"""What publications do to the statements of the database's users, and to streams that name them."""

from __future__ import annotations

import psycopg2
import psycopg2.errors
import pytest

from integration.assumptions.stream import Stream, streaming
from integration.fixtures.postgres import TestDatabase


def publish(database: TestDatabase, definition: str) -> str:
    """A publication and a slot for pgoutput."""
    database.execute(f"create publication everything {definition}")
    slot = f"s_{database.name}"
    database.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,))
    return slot


def test_a_column_list_without_the_identity_makes_users_updates_fail(database: TestDatabase) -> None:
    """Why our publications have no column lists: it is the user's UPDATE that fails, not ours."""
    if database.cluster.binaries.version[0] < 15:
        return
    database.execute("create table t (id int primary key, v text)")
    database.execute("insert into t values (1, 'a')")
    publish(database, "for table t (v)")
    with pytest.raises(psycopg2.errors.InvalidColumnReference):
        database.execute("update t set v = 'b'")
    with pytest.raises(psycopg2.errors.InvalidColumnReference):
        database.execute("delete from t")


def test_a_column_list_fails_when_the_identity_changes_later(database: TestDatabase) -> None:
    """A list that fits today fails users as soon as somebody asks for REPLICA IDENTITY FULL."""
    if database.cluster.binaries.version[0] < 15:
        return
    database.execute("create table t (id int primary key, v text)")
    database.execute("insert into t values (1, 'a')")
    publish(database, "for table t (id)")
    database.execute("update t set v = 'b'")
    database.execute("alter table t replica identity full")
    with pytest.raises(psycopg2.errors.InvalidColumnReference):
        database.execute("update t set v = 'c'")


def test_publishing_updates_of_a_table_without_identity_makes_them_fail(database: TestDatabase) -> None:
    """Why there are two publications: the one for such tables publishes insert and truncate only."""
    database.execute("create table t (v text)")
    database.execute("insert into t values ('a')")
    slot = publish(database, "for table t")
    with pytest.raises(psycopg2.errors.ObjectNotInPrerequisiteState):
        database.execute("update t set v = 'b'")
    database.execute("alter publication everything set (publish = 'insert, truncate')")
    database.execute("update t set v = 'b'")
    database.execute("insert into t values ('c')")
    database.execute("delete from t")
    database.execute("truncate t")
    with streaming(database, slot, "pgoutput") as stream:
        kinds = [message.kind for message in stream.rest() if message.kind not in "BCR"]
    assert kinds == ["I", "T"]


def test_the_plan_may_change_under_a_running_stream(database: TestDatabase) -> None:
    """Why the stream goes on when tables come and go: the publication counts as it was at each transaction."""
    database.execute("create table t (id int primary key)")
    database.execute("create table u (id int primary key)")
    slot = publish(database, "for table t")
    with streaming(database, slot, "pgoutput") as stream:
        database.execute("insert into t values (1)")
        stream.commits(1)
        database.execute("insert into u values (1)")
        database.execute("alter publication everything add table u")
        database.execute("insert into u values (2)")
        rows = [message.payload for message in stream.until(lambda m: m.kind == "C") if message.kind == "I"]
    assert len(rows) == 1
    assert rows[0].endswith(b"2")


@pytest.mark.parametrize("again", [False, True])
def test_a_publication_that_was_dropped_ends_the_slot(database: TestDatabase, again: bool) -> None:
    """Why that means a new slot and a gap: a new publication of the name does not count for what came before it."""
    database.execute("create table t (id int primary key)")
    slot = publish(database, "for table t")
    database.execute("insert into t values (1)")
    database.execute("drop publication everything")
    database.execute("insert into t values (2)")
    if again:
        database.execute("create publication everything for table t")
    with pytest.raises(psycopg2.errors.UndefinedObject):
        Stream(database.dsn, slot, "pgoutput").commits(3)


def test_a_publication_made_after_the_slot_does_not_count_for_what_lies_between(database: TestDatabase) -> None:
    """Why the publications are made before the slot."""
    database.execute("create table t (id int primary key)")
    slot = f"s_{database.name}"
    database.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,))
    database.execute("insert into t values (1)")
    database.execute("create publication everything for table t")
    with pytest.raises(psycopg2.errors.UndefinedObject):
        Stream(database.dsn, slot, "pgoutput").commits(1)
