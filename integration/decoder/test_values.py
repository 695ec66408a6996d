"""Every type's JSON, by both plugins of a real server, against what PostgreSQL's own to_json says."""

from __future__ import annotations

import json

from integration.decoder.reading import readers
from integration.decoder.samples import SAMPLES, SCHEMA, Sample
from integration.fixtures.postgres import TestDatabase
from walstream.model import Change, Message
from walstream.shell.database.postgres import connect

HOSTILE_SETTINGS = """
alter database {name} set timezone = 'Asia/Kathmandu';
alter database {name} set datestyle = 'SQL, DMY';
alter database {name} set intervalstyle = 'sql_standard';
alter database {name} set bytea_output = 'escape';
alter database {name} set extra_float_digits = '-5';
"""


def exact(cell: bytes | str) -> object:
    """JSON with its numbers as the texts they are."""
    return json.loads(cell, parse_int=str, parse_float=str, object_pairs_hook=lambda pairs: pairs)


def promised(database: TestDatabase, sample: Sample, column: str) -> dict[str, object]:
    """By literal: the JSON that the value table promises."""
    connection = connect(database.dsn, application_name="expected", search_path=None)
    try:
        with connection.cursor() as cursor:
            cursor.execute(f"select id, to_json({column})::text from samples where id < {len(sample.values)}")
            found = dict(cursor.fetchall())
    finally:
        connection.close()
    return {
        literal: exact(sample.json.get(literal, found[number])) for number, literal in enumerate(sample.values)
    }  # fmt: skip


def test_every_type_reads_as_the_value_table_promises(database: TestDatabase) -> None:
    database.execute(SCHEMA)
    database.execute(HOSTILE_SETTINGS.format(name=database.name))
    columns = [f"c{number}" for number in range(len(SAMPLES))]
    declarations = ", ".join(f"{column} {sample.declaration}" for column, sample in zip(columns, SAMPLES, strict=True))
    database.execute(f"create table samples (id integer primary key, {declarations})")
    with readers(database) as both:
        for number in range(max(len(sample.values) for sample in SAMPLES)):
            given = [(c, s.values[number]) for c, s in zip(columns, SAMPLES, strict=True) if number < len(s.values)]
            names, values = ", ".join(c for c, _ in given), ", ".join(v for _, v in given)
            database.execute(f"insert into samples (id, {names}) values ({number}, {values})")
        rows = {plugin: [cells(change) for change in changes] for plugin, changes in both.changes().items()}
        assert both.all["wal2json"].asked <= 2
        assert both.all["pgoutput"].asked <= 2
    wrong = []
    for column, sample in zip(columns, SAMPLES, strict=True):
        for number, (literal, expected) in enumerate(promised(database, sample, column).items()):
            for plugin in rows:
                cell = rows[plugin][number][column]
                if cell is None or exact(cell.decode()) != expected:
                    wrong.append((plugin, sample.declaration, literal, cell, expected))
        for plugin in rows:
            assert all(row[column] == b"null" for row in rows[plugin][len(sample.values) :]), (plugin, column)
    assert not wrong
    assert rows["wal2json"] == rows["pgoutput"]


def cells(change: Change) -> dict[str, bytes | None]:
    assert change.new is not None
    return dict(zip([column.name for column in change.relation.columns], change.new, strict=True))


def test_a_message_that_is_no_text_does_not_stop_the_stream(database: TestDatabase) -> None:
    with readers(database) as both:
        database.execute("select pg_logical_emit_message(true, 'walstream', '\\xc3289f'::bytea)")
        both.changes()
        contents = {
            plugin: next(record.content for record in reader.records if isinstance(record, Message))
            for plugin, reader in both.all.items()
        }
    assert contents == {
        "wal2json": "\N{REPLACEMENT CHARACTER}(\N{REPLACEMENT CHARACTER}".encode(),
        "pgoutput": b"\xc3(\x9f",
    }
