"""What moderators and admins do in a channel: messages, members, settings. Each action is one statement.

Who may do what is in ``channel.registry``. Effects come back by the WAL like anybody's change; what the room is to be
told at once is part of the answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec
from psycopg2 import sql

from walstream.channel.registry import MEMBER_ROLES, RegisteredChannel, outranks
from walstream.channel.schemas import Schemas
from walstream.errors import DatabaseRefused, WalstreamError
from walstream.shell.channels.message_store import UNREACHABLE, MessageStore
from walstream.shell.channels.seats import Seat
from walstream.shell.database.postgres import Database
from walstream.shell.database.rows import is_text

if TYPE_CHECKING:
    from psycopg2.extensions import connection as PgConnection  # noqa: N812 - a class under its role's name

USER_MAX: Final = 1000
NAME_MAX: Final = 1000
METADATA_BYTES_MAX: Final = 262_144
RETENTION_HOURS_MAX: Final = 24 * 3660

MESSAGE_DELETED: Final = "message.deleted"
MESSAGE_HIDDEN: Final = "message.hidden"

MODERATOR_ACTIONS: Final = ("delete_message", "hide_message", "remove_member", "mute", "unmute")
ADMIN_ACTIONS: Final = ("set_role", "update_channel", "delete_channel")


class Done(msgspec.Struct, frozen=True):
    """An action that took effect. ``response``: for whoever asked. ``announce``: events with payloads for the room."""

    response: Mapping[str, object]
    announce: tuple[tuple[str, Mapping[str, object]], ...] = ()


class Denied(msgspec.Struct, frozen=True):
    """An action that did not. ``error``: ``unauthorized``, ``invalid``, ``not_found``, ``conflict``,
    ``unable_to_connect_to_project`` or ``unable_to_store``; ``message``: why, for people.
    """

    error: str
    message: str


class Moderation:
    """Performs actions for whoever has a seat. ``perform`` never raises."""

    def __init__(self, database: Database, schema: str, store: MessageStore) -> None:
        self._database = database
        self._schema = schema
        self._store = store
        self._actions: Mapping[
            str, Callable[[Seat, RegisteredChannel, Mapping[str, Any]], Awaitable[Done | Denied]]
        ] = {
            "delete_message": self._delete_message,
            "hide_message": self._hide_message,
            "remove_member": self._remove_member,
            "mute": self._mute,
            "unmute": self._unmute,
            "set_role": self._set_role,
            "update_channel": self._update_channel,
            "delete_channel": self._delete_channel,
        }

    async def perform(self, seat: Seat, action: str, params: Mapping[str, Any]) -> Done | Denied:
        """Perform an action in the seat's channel. Cancelling it leaves open whether it took effect.

        ``delete_message``, ``hide_message``: ``id``. ``remove_member``, ``mute``, ``unmute``: ``user``. ``set_role``:
        ``user``, ``role`` (makes a member of whoever is none). ``update_channel``: any of ``name``, ``metadata`` (the
        whole object), ``persist``, ``retention_hours`` (null: the general rule). ``delete_channel``: nothing.
        """
        channel = seat.channel
        if action not in self._actions:
            return Denied("invalid", f"there is no action {action[:100]!r}")
        if channel is None:
            return Denied("not_found", "the topic is no registered channel")
        if not (seat.may_administer if action in ADMIN_ACTIONS else seat.may_moderate):
            return Denied("unauthorized", f"{'an admin' if action in ADMIN_ACTIONS else 'a moderator'} may do that")
        try:
            return await self._actions[action](seat, channel, params)
        except DatabaseRefused as error:
            if error.sqlstate.startswith("23"):
                return Denied("conflict", error.message)
            if error.sqlstate.startswith("22"):
                return Denied("invalid", error.message)
            return Denied("unable_to_store", error.message)
        except WalstreamError as error:
            return Denied(UNREACHABLE, error.message)

    # -- messages

    async def _delete_message(self, seat: Seat, channel: RegisteredChannel, params: Mapping[str, Any]) -> Done | Denied:
        id_ = params.get("id")
        if not isinstance(id_, str) or not await self._store.delete(channel.id, id_):
            return Denied("not_found", "the channel has no such message")
        return Done({"id": id_}, ((MESSAGE_DELETED, {"id": id_, "by": seat.user}),))

    async def _hide_message(self, seat: Seat, channel: RegisteredChannel, params: Mapping[str, Any]) -> Done | Denied:
        id_ = params.get("id")
        if not isinstance(id_, str) or not await self._store.hide(channel.id, id_):
            return Denied("not_found", "the channel has no such message")
        return Done({"id": id_}, ((MESSAGE_HIDDEN, {"id": id_, "by": seat.user}),))

    # -- members

    async def _remove_member(self, seat: Seat, channel: RegisteredChannel, params: Mapping[str, Any]) -> Done | Denied:
        return await self._members(
            seat, channel, params,
            "delete from {} m"
            " where m.channel_id = %(channel)s::uuid and m.user_id = %(user)s and m.role = any(%(roles)s)",
        )  # fmt: skip

    async def _mute(self, seat: Seat, channel: RegisteredChannel, params: Mapping[str, Any]) -> Done | Denied:
        if channel.is_private:
            return await self._members(
                seat, channel, params,
                "update {} m set muted = true"
                " where m.channel_id = %(channel)s::uuid and m.user_id = %(user)s and m.role = any(%(roles)s)",
            )  # fmt: skip
        # Anybody speaks on a public channel: being muted makes a member of them.
        return await self._members(
            seat, channel, params,
            "insert into {} as m (channel_id, user_id, muted) values (%(channel)s::uuid, %(user)s, true)"
            " on conflict (channel_id, user_id) do update set muted = true where m.role = any(%(roles)s)",
        )  # fmt: skip

    async def _unmute(self, seat: Seat, channel: RegisteredChannel, params: Mapping[str, Any]) -> Done | Denied:
        return await self._members(
            seat, channel, params,
            "update {} m set muted = false"
            " where m.channel_id = %(channel)s::uuid and m.user_id = %(user)s and m.role = any(%(roles)s)",
        )  # fmt: skip

    async def _set_role(self, seat: Seat, channel: RegisteredChannel, params: Mapping[str, Any]) -> Done | Denied:
        role = params.get("role")
        if role not in MEMBER_ROLES:
            return Denied("invalid", f"a role is one of {', '.join(MEMBER_ROLES)}")
        done = await self._members(
            seat, channel, params,
            "insert into {} as m (channel_id, user_id, role) values (%(channel)s::uuid, %(user)s, %(role)s)"
            " on conflict (channel_id, user_id) do update set role = excluded.role where m.role = any(%(roles)s)",
            role=role,
        )  # fmt: skip
        return Done({**done.response, "role": role}) if isinstance(done, Done) else done

    async def _members(
        self, seat: Seat, channel: RegisteredChannel, params: Mapping[str, Any], statement: str, **more: object
    ) -> Done | Denied:
        """Run a statement that touches one member, of those roles that the seat's holder may act against."""
        user = params.get("user")
        if not isinstance(user, str) or not 0 < len(user) <= USER_MAX or not is_text(user):
            return Denied("invalid", "user is a text")
        roles = [role for role in MEMBER_ROLES if outranks(seat.role, role)]
        values = {"channel": channel.id, "user": user, "roles": roles, **more}
        if not await self._run(statement, "channel_members", values):
            return Denied("not_found", f"no member {user[:100]!r} that you may act against")
        return Done({"user": user})

    # -- the channel

    async def _update_channel(self, seat: Seat, channel: RegisteredChannel, params: Mapping[str, Any]) -> Done | Denied:
        values: dict[str, object] = {}
        for name, read in _SETTINGS.items():
            if name in params:
                value = read(params[name])
                if isinstance(value, Denied):
                    return value
                values[name] = value
        unknown = sorted(params.keys() - _SETTINGS.keys())
        if unknown or not values:
            return Denied("invalid", f"settings are {', '.join(_SETTINGS)}")
        assignments = ", ".join(f"{name} = %({name})s" for name in values)
        if not await self._run(
            f"update {{}} c set {assignments} where c.id = %(channel)s::uuid",  # noqa: S608 - names of ours
            "channels",
            {"channel": channel.id, **values},
        ):
            return Denied("not_found", "the channel is gone")
        return Done({"channel": channel.id})

    async def _delete_channel(self, seat: Seat, channel: RegisteredChannel, params: Mapping[str, Any]) -> Done | Denied:
        if not await self._run("delete from {} c where c.id = %(channel)s::uuid", "channels", {"channel": channel.id}):
            return Denied("not_found", "the channel is gone")
        return Done({"channel": channel.id})

    async def _run(self, statement: str, table: str, values: Mapping[str, object]) -> int:
        """How many rows a statement touched. Raises DatabaseUnreachable or DatabaseRefused."""

        def run(connection: PgConnection) -> int:
            with connection.cursor() as cursor:
                cursor.execute(sql.SQL(statement).format(sql.Identifier(self._schema, table)), values)
                return int(cursor.rowcount)

        return await self._database.run(run)


def _name(value: object) -> str | Denied:
    if not isinstance(value, str) or not 0 < len(value) <= NAME_MAX or not is_text(value):
        return Denied("invalid", f"name is a text of at most {NAME_MAX} characters")
    return value


def _metadata(value: object) -> str | Denied:
    if not isinstance(value, dict):
        return Denied("invalid", "metadata is an object")
    try:
        text = msgspec.json.encode(value).decode()
    except UnicodeEncodeError:
        return Denied("invalid", "metadata is Unicode text")
    if len(text) > METADATA_BYTES_MAX:
        return Denied("invalid", f"metadata have at most {METADATA_BYTES_MAX} bytes")
    for name in ("max_members", "max_message_bytes"):
        bound = value.get(name)
        if bound is not None and (isinstance(bound, bool) or not isinstance(bound, int) or bound < 0):
            return Denied("invalid", f"{name} is a whole number")
    for event, fault in Schemas(value.get("schemas")).faults.items():
        return Denied("invalid", f"the schema of {event[:100]!r}: {fault}")
    return text


def _persist(value: object) -> bool | Denied:
    return value if isinstance(value, bool) else Denied("invalid", "persist is true or false")


def _retention(value: object) -> int | Denied | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= RETENTION_HOURS_MAX:
        return Denied("invalid", f"retention_hours is a whole number up to {RETENTION_HOURS_MAX}, or null")
    return value


_SETTINGS: Final[Mapping[str, Callable[[object], object]]] = {
    "name": _name,
    "metadata": _metadata,
    "persist": _persist,
    "retention_hours": _retention,
}
