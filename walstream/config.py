"""One frozen configuration, built once from a TOML file, the environment and flags; later wins.

Nothing else in the package reads the environment. Core objects get limits, never this.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import msgspec

from walstream.auth.rules import parse_required
from walstream.errors import ConfigError

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

_BYTES = re.compile(r"(\d+)\s*(|B|KB|KiB|MB|MiB|GB|GiB)")
_BYTE_UNITS = {
    "": 1, "B": 1, "KB": 1000, "KiB": KIB, "MB": 1000**2, "MiB": MIB, "GB": 1000**3, "GiB": GIB,
}  # fmt: skip
_SECONDS = re.compile(r"(\d+(?:\.\d+)?)\s*(|ms|s|min|h|d)")
_SECOND_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_SECRETS = frozenset({"database_url", "jwt_secret", "api_keys", "cluster_secret", "metrics_token"})
_PASSWORD = re.compile(r"(?<=:)[^:@/]+(?=@)|(?<=password=)('(?:[^'\\]|\\.)*'|[^\s&]+)")

BYTE_KEYS = frozenset(
    {
        "history_bytes", "history_wal_bytes", "outbox_bytes", "max_record_bytes", "max_frame_bytes",
        "max_message_bytes", "wal_budget_bytes", "slot_drop_bytes",
    }
)  # fmt: skip
SECOND_KEYS = frozenset(
    {
        "history_seconds", "heartbeat_seconds", "idle_seconds", "ping_seconds", "drain_seconds", "head_seconds",
        "presence_window_seconds", "snapshot_seconds",
    }
)  # fmt: skip


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every key with its unit and default. The environment's name of a key is ``WALSTREAM_`` + its upper case."""

    database_url: str = ""  # libpq URL or DSN; DATABASE_URL is the fallback
    listen: str = "127.0.0.1:3100"  # host:port; an IPv6 host in brackets
    schema: str = "realtime"  # the schema of walstream's own tables
    slot: str = "walstream"  # logical replication slot of this node
    decoder: Literal["auto", "wal2json", "pgoutput"] = "auto"
    publication: str = ""  # also capture the tables of this publication
    poison: Literal["stop", "skip"] = "stop"  # what to do about a message that cannot be read
    filter_tables: str = ""  # wal2json's own filter-tables list, for a table that poisons the stream
    jwt_secret: str = ""  # HS256/384/512
    jwks: str = ""  # path or URL of a key set
    api_keys: str = ""  # key=role,key=role
    jwt_claims: str = ""  # claim=value,claim=value that every token must have
    revoked: str = ""  # path of a list of revoked tokens
    loose_deletes: bool = False  # deleted rows' keys reach whoever may read the table, whatever its policies say
    private_only: bool = False  # nobody joins, or sends to, a public room
    cluster_secret: str = ""  # seals what nodes tell each other
    allowed_origins: str = "*"  # pages that browsers may connect from, or * for all
    trusted_proxies: str = ""  # addresses and networks whose X-Forwarded-For is believed
    metrics_token: str = ""  # asked for by /metrics and /health
    tls_cert: str = ""  # PEM file: the certificate and those that lead to its authority
    tls_key: str = ""  # PEM file of its private key
    history_bytes: int = 64 * MIB  # recent changes kept in memory
    history_seconds: float = 300.0
    history_wal_bytes: int = 128 * MIB  # WAL the slot keeps back for the history
    wal_budget_bytes: int = 10 * GIB  # WAL the slot may keep back before it is an alarm, where the server has no limit
    slot_drop_bytes: int = 0  # WAL kept back at which the daemon gives its slot up; 0 = never
    heartbeat_seconds: float = 10.0
    snapshot_seconds: float = 60.0  # for a join's initial rows, from their moment on
    snapshot_rows: int = 1000  # of one page, at most
    max_snapshots: int = 4  # under way at once, per node
    max_connections: int = 10_000  # per node
    max_channels_per_connection: int = 100
    max_connections_per_address: int = 0  # 0 = off, as with all of these
    max_connections_per_key: int = 0
    max_connections_per_user: int = 0
    max_connects_per_second_per_address: int = 0
    max_joins_per_second: int = 50  # per connection; 0 = off
    max_joins_per_second_per_node: int = 0
    max_messages_per_second: int = 200  # per connection, client to server; 0 = off
    max_presence_calls: int = 100  # per channel of a connection and presence_window_seconds; 0 = off
    presence_window_seconds: float = 30.0
    max_requests_per_second_per_key: int = 1000  # REST
    max_requests_per_second_per_address: int = 0
    max_frame_bytes: int = 5_000_000  # of one client frame
    max_record_bytes: int = 1 * MIB  # of one row; a larger one gives the 413 event
    max_message_bytes: int = 1 * MIB  # of a broadcast's payload, and of a presence meta
    outbox_bytes: int = 8 * MIB  # unsent bytes per socket
    ping_seconds: float = 25.0
    idle_seconds: float = 60.0  # without any inbound frame
    head_seconds: float = 5.0  # for a whole request head
    drain_seconds: float = 10.0  # from SIGTERM to exit
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["", "json", "console"] = ""  # "" = console on a terminal, else json

    @property
    def host(self) -> str:
        """Host part of ``listen``, without brackets."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Port part of ``listen``; 0 lets the system choose."""
        return int(self.listen.rpartition(":")[2])

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the listener."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")

    @property
    def has_keys(self) -> bool:
        """Whether any token or key could verify."""
        return bool(self.jwt_secret or self.jwks or self.api_keys)


def parse_bytes(key: str, value: object) -> int:
    """An integer, or text such as ``64MiB``. Raises ConfigError."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _BYTES.fullmatch(str(value).strip()) if isinstance(value, str) else None
    if match is None:
        raise ConfigError(f"{key}: not a size: {value!r}", repair="write bytes, or a number with KiB, MiB or GiB")
    return int(match[1]) * _BYTE_UNITS[match[2]]


def parse_seconds(key: str, value: object) -> float:
    """A number of seconds, or text such as ``5min``. Raises ConfigError."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return float(value)
    match = _SECONDS.fullmatch(str(value).strip()) if isinstance(value, str) else None
    if match is None:
        raise ConfigError(
            f"{key}: not a duration: {value!r}", repair="write seconds, or a number with ms, s, min, h or d"
        )
    return float(match[1]) * _SECOND_UNITS[match[2]]


def load(
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> Config:
    """Build the configuration. ``flags``: keys to values, None for a flag that was not given.

    Raises ConfigError, naming the key, for an unknown key, a wrong unit or an impossible pair.
    """
    environ = environ if environ is not None else {}
    path = file or (Path(environ["WALSTREAM_CONFIG"]) if environ.get("WALSTREAM_CONFIG") else None)
    values: dict[str, object] = _from_file(path) if path else {}
    values |= _from_environment(environ)
    values |= {key: value for key, value in (flags or {}).items() if value is not None}
    if not values.get("database_url") and environ.get("DATABASE_URL"):
        values["database_url"] = environ["DATABASE_URL"]
    return _build(values)


def _from_file(path: Path) -> dict[str, object]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    unknown = sorted(set(values) - set(Config.__struct_fields__))
    if unknown:
        raise ConfigError(f"{path}: unknown key {unknown[0]!r}", repair=_nearest(unknown[0]))
    return values


def _from_environment(environ: Mapping[str, str]) -> dict[str, object]:
    values: dict[str, object] = {}
    for name, text in environ.items():
        if not name.startswith("WALSTREAM_") or name in ("WALSTREAM_CONFIG",):
            continue
        key = name.removeprefix("WALSTREAM_").lower()
        if key not in Config.__struct_fields__:
            raise ConfigError(f"{name}: unknown key", repair=_nearest(key))
        values[key] = text
    return values


def _nearest(key: str) -> str:
    import difflib

    near = difflib.get_close_matches(key, Config.__struct_fields__, n=1)
    return f"did you mean {near[0]!r}?" if near else "see docs/reference/config.md"


def _build(values: dict[str, object]) -> Config:
    converted: dict[str, Any] = {}
    for key, value in values.items():
        if key in BYTE_KEYS:
            converted[key] = parse_bytes(key, value)
        elif key in SECOND_KEYS:
            converted[key] = parse_seconds(key, value)
        else:
            converted[key] = value
    for key, value in converted.items():
        try:
            msgspec.convert({key: value}, Config, strict=False)
        except msgspec.ValidationError as error:
            shown = "***" if key in _SECRETS else repr(value)
            raise ConfigError(f"{key}: {shown}: {str(error).partition(' - ')[0]}") from error
    config = msgspec.convert(converted, Config, strict=False)
    _check(config)
    return config


def _check(config: Config) -> None:
    host, _, port = config.listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"listen: {config.listen!r} is not host:port")
    if not re.fullmatch(r"[a-z0-9_]{1,63}", config.slot):
        raise ConfigError(f"slot: {config.slot!r}", repair="1 to 63 of a-z, 0-9 and _ (PostgreSQL's rule)")
    if config.max_record_bytes > config.outbox_bytes:
        raise ConfigError(
            "max_record_bytes: a row of this size never fits into outbox_bytes", repair="raise outbox_bytes"
        )
    if config.max_message_bytes > config.outbox_bytes:
        raise ConfigError(
            "max_message_bytes: a message of this size never fits into outbox_bytes", repair="raise outbox_bytes"
        )
    _check_numbers(config)
    if config.ping_seconds >= config.idle_seconds:
        raise ConfigError(
            "ping_seconds: must be less than idle_seconds, or a quiet client is closed before it is asked"
        )
    if bool(config.tls_cert) != bool(config.tls_key):
        raise ConfigError("tls_cert and tls_key: one without the other", repair="set both, or neither for plain HTTP")
    parse_required(config.jwt_claims)
    for pair in filter(None, config.api_keys.split(",")):
        if "=" not in pair or not pair.partition("=")[2].strip():
            raise ConfigError("api_keys: an entry is not key=role")


def _check_numbers(config: Config) -> None:
    for key in Config.__struct_fields__:
        if key.startswith("max_") and getattr(config, key) < 0:
            raise ConfigError(f"{key}: must not be negative; 0 turns the limit off")
    for key in ("max_connections", "max_channels_per_connection", "max_snapshots", "snapshot_rows"):
        if getattr(config, key) < 1:
            raise ConfigError(f"{key}: must be at least 1")
    for key in sorted(SECOND_KEYS - {"history_seconds"}):
        if getattr(config, key) <= 0:
            raise ConfigError(f"{key}: must be more than 0")


def redacted(config: Config) -> dict[str, object]:
    """The effective values with every secret as ``***``; a database URL keeps all but its password."""
    shown: dict[str, object] = msgspec.to_builtins(config)
    for key in _SECRETS:
        if shown[key]:
            shown[key] = redact_dsn(str(shown[key])) if key == "database_url" else "***"
    return shown


def redact_dsn(dsn: str) -> str:
    """A libpq URL or DSN without its password."""
    return _PASSWORD.sub("***", dsn)


def secrets_of(config: Config) -> frozenset[str]:
    """Every value that must not be shown: keys, tokens, secrets, and the database's password as libpq may quote it."""
    keys = {pair.rpartition("=")[0].strip() for pair in config.api_keys.split(",")}
    named = {getattr(config, key) for key in _SECRETS}
    return frozenset(filter(None, {*named, *keys, *passwords_of(config.database_url)}))


def passwords_of(dsn: str) -> frozenset[str]:
    """The passwords in a libpq URL or DSN, whole and in the pieces that a malformed one is taken for."""
    found = {match[0].strip("'") for match in _PASSWORD.finditer(dsn)}
    authority = re.match(r"(?:[a-z]+:)?//[^:@/]*:(.*)@", dsn, re.DOTALL)
    found |= {authority[1]} if authority else set()
    found |= {piece for password in found for piece in re.split(r"[@:/]", password)}
    return frozenset(filter(None, found | {unquote(password) for password in found}))
