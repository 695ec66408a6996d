"""``walstream token``: a signed token, for clients and for trying things.

Verifying is done in ``walstream.auth.tokens``.
"""

from __future__ import annotations

import re
import time

import click
import msgspec

from walstream import config
from walstream.errors import ConfigError
from walstream.shell.commands import terminal
from walstream.shell.commands.terminal import Terminal

_CLAIM = re.compile(r"([^:=]+)(:?=)(.*)", re.DOTALL)
SECONDS_MAX = 100 * 365 * 86_400
_OWN = frozenset({"role", "sub", "iat", "exp"})


def _claims(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, object]:
    """``name=text``, or ``name:=json`` for what is no text."""
    claims: dict[str, object] = {}
    for value in values:
        match = _CLAIM.fullmatch(value)
        if match is None:
            raise click.BadParameter(f"{value!r} is not name=text or name:=json", ctx, param)
        name, sign, text = match.groups()
        if name in _OWN:
            raise click.BadParameter(f"{name} has an option of its own, or is set by the clock", ctx, param)
        try:
            claims[name] = text if sign == "=" else msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            hint = f"{name}: {text!r} is not JSON (write {name}={text} for text)"
            raise click.BadParameter(hint, ctx, param) from error
    return claims


def _seconds(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """A duration such as ``1h`` or ``30d``, in whole seconds."""
    try:
        seconds = config.parse_seconds("expires", value)
    except ConfigError as error:
        raise click.BadParameter(str(error), ctx, param) from error
    if not 1 <= seconds <= SECONDS_MAX:
        raise click.BadParameter("a token is good for 1 s to 100 years", ctx, param)
    return int(seconds)


@click.command("token")
@click.option("--role", default="anon", show_default=True, help="Database role that the token acts as.")
@click.option("--sub", help="Who it is: the claim sub, and the key of presence.")
@click.option(
    "--expires",
    "seconds",
    callback=_seconds,
    default="1h",
    show_default=True,
    help="How long it is good: 90s, 1h, 365d.",
)
@click.option(
    "--claim", "claims", callback=_claims, multiple=True, help="A further claim: k=text, or k:=json. Repeatable."
)
@terminal.options()
def command(shell: Terminal, role: str, sub: str | None, seconds: int, claims: dict[str, object]) -> None:
    """Make a token that clients can use, signed with WALSTREAM_JWT_SECRET (HS256).

    The token alone is printed on stdout. Whoever has the secret can make any: this asks no database.
    """
    from walstream.auth import tokens  # loads cryptography, which takes its time

    secret = shell.config.jwt_secret
    if not secret:
        raise ConfigError("jwt_secret: there is no secret to sign with", repair="set WALSTREAM_JWT_SECRET")
    if not role:
        raise click.BadParameter("a token needs a role", param_hint="--role")
    now = int(time.time())
    payload: dict[str, object] = {"role": role, **({"sub": sub} if sub is not None else {}), **claims}
    payload |= {"iat": now, "exp": now + seconds}
    token = tokens.mint(secret, payload)
    if shell.format == "table":
        shell.result(token)
    else:
        shell.record({"token": token, "claims": payload})
