"""Filters in both grammars answer what PostgreSQL answers, for every type, NULL and unknown included."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import psycopg2
import pytest
from psycopg2.extensions import connection as PgConnection  # noqa: N812 - a class under its role's name

from integration.fixtures.cells import identifier, stored_rows
from integration.fixtures.postgres import TestDatabase
from integration.router.cases import DECLARATIONS, KINDS, Case, client_case, quote, row_case
from walstream.capture import parse_row_filter, print_filter
from walstream.errors import FilterError
from walstream.model import Catalog, Column, Relation, Row
from walstream.predicate import Expression, compile, like, literals_needed, normalise, regex  # noqa: A004
from walstream.router import parse_filter
from walstream.shell.database.catalog import load_relations, load_types
from walstream.shell.database.join_facts import cast_literals
from walstream.shell.database.postgres import connect

ROWS = 60
FILTERS = 400


class Table:
    """A table of every type, its rows as PostgreSQL has them and as the decoders would deliver them."""

    def __init__(self, connection: PgConnection) -> None:
        self.connection = connection
        self.catalog = Catalog()
        columns = ", ".join(f"{identifier(kind.name)} {kind.declaration}" for kind in KINDS)
        self._execute("set search_path = public")
        self._execute(f"{DECLARATIONS}; create table samples (id integer primary key, {columns})")
        rng = random.Random(7)
        for number in range(ROWS):
            values = [
                "null" if rng.random() < 0.15 else quote(rng.choice(kind.values)) + f"::{kind.declaration}"
                for kind in KINDS
            ]
            self._execute(f"insert into samples values ({number}, {', '.join(values)})")
        self.relation = self._relation()
        self.rows = self._rows()

    def _execute(self, statement: str) -> list[tuple[object, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def _relation(self) -> Relation:
        self.catalog.load(load_relations(self.connection, [("public", "samples")]))
        info = self.catalog.relations["public", "samples"]
        assert info is not None
        self.catalog.load(types=load_types(self.connection, [column.type_oid for column in info.columns]))
        return Relation("public", "samples", info.columns, info.primary_key, oid=info.oid)

    def _rows(self) -> list[Row]:
        return stored_rows(self._execute, self.relation, self.catalog, "samples order by samples.id")

    def postgres(self, sql: str) -> list[bool | None] | str:
        """PostgreSQL's answer for each row, or its refusal."""
        try:
            return [
                bool(row[0]) if row[0] is not None else None
                for row in self._execute(f"select ({sql}) from samples order by id")
            ]
        except psycopg2.Error as error:
            return str(error).splitlines()[0]

    def ours(self, expression: Expression) -> list[bool | None] | str:
        """Our answer for each row, or our refusal."""
        needed = literals_needed(expression, self.relation, self.catalog)
        literals = cast_literals(self.connection, needed, self.catalog)
        try:
            predicate = compile(expression, self.relation, self.catalog, literals)
        except FilterError as error:
            return str(error)
        return [predicate(row) for row in self.rows]


@pytest.fixture
def table(database: TestDatabase) -> Iterator[Table]:
    connection = connect(database.dsn, application_name="filters", search_path="")
    yield Table(connection)
    connection.close()


def parse_client(text: str) -> Expression:
    expression = parse_filter(text)
    assert expression is not None
    return expression


GRAMMARS: Sequence[tuple[str, Callable[[random.Random], Case], Callable[[str], Expression]]] = (
    ("row filters", row_case, parse_row_filter),
    ("client filters", client_case, parse_client),
)


@pytest.mark.parametrize(("make", "parse"), [grammar[1:] for grammar in GRAMMARS], ids=[name for name, *_ in GRAMMARS])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_filters_answer_what_postgresql_answers(
    table: Table, seed: int, make: Callable[[random.Random], Case], parse: Callable[[str], Expression]
) -> None:
    rng = random.Random(seed)
    answered = 0
    for _ in range(FILTERS):
        case = make(rng)
        expected = table.postgres(case.sql)
        expression = parse(case.text)
        found = table.ours(expression)
        assert isinstance(found, str) == isinstance(expected, str), (case, found, expected)
        if isinstance(expected, str):
            continue
        answered += 1
        assert found == expected, (case, differences(table, found, expected))
        assert table.ours(normalise(expression)) == expected, case
    assert answered > FILTERS * 0.6


def test_printed_client_filters_are_sql_of_the_same_meaning(table: Table) -> None:
    rng = random.Random(11)
    for _ in range(200):
        case = client_case(rng)
        expected = table.postgres(case.sql)
        printed = table.postgres(print_filter(parse_client(case.text)))
        assert isinstance(printed, str) == isinstance(expected, str), (case, printed)
        if not isinstance(expected, str):
            assert printed == expected, case


def differences(table: Table, found: object, expected: object) -> Sequence[object]:
    assert isinstance(found, list)
    assert isinstance(expected, list)
    return [
        (row, ours, theirs) for row, ours, theirs in zip(table.rows, found, expected, strict=True) if ours is not theirs
    ][:2]


PIECES = (
    "a", "b", "A", "é", " ", "_", ".", "1", "-", ",", ":", "]", "}", "{", "(", "(?:", ")", "|", "*", "+", "?", "*?",
    "{2}", "{1,2}", "{,2}", "{1,}", "{2,1}", "[ab]", "[^a]", "[a-c1]", "[]a]", "[a-]", "[-a]", "[^-]", "[[:alpha:]_]",
    "[^[:space:]]", "[[:digit:][:upper:]]", "[[:lower:]]", "[\\w.]", "[a\\]b]", "\\d", "\\D", "\\s", "\\S", "\\w",
    "\\W", "\\y", "\\Y", "\\m", "\\M", "\\A", "\\Z", "^", "$", "\\.", "\\\\", "\\n", "\\t",
    "(?=a)", "\\1", "(?i)", "[[.a.]]", "\\b", "[b-a]", "[a-c-e]",
)  # fmt: skip
SUBJECTS = (
    "", "a", "A", "b", "ab", "aB", "ba", "aab", "abab", "a b", "a.b", "_a", "1", "a1 b2", "-", "]", "{2}", "a\nb", "\t",
    "é", "aé b", "É", "a,b:c", "}", "\\", "12-34",
)  # fmt: skip


@pytest.mark.parametrize("seed", [1, 2])
def test_regular_expressions_match_where_postgresql_matches(database: TestDatabase, seed: int) -> None:
    """What PostgreSQL refuses is refused; what is not regular may be."""
    rng = random.Random(seed)
    connection = database.connect()
    answered = 0
    with connection.cursor() as cursor:
        for _ in range(1500):
            pattern = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 6)))
            insensitive = rng.random() < 0.4
            sign = "~*" if insensitive else "~"
            try:
                cursor.execute(f"select s {sign} %s from unnest(%s) s", (pattern, list(SUBJECTS)))
                expected = [row[0] for row in cursor.fetchall()]
            except psycopg2.Error:
                expected = None
            try:
                match = regex.matcher(pattern, insensitive=insensitive)
            except FilterError:
                continue
            assert expected is not None, pattern
            found = [match(subject) for subject in SUBJECTS]
            assert found == expected, (
                pattern,
                insensitive,
                [s for s, f, e in zip(SUBJECTS, found, expected, strict=True) if f != e],
            )
            answered += 1
    connection.close()
    assert answered > 300


def test_patterns_match_where_postgresql_matches(database: TestDatabase) -> None:
    rng = random.Random(5)
    connection = database.connect()
    with connection.cursor() as cursor:
        for _ in range(1500):
            pattern = "".join(rng.choice("aabBé%%__\\") for _ in range(rng.randint(0, 8)))
            subjects = ["".join(rng.choice("abAé%_\\") for _ in range(rng.randint(0, 8))) for _ in range(20)]
            insensitive = rng.random() < 0.4
            try:
                match = like.matcher(pattern, insensitive=insensitive)
            except FilterError:
                assert pattern.endswith("\\")
                continue
            operator = "ilike" if insensitive else "like"
            cursor.execute(f"select s {operator} %s from unnest(%s) s", (pattern, subjects))
            assert [match(subject) for subject in subjects] == [row[0] for row in cursor.fetchall()], pattern
    connection.close()


def test_a_column_of_a_type_that_does_not_compare_here_is_refused_by_name(table: Table) -> None:
    for name, type_name in (("c_interval", "interval"), ("c_point", "point"), ("c_ints", "_int4")):
        said = table.ours(parse_row_filter(f"{name} = '1 day'"))
        assert isinstance(said, str)
        assert name in said
        assert type_name in said


def test_text_that_a_language_orders_is_refused_and_equality_is_not(database: TestDatabase) -> None:
    connection = connect(database.dsn, application_name="filters", search_path="")
    with connection.cursor() as cursor:
        cursor.execute(
            'create table public.words (id integer primary key, word text collate "en-x-icu", code text collate "C")'
        )
    catalog = Catalog()
    catalog.load(load_relations(connection, [("public", "words")]))
    info = catalog.relations["public", "words"]
    assert info is not None
    relation = Relation("public", "words", info.columns, ("id",))
    with pytest.raises(FilterError, match="column word: < is not supported"):
        compile(parse_row_filter("word < 'b'"), relation, catalog, {})
    row = (b"1", b'"b"', b'"a"')
    assert compile(parse_row_filter("word = 'b' and code < 'b'"), relation, catalog, {})(row) is True
    connection.close()


def test_columns_are_those_of_the_catalog(table: Table) -> None:
    assert table.relation.columns[0] == Column("id", 23, "int4")
    assert len(table.rows) == ROWS
