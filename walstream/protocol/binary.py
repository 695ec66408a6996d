"""The binary frames of vsn 2.0.0: kinds 0 and 3 from clients, kind 4 to them.

Replies and all other pushes are text, even when the request was binary: official clients decode no other kind.
What the payload of a broadcast means lives in ``walstream.channel``.
"""

from __future__ import annotations

import enum
from typing import Final

from walstream.errors import ProtocolError

KIND_PUSH: Final = 0
KIND_BROADCAST_PUSH: Final = 3
KIND_BROADCAST: Final = 4
STRING_BYTES_MAX: Final = 255  # every length in a header is one unsigned byte


class Encoding(enum.IntEnum):
    """What the payload of a binary frame is."""

    RAW = 0
    JSON = 1


def read_parts(data: bytes, lengths_at: int, count: int, body_at: int) -> tuple[list[bytes], bytes]:
    """Split a frame into its ``count`` header strings and the payload that remains.

    ``lengths_at``: index of the first length byte; ``body_at``: index of the first string. Raises ProtocolError.
    """
    if len(data) < body_at:
        raise ProtocolError("the header of a binary frame is cut short")
    parts = []
    start = body_at
    for length in data[lengths_at : lengths_at + count]:
        parts.append(data[start : start + length])
        start += length
    if start > len(data):
        raise ProtocolError("a string of a binary frame is cut short")
    return parts, data[start:]


def header_text(data: bytes) -> str:
    """A header string. Clients before 2.110.4 wrote one byte per character, so Latin-1 is the fallback."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def broadcast_frame(
    topic: str, user_event: str, payload: bytes, *, encoding: Encoding, metadata: bytes = b""
) -> bytes | None:
    """A frame of kind 4, or None where a string does not fit its length byte: then send a text frame instead.

    ``metadata``: JSON object text, or nothing.
    """
    topic_bytes, event_bytes = topic.encode("utf-8"), user_event.encode("utf-8")
    lengths = (len(topic_bytes), len(event_bytes), len(metadata))
    if max(lengths) > STRING_BYTES_MAX:
        return None
    return b"".join((bytes((KIND_BROADCAST, *lengths, encoding)), topic_bytes, event_bytes, metadata, payload))
