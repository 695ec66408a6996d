"""The error tree: sorted by who has to act, each class with a stable code.

    WalstreamError
    ├── ClientError          the client broke the protocol: answer it, or close its socket
    │   ├── ProtocolError        a frame that is not what the protocol allows
    │   ├── JoinRefused          a join that cannot be accepted
    │   ├── FilterError          a filter or a column list that does not fit its table
    │   ├── InputError           an argument that cannot be used: no JSON, no time, too long
    │   └── TokenError           a token or key that does not verify
    ├── ConfigError          the operator's configuration is wrong: refuse to start
    ├── EnvironmentFailure   PostgreSQL or the network: retry or tell the operator
    │   ├── DatabaseUnreachable   no connection to be had, or it was lost
    │   │   └── DatabaseSilent        no answer came in time
    │   ├── DatabaseRefused       the server answered with an error that needs a repair
    │   ├── OutOfMemory           a row of the stream is more than this process may have
    │   ├── NotFound              the named table, slot, subscription, channel … does not exist
    │   └── Conflict              what is there stands against it: a name is taken, a channel full
    ├── DecodeError          the output plugin sent something that is no valid record
    ├── BusError             a message between nodes is none of theirs: ignore it
    └── Invariant            our own bug: crash and be restarted

Drivers' errors stay in ``__cause__``; they are translated in one place, ``walstream.shell.database.postgres``.
"""

from __future__ import annotations

from typing import ClassVar


class WalstreamError(Exception):
    """Base of every error that walstream raises on purpose.

    ``code``: stable snake_case name for logs, JSON and documentation. ``retry``: whether trying
    again later can help. ``repair``: what the reader of the message should do, or "".
    """

    code: ClassVar[str] = "walstream_error"
    retry: ClassVar[bool] = False

    def __init__(self, message: str, *, repair: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.repair = repair

    def __str__(self) -> str:
        return f"{self.message} ({self.repair})" if self.repair else self.message


class ClientError(WalstreamError):
    """The client broke a rule; its connection or request ends, nobody else notices."""

    code = "client_error"


class ProtocolError(ClientError):
    """A frame is not valid in the wire protocol."""

    code = "protocol_error"


class JoinRefused(ClientError):
    """A join cannot be accepted; ``reason`` is the text for the client (``Code: text``)."""

    code = "join_refused"

    def __init__(self, reason: str, *, repair: str = "") -> None:
        super().__init__(reason, repair=repair)
        self.reason = reason


class FilterError(ClientError):
    """A filter or column list is malformed or does not fit the table's columns."""

    code = "filter_error"


class InputError(ClientError):
    """An argument is not what it should be: no JSON, no point in time, too long, out of range."""

    code = "input_error"


class TokenError(ClientError):
    """A token does not verify. ``name``: Supabase's code for it, such as ``InvalidJWTToken``."""

    code = "token_error"

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name
        self.text = text


class ConfigError(WalstreamError):
    """Configuration that cannot work; the message names the key."""

    code = "config_error"


class EnvironmentFailure(WalstreamError):
    """Something outside the process failed."""

    code = "environment_failure"
    retry = True


class DatabaseUnreachable(EnvironmentFailure):
    """No connection to PostgreSQL, or the connection was lost."""

    code = "database_unreachable"


class DatabaseSilent(DatabaseUnreachable):
    """PostgreSQL did not answer in time: it is slow, or something between us has lost the connection."""

    code = "database_silent"


class DatabaseRefused(EnvironmentFailure):
    """PostgreSQL refused a statement. ``sqlstate``: five characters, "" if the server sent none.

    ``reason``: a stable snake_case name of the cause where one is known (``slot_active``,
    ``plugin_refused``, ``plugin_missing`` …), else "".
    """

    code = "database_refused"

    def __init__(self, message: str, *, sqlstate: str = "", reason: str = "", repair: str = "") -> None:
        super().__init__(message, repair=repair)
        self.sqlstate = sqlstate
        self.reason = reason


class OutOfMemory(EnvironmentFailure):
    """A row of the stream does not fit into what memory this process may have."""

    code = "out_of_memory"
    retry = False  # at once: reading it costs the server as much as us

    def __init__(self) -> None:
        super().__init__(
            "there is not enough memory for a row of the stream",
            repair="give walstream four times the text of the largest row; or leave its table out"
            " (WALSTREAM_FILTER_TABLES=schema.table, for wal2json)",
        )


class NotFound(EnvironmentFailure):
    """The named object does not exist."""

    code = "not_found"
    retry = False


class Conflict(EnvironmentFailure):
    """What is there already stands against it: a name is taken, a channel is full."""

    code = "conflict"
    retry = False


class DecodeError(WalstreamError):
    """A WAL record that the decoder cannot understand. ``payload``: its first bytes, for the log."""

    code = "decode_error"

    def __init__(self, message: str, payload: bytes = b"") -> None:
        super().__init__(message)
        self.payload = payload[:200]


class BusError(WalstreamError):
    """A message that came as if from another node and is not to be heeded.

    ``reason``: ``malformed``, ``forged``, ``late``, ``replayed``, ``missing`` (what it refers to) or ``crowded``.
    """

    code = "bus_error"

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Invariant(WalstreamError):
    """A state that our own code promised could not occur."""

    code = "invariant"
