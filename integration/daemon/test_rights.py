"""Who may see what: roles, rights and row-level security, and what happens when they change under a joined client."""

from __future__ import annotations

import pytest
import trio

from integration.daemon.conftest import Node, bearer, role, verdict
from integration.fixtures.ws import phoenix

WITHIN_SECONDS = 5.0


@pytest.fixture(scope="module", autouse=True)
def tables(node: Node) -> None:
    for name in ("open", "secured", "closed"):
        node.table(name)
    node.database.execute("alter table secured enable row level security; revoke all on closed from anon")


def wish(table: str) -> dict[str, object]:
    return {"event": "*", "schema": "public", "table": table}


@pytest.mark.parametrize(
    ("who", "table", "words"),
    [
        ("anon", "open", ""),
        ("anon", "secured", "row-level security is enabled on public.secured and no policy lets role anon read it"),
        ("service_role", "secured", ""),
        ("anon", "closed", "permission denied for table public.closed as anon"),
        ("authenticated", "closed", ""),
        ("nobody_at_all", "open", 'role "nobody_at_all" does not exist'),
        ("postgres", "open", "role postgres is not open to clients"),
        ("pg_monitor\0", "open", "does not exist"),
        ('"; drop table open; --', "open", "does not exist"),
        ("x" * 5000, "open", "does not exist"),
    ],
)
def test_a_role_gets_what_postgresql_gives_it(node: Node, who: str, table: str, words: str) -> None:
    async def main() -> None:
        async with phoenix(node.daemon.websocket_url, apikey=bearer()) as client:
            status, message = await verdict(client, "realtime:t", wish(table), access_token=bearer(who))
            assert status == ("error" if words else "ok"), message
            assert words in message
            node.database.execute(f"insert into {table} select coalesce(max(id), 0) + 1, 'x' from {table}")
            if words:
                await client.subscribe("realtime:witness", wish("open"))
                node.database.execute("insert into open select coalesce(max(id), 0) + 1, 'x' from open")
                assert (await client.next("postgres_changes")).topic == "realtime:witness"
            else:
                assert (await client.changes(1))[0]["table"] == table

    trio.run(main)


def test_a_role_that_the_daemon_is_not_a_member_of_is_refused(node: Node) -> None:
    """The daemon is a superuser here, a member of everything: but not of a superuser's role."""

    async def main() -> None:
        with role(node, "root2", "superuser") as name:
            async with phoenix(node.daemon.websocket_url, apikey=bearer(name)) as client:
                status, message = await verdict(client, "realtime:t", wish("open"))
                assert (status, "is not open to clients" in message) == ("error", True), message

    trio.run(main)


@pytest.mark.parametrize(
    ("take", "give"),
    [
        ("revoke select on {t} from anon", "grant select on {t} to anon"),
        ("alter table {t} enable row level security", "alter table {t} disable row level security"),
        ("revoke usage on schema public from public, anon", "grant usage on schema public to public, anon"),
    ],
)
def test_a_right_that_goes_ends_delivery_within_seconds(node: Node, take: str, give: str) -> None:
    name = f"taken{abs(hash(take))}"
    node.table(name)
    node.database.execute(f"insert into {name} values (0, '')")

    async def main() -> None:
        async with phoenix(node.daemon.websocket_url, apikey=bearer()) as client:
            await client.subscribe("realtime:t", wish(name))
            node.database.execute(f"insert into {name} values (1, '')")
            assert (await client.changes(1))[0]["record"]["id"] == 1
            node.database.execute(take.format(t=name))
            frame = await client.next("system", seconds=WITHIN_SECONDS + 1)
            assert (frame.payload["status"], frame.payload["extension"]) == ("error", "postgres_changes")
            await client.drain()
            node.database.execute(f"insert into {name} values (2, '')")
            await trio.sleep(0.5)
            assert not await client.drain()
            node.database.execute(give.format(t=name))
            with trio.fail_after(WITHIN_SECONDS + 1):
                while not (frames := [frame for frame in await client.drain() if frame.event == "postgres_changes"]):
                    node.database.execute(f"insert into {name} select max(id) + 1, '' from {name}")
                    await trio.sleep(0.2)
            assert frames[0].payload["data"]["record"]["id"] > 2, "what was written without the right stays untold"

    trio.run(main)


def test_a_token_of_another_role_is_obeyed(node: Node) -> None:
    async def main() -> None:
        async with phoenix(node.daemon.websocket_url, apikey=bearer()) as client:
            await client.join("realtime:t", changes=[wish("secured")], access_token=bearer("service_role"))
            assert (await client.next("system")).payload["status"] == "ok"
            node.database.execute("insert into secured values (100, '')")
            assert (await client.changes(1))[0]["record"]["id"] == 100
            await client.push("realtime:t", "access_token", {"access_token": bearer("anon")})
            assert (await client.next("system")).payload["status"] == "error"
            node.database.execute("insert into secured values (101, '')")
            await trio.sleep(0.5)
            assert not await client.drain()

    trio.run(main)


def test_a_role_that_is_dropped_takes_its_clients_rights_along(node: Node) -> None:
    async def main() -> None:
        async with phoenix(node.daemon.websocket_url, apikey=bearer("passing")) as client:
            with role(node, "passing") as name:
                node.database.execute(f"grant select on open to {name}")
                await client.subscribe("realtime:t", wish("open"))
            assert (await client.next("system", seconds=WITHIN_SECONDS + 1)).payload["status"] == "error"

    trio.run(main)
