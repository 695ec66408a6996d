"""schema/walstream.sql against the migrations: the same objects, whichever of them made the schema."""

from __future__ import annotations

from integration.fixtures.postgres import TestDatabase
from walstream.shell.commands import migrate

QUESTIONS = {
    "tables": """
        select c.relname, c.relkind, c.relpersistence, c.relrowsecurity, c.relreplident,
               obj_description(c.oid, 'pg_class')
          from pg_class c where c.relnamespace = 'realtime'::regnamespace and c.relkind in ('r', 'p', 'S')
    """,
    "columns": """
        select c.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
               pg_get_expr(d.adbin, d.adrelid), col_description(c.oid, a.attnum)
          from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
          left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
         where c.relnamespace = 'realtime'::regnamespace and c.relkind in ('r', 'p')
    """,
    "constraints": """
        select c.relname, k.conname, pg_get_constraintdef(k.oid)
          from pg_constraint k join pg_class c on c.oid = k.conrelid where c.relnamespace = 'realtime'::regnamespace
    """,
    "indexes": "select tablename, indexname, indexdef from pg_indexes where schemaname = 'realtime'",
    "functions": """
        select p.proname, pg_get_functiondef(p.oid), obj_description(p.oid, 'pg_proc')
          from pg_proc p where p.pronamespace = 'realtime'::regnamespace
    """,
    "triggers": """
        select c.relname, t.tgname, pg_get_triggerdef(t.oid)
          from pg_trigger t join pg_class c on c.oid = t.tgrelid
         where c.relnamespace = 'realtime'::regnamespace and not t.tgisinternal
    """,
}
ACCESS = """
    select c.relname, a.grantee::regrole::text, string_agg(a.privilege_type, ',' order by a.privilege_type)
      from pg_class c, aclexplode(c.relacl) a
     where c.relnamespace = 'realtime'::regnamespace and c.relname = any(%s) and a.grantee <> c.relowner
     group by 1, 2 order by 1, 2
"""


def facts(database: TestDatabase) -> dict[str, list[tuple[object, ...]]]:
    answers = {}
    for name, question in QUESTIONS.items():
        rows = database.query(question)
        answers[name] = sorted(rows, key=repr)
    return answers


def test_the_reference_and_the_migrations_make_the_same_schema(database: TestDatabase, prepared: TestDatabase) -> None:
    text = (migrate.schema_dir() / "walstream.sql").read_text(encoding="utf-8")
    with database.connect() as connection:
        database.execute("create schema realtime; " + migrate.render(text, "realtime", connection))
    connection.close()
    by_reference, by_migrations = facts(database), facts(prepared)
    for name in QUESTIONS:
        assert by_reference[name] == by_migrations[name], name


def test_the_partition_of_a_day_has_every_column_of_messages(prepared: TestDatabase) -> None:
    prepared.execute("select realtime.maintain_messages(72, 10)")
    shapes = prepared.query(
        "select array_agg(a.attname || ' ' || a.attnotnull || coalesce(pg_get_expr(d.adbin, d.adrelid), '')"
        "                 order by a.attname)"
        "  from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped"
        "  left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum"
        " where c.oid in (select inhrelid from pg_inherits where inhparent = 'realtime.messages'::regclass"
        "                 union select 'realtime.messages'::regclass) group by c.oid"
    )
    assert len(shapes) > 12  # messages, the default partition, and the days from yesterday on
    assert len({tuple(shape) for (shape,) in shapes}) == 1
    assert "hidden truefalse" in shapes[0][0]


def test_nobody_but_the_service_touches_what_nodes_tell_each_other(prepared: TestDatabase) -> None:
    assert prepared.query(ACCESS, (["bus_payloads"],)) == [
        ("bus_payloads", "service_role", "DELETE,INSERT,SELECT"),
        ("bus_payloads", "walstream_daemon", "DELETE,INSERT,SELECT"),
    ]


def test_an_expired_message_is_cleaned_up_whatever_its_age(prepared: TestDatabase) -> None:
    prepared.execute(
        "insert into realtime.messages (topic, event, payload, expires_at) values"
        " ('a', 'gone', '1', now() - interval '1 s'), ('a', 'kept', '1', now() + interval '1 h'),"
        " ('a', 'ever', '1', null)"
    )
    assert prepared.scalar("select realtime.cleanup_expired_broadcasts()") == 1
    assert prepared.query("select event from realtime.messages order by 1") == [("ever",), ("kept",)]
