"""Numbers about what is in walstream's tables, for the commands that show the state of things.

Single statements over ``schema``; what the daemon counts while it runs is in its metrics.
"""

from __future__ import annotations

from typing import Any

from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812 - a class, under a name that tells it from values

from walstream.shell.database.rows import only

Counts = dict[str, Any]

NODE_SECONDS = 60
"""A node whose row was not touched for so long is gone."""

OVERVIEW_COLUMNS = ("channels", "messages_24h", "online_users", "table_subscriptions")

# A person is what the best of his rows says: online before away before offline.
_OVERVIEW = """
select (select count(*) from {channels}) as channels,
       (select count(*) from {messages} where sent_at > now() - interval '24 hours') as messages_24h,
       (select count(distinct user_id) from {presence} where status in ('online', 'away')) as online_users,
       (select count(*) from {subscriptions}) as table_subscriptions
"""
_SUBSCRIPTIONS = """
select count(*) as total_subscriptions,
       count(distinct table_name) as unique_tables,
       count(*) filter (where 'INSERT' = any(events)) as insert_subs,
       count(*) filter (where 'UPDATE' = any(events)) as update_subs,
       count(*) filter (where 'DELETE' = any(events)) as delete_subs,
       count(*) filter (where filter is not null) as filtered_subs
  from {subscriptions}
"""
_PRESENCE = """
select count(*) filter (where best = 1) as online,
       count(*) filter (where best = 2) as away,
       count(*) filter (where best = 3) as offline,
       count(*) as total_users,
       (select count(distinct topic) from {presence}) as total_channels
  from (
    select min(case status when 'online' then 1 when 'away' then 2 else 3 end) as best
      from {presence}
     group by user_id
  ) people
"""
_BROADCAST = """
select count(*) as total_messages,
       count(*) filter (where sent_at > now() - interval '1 hour') as messages_last_hour,
       count(*) filter (where sent_at > now() - interval '1 day') as messages_last_day,
       count(distinct event) as unique_event_types,
       count(distinct sender_id) as unique_senders
  from {messages}
"""
_CHANNELS = """
select count(*) as total_channels,
       count(*) filter (where type = 'public') as public,
       count(*) filter (where type = 'private') as private,
       count(*) filter (where type = 'presence') as presence,
       (select count(*) from {channel_members}) as members
  from {channels}
"""
_CONNECTIONS = """
select count(*) filter (where status = 'connected') as connected,
       count(distinct user_id) filter (where status = 'connected') as users,
       (select count(*) from {nodes} where last_seen_at > now() - make_interval(secs => %(seconds)s)) as nodes
  from {connections}
"""
_TABLES = ("channels", "channel_members", "messages", "presence", "subscriptions", "connections", "nodes")


def overview(connection: Connection, schema: str) -> Counts:
    """channels, messages_24h, online_users, table_subscriptions. Raises psycopg2.Error."""
    return _ask(connection, schema, _OVERVIEW)


def presence(connection: Connection, schema: str) -> Counts:
    """online, away, offline, total_users, total_channels: people, each counted once. Raises psycopg2.Error."""
    return _ask(connection, schema, _PRESENCE)


def statistics(connection: Connection, schema: str) -> dict[str, Counts]:
    """Blocks of counts by name, from status to connections. Raises psycopg2.Error."""
    return {
        "status": overview(connection, schema),
        "subscriptions": _ask(connection, schema, _SUBSCRIPTIONS),
        "presence": presence(connection, schema),
        "broadcast": _ask(connection, schema, _BROADCAST),
        "channels": _ask(connection, schema, _CHANNELS),
        "connections": _ask(connection, schema, _CONNECTIONS),
    }


def live_nodes(connection: Connection, schema: str) -> list[str]:
    """Names of the daemons that report, sorted. Raises psycopg2.Error."""
    statement = "select node_id from {} where last_seen_at > now() - make_interval(secs => %s) order by 1"
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL(statement).format(sql.Identifier(schema, "nodes")), (NODE_SECONDS,))
        return [name for (name,) in cursor.fetchall()]


def stuck_nodes(connection: Connection, schema: str) -> list[tuple[str, str]]:
    """Daemons that report that they cannot read on, and why. Raises psycopg2.Error."""
    statement = (
        "select node_id, status #>> '{{health,reader,reason}}' from {} where status #>> '{{health,reader,status}}' ="
        " 'poisoned' and last_seen_at > now() - make_interval(secs => %s) order by 1"
    )
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL(statement).format(sql.Identifier(schema, "nodes")), (NODE_SECONDS,))
        return [(node, reason or "") for node, reason in cursor.fetchall()]


def _ask(connection: Connection, schema: str, statement: str) -> Counts:
    names = {table: sql.Identifier(schema, table) for table in _TABLES}
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL(statement).format(**names), {"seconds": NODE_SECONDS})
        row = only(cursor)
        return {column.name: value for column, value in zip(cursor.description or (), row, strict=True)}
