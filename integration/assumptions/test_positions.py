"""What an LSN is good for: naming a commit, and little else."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from integration.assumptions.stream import PLUGINS, confirmed, eventually, make_slot, streaming, wal_lsn
from integration.fixtures.postgres import TestDatabase, fresh_cluster, fresh_database
from walstream.lsn import Lsn


def change_positions(database: TestDatabase, plugin: str, commits: int) -> list[list[Lsn]]:
    """The positions of the rows of each transaction, in the order of the stream."""
    slot = f"s_{database.name}"
    with streaming(database, slot, plugin) as stream:
        found = []
        for _ in range(commits):
            rows = stream.until(lambda message: message.kind == "C")
            found.append([message.start for message in rows if message.kind in "IUD"])
        return found


@pytest.mark.parametrize("plugin", PLUGINS)
def test_positions_of_changes_are_not_unique(database: TestDatabase, plugin: str) -> None:
    """Why an event's id counts inside its transaction: all rows of one WAL record have the same position."""
    database.execute("create table t (id int primary key)")
    slot = make_slot(database, plugin)
    connection = database.connect()
    with connection.cursor() as cursor:
        import io

        cursor.copy_expert("copy t from stdin", io.StringIO("1\n2\n3\n"))
    connection.close()
    assert slot == f"s_{database.name}"
    (rows,) = change_positions(database, plugin, 1)
    assert len(rows) == 3
    assert len(set(rows)) == 1


@pytest.mark.parametrize("plugin", PLUGINS)
def test_positions_of_changes_do_not_rise_but_those_of_commits_do(database: TestDatabase, plugin: str) -> None:
    """Why an id begins with the commit's end: rows of a long transaction lie before commits that come earlier."""
    database.execute("create table t (id int primary key)")
    slot = make_slot(database, plugin)
    long = database.connect(autocommit=False)
    long.cursor().execute("insert into t values (1)")
    database.execute("insert into t values (2)")
    long.cursor().execute("insert into t values (3)")
    database.execute("insert into t values (4)")
    long.commit()
    long.close()
    with streaming(database, slot, plugin) as stream:
        ends = [message.end for message in stream.commits(3)]
    assert ends == sorted(set(ends))
    rows = list(itertools.chain(*change_positions(database, plugin, 3)))
    assert rows != sorted(rows)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_the_confirmed_position_may_go_back_and_ids_tell(tmp_path: Path, plugin: str) -> None:
    """Why what is read again is told by its id: after a crash the slot starts where it was last saved."""
    with fresh_cluster(tmp_path, {"checkpoint_timeout": "1h"}) as cluster, fresh_database(cluster) as database:
        database.execute("create table t (id int primary key)")
        slot = make_slot(database, plugin)
        for number in range(3):
            database.execute("insert into t values (%s)", (number,))
        with streaming(database, slot, plugin) as stream:
            ends = [message.end for message in stream.commits(3)]
            stream.confirm(ends[1])
            eventually(lambda: confirmed(database, slot) >= ends[1])
        cluster.kill()
        cluster.start()
        database.close()
        assert confirmed(database, slot) < ends[1]
        with streaming(database, slot, plugin) as stream:
            assert [message.end for message in stream.commits(3)] == ends


def test_the_insert_position_may_fall_back(tmp_path: Path) -> None:
    """Why "live from" uses the flush position: what was inserted and not flushed is gone after a crash."""
    settings = {"synchronous_commit": "off", "wal_writer_delay": "10s", "wal_writer_flush_after": "1GB"}
    with fresh_cluster(tmp_path, settings) as cluster, fresh_database(cluster) as database:
        database.execute("create table t (v text)")
        database.execute("checkpoint")
        database.execute("insert into t select repeat('x', 100) from generate_series(1, 1000)")
        insert, flush = map(
            Lsn.parse,
            database.query("select pg_current_wal_insert_lsn()::text, pg_current_wal_flush_lsn()::text")[0],
        )
        assert flush < insert
        cluster.kill()
        cluster.start()
        database.close()
        log = cluster.log_path.read_text()
        redone = Lsn.parse(log.rpartition("redo done at ")[2].split()[0])
        assert flush <= redone + 8192
        assert redone < insert
        assert database.scalar("select count(*) from t") == 0
        assert wal_lsn(database) > redone


def test_a_position_means_nothing_on_another_timeline(tmp_path: Path) -> None:
    """Why a position carries a digest of system and timeline: after a promotion the same LSN is another commit's."""
    with fresh_cluster(tmp_path) as cluster:
        import psycopg2
        from psycopg2.extras import LogicalReplicationConnection

        def identity() -> tuple[str, int]:
            connection = psycopg2.connect(cluster.dsn(), connection_factory=LogicalReplicationConnection)
            with connection.cursor() as cursor:
                cursor.execute("IDENTIFY_SYSTEM")
                row = cursor.fetchone()
            connection.close()
            assert row is not None
            return row[0], row[1]

        before = identity()
        cluster.stop()
        (cluster.data_dir / "standby.signal").touch()
        cluster.start()
        connection = psycopg2.connect(cluster.dsn())
        connection.autocommit = True
        connection.cursor().execute("select pg_promote(true, 60)")
        connection.close()
        after = identity()
        assert after[0] == before[0]
        assert after[1] == before[1] + 1
