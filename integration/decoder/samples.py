"""Types with values in SQL, and what of them differs from PostgreSQL's own ``to_json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

SCHEMA = r"""
create extension hstore;
create schema "Sch Q";
create type mood as enum ('sad', 'ok', 'It''s "q", \');
create type "Sch Q"."Mood, 2" as enum ('x', '{y}');
create type pair as (n integer, t text, at timestamptz);
create type nested as (p pair, list integer[], "odd "" name" bytea, m mood);
create type lone as (v text);
create type nothing as ();
create domain d_int as integer check (value > -100);
create domain d_bool as boolean;
create domain d_bytea as bytea;
create domain d_numeric as numeric(10, 2);
create domain d_text as text;
create domain d_d_int as d_int;
create domain d_array as integer[];
create domain d_pair as pair;
create domain d_at as timestamptz;
create domain d_json as jsonb;
create type span as range (subtype = float8);
"""


class Sample(NamedTuple):
    """``values``: literals of the type, written as they stand in SQL. ``json``: where to_json says something else."""

    declaration: str
    values: tuple[str, ...]
    json: Mapping[str, str] = {}


def _same(literals: tuple[str, ...]) -> tuple[str, ...]:
    return tuple("'" + literal.replace("'", "''") + "'" for literal in literals)


_NO_NUMBER = {"'NaN'": "null", "'Infinity'": "null", "'-Infinity'": "null"}

SAMPLES = (
    Sample("bool", ("true", "false")),
    Sample("int2", ("-32768", "0", "32767")),
    Sample("int4", ("-2147483648", "7")),
    Sample("int8", ("9223372036854775807", "-9223372036854775808", "9007199254740993", "0")),
    Sample("oid", ("0", "4294967295")),
    Sample("float4", ("0", "'-0'", "0.1", "16777217", "3.4e38", "1e-40", *_NO_NUMBER), _NO_NUMBER),
    Sample("float8", ("0", "'-0'", "0.1", "1e300", "-1.5e-300", "123456789.125", *_NO_NUMBER), _NO_NUMBER),
    Sample(
        "numeric",
        ("1.5000", "-0.00", "123456789012345678901234567890123456789.000000001", "1e-30", "1e50", *_NO_NUMBER),
        _NO_NUMBER,
    ),
    Sample("numeric(10,3)", ("1.5", "-9999999.999")),
    Sample("money", ("'1234.50'", "'-1'")),
    Sample("text", _same(("", "a", 'q"q', "it's", "\\", "é😀\u2028", '},{"name":', "null", "NULL", "\t\n\r\b\f"))),
    Sample("text", _same(("x" * 9000, "<b>&/"))),
    Sample("text", ("E'\\x01\\x1f\\x7f'", "'\\u0041'")),
    Sample("varchar(20)", _same(("", "äöü", " a "))),
    Sample("char(5)", _same(("", "ab", "äb"))),
    Sample('"char"', _same(("a", '"', ""))),
    Sample("name", _same(("pg_class", 'a "b"'))),
    Sample("bytea", ("'\\x'", "'\\x00ff5c'", "'abc'"), {"'\\x'": '""', "'\\x00ff5c'": '"00ff5c"', "'abc'": '"616263"'}),
    Sample("bit(4)", ("B'1010'",)),
    Sample("varbit", ("B''", "B'10'")),
    Sample("date", _same(("2024-02-29", "infinity", "-infinity", "0044-03-15 BC", "12024-01-01"))),
    Sample("time", _same(("13:14:15", "23:59:59.999999", "24:00"))),
    Sample("timetz", _same(("13:14:15+02", "13:14:15.5-03:30"))),
    Sample("timestamp", _same(("2024-02-29 13:14:15", "2024-02-29 13:14:15.120", "infinity", "-infinity"))),
    Sample("timestamp", _same(("0044-03-15 1:00 BC", "12024-01-01 00:00"))),
    Sample("timestamptz", _same(("2024-02-29 13:14:15+02", "1800-01-01 00:00:00+00:19:32", "infinity", "-infinity"))),
    Sample("timestamptz", _same(("0044-03-15 1:00 BC", "12024-01-01 00:00"))),
    Sample("interval", _same(("1 year 2 mons 3 days 04:05:06.7", "-1 day", "0"))),
    Sample("uuid", _same(("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",))),
    Sample("inet", _same(("10.0.0.1/8", "::1"))),
    Sample("cidr", _same(("10.0.0.0/8",))),
    Sample("macaddr", _same(("08:00:2b:01:02:03",))),
    Sample("point", _same(("(1.5,-2)",))),
    Sample("box", _same(("(1,1),(0,0)",))),
    Sample("polygon", _same(("((0,0),(1,1),(1,0))",))),
    Sample("xml", _same(("<a b=\"c\">é</a>",))),
    Sample("tsvector", _same(("a:1 'b c':2",))),
    Sample("tsquery", _same(("a & !b",))),
    Sample("pg_lsn", _same(("16/B374D848",))),
    Sample("regclass", _same(("pg_class",))),
    Sample("int2vector", _same(("1 2 3", ""))),
    Sample("oidvector", _same(("1 2", ""))),
    Sample("json", _same(('{"a": 1,  "a": [1, {"b": null}], "é": "\\u00e9"}', "[]", '"x"', "1.50", "null", " {} "))),
    Sample("json", _same(("[" * 100 + "]" * 100,))),
    Sample("json", _same(('"\\ud800"',)), {"'\"\\ud800\"'": '"\\"\\\\ud800\\""'}),
    Sample("jsonb", _same(('{"a": 1, "a": [1, {"b": null}], "é": "q\\"q"}', "[]", '"x"', "1.50", "null", "1e3"))),
    Sample("hstore", _same(('"a"=>"1", "b \\"c\\""=>NULL, "\\\\"=>""', ""))),
    Sample("int4[]", _same(("{}", "{1,NULL,3}", "{{1,2},{3,4}}", "[0:1]={7,8}", "[-1:0][2:3]={{1,2},{3,4}}"))),
    Sample("text[]", _same(("{}", '{a,"b c","q\\"q","\\\\",NULL,"NULL","null","","{","}",","}', "{é}"))),
    Sample("bool[]", _same(("{t,f,NULL}",))),
    Sample("numeric[]", _same(("{1.50,-2}", "{NaN,1}")), {"'{NaN,1}'": "[null,1]"}),
    Sample("timestamptz[]", _same(("{2024-02-29 13:14:15+02,infinity}",))),
    Sample("bytea[]", ("'{\"\\\\x00ff\",NULL}'",), {"'{\"\\\\x00ff\",NULL}'": '["00ff",null]'}),
    Sample("jsonb[]", ("array['{\"a\": \"q\\\"\"}', '1', 'null', NULL]::jsonb[]",)),
    Sample("box[]", _same(("{(1,1),(0,0);(2,2),(1,1)}",))),
    Sample("mood[]", ("array['sad', 'It''s \"q\", \\']::mood[]",)),
    Sample("pair[]", ("array[(1, 'a,\"b\"', '2024-01-01')::pair, null]",)),
    Sample("int2vector[]", _same(('{"1 2","3"}',))),
    Sample("mood", _same(("sad", 'It\'s "q", \\'))),
    Sample('"Sch Q"."Mood, 2"', _same(("x", "{y}"))),
    Sample("pair", ("(1, 'a \"b\", (c) \\', '2024-01-01')", "(null, null, null)", "(2, '', 'infinity')")),
    Sample("nested", ("((1, 'x', null), '{1,2}', null, 'ok')", "(null, '{}', null, null)")),
    Sample("lone", ("row('x')::lone", "row('')::lone", "row(null)::lone")),
    Sample("nothing", ("row()::nothing",)),
    Sample("int4range", _same(("[1,5)", "empty", "(,)"))),
    Sample("tstzrange", _same(("[2024-01-01 00:00+00,)",))),
    Sample("int4multirange", _same(("{[1,3),[5,7)}",))),
    Sample("span", _same(("[1.5,2]",))),
    Sample("d_int", ("5", "-5")),
    Sample("d_d_int", ("6",)),
    Sample("d_bool", ("true", "false")),
    Sample("d_bytea", ("'\\xbeef'",), {"'\\xbeef'": '"beef"'}),
    Sample("d_numeric", ("5", "'NaN'"), _NO_NUMBER),
    Sample("d_text", _same(("x", 'q"q'))),
    Sample("d_array", _same(("{1,2}",))),
    Sample("d_pair", ("(1, 'a', null)",)),
    Sample("d_at", _same(("2024-02-29 13:14:15+02",))),
    Sample("d_json", _same(('{"a": 1}',))),
    Sample("d_int[]", _same(("{1,2}",))),
)  # fmt: skip
