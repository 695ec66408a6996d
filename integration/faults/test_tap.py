"""Both readings of the tap say the same of the same transactions, and do not mind a file that is being written."""

from __future__ import annotations

import random

from integration.faults import workload
from integration.faults.observed import Committed
from integration.faults.raw_pgoutput import OPTIONS, PUBLICATION, RawPgoutput
from integration.faults.tap import WAL2JSON_OPTIONS, Wal2json
from integration.fixtures.postgres import TestDatabase


def outputs(prepared: TestDatabase) -> tuple[bytes, bytes]:
    """What ``pg_recvlogical`` would write with wal2json, and with pgoutput."""
    workload.prepare(prepared)
    prepared.execute(f"create publication {PUBLICATION} for tables in schema public")
    for plugin in ("wal2json", "pgoutput"):
        prepared.execute("select pg_create_logical_replication_slot(%s, %s)", (f"two_{plugin}", plugin))
    with workload.Workload(prepared, seed=3, writers=1, rate=1e6) as writers:
        while writers.committed < 40:
            writers.check()
    prepared.execute(
        "update public.docs set id = -id;"  # a new key, and a long value that is left out
        "alter table public.docs replica identity full; update public.docs set n = -1;"
        "insert into public.items (n, v) values (7, null), (8, E'two\nlines'); truncate public.items;"
        "select pg_logical_emit_message(true, 'p', E'\n')"
    )
    lines = prepared.query(
        "select data from pg_logical_slot_get_changes('two_wal2json', null, null, variadic %s)",
        ([part for option in WAL2JSON_OPTIONS for part in option.split("=", 1)],),
    )
    messages = prepared.query(
        "select data from pg_logical_slot_get_binary_changes('two_pgoutput', null, null, variadic %s)",
        ([part for option in OPTIONS for part in option.split("=", 1)],),
    )
    return b"".join(line.encode() + b"\n" for (line,) in lines), b"".join(bytes(data) + b"\n" for (data,) in messages)


def test_both_plugins_say_the_same(prepared: TestDatabase) -> None:
    lines, messages = outputs(prepared)
    by_line, by_message = Wal2json(), RawPgoutput()
    expected, found = by_line.feed(lines), by_message.feed(messages)
    assert len(expected) > 40
    assert sum(len(transaction.events) for transaction in expected) > 200
    assert found == expected
    assert by_line.newest == by_message.newest

    for make, data, whole in ((Wal2json, lines, expected), (RawPgoutput, messages, found)):
        assert in_pieces(make(), data) == whole


def in_pieces(reader: Wal2json | RawPgoutput, data: bytes) -> list[Committed]:
    """What is read from a file while it is written."""
    rng, at, found = random.Random(1), 0, []
    while at < len(data):
        end = at + rng.choice((1, 7, 200, 4000))
        found += reader.feed(data[at:end])
        at = end
    return found
