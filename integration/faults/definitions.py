"""Definitions that change while rows stream: one random change after the other, of tables that others write to.

Rows of old definitions are in the WAL when there are new ones; where the daemon is down meanwhile, it reads them with a
catalog that knows nothing of the old ones, not even their types.
"""

from __future__ import annotations

import itertools
import random
from typing import NamedTuple

from integration.faults.lab import Lab
from integration.fixtures.postgres import TestDatabase

TABLES = ("items", "docs")
CHANGES = 24
CHANGES_WHILE_DOWN = 12
VALUES = {
    "integer": "5", "smallint": "6", "bigint": "7000000000", "text": "it''s \"quoted\" and \\ long", "varchar(40)": "é",
    "boolean": "true", "uuid": "00000000-0000-4000-8000-000000000001",
}  # fmt: skip
"""Types whose values every observer tells alike, with one of each."""
_numbers = itertools.count(1)


class _Column(NamedTuple):
    """``name`` is quoted. ``value``: one of its type. ``enum``: its type if it has one of its own."""

    name: str
    value: str
    enum: str = ""


class Definitions:
    """The columns that were added to one table, and what may be done to it."""

    def __init__(self, database: TestDatabase, table: str, rng: random.Random) -> None:
        self._database = database
        self._table = f"public.{table}"
        self._rng = rng
        self._columns: list[_Column] = []

    def change(self) -> None:
        """Some change, with rows that show it."""
        acts = [self._add, self._add_enum, self._identity, self._move, self._rewrite, self._mingle]
        if self._columns:
            acts += [self._rename, self._retype, self._drop, self._write]
        self._rng.choice(acts)()
        if self._columns:
            self._write()

    def restore(self) -> None:
        """As the table was."""
        while self._columns:
            self._drop()
        self._alter("replica identity default")

    def _alter(self, what: str) -> None:
        self._database.execute(f"alter table {self._table} {what}")

    def _name(self) -> str:
        return self._rng.choice(('"x{}"', '"X {}"', '"é, {}"', '"a.b{}"')).format(next(_numbers))

    def _take(self) -> _Column:
        return self._columns.pop(self._rng.randrange(len(self._columns)))

    def _add(self) -> None:
        kind = self._rng.choice(tuple(VALUES))
        column = _Column(self._name(), VALUES[kind])
        default = self._rng.choice(("", f" default '{column.value}'", f" not null default '{column.value}'"))
        self._alter(f"add {column.name} {kind}{default}")
        self._columns.append(column)

    def _add_enum(self) -> None:
        column = _Column(self._name(), "late", f"public.mood{next(_numbers)}")
        self._database.execute(f"create type {column.enum} as enum ('early')")
        self._alter(f"add {column.name} {column.enum} default 'early'")
        self._database.execute(f"alter type {column.enum} add value 'late'")
        self._columns.append(column)

    def _write(self) -> None:
        column = self._rng.choice(self._columns)
        newest = f"select id from {self._table} order by id desc limit 3"
        self._database.execute(f"update {self._table} set {column.name} = '{column.value}' where id in ({newest})")

    def _rename(self) -> None:
        column = self._take()
        self._columns.append(column._replace(name=self._name()))
        self._alter(f"rename {column.name} to {self._columns[-1].name}")

    def _retype(self) -> None:
        """To text; which writes the table anew, and lets a type of its own go."""
        column = self._take()
        name = column.name
        self._alter(f"alter {name} drop not null, alter {name} drop default, alter {name} type text")
        if column.enum:
            self._database.execute(f"drop type {column.enum}")
        self._columns.append(column._replace(enum=""))

    def _drop(self) -> None:
        column = self._take()
        self._alter(f"drop column {column.name}")
        if column.enum:
            self._database.execute(f"drop type {column.enum}")

    def _identity(self) -> None:
        self._alter(f"replica identity {self._rng.choice(('full', 'default'))}")

    def _move(self) -> None:
        """To another name and back, in one transaction."""
        schema, name = self._table.split(".")
        self._database.execute(
            f"alter table {self._table} rename to moved; alter table {schema}.moved rename to {name}"
        )

    def _rewrite(self) -> None:
        """Other files, with the same rows, of which the WAL has nothing to tell."""
        self._database.execute(f"vacuum full {self._table}")

    def _mingle(self) -> None:
        """Rows and definitions in one transaction."""
        first, second = self._name(), self._name()
        insert = f"insert into {self._table} (n"
        self._database.execute(
            f"lock table {self._table};"
            f"{insert}) values (1); alter table {self._table} add {first} integer;"
            f"{insert}, {first}) values (2, 2); alter table {self._table} rename {first} to {second};"
            f"{insert}, {second}) values (3, 3); alter table {self._table} alter {second} type text;"
            f"{insert}, {second}) values (4, 'four'); alter table {self._table} drop column {second};"
            f"{insert}) values (5)"
        )


def change_definitions(lab: Lab, rng: random.Random) -> None:
    """Columns, their names and types, identities, names of tables and their files, while rows stream."""
    tables = [Definitions(lab.database, name, rng) for name in TABLES]
    for _ in range(CHANGES):
        rng.choice(tables).change()
        lab.write(rng.uniform(0, 0.1))
    with lab.supervisor.held():
        lab.kill_daemon()
        for _ in range(CHANGES_WHILE_DOWN):
            rng.choice(tables).change()
            lab.write(rng.uniform(0, 0.1))
        for table in tables:
            table.restore()
    lab.until_streaming()
    lab.faults += CHANGES + CHANGES_WHILE_DOWN
