"""WebSocket connections as daemons report them, for the command line. Every function raises psycopg2.Error."""

from __future__ import annotations

from typing import Final

import msgspec

from walstream.shell.commands.own_tables import OwnTables, Row

COLUMNS: Final = ("user_id", "connection_id", "status", "connected_at", "seconds_since_seen")
WIDE_COLUMNS: Final = (*COLUMNS, "node", "address", "topics", "lag_bytes", "last_seen_at", "metadata")
SECONDS_MAX: Final = 10 * 366 * 24 * 3600

_LIST: Final = """
select user_id, connection_id, status, connected_at, last_seen_at, node_id as node, metadata::text,
       greatest(0, floor(extract(epoch from now() - last_seen_at)))::bigint as seconds_since_seen
  from {connections}
 where status = 'connected' and (%(node)s is null or node_id = %(node)s)
 order by connected_at desc, connection_id
"""
_COUNT: Final = """
select count(*) as count from {connections}
 where status = 'connected' and (%(node)s is null or node_id = %(node)s)
"""


def list_connections(tables: OwnTables, node: str | None = None) -> list[Row]:
    """Open connections, of all nodes or of one, the newest first.

    ``address``, ``topics`` and ``lag_bytes`` are what the daemon has put into ``metadata``.
    """
    return [_row(row) for row in tables.rows(_LIST, {"node": node})]


def count(tables: OwnTables, node: str | None = None) -> int:
    """How many connections are open."""
    return int(tables.only(_COUNT, {"node": node})["count"])


def clean(tables: OwnTables, seconds: int) -> int:
    """Mark connections that were silent for so long as disconnected; how many."""
    return int(tables.only("select {cleanup_stale_connections}(%(seconds)s) as count", {"seconds": seconds})["count"])


def _row(row: Row) -> Row:
    said = msgspec.json.decode(row["metadata"])
    facts = {name: said.get(name) for name in ("address", "topics", "lag_bytes")}
    return {**row, **facts, "metadata": msgspec.Raw(row["metadata"].encode())}
