"""The filters of captured tables: a subset of SQL's conditions on one row, read and printed.

What they mean for a row is in ``predicate``. No part of a filter ever becomes part of a statement.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Literal, NamedTuple, NoReturn, TypeAlias

from walstream.capture.names import KEYWORDS, quote_identifier
from walstream.errors import FilterError
from walstream.predicate.expression import (
    And,
    Compare,
    Comparison,
    Expression,
    Holds,
    InList,
    IsDistinct,
    IsNull,
    IsTruth,
    Leaf,
    Like,
    Not,
    Or,
    Regex,
    check_text,
)

FILTER_CHARACTERS_MAX: Final = 65_536
DEPTH_MAX: Final = 64
LITERALS_MAX: Final = 1000

_Kind: TypeAlias = Literal["word", "name", "text", "number", "sign", "end"]

_TOKEN: Final = re.compile(
    r"\s*(?:"
    r"(?P<text>'(?:[^']|'')*')"
    r'|(?P<name>"(?:[^"]|"")+")'
    r"|(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<word>[^\W\d][\w$]*)"
    r"|(?P<sign>::|<>|!=|<=|>=|!~\*|!~|~\*|[=<>~(),.+-])"
    r"|(?P<end>\Z)"
    r")"
)
_BLANKS: Final = re.compile(r"\s*")
_SIGNS: Final[dict[str, Comparison]] = {
    "=": "eq",
    "<>": "neq",
    "!=": "neq",
    "<": "lt",
    "<=": "lte",
    ">": "gt",
    ">=": "gte",
}
_SIGN_OF: Final = {op: sign for sign, op in _SIGNS.items() if sign != "!="}
_TRUTHS: Final[dict[str, bool | None]] = {"true": True, "false": False, "unknown": None}
_ZONES: Final = (("with", "without"), ("time",), ("zone",))
_LONG_TYPES: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "double": (("precision",),),
    "character": (("varying",),),
    "bit": (("varying",),),
    "timestamp": _ZONES,
    "time": _ZONES,
}
_LONG_NAME: Final = re.compile(r"double precision|(character|bit) varying|time(stamp)? with(out)? time zone")


class _Token(NamedTuple):
    kind: _Kind
    text: str  # words in lower case, names and texts without their quotes
    at: int  # 1-based, in characters


class _Literal(NamedTuple):
    text: str | None
    cast: str


def parse_row_filter(text: str) -> Expression:
    """The condition as it was written. Raises FilterError naming the position and what was expected there."""
    check_text(text, FILTER_CHARACTERS_MAX)
    parser = _Parser(_tokens(text))
    expression = parser.either()
    if parser.token.kind != "end":
        parser.fail("AND, OR or the end")
    return expression


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    while not tokens or tokens[-1].kind != "end":
        match = _TOKEN.match(text, at)
        if match is None:
            start = blanks.end() if (blanks := _BLANKS.match(text, at)) else at
            what = "a quoted text without its end" if text[start] in "'\"" else f"unexpected {text[start]!r}"
            raise FilterError(f"filter: {what} at position {start + 1}")
        tokens.append(_token(match))
        at = match.end()
    return tokens


def _fold(word: str) -> str:
    """PostgreSQL folds ASCII letters, and leaves the others of a name alone."""
    return "".join([char.lower() if char.isascii() else char for char in word])


def _token(match: re.Match[str]) -> _Token:
    raw, at = match[match.lastgroup or 0], match.start(match.lastgroup or 0) + 1
    match match.lastgroup:
        case "text":
            return _Token("text", raw[1:-1].replace("''", "'"), at)
        case "name":
            return _Token("name", raw[1:-1].replace('""', '"'), at)
        case "word":
            return _Token("word", _fold(raw), at)
        case "number":
            return _Token("number", raw, at)
        case "sign":
            return _Token("sign", raw, at)
        case _:
            return _Token("end", raw, at)


class _Parser:
    """One token of look-ahead, a method for each level of precedence."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._next = 0
        self._depth = 0
        self._literals = 0

    @property
    def token(self) -> _Token:
        return self._tokens[self._next]

    def fail(self, expected: str) -> NoReturn:
        found = repr(self.token.text) if self.token.kind != "end" else "the end"
        raise FilterError(f"filter: expected {expected} but found {found} at position {self.token.at}")

    def _word(self, *words: str) -> str:
        """Take the word if it is one of these; "" if not."""
        token = self.token
        if token.kind != "word" or token.text not in words:
            return ""
        self._next += 1
        return token.text

    def _sign(self, *signs: str) -> str:
        token = self.token
        if token.kind != "sign" or token.text not in signs:
            return ""
        self._next += 1
        return token.text

    def _expect(self, sign: str) -> None:
        if not self._sign(sign):
            self.fail(repr(sign))

    def either(self) -> Expression:
        parts = self._chain("or", self._both)
        return parts[0] if len(parts) == 1 else Or(parts)

    def _both(self) -> Expression:
        parts = self._chain("and", self._negation)
        return parts[0] if len(parts) == 1 else And(parts)

    def _chain(self, word: str, part: Callable[[], Expression]) -> tuple[Expression, ...]:
        parts = [part()]
        while self._word(word):
            parts.append(part())
        return tuple(parts)

    def _negation(self) -> Expression:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise FilterError(f"filter: nested deeper than {DEPTH_MAX} levels at position {self.token.at}")
        expression: Expression
        if self._word("not"):
            expression = Not(self._negation())
        elif self._sign("("):
            expression = self.either()
            self._expect(")")
        else:
            expression = self._condition()
        self._depth -= 1
        return expression

    def _condition(self) -> Expression:
        column = self._column()
        if self._word("is"):
            return self._is(column)
        if self.token.kind == "sign" and self.token.text != ")":
            return self._comparison(column)
        negated = self._word("not")
        condition = self._named(column)
        if condition is not None:
            return Not(condition) if negated else condition
        token = self.token
        if negated or not (token.kind == "end" or token.text == ")" or token.text in ("and", "or")):
            self.fail("IN, LIKE, ILIKE or BETWEEN" if negated else "a comparison")
        return Holds(column)

    def _column(self) -> str:
        token = self.token
        if token.kind != "name" and (token.kind != "word" or token.text in KEYWORDS):
            self.fail("a column")
        self._next += 1
        return token.text

    def _comparison(self, column: str) -> Expression:
        sign = self._sign(*_SIGNS)
        if sign:
            value, cast = self._literal()
            return Compare(column, _SIGNS[sign], value, cast)
        sign = self._sign("~", "~*", "!~", "!~*")
        if not sign:
            self.fail("a comparison")
        match = Regex(column, self._text(), sign.endswith("*"))
        return Not(match) if sign.startswith("!") else match

    def _is(self, column: str) -> Expression:
        negated = self._word("not")
        truth = self._word(*_TRUTHS)
        condition: Expression
        if truth:
            condition = IsTruth(column, _TRUTHS[truth])
        elif self._word("null"):
            condition = IsNull(column)
        elif self._word("distinct"):
            if not self._word("from"):
                self.fail("FROM")
            condition = IsDistinct(column, *self._literal())
        else:
            self.fail("NULL, TRUE, FALSE, UNKNOWN or DISTINCT FROM")
        return Not(condition) if negated else condition

    def _named(self, column: str) -> Expression | None:
        """What may follow NOT: IN, BETWEEN, LIKE, ILIKE."""
        if self._word("in"):
            return self._list(column)
        if self._word("between"):
            low = self._literal()
            if not self._word("and"):
                self.fail("AND")
            high = self._literal()
            return And((Compare(column, "gte", *low), Compare(column, "lte", *high)))
        like = self._word("like", "ilike")
        return Like(column, self._text(), like == "ilike") if like else None

    def _list(self, column: str) -> Expression:
        self._expect("(")
        values = [self._literal()]
        while self._sign(","):
            values.append(self._literal())
        self._expect(")")
        casts = {value.cast for value in values if value.cast}
        if len(casts) > 1:
            raise FilterError(f"filter: one list with casts to {' and '.join(sorted(casts))}, before {self.token.at}")
        return InList(column, tuple(value.text for value in values), casts.pop() if casts else "")

    def _text(self) -> str:
        if self.token.kind != "text":
            self.fail("a pattern in single quotes")
        text, cast = self._literal()
        if cast not in ("", "text") or text is None:
            raise FilterError(f"filter: a pattern cast to {cast}, before position {self.token.at}")
        return text

    def _literal(self) -> _Literal:
        """A text, a number, TRUE, FALSE or NULL, with or without a cast."""
        self._literals += 1
        if self._literals > LITERALS_MAX:
            raise FilterError(f"filter: more than {LITERALS_MAX} literals at position {self.token.at}")
        minus = self._sign("+", "-")
        token = self.token
        value: str | None
        if token.kind == "number":
            value = minus + token.text
        elif minus:
            self.fail("a number")
        elif token.kind == "text" or (token.kind == "word" and token.text in ("true", "false")):
            value = token.text
        elif token.kind == "word" and token.text == "null":
            value = None
        else:
            self.fail("a value")
        self._next += 1
        return _Literal(value, self._type() if self._sign("::") else "")

    def _type(self) -> str:
        """A type's name, of several words or behind its schema, which is not looked at."""
        name = self._type_word()
        if self._sign("."):
            name = self._type_word()
        for words in _LONG_TYPES.get(name, ()):
            word = self._word(*words)
            if not word and " " in name:
                self.fail(" or ".join(words).upper())
            if not word:
                break
            name = f"{name} {word}"
        if self.token.kind == "sign" and self.token.text == "(":
            self.fail("a type without a length")
        return name

    def _type_word(self) -> str:
        token = self.token
        if token.kind != "name" and (token.kind != "word" or token.text in KEYWORDS):
            self.fail("a type")
        self._next += 1
        return token.text


def print_filter(expression: Expression) -> str:
    """SQL that ``parse_row_filter`` reads back as the same tree. Raises FilterError for an empty list."""
    match expression:
        case And(parts):
            return " AND ".join(map(_inner, parts))
        case Or(parts):
            return " OR ".join(map(_inner, parts))
        case Not(IsNull() | IsTruth() | IsDistinct() | InList() | Like() | Regex() as part):
            return _print_leaf(part, "NOT ")
        case Not(part):
            return f"NOT ({print_filter(part)})"
        case _:
            return _print_leaf(expression, "")


def _inner(expression: Expression) -> str:
    printed = print_filter(expression)
    return f"({printed})" if isinstance(expression, And | Or) else printed


def _print_leaf(leaf: Leaf, negation: str) -> str:
    column = quote_identifier(leaf.column)
    match leaf:
        case Compare(_, op, value, cast):
            return f"{column} {_SIGN_OF[op]} {_quote(value, cast)}"
        case InList(_, values, cast):
            if not values:
                raise FilterError("an empty list cannot be written in SQL")
            return f"{column} {negation}IN ({', '.join([_quote(value, cast) for value in values])})"
        case IsNull():
            return f"{column} IS {negation}NULL"
        case IsTruth(_, truth):
            return f"{column} IS {negation}{'UNKNOWN' if truth is None else str(truth).upper()}"
        case IsDistinct(_, value, cast):
            return f"{column} IS {negation}DISTINCT FROM {_quote(value, cast)}"
        case Like(_, pattern, insensitive):
            return f"{column} {negation}{'ILIKE' if insensitive else 'LIKE'} {_quote(pattern)}"
        case Regex(_, pattern, insensitive):
            return f"{column} {'!' if negation else ''}~{'*' if insensitive else ''} {_quote(pattern)}"
        case Holds():
            return column


def _quote(text: str | None, cast: str = "") -> str:
    quoted = "NULL" if text is None else "'" + text.replace("'", "''") + "'"
    if not cast:
        return quoted
    return f"{quoted}::{cast if _LONG_NAME.fullmatch(cast) else quote_identifier(cast)}"
