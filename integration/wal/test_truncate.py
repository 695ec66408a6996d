"""One TRUNCATE is one event, however many partitions the table has; both decoders say the same."""

from __future__ import annotations

import trio

from integration.fixtures.daemon import token
from integration.fixtures.ws import phoenix
from integration.wal.conftest import Node


def test_a_truncated_partitioned_table_is_told_once(node: Node) -> None:
    execute = node.database.execute
    execute("create table parted (id int primary key, v text) partition by range (id)")
    for part in range(3):
        execute(f"create table parted_{part} partition of parted for values from ({part * 10}) to ({part * 10 + 10})")
    execute("grant select on parted to anon")
    execute(
        "insert into realtime.subscriptions (table_name, events)"
        " values ('public.parted', '{INSERT,UPDATE,DELETE,TRUNCATE}')"
    )

    async def main() -> None:
        async with phoenix(node.daemon.websocket_url, apikey=token()) as client:
            topic = "realtime:table:public.parted"
            await client.subscribe(topic)
            execute("insert into parted values (1, 'x'), (11, 'y')")
            execute("truncate parted")
            execute("insert into parted values (2, 'z')")
            events = [(await client.next(topic=topic)).event for _ in range(4)]
            assert events == ["INSERT", "INSERT", "TRUNCATE", "INSERT"]

    trio.run(main)
