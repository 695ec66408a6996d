"""``walstream config``: the effective configuration, and whether the daemon could start with it.

Keys and units are in ``walstream.config``.
"""

from __future__ import annotations

from pathlib import Path

import click

from walstream import config
from walstream.config import Config
from walstream.errors import ConfigError
from walstream.shell.commands import terminal
from walstream.shell.commands.terminal import Terminal


@click.group("config")
def command() -> None:
    """Show or check the configuration: file, then environment, then flags; later wins."""


@command.command("show")
@terminal.options(word=True)
def show(shell: Terminal) -> None:
    """Print the effective values; secrets are shown as ***."""
    shell.record(config.redacted(shell.config))


@command.command("check")
@terminal.options(word=True)
def check(shell: Terminal) -> None:
    """Say whether the daemon would take this configuration. Asks no database: that is what doctor does."""
    check_keys(shell.config)
    if shell.format == "json":
        shell.result({"valid": True})
    shell.say("the configuration is valid")


def check_keys(settings: Config) -> None:
    """What the daemon looks at besides the values themselves. Raises ConfigError, naming the key."""
    from walstream.auth.keys import ApiKeys, KeySet  # loads cryptography, which takes its time
    from walstream.channel.address import parse_networks
    from walstream.channel.origins import Origins
    from walstream.shell.clients.tls_files import make_context

    if not settings.database_url:
        raise ConfigError("database_url: no database is configured", repair="set WALSTREAM_DATABASE_URL")
    if not settings.has_keys and not settings.is_loopback:
        raise ConfigError(
            f"listen: {settings.listen} is open to other machines, and no key would be asked for",
            repair="set WALSTREAM_JWT_SECRET, WALSTREAM_JWKS or WALSTREAM_API_KEYS, or listen on 127.0.0.1",
        )
    ApiKeys.parse(settings.api_keys)
    Origins(settings.allowed_origins)
    parse_networks(settings.trusted_proxies)
    if settings.tls_cert:
        make_context(settings.tls_cert, settings.tls_key)
    if settings.jwks and not settings.jwks.startswith(("http://", "https://")):
        try:
            KeySet.parse(Path(settings.jwks).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"jwks: cannot read {settings.jwks}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"jwks: {settings.jwks} is not UTF-8 text") from error
