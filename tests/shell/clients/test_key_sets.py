"""Key sets from files and addresses, and what may be wrong with them."""

from __future__ import annotations

import http.client
import io
import urllib.request
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from walstream.errors import ConfigError
from walstream.shell.clients.key_sets import BYTES_MAX, load_key_set


def test_no_location_means_no_keys() -> None:
    assert load_key_set("") == ""


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text('{"keys":[]}')
    assert load_key_set(str(path)) == '{"keys":[]}'


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "keys.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"keys\.json") as refused:
        load_key_set(str(path))
    assert refused.value.repair


def fetched(answer: Any) -> str:
    with mock.patch.object(urllib.request, "urlopen", side_effect=[answer]):
        return load_key_set("https://example.test/keys")


def test_an_address_is_fetched() -> None:
    assert fetched(io.BytesIO(b'{"keys":[]}')) == '{"keys":[]}'


def test_an_answer_that_is_too_large_is_refused() -> None:
    assert len(fetched(io.BytesIO(b"x" * BYTES_MAX))) == BYTES_MAX
    with pytest.raises(ConfigError, match="larger than"):
        fetched(io.BytesIO(b"x" * (BYTES_MAX + 1)))


@pytest.mark.parametrize(
    "error",
    [OSError("refused"), TimeoutError(), http.client.BadStatusLine("?"), http.client.InvalidURL("?"), ValueError("?")],
)
def test_an_address_that_does_not_answer_is_told(error: Exception) -> None:
    with pytest.raises(ConfigError, match=r"example\.test"):
        fetched(error)


@pytest.mark.parametrize("address", ["http://[nonsense/keys", "http://", "https://a b/"])
def test_an_address_that_is_none_is_told(address: str) -> None:
    with pytest.raises(ConfigError):
        load_key_set(address)
