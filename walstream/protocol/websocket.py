"""Headers of ready-made WebSocket frames, so that one encoded frame can be written to many sockets.

Reading frames, masking and the closing handshake are trio-websocket's work, in the shell.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10

_FINAL_FRAGMENT: Final = 0x80
_SHORT_HEADERS: Final = tuple(bytes((_FINAL_FRAGMENT | TEXT, length)) for length in range(126))
_MEDIUM: Final = struct.Struct("!BBH")
_LONG: Final = struct.Struct("!BBQ")


_TABLE_MAX: Final = 4096


def frame_header(length: int, opcode: int = TEXT) -> bytes:
    """The header of one unmasked, unfragmented frame with ``length`` payload bytes (RFC 6455, 5.2)."""
    if length < 126:
        return _SHORT_HEADERS[length] if opcode == TEXT else bytes((_FINAL_FRAGMENT | opcode, length))
    if length < 65536:
        return _MEDIUM.pack(_FINAL_FRAGMENT | opcode, 126, length)
    return _LONG.pack(_FINAL_FRAGMENT | opcode, 127, length)


def text_frames(payloads: Sequence[bytes]) -> list[bytes]:
    """Header and payload of a text frame for each, one after the other."""
    pieces: list[bytes] = [b""] * (2 * len(payloads))
    pieces[::2] = [_MEDIUM_HEADERS[size] if size < _TABLE_MAX else frame_header(size) for size in map(len, payloads)]
    pieces[1::2] = payloads
    return pieces


def frame(payload: bytes, opcode: int = TEXT) -> bytes:
    """One whole server frame."""
    return frame_header(len(payload), opcode) + payload


_MEDIUM_HEADERS: Final = tuple(frame_header(size) for size in range(_TABLE_MAX))
