"""Open transactions that keep WAL back: a slot cannot start later than the oldest one that has not ended.

Nor is a slot made before all that are open have ended. One may be of any database of the server, and prepared
(PostgreSQL 17, 52.16 pg_prepared_xacts), in which case no process has it and no restart ends it.
"""

from __future__ import annotations

from typing import NamedTuple

from psycopg2.extensions import connection as Connection  # noqa: N812 - a class, under a name that tells it from values

MAKING_SECONDS = 5
"""For how long one is open that a new slot waits for, to be told."""

HELD_BYTES = 64 * 1024 * 1024
"""WAL before what is confirmed from which on somebody may keep it: where a slot starts moves in steps."""

OPEN_SECONDS = 30
"""Younger ones are not told: what starts a slot is a list of open transactions that the server writes that often."""

# A role that may not see other sessions (pg_read_all_stats) sees no backend_xid of them.
_OLDEST = """
select gid, pid, owner, datname, seconds::float8
  from (
    select p.gid, null::int as pid, p.owner, p.database as datname, p.transaction as xid,
           extract(epoch from pg_catalog.now() - p.prepared) as seconds
      from pg_catalog.pg_prepared_xacts p
    union all
    select null, a.pid, a.usename, a.datname, a.backend_xid,
           extract(epoch from pg_catalog.now() - a.xact_start)
      from pg_catalog.pg_stat_activity a
     where a.backend_xid is not null
  ) open_ones
 where seconds >= %s
 order by pg_catalog.age(xid) desc
 limit 1
"""


class OpenTransaction(NamedTuple):
    """One that has written something and not ended. ``gid``: its name if it is prepared; else ``pid`` has it."""

    gid: str | None
    pid: int | None
    user: str | None
    database: str | None
    seconds: float

    def __str__(self) -> str:
        """For people, within a sentence."""
        subject = f"prepared transaction {_literal(self.gid)}" if self.gid is not None else f"transaction of {self.pid}"
        return f"the {subject} ({self.user} in {self.database}, open for {self.seconds:.0f} s)"

    @property
    def repair(self) -> str:
        """What ends it."""
        if self.gid is None:
            return f"end that transaction, or run: select pg_terminate_backend({self.pid})"
        name = _literal(self.gid)
        return f"as its owner, in {self.database}: commit prepared {name} or rollback prepared {name}"


def may_hold(retained_bytes: int | None, lag_bytes: int | None) -> bool:
    """Whether WAL is kept that is older than what is confirmed, and more of it than a slot's start moves in one step.

    ``retained_bytes``: kept because of the slot; ``lag_bytes``: of that, not confirmed.
    """
    return (retained_bytes or 0) - (lag_bytes or 0) > HELD_BYTES


def keeper(
    connection: Connection, *, is_made: bool, retained_bytes: int | None, lag_bytes: int | None
) -> OpenTransaction | None:
    """The one that a slot to be made waits for, or because of which WAL is kept. Asked where there may be one.

    Bytes: see ``may_hold``. Raises psycopg2.Error.
    """
    if not is_made:
        return oldest(connection, seconds=MAKING_SECONDS)
    return oldest(connection) if may_hold(retained_bytes, lag_bytes) else None


def oldest(connection: Connection, *, seconds: float = OPEN_SECONDS) -> OpenTransaction | None:
    """The oldest one; None if none is open for ``seconds``, or we may not see it. Raises psycopg2.Error."""
    with connection.cursor() as cursor:
        cursor.execute(_OLDEST, (seconds,))
        row = cursor.fetchone()
    return None if row is None else OpenTransaction(*row)


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
