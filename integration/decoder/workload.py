"""A random workload over tables of every kind, with DDL between the rows. The same seed is the same workload."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from psycopg2 import errors, sql
from psycopg2.extensions import connection as PgConnection  # noqa: N812 - a class under its role's name

from integration.decoder.samples import SAMPLES, Sample

TABLES = """
create table plain (id serial primary key, n integer, long text, at timestamptz default '2024-02-29 13:14:15.5+02');
create table whole (id serial, n numeric, long text, more jsonb, primary key (id));
alter table whole replica identity full;
create table by_index (n integer, a text not null, long text, b bigint not null);
create unique index by_index_key on by_index (b, a);
alter table by_index replica identity using index by_index_key;
create table keyless (n integer, long text);
create table "Odd ""},{""name"":"" \\ é, Table" ("I d" serial, "n" integer, "long" text, "},{""name"":" boolean,
    "q""q\\" char(4), primary key ("I d", "q""q\\"));
create table long_key (n integer, k text primary key, long text);
create table parted (id integer not null, n integer, long text, region text, primary key (id, region))
    partition by list (region);
create table part_a partition of parted for values in ('a');
create table part_b (long text, gone integer, region text not null, n integer, id integer not null,
    primary key (id, region));
alter table part_b drop column gone;
alter table parted attach partition part_b for values in ('b');
create table other (id integer primary key, "long" text);
"""

IDENTITIES = ("default", "full")


class Workload:
    """Random transactions. What the server refuses is rolled back to a savepoint, which is a test as well."""

    def __init__(self, connection: PgConnection, seed: int) -> None:
        self._connection = connection
        self._random = random.Random(seed)
        self._columns = 0
        self.refused: list[str] = []
        self.done = 0
        with connection.cursor() as cursor:
            cursor.execute("select setseed(%s)", (1 / (1 + seed),))
        for column in ("plain", "whole", "by_index", "parted"):
            self._toast_outside(column)
        for table in ('Odd "},{"name":" \\ é, Table', "long_key", "keyless", "other"):
            self._toast_outside(table)

    def transaction(self) -> None:
        """A few statements, mostly committed."""
        with self._connection.cursor() as cursor:
            cursor.execute("begin")
            for _ in range(self._random.randint(1, 6)):
                self._try(cursor.execute, self._statement())
            cursor.execute("rollback" if self._random.random() < 0.05 else "commit")

    def alter(self) -> None:
        """One change of a definition, in a transaction of its own or between rows."""
        with self._connection.cursor() as cursor:
            cursor.execute("begin")
            if self._random.random() < 0.5:
                self._try(cursor.execute, self._statement())
            self._try(cursor.execute, self._definition())
            for _ in range(self._random.randint(0, 3)):
                self._try(cursor.execute, self._statement())
            cursor.execute("commit")

    def _try(self, execute: Callable[[sql.Composable], object], statement: sql.Composable) -> None:
        execute(sql.SQL("savepoint s"))
        try:
            execute(statement)
            self.done += 1
        except errors.Error as error:
            self.refused.append(f"{statement.as_string(self._connection)}: {error}")
            execute(sql.SQL("rollback to savepoint s"))
        execute(sql.SQL("release savepoint s"))

    # -- rows

    def _statement(self) -> sql.Composable:
        choice = self._random.random()
        table = self._random.choice(self._tables())
        if choice < 0.45:
            return self._insert(table)
        if choice < 0.8:
            return self._update(table)
        if choice < 0.95:
            return sql.SQL("delete from {0} where ctid in (select ctid from {0} order by random() limit 1)").format(
                table
            )
        if choice < 0.98:
            return sql.SQL("truncate {}").format(table)
        return sql.SQL("truncate plain, whole, other")

    def _tables(self) -> list[sql.Composable]:
        with self._connection.cursor() as cursor:
            cursor.execute(
                "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r' order by 1"
            )
            return [sql.Identifier(name) for (name,) in cursor.fetchall()]

    def _shape(self, table: sql.Composable) -> list[tuple[str, str, bool]]:
        with self._connection.cursor() as cursor:
            cursor.execute(
                "select attname, format_type(atttypid, atttypmod), attnotnull from pg_attribute"
                " where attrelid = %s::regclass and attnum > 0 and not attisdropped order by attnum",
                (table.as_string(self._connection),),
            )
            return cursor.fetchall()

    def _value(self, column: str, declaration: str, required: bool) -> sql.Composable:
        if not required and self._random.random() < 0.2:
            return sql.SQL("null")
        if column == "region":
            return sql.Literal(self._random.choice("ab"))
        if column in ("long", "k") and self._random.random() < 0.6:
            return sql.Literal(self._random.randbytes(1500 if column == "long" else 1000).hex())
        if declaration in ("integer", "bigint") and required:
            return sql.Literal(self._random.randint(1, 30))
        samples: list[Sample] = [sample for sample in SAMPLES if _same_type(sample.declaration, declaration)]
        literals = [value for sample in samples for value in sample.values if len(value) < 1000]
        return sql.SQL(self._random.choice(literals)) if literals else sql.SQL("null")

    def _insert(self, table: sql.Composable) -> sql.Composable:
        columns = self._shape(table)
        return sql.SQL("insert into {} ({}) values ({}) on conflict do nothing").format(
            table,
            sql.SQL(", ").join(sql.Identifier(name) for name, _, _ in columns),
            sql.SQL(", ").join(self._value(*column) for column in columns),
        )

    def _update(self, table: sql.Composable) -> sql.Composable:
        columns = self._random.sample(shape := self._shape(table), k=min(len(shape), self._random.randint(1, 2)))
        return sql.SQL("update {0} set {1} where ctid in (select ctid from {0} order by random() limit 1)").format(
            table,
            sql.SQL(", ").join(
                sql.SQL("{} = {}").format(sql.Identifier(column[0]), self._value(*column)) for column in columns
            ),
        )

    # -- definitions

    def _toast_outside(self, table: str) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(sql.SQL("alter table {} alter long set storage external").format(sql.Identifier(table)))

    def _definition(self) -> sql.Composable:
        tables = [table for table in self._tables() if not self._is_partition(table)]
        table = self._random.choice([*tables, sql.Identifier("parted")])
        extra = [name for name, _, _ in self._shape(table) if name.startswith("x")]
        choice = self._random.random()
        if choice < 0.35 or (choice < 0.75 and not extra):
            return self._add_column(table)
        if choice < 0.5:
            return sql.SQL("alter table {} drop column {}").format(table, sql.Identifier(self._random.choice(extra)))
        if choice < 0.65:
            return sql.SQL("alter table {} rename {} to {}").format(
                table, sql.Identifier(self._random.choice(extra)), sql.Identifier(self._new_name())
            )  # fmt: skip
        if choice < 0.75:
            return sql.SQL("alter table {} alter {} type text").format(
                table, sql.Identifier(self._random.choice(extra))
            )
        if choice < 0.85 and table in tables:
            return sql.SQL("alter table {} rename to {}").format(table, sql.Identifier(self._new_name() + " table"))
        identity = sql.SQL(self._random.choice(IDENTITIES))
        return sql.SQL("alter table {} replica identity {}").format(table, identity)

    def _add_column(self, table: sql.Composable) -> sql.Composable:
        sample = self._random.choice([sample for sample in SAMPLES if "xml" not in sample.declaration])
        return sql.SQL("alter table {} add {} {}").format(
            table, sql.Identifier(self._new_name()), sql.SQL(sample.declaration)
        )  # fmt: skip

    def _new_name(self) -> str:
        self._columns += 1
        return f"x{self._columns}{self._random.choice(['', ' y', 'Y', chr(34), 'é', chr(92), ','])}"

    def _is_partition(self, table: sql.Composable) -> bool:
        with self._connection.cursor() as cursor:
            cursor.execute(
                "select relispartition from pg_class where oid = %s::regclass", (table.as_string(self._connection),)
            )  # fmt: skip
            return bool(cursor.fetchall()[0][0])


_ALIASES = {
    "bool": "boolean", "int2": "smallint", "int4": "integer", "int8": "bigint", "float4": "real",
    "float8": "double precision", "timestamptz": "timestamp with time zone", "timestamp": "timestamp without time zone",
    "char(5)": "character(5)", "varchar(20)": "character varying(20)", "time": "time without time zone",
    "timetz": "time with time zone", "varbit": "bit varying", "bit(4)": "bit(4)",
}  # fmt: skip


def _same_type(declaration: str, printed: str) -> bool:
    base = declaration.removesuffix("[]")
    return _ALIASES.get(base, base) + declaration[len(base) :] == printed


def batches(workload: Workload, rounds: int, alter: bool) -> Iterator[None]:
    """Work between two looks at the slots."""
    for number in range(rounds):
        for _ in range(4):
            workload.transaction()
        if alter and number % 2:
            workload.alter()
        yield
