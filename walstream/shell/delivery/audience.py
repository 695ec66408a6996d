"""Audiences: sockets that get the same bytes, the frames they wait for, and changes of which it is not known yet.

Who gets what is decided in ``fanout``; how sockets are written to is ``outbox``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import msgspec

from walstream.model import Change, Operation, Row, Snapshot, Transaction
from walstream.policy import Viewer
from walstream.protocol.shapes import Shape, TransactionText
from walstream.router.lanes import deciding_row
from walstream.shell.delivery.judge import Verdict
from walstream.shell.delivery.outbox import Outbox

if TYPE_CHECKING:
    from walstream.shell.delivery.pursuit import Pursuit

Columns: TypeAlias = tuple[str, ...] | None
"""What a client chose or may see; None for all."""

Group: TypeAlias = tuple[Columns, tuple[int, ...]]
"""Ids of bindings that want a change in the same columns."""


class Place(NamedTuple):
    """A change in the order of commits: its transaction's commit end, and its ordinal."""

    commit_lsn: int
    ordinal: int


class AudienceKey(NamedTuple):
    """What has to be equal for two sockets to get the same bytes.

    ``ids``: of bindings in the router. ``wire``: what clients know them by, where that is something else.
    ``viewer``: who looks at tables with row-level security, None for who sees none. ``generation``: see ``Fanout``.
    """

    topic: str
    vsn: str
    shape: Shape
    ids: tuple[int, ...]
    role: str
    viewer: Viewer | None = None
    wire: tuple[int, ...] = ()
    generation: int = 0


class Member:
    """One joined topic of one socket, as far as fan-out is concerned.

    ``before``: what it was before its token changed, while changes of that time still wait for an answer.
    ``pursuit``: while it is behind, and its audience one where nobody else is.
    """

    __slots__ = ("audience", "before", "live", "outbox", "pursuit", "snapshot")

    def __init__(self, outbox: Outbox, audience: Audience, snapshot: Snapshot) -> None:
        self.outbox = outbox
        self.audience = audience
        self.snapshot = snapshot
        self.live = False  # for the transaction being routed, while ``snapshot`` is not settled
        self.before: Member | None = None
        self.pursuit: Pursuit | None = None


class Rendered:
    """One change in one shape and column selection, encoded when first asked for."""

    __slots__ = ("change", "columns", "final", "plain", "routing", "shape")

    def __init__(self, change: Change, routing: Routing, shape: Shape, columns: Columns) -> None:
        self.change = change
        self.routing = routing
        self.shape = shape
        self.columns = columns
        self.plain: bytes | None = None
        self.final: bytes | None = None

    def data(self, last: bool) -> bytes:
        """The encoded change, marked as the transaction's last one if ``last``."""
        if last:
            if self.final is None:
                self.final = self.shape.render(self.change, self.routing.text, self.columns, last=True)
            return self.final
        if self.plain is None:
            self.plain = self.shape.render(self.change, self.routing.text, self.columns, last=False)
        return self.plain


class Routing(NamedTuple):
    """A transaction on its way to its audiences."""

    transaction: Transaction
    text: TransactionText


class Telling:
    """One change on its way to its audiences, rendered once for all that want it in the same form."""

    __slots__ = ("_rendered", "_row", "_short", "change", "routing")

    def __init__(self, change: Change, routing: Routing) -> None:
        self.change = change
        self.routing = routing
        self._row: Row | None = None
        self._rendered: dict[tuple[Shape, Columns, bool], Rendered] = {}
        self._short: Change | None = None

    def render(self, shape: Shape, columns: Columns, *, whole: bool) -> Rendered:
        """The change in this form. ``whole``: with all of the old row that there is, else with its key alone."""
        rendered = self._rendered.get((shape, columns, whole))
        if rendered is None:
            change = self.change if whole else self._shortened()
            rendered = self._rendered[shape, columns, whole] = Rendered(change, self.routing, shape, columns)
        return rendered

    @property
    def row(self) -> Row | None:
        """The row that decides who gets the change, always the same object."""
        if self._row is None:
            self._row = deciding_row(self.change)
        return self._row

    @property
    def has_more_than_the_key(self) -> bool:
        """Whether this is an UPDATE whose old row says more than which row it was."""
        change = self.change
        if change.operation is not Operation.UPDATE or change.old is None:
            return False
        key = change.relation.primary_key
        columns = change.relation.columns
        return any(cell is not None and columns[at].name not in key for at, cell in enumerate(change.old))

    def _shortened(self) -> Change:
        if self._short is None:
            change = self.change
            key = change.relation.primary_key
            pairs = zip(change.old or (), change.relation.columns, strict=True)
            old = tuple([cell if column.name in key else None for cell, column in pairs])
            self._short = msgspec.structs.replace(change, new=self.row, old=old)
        return self._short

    @property
    def size(self) -> int:
        """Bytes of its values."""
        return values_size(self.change)


def values_size(change: Change) -> int:
    """Bytes of the values of its rows."""
    return sum(sum(map(len, filter(None, row))) for row in (change.new, change.old) if row is not None)


class Step(NamedTuple):
    """A change that waits for answers, or behind one that does. ``live``: who of the joining members gets it.

    ``seen``: whether its row is visible, None where that is known. ``old_seen``: the same of the old row.
    """

    telling: Telling
    groups: Sequence[Group]
    live: tuple[Member, ...]
    seen: Verdict | None
    old_seen: Verdict | None
    whole: bool
    size: int

    @property
    def is_ready(self) -> bool:
        """Whether every answer is there."""
        return (self.seen is None or self.seen.answer is not None) and (
            self.old_seen is None or self.old_seen.answer is not None
        )


class End(NamedTuple):
    """The end of a transaction some of whose changes wait."""

    live: tuple[Member, ...]


class Gate(NamedTuple):
    """Nothing goes on before another audience has told its member what it waits for."""

    member: Member


class Waiting(deque[Step | End | Gate]):
    """What an audience is told later, in order: appended on the right, taken from the left.

    ``bytes``: of its changes. ``largest``: of the largest one since something began to wait.
    """

    __slots__ = ("bytes", "largest")

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.largest = 0

    def append(self, item: Step | End | Gate) -> None:
        """Let it wait."""
        super().append(item)
        if isinstance(item, Step):
            self.bytes += item.size
            self.largest = max(self.largest, item.size)

    def popleft(self) -> Step | End | Gate:
        """The next one, which waits no more."""
        item = super().popleft()
        if isinstance(item, Step):
            self.bytes -= item.size
        if not self:
            self.largest = 0
        return item

    def clear(self) -> None:
        """Nothing waits any more."""
        super().clear()
        self.bytes = self.largest = 0


class Audience:
    """The sockets behind one ``AudienceKey`` and the frames that wait for the end of the tick."""

    __slots__ = (
        "_wire", "chunk", "chunk_from", "held", "joining", "key", "pending", "pending_from", "prefixes", "rest",
        "shared", "solo", "suffix", "waiting",
    )  # fmt: skip

    def __init__(self, key: AudienceKey) -> None:
        self.key = key
        self.solo: dict[Outbox, Member] = {}  # sockets whose only audience this is: one write per tick
        self.shared: dict[Outbox, Member] = {}  # sockets with several: frames go in as they come, in commit order
        self.joining: dict[Outbox, Member] = {}  # sockets for which a transaction may still be older than their join
        self.pending: list[bytes] = []
        self.pending_from: Place | None = None  # its first change
        self.chunk = b""  # what is being written in slices, older than ``pending``
        self.chunk_from: Place | None = None
        self.rest: list[Outbox] = []  # who has not got it yet
        self.prefixes: dict[tuple[object, tuple[int, ...]], bytes] = {}
        self.suffix = key.shape.suffix(key.vsn)
        # Frames of the newest change; they wait to learn whether it is their transaction's last one.
        self.held: list[tuple[Rendered, bytes]] = []
        # Changes of which PostgreSQL has to say whether they may be seen, and all that come after them.
        self.waiting = Waiting()
        self._wire = dict(zip(key.ids, key.wire, strict=True)) if key.wire else None

    @property
    def held_at(self) -> Place | None:
        """Which change is held."""
        if not self.held:
            return None
        rendered = self.held[0][0]
        return Place(rendered.routing.transaction.commit_lsn, rendered.change.ordinal)

    @property
    def holds(self) -> int:
        """Ordinal of the change that is held, -1 for none."""
        return self.held[0][0].change.ordinal if self.held else -1

    def has_listeners(self) -> bool:
        """Whether anyone gets the frames of the transaction being routed."""
        return bool(self.solo or self.shared) or any(member.live for member in self.joining.values())

    @property
    def live(self) -> tuple[Member, ...]:
        """Who of the joining members gets the transaction being routed."""
        return tuple([member for member in self.joining.values() if member.live])

    def __len__(self) -> int:
        return len(self.solo) + len(self.shared) + len(self.joining)

    def prefix(self, operation: Operation, ids: tuple[int, ...]) -> bytes:
        """What stands before the change's own text in a frame for these bindings."""
        key = (operation, ids)
        prefix = self.prefixes.get(key)
        if prefix is None:
            wire = ids if self._wire is None else [self._wire[binding_id] for binding_id in ids]
            prefix = self.key.shape.prefix(self.key.vsn, self.key.topic, operation, wire)
            self.prefixes[key] = prefix
        return prefix
