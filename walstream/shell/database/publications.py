"""The two publications that pgoutput reads through, kept equal to what is captured.

``walstream_all`` has the tables whose rows the WAL identifies, ``walstream_insert`` the rest: an UPDATE of a table
without a usable replica identity would fail for its user if it were published. Never with column lists, for the same
reason. What is captured is in ``subscriptions``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812 - classes, under names that tell them from values
from psycopg2.extensions import cursor as Cursor  # noqa: N812

from walstream.history.plan_log import Anew
from walstream.lsn import Lsn
from walstream.shell.database import roles, tables
from walstream.shell.database.rows import scalar
from walstream.shell.database.tables import Table

ALL = "walstream_all"
INSERT_ONLY = "walstream_insert"
NAMES = (ALL, INSERT_ONLY)
LOCK_TIMEOUT = "5s"

# The xids of transactions that may write to a table, or to a partition of it.
_WRITTEN = """
select n.nspname, c.relname, array(
    select held.transactionid::text::bigint
      from pg_catalog.pg_locks written
      join pg_catalog.pg_locks held on held.virtualtransaction = written.virtualtransaction
     where written.locktype = 'relation' and written.mode = 'RowExclusiveLock'
       and written.database = (select d.oid from pg_catalog.pg_database d where d.datname = current_database())
       and (written.relation = c.oid or written.relation in (select relid from pg_catalog.pg_partition_tree(c.oid)))
       and held.locktype = 'transactionid' and held.mode = 'ExclusiveLock'
  )
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where c.oid in (
    select coalesce(pg_catalog.pg_partition_root(named.oid), named.oid)
      from unnest(%s::text[], %s::text[]) as names (schema, name)
     cross join pg_catalog.to_regclass(pg_catalog.format('%%I.%%I', names.schema, names.name)) as named (oid)
 )
"""

PUBLISH = {ALL: "insert, update, delete, truncate", INSERT_ONLY: "insert, truncate"}
_OWN = {ALL: ("subscriptions", "channels", "channel_members"), INSERT_ONLY: ("messages",)}

Name = tuple[str, str]
"""Schema and table."""


class Synced(NamedTuple):
    """``executed``: statements that ran. ``missing``: those that were refused, with the refusal, for somebody else.

    ``added``: tables that were in neither publication, none of them walstream's own.
    """

    executed: tuple[str, ...]
    missing: tuple[tuple[str, str], ...]
    added: tuple[Name, ...] = ()

    @property
    def made(self) -> tuple[str, ...]:
        """The publications that were not there before."""
        return tuple(
            name for name in NAMES if any(text.startswith(f'create publication "{name}"') for text in self.executed)
        )

    @property
    def complete(self) -> bool:
        """Whether the publications now are what they should be."""
        return not self.missing


def sync_publications(connection: Connection, schema: str) -> Synced:
    """Create what is missing and add and drop tables until the publications fit the subscriptions.

    Runs in a transaction of its own, or in the one that is open on ``connection``. Takes SHARE UPDATE EXCLUSIVE on the
    tables that come or go, and waits at most ``LOCK_TIMEOUT`` for it and for others who do the same. Raises
    psycopg2.Error for anything but refusals.
    """
    if connection.autocommit and connection.info.transaction_status == psycopg2.extensions.TRANSACTION_STATUS_IDLE:
        with connection:
            return _sync(connection, schema)
    return _sync(connection, schema)


def check_publications(connection: Connection, schema: str) -> tuple[str, ...]:
    """The statements that ``sync_publications`` would run; changes nothing. Raises psycopg2.Error."""
    with connection.cursor() as cursor:
        return tuple(
            statement.as_string(cursor) for statements in _plan(connection, cursor, schema) for statement in statements
        )


def wanted(connection: Connection, schema: str) -> dict[str, set[Name]]:
    """Which tables belong to which publication, by the subscriptions and the catalogue of now."""
    members: dict[str, set[Name]] = {name: {(schema, own) for own in _OWN[name]} for name in NAMES}
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL("select table_name from {}").format(sql.Identifier(schema, "subscriptions")))
        patterns = [row[0] for row in cursor.fetchall()]
    for pattern in patterns:
        for publication, names in members_for(connection, tables.matching(connection, pattern, ours=schema)).items():
            members[publication] |= names
    return members


def members_for(connection: Connection, found: Iterable[Table]) -> dict[str, set[Name]]:
    """What each publication has to hold so that the changes of these tables are sent, and no statement fails."""
    members: dict[str, set[Name]] = {name: set() for name in NAMES}
    for table in found:
        if table.kind not in ("r", "p") or table.persistence != "p" or table.root:
            continue
        members[ALL if table.identity else INSERT_ONLY].add((table.schema, table.name))
        if table.kind == "p" and not table.identity:
            # Partition by partition: one that is attached later must not lose its user's UPDATE.
            members[ALL] |= {(leaf.schema, leaf.name) for leaf in _identified(connection, table)}
    return members


def _identified(connection: Connection, table: Table) -> Iterable[Table]:
    return (leaf for leaf in tables.leaves(connection, table) if leaf.identity and leaf.kind == "r")


def _sync(connection: Connection, schema: str) -> Synced:
    executed: list[str] = []
    missing: list[tuple[str, str]] = []
    with connection.cursor() as cursor:
        cursor.execute("select pg_catalog.set_config('lock_timeout', %s, true)", (LOCK_TIMEOUT,))
        # One after the other: who read the subscriptions before another's commit would undo what that one has added.
        cursor.execute(
            "select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('walstream publications', 0))"
        )
        before = _members(cursor)
        for statements in _plan(connection, cursor, schema):
            for statement in statements:
                refused = roles.attempt(cursor, statement)
                text = statement.as_string(cursor)
                if refused is None:
                    executed.append(text)
                    continue
                missing.append((text, (refused.diag.message_primary or str(refused)).strip()))
                if text.startswith("create"):
                    break  # nothing can be added to it
        added = {name for name in _members(cursor) - before if name[0] != schema} if executed else ()
        _give_to_owner(cursor)
    return Synced(tuple(executed), tuple(missing), tuple(sorted(added)))


def _plan(connection: Connection, cursor: Cursor, schema: str) -> list[Sequence[sql.Composed]]:
    """For each publication the statements that are due, in their order."""
    members = wanted(connection, schema)
    plan: list[Sequence[sql.Composed]] = []
    for publication in NAMES:
        statements = []
        name = sql.Identifier(publication)
        present = members_now(cursor, publication)
        if present is None:
            create = sql.SQL("create publication {} with (publish = {})")
            statements.append(create.format(name, sql.Literal(PUBLISH[publication])))
        for verb, which in (
            ("drop", (present or set()) - members[publication]),
            ("add", members[publication] - (present or set())),
        ):
            for table in sorted(which):
                alter = sql.SQL("alter publication {} {} table {}")
                statements.append(alter.format(name, sql.SQL(verb), sql.Identifier(*table)))
        plan.append(statements)
    return plan


def _members(cursor: Cursor) -> set[Name]:
    """The tables of both."""
    return {table for publication in NAMES for table in members_now(cursor, publication) or ()}


def anew(connection: Connection, tables: Iterable[Name]) -> Anew:
    """What the stream does not bring of tables that have just been published, as clients know them.

    To be asked when that is committed. Raises psycopg2.Error.
    """
    schemas, names = zip(*tables, strict=True)
    with connection.cursor() as cursor:
        cursor.execute(_WRITTEN, (list(schemas), list(names)))
        found = cursor.fetchall()
        # Read last: who has ended since has done so before it.
        cursor.execute("select pg_catalog.pg_current_wal_insert_lsn()::text")
        position = Lsn.parse(scalar(cursor))
    writers = frozenset(xid for _, _, xids in found for xid in xids)
    return Anew(frozenset((schema, name) for schema, name, _ in found), position, writers)


def members_now(cursor: Cursor, publication: str) -> set[Name] | None:
    """Tables that were added to a publication by name; None where it does not exist."""
    cursor.execute("select oid from pg_catalog.pg_publication where pubname = %s", (publication,))
    row = cursor.fetchone()
    if row is None:
        return None
    cursor.execute(
        "select n.nspname, c.relname"
        "  from pg_catalog.pg_publication_rel p"
        "  join pg_catalog.pg_class c on c.oid = p.prrelid"
        "  join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
        " where p.prpubid = %s",
        (row[0],),
    )
    return {(schema, name) for schema, name in cursor.fetchall()}


def _give_to_owner(cursor: Cursor) -> None:
    """Let every member of our owner's role alter them, where whoever made them may give them away."""
    cursor.execute(
        "select p.pubname from pg_catalog.pg_publication p"
        " where p.pubname = any(%s) and p.pubowner = current_user::regrole"
        " and exists (select from pg_catalog.pg_roles r where r.rolname = %s and r.rolname <> current_user)",
        (list(NAMES), roles.OWNER),
    )
    for (publication,) in cursor.fetchall():
        give = sql.SQL("alter publication {} owner to {}")
        roles.attempt(cursor, give.format(sql.Identifier(publication), sql.Identifier(roles.OWNER)))
