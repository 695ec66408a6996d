"""Keys that change and tokens that are revoked while the daemon runs: read again, and put into force.

What keys and revocations mean is ``walstream.auth``; where a key set comes from is ``key_sets``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog
import trio

from walstream.auth.rules import Revocations
from walstream.auth.tokens import Verifier
from walstream.errors import ConfigError
from walstream.shell.clients.key_sets import KeySetSource, read_if_changed
from walstream.telemetry.log import KEYS_CHANGED, KEYS_UNREAD, REVOCATIONS_CHANGED, REVOCATIONS_UNREAD

ASKED_SECONDS: Final = 10.0
"""Least time between two fetches: tokens with keys that nobody knows must not make it more."""

LOAD_SECONDS: Final = 30.0
AGAIN_SECONDS: Final = 30.0
"""Until the next try after one that failed."""

LOOK_SECONDS: Final = 2.0
"""Between looks at the file of revoked tokens."""

REVOKED_BYTES_MAX: Final = 64 * 1024 * 1024

log = structlog.get_logger()


class KeyKeeper:
    """Keeps a verifier's key set as new as its source. While that fails the old keys count."""

    def __init__(self, verifier: Verifier, source: KeySetSource) -> None:
        self._verifier = verifier
        self._source = source
        self._asked = trio.Event()
        self._told = ""
        self.failures = 0
        verifier.on_unknown_key = self.look

    def look(self) -> None:
        """A token names a key that is not known: the set may have changed."""
        self._asked.set()

    async def run(self) -> None:
        """Look for ever."""
        earliest = trio.current_time() + ASKED_SECONDS
        due = trio.current_time() + self._source.fresh_seconds
        while True:
            with trio.move_on_at(due):
                await self._asked.wait()
                await trio.sleep_until(min(earliest, due))
            self._asked = trio.Event()
            seconds = await self._load()
            now = trio.current_time()
            earliest, due = now + ASKED_SECONDS, now + seconds

    async def _load(self) -> float:
        """Returns in how many seconds to look again."""
        try:
            with trio.fail_after(LOAD_SECONDS):
                text = await trio.to_thread.run_sync(self._source.load, abandon_on_cancel=True)
            if text is not None:
                keys = self._verifier.replace_keys(text)
                log.info(KEYS_CHANGED, keys=keys)
        except (ConfigError, trio.TooSlowError) as error:
            self.failures += 1
            message = str(error) or "no answer in time"
            if message != self._told:
                self._told = message
                log.warning(KEYS_UNREAD, error=message, repair="the keys that were read last go on to count")
            return min(AGAIN_SECONDS, self._source.fresh_seconds)
        self._told = ""
        return self._source.fresh_seconds


class RevocationWatch:
    """Follows the file of revoked tokens. ``revoked``: called after the list has changed."""

    def __init__(self, verifier: Verifier, path: Path, revoked: Callable[[], None]) -> None:
        """Raises ConfigError where the file cannot be read: the daemon must not start without its list."""
        self._verifier = verifier
        self._path = path
        self._revoked = revoked
        self._seen: object = None
        self._told = ""
        self._load(self._read())

    def _read(self) -> str | None:
        try:
            if self._path.stat().st_size > REVOKED_BYTES_MAX:
                raise ConfigError(f"revoked: {self._path} is larger than {REVOKED_BYTES_MAX} bytes")
            text, self._seen = read_if_changed(self._path, self._seen)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"revoked: cannot read {self._path}: {error}", repair="WALSTREAM_REVOKED is the path of a text file"
            ) from error
        return text

    def _load(self, text: str | None) -> bool:
        if text is None:
            return False
        self._verifier.revocations = Revocations.parse(text)
        log.info(REVOCATIONS_CHANGED, entries=len(self._verifier.revocations))
        return True

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            try:
                text = await trio.to_thread.run_sync(self._read)
            except ConfigError as error:
                if error.message != self._told:
                    self._told = error.message
                    log.warning(REVOCATIONS_UNREAD, error=error.message, repair="the list that was read last counts")
                continue
            self._told = ""
            if self._load(text):
                self._revoked()
