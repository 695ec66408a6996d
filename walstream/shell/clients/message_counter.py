"""How many messages end in a piece of a client's WebSocket stream, found from the frame headers alone.

Payloads are not looked at; reading, unmasking and judging frames is the library's work (see ``websocket``).
"""

from __future__ import annotations


class MessageCounter:
    """Counts the messages that end in a stream of client frames (RFC 6455, 5.2), whatever pieces it comes in.

    It decides nothing: a stream that breaks the protocol is ended by the library, whatever was counted.
    """

    __slots__ = ("_ends_message", "_header", "_payload_left", "fragments", "frames")

    def __init__(self) -> None:
        self.fragments = 0  # frames of the unfinished message
        self.frames = 0  # whose headers ended in the newest piece, control frames included
        self._header = b""
        self._payload_left = 0
        self._ends_message = False

    def feed(self, data: bytes) -> int:
        """How many data messages are complete with these bytes that were not before."""
        count = position = frames = 0
        size = len(data)
        while position < size:
            if self._payload_left:
                taken = min(self._payload_left, size - position)
                self._payload_left -= taken
                position += taken
            else:
                known = len(self._header)
                header = self._header + data[position : position + 14 - known]
                length = _header_length(header)
                if len(header) < length:
                    self._header = header
                    break
                self._header = b""
                frames += 1
                position += length - known
                self._payload_left = _payload_length(header)
                is_data = header[0] & 0x0F < 8
                self._ends_message = is_data and header[0] & 0x80 != 0
                self.fragments += is_data
            if self._ends_message and not self._payload_left:
                count += 1
                self.fragments = 0
        self.frames = frames
        return count


def _header_length(start: bytes) -> int:
    if len(start) < 2:
        return 2
    extended = {126: 2, 127: 8}.get(start[1] & 0x7F, 0)
    return 2 + extended + (4 if start[1] & 0x80 else 0)


def _payload_length(header: bytes) -> int:
    short = header[1] & 0x7F
    if short < 126:
        return short
    return int.from_bytes(header[2 : 4 if short == 126 else 10], "big")
