"""PostgreSQL's own text of a parsed expression (``pg_node_tree``) as a tree: nodes, lists, atoms, datums.

The form is that of nodes/outfuncs.c, and reading is exact or refused. What a tree means is told in ``recognise``; here
is only which of the table's columns it looks at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple, TypeAlias


class Unreadable(Exception):
    """The text is no tree of a form that is known here."""


class Node(NamedTuple):
    """``{KIND :field value …}``."""

    kind: str
    fields: Mapping[str, Value]

    def get(self, field: str) -> Value:
        """The field's value. Raises Unreadable for a version of PostgreSQL that does not write it."""
        try:
            return self.fields[field]
        except KeyError:
            raise Unreadable(f"{self.kind} without {field}") from None

    def number(self, field: str) -> int:
        """A field that is a whole number. Raises Unreadable."""
        value = self.get(field)
        if not isinstance(value, str) or not _INTEGER.fullmatch(value):
            raise Unreadable(f"{self.kind}.{field} is no number")
        return int(value)

    def flag(self, field: str) -> bool:
        """A field that is true or false. Raises Unreadable."""
        value = self.get(field)
        if value not in ("true", "false"):
            raise Unreadable(f"{self.kind}.{field} is no boolean")
        return value == "true"

    def node(self, field: str) -> Node:
        """A field that holds a node. Raises Unreadable."""
        value = self.get(field)
        if not isinstance(value, Node):
            raise Unreadable(f"{self.kind}.{field} is no node")
        return value

    def nodes(self, field: str) -> tuple[Node, ...]:
        """A field that holds a list of nodes, none for NULL. Raises Unreadable."""
        value = self.get(field)
        if value is None:
            return ()
        if not isinstance(value, tuple) or isinstance(value, Node):
            raise Unreadable(f"{self.kind}.{field} is no list")
        found = tuple(item for item in value if isinstance(item, Node))
        if len(found) != len(value):
            raise Unreadable(f"{self.kind}.{field} is no list of nodes")
        return found


class Quoted(NamedTuple):
    """A String node: ``"text"``."""

    text: str


class Datum(NamedTuple):
    """``4 [ 1 0 0 0 0 0 0 0 ]``: a value as it lies in the server's memory, and its length there."""

    length: int
    data: bytes


Value: TypeAlias = "Node | Quoted | Datum | str | tuple[Value, ...] | None"
"""Atoms are str; lists are tuples, those of integers, OIDs and bits with their mark (i, o, x, b) as first atom."""

DEPTH_MAX: Final = 150
"""Levels of a tree that are read; a policy is written by a person."""

_TOKEN: Final = re.compile(r"[ \n\t]*+(?:([(){}])|((?:\\.|[^ \n\t(){}\\])++))", re.DOTALL)
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)
_INTEGER: Final = re.compile(r"-?[0-9]{1,20}", re.ASCII)
_BLANKS: Final = " \n\t"


def read(text: str) -> Value:
    """The tree of one expression. Raises Unreadable."""
    reader = _Reader(text)
    value = reader.value(reader.token(), 0)
    reader.end()
    return value


class _Reader:
    """Tokens as pg_strtok parts them: at blanks, parentheses and braces; a backslash makes the next one literal."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def token(self) -> str:
        match = _TOKEN.match(self._text, self._at)
        if match is None:
            raise Unreadable(f"no token at {self._at}")
        self._at = match.end()
        return match[1] or match[2]

    def _follows(self, wanted: str) -> bool:
        """Whether the next token is ``wanted``, which is taken then."""
        match = _TOKEN.match(self._text, self._at)
        if match is None or (match[1] or match[2]) != wanted:
            return False
        self._at = match.end()
        return True

    def end(self) -> None:
        if self._text[self._at :].strip(_BLANKS):
            raise Unreadable(f"text after the tree at {self._at}")

    def value(self, word: str, depth: int) -> Value:
        if depth > DEPTH_MAX:
            raise Unreadable("nested too deep")
        if word == "{":
            return self._node(depth + 1)
        if word == "(":
            return self._list(depth + 1)
        if word in (")", "}"):
            raise Unreadable(f"a {word} before {self._at}")
        if word == "<>":
            return None
        if word[0] == '"':
            if len(word) < 2 or word[-1] != '"':
                raise Unreadable(f"a text without an end before {self._at}")
            return Quoted(_plain(word[1:-1]))
        return _plain(word)

    def _node(self, depth: int) -> Node:
        kind = self.token()
        if kind[0] in "(){}:":
            raise Unreadable(f"a node without a name before {self._at}")
        fields: dict[str, Value] = {}
        while True:
            label = self.token()
            if label == "}":
                return Node(_plain(kind), fields)
            if label[0] != ":" or label[1:] in fields:
                raise Unreadable(f"no field of {kind} before {self._at}")
            # The first token is the value whatever it looks like: a name may begin with a colon.
            value = self.value(self.token(), depth)
            if isinstance(value, str) and self._follows("["):
                value = self._datum(value)
            fields[label[1:]] = value

    def _list(self, depth: int) -> tuple[Value, ...]:
        items: list[Value] = []
        while True:
            word = self.token()
            if word == ")":
                return tuple(items)
            items.append(self.value(word, depth))

    def _datum(self, length: str) -> Datum:
        data = bytearray()
        if not length.isdigit() or not length.isascii():
            raise Unreadable(f"a datum without a length before {self._at}")
        while True:
            word = self.token()
            if word == "]":
                return Datum(int(length), bytes(data))
            if not _INTEGER.fullmatch(word) or not -128 <= int(word) <= 255:
                raise Unreadable(f"no byte before {self._at}")
            data.append(int(word) & 0xFF)


def _plain(word: str) -> str:
    return _ESCAPED.sub(r"\1", word) if "\\" in word else word


def walk(value: Value, depth: int = 0) -> Iterator[tuple[Node, int]]:
    """All nodes of a tree, each with the number of queries around it; those inside a query count that one."""
    if isinstance(value, Node):
        yield value, depth
        inner = depth + 1 if value.kind == "QUERY" else depth
        for field in value.fields.values():
            yield from walk(field, inner)
    elif isinstance(value, tuple) and not isinstance(value, Quoted | Datum):
        for item in value:
            yield from walk(item, depth)


def attributes_of(tree: Value) -> frozenset[int]:
    """Numbers of the table's attributes that a condition looks at: 0 is the whole row, below are system columns.

    Raises Unreadable.
    """
    return frozenset(
        node.number("varattno")
        for node, depth in walk(tree)
        if node.kind == "VAR" and node.number("varlevelsup") == depth
    )
