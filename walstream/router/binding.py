"""What one subscription asks for: an event, a table, a filter, columns. Equal wishes have equal ids.

Who holds a binding and how its frames are written is told elsewhere: ``channel``, ``protocol``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final, Literal, TypeAlias

import msgspec

from walstream.model import Operation
from walstream.policy import Viewer
from walstream.predicate import Expression, normalise

Event: TypeAlias = Literal["INSERT", "UPDATE", "DELETE", "*"]

ANY: Final = "*"
ID_MAX: Final = (1 << 31) - 1

_encode = msgspec.json.Encoder().encode


class Binding(msgspec.Struct, frozen=True):
    """One wish. ``schema`` and ``table`` may be "*".

    ``select``: columns that the client chose, None for all. ``truncate``: whether TRUNCATE is wanted too.
    ``viewer``: who looks, where row-level security lets different viewers see different rows; None for who may see all.
    ``id``: 1 to 2³¹-1, given by ``Router.add``; 0 before.
    """

    event: Event
    schema: str
    table: str
    expression: Expression | None = None
    select: tuple[str, ...] | None = None
    truncate: bool = False
    viewer: Viewer | None = None
    id: int = 0

    def wants(self, operation: Operation) -> bool:
        """Whether changes of this kind are asked for."""
        if operation is Operation.TRUNCATE:
            return self.truncate
        return self.event == ANY or self.event == operation.value

    def canonical(self) -> Binding:
        """The same wish in one form, without an id: filters and columns that mean the same become equal."""
        return Binding(
            self.event,
            self.schema,
            self.table,
            None if self.expression is None else normalise(self.expression),
            None if self.select is None else tuple(sorted(set(self.select))),
            self.truncate,
            self.viewer,
        )


def first_id(canonical: Binding) -> int:
    """The id that a canonical binding has on every node, unless another binding took it there."""
    digest = hashlib.blake2b(_encode(canonical), digest_size=8).digest()
    return int.from_bytes(digest, "big") % ID_MAX + 1


def wire_ids(bindings: Iterable[Binding]) -> tuple[int, ...]:
    """Ids for one join's bindings that do not depend on who looks; equal wishes have equal ids."""
    wishes: dict[int, Binding] = {}
    found = []
    for binding in bindings:
        wish = msgspec.structs.replace(binding, viewer=None).canonical()
        number = first_id(wish)
        while wishes.setdefault(number, wish) != wish:
            number = next_id(number)
        found.append(number)
    return tuple(found)


def next_id(taken: int) -> int:
    """The id to try after one that is taken."""
    return taken % ID_MAX + 1
