"""What others do on the same server must not disturb the stream."""

from __future__ import annotations

import threading

import psycopg2

from integration.daemon.conftest import Node
from integration.fixtures.node import eventually


def test_writes_that_nobody_captures_do_not_look_like_a_server_that_leaves(decoding: Node) -> None:
    """PostgreSQL asks for our position after each of them: hundreds of messages without content."""
    decoding.database.execute("create table if not exists elsewhere (id bigint primary key)")
    other = psycopg2.connect(decoding.database.cluster.dsn())  # the database ``postgres``, which nobody decodes
    other.autocommit = True

    def write(connection: psycopg2.extensions.connection, statement: str) -> None:
        with connection.cursor() as cursor:
            for number in range(4000):
                cursor.execute(statement, (number,))

    here = decoding.database.connect()
    before = len([line for line in decoding.daemon.log() if line["event"] == "reader.started"])
    with other.cursor() as cursor:
        cursor.execute("create table if not exists elsewhere (id bigint)")
    threads = [
        threading.Thread(target=write, args=(other, "insert into elsewhere values (%s)")),
        threading.Thread(target=write, args=(here, "insert into elsewhere values (%s)")),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for connection in (here, other):
        connection.close()
    eventually(lambda: decoding.health()["reader"]["status"] == "streaming")
    assert len([line for line in decoding.daemon.log() if line["event"] == "reader.started"]) == before
    assert not [line for line in decoding.daemon.log() if "shutting down" in str(line)]
