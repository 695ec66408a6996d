"""Seals: only who has the key, for the same place, opens them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.bus.seal import NONCE_BYTES, PLAIN_BYTES_MAX, TEXT_BYTES_MAX, Seal, from_text, to_text
from walstream.errors import BusError

SEAL = Seal("secret", database="app", schema="realtime")
NONCE = bytes(range(NONCE_BYTES))


@given(st.binary(max_size=200), st.binary(min_size=NONCE_BYTES, max_size=NONCE_BYTES), st.text(max_size=5))
def test_what_is_sealed_opens_again(plain: bytes, nonce: bytes, about: str) -> None:
    about = about.encode(errors="ignore").decode()
    assert SEAL.open(from_text(to_text(SEAL.close(plain, nonce, about))), about) == plain


def test_another_node_with_the_same_secret_opens_it() -> None:
    same = Seal("secret", database="app", schema="realtime")
    assert same.open(SEAL.close(b"x", NONCE)) == b"x"


@pytest.mark.parametrize(
    "other",
    [
        Seal("another", database="app", schema="realtime"),
        Seal("secret", database="copy", schema="realtime"),
        Seal("secret", database="app", schema="other"),
    ],
)
def test_another_secret_database_or_schema_does_not_open_it(other: Seal) -> None:
    with pytest.raises(BusError) as refused:
        other.open(SEAL.close(b"x", NONCE))
    assert refused.value.reason == "forged"


def test_what_it_is_about_has_to_agree() -> None:
    with pytest.raises(BusError):
        SEAL.open(SEAL.close(b"x", NONCE, "one"), "two")


@given(st.integers(0, 1000), st.integers(1, 255))
def test_a_changed_byte_is_noticed(at: int, change: int) -> None:
    sealed = bytearray(SEAL.close(b"some text", NONCE))
    sealed[at % len(sealed)] ^= change
    with pytest.raises(BusError):
        SEAL.open(bytes(sealed))


@given(st.binary(max_size=60) | st.text(max_size=60))
def test_garbage_is_an_error_of_ours(data: bytes | str) -> None:
    with pytest.raises(BusError):
        SEAL.open(from_text(data) if isinstance(data, str) else data)


def test_the_largest_envelope_fits_into_a_notification() -> None:
    text = "s" + to_text(SEAL.close(b"x" * PLAIN_BYTES_MAX, NONCE))
    assert TEXT_BYTES_MAX - 4 < len(text) <= TEXT_BYTES_MAX
