"""Names of NOTIFY channels."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from walstream.bus.names import BYTES_MAX, notify_channel


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=100))
def test_a_name_fits_and_stays_itself_where_it_can(name: str) -> None:
    made = notify_channel(name)
    assert len(made.encode()) <= BYTES_MAX
    assert made == name or len(name.encode()) > BYTES_MAX


def test_a_long_name_has_its_beginning_and_a_digest() -> None:
    name = "realtime:table:public." + "x" * 50
    assert notify_channel(name) == "realtime:table:public." + "x" * 24 + "#5d65db8cb120cc24"
    assert notify_channel(name) != notify_channel(name + "y")


def test_a_character_is_not_cut_in_two() -> None:
    assert notify_channel("é" * 40).startswith("é" * 23 + "#")
    assert notify_channel("x" + "é" * 40).startswith("x" + "é" * 22 + "#")
