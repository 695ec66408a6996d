"""The publications that pgoutput reads through: what belongs into which, and who may alter them."""

from __future__ import annotations

import contextlib
import threading

import psycopg2
import pytest

from integration.cli.conftest import Walstream
from integration.fixtures.postgres import TestDatabase
from walstream.shell.database import postgres, publications
from walstream.shell.database.publications import Synced

TABLES = """
create table public.keyed (id integer primary key);
create table public.full_ (a integer);
alter table public.full_ replica identity full;
create table public.nokey (a integer);
create table public.nothing (id integer primary key);
alter table public.nothing replica identity nothing;
create table public.indexed (id integer not null);
create unique index indexed_id on public.indexed (id);
alter table public.indexed replica identity using index indexed_id;
create table public.parted (id integer, day date, primary key (id, day)) partition by range (day);
create table public.parted_1 partition of public.parted for values from ('2026-01-01') to ('2027-01-01');
create table public.mixed (id integer, day date) partition by range (day);
create table public.mixed_1 partition of public.mixed for values from ('2026-01-01') to ('2027-01-01');
create table public.mixed_2 partition of public.mixed for values from ('2027-01-01') to ('2028-01-01');
alter table public.mixed_1 replica identity full;
create unlogged table public.fleeting (id integer primary key);
create view public.seen as select 1 as a;
"""


def sync(database: TestDatabase, user: str = "postgres") -> Synced:
    with postgres.connection(database.cluster.dsn(database.name, user), "walstream tests") as connection:
        return publications.sync_publications(connection, "realtime")


def members(database: TestDatabase) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {name: set() for name in publications.NAMES}
    for publication, table in database.query(
        "select p.pubname::text, r.prrelid::regclass::text from pg_publication_rel r"
        "  join pg_publication p on p.oid = r.prpubid where r.prrelid::regclass::text not like 'realtime.%%'"
    ):
        found[publication].add(table)
    return found


@pytest.fixture(autouse=True)
def _tables(prepared: TestDatabase) -> None:
    prepared.execute(TABLES)


def test_what_was_not_published_and_who_writes_to_it_is_told(prepared: TestDatabase) -> None:
    subscribe(prepared, "public.parted", "public.mixed", "public.indexed")
    with postgres.connection(prepared.dsn, "walstream tests") as connection:
        synced = publications.sync_publications(connection, "realtime")
        writer = prepared.connect(autocommit=False)
        with writer.cursor() as cursor:
            cursor.execute("insert into parted values (1, '2026-02-02'); select txid_current() % (1::bigint << 32)")
            [[xid]] = cursor.fetchall()
        anew = publications.anew(connection, synced.added)
        writer.close()
    assert ("public", "mixed_1") in synced.added, "a partition on its own"
    assert anew.tables == {("public", "parted"), ("public", "mixed"), ("public", "indexed")}
    assert anew.writers == {xid}
    assert sync(prepared).added == ()


def subscribe(database: TestDatabase, *names: str) -> None:
    for name in names:
        database.execute("insert into realtime.subscriptions (table_name) values (%s)", (name,))


def test_a_table_goes_where_its_user_can_still_update_it(prepared: TestDatabase) -> None:
    subscribe(prepared, "public.*", "no table", "public.vanished")
    assert sync(prepared).complete
    assert members(prepared) == {
        "walstream_all": {"keyed", "full_", "indexed", "parted", "mixed_1"},
        "walstream_insert": {"nokey", "nothing", "mixed"},
    }
    prepared.execute(
        "insert into keyed values (1); insert into nokey values (1); insert into nothing values (1);"
        "insert into mixed values (1, '2026-02-02'), (1, '2027-02-02')"
    )
    for table in ("keyed", "nokey", "nothing", "mixed"):
        prepared.execute(f"update {table} set {'id = id' if table != 'nokey' else 'a = a'}; delete from {table}")


def test_syncing_again_does_nothing_and_checking_changes_nothing(prepared: TestDatabase) -> None:
    subscribe(prepared, "public.keyed")
    with postgres.connection(prepared.dsn, "walstream tests") as connection:
        due = publications.check_publications(connection, "realtime")
        assert due == publications.check_publications(connection, "realtime")
    assert sync(prepared).executed == due
    assert sync(prepared) == Synced((), ())
    prepared.execute("delete from realtime.subscriptions; alter table public.nokey add primary key (a)")
    subscribe(prepared, "public.nokey")
    sync(prepared)
    assert members(prepared) == {"walstream_all": {"nokey"}, "walstream_insert": set()}


def test_a_table_that_loses_its_identity_changes_sides(prepared: TestDatabase) -> None:
    subscribe(prepared, "public.keyed")
    sync(prepared)
    prepared.execute("alter table public.keyed drop constraint keyed_pkey")
    sync(prepared)
    assert members(prepared) == {"walstream_all": set(), "walstream_insert": {"keyed"}}


def test_what_is_refused_is_told_with_its_statement_and_the_rest_is_done(prepared: TestDatabase) -> None:
    prepared.execute("grant create on schema public to walstream_owner")
    prepared.execute("set role walstream_owner; create table public.ours (id integer primary key); reset role")
    subscribe(prepared, "public.keyed", "public.ours")
    sync(prepared)
    prepared.execute("alter publication walstream_all drop table public.keyed, public.ours")
    with contextlib.closing(prepared.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("set role walstream_owner")
        synced = publications.sync_publications(connection, "realtime")
    assert synced.executed == ('alter publication "walstream_all" add table "public"."ours"',)
    [(statement, refusal)] = synced.missing
    assert statement == 'alter publication "walstream_all" add table "public"."keyed"'
    assert "must be owner of table keyed" in refusal
    assert not synced.complete


def test_subscriptions_that_come_together_do_not_undo_each_other(walstream: Walstream, prepared: TestDatabase) -> None:
    """Who plans from a state without another's subscription must not take its table away again."""
    sync(prepared)
    slow = prepared.connect(autocommit=False)
    with slow.cursor() as cursor:
        cursor.execute("insert into realtime.subscriptions (table_name) values ('public.keyed')")
        publications.sync_publications(slow, "realtime")
        others = [
            threading.Thread(target=walstream.ok, args=("subscribe", name, "--decoder", "pgoutput"))
            for name in ("full_", "indexed")
        ]
        for thread in others:
            thread.start()
        waiting = 0
        while waiting < 2 and any(thread.is_alive() for thread in others):
            waiting = prepared.scalar("select count(*) from pg_locks where locktype = 'advisory' and not granted")
        assert waiting == 2
        slow.commit()
    for thread in others:
        thread.join()
    slow.close()
    assert members(prepared)["walstream_all"] == {"keyed", "full_", "indexed"}


def test_a_table_in_use_is_waited_for_and_then_refused(walstream: Walstream, prepared: TestDatabase) -> None:
    holder = prepared.connect(autocommit=False)
    try:
        with holder.cursor() as cursor:
            cursor.execute("lock table public.nokey in access exclusive mode")
        done = walstream("subscribe", "nokey", "--replica-identity", "full")
    finally:
        holder.close()
    assert (done.code, done.out) == (1, "")
    assert "[database_refused: lock_not_available]" in done.err
    assert prepared.query("select 1 from realtime.subscriptions") == []


def test_errors_other_than_refusals_are_raised(prepared: TestDatabase) -> None:
    prepared.execute("drop table realtime.subscriptions cascade")
    with contextlib.closing(prepared.connect()) as connection, pytest.raises(psycopg2.errors.UndefinedTable):
        publications.sync_publications(connection, "realtime")
