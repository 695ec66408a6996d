"""``walstream dev``: a private PostgreSQL, the schema, a demo table, keys and the daemon, all ended by Ctrl+C.

Finds and orders the parts; the server is ``shell.commands.private_cluster``, the daemon is ``walstream.app``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import jwt
import msgspec

from walstream import config
from walstream.errors import ConfigError, EnvironmentFailure
from walstream.shell.commands import demo, terminal
from walstream.shell.commands.private_cluster import Cluster
from walstream.shell.commands.server_binaries import choose_binaries
from walstream.shell.commands.terminal import Terminal

TOKEN_SECONDS = 10 * 365 * 86_400

WELCOME = """\
  console       http://{address}/
  anon          {anon}
  service_role  {service_role}

Try in another terminal:
  {psql} {dsn} -c {statement}
  WALSTREAM_DATABASE_URL={dsn} {walstream} {subcommand}
  curl http://{address}/health

Ctrl+C stops everything that was started here.
"""
INSERT = "insert into public.todos (title) values ('buy milk')"


@click.command("dev")
@click.option("--port", type=click.IntRange(1, 65535), help="Port of the daemon (default 3100).")
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".walstream"),
    show_default=True,
    help="Directory of the server's data and the secret; made if missing, used again by the next start.",
)
@click.option("--demo/--no-demo", "with_demo", default=True, help="Make and subscribe the table public.todos.")
@terminal.options()
def command(shell: Terminal, port: int | None, data: Path, *, with_demo: bool) -> None:
    """Run a private PostgreSQL and the daemon on this machine, to try things.

    With WALSTREAM_DATABASE_URL set, that server gets the schema and the demo table, and is left running at the end.
    """
    from walstream import app

    data = data.absolute()
    given = shell.config
    listen = f"{given.listen.rpartition(':')[0]}:{port}" if port else given.listen
    settings = msgspec.structs.replace(given, listen=listen)
    with _locked(data):
        check_port(settings.host, settings.port)
        secret = given.jwt_secret or kept_secret(data / "secret")
        with _server(data, _own_server(given)) as (dsn, label):
            settings = msgspec.structs.replace(settings, database_url=dsn, jwt_secret=secret)
            demo.prepare(dsn, settings.schema, with_demo=with_demo)
            facts = _facts(settings, kept_since(data / "secret"))
            if shell.format == "json":
                shell.record({**facts, "data": str(data), "server": label})
            else:
                click.echo(f"{label}, data in {data}\n\n{welcome(facts, with_demo=with_demo)}")
            status = app.main(settings)
    sys.exit(status)


def _own_server(given: config.Config) -> str:
    """The server that was asked for. DATABASE_URL is often another project's: it does not count here."""
    by_fallback = not os.environ.get("WALSTREAM_DATABASE_URL") and given.database_url == os.environ.get("DATABASE_URL")
    return "" if by_fallback else given.database_url


@contextlib.contextmanager
def _locked(data: Path) -> Iterator[None]:
    """Hold ``data`` for ourselves; the lock ends with the process, whatever its end."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(data / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise EnvironmentFailure(
            f"cannot use {data}: {error.strerror}", repair="choose another directory with --data"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            raise EnvironmentFailure(
                f"walstream dev already runs over {data} (process {holder})",
                repair="stop it, or choose another directory with --data and another port with --port",
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def kept_secret(path: Path) -> str:
    """The secret of this directory, made at the first start; nobody else may read it."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_text(encoding="ascii").strip()
    secret = secrets.token_urlsafe(48)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(secret + "\n")
    return secret


def kept_since(path: Path) -> int:
    """When the secret was made, in unix seconds: tokens issued then are the same at every start."""
    return int(path.stat().st_mtime if path.exists() else time.time())


@contextlib.contextmanager
def _server(data: Path, database_url: str) -> Iterator[tuple[str, str]]:
    """DSN and description of the server: the given one, else a private one that ends with us."""
    if database_url:
        yield database_url, "the server of WALSTREAM_DATABASE_URL"
        return
    binaries = choose_binaries()
    settings = {"max_slot_wal_keep_size": "4GB"}  # a slot left behind must not fill the disk
    cluster = Cluster(data / "postgres", binaries, settings=settings, socket_dir=data / "run")
    try:
        cluster.start()
        yield cluster.dsn(), binaries.label
    finally:
        # A second Ctrl+C must not leave the server running.
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            cluster.close()
        finally:
            signal.signal(signal.SIGINT, previous)


def _facts(settings: config.Config, issued_at: int) -> dict[str, str]:
    """What a client needs."""
    return {
        "address": settings.listen,
        "anon": _token("anon", settings.jwt_secret, issued_at),
        "service_role": _token("service_role", settings.jwt_secret, issued_at),
        "database_url": settings.database_url,
    }


def welcome(facts: Mapping[str, str], *, with_demo: bool) -> str:
    """What to do next: address, keys and three lines to try."""
    return WELCOME.format(
        **facts,
        psql=_psql(),
        dsn=shlex.quote(facts["database_url"]),
        statement=shlex.quote(INSERT if with_demo else "select pg_catalog.version()"),
        walstream=_own_command(),
        subcommand=f"listen {demo.TABLE}" if with_demo else "doctor",
    )


def _token(role: str, secret: str, issued_at: int) -> str:
    claims = {"iss": "walstream dev", "role": role, "iat": issued_at, "exp": issued_at + TOKEN_SECONDS}
    return jwt.encode(claims, secret, algorithm="HS256")


def _psql() -> str:
    found = shutil.which("psql")
    if found:
        return "psql"
    with contextlib.suppress(EnvironmentFailure):
        return str(choose_binaries().bin_dir / "psql")
    return "psql"


def _own_command() -> str:
    beside = Path(sys.executable).with_name("walstream")
    if shutil.which("walstream"):
        return "walstream"
    return str(beside) if beside.exists() else f"{sys.executable} -m walstream"


def check_port(host: str, port: int) -> None:
    """Raises EnvironmentFailure, naming who has the port, before anything is started."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                holder = port_holder(port)
                raise EnvironmentFailure(
                    f"port {port} is in use{' by ' + holder if holder else ''}",
                    repair="stop it, or choose another with --port",
                ) from error
            raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}", repair="see --port") from error


def port_holder(port: int) -> str:
    """Name and id of the process that listens on ``port``; "" where this system or our rights do not tell."""
    inodes = {f"socket:[{inode}]" for table in ("tcp", "tcp6") for inode in _listening(table, port)}
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(link) in inodes:
                pid = link.parts[2]
                name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
                return f"{name} (process {pid})"
    return ""


def _listening(table: str, port: int) -> list[str]:
    """Inodes of the listening sockets on ``port`` (proc(5), /proc/net/tcp)."""
    try:
        lines = Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return []
    fields = (line.split() for line in lines)
    return [field[9] for field in fields if field[3] == "0A" and int(field[1].rpartition(":")[2], 16) == port]
