"""The router: the bindings in use, by reference count, and which of them a change matches.

How a table's bindings are arranged is in ``lanes``; who is behind a binding is told by the shell's fan-out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final, TypeAlias

import msgspec

from walstream.model import Catalog, CatalogMiss, Change, Column, Operation, Relation
from walstream.policy import Guard, Viewer
from walstream.predicate import Literals, Predicate, compile  # noqa: A004
from walstream.predicate.expression import Compare, InList, IsDistinct, leaves
from walstream.router.binding import ANY, Binding, first_id, next_id
from walstream.router.lanes import View

STATES_PER_TABLE: Final = 4
"""Definitions of one table that are kept ready: who resumes may still be before the newest ALTER TABLE."""

PARTITIONS_MAX: Final = 4096
"""Partitions of one table that are kept ready; dropped ones go when newer ones come."""


Guards: TypeAlias = Callable[[Viewer, Relation], Guard]
"""What a viewer may see of a relation. May raise CatalogMiss."""


def _closed(viewer: Viewer, relation: Relation) -> Guard:
    return False


class _Entry(msgspec.Struct):
    """A binding, the number of its holders, and PostgreSQL's values of its literals."""

    binding: Binding
    wish: Binding  # the same without its id
    literals: dict[tuple[int, str], bytes | str]
    holders: int = 0


class Router:
    """Matches changes with bindings, in time that does not depend on the bindings that do not match.

    ``faults``: (binding id, schema, table) → why the binding's filter does not fit the table as it is now; it matches
    nothing there. The shell takes them with ``drain_faults``. ``guards``: asked for bindings with a viewer, once per
    table and again after ``reguard``. ``loose_deletes``: viewers get deleted rows whatever their guard says.
    """

    def __init__(self, catalog: Catalog, guards: Guards = _closed, *, loose_deletes: bool = False) -> None:
        self._catalog = catalog
        self._guards = guards
        self.loose_deletes = loose_deletes
        self._entries: dict[int, _Entry] = {}
        self._by_wish: dict[Binding, list[_Entry]] = {}
        self._by_table: dict[tuple[str, str], dict[int, _Entry]] = {}
        self._views: dict[Relation, View] = {}
        self._tables: dict[tuple[str, str], dict[Relation, View]] = {}
        self._shapes: dict[tuple[str, str], dict[tuple[Column, ...], View]] = {}
        self.faults: dict[tuple[int, str, str], str] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, binding_id: int) -> Binding:
        """The binding of an id. Raises KeyError."""
        return self._entries[binding_id].binding

    def add(self, binding: Binding, literals: Literals) -> int:
        """Hold a binding and return its id; equal ones have the same and are evaluated once.

        ``literals``: PostgreSQL's values of its literals, more are ignored. The id is not the binding's usual one if it
        is taken by a different wish, or by the same one with other values (``at=gt.now`` of yesterday).
        """
        wish = binding.canonical()
        mine = _own_literals(wish, literals)
        same = self._by_wish.get(wish, ())
        entry = next((entry for entry in same if _agree(entry.literals, mine)), None)
        if entry is None:
            entry = _Entry(msgspec.structs.replace(wish, id=self._free_id(wish)), wish, mine)
            self._entries[entry.binding.id] = entry
            self._by_wish.setdefault(wish, []).append(entry)
            self._by_table.setdefault((wish.schema, wish.table), {})[entry.binding.id] = entry
            self._place(entry)
        elif mine.keys() - entry.literals.keys():
            # The table has other types since: what could not be compared then, can be now.
            entry.literals.update(mine)
            self._displace(entry)
            self._place(entry)
        entry.holders += 1
        return entry.binding.id

    def condition(self, binding_id: int, relation: Relation) -> Predicate | None:
        """What the binding's filter says of a relation's rows; None for no filter.

        Raises KeyError, FilterError where it does not fit, CatalogMiss.
        """
        entry = self._entries[binding_id]
        expression = entry.binding.expression
        return None if expression is None else compile(expression, relation, self._catalog, entry.literals)

    def look_as(self, binding_id: int, viewer: Viewer | None) -> int:
        """Hold the same binding, with the same literals, for another viewer; its id. Raises KeyError."""
        entry = self._entries[binding_id]
        return self.add(msgspec.structs.replace(entry.wish, viewer=viewer), entry.literals)

    def reguard(self, tables: Collection[tuple[str, str]]) -> None:
        """Ask anew what viewers may see of these tables."""
        for table in tables:
            for view in self._shapes.get(table, {}).values():
                for entry in self._concerned(table):
                    if entry.wish.viewer is not None:
                        view.drop(entry.binding.id)
                        self._put(entry, view)

    def _free_id(self, wish: Binding) -> int:
        number = first_id(wish)
        while number in self._entries:
            number = next_id(number)
        return number

    def remove(self, binding: Binding | int) -> None:
        """Let go of a binding or an id, once for each ``add``; nothing happens if nobody holds it."""
        entry = self._find(binding)
        if entry is None:
            return
        entry.holders -= 1
        if entry.holders > 0:
            return
        number, wish = entry.binding.id, entry.wish
        del self._entries[number]
        self._by_wish[wish].remove(entry)
        if not self._by_wish[wish]:
            del self._by_wish[wish]
        table = self._by_table[wish.schema, wish.table]
        del table[number]
        if not table:
            del self._by_table[wish.schema, wish.table]
        self._displace(entry)

    def _find(self, binding: Binding | int) -> _Entry | None:
        number = binding if isinstance(binding, int) else binding.id
        if number or isinstance(binding, int):
            return self._entries.get(number)
        return next(iter(self._by_wish.get(binding.canonical(), ())), None)

    def match(self, change: Change) -> Sequence[Binding]:
        """The distinct bindings that want the change, in no order. The result is not to be altered."""
        return self.view(change.relation).match(change)

    def view(self, relation: Relation) -> View:
        """The bindings that concern a relation."""
        return self._views.get(relation) or self._view(relation)

    def everyone(self, relation: Relation, operation: Operation) -> Sequence[Binding] | None:
        """Who gets every such change of a table; None if that depends on the row."""
        view = self._views.get(relation) or self._view(relation)
        lane = view.lanes[operation]
        return None if lane.looks_at_rows or view.asks else lane.everyone

    def drain_faults(self) -> dict[tuple[int, str, str], str]:
        """The faults since the last call."""
        faults, self.faults = self.faults, {}
        return faults

    def _view(self, relation: Relation) -> View:
        """The bindings arranged for a relation that is new here. Partitions of one shape share them."""
        table = (relation.schema, relation.name)
        siblings = self._tables.setdefault(table, {})
        states = [other for other in siblings if other.leaf == relation.leaf]
        for other in states[: max(0, len(states) - STATES_PER_TABLE + 1)]:
            self._forget(other)
        if len(siblings) >= PARTITIONS_MAX:
            self._forget(next(iter(siblings)))
        shapes = self._shapes.setdefault(table, {})
        view = shapes.get(relation.columns)
        if view is None:
            view = shapes[relation.columns] = View(relation, self._catalog, loose_deletes=self.loose_deletes)
            for entry in self._concerned(table):
                self._put(entry, view)
        view.users += 1
        siblings[relation] = self._views[relation] = view
        return view

    def _concerned(self, table: tuple[str, str]) -> Iterator[_Entry]:
        schema, name = table
        for key in (table, (schema, ANY), (ANY, name), (ANY, ANY)):
            yield from self._by_table.get(key, {}).values()

    def _forget(self, relation: Relation) -> None:
        view = self._views.pop(relation)
        del self._tables[relation.schema, relation.name][relation]
        view.users -= 1
        if view.users == 0:
            del self._shapes[relation.schema, relation.name][relation.columns]

    def _views_for(self, wish: Binding) -> Iterator[View]:
        if ANY not in (wish.schema, wish.table):
            yield from self._shapes.get((wish.schema, wish.table), {}).values()
            return
        for (schema, name), shapes in self._shapes.items():
            if wish.schema in (ANY, schema) and wish.table in (ANY, name):
                yield from shapes.values()

    def _place(self, entry: _Entry) -> None:
        for view in self._views_for(entry.wish):
            self._put(entry, view)

    def _displace(self, entry: _Entry) -> None:
        for view in self._views_for(entry.wish):
            view.drop(entry.binding.id)
            self.faults.pop((entry.binding.id, view.relation.schema, view.relation.name), None)

    def _put(self, entry: _Entry, view: View) -> None:
        viewer = entry.wish.viewer
        try:
            guard = True if viewer is None else self._guards(viewer, view.relation)
            fault = view.put(entry.binding, entry.literals, guard)
        except CatalogMiss as miss:
            fault = f"the types {sorted(miss.types)} are not known yet"
        key = (entry.binding.id, view.relation.schema, view.relation.name)
        if fault:
            self.faults[key] = fault
        else:
            self.faults.pop(key, None)


def _own_literals(wish: Binding, literals: Literals) -> dict[tuple[int, str], bytes | str]:
    if wish.expression is None:
        return {}
    texts: set[str | None] = set()
    for leaf in leaves(wish.expression):
        match leaf:
            case InList(_, values):
                texts.update(values)
            case Compare(_, _, value) | IsDistinct(_, value):
                texts.add(value)
            case _:
                pass
    return {key: value for key, value in literals.items() if key[1] in texts}


def _agree(known: Literals, literals: Literals) -> bool:
    return all(known.get(key, value) == value for key, value in literals.items())
