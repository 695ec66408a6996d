"""The seal around envelopes: anybody in the database may read and write notifications, so only who has the key counts.

ChaCha20-Poly1305 (RFC 8439) under a key that HKDF (RFC 5869) derives from the cluster's secret. That a sealed message
is not taken twice is ``inbox``'s work.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from walstream.errors import BusError

NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
OVERHEAD_BYTES: Final = NONCE_BYTES + TAG_BYTES

TEXT_BYTES_MAX: Final = 7999
"""Of a notification's payload (PostgreSQL, NOTIFY)."""

PLAIN_BYTES_MAX: Final = (TEXT_BYTES_MAX - 1) // 4 * 3 - OVERHEAD_BYTES
"""What fits, sealed, as base64 and behind one letter, into a notification."""

_PURPOSE: Final = b"walstream bus 1"


class Seal:
    """One cluster's key, bound to one schema of one database: what is sealed for another one does not open here."""

    def __init__(self, secret: str, *, database: str, schema: str) -> None:
        key = HKDF(algorithm=SHA256(), length=32, salt=None, info=_PURPOSE).derive(secret.encode())
        self._cipher = ChaCha20Poly1305(key)
        self._about = b"\0".join((_PURPOSE, database.encode(), schema.encode()))

    def close(self, plain: bytes, nonce: bytes, about: str = "") -> bytes:
        """Seal. ``nonce``: 12 random bytes, never used before. ``about``: has to be the same when it is opened."""
        return nonce + self._cipher.encrypt(nonce, plain, self._bound(about))

    def open(self, sealed: bytes, about: str = "") -> bytes:
        """What was sealed. Raises BusError where it was not sealed with this key, for this place and ``about``."""
        if len(sealed) < OVERHEAD_BYTES:
            raise BusError("too short for a sealed message", "malformed")
        try:
            return self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], self._bound(about))
        except InvalidTag as error:
            raise BusError("sealed with another key, for another place, or by nobody", "forged") from error

    def _bound(self, about: str) -> bytes:
        return self._about + b"\0" + about.encode() if about else self._about


def to_text(sealed: bytes) -> str:
    """Sealed bytes as a notification's payload can carry them."""
    return base64.b64encode(sealed).decode("ascii")


def from_text(text: str) -> bytes:
    """The inverse of ``to_text``. Raises BusError."""
    try:
        return binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except ValueError as error:
        raise BusError("not base64", "malformed") from error
