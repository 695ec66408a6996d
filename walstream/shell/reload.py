"""A new configuration for a daemon that runs: put into force as far as it can be, named where it cannot.

Which part takes what is said by the ``Step`` values that the composition root makes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import structlog

from walstream.config import Config
from walstream.errors import ConfigError
from walstream.telemetry.log import CONFIG_REFUSED, CONFIG_RELOADED, CONFIG_UNRELOADABLE

Commit = Callable[[], object]


class Step(NamedTuple):
    """One part of the daemon that can take new values of ``keys``.

    ``prepare`` may read files and raise ConfigError; it changes nothing, and returns what puts the values into force,
    which must not fail.
    """

    keys: frozenset[str]
    prepare: Callable[[Config], Commit]


class Reload:
    """Steps are taken all or none."""

    def __init__(self, config: Config, steps: Sequence[Step]) -> None:
        self.config = config
        """What is in force: of keys that no step takes, what the daemon was started with."""
        self.load: Callable[[], Config] = lambda: config
        """Reads the configuration anew, which may block; raises ConfigError. By default there is none but the first."""
        self._steps = steps

    def prepare(self) -> tuple[Config, list[Commit]]:
        """Read and check everything; blocks. Raises ConfigError, with nothing changed."""
        wanted = self.load()
        return wanted, [step.prepare(wanted) for step in self._steps]

    def commit(self, prepared: tuple[Config, list[Commit]]) -> None:
        """Put it into force, and say what has changed and what needs a restart."""
        wanted, commits = prepared
        reloadable = frozenset[str]().union(*(step.keys for step in self._steps))
        differing = [key for key in Config.__struct_fields__ if getattr(wanted, key) != getattr(self.config, key)]
        changed = [key for key in differing if key in reloadable]
        left = [key for key in differing if key not in reloadable]
        if "jwt_secret" in changed and not wanted.cluster_secret and "cluster_secret" not in left:
            left.append("cluster_secret")  # which is made of it, and goes on as it was
        self.config = msgspec.structs.replace(self.config, **{key: getattr(wanted, key) for key in changed})
        for commit in commits:
            commit()
        log = structlog.get_logger()
        log.info(CONFIG_RELOADED, changed=changed)
        if left:
            log.warning(
                CONFIG_UNRELOADABLE, keys=left, error=f"needs a restart: {', '.join(left)}",
                repair="restart the daemon for these; until then it goes by their old values",
            )  # fmt: skip


def refused(error: ConfigError) -> None:
    """Say why a new configuration is not taken."""
    structlog.get_logger().error(
        CONFIG_REFUSED, error=error.message, repair=error.repair or "correct it; the daemon goes on with the one it has"
    )
