"""Large texts, changed piece by piece: in one go there would be two more copies of them for a moment, or wider ones.

Small texts go in one go, which is also what the pieces have to agree with. What a text means is for ``values`` to say.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from io import BytesIO
from typing import Final, TypeAlias

import msgspec

PIECE_BYTES: Final = 64 * 1024

_encode = msgspec.json.Encoder().encode
_decode_text = msgspec.json.Decoder(str).decode
_ESCAPE_BYTES: Final = 6
r"""What an escape takes at most: \u0001."""
_ESCAPES: Final = re.compile(rb"\\.", re.DOTALL)
_BRACKETS: Final = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


Text: TypeAlias = bytes | memoryview
"""A view where a large text lies inside a message, which is a copy less."""


def is_utf8(text: Text) -> bool:
    """Whether a text is valid UTF-8."""
    try:
        if len(text) <= PIECE_BYTES:
            bytes(text).decode()
        else:
            for _ in _decoded(text, "strict"):
                pass
    except UnicodeDecodeError:
        return False
    return True


def repaired(text: bytes) -> bytes:
    """The text, with U+FFFD for bytes that are not UTF-8."""
    if text.isascii() or is_utf8(text):
        return text
    return _joined(piece.encode() for piece in _decoded(text, "replace"))


def quote(text: Text) -> bytes:
    """A text as a JSON string; bytes that are not UTF-8 become U+FFFD.

    No row may stop the stream, and a server takes such bytes: from types of extensions, and in logical messages.
    """
    if len(text) <= PIECE_BYTES:
        return _encode(bytes(text).decode("utf-8", "replace"))
    return _joined(_quoted(text))


def unquote(value: Text) -> bytes:
    """The text of a JSON string. Raises ValueError for what is none."""
    if len(value) > PIECE_BYTES:
        try:
            return _joined(_unquoted(value))
        except ValueError:  # what is cut apart where it must not be
            pass
    return _decode_text(value).encode()


def brackets(value: bytes) -> bytes:
    """The brackets of a JSON value, whichever they are, as square ones; without those that stand in strings."""
    return _joined(_bare_brackets(value))


def _joined(pieces: Iterator[bytes]) -> bytes:
    text = BytesIO()  # gives what was written to it away without copying it
    for piece in pieces:
        text.write(piece)
    return text.getvalue()


def _decoded(text: Text, errors: str) -> Iterator[str]:
    decode = codecs.getincrementaldecoder("utf-8")(errors).decode
    for at in range(0, len(text), PIECE_BYTES):
        yield decode(bytes(text[at : at + PIECE_BYTES]), at + PIECE_BYTES >= len(text))


def _quoted(text: Text) -> Iterator[bytes]:
    yield b'"'
    for piece in _decoded(text, "replace"):
        yield _encode(piece)[1:-1]
    yield b'"'


def _unquoted(value: Text) -> Iterator[bytes]:
    at, end = 1, len(value) - 1
    if value[:1] != b'"' or value[end:] != b'"':
        raise ValueError("not a JSON string")
    while at < end:
        cut = _cut(value, at, end)
        yield _decode_text(b'"%b"' % bytes(value[at:cut])).encode()
        at = cut


def _cut(value: Text, at: int, end: int) -> int:
    """Where a piece may end, within no character and no escape."""
    cut = at + PIECE_BYTES
    if cut >= end:
        return end
    while value[cut] & 0xC0 == 0x80:
        cut -= 1
    tail = bytes(value[cut - _ESCAPE_BYTES : cut]).rfind(b"\\")
    if tail < 0:
        return cut
    newest = cut - _ESCAPE_BYTES + tail
    return newest if _ends_in_escape(bytes(value[at : newest + 1])) else newest + 1


def _ends_in_escape(piece: bytes) -> bool:
    """Whether its last byte is a backslash that begins an escape, and no escaped one."""
    return (len(piece) - len(piece.rstrip(b"\\"))) % 2 == 1


def _bare_brackets(value: bytes) -> Iterator[bytes]:
    at = inside = 0  # ``inside``: 1 within a string
    while at < len(value):
        piece = value[at : at + PIECE_BYTES]
        if _ends_in_escape(piece):
            piece = piece[:-1]
        at += len(piece)
        texts = _ESCAPES.sub(b"", piece).split(b'"')
        yield b"".join(texts[inside::2]).translate(_BRACKETS, _NO_BRACKETS)
        inside = (inside + len(texts) - 1) % 2
