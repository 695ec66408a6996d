"""The items that travel between nodes: frozen values, each meaningful alone.

How many share an envelope is decided in ``envelope``; who may read it, in ``seal``.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from walstream.rooms import Broadcast, PresenceEntry


class BroadcastItem(msgspec.Struct, frozen=True, tag="b", array_like=True):
    """A broadcast for the members on other nodes. With an id and seq: a stored one, which comes by the WAL as well."""

    broadcast: Broadcast


class StoredItem(msgspec.Struct, frozen=True, tag="m", array_like=True):
    """Messages are stored that nobody has delivered to other nodes: look them up. ``ids``: uuids."""

    ids: tuple[str, ...]


class PresenceItem(msgspec.Struct, frozen=True, tag="p", array_like=True):
    """Presences of the sending node that came, changed or ended, in order."""

    entries: tuple[PresenceEntry, ...]


class StateItem(msgspec.Struct, frozen=True, tag="s", array_like=True):
    """A part of everything that the sending node tracks. ``part`` counts from 0; what no part of a whole series names
    is gone. A series that is not whole, or begins anew, means nothing.
    """

    series: int
    part: int
    last: bool
    entries: tuple[PresenceEntry, ...]


class AskState(msgspec.Struct, frozen=True, tag="a", array_like=True):
    """The sender may have missed something: everybody else tells their whole state again."""


class ChannelsChanged(msgspec.Struct, frozen=True, tag="c", array_like=True):
    """Registered channels or members changed: nodes that do not read them from the WAL load them again."""


class Deaf(msgspec.Struct, frozen=True, tag="d", array_like=True):
    """The sender does not read the WAL, for it stands by: others tell it what the WAL brings. Sent again and again."""


class Hello(msgspec.Struct, frozen=True, tag="h", array_like=True):
    """The sender is there; sent at its start and at every heartbeat."""


class Bye(msgspec.Struct, frozen=True, tag="y", array_like=True):
    """The sender goes: its presences have ended."""


Item: TypeAlias = (
    BroadcastItem | StoredItem | PresenceItem | StateItem | AskState | ChannelsChanged | Deaf | Hello | Bye
)
