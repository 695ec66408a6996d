"""Reading one HTTP request head from a connection, bounded in bytes and in time; parsing is h11's.

What the request is for is decided in ``edge``.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl, unquote

import h11
import trio

from walstream.errors import ClientError
from walstream.shell.clients.sockets import Head
from walstream.shell.clients.stream import SocketStream

HEAD_BYTES_MAX: Final = 16 * 1024
"""A whole head, request line included."""

REQUEST_LINE_BYTES_MAX: Final = 10_000
"""Tokens travel in the query, so this has to be roomy (the reference server's bound)."""

HEADER_LINE_BYTES_MAX: Final = 4096
"""One header line (the reference server's bound)."""

QUERY_PAIRS_MAX: Final = 100
_END: Final = b"\r\n\r\n"
_RECEIVE_BYTES: Final = 4096
_ABSOLUTE: Final = re.compile(r"\Ahttps?://[^/?]*", re.IGNORECASE)  # what proxies ask for (RFC 9112, 3.2.2)


class HeadError(ClientError):
    """What came is no acceptable request head. ``status``: the HTTP answer to it."""

    code = "head_error"

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


async def read_head(stream: SocketStream, peer: str, *, seconds: float) -> Head | None:
    """The next request head, whole within ``seconds``; None when the connection ended, or never began, to speak.

    What follows the head stays in the stream. Raises HeadError, trio.BrokenResourceError and trio.ClosedResourceError.
    Cancelled or refused, it leaves the stream in the middle of a head. Waits for the socket only: a head that trickles
    in costs one short read a piece.
    """
    data = bytearray()
    with trio.move_on_after(seconds) as waiting:
        raw = await _read_raw(stream, data)
        return parse_head(raw, peer) if raw is not None else None
    if waiting.cancelled_caught and data:
        raise HeadError(408, f"no complete request within {seconds:g} seconds")
    return None


async def _read_raw(stream: SocketStream, data: bytearray) -> bytes | None:
    while True:
        piece = await stream.receive_some(_RECEIVE_BYTES)
        if not piece:
            return None
        searched = max(0, len(data) - len(_END) + 1)
        data += piece
        if data[0] < 0x21:  # a TLS handshake begins with 0x16, and no request line with a space or line end
            raise HeadError(400, "not an HTTP request")
        end = data.find(_END, searched)
        if end >= 0:
            raw = bytes(data[: end + len(_END)])
            stream.unread(bytes(data[len(raw) :]))
            return raw
        _check_unfinished(data)


def parse_head(raw: bytes, peer: str) -> Head:
    """A complete head, up to and with its empty line. Raises HeadError."""
    if len(raw) > HEAD_BYTES_MAX:
        raise HeadError(431, f"the request's head is longer than {HEAD_BYTES_MAX} bytes")
    for number, line in enumerate(raw.split(b"\r\n")):
        _check_line(number, len(line))
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
    try:
        connection.receive_data(raw)
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise HeadError(error.error_status_hint, str(error)) from error
    if not isinstance(event, h11.Request):
        raise HeadError(400, "not an HTTP request")
    if not event.http_version.startswith(b"1."):
        raise HeadError(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
    path, _, query = _ABSOLUTE.sub("", event.target.decode("ascii"), count=1).partition("?")
    return Head(
        method=event.method.decode("ascii"),
        path=unquote(path),
        query=query_pairs(query),
        headers=tuple((name.decode("ascii"), value.decode("latin-1")) for name, value in event.headers),
        peer=peer,
        raw=raw,
        http_version=event.http_version.decode("ascii"),
    )


def query_pairs(query: str) -> tuple[tuple[str, str], ...]:
    """The decoded pairs of a query. Raises HeadError."""
    try:
        return tuple(parse_qsl(query, keep_blank_values=True, max_num_fields=QUERY_PAIRS_MAX))
    except ValueError as error:
        raise HeadError(400, "too many query parameters") from error


def _check_unfinished(data: bytearray) -> None:
    if len(data) > HEAD_BYTES_MAX:
        raise HeadError(431, f"the request's head is longer than {HEAD_BYTES_MAX} bytes")
    # Only the unfinished line can have grown too long unseen; whole ones are measured when the head is complete.
    line_end = data.rfind(b"\r\n")
    if line_end < 0:
        _check_line(0, len(data))
    else:
        _check_line(1, len(data) - line_end - 2)


def _check_line(number: int, size: int) -> None:
    if number == 0 and size > REQUEST_LINE_BYTES_MAX:
        raise HeadError(414, f"the request line is longer than {REQUEST_LINE_BYTES_MAX} bytes")
    if number > 0 and size > HEADER_LINE_BYTES_MAX:
        raise HeadError(431, f"a header is longer than {HEADER_LINE_BYTES_MAX} bytes")
