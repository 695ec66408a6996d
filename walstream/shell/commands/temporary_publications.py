"""Publications that live as long as one ``walstream listen``, for tables that walstream's own do not hold.

What a publication may hold without failing its users' statements is decided in ``publications``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import psycopg2
from psycopg2 import sql

from walstream.errors import DatabaseRefused
from walstream.shell.database import publications
from walstream.shell.database.tables import Table

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812 - a class, under a name that tells it from values

PREFIX = "walstream_listen_"

_LOCK = "pg_catalog.pg_{}(pg_catalog.hashtextextended(%s, 0))"


def names_for(connection: Connection) -> tuple[str, ...]:
    """What a session calls its publications. They are known before they are made, to be dropped whatever comes."""
    pid = connection.info.backend_pid
    return tuple(f"{PREFIX}{pid}_{suffix}" for suffix in ("all", "insert"))


def ensure(connection: Connection, found: Sequence[Table]) -> tuple[str, ...]:
    """Names of publications that send these tables: walstream's own where they hold them all, else new ones.

    New ones are marked as in use by a lock of this session. Raises DatabaseRefused where they may not be made,
    psycopg2.Error.
    """
    sweep(connection)
    needed = publications.members_for(connection, found)
    with connection.cursor() as cursor:
        if all(members <= (publications.members_now(cursor, name) or set()) for name, members in needed.items()):
            return tuple(name for name in publications.NAMES if needed[name])
        made = []
        for own, name in zip(publications.NAMES, names_for(connection), strict=True):
            if not needed[own]:
                continue
            cursor.execute("select " + _LOCK.format("advisory_lock"), (name,))
            create = sql.SQL("create publication {} for table {} with (publish = {})").format(
                sql.Identifier(name),
                sql.SQL(", ").join(sql.Identifier(*table) for table in sorted(needed[own])),
                sql.Literal(publications.PUBLISH[own]),
            )
            try:
                cursor.execute(create)
            except psycopg2.errors.InsufficientPrivilege as error:
                raise DatabaseRefused(
                    f"pgoutput reads through a publication, and none may be made: {error.diag.message_primary}",
                    sqlstate="42501",
                    reason="no_publication",
                    repair="walstream subscribe puts the table into those that are there; the owner of the table, with"
                    " CREATE on the database, may make one; wal2json needs none",
                ) from error
            made.append(name)
    return tuple(made)


def drop(connection: Connection, names: Sequence[str]) -> None:
    """Drop those of the names that are there. Raises psycopg2.Error."""
    with connection.cursor() as cursor:
        for name in names:
            cursor.execute(sql.SQL("drop publication if exists {}").format(sql.Identifier(name)))


def sweep(connection: Connection) -> None:
    """Drop what sessions left behind that could not clean up, as far as that is permitted. Raises psycopg2.Error."""
    with connection.cursor() as cursor:
        cursor.execute(
            "select p.pubname from pg_catalog.pg_publication p"
            " where pg_catalog.starts_with(p.pubname, %s) and pg_catalog.pg_has_role(p.pubowner, 'USAGE')",
            (PREFIX,),
        )
        for (name,) in cursor.fetchall():
            cursor.execute("select " + _LOCK.format("try_advisory_lock"), (name,))
            row = cursor.fetchone()
            if row is not None and row[0]:
                drop(connection, [name])
                cursor.execute("select " + _LOCK.format("advisory_unlock"), (name,))
