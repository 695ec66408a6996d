"""Pages of a table's rows: the payloads of ``snapshot`` frames.

Whose rows they are, and when a page is sent, is the shell's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from walstream.model import Relation, Row
from walstream.protocol.changes import RECORD_BYTES_MAX, TOO_LARGE, Renderer

EVENT: Final = "snapshot"

PAGE_BYTES: Final = 128 * 1024
"""A page ends when its rows have this size, however few they are."""

_encode = msgspec.json.Encoder().encode


class Pages:
    """The pages of one item. Give it rows, then ``end``: every page but the last one is full.

    ``select``: columns that are shown beside the primary key, None for all. ``ids``: what the client knows its item by.
    ``estimate``: about how many rows the table has, None for unknown. A row above ``record_bytes`` loses its large
    values, and has a page of its own that says so.
    """

    def __init__(
        self,
        relation: Relation,
        select: Sequence[str] | None,
        ids: Sequence[int],
        *,
        estimate: int | None,
        rows_max: int,
        record_bytes: int = RECORD_BYTES_MAX,
    ) -> None:
        self._renderer = Renderer(relation, select)
        self._head = b'{"ids":[%b],"data":{"schema":%b,"table":%b,"columns":%b,"rows":[' % (
            ",".join(map(str, ids)).encode("ascii"),
            _encode(relation.schema),
            _encode(relation.name),
            self._renderer.columns,
        )
        self._estimate = _encode(estimate)
        self._rows_max = rows_max
        self._record_bytes = record_bytes
        self._rows: list[bytes] = []
        self._size = 0
        self._number = 0
        self.total = 0  # rows of all pages so far

    def add(self, row: Row) -> list[bytes]:
        """Take one row. Returns the pages that it makes full: none, one, or two where it is too large."""
        record, is_cut = self._renderer.record(row, self._record_bytes)
        pages = []
        # The newest page waits for one more row: so that the last one is known for what it is.
        if self._rows and (is_cut or len(self._rows) >= self._rows_max or self._size + len(record) > PAGE_BYTES):
            pages.append(self._page(last=False))
        self._rows.append(record)
        self._size += len(record)
        if is_cut:
            pages.append(self._page(last=False, errors=TOO_LARGE))
        return pages

    def end(self) -> bytes:
        """The last page, which may be empty."""
        return self._page(last=True)

    def _page(self, *, last: bool, errors: bytes = b"null") -> bytes:
        rows, self._rows, self._size = self._rows, [], 0
        self._number += 1
        self.total += len(rows)
        return b'%b%b],"errors":%b,"page":%d,"count":%d,"total":%d,"estimate":%b,"last":%b}}' % (
            self._head,
            b",".join(rows),
            errors,
            self._number,
            len(rows),
            self.total,
            self._estimate,
            b"true" if last else b"false",
        )
