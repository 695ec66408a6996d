"""The slug of a channel, which is its topic: made of its name or given, in any script.

Whether a slug is free is the database's to say.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from walstream.channel.topic import PREFIX, TOPIC_BYTES_MAX

SLUG_BYTES_MAX: Final = TOPIC_BYTES_MAX - len(PREFIX)
"""A binary frame names the topic, prefix included."""

_JOINERS: Final = "\u200c\u200d"  # between letters of several scripts, and between the parts of an emoji
_ROUNDS: Final = 8  # what is left out may have kept two characters apart that compose; two rounds are usual
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def slug_of(name: str) -> str:
    """The slug that a name becomes: lower case, ``-`` for spaces; letters, digits, ``-``, ``_`` and pictures are kept.

    "" for a name of which nothing is left. Equal names in different normal forms have equal slugs.
    """
    slug = name
    for _ in range(_ROUNDS):
        before = slug
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFKC", slug).casefold())
        slug = "".join(filter(_stays, re.sub(r"[\s-]+", "-", folded))).strip("-" + _JOINERS)
        if slug == before:
            break
    return slug


def _stays(character: str) -> bool:
    if character in "-_" or character in _JOINERS:
        return True
    kind = unicodedata.category(character)
    return kind[0] in "LMN" or kind == "So" or (kind == "Sk" and ord(character) > 0xFFFF)  # Sk: skin tones


def slug_problem(slug: str) -> str:
    """Why no channel can have this slug; "" where one can."""
    if not slug:
        return "nothing of it can stand in a slug"
    if any(unicodedata.category(character) == "Cc" for character in slug):
        return "it has control characters"
    if len(slug.encode()) > SLUG_BYTES_MAX:
        return f"it is longer than {SLUG_BYTES_MAX} bytes"
    if is_uuid(slug):
        return "it has the form of an id, and channels are found by their ids first"
    if slug.startswith((PREFIX, "table:")):
        return "topics of that form are tables"
    return ""


def is_uuid(text: str) -> bool:
    """Whether a text is an id as PostgreSQL prints it, in any case of letters."""
    return _UUID.fullmatch(text) is not None
