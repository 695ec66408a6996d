"""Key sets from files and addresses: what may be wrong with them, and when they are asked for again."""

from __future__ import annotations

import email.message
import http.client
import io
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from walstream.errors import ConfigError
from walstream.shell.clients import key_sets
from walstream.shell.clients.key_sets import (
    BYTES_MAX,
    FILE_SECONDS,
    FRESH_SECONDS,
    FRESH_SECONDS_MAX,
    FRESH_SECONDS_MIN,
    KeySetSource,
)

ADDRESS = "https://example.test/keys"


class Answer(io.BytesIO):
    def __init__(self, body: bytes, **headers: str) -> None:
        super().__init__(body)
        self.headers = email.message.Message()
        for name, value in headers.items():
            self.headers[name.replace("_", "-")] = value


def test_a_file_is_read_and_read_again_when_it_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text('{"keys":[]}')
    source = KeySetSource(str(path))
    assert (source.load(), source.load()) == ('{"keys":[]}', None)
    other = tmp_path / "other.json"
    other.write_text('{"keys":[1]}')
    other.replace(path)
    assert (source.load(), source.load()) == ('{"keys":[1]}', None)
    assert source.fresh_seconds == FILE_SECONDS


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "keys.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"keys\.json") as refused:
        KeySetSource(str(path)).load()
    assert refused.value.repair


def fetched(*answers: Any, source: KeySetSource | None = None) -> tuple[list[str | None], list[urllib.request.Request]]:
    source = source or KeySetSource(ADDRESS)
    with mock.patch.object(key_sets, "_open", side_effect=answers) as opened:
        texts = [source.load() for _ in answers]
    return texts, [call.args[0] for call in opened.call_args_list]


def test_an_address_is_fetched() -> None:
    assert fetched(Answer(b'{"keys":[]}'))[0] == ['{"keys":[]}']


def test_an_address_is_asked_for_what_is_new() -> None:
    not_modified = urllib.error.HTTPError(ADDRESS, 304, "Not Modified", email.message.Message(), None)
    texts, requests = fetched(
        Answer(b"1", ETag='"a"'), not_modified, Answer(b"2", ETag='"b"'), Answer(b"3"), Answer(b"4")
    )
    assert texts == ["1", None, "2", "3", "4"]
    assert [request.get_header("If-none-match") for request in requests] == [None, '"a"', '"a"', '"b"', None]


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("", FRESH_SECONDS),
        ("no-cache", FRESH_SECONDS),
        ("public, max-age=600", 600),
        ("max-age=0", FRESH_SECONDS_MIN),
        ("Max-Age=999999999", FRESH_SECONDS_MAX),
        ("max-age=never", FRESH_SECONDS),
    ],
)
def test_how_long_an_answer_counts(said: str, seconds: float) -> None:
    source = KeySetSource(ADDRESS)
    fetched(Answer(b"1", Cache_Control=said), source=source)
    assert source.fresh_seconds == seconds


def test_an_answer_that_is_too_large_is_refused() -> None:
    assert len(fetched(Answer(b"x" * BYTES_MAX))[0][0] or "") == BYTES_MAX
    with pytest.raises(ConfigError, match="larger than"):
        fetched(Answer(b"x" * (BYTES_MAX + 1)))


@pytest.mark.parametrize(
    "error",
    [
        OSError("refused"), TimeoutError(), http.client.BadStatusLine("?"), http.client.InvalidURL("?"),
        ValueError("?"), urllib.error.HTTPError(ADDRESS, 500, "?", email.message.Message(), None),
    ],
)  # fmt: skip
def test_an_address_that_does_not_answer_is_told(error: Exception) -> None:
    with pytest.raises(ConfigError, match=r"example\.test"):
        fetched(error)


@pytest.mark.parametrize("address", ["http://[nonsense/keys", "http://", "https://a b/"])
def test_an_address_that_is_none_is_told(address: str) -> None:
    with pytest.raises(ConfigError):
        KeySetSource(address).load()


@pytest.mark.parametrize(
    ("source", "target", "follows"),
    [
        ("https://a.test/", "https://b.test/", True),
        ("http://a.test/", "https://b.test/", True),
        ("http://a.test/", "http://b.test/", True),
        ("https://a.test/", "http://b.test/", False),
        ("http://a.test/", "ftp://b.test/", False),
    ],
)
def test_no_redirect_leads_out_of_https(source: str, target: str, follows: bool) -> None:
    handler, request = key_sets._SameSafety(), urllib.request.Request(source)
    headers = email.message.Message()
    if follows:
        assert handler.redirect_request(request, None, 302, "Found", headers, target) is not None
    else:
        with pytest.raises(ValueError, match="less safe"):
            handler.redirect_request(request, None, 302, "Found", headers, target)
