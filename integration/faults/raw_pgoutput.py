"""What ``pg_recvlogical`` writes when its plugin is ``pgoutput``: a reader for the tap, and for nobody else.

Written from PostgreSQL's own description of the messages (18, 54.9 Logical Replication Message Formats), and
deliberately not with ``walstream.decoder``: both have to say the same, so neither may lean on the other.
"""

from __future__ import annotations

from datetime import UTC, datetime
from struct import Struct, error
from typing import Any, NamedTuple

from integration.faults.observed import Committed, Event, digest

PUBLICATION = "tap"
OPTIONS = ("proto_version=1", f"publication_names={PUBLICATION}", "messages=true")
_EPOCH = int(datetime(2000, 1, 1, tzinfo=UTC).timestamp()) * 10**6
_OPERATIONS = {b"I": "INSERT", b"U": "UPDATE", b"D": "DELETE"}
_BYTEA = 17
_NUMBERS = {20, 21, 23}  # bigint, smallint, integer
_I16, _I32, _I64, _BEGIN, _COMMIT = (Struct(form) for form in (">H", ">I", ">Q", ">QqI", ">BQQq"))


class _Column(NamedTuple):
    name: str
    type: int
    is_key: bool


class _Relation(NamedTuple):
    schema: str
    name: str
    columns: tuple[_Column, ...]


class _Short(Exception):
    """The message has not been written to its end."""


class _Reader:
    """Takes numbers, texts and rows from bytes."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self.at = at

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self._data):
            raise _Short
        taken, self.at = self._data[self.at : end], end
        return taken

    def unpack(self, form: Struct) -> Any:
        try:
            values = form.unpack_from(self._data, self.at)
        except error:
            raise _Short from None
        self.at += form.size
        return values if len(values) > 1 else values[0]

    def text(self) -> str:
        end = self._data.find(b"\0", self.at)
        if end < 0:
            raise _Short
        return self.take(end + 1 - self.at)[:-1].decode()

    def row(self, relation: _Relation, *, key_only: bool = False) -> dict[str, Any]:
        """Values by name; without those that the server left out because they are long and unchanged."""
        found = {}
        for column in relation.columns[: self.unpack(_I16)]:
            kind = self.take(1)
            value: Any = None
            if kind == b"t":
                text = self.take(self.unpack(_I32)).decode()
                value = int(text) if column.type in _NUMBERS else text
                if column.type == _BYTEA:
                    value = text.removeprefix("\\x")  # as wal2json has it
            if kind != b"u" and (column.is_key or not key_only):
                found[column.name] = value
        return found


class _End(NamedTuple):
    """A commit."""

    end: int
    at: float


class RawPgoutput:
    """Bytes in, transactions out. ``newest``: where the newest commit ends, whether it changed anything or not."""

    def __init__(self) -> None:
        self.newest = 0
        self._rest = b""
        self._relations: dict[int, _Relation] = {}
        self._open: list[Event] = []
        self._xid = 0

    def feed(self, data: bytes) -> list[Committed]:
        """Transactions with changes of ``public`` that end in ``data``, which may be cut anywhere."""
        data, found, at = self._rest + data, [], 0
        while at < len(data):
            reader = _Reader(data, at)
            try:
                message = self._message(reader)
                assert reader.take(1) == b"\n", "pg_recvlogical ends each message with a line's end"
            except _Short:
                break
            at = reader.at
            if isinstance(message, Event):
                self._open.append(message)
            elif isinstance(message, _End) and message.end > self.newest:
                self.newest = message.end
                if self._open:
                    found.append(Committed(message.end, self._xid, message.at, self._open))
        self._rest = data[at:]
        return found

    def _message(self, reader: _Reader) -> Event | _End | None:
        kind = reader.take(1)
        if kind == b"B":
            _, _, self._xid = reader.unpack(_BEGIN)
            self._open = []
        elif kind == b"C":
            _, _, end, at = reader.unpack(_COMMIT)
            return _End(end, (_EPOCH + at) / 10**6)
        elif kind == b"R":
            number = reader.unpack(_I32)
            self._relations[number] = _relation(reader)
        elif kind in (b"I", b"U", b"D"):
            return self._change(kind, reader)
        elif kind == b"T":
            count = reader.unpack(_I32)
            reader.take(1 + 4 * count)
        elif kind == b"M":
            reader.take(1 + 8)
            reader.text()
            reader.take(reader.unpack(_I32))
        elif kind == b"O":
            reader.take(8)
            reader.text()
        elif kind == b"Y":
            reader.take(4)
            reader.text()
            reader.text()
        else:
            raise AssertionError(f"a message of the kind {kind!r} is unknown here")
        return None

    def _change(self, kind: bytes, reader: _Reader) -> Event | None:
        relation = self._relations[reader.unpack(_I32)]
        old: dict[str, Any] = {}
        row: dict[str, Any] = {}
        part = reader.take(1)
        if part in (b"K", b"O"):
            old = reader.row(relation, key_only=part == b"K")
            part = reader.take(1) if kind == b"U" else b""
        if part == b"N":
            row = reader.row(relation)
        if relation.schema != "public":
            return None
        return Event(relation.name, digest(relation.name, _OPERATIONS[kind], {**old, **row}, old.get("id")))


def _relation(reader: _Reader) -> _Relation:
    schema, name = reader.text(), reader.text()
    reader.take(1)  # the replica identity
    columns = []
    for _ in range(reader.unpack(_I16)):
        is_key = reader.take(1) == b"\x01"
        column = reader.text()
        columns.append(_Column(column, reader.unpack(_I32), is_key))
        reader.take(4)  # the modifier
    return _Relation(schema, name, tuple(columns))
