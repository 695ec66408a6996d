"""Between a commit in the WAL and its visibility to queries: who joins there must not lose it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from integration.assumptions.stream import PLUGINS, eventually, make_slot, streaming
from integration.fixtures.postgres import TestDatabase, fresh_cluster, fresh_database, missing_standby
from walstream.lsn import Lsn

ASK = "select pg_current_snapshot()::text, pg_current_wal_flush_lsn()::text"


@contextmanager
def hung_commit(database: TestDatabase) -> Iterator[None]:
    """A commit that is in the WAL and waits for a standby that does not exist; it ends with the block."""

    def commit() -> None:
        connection = database.connect()
        connection.cursor().execute("insert into t values (1)")
        connection.close()

    with ThreadPoolExecutor() as threads, missing_standby(database):
        threads.submit(commit)
        eventually(lambda: bool(database.query("select 1 from pg_stat_activity where wait_event = 'SyncRep'")))
        yield


@pytest.fixture
def own(tmp_path: Path) -> Iterator[TestDatabase]:
    with fresh_cluster(tmp_path) as cluster, fresh_database(cluster) as database:
        database.execute("create table t (id int)")
        database.execute("alter table t replica identity full")
        yield database


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_change_may_be_decoded_before_it_is_visible(own: TestDatabase, plugin: str) -> None:
    """Why nothing asks PostgreSQL about a transaction before its xid is visible: the stream is ahead, without bound."""
    slot = make_slot(own, plugin)
    with streaming(own, slot, plugin) as stream, hung_commit(own):
        assert "I" in [message.kind for message in stream.until(lambda m: m.kind == "C")]
        assert own.scalar("select count(*) from t") == 0


@pytest.mark.parametrize("plugin", PLUGINS)
def test_positions_alone_would_lose_a_change(own: TestDatabase, plugin: str) -> None:
    """Why "live from" is decided by the snapshot: the commit lies before the flush position, and no query shows it."""
    slot = make_slot(own, plugin)
    with streaming(own, slot, plugin) as stream, hung_commit(own):
        end = stream.commits(1)[0].end
        snapshot, flush = own.query(ASK)[0]
        assert end <= Lsn.parse(flush), "by its position the client that asks now has it already"
        assert own.scalar("select count(*) from t") == 0, "and it has not"
        xid = own.scalar("select backend_xid::text::bigint from pg_stat_activity where wait_event = 'SyncRep'")
        assert not own.scalar("select pg_visible_in_snapshot(%s::text::xid8, %s::pg_snapshot)", (xid, snapshot))
    snapshot, _ = own.query(ASK)[0]
    assert own.scalar("select pg_visible_in_snapshot(%s::text::xid8, %s::pg_snapshot)", (xid, snapshot))
    assert own.scalar("select count(*) from t") == 1


def test_the_snapshot_and_the_position_of_one_query_belong_together(own: TestDatabase) -> None:
    """Why both are asked for at once: what the snapshot sees lies before the flush position, except asynchronously."""
    for _ in range(50):
        own.execute("insert into t values (2)")
        snapshot, flush = own.query(ASK)[0]
        xmax = int(snapshot.split(":")[1])
        assert own.scalar("select max(xmin::text::bigint) from t") < xmax
        assert Lsn.parse(flush) <= Lsn.parse(own.scalar("select pg_current_wal_insert_lsn()::text"))
