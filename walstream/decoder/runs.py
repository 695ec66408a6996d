"""INSERTs that stand one after the other among other messages: what decoders take at once.

Both plugins name an INSERT by the same letter; where it stands is for each of them to say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

_PIECES: Final = re.compile(rb"I+|[^I]", re.DOTALL).finditer
_SPAN: Final = re.Match.span


def cut(payloads: Sequence[bytes], first: int, letter: Callable[[bytes], int]) -> Iterable[tuple[int, int]]:
    """See ``Decoder.runs``. ``letter``: gives the byte of a message that says what it is; may raise IndexError."""
    try:
        letters = bytes(map(letter, payloads))
    except IndexError:  # no valid message: each by itself, so that those before it are read
        return zip(range(first, len(payloads)), range(first + 1, len(payloads) + 1), strict=True)
    return map(_SPAN, _PIECES(letters, first))
