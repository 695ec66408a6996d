"""Policies on ``messages`` as PostgreSQL stores them, and their conditions evaluated over a row that nobody writes.

What an answer means is in ``channel.permission``; why nothing is written is told in docs/adr/0013.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import psycopg2
import psycopg2.extensions
from psycopg2 import sql

from walstream.channel.permission import (
    CANCELED,
    POLICY_ERROR,
    Answer,
    Question,
    Reading,
    Trouble,
    Writing,
    nothing,
)
from walstream.policy.claims import session_settings
from walstream.policy.model import Viewer
from walstream.shell.database.catalog import is_name
from walstream.shell.database.rows import is_text

if TYPE_CHECKING:
    from psycopg2.extensions import connection as PgConnection  # noqa: N812 - a class under its role's name

MESSAGES: Final = "messages"

QUESTION_MS: Final = 1000
"""How long the policies of one question may take."""

SEARCH_PATH: Final = '"$user", public'
"""PostgreSQL's own default: what functions that policies call were written for. The policies' text needs none."""

_READ: Final = ("broadcast", "presence")
_WRITE: Final = ("broadcast", "presence", "persistence")
_CANCELED: Final = "57014"

_POLICIES = """
select r.rolname,
       not r.rolsuper and pg_catalog.pg_has_role(current_user, r.oid, 'MEMBER'),
       pg_catalog.has_schema_privilege(r.oid, c.relnamespace, 'USAGE')
       and pg_catalog.has_table_privilege(r.oid, c.oid, 'SELECT'),
       pg_catalog.has_schema_privilege(r.oid, c.relnamespace, 'USAGE')
       and pg_catalog.has_table_privilege(r.oid, c.oid, 'INSERT'),
       c.relrowsecurity
       and not r.rolbypassrls
       and (c.relforcerowsecurity or not pg_catalog.pg_has_role(r.oid, c.relowner, 'USAGE')),
       p.polcmd,
       p.polpermissive,
       pg_catalog.pg_get_expr(p.polqual, p.polrelid),
       pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid)
  from pg_catalog.pg_class c
  cross join pg_catalog.pg_roles r
  left join pg_catalog.pg_policy p
    on p.polrelid = c.oid
   and p.polcmd in ('*', 'r', 'a')
   and (0 = any(p.polroles)
        or exists (select from unnest(p.polroles) m (oid) where pg_catalog.pg_has_role(r.oid, m.oid, 'USAGE')))
 where c.oid = pg_catalog.to_regclass(%(table)s)
   and r.rolname = any(%(roles)s::name[])
 order by r.rolname, p.polname
"""

# Whatever decides for somebody in some room: the table's policies and grants, and who is a member of which role.
_FINGERPRINT = """
select pg_catalog.md5(pg_catalog.concat_ws('|', c.relrowsecurity, c.relforcerowsecurity, c.relowner, c.relacl, (
           select pg_catalog.string_agg(pg_catalog.concat_ws(
                      '|', p.oid, p.polcmd, p.polpermissive, p.polroles, p.polqual, p.polwithcheck), '|' order by p.oid)
             from pg_catalog.pg_policy p
            where p.polrelid = c.oid
       ), (
           select pg_catalog.string_agg(m.roleid || '>' || m.member, '|' order by m.roleid, m.member)
             from pg_catalog.pg_auth_members m
       ))),
       exists (select from pg_catalog.pg_policy p
                where p.polrelid = c.oid and p.polpermissive and p.polcmd in ('*', 'r')
                  and p.polname <> 'walstream_daemon')
       or not c.relrowsecurity
  from pg_catalog.pg_class c
 where c.oid = pg_catalog.to_regclass(%(table)s)
"""


class RoleRights(NamedTuple):
    """What a role may do with ``messages`` before a row is looked at.

    ``usable``: a token may name it. ``read`` and ``write``: the condition on a row as SQL, "" where no row-level
    security stands in the way, None where nothing passes.
    """

    usable: bool
    read: str | None
    write: str | None


class Watched(NamedTuple):
    """``fingerprint``: another one once anything that decides has changed. ``admits``: whether anybody may come in."""

    fingerprint: str
    admits: bool


def watch_policies(connection: PgConnection, schema: str) -> Watched:
    """What the policies are like now. Raises psycopg2.Error."""
    with connection.cursor() as cursor:
        cursor.execute(_FINGERPRINT, {"table": _table(connection, schema)})
        row = cursor.fetchone()
    return Watched(*row) if row is not None else Watched("", False)


def load_rights(connection: PgConnection, schema: str, roles: Collection[str]) -> Mapping[str, RoleRights]:
    """By role, those that exist. Raises psycopg2.Error."""
    with connection.cursor() as cursor:
        cursor.execute(_POLICIES, {"table": _table(connection, schema), "roles": list(filter(is_name, roles))})
        rows = cursor.fetchall()
    by_role: dict[str, list[tuple[Any, ...]]] = {}
    for row in rows:
        by_role.setdefault(row[0], []).append(row[1:])
    return {role: _rights(found) for role, found in by_role.items()}


def _rights(rows: Sequence[tuple[Any, ...]]) -> RoleRights:
    usable, may_select, may_insert, guarded = rows[0][:4]
    policies = [row[4:] for row in rows if row[4] is not None]
    reads = [(permissive, using) for command, permissive, using, _ in policies if command in ("*", "r")]
    writes = [
        (permissive, check if check is not None else using)
        for command, permissive, using, check in policies
        if command in ("*", "a")
    ]
    return RoleRights(
        bool(usable),
        (_condition(reads) if guarded else "") if may_select else None,
        (_condition(writes) if guarded else "") if may_insert else None,
    )


def _condition(policies: Sequence[tuple[bool, str]]) -> str | None:
    """One of the permissive ones and all of the restrictive ones (PostgreSQL 17, CREATE POLICY)."""
    permissive = [f"({condition})" for is_permissive, condition in policies if is_permissive]
    restrictive = [f"({condition})" for is_permissive, condition in policies if not is_permissive]
    if not permissive:
        return None
    return " and ".join([*restrictive, f"({' or '.join(permissive)})"])


def judge(
    connection: PgConnection, schema: str, questions: Sequence[Question], *, seconds: float
) -> dict[Question, Answer]:
    """Answers, in their order, until ``seconds`` are over: what has none has to be asked again.

    A policy that fails answers with a Trouble of ``POLICY_ERROR``. Nothing is written, nothing stays set. Raises
    psycopg2.Error where it is the connection or our own table that fails. For a connection in autocommit.
    """
    deadline = time.monotonic() + seconds
    answers: dict[Question, Answer] = {}
    with connection.cursor() as cursor:
        cursor.execute("begin transaction isolation level read committed, read only")
        try:
            rights = load_rights(connection, schema, {question.role for question in questions})
            cursor.execute(
                "select pg_catalog.set_config('statement_timeout', %s, true),"
                " pg_catalog.set_config('jit', 'off', true)",
                (str(QUESTION_MS),),
            )
            cursor.execute("savepoint walstream_question")
            for question in questions:
                if answers and time.monotonic() > deadline:
                    break
                answers[question] = _answer(cursor, schema, question, rights.get(question.role))
        finally:
            if not connection.closed:
                cursor.execute("rollback")
    return answers


def _answer(cursor: Any, schema: str, question: Question, rights: RoleRights | None) -> Answer:
    condition = (rights.write if question.writes else rights.read) if rights is not None and rights.usable else None
    if condition is None or not all(map(is_text, question[:5])):
        return nothing(question)
    extensions = _WRITE if question.writes else _READ
    if not condition:
        return Writing(True, True, True) if question.writes else Reading(True, True)
    try:
        cursor.execute(_statement(cursor, schema, question, condition, extensions))
        allowed = dict(cursor.fetchall())
    except psycopg2.Error as error:
        return _trouble(error)
    found = [bool(allowed.get(extension)) for extension in extensions]
    return Writing(*found) if question.writes else Reading(*found)


def _statement(cursor: Any, schema: str, question: Question, condition: str, extensions: Sequence[str]) -> bytes:
    values = {
        "search_path": SEARCH_PATH,
        "realtime.topic": question.topic,
        "request.headers": question.headers,
        **session_settings(Viewer(question.role, question.claims)),
    }
    settings = sql.SQL(", ").join(
        sql.SQL("pg_catalog.set_config({}, {}, true)").format(sql.Literal(name), sql.Literal(value))
        for name, value in values.items()
    )
    rows = [
        sql.SQL(
            "select {extension}, coalesce(({condition}), false)"
            " from pg_catalog.jsonb_populate_record(null::{table}, {row}::jsonb || pg_catalog.jsonb_build_object("
            "'id', pg_catalog.gen_random_uuid(), 'inserted_at', pg_catalog.now(), 'updated_at', pg_catalog.now(),"
            " 'sent_at', pg_catalog.now())) as messages"
        ).format(
            extension=sql.Literal(extension),
            condition=sql.SQL(condition),
            table=sql.Identifier(schema, MESSAGES),
            row=sql.Literal(_row(question, extension)),
        )
        for extension in extensions
    ]
    # As bytes and without parameters: a condition may have a % of its own.
    statement: str = (
        sql.SQL("rollback to savepoint walstream_question; select {}; {}")
        .format(settings, sql.SQL(" union all ").join(rows))
        .as_string(cursor)
    )
    return statement.encode()


def _row(question: Question, extension: str) -> str:
    """The row that is asked about: what would be stored, without a message."""
    values = {
        "topic": question.topic,
        "channel_id": question.channel_id,
        "extension": extension,
        "private": True,
        "sender_id": question.sub if question.writes and question.sub else None,
        "hidden": False,
    }
    return msgspec.json.encode(values).decode()


def _trouble(error: psycopg2.Error) -> Trouble:
    state = error.pgcode or ""
    if state == _CANCELED:
        return CANCELED
    if not state or state[:2] in ("08", "57", "53"):
        raise error
    text = (error.diag.message_primary or str(error)).strip()
    return Trouble(POLICY_ERROR, text)


def _table(connection: PgConnection, schema: str) -> str:
    return sql.Identifier(schema, MESSAGES).as_string(connection)
