"""Literals that need no PostgreSQL to be read: each function is one type's input function, errors included.

Other types' literals are cast by the server; which types those are is decided in ``types``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from walstream.errors import FilterError

Cast = Callable[[str], object]

_BLANKS: Final = " \t\n\v\f\r"
_INTEGER: Final = re.compile(r"[+-]?[0-9]+", re.ASCII)
_UUID: Final = re.compile(r"(\{)?((?:[0-9a-fA-F]{4}-?){7}[0-9a-fA-F]{4})(?(1)\})", re.ASCII)
_NAME_BYTES_MAX: Final = 63
_INTEGER_DIGITS_MAX: Final = 4000

_TRUE: Final = frozenset({"t", "tr", "tru", "true", "y", "ye", "yes", "on", "1"})
_FALSE: Final = frozenset({"f", "fa", "fal", "fals", "false", "n", "no", "of", "off", "0"})


def invalid(type_name: str, text: str) -> FilterError:
    """What PostgreSQL says to text that is no value of the type."""
    return FilterError(f'invalid input syntax for type {type_name}: "{text}"')


def integer(type_name: str, bits: int) -> Cast:
    """int2in, int4in, int8in: decimal digits with a sign, blanks around them."""
    limit = 1 << (bits - 1)

    def cast(text: str) -> int:
        digits = text.strip(_BLANKS)
        if not _INTEGER.fullmatch(digits):
            raise invalid(type_name, text)
        value = int(digits) if len(digits) < _INTEGER_DIGITS_MAX else limit
        if not -limit <= value < limit:
            raise FilterError(f'value "{text}" is out of range for type {type_name}')
        return value

    return cast


def boolean(text: str) -> bool:
    """boolin: the usual words, shortened as long as they stay unique, in any case."""
    word = text.strip(_BLANKS).lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise invalid("boolean", text)


def uuid(text: str) -> str:
    """uuid_in: 32 hex digits, a hyphen after any group of four, braces around the whole. Canonical text."""
    match = _UUID.fullmatch(text)
    if match is None:
        raise invalid("uuid", text)
    digits = match[2].replace("-", "").lower()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def text(value: str) -> str:
    """textin: as it is."""
    if "\0" in value:
        raise FilterError('invalid byte sequence for encoding "UTF8": 0x00')
    return value


def padded(value: str) -> str:
    """As bpcharin without a length, and as bpchar compares: trailing blanks do not count."""
    return text(value).rstrip(" ")


def name(value: str) -> str:
    """namein: cut to 63 bytes, at a character's border."""
    return text(value).encode("utf-8")[:_NAME_BYTES_MAX].decode("utf-8", "ignore")


def bits(value: str) -> str:
    """bit_in and varbit_in: binary digits, or hex digits after an x."""
    if value[:1] in ("x", "X"):
        digits = value[1:]
        if not re.fullmatch(r"[0-9a-fA-F]*", digits):
            raise FilterError(f'"{digits}" is no valid hexadecimal text')
        return "".join(f"{int(digit, 16):04b}" for digit in digits)
    digits = value[1:] if value[:1] in ("b", "B") else value
    if digits.strip("01"):
        raise FilterError(f'"{digits}" is no valid binary text')
    return digits
