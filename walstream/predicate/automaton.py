"""Regular expressions as automata: a search reads each character once, whatever the pattern.

Syntax trees come from ``regex``. A deterministic automaton is built as texts need it and forgotten when it grows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, TypeAlias

import msgspec

from walstream.errors import FilterError

Member: TypeAlias = Callable[[str], bool]
Constraint: TypeAlias = Literal["start", "end", "word start", "word end", "word border", "no word border"]

NODES_MAX: Final = 1000
_PARTS_MAX: Final = 4 * NODES_MAX  # repeated emptiness makes no nodes, and is work all the same
_TRANSITIONS_MAX: Final = 4096
WORK_MAX: Final = 500_000
"""Nodes that one search may look at outside what is remembered: about a tenth of a second."""


class Chars(msgspec.Struct, frozen=True):
    """One character of a set."""

    member: Member


class Assert(msgspec.Struct, frozen=True):
    """A place, not a character."""

    constraint: Constraint


class Sequence(msgspec.Struct, frozen=True):
    """One after the other; none at all matches the empty text."""

    parts: tuple[Tree, ...]


class Choice(msgspec.Struct, frozen=True):
    """Any of them."""

    parts: tuple[Tree, ...]


class Repeat(msgspec.Struct, frozen=True):
    """``least`` to ``most`` times; None: without end."""

    part: Tree
    least: int
    most: int | None


Tree: TypeAlias = Chars | Assert | Sequence | Choice | Repeat

_START, _WORD, _OTHER, _END = range(4)


def _holds(constraint: Constraint, before: int, after: int) -> bool:
    starts = before != _WORD and after == _WORD
    ends = before == _WORD and after != _WORD
    match constraint:
        case "start":
            return before == _START
        case "end":
            return after == _END
        case "word start":
            return starts
        case "word end":
            return ends
        case "word border":
            return starts or ends
        case "no word border":
            return not (starts or ends)


class _Nodes:
    """A nondeterministic automaton. Node 0 accepts."""

    def __init__(self) -> None:
        self.chars: list[tuple[Member, int] | None] = [None]
        self.empty: list[list[tuple[Constraint | None, int]]] = [[]]
        self._parts = 0

    def _new(self) -> int:
        self.chars.append(None)
        self.empty.append([])
        return len(self.chars) - 1

    def add(self, tree: Tree, then: int) -> int:
        """Nodes that match ``tree`` and go on at ``then``; returns the first of them."""
        self._parts += 1
        if len(self.chars) > NODES_MAX or self._parts > _PARTS_MAX:
            raise FilterError("regular expression is too complex", repair="repeat less in braces")
        match tree:
            case Chars(member):
                node = self._new()
                self.chars[node] = (member, then)
                return node
            case Assert(constraint):
                node = self._new()
                self.empty[node].append((constraint, then))
                return node
            case Sequence(parts):
                for part in reversed(parts):
                    then = self.add(part, then)
                return then
            case Choice(parts):
                starts = [self.add(part, then) for part in parts]
                node = self._new()
                self.empty[node] += [(None, start) for start in starts]
                return node
            case Repeat(part, least, most):
                return self._repeat(part, least, most, then)

    def _repeat(self, part: Tree, least: int, most: int | None, then: int) -> int:
        if most is None:
            loop = self._new()
            self.empty[loop] += [(None, self.add(part, loop)), (None, then)]
            then = loop
        else:
            for _ in range(most - least):
                node = self._new()
                self.empty[node] += [(None, self.add(part, then)), (None, then)]
                then = node
        for _ in range(least):
            then = self.add(part, then)
        return then

    def closure(self, nodes: frozenset[int], before: int, after: int) -> set[int]:
        """What is reached between two characters (or the ends) without reading one."""
        seen = set(nodes)
        waiting = list(nodes)
        while waiting:
            for constraint, node in self.empty[waiting.pop()]:
                if node not in seen and (constraint is None or _holds(constraint, before, after)):
                    seen.add(node)
                    waiting.append(node)
        return seen


class _State:
    """Where a search stands before its next character."""

    __slots__ = ("before", "next", "nodes")

    def __init__(self, nodes: frozenset[int], before: int) -> None:
        self.nodes = nodes
        self.before = before
        self.next: dict[str, _State] = {}


_MATCHED: Final = _State(frozenset(), _OTHER)


class Automaton:
    """Searches texts for one regular expression. Raises FilterError for one that is too large."""

    def __init__(self, tree: Tree, is_word: Member) -> None:
        self._nodes = _Nodes()
        self._first = self._nodes.add(tree, 0)
        self._is_word = is_word
        self._work = 0
        self._forget()

    def _forget(self) -> None:
        self._start = _State(frozenset((self._first,)), _START)
        self._states: dict[tuple[frozenset[int], int], _State] = {(self._start.nodes, _START): self._start}
        self._transitions = 0

    def search(self, text: str) -> bool:
        """Whether the expression matches anywhere in ``text``. Raises ValueError if that takes too much work."""
        state = self._start
        self._work = 0
        for char in text:
            following = state.next.get(char)
            if following is None:
                following = self._step(state, char)
            if following is _MATCHED:
                return True
            state = following
        return 0 in self._nodes.closure(state.nodes, state.before, _END)

    def _step(self, state: _State, char: str) -> _State:
        if self._transitions >= _TRANSITIONS_MAX:
            self._forget()
        self._transitions += 1
        after = _WORD if self._is_word(char) else _OTHER
        reached = self._nodes.closure(state.nodes, state.before, after)
        self._work += len(reached)
        if self._work > WORK_MAX:
            raise ValueError("too much work for one search")
        if 0 in reached:
            following = _MATCHED
        else:
            steps = (self._nodes.chars[node] for node in reached)
            nodes = frozenset({self._first, *(step[1] for step in steps if step is not None and step[0](char))})
            following = self._states.get((nodes, after)) or _State(nodes, after)
            self._states[nodes, after] = following
        state.next[char] = following
        return following
