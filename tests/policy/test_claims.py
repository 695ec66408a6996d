"""Claims become the settings that policies read, and a document in which numbers stay as they were written."""

from __future__ import annotations

import pytest

from walstream.policy import Viewer
from walstream.policy.claims import Number, parse, session_settings


def test_settings_of_a_viewer() -> None:
    claims = '{"sub": "é", "role": "other"}'
    assert session_settings(Viewer("anon", claims)) == {
        "role": "anon", "request.jwt.claims": claims, "request.jwt.claim.sub": "é", "request.jwt.claim.role": "anon"
    }  # fmt: skip


@pytest.mark.parametrize(
    "claims", ["", "{", "[]", "{}", '{"sub": 1}', '{"sub": null}', '{"sub": "a\\u0000"}', '{"sub": "\\ud800"}']
)
def test_a_sub_that_is_no_text_is_no_setting(claims: str) -> None:
    assert session_settings(Viewer("anon", claims))["request.jwt.claim.sub"] == ""


def test_numbers_stay_as_they_were_written() -> None:
    assert parse('{"a": [1.50, -0, 1e5, true, null]}') == {
        "a": [Number("1.50"), Number("-0"), Number("1e5"), True, None]
    }


@pytest.mark.parametrize(
    "text", ["", "NaN", "[1,]", "{'a': 1}", '"\n"', "[" * 100_000, '{"a": 1, "a": 1}', '[{"a": {}, "b": 1, "a": 2}]']
)
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse(text)
