"""The nouns of rooms: what a topic's members send each other, whoever carries it.

Plain values, no behaviour; what they look like on a client's wire is in ``channel``, between nodes in ``bus``, where
members go by their place: new ones are added at the end.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec


class RoomKey(NamedTuple):
    """One room. Private and public rooms of the same name are separate (Supabase: Realtime Authorization).

    ``subtopic``: the topic without the prefix ``realtime:``, the name that SQL and REST use.
    """

    subtopic: str
    private: bool = False


class Broadcast(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One message to a room.

    ``payload``: JSON text, or the bytes as they came where ``binary``. ``whole``: the client's own frame payload, which
    goes on to JSON receivers unchanged; b"" where it is to be made of ``event`` and ``payload``, which then are set.
    ``id``: a stored message's uuid, or what a REST sender named it, or "". ``seq`` and ``sent_at`` (ISO 8601 in UTC)
    come with stored messages only.
    """

    room: RoomKey
    event: str = ""
    payload: bytes = b""
    binary: bool = False
    whole: bytes = b""
    id: str = ""
    seq: int | None = None
    sent_at: str = ""


class PresenceEntry(msgspec.Struct, frozen=True, array_like=True):
    """One tracked presence, or with ``meta`` None its end.

    ``entry``: unique on its node while it lives, one per joined topic of one socket. ``key``: the presence key, which
    several entries may share. ``ref``: ``phx_ref``, unique per version of the meta. ``meta``: JSON object text, without
    the refs.
    """

    room: RoomKey
    entry: str
    key: str
    ref: str = ""
    meta: bytes | None = None
