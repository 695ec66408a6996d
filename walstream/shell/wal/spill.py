"""Changes of a transaction too large for memory, in an unlinked temporary file.

The file has no name and goes with its last user; when to spill is decided in ``history.assemble``.
"""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from typing import overload

import msgspec

from walstream.model import Change, Operation, Relation, Row

_LENGTH = struct.Struct("!I")
_READ_BYTES = 1 << 18

_Stored = tuple[int, str, Row | None, Row | None, int, int]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Stored).decode


class FileSpill:
    """Appends changes to the file and hands them out again, as often as wanted. Relations stay in memory."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=_READ_BYTES)  # noqa: SIM115 - it lives as long as its readers
        self._relations: list[Relation] = []
        self._numbers: dict[int, int] = {}
        self._count = 0

    def append(self, change: Change) -> None:
        """Add a change. Raises OSError, for a full disk say."""
        number = self._numbers.get(id(change.relation))
        if number is None:
            number = self._numbers[id(change.relation)] = len(self._relations)
            self._relations.append(change.relation)
        stored = (number, change.operation.value, change.new, change.old, change.lsn, change.ordinal)
        data = _encode(stored)
        self._file.write(_LENGTH.pack(len(data)))
        self._file.write(data)
        self._count += 1

    def changes(self) -> Sequence[Change]:
        """All changes; nothing may be appended afterwards. Raises OSError."""
        self._file.flush()
        return _Changes(self)

    def read(self) -> Iterator[Change]:
        """The changes from the beginning; several readers may be under way. Raises OSError."""
        offset = 0
        while buffer := os.pread(self._file.fileno(), _READ_BYTES, offset):
            at = 0
            while (start := at + _LENGTH.size) <= len(buffer):
                (size,) = _LENGTH.unpack_from(buffer, at)
                if start + size > len(buffer):
                    break
                at = start + size
                yield self._change(memoryview(buffer)[start:at])
            if not at:
                # A row larger than all that was read. While it is told, nothing is in memory but the change itself.
                (size,) = _LENGTH.unpack_from(buffer)
                buffer = b""
                at = _LENGTH.size + size
                yield self._change(os.pread(self._file.fileno(), size, offset + _LENGTH.size))
            offset += at

    def _change(self, stored: bytes | memoryview) -> Change:
        number, operation, new, old, lsn, ordinal = _decode(stored)
        return Change(self._relations[number], Operation(operation), new, old, lsn, ordinal)

    def __del__(self) -> None:
        if hasattr(self, "_file"):  # else there was no place for it
            with contextlib.suppress(OSError):  # what could not be written is not wanted any more
                self._file.close()

    def __len__(self) -> int:
        return self._count


class _Changes(Sequence[Change]):
    """The view that a Transaction holds."""

    def __init__(self, spill: FileSpill) -> None:
        self._spill = spill

    def __len__(self) -> int:
        return len(self._spill)

    def __iter__(self) -> Iterator[Change]:
        return self._spill.read()

    @overload
    def __getitem__(self, index: int) -> Change: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Change]: ...

    def __getitem__(self, index: int | slice) -> Change | Sequence[Change]:
        raise TypeError("changes in a file are iterated, not indexed")
