"""A configuration that is read again: all of it is taken or none, and what cannot be taken is named."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from walstream.app import Daemon
from walstream.config import Config
from walstream.errors import ConfigError, TokenError
from walstream.shell.reload import Commit, Reload, Step

SECRET, OTHER = "a" * 40, "b" * 40
CONFIG = Config(
    database_url="host=/nowhere", jwt_secret=SECRET, allowed_origins="https://a.example", history_wal_bytes=5
)


def changed(**values: Any) -> Config:
    return msgspec.structs.replace(CONFIG, **values)


class Taken:
    """A step that notes what it gets."""

    def __init__(self, *keys: str, refuses: bool = False) -> None:
        self.step = Step(frozenset(keys), self._prepare)
        self.refuses = refuses
        self.got: list[Config] = []

    def _prepare(self, config: Config) -> Commit:
        if self.refuses:
            raise ConfigError("slot: no")
        return lambda: self.got.append(config)


def test_what_has_changed_is_taken_and_the_rest_is_named() -> None:
    taken = Taken("poison", "log_level")
    reload = Reload(CONFIG, [taken.step])
    reload.load = lambda: changed(poison="skip", slot="another", listen="127.0.0.1:1")
    for _ in range(2):
        with capture_logs() as lines:
            reload.commit(reload.prepare())
        assert lines[-1]["keys"] == ["listen", "slot"]
        assert lines[-1]["error"] == "needs a restart: listen, slot"
    assert [config.poison for config in taken.got] == ["skip", "skip"]
    assert (reload.config.poison, reload.config.slot) == ("skip", "walstream")


def test_nothing_is_taken_where_one_part_refuses() -> None:
    taken = Taken("poison")
    reload = Reload(CONFIG, [taken.step, Taken("slot", refuses=True).step])
    reload.load = lambda: changed(poison="skip")
    with pytest.raises(ConfigError):
        reload.prepare()
    assert taken.got == []
    assert reload.config == CONFIG


def daemon(**values: Any) -> Daemon:
    """A daemon that was told of another configuration."""
    made = Daemon(CONFIG)
    made.reload.load = lambda: changed(**values)
    with capture_logs():
        made.reload.commit(made.reload.prepare())
    return made


def test_keys_and_origins_and_limits_change() -> None:
    made = daemon(
        api_keys="k=anon", allowed_origins="https://b.example", max_connections=7, max_joins_per_second=3,
        max_connections_per_user=2, poison="skip", slot_drop_bytes=9, wal_budget_bytes=11,
    )  # fmt: skip
    assert made.verifier.verify("k", 0.0).role == "anon"
    assert [made.origins.allows(f"https://{name}.example", None) for name in "ab"] == [False, True]
    assert made.admission.limits.max_joins_per_second == 3
    assert not isinstance(made.gate.enter("1.1.1.1", "k", "u"), str)
    assert not isinstance(made.gate.enter("1.1.1.1", "k", "u"), str)
    assert made.gate.enter("1.1.1.1", "k", "u") == "user"
    assert made.reader.poison.policy == "skip"
    assert made.watch.gauge.own_bytes == 11
    assert made.reload.config.slot_drop_bytes == 9


def test_a_key_that_is_gone_opens_nothing_any_more() -> None:
    made = daemon(jwt_secret=OTHER)
    with pytest.raises(TokenError):
        made.verifier.verify("k", 0.0)


@pytest.mark.parametrize(
    "values",
    [
        {"allowed_origins": "no origin"},
        {"trusted_proxies": "no address"},
        {"api_keys": "no pair"},
        {"jwt_claims": "no pair"},
        {"database_url": ""},
        {"jwt_secret": "", "jwks": "", "listen": "0.0.0.0:3100"},
    ],
)
def test_what_is_wrong_changes_nothing(values: dict[str, str]) -> None:
    made = Daemon(msgspec.structs.replace(CONFIG, listen=values.get("listen", CONFIG.listen)))
    made.reload.load = lambda: changed(**{"poison": "skip", "api_keys": "k=anon", **values})
    if values.get("listen"):
        made.reload.load = lambda: changed(poison="skip", **values)
    with pytest.raises(ConfigError):
        made.reload.prepare()
    assert made.reader.poison.policy == "stop"
    with pytest.raises(TokenError):
        made.verifier.verify("k", 0.0)


def test_a_secret_that_seals_what_nodes_tell_each_other_needs_a_restart_for_that() -> None:
    reload = Reload(CONFIG, [Taken("jwt_secret").step])
    reload.load = lambda: changed(jwt_secret=OTHER)
    with capture_logs() as lines:
        reload.commit(reload.prepare())
    assert lines[-1]["keys"] == ["cluster_secret"]


def test_connections_that_no_limit_counted_are_not_taken_off_a_count() -> None:
    made = Daemon(CONFIG)
    uncounted = made.gate.enter("1.1.1.1", "", "u")
    made.reload.load = lambda: changed(max_connections_per_user=1)
    with capture_logs():
        made.reload.commit(made.reload.prepare())
    made.gate.enter("1.1.1.1", "", "u")
    assert not isinstance(uncounted, str)
    uncounted.give_back()
    assert made.gate.enter("1.1.1.1", "", "u") == "user"
