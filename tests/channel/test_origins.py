"""Which pages may connect."""

from __future__ import annotations

import pytest

from walstream.channel.origins import Origins
from walstream.errors import ConfigError

SOME = Origins("https://app.example.org, https://*.example.net, http://localhost:5173, null-app://x")


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://app.example.org", True),
        ("HTTPS://App.Example.org", True),
        ("http://app.example.org", False),
        ("https://app.example.org:8443", False),
        ("https://app.example.org.evil.test", False),
        ("https://a.example.net", True),
        ("https://a.b.example.net", True),
        ("https://example.net", False),
        ("https://evilexample.net", False),
        ("http://localhost:5173", True),
        ("http://localhost", False),
        ("null", False),
        ("", False),
        ("https://" + "a" * 1000 + ".example.net", False),
        (None, True),  # no browser
        ("https://node.example.com:3100", True),  # the node's own pages
        ("ftp://node.example.com:3100", False),
    ],
)
def test_a_page_is_allowed_by_name(origin: str | None, allowed: bool) -> None:
    assert SOME.allows(origin, "node.example.com:3100") is allowed


def test_by_default_every_page_may() -> None:
    assert Origins().allows("https://anything.test", None)
    assert Origins().allow_header("https://anything.test", None) == (("access-control-allow-origin", "*"),)
    assert Origins("https://a.test, *").is_any


def test_an_empty_list_leaves_the_nodes_own_pages() -> None:
    for text in ("", " , "):
        assert not Origins(text).allows("https://anything.test", "node:1")
        assert Origins(text).allows("http://node:1", "node:1")


def test_an_answer_names_the_one_page_that_may_read_it() -> None:
    assert dict(SOME.allow_header("https://app.example.org", None)) == {
        "access-control-allow-origin": "https://app.example.org", "vary": "Origin",
    }  # fmt: skip
    for other in (None, "https://evil.test", "https://a\r\nb.example.net", "https://ä.example.net"):
        assert SOME.allow_header(other, None) == (("vary", "Origin"),)


@pytest.mark.parametrize(
    "text", ["app.example.org", "https://", "https://a.test/path", "https://*", "https://a*b.test"]
)
def test_what_is_no_origin_is_an_error_that_names_the_key(text: str) -> None:
    with pytest.raises(ConfigError, match="allowed_origins"):
        Origins(text)
