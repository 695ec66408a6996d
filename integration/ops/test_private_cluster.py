"""The private server itself: start, crash, restart, and where it can live."""

from __future__ import annotations

import tempfile
from pathlib import Path

import psycopg2
import pytest

from integration.fixtures.postgres import TestDatabase, fresh_cluster, wal2json_server
from walstream.errors import EnvironmentFailure
from walstream.shell.commands.private_cluster import Cluster


def answer(cluster: Cluster, statement: str) -> object:
    connection = psycopg2.connect(cluster.dsn())
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            row = cursor.fetchone()
            return row[0] if row else None
    finally:
        connection.close()


def test_a_server_survives_kill_and_restart_with_its_data_and_its_dsn(tmp_path: Path) -> None:
    with fresh_cluster(tmp_path) as cluster:
        dsn = cluster.dsn()
        assert answer(cluster, "create table public.t (); select 1") == 1
        cluster.kill()
        assert not cluster.is_running
        cluster.start()
        cluster.restart()
        assert cluster.dsn() == dsn
        assert answer(cluster, "select count(*) from public.t") == 0


def test_wal2json_is_allowed_whatever_the_server_thinks_of_it(database: TestDatabase) -> None:
    assert database.scalar("select (pg_create_logical_replication_slot('one', 'wal2json')).slot_name") == "one"


def test_the_server_speaks_utf8_with_the_c_collation(database: TestDatabase) -> None:
    assert database.scalar("show server_encoding") == "UTF8"
    assert str(database.scalar("select datcollate from pg_database where datname = current_database()")).startswith("C")


def test_a_setting_given_wins_and_alter_system_wins_over_it(tmp_path: Path) -> None:
    with fresh_cluster(tmp_path, {"max_wal_senders": "3", "work_mem": "5MB"}) as cluster:
        assert answer(cluster, "show max_wal_senders") == "3"
        connection = psycopg2.connect(cluster.dsn())
        connection.autocommit = True
        connection.cursor().execute("alter system set work_mem = '6MB'")
        connection.close()
        cluster.restart()
        assert answer(cluster, "show work_mem") == "6MB"


def test_nothing_listens_on_tcp_and_only_the_owner_enters_the_socket_directory(cluster: Cluster) -> None:
    assert answer(cluster, "show listen_addresses") == ""
    assert cluster.socket_dir.stat().st_mode & 0o777 == 0o700


def test_the_data_may_live_where_the_servers_account_cannot_go() -> None:
    """A checkout below root's home, or in a directory made by mktemp, has parents that only root may enter."""
    with tempfile.TemporaryDirectory() as closed:
        Path(closed).chmod(0o700)
        with fresh_cluster(Path(closed) / "deeper") as cluster:
            assert answer(cluster, "select 1") == 1
        assert not (Path(closed) / "deeper" / "data").exists()


def test_a_server_left_by_a_dead_process_is_stopped_first(tmp_path: Path) -> None:
    with fresh_cluster(tmp_path) as left:
        forgotten, left._process = left._process, None
        assert forgotten is not None
        with Cluster(left.data_dir, left.binaries, settings={"fsync": "off"}) as second:
            assert forgotten.wait() == 0
            assert second.pid != forgotten.pid
            assert answer(second, "select 1") == 1


def test_a_setting_that_the_server_does_not_know_is_reported_with_the_servers_own_words(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailure, match="unrecognized configuration parameter"):
        fresh_cluster(tmp_path, {"no_such_setting": "1"}).__enter__()


def test_a_directory_with_other_peoples_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(EnvironmentFailure, match="neither empty nor"):
        Cluster(tmp_path, wal2json_server()).start()
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_data_of_another_major_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "PG_VERSION").write_text("9\n")
    with pytest.raises(EnvironmentFailure, match="was made by PostgreSQL 9"):
        Cluster(tmp_path, wal2json_server()).start()
