"""What a join asks for, read with the tolerance that clients rely on: what can be cast is cast, the rest is default.

Whether the join may go ahead is decided in ``session``; whether its tables and filters exist, by the shell.
"""

from __future__ import annotations

import math
from typing import Final, TypeAlias

import msgspec

from walstream.channel.topic import Topic, parse_legacy
from walstream.errors import ProtocolError
from walstream.protocol.phoenix import decode_json
from walstream.protocol.shapes import Shape

ITEMS_MAX: Final = 500
"""``postgres_changes`` items of one join; each costs work at every change of its table."""

KEY_MAX: Final = 1000
"""Characters of a presence key, which everybody in the room gets."""

WAIT_SECONDS: Final = 15.0
WAIT_SECONDS_MAX: Final = 20.0
REPLAY_LIMIT: Final = 10
REPLAY_LIMIT_MAX: Final = 25

_ANY_EVENT: Final = "*"
_EVENTS: Final = frozenset({"INSERT", "UPDATE", "DELETE"})
_SELECT_PROBLEM: Final = (
    'Error parsing `select` params: expected a list of column name strings, e.g. select: ["col1", "col2"]'
)
_WILDCARD_SELECT: Final = (
    "Column selection is not supported for wildcard subscriptions. Provide an explicit schema and table name."
)
_WILDCARD_SNAPSHOT: Final = (
    "A snapshot is not supported for wildcard subscriptions. Provide an explicit schema and table name."
)
_NO_TABLE: Final = "No subscription params provided. Please provide at least a `schema` or `table` to subscribe to: {}"

_encode = msgspec.json.Encoder().encode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode

_Members: TypeAlias = dict[str, bytes]


class ChangeItem(msgspec.Struct, frozen=True):
    """One ``postgres_changes`` item. ``raw``: as the client wrote it, for the echo.

    ``event``: INSERT, UPDATE, DELETE or ``*``; ``schema`` and ``table``: names or ``*``, None where ``problem`` says
    why. ``filter`` is not parsed yet. ``problem``: text for the client when the item cannot mean anything, else "".
    """

    raw: bytes
    event: str = _ANY_EVENT
    schema: str | None = None
    table: str | None = None
    filter: str | None = None
    select: tuple[str, ...] | None = None
    since: str | None = None
    snapshot: bool = False
    problem: str = ""

    def echo(self, id_: int) -> bytes:
        """The client's own text plus the id: clients compare every member with what they sent."""
        members = self.raw[1:-1].strip()
        return b'{%b%b"id":%d}' % (members, b"," if members else b"", id_)


class Replay(msgspec.Struct, frozen=True):
    """Stored broadcasts to send after the join. ``since``: milliseconds since the epoch."""

    since: int = 0
    limit: int = REPLAY_LIMIT


class BroadcastConfig(msgspec.Struct, frozen=True):
    """How a channel's broadcasts go. ``own``: the client's ``self``.

    ``replay_problem``: why its replay means nothing.
    """

    ack: bool = False
    own: bool = False
    replay: Replay | None = None
    replay_problem: str = ""
    replication_ready: bool = False


class PresenceConfig(msgspec.Struct, frozen=True):
    """``key``: "" when the server is to make one."""

    key: str = ""
    enabled: bool = False


class JoinConfig(msgspec.Struct, frozen=True):
    """Everything that a join's payload says. ``wait_seconds``: how long the reply may wait for the subscription.

    ``hears_bytes``: whether its client decodes binary broadcasts: Supabase's do, and say ``broadcast``. ``token``: what
    the payload brought, if any. ``complaints``: what could not be cast, for the log.
    """

    shape: Shape
    items: tuple[ChangeItem, ...] = ()
    hears_bytes: bool = False
    private: bool = False
    broadcast: BroadcastConfig = BroadcastConfig()
    presence: PresenceConfig = PresenceConfig()
    wait_seconds: float | None = None
    token: str | None = None
    complaints: tuple[str, ...] = ()

    @property
    def echoed(self) -> tuple[ChangeItem, ...]:
        """The items that the reply names: a table feed's own item is not the client's."""
        return () if self.shape is Shape.FEED else self.items

    @property
    def problem(self) -> str:
        """The first item's problem, which all items share: they are subscribed together or not at all."""
        return next((item.problem for item in self.items if item.problem), "")


def parse_join(topic: Topic, payload: bytes) -> JoinConfig:
    """Read a ``phx_join`` payload. Never raises: what cannot be read is named in ``complaints``."""
    complaints: list[str] = []
    members = _members(payload, "payload", complaints)
    token = _token(members)
    legacy = "config" not in members
    if legacy:
        if topic.table is not None:
            item = _feed_item(topic, members, complaints)
            return JoinConfig(Shape.FEED, (item,), token=token, complaints=tuple(complaints))
        return JoinConfig(Shape.LEGACY, (_legacy_item(topic),), token=token, complaints=tuple(complaints))
    config = _members(members["config"], "config", complaints)
    items = _items(config.get("postgres_changes", b"null"), complaints)
    shape = Shape.CHANGES
    if not items and topic.table is not None:
        shape, items = Shape.FEED, (_feed_item(topic, members, complaints),)
    return JoinConfig(
        shape,
        items,
        hears_bytes="broadcast" in config,
        private=_boolean(config, "private", complaints),
        broadcast=_broadcast(_members(config.get("broadcast", b"null"), "broadcast", complaints), complaints),
        presence=_presence(_members(config.get("presence", b"null"), "presence", complaints), complaints),
        wait_seconds=_wait(
            _members(config.get("postgres_changes_options", b"null"), "options", complaints), complaints
        ),
        token=token,
        complaints=tuple(complaints),
    )


def _feed_item(topic: Topic, members: _Members, complaints: list[str]) -> ChangeItem:
    """A table feed has no item of its own to say it in: ``since`` and ``snapshot`` stand beside ``config``."""
    assert topic.table is not None
    schema, table = topic.table.schema, topic.table.table
    since, snapshot = _value(members.get("since", b"null")), _boolean(members, "snapshot", complaints)
    return ChangeItem(
        b"{}",
        schema=schema,
        table=table,
        since=since if isinstance(since, str) and since else None,
        snapshot=snapshot,
        problem=_WILDCARD_SNAPSHOT if snapshot and "*" in (schema, table) else "",
    )


def _legacy_item(topic: Topic) -> ChangeItem:
    schema, table, row_filter = parse_legacy(topic.subtopic)
    named = {"event": _ANY_EVENT, "schema": schema, "table": table, "filter": row_filter}
    raw = _encode({key: value for key, value in named.items() if value is not None})
    return ChangeItem(raw, schema=schema, table=table or "*", filter=row_filter)


def _items(raw: bytes, complaints: list[str]) -> tuple[ChangeItem, ...]:
    if raw.strip() == b"null":
        return ()
    try:
        found = [bytes(item).strip() for item in _decode_list(raw)]
    except (ValueError, RecursionError):
        complaints.append("postgres_changes is no list")
        return ()
    items = []
    for item in found:
        if item == b"null":
            continue
        if not item.startswith(b"{"):
            complaints.append("an item of postgres_changes is no object")
            continue
        items.append(_item(item))
    if len(items) > ITEMS_MAX:
        complaints.append(f"more than {ITEMS_MAX} items of postgres_changes")
        problem = f"Too many items in postgres_changes: at most {ITEMS_MAX} per channel"
        return tuple(ChangeItem(item.raw, problem=problem) for item in items)
    return tuple(items)


def _item(raw: bytes) -> ChangeItem:
    try:
        found = decode_json(raw)
    except ProtocolError as error:
        return ChangeItem(raw, problem=f"Error parsing `postgres_changes` params: {error.message}")
    assert isinstance(found, dict)
    event, since = found.get("event"), found.get("since")
    schema, table, row_filter = _name(found.get("schema")), _name(found.get("table")), found.get("filter")
    select = found.get("select")
    problem = ""
    if row_filter is not None and not isinstance(row_filter, str):
        problem = f"Error parsing `filter` params: {_encode([row_filter]).decode('utf-8')}"
    has_filter = isinstance(row_filter, str) and bool(row_filter.strip())
    if (schema is None and table is None) or (has_filter and table is None):
        problem = problem or _NO_TABLE.format(raw.decode("utf-8", "replace"))
    if select is not None:
        if not isinstance(select, list) or not all(isinstance(name, str) for name in select):
            problem, select = problem or _SELECT_PROBLEM, None
        elif table in (None, "*") or schema == "*":
            problem = problem or _WILDCARD_SELECT
    snapshot = _cast_boolean(found.get("snapshot")) or False
    if snapshot and (table in (None, "*") or schema == "*"):
        problem = problem or _WILDCARD_SNAPSHOT
    upper = event.upper() if isinstance(event, str) else _ANY_EVENT
    return ChangeItem(
        raw,
        event=upper if upper in _EVENTS else _ANY_EVENT,
        schema=schema or ("public" if table else None),
        table=table or ("*" if schema else None),
        filter=row_filter if has_filter else None,
        select=tuple(select) if select is not None else None,
        since=since if isinstance(since, str) and since else None,
        snapshot=snapshot,
        problem=problem,
    )


def _broadcast(members: _Members, complaints: list[str]) -> BroadcastConfig:
    replay, problem = _replay(members.get("replay", b"null"))
    return BroadcastConfig(
        ack=_boolean(members, "ack", complaints),
        own=_boolean(members, "self", complaints),
        replay=replay,
        replay_problem=problem,
        replication_ready=_boolean(members, "replication_ready", complaints),
    )


def _replay(raw: bytes) -> tuple[Replay | None, str]:
    found = _value(raw)
    if found is None:
        return None, ""
    if isinstance(found, dict):
        since, limit = _cast_integer(found.get("since", 0)), _cast_integer(found.get("limit", REPLAY_LIMIT))
        if since is not None and since >= 0 and limit is not None:
            return Replay(since, min(max(limit, 1), REPLAY_LIMIT_MAX)), ""
    return None, "Replay params are not valid"


def _presence(members: _Members, complaints: list[str]) -> PresenceConfig:
    key = _value(members.get("key", b"null"))
    text = key if isinstance(key, str) else "" if key is None else _encode(key).decode("utf-8")
    if len(text) > KEY_MAX:
        complaints.append("presence.key is too long")
        text = ""
    return PresenceConfig(text, _boolean(members, "enabled", complaints))


def _wait(members: _Members, complaints: list[str]) -> float | None:
    if not _boolean(members, "wait", complaints):
        return None
    milliseconds = _value(members.get("timeout", b"null"))
    if not isinstance(milliseconds, int | float) or isinstance(milliseconds, bool) or not milliseconds > 0:
        return WAIT_SECONDS
    return min(milliseconds / 1000 if math.isfinite(milliseconds) else WAIT_SECONDS_MAX, WAIT_SECONDS_MAX)


def _token(members: _Members) -> str | None:
    for name in ("user_token", "access_token"):
        token = _value(members.get(name, b"null"))
        if isinstance(token, str):
            return token
    return None


def _members(raw: bytes, what: str, complaints: list[str]) -> _Members:
    if raw.strip() == b"null":
        return {}
    try:
        return {name: bytes(value) for name, value in _decode_members(raw).items()}
    except (ValueError, RecursionError):
        complaints.append(f"{what} is no object")
        return {}


def _boolean(members: _Members, name: str, complaints: list[str]) -> bool:
    value = _value(members.get(name, b"null"))
    cast = _cast_boolean(value)
    if cast is None and value is not None:
        complaints.append(f"{name} is no boolean")
    return cast or False


def _value(raw: bytes) -> object:
    try:
        return decode_json(raw)
    except ProtocolError:
        return None


def _cast_boolean(value: object) -> bool | None:
    if isinstance(value, bool):
        return value
    return {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else None


def _cast_integer(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
        return int(value)
    return value if isinstance(value, int) else None


def _name(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
