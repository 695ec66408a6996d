"""Logical replication slots: listed, created and dropped by name.

Streaming from one is ``wal_reader``; whether a plugin may be used is checked by ``preflight``.
"""

from __future__ import annotations

from typing import NamedTuple

import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812 - a class, under a name that tells it from values

from walstream.errors import Invariant, NotFound
from walstream.lsn import Lsn
from walstream.shell.database.rows import only, scalar

PLUGINS = {"auto": ("wal2json", "pgoutput"), "wal2json": ("wal2json",), "pgoutput": ("pgoutput",)}
"""Output plugins to try for each value of the configuration key ``decoder``."""

FAILOVER_VERSION = 170000
TERMINATE_MILLISECONDS = 2000

# A server in recovery refuses a slot with ``failover``.
_CREATE = {
    False: "select lsn::text from pg_catalog.pg_create_logical_replication_slot(%s, %s)",
    True: "select lsn::text from pg_catalog.pg_create_logical_replication_slot(%s, %s, false, false,"
    " not pg_catalog.pg_is_in_recovery())",
}

_PLUGIN_UNUSABLE = ("42501", "58P01")  # refused by output_plugin_libraries; not installed


class Slot(NamedTuple):
    """One row of pg_replication_slots. ``lag_bytes``: written but not confirmed; ``retained_bytes``: WAL kept back.

    ``failover``: whether standbys keep a copy to go on with; None before PostgreSQL 17. ``invalidation``: why it is
    lost, where the server says so. ``wal_end``: how far the server's WAL goes, for comparison with positions.
    """

    name: str
    plugin: str
    database: str
    active: bool
    active_pid: int | None
    restart_lsn: Lsn | None
    confirmed_lsn: Lsn | None
    lag_bytes: int | None
    retained_bytes: int | None
    wal_status: str | None
    safe_bytes: int | None
    temporary: bool
    failover: bool | None = None
    invalidation: str | None = None
    wal_end: Lsn | None = None

    @property
    def is_ahead(self) -> bool:
        """Whether it has confirmed WAL that the server does not have: it would skip all that is written until then."""
        return self.wal_end is not None and self.confirmed_lsn is not None and self.confirmed_lsn > self.wal_end


_SLOTS = """
select s.slot_name, s.plugin, s.database, s.active, s.active_pid,
       s.restart_lsn::text, s.confirmed_flush_lsn::text,
       pg_catalog.pg_wal_lsn_diff(now_at.lsn, s.confirmed_flush_lsn)::bigint,
       pg_catalog.pg_wal_lsn_diff(now_at.lsn, s.restart_lsn)::bigint,
       s.wal_status, s.safe_wal_size, s.temporary,
       (pg_catalog.to_jsonb(s) ->> 'failover')::boolean, pg_catalog.to_jsonb(s) ->> 'invalidation_reason',
       now_at.lsn::text
  from pg_catalog.pg_replication_slots s
 cross join (
    select case when pg_catalog.pg_is_in_recovery() then pg_catalog.pg_last_wal_replay_lsn()
                else pg_catalog.pg_current_wal_lsn() end as lsn
 ) now_at
 where s.slot_type = 'logical'
 order by s.slot_name
"""


def list_slots(connection: Connection) -> list[Slot]:
    """All logical slots of the server, by name. Raises psycopg2.Error."""
    with connection.cursor() as cursor:
        cursor.execute(_SLOTS)
        found = []
        for row in cursor.fetchall():
            values = dict(zip(Slot._fields, row, strict=True))
            for name in ("restart_lsn", "confirmed_lsn", "wal_end"):
                values[name] = None if values[name] is None else Lsn.parse(values[name])
            found.append(Slot(**values))
        return found


def find(connection: Connection, name: str) -> Slot | None:
    """One slot, or None. Raises psycopg2.Error."""
    return next((slot for slot in list_slots(connection) if slot.name == name), None)


def create(connection: Connection, name: str, decoder: str = "auto") -> tuple[str, Lsn]:
    """Create a slot with the first plugin of ``decoder`` that the server has and permits; returns it and the start.

    From PostgreSQL 17 on it is a failover slot: a standby that synchronises slots (``sync_replication_slots``) can take
    over with it. Waits for the transactions that are running, as PostgreSQL must. Raises psycopg2.Error of the last
    plugin tried.
    """
    plugins = PLUGINS[decoder]
    with connection.cursor() as cursor:
        for plugin in plugins:
            try:
                cursor.execute(_CREATE[connection.server_version >= FAILOVER_VERSION], (name, plugin))
                return plugin, Lsn.parse(scalar(cursor))
            except psycopg2.Error as error:
                connection.rollback()
                if plugin == plugins[-1] or error.pgcode not in _PLUGIN_UNUSABLE or _lacks_right(connection):
                    raise
    raise Invariant(f"no output plugin for {decoder}")


def drop(connection: Connection, name: str) -> None:
    """Drop a slot; what it had not delivered is gone. Raises NotFound, psycopg2.Error (55006 while it streams)."""
    if find(connection, name) is None:
        raise NotFound(f"there is no logical slot {name}", repair="walstream slot list shows them")
    with connection.cursor() as cursor:
        cursor.execute("select pg_catalog.pg_drop_replication_slot(%s)", (name,))


def advance(connection: Connection, name: str, position: Lsn) -> None:
    """Confirm everything up to ``position``, without decoding it. Raises psycopg2.Error (55006 while it streams)."""
    with connection.cursor() as cursor:
        cursor.execute("select pg_catalog.pg_replication_slot_advance(%s, %s::pg_lsn)", (name, str(position)))


def take_back(connection: Connection, name: str, pid: int) -> bool:
    """End ``pid``, the process of a stream of ours that is over, if it still has the slot; waits for some seconds.

    PostgreSQL tells of an error before it lets the slot go, and of a client that has gone silently it does not know.
    Returns whether it had it. Raises psycopg2.Error.
    """
    slot = find(connection, name) if pid else None
    if slot is None or slot.active_pid != pid:
        return False
    terminate(connection, pid)
    return True


def terminate(connection: Connection, pid: int) -> None:
    """End the process that streams from a slot, and wait for it for some seconds. Raises psycopg2.Error."""
    with connection.cursor() as cursor:
        cursor.execute("select pg_catalog.pg_terminate_backend(%s, %s)", (pid, TERMINATE_MILLISECONDS))


def may_replicate(connection: Connection) -> bool:
    """Whether the connected role may use slots at all."""
    with connection.cursor() as cursor:
        cursor.execute(
            "select r.rolsuper or r.rolreplication from pg_catalog.pg_roles r where r.rolname = current_user"
        )
        return bool(only(cursor)[0])


def _lacks_right(connection: Connection) -> bool:
    """42501 also means that the role may not replicate: then no plugin would do."""
    return not may_replicate(connection)


def may_need_publications(connection: Connection, name: str, decoder: str) -> bool:
    """Whether the slot's plugin is, or may become, pgoutput, which reads through publications."""
    slot = find(connection, name)
    plugins = PLUGINS[decoder]
    return "pgoutput" in plugins and (slot is None or slot.plugin not in plugins or slot.plugin == "pgoutput")
