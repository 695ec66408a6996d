"""Random filters in both grammars, each with the condition that PostgreSQL is to evaluate instead.

The two texts of a case are written side by side from one choice, never one out of the other.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from integration.fixtures.cells import identifier


class ColumnKind(NamedTuple):
    """A column with what goes in and what it is compared with. ``ops``: of eq, order, text, bool."""

    name: str
    declaration: str
    values: Sequence[str]
    literals: Sequence[str] = ()
    ops: str = "eq order"


TEXTS = (
    "",
    "a",
    "b",
    "ab",
    "aB",
    "AB",
    "abc",
    "a%b",
    "a_b",
    "a\\b",
    "a,b",
    "x.y(z)",
    'q"q',
    "it's",
    " a ",
    "é",
    "Éa",
    "ñ~",
    "10",
)
WORDS = (*TEXTS, "null", "NULL", "a'")

KINDS: Sequence[ColumnKind] = (
    ColumnKind("c_bool", "boolean", ("true", "false"), ("t", "NO", " yes ", "1", "of", "maybe"), "eq order bool"),
    ColumnKind("c_int2", "smallint", ("-32768", "0", "7", "32767"), ("007", " 7 ", "+7", "32768", "x")),
    ColumnKind("c_int4", "integer", ("-2147483648", "-1", "0", "5", "10"), ("1.5", "1e1", "99999999999", "")),
    ColumnKind("c_int8", "bigint", ("-9223372036854775808", "0", "3", "9007199254740993"), ("9007199254740992", "1e3")),
    ColumnKind("c_oid", "oid", ("0", "1", "4294967295"), ("-1", "00001")),
    ColumnKind("c_float4", "real", ("-1.5", "0", "0.1", "3e38", "16777217"), ("-0", "0.10000000149", "inf", "NaN")),
    ColumnKind(
        "c_float8", "float8",
        ("-1e300", "0", "-0", "0.1", "1e-7"),
        ("0.1000000000000000055", "-Infinity", "nan", "1e400"),
    ),
    ColumnKind(
        "c_numeric", "numeric",
        ("-1.50", "0", "0.00", "1e30", "123456789.123456789"),
        ("1.5e0", "1E+30", "-1.5", "NaN", "infinity", "x"),
    ),
    ColumnKind("c_text", "text", TEXTS, WORDS, "eq order text"),
    ColumnKind("c_varchar", "varchar(12)", TEXTS, WORDS, "eq order text"),
    ColumnKind("c_bpchar", "char(6)", TEXTS, (*WORDS, "a   ", "ab    "), "eq order text"),
    ColumnKind("c_name", "name", TEXTS, (*WORDS, "a" * 70), "eq order text"),
    ColumnKind(
        "c_uuid", "uuid",
        ("00000000-0000-0000-0000-000000000000", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        (
            "{A0EEBC99-9C0B4EF8-bb6d6bb9-bd380a11}", "a0eebc999c0b4ef8bb6d6bb9bd380a1",
            "a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11-",
        ),
    ),
    ColumnKind("c_bytea", "bytea", ("\\x", "\\x00", "\\x00ff", "\\xff"), ("abc", "\\xFF", "\\xf")),
    ColumnKind(
        "c_date", "date",
        ("2024-02-29", "0044-03-15 BC", "infinity", "-infinity", "12345-01-01", "0001-01-01"),
        ("Feb 29, 2024", "20240229", "2024-02-30"),
    ),
    ColumnKind(
        "c_time", "time",
        ("00:00", "24:00:00", "13:14:15.123", "13:14:15.123456"),
        ("1:14 PM", "13:14:15.1230"),
    ),
    ColumnKind("c_timetz", "timetz", ("12:00+00", "13:00+01", "12:00-05:30", "24:00:00+15:59"), ("11:00-01", "12:00Z")),
    ColumnKind(
        "c_timestamp", "timestamp",
        ("2024-02-29 13:14:15", "2024-02-29 13:14:15.5", "0100-12-31 00:00 BC", "infinity", "-infinity", "20001-01-01"),
        ("2024-02-29T13:14:15.500000", "-4712-01-01"),
    ),
    ColumnKind(
        "c_timestamptz", "timestamptz",
        (
            "2024-02-29 13:14:15+00", "2024-02-29 13:14:15.000001+05:30", "0044-03-15 12:00+00 BC", "infinity",
            "-infinity",
        ),
        ("2024-02-29 18:44:15.000001+11", "2024-02-29 05:14:15 America/Los_Angeles", "epoch"),
    ),
    ColumnKind("c_mood", "mood", ("sad", "ok", "happy", "Very Happy"), ("very happy",)),
    ColumnKind(
        "c_jsonb", "jsonb",
        ('{"a": 1, "b": [1, 2.50]}', "1", "true", '"1"', "[]", "1e1"),
        ('{"b":[1.0,2.5],"a":1.00}', "10", "1.0", "{"),
        "eq",
    ),
    ColumnKind("c_positive", "positive", ("1", "2", "30"), ("0", "-5", "02")),
    ColumnKind("c_code", "code", ("A1", "B2", "AAAA"), ("a1", ""), "eq order text"),
    ColumnKind("c_bit", "bit(4)", ("0000", "1010", "1111"), ("B1010", "xA", "1", "12"), "eq order"),
    ColumnKind("c_varbit", "varbit", ("", "1", "10", "101"), ("b10", "x5", "X"), "eq order"),
    ColumnKind("c_inet", "inet", ("10.1.2.3", "10.1.2.3/8", "::1"), ("10.1.2.3/32", "::0001"), "eq"),
    ColumnKind("c_cidr", "cidr", ("10.0.0.0/8", "192.168.1.0/24"), ("10/8",), "eq"),
    ColumnKind("c_macaddr", "macaddr", ("08:00:2b:01:02:03",), ("08002b:010203", "08-00-2B-01-02-03"), "eq"),
    ColumnKind("c_range", "int4range", ("[1,5)", "empty", "(,3]"), ("[1,4]", "(2,2)"), "eq"),
    ColumnKind("c_days", "daterange", ("[2024-01-01,2024-01-05)",), ("(2023-12-31,2024-01-04]",), "eq"),
    ColumnKind(
        "c_span", "tsrange",
        ('["2024-01-01 00:00","2024-01-02 00:00")',),
        ('["2024-01-01","2024-01-02")',),
        "eq",
    ),
    ColumnKind("c_lsn", "pg_lsn", ("0/0", "16/B374D848"), ("16/b374d848",), "eq"),
    ColumnKind("c_char", '"char"', ("a", "", "\\377"), ("ab",), "eq"),
    ColumnKind("c_xid", "xid", ("0", "3"), ("03",), "eq"),
    ColumnKind("Odd Name", "integer", ("1", "2"), ("3",)),
    ColumnKind("c_interval", "interval", ("1 day", "24:00:00"), (), ""),
    ColumnKind("c_point", "point", ("(1,2)",), (), ""),
    ColumnKind("c_ints", "integer[]", ("{1,2}", "[0:1]={1,2}"), (), ""),
)  # fmt: skip

DECLARATIONS = """
create type mood as enum ('sad', 'ok', 'happy', 'Very Happy');
create domain positive as integer check (value > 0);
create domain code as text check (value <> '');
"""

SIGNS = {"eq": "=", "neq": "<>", "lt": "<", "lte": "<=", "gt": ">", "gte": ">="}
LIKES = ("%", "a%", "%b", "%B%", "_", "__", "a_b", "a\\%b", "%\\_%", "%a%b%", "É%", "é", "", "A\\\\B", "%,%", "it's%")
REGEXES = (
    "^a",
    "b$",
    "a.b",
    "^(a|b)+$",
    "[[:alpha:]]{2}",
    "\\d+",
    "^[^a-c]*$",
    "\\ya\\y",
    "\\.",
    "^$",
    "a\\\\b",
    "(?:ab|x)c?",
    "É",
)


class Case(NamedTuple):
    """One filter: as walstream reads it, and as PostgreSQL evaluates it."""

    text: str
    sql: str


def quote(text: str) -> str:
    """A literal, whatever standard_conforming_strings says about backslashes."""
    return "'" + text.replace("'", "''") + "'"


def condition(rng: random.Random) -> tuple[ColumnKind, str, tuple[str | None, ...]]:
    """A column, an operator of the clients' grammar, and literals."""
    kind = rng.choice(KINDS)
    ops = ["null"]
    if "eq" in kind.ops:
        ops += ["eq", "neq", "in", "isdistinct", "eq", "in"]
    if "order" in kind.ops:
        ops += ["lt", "lte", "gt", "gte"] * 2
    if "text" in kind.ops:
        ops += ["like", "ilike", "match", "imatch"] * 2
    if "bool" in kind.ops:
        ops += ["true", "false", "unknown", "holds"] * 3
    op = rng.choice(ops)
    if op in ("like", "ilike"):
        return kind, op, (rng.choice(LIKES),)
    if op in ("match", "imatch"):
        return kind, op, (rng.choice(REGEXES),)
    # Spellings that are no value make the whole filter an error: rarer than the rest.
    pool = (*kind.values, *kind.values, *kind.literals) if rng.random() < 0.5 else kind.values
    count = rng.randint(1, 4) if op == "in" else 1
    return kind, op, tuple(rng.choice(pool) for _ in range(count)) if pool else ()


def sql_condition(kind: ColumnKind, op: str, literals: Sequence[str | None]) -> str:
    """The condition for PostgreSQL."""
    column = identifier(kind.name)
    quoted = ["NULL" if literal is None else quote(literal) for literal in literals]
    match op:
        case "null":
            return f"{column} is null"
        case "true" | "false" | "unknown":
            return f"{column} is {op}"
        case "holds":
            return column
        case "in":
            return f"{column} in ({', '.join(quoted)})"
        case "isdistinct":
            return f"{column} is distinct from {quoted[0]}"
        case "like" | "ilike":
            return f"{column} {op} {quoted[0]}"
        case "match" | "imatch":
            return f"{column} ~{'*' if op == 'imatch' else ''} {quoted[0]}"
    return f"{column} {SIGNS[op]} {quoted[0]}"


def client_case(rng: random.Random) -> Case:
    """Up to three conditions, some in groups."""
    parts = [client_part(rng, 0) for _ in range(rng.randint(1, 3))]
    return Case(",".join(part.text for part in parts), " and ".join(f"({part.sql})" for part in parts))


def client_part(rng: random.Random, depth: int) -> Case:
    negated = rng.random() < 0.25
    prefix, sql_prefix = ("not.", "not ") if negated else ("", "")
    if depth < 2 and rng.random() < 0.25:
        word = rng.choice(("and", "or"))
        parts = [client_part(rng, depth + 1) for _ in range(rng.randint(1, 3))]
        equals = rng.choice(("", "="))
        text = f"{prefix}{word}{equals}({','.join(part.text for part in parts)})"
        return Case(text, f"{sql_prefix}({f' {word} '.join(f'({part.sql})' for part in parts)})")
    kind, op, literals = condition(rng)
    if op == "holds":
        op = "true"
    column = kind.name
    sign = "." if depth and rng.random() < 0.8 else "="
    sql = f"{sql_prefix}({sql_condition(kind, op, literals)})"
    if op in ("null", "true", "false", "unknown"):
        return Case(f"{column}{sign}{prefix}is.{op}", sql)
    if op == "in":
        listed = ",".join(client_value(rng, literal) for literal in literals)
        return Case(f"{column}{sign}{prefix}in.({listed})", sql)
    return Case(f"{column}{sign}{prefix}{op}.{client_value(rng, literals[0])}", sql)


def client_value(rng: random.Random, literal: str | None) -> str:
    assert literal is not None
    plain = not set(literal) & set(',()"\\') and literal == literal.strip() and literal not in ("", "null", "NULL")
    if plain and rng.random() < 0.7:
        return literal
    return '"' + literal.replace("\\", "\\\\").replace('"', '\\"') + '"'


def row_case(rng: random.Random) -> Case:
    """One text for both: row filters are SQL."""
    text = row_part(rng, 0)
    return Case(text, text)


def row_part(rng: random.Random, depth: int) -> str:
    draw = rng.random()
    if depth < 4 and draw < 0.45:
        word = rng.choice((" and ", " OR ", "\nAnd\t", " or "))
        parts = [row_part(rng, depth + 1) for _ in range(rng.randint(2, 3))]
        joined = word.join(parts)
        return f"({joined})" if rng.random() < 0.6 else joined
    if depth < 4 and draw < 0.55:
        return f"NOT ({row_part(rng, depth + 1)})" if rng.random() < 0.7 else f"not {row_leaf(rng)}"
    return row_leaf(rng)


def row_leaf(rng: random.Random) -> str:
    kind, op, literals = condition(rng)
    if literals and rng.random() < 0.08 and op not in ("like", "ilike", "match", "imatch"):
        literals = (None, *literals[1:])
    column = identifier(kind.name)
    negated = rng.random() < 0.3
    not_, bang = (" not", "!") if negated else ("", "")
    quoted = ["NULL" if literal is None else quote(literal) for literal in literals]
    match op:
        case "null":
            return f"{column} is{not_} null"
        case "true" | "false" | "unknown":
            return f"{column} IS{not_} {op}"
        case "holds":
            return f"{'not ' if negated else ''}{column}"
        case "in":
            return f"{column}{not_} IN ({','.join(quoted)})"
        case "isdistinct":
            return f"{column} is{not_} distinct from {quoted[0]}"
        case "like" | "ilike":
            return f"{column}{not_} {op} {quoted[0]}"
        case "match" | "imatch":
            return f"{column} {bang}~{'*' if op == 'imatch' else ''} {quoted[0]}"
        case "gte" if rng.random() < 0.5:
            return f"{column}{not_} between {quoted[0]} and {quote(rng.choice(kind.values))}"
    return f"{column} {'!=' if op == 'neq' and negated else SIGNS[op]} {quoted[0]}"
