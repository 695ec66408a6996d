"""What REST routes share: whose a request is, its path as it was written, a bounded body, errors with a repair."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote_to_bytes

import trio
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from walstream.auth.tokens import Claims, Verifier
from walstream.channel.handshake import Rejection, authorize
from walstream.shell.clients.http_app import json_response
from walstream.shell.clients.limits import BODY_SECONDS

PREFIXES: Final = ("", "/realtime/v1")


class BodyTooLarge(Exception):
    """A body has more bytes than its route takes."""


def claims_of(request: Request, verifier: Verifier, clock: Callable[[], float]) -> Claims | Rejection:
    """Whose the request is."""
    return authorize(request.query_params.multi_items(), request.headers.items(), verifier, clock())


def path_parts(request: Request, prefix: str) -> list[str] | None:
    """The parts of the path after ``prefix``, each decoded by itself; None where one is no UTF-8.

    ``prefix`` may stand anywhere: a proxy's mount point or /realtime/v1 may come before it.
    """
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    rest = raw.partition(b"?")[0].partition(prefix.encode())[2]
    try:
        return [unquote_to_bytes(part).decode() for part in rest.split(b"/")]
    except UnicodeDecodeError:
        return None


async def body_of(request: Request, bytes_max: int) -> bytes:
    """The whole body, within ``BODY_SECONDS``.

    Raises BodyTooLarge before it is read, where its length is told, or while it is; HTTPException if it takes too long.
    """
    told = request.headers.get("content-length", "")
    if told.isascii() and told.isdecimal() and int(told[:18]) > bytes_max:
        raise BodyTooLarge
    parts: list[bytes] = []
    size = 0
    try:
        with trio.fail_after(BODY_SECONDS):
            async with contextlib.aclosing(request.stream()) as stream:
                async for part in stream:
                    size += len(part)
                    if size > bytes_max:
                        raise BodyTooLarge
                    parts.append(part)
    except ClientDisconnect:
        return b""
    except trio.TooSlowError as error:
        raise HTTPException(408, f"the body did not come within {BODY_SECONDS:g} seconds") from error
    return b"".join(parts)


def refusal(status: int, error: str, message: str, repair: str = "") -> Response:
    """An error for people and programs: a stable code, what is wrong, and what to do about it."""
    body = {"error": error, "message": message}
    if repair:
        body["repair"] = repair
    return json_response(body, status)
