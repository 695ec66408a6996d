"""What the server says of statements whose connection something between has lost."""

from __future__ import annotations

import pytest
import trio

from integration.faults.proxy import Proxy
from integration.fixtures.postgres import TestDatabase
from tests.support import run
from walstream.errors import DatabaseUnreachable
from walstream.shell.database import postgres
from walstream.shell.database.postgres import Database, PgConnection, connect, cut_lost


def _lock(connection: PgConnection) -> None:
    with connection.cursor() as cursor:
        cursor.execute("select pg_advisory_lock(7), pg_advisory_unlock(7)")


async def _keep_asking(asking: PgConnection, pools: list[Database]) -> None:
    while True:
        await trio.to_thread.run_sync(cut_lost, asking, pools)


def test_a_statement_without_a_process_is_cut_and_one_that_waits_is_not(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why a thread that waits for an answer may be freed: the server does not work on it any more."""
    monkeypatch.setattr(postgres, "OVERDUE_SECONDS", 0.0)
    asking = connect(database.dsn, application_name="test")

    async def main(proxy: Proxy) -> None:
        lost = Database(f"host=127.0.0.1 port={proxy.port} dbname={database.name} user=postgres", "test")
        slow = Database(database.dsn, "test")
        await lost.run(_lock)
        database.execute("select pg_advisory_lock(7)")
        proxy.half_open()
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_keep_asking, asking, [lost, slow])
                async with trio.open_nursery() as waiting:
                    waiting.start_soon(slow.run, _lock)
                    with pytest.raises(DatabaseUnreachable):
                        await lost.run(_lock)
                    waiting.start_soon(lost.run, _lock)
                    database.execute("select pg_advisory_unlock(7)")
                nursery.cancel_scope.cancel()
        await lost.aclose()
        await slow.aclose()

    with Proxy(database.cluster.socket_dir / ".s.PGSQL.5432") as proxy:
        run(main, proxy)
    asking.close()
