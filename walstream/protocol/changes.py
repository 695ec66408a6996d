"""Changes as clients read them: Supabase's ``data`` object and the table feed's message.

The bytes that no row changes are built once per (relation, selected columns). Frames around them live in ``phoenix``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from operator import itemgetter
from typing import Final, cast

import msgspec

from walstream.model import Change, Operation, Relation, ReplicaIdentity, Row

RECORD_BYTES_MAX: Final = 1024 * 1024
"""Larger changes lose their large values; the wire calls that error 413."""

KEPT_VALUE_BYTES: Final = 64
"""What a value of such a change may measure to be kept."""

NO_PRIMARY_KEY: Final = b'["Error 400: Bad Request, no primary key"]'
UNAUTHORIZED: Final = b'["Error 401: Unauthorized"]'
TOO_LARGE: Final = b'["Error 413: Payload Too Large"]'

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST: Final = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
_encode = msgspec.json.Encoder().encode

_Pick = Callable[[Row], Row]
_Parts = list[bytes]


def commit_timestamp(microseconds: int) -> bytes:
    """``2026-03-01T12:00:00.123Z`` from microseconds since the Unix epoch."""
    if not 0 <= microseconds <= _LATEST:
        microseconds = min(max(microseconds, 0), _LATEST)
    seconds, rest = divmod(microseconds, 1_000_000)
    return b"%b.%03dZ" % (_second(seconds), rest // 1000)


@lru_cache(maxsize=64)
def _second(seconds: int) -> bytes:
    """Date and time up to the second, which transactions share by the thousand."""
    moment = _EPOCH + timedelta(seconds=seconds)
    return moment.isoformat(timespec="seconds").encode("ascii")[:-6]


def unix_seconds(microseconds: int) -> bytes:
    """``1772366400.123456`` from microseconds since the Unix epoch, exactly."""
    seconds, rest = divmod(max(microseconds, 0), 1_000_000)
    return b"%d.%06d" % (seconds, rest)


class Moment:
    """What all changes of one transaction share. ``commit_at``: microseconds since the Unix epoch.

    ``feed``: the table feed's part of it, encoded when first asked for.
    """

    __slots__ = ("_commit_at", "_feed", "_xid", "commit_timestamp")

    def __init__(self, commit_at: int, xid: int) -> None:
        self.commit_timestamp = commit_timestamp(commit_at)
        self._commit_at = commit_at
        self._xid = xid
        self._feed: tuple[bytes, bytes, bytes] | None = None

    @property
    def feed(self) -> tuple[bytes, bytes, bytes]:
        """What stands before the names, before the position and after it."""
        if self._feed is None:
            self._feed = (
                b'{"timestamp":%b,' % unix_seconds(self._commit_at),
                b'"commit_timestamp":"%b","position":"' % self.commit_timestamp,
                b'","xid":%d' % self._xid,
            )
        return self._feed


class InsertRun:
    """Says what ``Renderer.data`` says of many INSERTs, each between a frame's prefix and suffix, in far less time."""

    __slots__ = ("_final", "_middle", "_pick", "_plain", "_start")

    def __init__(self, start: bytes, middle: bytes, end: bytes, pick: _Pick | None) -> None:
        self._start = start
        self._middle = middle
        self._plain = b'%d"}' + end
        self._final = b'%d","last":true}' + end
        self._pick = pick

    def fill(
        self, changes: Sequence[Change], commit_timestamp: bytes, position_head: bytes, size_max: int
    ) -> list[bytes] | None:
        """The texts of these changes, which are all of their transaction, the last one marked.

        ``size_max``: bytes. None where a row is larger or has gaps: then each needs a closer look.
        """
        text = b"".join((self._start, commit_timestamp, self._middle, position_head))
        plain, final = text + self._plain, text + self._final
        pick = self._pick
        newest = changes[-1]
        try:
            if pick is None:
                # Added up, which takes half the time that a display takes.
                rows = [plain % (change.new + (change.ordinal,)) for change in changes[:-1]]  # type: ignore[operator]  # noqa: RUF005
                rows.append(final % (*newest.new, newest.ordinal))  # type: ignore[misc]  # of an INSERT
            else:
                rows = [plain % (*pick(change.new), change.ordinal) for change in changes[:-1]]  # type: ignore[arg-type]  # of INSERTs
                rows.append(final % (*pick(newest.new), newest.ordinal))  # type: ignore[arg-type]  # of an INSERT
        except TypeError:
            return None
        return None if max(map(len, rows)) > size_max else rows


class Renderer:
    """Encodes the changes of one relation, restricted to ``select`` and the primary key where given."""

    __slots__ = (
        "_bare",
        "_columns",
        "_feed_names",
        "_has_key",
        "_heads",
        "_interleaved",
        "_key",
        "_keys",
        "_pick",
        "_picks_all",
        "_relation",
    )

    def __init__(self, relation: Relation, select: Sequence[str] | None = None) -> None:
        wanted = None if select is None else {*select, *relation.primary_key}
        indexes = [i for i, column in enumerate(relation.columns) if wanted is None or column.name in wanted]
        columns = [relation.columns[i] for i in indexes]
        key = [(i, column) for i, column in enumerate(relation.columns) if column.name in relation.primary_key]
        self._relation = relation
        self._has_key = bool(relation.primary_key)
        self._key = [(_encode(column.name) + b":", i) for i, column in key]
        self._pick = _picker(indexes, len(relation.columns))
        self._picks_all = len(indexes) == len(relation.columns)
        self._keys = tuple(_encode(column.name) + b":" for column in columns)
        self._interleaved = [b""] * (2 * len(columns))
        self._interleaved[::2] = [b"," + key if at else key for at, key in enumerate(self._keys)]
        names = b'"schema":%b,"table":%b,' % (_encode(relation.schema), _encode(relation.name))
        self._bare = b'{%b"commit_timestamp":"' % names
        self._feed_names = {operation: b'"operation":"%b",%b' % (_word(operation), names) for operation in Operation}
        self._columns = _encode([{"name": column.name, "type": column.type_name} for column in columns])
        self._heads = {operation: _head(operation, self._columns) for operation in Operation}

    def data(
        self, change: Change, commit_timestamp: bytes, position: bytes, last: bool, size_max: int = RECORD_BYTES_MAX
    ) -> bytes:
        """The ``data`` object. ``size_max``: bytes, above which only small values stay."""
        operation = change.operation
        if not self._has_key and (operation is Operation.INSERT or operation is Operation.UPDATE):
            return self.error(operation, NO_PRIMARY_KEY, commit_timestamp, position, last)
        start = (self._bare, commit_timestamp, self._heads[operation])
        end = (position, b'","last":true}' if last else b'"}')
        rows = _named(*self._rows(change))
        data = b"".join((*start, *rows, b'"errors":null,"position":"', *end))
        if len(data) <= size_max:
            return data
        rows = _named(*self._small_values(change))
        return b"".join((*start, *rows, b'"errors":%b,"position":"' % TOO_LARGE, *end))

    def insert_run(self, prefix: bytes, suffix: bytes) -> InsertRun | None:
        """A text with gaps for what ``data`` says of an INSERT, between ``prefix`` and ``suffix``.

        None for a table without a primary key, whose changes are errors.
        """
        if not self._has_key:
            return None
        cells = b",".join([_percent(key) + b"%b" for key in self._keys])
        return InsertRun(
            _percent(prefix + self._bare),
            b'%b"record":{%b},"errors":null,"position":"' % (_percent(self._heads[Operation.INSERT]), cells),
            _percent(suffix),
            None if self._picks_all else self._pick,
        )

    def error(self, operation: Operation, errors: bytes, commit_timestamp: bytes, position: bytes, last: bool) -> bytes:
        """The ``data`` object that names an error and shows no values. ``errors``: JSON text of a list."""
        record = b'"record":{},' if operation in (Operation.INSERT, Operation.UPDATE) else b""
        old_record = b'"old_record":{},' if operation in (Operation.UPDATE, Operation.DELETE) else b""
        return b"".join(
            (
                self._bare,
                commit_timestamp,
                b'","type":"%b","columns":[],' % _word(operation),
                record,
                old_record,
                b'"errors":%b,"position":"' % errors,
                position,
                b'","last":true}' if last else b'"}',
            )
        )

    @property
    def columns(self) -> bytes:
        """The list of columns, as in ``data``."""
        return self._columns

    def record(self, row: Row, size_max: int = RECORD_BYTES_MAX) -> tuple[bytes, bool]:
        """A row as ``record`` shows it, with or without a key, and whether only its small values are left."""
        text = b"".join((b"{", *self._members(row), b"}"))
        if len(text) - 2 <= size_max:
            return text, False
        return b"".join((b"{", *self._members(_without_large(row)), b"}")), True

    def feed(
        self, change: Change, moment: Moment, position: bytes, last: bool, size_max: int = RECORD_BYTES_MAX
    ) -> bytes:
        """The message of the table feed; it always names both rows. ``size_max``: bytes, as in ``data``."""
        head, middle, tail = moment.feed
        names = self._feed_names[change.operation]
        end = b',"last":true}' if last else b"}"
        text = b"".join((head, names, *_both(*self._rows(change)), middle, position, tail, end))
        if len(text) <= size_max:
            return text
        rows = _both(*self._small_values(change))
        return b"".join((head, names, *rows, middle, position, tail, b',"errors":', TOO_LARGE, end))

    # Rows are in parts until the whole text is made of them: a large one is copied once.

    def _rows(self, change: Change) -> tuple[_Parts | None, _Parts | None]:
        """The insides of the new and the old row's objects; None where the operation has no such row."""
        operation, new, old = change.operation, change.new, change.old
        if operation is Operation.INSERT:
            return self._members(new), None
        if operation is Operation.DELETE:
            return None, self._old_members(old, None)
        if operation is Operation.UPDATE:
            return self._members(_with_unchanged(new, old)), self._old_members(old, new)
        return None, None

    def _old_members(self, old: Row | None, new: Row | None) -> _Parts:
        if self._relation.replica_identity is not ReplicaIdentity.DEFAULT:
            return self._members(old)
        # The WAL has no old row of an UPDATE that left the key alone; then the new row has the same key.
        row = old if old is not None else new
        if row is None:
            return []
        return [b",".join([key + cell for key, i in self._key if (cell := row[i]) is not None])]

    def _small_values(self, change: Change) -> tuple[_Parts | None, _Parts | None]:
        """As ``_rows``, without the values that are too large."""
        operation, old = change.operation, change.old
        new = _with_unchanged(change.new, old)
        if operation is Operation.INSERT:
            return self._members(_without_large(new)), None
        if operation is Operation.DELETE:
            return None, self._members(_without_large(old))
        old_members = self._old_members(_without_large(old) if old else None, _without_large(new) if new else None)
        return self._members(_without_large(new)), old_members

    def _members(self, row: Row | None) -> _Parts:
        if not row:
            return []
        cells = self._pick(row)
        if all(cells):
            parts: _Parts = self._interleaved.copy()
            parts[1::2] = cast("tuple[bytes, ...]", cells)
            return parts
        known = [(key, cell) for key, cell in zip(self._keys, cells, strict=True) if cell is not None]
        return [part for key, cell in known for part in (b",", key, cell)][1:]


renderer = lru_cache(maxsize=4096)(Renderer)
"""The shared ``Renderer`` of a relation and a column selection. Relations compare by identity."""


def render(
    change: Change,
    *,
    commit_timestamp: bytes,
    position: bytes,
    last: bool,
    select: tuple[str, ...] | None = None,
    max_record_bytes: int = RECORD_BYTES_MAX,
) -> bytes:
    """Supabase's ``data`` object for one change, with ``position``, and ``last`` on a transaction's last change."""
    return renderer(change.relation, select).data(change, commit_timestamp, position, last, max_record_bytes)


render_legacy = render
"""Joins without ``config`` get the same object, directly as the payload of an event named after the operation."""


def render_feed(
    change: Change,
    *,
    moment: Moment,
    position: bytes,
    last: bool,
    select: tuple[str, ...] | None = None,
    max_record_bytes: int = RECORD_BYTES_MAX,
) -> bytes:
    """The table feed's message for one change: the form of the documented SDK and of ``walstream listen``."""
    return renderer(change.relation, select).feed(change, moment, position, last, max_record_bytes)


def _percent(text: bytes) -> bytes:
    """Text for a format: what it says is itself."""
    return text.replace(b"%", b"%%")


def _word(operation: Operation) -> bytes:
    return operation.value.encode("ascii")


def _with_unchanged(new: Row | None, old: Row | None) -> Row | None:
    """The new row, with unchanged TOASTed values from an old row that has them (REPLICA IDENTITY FULL)."""
    if new is None or old is None or all(new):
        return new
    return tuple(after if after is not None else before for after, before in zip(new, old, strict=True))


def _without_large(row: Row | None) -> Row:
    return tuple(cell if cell is not None and len(cell) <= KEPT_VALUE_BYTES else None for cell in row or ())


def _picker(indexes: Sequence[int], count: int) -> _Pick:
    if len(indexes) == count:
        return lambda row: row
    if len(indexes) == 1:
        only = indexes[0]
        return lambda row: (row[only],)
    if not indexes:
        return lambda row: ()
    return itemgetter(*indexes)


def _head(operation: Operation, columns: bytes) -> bytes:
    return b'","type":"%b","columns":%b,' % (_word(operation), columns)


def _named(new: _Parts | None, old: _Parts | None) -> _Parts:
    parts = [] if new is None else [b'"record":{', *new, b"},"]
    if old is not None:
        parts += (b'"old_record":{', *old, b"},")
    return parts


def _both(new: _Parts | None, old: _Parts | None) -> _Parts:
    new_object = (b"null",) if new is None else (b"{", *new, b"}")
    old_object = (b"null",) if old is None else (b"{", *old, b"}")
    return [b'"new":', *new_object, b',"old":', *old_object, b","]
