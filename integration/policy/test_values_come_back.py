"""A cell of the WAL becomes in PostgreSQL the very value that was written, or the row is in doubt."""

from __future__ import annotations

from functools import partial

from integration.decoder.reading import readers
from integration.decoder.samples import SAMPLES, SCHEMA, Sample
from integration.fixtures.postgres import TestDatabase
from integration.policy.asking import Asking, asking
from walstream.model import Change
from walstream.policy.model import Ask, Viewer

LOST = {
    "not_a_number": {"'NaN'", "'Infinity'", "'-Infinity'", "'{NaN,1}'"},
    "lossy_value": {"'null'", "'\"\\ud800\"'"},
}
OTHER_TEXTS = {"'[0:1]={7,8}'", "'[-1:0][2:3]={{1,2},{3,4}}'", "' {} '"}
"""Equal but for what is no part of a cell: arrays come back counted from 1, json without the blanks around it."""

NESTED_LOSSES = {"jsonb[]", "int2vector[]"}


def expected(sample: Sample, literal: str) -> bool | str:
    if sample.declaration in NESTED_LOSSES:
        return "lossy_value"
    for reason, literals in LOST.items():
        if literal in literals and (reason == "not_a_number" or sample.declaration.startswith("json")):
            return reason
    return literal not in OTHER_TEXTS


def test_every_type_comes_back(database: TestDatabase) -> None:
    database.execute(SCHEMA)
    columns = [f"c{number}" for number in range(len(SAMPLES))]
    declarations = ", ".join(f"{column} {sample.declaration}" for column, sample in zip(columns, SAMPLES, strict=True))
    database.execute(f"create table samples (id integer primary key, {declarations})")
    database.execute("create table printed (id integer, c text, value text)")
    with readers(database) as both:
        for number in range(max(len(sample.values) for sample in SAMPLES)):
            given = [(c, s.values[number]) for c, s in zip(columns, SAMPLES, strict=True) if number < len(s.values)]
            names, values = ", ".join(c for c, _ in given), ", ".join(v for _, v in given)
            database.execute(f"insert into samples (id, {names}) values ({number}, {values})")
        changes = both.changes()
        catalogs = {plugin: reader.catalog for plugin, reader in both.all.items()}
    for column in columns:
        database.execute(f"insert into printed select id, '{column}', format('%s', {column}) from samples")
    types = dict(
        database.query(
            "select attname, format_type(atttypid, atttypmod) from pg_attribute, set_config('search_path', '', false)"
            " where attrelid = 'public.samples'::regclass and attnum > 0"
        )
    )
    found = {
        plugin: asking(
            database.dsn,
            partial(outcomes, changes[plugin], types),
            catalogs[plugin],
        )
        for plugin in changes
    }
    promised = {
        (column, literal): expected(sample, literal)
        for column, sample in zip(columns, SAMPLES, strict=True)
        for literal in sample.values
    }
    for plugin, outcome in found.items():
        wrong = {
            (SAMPLES[columns.index(column)].declaration, literal): outcome[column, literal]
            for (column, literal), promise in promised.items()
            if outcome[column, literal] != promise
        }
        assert not wrong, plugin


async def outcomes(changes: list[Change], types: dict[str, str], asked: Asking) -> dict[tuple[str, str], bool | str]:
    """By column and literal: whether its value is the one that PostgreSQL prints, or why nobody knows."""
    viewer = Viewer("postgres", "{}")
    found: dict[tuple[str, str], bool | str] = {}
    for number, sample in enumerate(SAMPLES):
        column = f"c{number}"
        condition = (
            f"pg_catalog.format('%s', {column}) = (select p.value from public.printed p"
            f" where p.id = samples.id and p.c = '{column}')"
        )
        ask = Ask("public", "samples", condition, (("id", "integer"), (column, types[column])))
        for literal, change in zip(sample.values, changes, strict=False):
            assert change.new is not None
            before = asked.counted()
            [answer] = await asked.visible(viewer, ask, change.relation, [change.new])
            doubts = [reason for reason, rows in asked.counted().items() if rows != before.get(reason, 0)]
            found[column, literal] = doubts[0] if doubts else answer
    return found
