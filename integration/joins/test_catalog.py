"""Catalog facts are what PostgreSQL does: keys, identities, partitions, collations, types."""

from __future__ import annotations

import pytest
from psycopg2.extensions import connection as PgConnection  # noqa: N812 - a class under its role's name

from integration.fixtures.postgres import TestDatabase
from walstream.model import Column, RelationInfo, ReplicaIdentity
from walstream.shell.database.catalog import load_relations, load_types


def relation(connection: PgConnection, name: str, schema: str = "public") -> RelationInfo:
    info = load_relations(connection, [(schema, name)])[schema, name]
    assert info is not None
    return info


def test_a_table_is_known_by_its_columns_and_keys(any_database: TestDatabase, facts: PgConnection) -> None:
    any_database.execute(
        'create table "Od d%" (gone int, "b" text, a int, "c%s" int4[], primary key (a, "b") include ("c%s"));'
        'alter table "Od d%" drop column gone'
    )
    info = relation(facts, "Od d%")
    assert info.columns == (Column("b", 25, "text"), Column("a", 23, "int4"), Column("c%s", 1007, "_int4"))
    assert info.column_order == ("b", "a", "c%s")
    assert info.primary_key == info.identity_columns == ("b", "a")
    assert info.root == ("public", "Od d%")
    assert info.oid == any_database.scalar("select '\"Od d%\"'::regclass::oid::int8")
    assert info.row_security is False


def test_what_does_not_exist_is_none_and_what_cannot_be_a_name_too(
    any_database: TestDatabase, facts: PgConnection
) -> None:
    long = "t" * 63
    any_database.execute(f"create table {long} (a int); create view v as select 1 as a; create index i on {long} (a)")
    names = [
        ("public", "nothing"),
        ("nowhere", long),
        ("public", long + "t"),
        ("public", "nul\0"),
        ("public", "\ud800"),
        ("public", "v"),
        ("public", "i"),
        ("public", "'; drop table x; --"),
        ("", ""),
    ]
    assert load_relations(facts, names) == dict.fromkeys(names)
    assert load_relations(facts, []) == {}
    assert relation(facts, long).name == long


@pytest.mark.parametrize(
    ("statement", "identity", "columns"),
    [
        ("select 1", ReplicaIdentity.DEFAULT, ("a",)),
        ("alter table t replica identity full", ReplicaIdentity.FULL, ("a", "b", "c")),
        ("alter table t replica identity nothing", ReplicaIdentity.NOTHING, ()),
        ("alter table t replica identity using index other", ReplicaIdentity.INDEX, ("b",)),
        ("alter table t drop constraint t_pkey", ReplicaIdentity.DEFAULT, ()),
        (
            "alter table t drop constraint t_pkey; alter table t add primary key (a) deferrable",
            ReplicaIdentity.DEFAULT,
            (),
        ),
    ],
)
def test_old_rows_hold_what_the_replica_identity_says(
    any_database: TestDatabase,
    facts: PgConnection,
    statement: str,
    identity: ReplicaIdentity,
    columns: tuple[str, ...],
) -> None:
    any_database.execute("create table t (a int primary key, b int not null, c text)")
    any_database.execute(f"create unique index other on t (b) include (c); {statement}")
    info = relation(facts, "t")
    assert (info.replica_identity, info.identity_columns) == (identity, columns)


def test_a_partition_has_its_roots_columns_key_and_row_security_and_its_own_identity(
    any_database: TestDatabase, facts: PgConnection
) -> None:
    any_database.execute(
        "create schema parts;"
        'create table root (a int, b text collate "C", primary key (a)) partition by range (a);'
        'create table parts.middle (b text collate "C", gone int, a int not null) partition by range (a);'
        "alter table parts.middle drop column gone;"
        "alter table root attach partition parts.middle for values from (0) to (100);"
        "create table parts.leaf partition of parts.middle for values from (0) to (10);"
        "alter table parts.leaf replica identity full;"
        "alter table parts.leaf enable row level security"
    )
    leaf = relation(facts, "leaf", "parts")
    assert leaf.root == ("public", "root")
    assert leaf.column_order == ("a", "b")
    assert leaf.columns == relation(facts, "root").columns
    assert leaf.primary_key == ("a",)
    assert leaf.identity_columns == ("a", "b")
    assert leaf.ordered_text == {"b"}
    # Who reads through the root is not asked for the leaf's policies.
    assert leaf.row_security is False
    assert relation(facts, "middle", "parts").identity_columns == ("a",)
    any_database.execute("alter table root enable row level security")
    assert relation(facts, "leaf", "parts").row_security is True


def test_collations_are_told_as_postgresql_compares_by_them(any_database: TestDatabase, facts: PgConnection) -> None:
    any_database.execute(
        "create collation c_order (provider = libc, lc_collate = 'C', lc_ctype = 'C.UTF-8');"
        'create domain code as text collate "C";'
        'create table words (n int, by_c text collate "C", by_posix varchar collate "POSIX",'
        " by_ucs text collate ucs_basic, mixed varchar collate public.c_order, by_domain code, named name, plain text)"
    )
    known = {row[0] for row in any_database.query("select collname from pg_collation")}
    ordered = {"by_c", "by_posix", "by_ucs", "mixed", "by_domain", "named"}
    ascii_case = ordered - {"mixed"}
    cased = {"mixed"}
    if "pg_unicode_fast" in known:
        any_database.execute(
            "alter table words add by_fast text collate pg_unicode_fast, add by_builtin text collate pg_c_utf8"
        )
        ordered |= {"by_fast", "by_builtin"}
        cased |= {"by_fast", "by_builtin"}
    if "und-x-icu" in known:
        any_database.execute(
            "create collation fuzzy (provider = icu, locale = 'und-u-ks-level2', deterministic = false);"
            'alter table words add by_icu text collate "en-x-icu", add by_und text collate "und-x-icu",'
            " add by_fuzzy text collate public.fuzzy"
        )
        cased |= {"by_icu", "by_und"}
    info = relation(facts, "words")
    assert info.ordered_text - {"plain"} == ordered
    assert info.ascii_case - {"plain"} == ascii_case
    assert info.fuzzy_text == ({"by_fuzzy"} if "und-x-icu" in known else set())
    # PostgreSQL's own word for it: É has a case where the collation knows more than ASCII, and Z sorts before a.
    for column in (*cased, *(ascii_case - {"named"}), "plain"):
        any_database.execute(f"insert into words ({column}) values ('É')")
        folds, sorts = any_database.query(
            f"select {column} ilike 'é', 'é' > {column} and 'Z' < {column} from words where {column} is not null"
        )[0]
        assert folds is (column not in info.ascii_case), column
        assert sorts or column not in info.ordered_text, column


@pytest.mark.parametrize(
    ("options", "since", "ordered", "ascii_case"),
    [
        ("locale 'C'", 14, True, True),
        ("lc_collate 'C' lc_ctype 'C.UTF-8'", 14, True, False),
        ("locale 'C.UTF-8'", 14, True, False),
        ("locale_provider icu icu_locale 'en' locale 'C'", 15, False, False),
        ("locale_provider builtin builtin_locale 'C' locale 'C'", 17, True, True),
        ("locale_provider builtin builtin_locale 'C.UTF-8' locale 'C'", 17, True, False),
    ],
)
def test_the_default_collation_is_that_of_the_database(
    any_database: TestDatabase, options: str, since: int, ordered: bool, ascii_case: bool
) -> None:
    version = any_database.scalar("select current_setting('server_version_num')::int / 10000")
    icu = any_database.scalar("select exists (select from pg_collation where collname = 'und-x-icu')")
    if version < since or ("icu" in options and not icu):
        return
    name = f"{any_database.name}_words"
    any_database.execute(f"create database {name} template template0 encoding 'UTF8' {options}")
    words = TestDatabase(any_database.cluster, name)
    try:
        words.execute("create table words (word text)")
        connection = words.connect()
        info = relation(connection, "words")
        connection.close()
        assert info.ordered_text == ({"word"} if ordered else set())
        assert info.ascii_case == ({"word"} if ascii_case else set())
        assert info.fuzzy_text == frozenset()
        assert words.scalar("select 'É' ilike 'é'") is not ascii_case
        assert words.scalar("select 'Z' < 'a'") is ordered
    finally:
        words.close()
        any_database.execute(f"drop database {name}")


def test_types_come_with_the_types_inside_them(any_database: TestDatabase, facts: PgConnection) -> None:
    any_database.execute(
        "create type mood as enum ('sad', 'happy'); alter type mood add value 'so so' before 'happy';"
        "create domain few as int check (value < 5);"
        "create type pair as (a few, b mood[]);"
        "create table t (p pair[])"
    )
    oid = any_database.scalar("select 'pair[]'::regtype::oid::int8")
    types = load_types(facts, [oid, 999_999])
    assert types[999_999] is None
    by_name = {info.name: info for info in types.values() if info is not None}
    assert by_name.keys() >= {"_pair", "pair", "few", "int4", "_mood", "mood"}
    assert by_name["_pair"].element == by_name["pair"].oid
    assert by_name["few"].base == 23
    assert by_name["mood"].labels == ("sad", "so so", "happy")
    assert [name for name, _ in by_name["pair"].fields] == ["a", "b"]
