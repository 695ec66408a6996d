"""Applies the SQL of schema/ to a database: numbered migrations with a ledger, then the grants.

What the tables are is told in the SQL itself; the daemon never migrates, it only asks for ``state``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812 - classes, under names that tell them from values
from psycopg2.extensions import cursor as Cursor  # noqa: N812

import walstream
from walstream.errors import ConfigError, DatabaseRefused, Invariant
from walstream.shell.database import auth_functions, roles
from walstream.shell.database.reports import ObjectReport
from walstream.shell.database.rows import only, scalar

LEDGER = "schema_migrations"
_FILE = re.compile(r"(\d{4})_(pre|post)_([a-z0-9_]+)\.sql")
_SCHEMA_NAME = re.compile(r"(?!pg_)[A-Za-z_][A-Za-z0-9_]{0,62}")
_PLACEHOLDER = "{schema}"
_LEDGER_COLUMNS = {"version", "name", "checksum", "applied_at"}

SchemaCondition = Literal["current", "absent", "empty", "pending", "newer", "changed", "foreign"]


class Migration(NamedTuple):
    """One file of schema/migrations. ``phase``: ``pre`` is safe while the old daemon runs, ``post`` is not."""

    version: int
    phase: str
    name: str  # of the file, without .sql
    text: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text, so that a file which changed after it was applied is noticed."""
        return hashlib.sha256(self.text.encode()).hexdigest()


class SchemaState(NamedTuple):
    """How a database's schema compares with this release. ``detail`` names what is pending, changed or foreign."""

    condition: SchemaCondition
    detail: str = ""


def schema_dir() -> Path:
    """The directory of the SQL: in the wheel, or beside the package in the repository. Raises Invariant."""
    package = Path(walstream.__file__).resolve().parent
    for candidate in (package / "_schema", package.parent / "schema"):
        if (candidate / "migrations").is_dir():
            return candidate
    raise Invariant("schema/migrations was not packaged")


def migrations(directory: Path | None = None) -> tuple[Migration, ...]:
    """All migrations, in order. Raises Invariant for a file name that does not fit or a version that comes twice."""
    found = []
    for path in sorted(((directory or schema_dir()) / "migrations").glob("*.sql")):
        match = _FILE.fullmatch(path.name)
        if match is None:
            raise Invariant(f"not a migration's name: {path.name}")
        found.append(Migration(int(match[1]), match[2], path.stem, path.read_text(encoding="utf-8")))
    if [migration.version for migration in found] != list(range(1, len(found) + 1)):
        raise Invariant("migrations are not numbered 1, 2, 3, …")
    return tuple(found)


def check_schema_name(schema: str) -> None:
    """Raises ConfigError for a name that cannot stand in SQL text and in a NOTIFY channel as it is."""
    if not _SCHEMA_NAME.fullmatch(schema) or schema == "information_schema":
        raise ConfigError(f"schema: {schema!r}", repair="letters, digits and _, at most 63, and not starting with pg_")


def state(connection: Connection, schema: str) -> SchemaState:
    """Compare the database with this release; changes nothing. Raises psycopg2.Error."""
    with connection.cursor() as cursor:
        return _state(cursor, schema, migrations())


def apply(
    connection: Connection, schema: str = "realtime", report: Callable[[ObjectReport], None] | None = None
) -> list[ObjectReport]:
    """Make roles, schema and everything in it, or what is missing of that; running it again changes nothing.

    Every migration is a transaction of its own, with its line in the ledger and under an advisory lock. ``report`` is
    called with each object as it is known; the list has them all.

    Raises ConfigError for an impossible name; DatabaseRefused with ``reason`` ``foreign_schema``, ``schema_newer``,
    ``schema_changed`` or ``privilege_missing``; psycopg2.Error.
    """
    check_schema_name(schema)
    known = migrations()
    reports: list[ObjectReport] = []

    def say(line: ObjectReport) -> None:
        reports.append(line)
        if report is not None:
            report(line)

    with connection, connection.cursor() as cursor:
        _lock(cursor, schema)
        _refuse(_state(cursor, schema, known), schema)
        before = _objects(cursor, schema)
        for line in roles.ensure(cursor):
            say(line)
        _ensure_schema(cursor, schema)
        for line in auth_functions.ensure(cursor):
            say(line)
    for migration in known:
        with connection, connection.cursor() as cursor:
            _lock(cursor, schema)
            # Another `init` may have come between two transactions of ours.
            if migration.version not in _ledger(cursor, schema):
                _as_owner(cursor, schema)
                _run(cursor, migration.text, schema)
                _record(cursor, schema, migration)
    with connection, connection.cursor() as cursor:
        _lock(cursor, schema)
        _as_owner(cursor, schema)
        _run(cursor, (schema_dir() / "grants.sql").read_text(encoding="utf-8"), schema)
        for kind, name in sorted(_objects(cursor, schema)):
            say(ObjectReport(kind, name, "exists" if (kind, name) in before else "created"))
    return reports


def render(text: str, schema: str, connection: Connection | Cursor) -> str:
    """SQL of schema/ for a schema of that name."""
    check_schema_name(schema)  # the name also stands inside string literals of the SQL
    return text.replace(_PLACEHOLDER, sql.Identifier(schema).as_string(connection))


def _run(cursor: Cursor, text: str, schema: str) -> None:
    cursor.execute(render(text, schema, cursor))


def _lock(cursor: Cursor, schema: str) -> None:
    cursor.execute("set local search_path = ''")
    cursor.execute(
        "select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('walstream ' || %s, 0))", (schema,)
    )


def _as_owner(cursor: Cursor, schema: str) -> None:
    """Let the schema's owner own what is made until the end of the transaction."""
    cursor.execute(
        "select r.rolname from pg_catalog.pg_namespace n join pg_catalog.pg_roles r on r.oid = n.nspowner"
        " where n.nspname = %s",
        (schema,),
    )
    row = cursor.fetchone()
    if row is None:
        raise DatabaseRefused(f"the schema {schema} has vanished", repair="run walstream init again")
    if not roles.may_act_as(cursor, row[0]):
        cursor.execute("select current_user")
        user = scalar(cursor)
        # Membership in our own role is a small thing to give; in somebody's personal one it is not.
        names = {"owner": sql.Identifier(row[0]), "user": sql.Identifier(user), "schema": sql.Identifier(schema)}
        text = "grant {owner} to {user}" if row[0] == roles.OWNER else "alter schema {schema} owner to {user}"
        grant = sql.SQL(text).format(**names)
        raise DatabaseRefused(
            f"the schema {schema} belongs to {row[0]}, and {user} may not act for it",
            sqlstate="42501", reason="privilege_missing",
            repair=grant.as_string(cursor),
        )  # fmt: skip
    cursor.execute(sql.SQL("set local role {}").format(sql.Identifier(row[0])))


def _ensure_schema(cursor: Cursor, schema: str) -> None:
    cursor.execute("select 1 from pg_catalog.pg_namespace where nspname = %s", (schema,))
    exists = cursor.fetchone() is not None
    name = sql.Identifier(schema)
    owner = sql.Identifier(roles.OWNER)
    if exists:
        if _is_empty(cursor, schema) and roles.may_act_as(cursor, roles.OWNER):
            # Somebody made the schema for us. Whether he may give it away decides who owns what follows.
            roles.attempt(cursor, sql.SQL("alter schema {} owner to {}").format(name, owner))
        return
    create = sql.SQL("create schema {}").format(name)
    if roles.may_act_as(cursor, roles.OWNER):
        create = sql.SQL("create schema {} authorization {}").format(name, owner)
    refused = roles.attempt(cursor, create)
    if refused is None:
        return
    if not isinstance(refused, psycopg2.errors.InsufficientPrivilege):
        raise refused
    cursor.execute("select current_user, current_database()")
    user, database = only(cursor)
    grant = sql.SQL("grant create on database {} to {}").format(sql.Identifier(database), sql.Identifier(user))
    raise DatabaseRefused(
        f"{user} may not create a schema in the database {database}",
        sqlstate="42501", reason="privilege_missing", repair=grant.as_string(cursor),
    ) from refused  # fmt: skip


def _state(cursor: Cursor, schema: str, known: Sequence[Migration]) -> SchemaState:
    cursor.execute("select 1 from pg_catalog.pg_namespace where nspname = %s", (schema,))
    if cursor.fetchone() is None:
        return SchemaState("absent")
    columns = _columns(cursor, schema)
    if columns.get(LEDGER, set()) != _LEDGER_COLUMNS:
        if _is_empty(cursor, schema):
            return SchemaState("empty")
        return SchemaState("foreign", _whose(columns))
    applied = _ledger(cursor, schema)
    by_version = {migration.version: migration for migration in known}
    newer = sorted(set(applied) - set(by_version))
    if newer:
        return SchemaState("newer", applied[newer[0]][0])
    for version, (name, checksum) in sorted(applied.items()):
        if checksum != by_version[version].checksum:
            return SchemaState("changed", name)
    pending = [migration.name for migration in known if migration.version not in applied]
    return SchemaState("pending", ", ".join(pending)) if pending else SchemaState("current")


def _refuse(found: SchemaState, schema: str) -> None:
    if found.condition == "foreign":
        raise DatabaseRefused(
            f"the schema {schema} is not walstream's: it {found.detail}",
            reason="foreign_schema",
            repair="choose another name with WALSTREAM_SCHEMA, or move that one away with ALTER SCHEMA … RENAME TO",
        )
    if found.condition == "newer":
        raise DatabaseRefused(
            f"the schema {schema} was made by a newer walstream: it has {found.detail}",
            reason="schema_newer", repair="install that release",
        )  # fmt: skip
    if found.condition == "changed":
        raise DatabaseRefused(
            f"the migration {found.detail} in the schema {schema} is not the one of this release",
            reason="schema_changed", repair="install the release that made it",
        )  # fmt: skip


def _whose(columns: dict[str, set[str]]) -> str:
    """Whose schema this looks like, for the message."""
    if "subscription" in columns or "inserted_at" in columns.get(LEDGER, set()):
        return "has the tables of Supabase Realtime"
    if "broadcasts" in columns or "content" in columns.get("messages", set()) or "channels" in columns:
        return "has the tables of nself realtime"
    return "has objects of somebody else" + (f", such as {min(columns)}" if columns else "")


def _columns(cursor: Cursor, schema: str) -> dict[str, set[str]]:
    cursor.execute(
        "select c.relname, a.attname"
        "  from pg_catalog.pg_class c"
        "  join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
        "  left join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped"
        " where n.nspname = %s and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')",
        (schema,),
    )
    found: dict[str, set[str]] = {}
    for table, column in cursor.fetchall():
        found.setdefault(table, set()).add(column)
    return found


def _is_empty(cursor: Cursor, schema: str) -> bool:
    cursor.execute(
        "select exists (select from pg_catalog.pg_class c where c.relnamespace = n.oid)"
        "    or exists (select from pg_catalog.pg_proc p where p.pronamespace = n.oid)"
        "    or exists (select from pg_catalog.pg_type t where t.typnamespace = n.oid)"
        "  from pg_catalog.pg_namespace n where n.nspname = %s",
        (schema,),
    )
    return not scalar(cursor)


def _ledger(cursor: Cursor, schema: str) -> dict[int, tuple[str, str]]:
    """Applied versions with name and checksum; none where there is no ledger yet."""
    table = sql.Identifier(schema, LEDGER)
    cursor.execute("select pg_catalog.to_regclass(%s) is not null", (table.as_string(cursor),))
    if not scalar(cursor):
        return {}
    cursor.execute(sql.SQL("select version, name, checksum from {}").format(table))
    return {version: (name, checksum) for version, name, checksum in cursor.fetchall()}


def _record(cursor: Cursor, schema: str, migration: Migration) -> None:
    cursor.execute(
        sql.SQL("insert into {} (version, name, checksum) values (%s, %s, %s)").format(sql.Identifier(schema, LEDGER)),
        (migration.version, migration.name, migration.checksum),
    )


def _objects(cursor: Cursor, schema: str) -> set[tuple[str, str]]:
    cursor.execute(
        "select 'schema', n.nspname::text from pg_catalog.pg_namespace n where n.nspname = %(schema)s"
        " union all"
        " select 'table', n.nspname || '.' || c.relname"
        "   from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
        "  where n.nspname = %(schema)s and c.relkind in ('r', 'p') and not c.relispartition"
        " union all"
        " select 'function', n.nspname || '.' || p.proname || '(' || pg_catalog.oidvectortypes(p.proargtypes) || ')'"
        "   from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace"
        "  where n.nspname = %(schema)s",
        {"schema": schema},
    )
    return {(kind, name) for kind, name in cursor.fetchall()}
