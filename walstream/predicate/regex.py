"""POSIX regular expressions as PostgreSQL reads them, as far as they are regular: no look-around, no back reference.

PostgreSQL 17, 9.7.3.1 to 9.7.3.3 (advanced regular expressions). Matching itself is in ``automaton``.
"""

from __future__ import annotations

import re
from typing import Final, NoReturn

from walstream.errors import FilterError
from walstream.predicate.automaton import Assert, Automaton, Chars, Choice, Constraint, Member, Repeat, Sequence, Tree
from walstream.predicate.letters import cases, character_class
from walstream.predicate.like import Matcher

PATTERN_CHARACTERS_MAX: Final = 500
TEXT_CHARACTERS_MAX: Final = 65_536
"""Longer values are not searched: a hostile pattern costs microseconds per character."""

_REPEAT_MAX: Final = 255
_GROUPS_MAX: Final = 30

_QUANTIFIER: Final = re.compile(r"([*+?])|\{(\d+)(?:(,)(\d*))?\}")
_CONTROLS: Final = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "a": "\a", "e": "\x1b", "B": "\\"}
_CLASSES: Final = {"d": "digit", "s": "space", "w": "word"}
_PLACES: Final[dict[str, Constraint]] = {
    "A": "start",
    "Z": "end",
    "m": "word start",
    "M": "word end",
    "y": "word border",
    "Y": "no word border",
}
_REFUSED: Final = {
    "b": "write \\y for a word border",
    "c": "write the control character itself",
    "u": "write the character itself",
    "U": "write the character itself",
    "x": "write the character itself",
}


def matcher(pattern: str, *, insensitive: bool = False, ascii_case: bool = False) -> Matcher:
    """Whether a text has a match in it. ``ascii_case``: only ASCII has cases and classes.

    Raises FilterError naming the construct for what is not regular, not known or too large. A matcher raises
    ValueError for a text of more than ``TEXT_CHARACTERS_MAX`` characters, or on which it would take too long.
    """
    automaton = Automaton(*_Parser(pattern, insensitive, ascii_case).parse())

    def match(text: str) -> bool:
        if len(text) > TEXT_CHARACTERS_MAX:
            raise ValueError("too long for a regular expression")
        return automaton.search(text)

    return match


class _Parser:
    """Recursive descent over one pattern."""

    def __init__(self, pattern: str, insensitive: bool, ascii_case: bool) -> None:
        self._pattern = pattern
        self._insensitive = insensitive
        self._ascii_case = ascii_case
        self._at = 0
        self._groups = 0

    def parse(self) -> tuple[Tree, Member]:
        """The whole pattern, and what a word is made of."""
        if len(self._pattern) > PATTERN_CHARACTERS_MAX:
            raise FilterError(f"regular expression of more than {PATTERN_CHARACTERS_MAX} characters")
        if self._pattern.startswith("***"):
            self._refuse("the prefix ***")
        tree = self._choice()
        if self._at < len(self._pattern):
            self._refuse("a closing parenthesis without its opening one")
        return tree, self._named("word")

    def _refuse(self, what: str, repair: str = "") -> NoReturn:
        raise FilterError(
            f"regular expression: {what} at character {min(self._at + 1, len(self._pattern))} is not supported",
            repair=repair,
        )

    def _peek(self, length: int = 1) -> str:
        return self._pattern[self._at : self._at + length]

    def _take(self) -> str:
        char = self._peek()
        self._at += 1
        return char

    def _choice(self) -> Tree:
        parts = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            parts.append(self._sequence())
        return parts[0] if len(parts) == 1 else Choice(tuple(parts))

    def _sequence(self) -> Tree:
        parts: list[Tree] = []
        while self._peek() not in ("", "|", ")"):
            parts.append(self._quantified())
        return Sequence(tuple(parts))

    def _quantified(self) -> Tree:
        atom = self._atom()
        match = _QUANTIFIER.match(self._pattern, self._at)
        if match is None:
            if self._peek() == "{" and self._peek(2)[1:].isdigit():
                self._refuse("a quantifier without its end")
            return atom
        if isinstance(atom, Assert):
            self._refuse(f"{match[0]} behind a place")
        least, most = self._bounds(match)
        self._at = match.end()
        if self._peek() == "?":
            self._at += 1  # lazy or greedy: there is a match or there is none
        if _QUANTIFIER.match(self._pattern, self._at):
            self._refuse("a quantifier behind a quantifier")
        return Repeat(atom, least, most)

    def _bounds(self, match: re.Match[str]) -> tuple[int, int | None]:
        if match[1]:
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[match[1]]
        least = int(match[2])
        most = least if match[3] is None else int(match[4]) if match[4] else None
        if max(least, most or 0) > _REPEAT_MAX or (most is not None and most < least):
            self._refuse(f"the repetition {match[0]}", f"up to {_REPEAT_MAX} times, the smaller number first")
        return least, most

    def _atom(self) -> Tree:
        char = self._take()
        match char:
            case "(":
                return self._group()
            case "[":
                return Chars(self._bracket())
            case ".":
                return Chars(lambda _: True)
            case "^":
                return Assert("start")
            case "$":
                return Assert("end")
            case "\\":
                return self._escape()
            case "*" | "+" | "?":
                self._at -= 1
                self._refuse("a quantifier with nothing before it")
            case "{" if self._peek().isdigit():
                self._at -= 1
                self._refuse("a quantifier with nothing before it")
        return Chars(self._literal(char))

    def _group(self) -> Tree:
        if self._peek() == "?":
            if self._peek(2) != "?:":
                self._refuse(f"({self._peek(2)}", "groups, alternatives, classes and quantifiers are")
            self._at += 2
        self._groups += 1
        if self._groups > _GROUPS_MAX:
            self._refuse(f"nesting of more than {_GROUPS_MAX} groups")
        tree = self._choice()
        if self._take() != ")":
            self._refuse("a group without its end")
        self._groups -= 1
        return tree

    def _escape(self) -> Tree:
        char = self._take()
        if char in _PLACES:
            return Assert(_PLACES[char])
        if char in _CLASSES:
            return Chars(self._named(_CLASSES[char]))
        if char.lower() in _CLASSES:
            member = self._named(_CLASSES[char.lower()])
            return Chars(lambda other: not member(other))
        return Chars(self._literal(self._escaped(char)))

    def _escaped(self, char: str) -> str:
        if char in _CONTROLS:
            return _CONTROLS[char]
        if char == "" or char.isalnum():
            self._at -= 1
            self._refuse(f"\\{char}", _REFUSED.get(char, ""))
        return char

    def _literal(self, char: str) -> Member:
        if not self._insensitive:
            return char.__eq__
        return cases(char, self._ascii_case).__contains__

    def _named(self, name: str) -> Member:
        if self._insensitive and name in ("lower", "upper"):
            name = "alpha"
        member = character_class(name, self._ascii_case)
        if member is None:
            self._refuse(f"the class [:{name}:]")
        return member

    def _bracket(self) -> Member:
        negated = self._peek() == "^"
        self._at += negated
        members: list[Member] = []
        first = True
        while first or self._peek() != "]":
            members.append(self._element(first))
            first = False
        self._at += 1
        insensitive, ascii_case = self._insensitive, self._ascii_case

        def contains(char: str) -> bool:
            forms = cases(char, ascii_case) if insensitive else (char,)
            return any(member(form) for form in forms for member in members) is not negated

        return contains

    def _element(self, first: bool) -> Member:
        if self._peek(2) == "[:":
            end = self._pattern.find(":]", self._at + 2)
            name = self._pattern[self._at + 2 : end] if end > 0 else self._pattern[self._at + 2 :]
            member = self._named(name)
            self._at = end + 2
            return self._no_range(member)
        if self._peek() == "\\" and self._peek(2)[1:] in _CLASSES:
            self._at += 2
            return self._no_range(self._named(_CLASSES[self._pattern[self._at - 1]]))
        if self._peek() == "-" and not first and self._peek(2) != "-]":
            self._refuse("a hyphen inside brackets", "put it first or last")
        low = self._bracket_char()
        if self._peek() != "-" or self._peek(2) == "-]":
            return low.__eq__
        self._at += 1
        high = self._bracket_char()
        if low > high:
            self._refuse(f"the range {low}-{high}")
        return self._no_range(lambda char: low <= char <= high)

    def _no_range(self, member: Member) -> Member:
        if self._peek() == "-" and self._peek(2) != "-]":
            self._refuse("a range behind a range or class")
        return member

    def _bracket_char(self) -> str:
        if self._peek(2) in ("[.", "[="):
            self._refuse(self._peek(2), "collating elements and equivalence classes are not")
        char = self._take()
        if char == "":
            self._refuse("a bracket without its end")
        return self._escaped(self._take()) if char == "\\" else char
