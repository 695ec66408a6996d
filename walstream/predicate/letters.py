"""Case and classes of characters, as PostgreSQL sees them in a UTF-8 database.

Outside ASCII they are Unicode's, one character at a time; under the collation C there is no case or class out there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

_SPACES: Final = frozenset(
    " \t\n\v\f\r\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2008\u2009\u200a\u2028\u2029\u205f\u3000"
)
_ASCII_UPPER: Final = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}


def fold(text: str, ascii_case: bool = False) -> str:
    """Lower case, of the same length."""
    if text.isascii():
        return text.lower()
    if ascii_case:
        return text.translate(_ASCII_UPPER)
    # lower() of a whole text looks at neighbours (Greek sigma) and may grow it (dotted capital I).
    return "".join([char.lower()[0] for char in text])


def cases(char: str, ascii_case: bool = False) -> frozenset[str]:
    """The character in every case that it has."""
    if ascii_case and not char.isascii():
        return frozenset(char)
    upper = char.upper()
    return frozenset((char, char.lower()[0], upper if len(upper) == 1 else char))


def _punctuation(char: str) -> bool:
    if char.isascii():
        return char.isprintable() and not char.isalnum() and char != " "
    return char.isprintable() and not char.isalnum() and char not in _SPACES


CLASSES: Final[Mapping[str, Callable[[str], bool]]] = {
    "alnum": str.isalnum,
    "alpha": str.isalpha,
    "blank": lambda char: char in " \t" or (char in _SPACES and char not in "\n\v\f\r\u2028\u2029"),
    "cntrl": lambda char: char < " " or "\x7f" <= char < "\xa0" or char in "\u2028\u2029",
    "digit": lambda char: "0" <= char <= "9",
    "graph": lambda char: char.isprintable() and char not in _SPACES,
    "lower": str.islower,
    "print": lambda char: char.isprintable(),
    "punct": _punctuation,
    "space": lambda char: char in _SPACES,
    "upper": str.isupper,
    "word": lambda char: char == "_" or char.isalnum(),
    "xdigit": lambda char: char in "0123456789abcdefABCDEF",
}
"""POSIX character classes by name."""


def character_class(name: str, ascii_case: bool) -> Callable[[str], bool] | None:
    """Whether a character belongs to the class; None for a name that is no class."""
    member = CLASSES.get(name)
    if member is None or not ascii_case:
        return member
    return lambda char: char.isascii() and member(char)
