"""Whether wal2json may be used at all: minor releases since August 2026 ask a setting first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg2
import psycopg2.errors
import pytest

from integration.assumptions.stream import Stream, make_slot
from integration.fixtures.postgres import TestDatabase, fresh_cluster, fresh_database, wal2json_server
from walstream.errors import DatabaseRefused
from walstream.shell.commands.private_cluster import Cluster
from walstream.shell.commands.server_binaries import find_binaries
from walstream.shell.database import slots
from walstream.shell.database.postgres import connect, translate

SETTING = "output_plugin_libraries"
FACTORY = "pgoutput, test_decoding"


@pytest.fixture(scope="module")
def factory_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A server with the list of plugins that it comes with, where it has one."""
    settings = {SETTING: FACTORY} if wal2json_server().knows(SETTING) else {}
    with fresh_cluster(tmp_path_factory.mktemp("factory"), settings) as cluster:
        yield cluster


@pytest.fixture
def factory(factory_cluster: Cluster) -> Iterator[TestDatabase]:
    with fresh_database(factory_cluster) as database:
        yield database


def refusal(error: psycopg2.Error) -> str:
    translated = translate(error)
    assert isinstance(translated, DatabaseRefused)
    if translated.reason == "plugin_refused":
        assert translated.sqlstate == "42501"
        assert f"SET {SETTING} = wal2json" in translated.repair
    return translated.reason


def test_wal2json_is_refused_where_the_server_asks_a_setting(factory: TestDatabase) -> None:
    """Why ``decoder = "auto"`` falls back to pgoutput: superusers are refused, too, not as if it were missing."""
    if not factory.cluster.binaries.knows(SETTING):
        make_slot(factory, "wal2json")
        return
    with pytest.raises(psycopg2.errors.InsufficientPrivilege) as caught:
        make_slot(factory, "wal2json")
    assert refusal(caught.value) == "plugin_refused"
    connection = connect(factory.dsn, application_name="test")
    plugin, _ = slots.create(connection, f"auto_{factory.name}")
    connection.close()
    assert plugin == "pgoutput"


def test_a_slot_that_exists_is_refused_too(factory: TestDatabase) -> None:
    """The plugin is checked at every start, not only when a slot is made: a minor update stops a running daemon."""
    if not factory.cluster.binaries.knows(SETTING):
        return
    factory.execute(f"alter role postgres in database {factory.name} set {SETTING} = wal2json")
    factory.close()
    slot = make_slot(factory, "wal2json")
    factory.execute(f"alter role postgres in database {factory.name} reset {SETTING}")
    factory.close()
    with pytest.raises(psycopg2.Error) as caught:
        Stream(factory.dsn, slot, "wal2json")
    assert refusal(caught.value) == "plugin_refused"
    with pytest.raises(psycopg2.Error) as caught:
        factory.query("select * from pg_logical_slot_peek_changes(%s, null, null)", (slot,))
    assert refusal(caught.value) == "plugin_refused"


def test_the_repair_that_we_print_repairs(factory: TestDatabase) -> None:
    """``ALTER ROLE … SET output_plugin_libraries = wal2json`` is enough for the streaming role, without a restart."""
    if not factory.cluster.binaries.knows(SETTING):
        return
    factory.execute("create role streamer login replication")
    try:
        factory.execute(f"alter role streamer set {SETTING} = wal2json")
        dsn = factory.cluster.dsn(factory.name, "streamer")
        connection = connect(dsn, application_name="test")
        plugin, _ = slots.create(connection, f"repaired_{factory.name}")
        connection.close()
        assert plugin == "wal2json"
        Stream(dsn, f"repaired_{factory.name}", "wal2json").close()
    finally:
        factory.execute("drop role streamer")


def test_a_plugin_that_is_not_installed_has_an_error_of_its_own(tmp_path: Path) -> None:
    """58P01 says "install it" and 42501 "allow it"; a server that asks the setting asks it first."""
    bare = [binaries for binaries in find_binaries() if not binaries.wal2json]
    if not bare:
        return
    with fresh_cluster(tmp_path, {"wal_level": "logical"}, bare[0]) as cluster, fresh_database(cluster) as database:
        with pytest.raises(psycopg2.Error) as caught:
            make_slot(database, "wal2json")
        if bare[0].knows(SETTING):
            assert refusal(caught.value) == "plugin_refused"
            database.execute(f"alter role postgres set {SETTING} = wal2json")
            database.close()
            with pytest.raises(psycopg2.Error) as caught:
                make_slot(database, "wal2json")
        assert refusal(caught.value) == "plugin_missing"
