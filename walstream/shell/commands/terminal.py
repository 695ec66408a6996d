"""What every command of the command line shares: configuration, output in three formats, errors and exit codes.

Commands are in ``walstream.cli``, one file each; nothing here knows any of them.
"""

from __future__ import annotations

import contextlib
import csv
import datetime as dt
import functools
import io
import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import click
import msgspec

from walstream import config as configuration
from walstream.errors import (
    ConfigError,
    DatabaseRefused,
    DatabaseUnreachable,
    FilterError,
    InputError,
    NotFound,
    TokenError,
    WalstreamError,
)

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812 - a class, told from values

Format: TypeAlias = Literal["json", "table", "csv"]
FORMATS: tuple[Format, ...] = ("json", "table", "csv")
EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_NOT_FOUND, EXIT_NOT_PERMITTED, EXIT_UNREACHABLE = range(6)

_META = "walstream.terminal"
_NOT_PERMITTED = frozenset({"42501", "28000", "28P01"})
_SHOWN_FLAGS = {
    "database_url": "libpq URL or DSN of the database.",
    "schema": "Schema of walstream's own tables.",
    "slot": "Replication slot of this node.",
}
_STEERING = re.compile("[\0-\t\v-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_encode = msgspec.json.Encoder(enc_hook=str, order=None).encode
_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


class Terminal:
    """One invocation: where its configuration comes from and how it prints."""

    def __init__(
        self, chosen: Format | None = None, file: Path | None = None, flags: Mapping[str, object] | None = None
    ) -> None:
        self.format: Format = chosen or "table"
        self._file = file
        self._flags = dict(flags or {})

    @functools.cached_property
    def config(self) -> configuration.Config:
        """The effective configuration. Raises ConfigError."""
        return self.load()

    def load(self) -> configuration.Config:
        """The configuration as it is now: the file may have changed. Raises ConfigError."""
        return configuration.load(self._file, os.environ, self._flags)

    @property
    def dsn(self) -> str:
        """Raises ConfigError where no database is configured."""
        if not self.config.database_url:
            raise ConfigError("database_url: no database is configured", repair="set WALSTREAM_DATABASE_URL")
        return self.config.database_url

    @contextlib.contextmanager
    def database(self, *, search_path: str | None = "") -> Iterator[Connection]:
        """A connection in autocommit for one block. Raises DatabaseUnreachable or DatabaseRefused."""
        from walstream.shell.commands import interrupts
        from walstream.shell.database import postgres  # the driver is slow to load and not every command needs it

        dsn = self.dsn
        with contextlib.ExitStack() as stack:
            with interrupts.at_once():
                connection = stack.enter_context(postgres.connection(dsn, "walstream cli", search_path=search_path))
            stack.enter_context(interrupts.of_statements())
            yield connection

    def say(self, text: str) -> None:
        """A message for the person, on stderr."""
        click.echo(visible(text), err=True)

    def result(self, value: object, text: str | None = None) -> None:
        """The command's one result: ``value`` in JSON, else ``text`` alone on stdout."""
        click.echo(self._json(value) if self.format == "json" else str(value if text is None else text))

    def done(self, alone: object, values: Mapping[str, object]) -> None:
        """What a command has made or changed: ``alone``, an id or a number, on stdout, or with a format all of it."""
        if self.format == "table":
            click.echo(shown(alone))
        else:
            self.record(values)

    def record(self, values: Mapping[str, object]) -> None:
        """One row: an object in JSON, a line in CSV, else one ``name  value`` line for each field."""
        if self.format == "json":
            click.echo(self._json(values))
        elif self.format == "csv":
            self.rows([values], list(values))
        else:
            width = max(map(len, values), default=0)
            for name, value in values.items():
                click.echo(f"{name:<{width}}  {visible(shown(value))}".rstrip())

    def one(self, values: Mapping[str, object], columns: Sequence[str]) -> None:
        """One row of numbers under its header, as the documentation shows statistics; in JSON an object."""
        if self.format == "json":
            click.echo(self._json({column: values.get(column) for column in columns}))
        else:
            self.rows([values], columns)

    def rows(self, rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> None:
        """A list of rows. Piped tables have a header and no decoration."""
        if self.format == "json":
            click.echo(self._json([{column: row.get(column) for column in columns} for row in rows]))
            return
        cells = [[shown(row.get(column)) for column in columns] for row in rows]
        if self.format == "csv":
            click.echo("".join(map(_csv_line, [list(columns), *cells])), nl=False)
        elif sys.stdout.isatty():
            _print_rich(columns, cells)
        else:
            click.echo("\n".join(aligned([list(columns), *cells])))

    def lines(self, rows: Sequence[Mapping[str, object]], columns: Sequence[str], *, width: int = 0) -> None:
        """Rows of a list that does not end, written out at once: JSON objects, CSV or cells, one a line, no header.

        ``width``: of a cell, or more where the column's name is longer; 0: as long as it is.
        """
        for row in rows:
            cells = [shown(row.get(column)) for column in columns]
            if self.format == "json":
                text = _encode({column: row.get(column) for column in columns}).decode() + "\n"
            elif self.format == "csv":
                text = _csv_line(cells)
            else:
                text = aligned([cells], [max(len(column), width) for column in columns] if width else [])[0] + "\n"
            click.echo(text, nl=False)
        sys.stdout.flush()

    @contextlib.contextmanager
    def endless(self) -> Iterator[Callable[[float], None]]:
        """For a block that prints until Ctrl+C, or until nobody reads the output; both are a good end.

        It gets a function that waits so many seconds, and ends the block at once where the reader has gone.
        """
        try:
            yield _wait_while_read
        except KeyboardInterrupt:
            pass
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to be flushed to him

    def stream(self, pages: Iterable[Sequence[Mapping[str, object]]], columns: Sequence[str]) -> None:
        """Rows that may be more than memory holds, page by page. A table's columns are as wide as its first page's."""
        if self.format == "json":
            before = "["
            for page in pages:
                for row in page:
                    click.echo(before + _encode({column: row.get(column) for column in columns}).decode(), nl=False)
                    before = ",\n "
            click.echo("[]" if before == "[" else "]")
            return
        widths: list[int] = []
        for page in pages:
            lines = [[shown(row.get(column)) for column in columns] for row in page]
            if self.format == "csv":
                text = "".join(map(_csv_line, lines if widths else [list(columns), *lines]))
            else:
                text = "".join(f"{line}\n" for line in aligned(lines if widths else [list(columns), *lines], widths))
            widths = widths or [0]
            click.echo(text, nl=False)
        if not widths:
            self.rows([], columns)

    def confirm(self, question: str, *, force: bool, flag: str = "--force") -> None:
        """Ask on a terminal; elsewhere ``flag`` is needed. Raises click.Abort or click.UsageError."""
        if force:
            return
        if not sys.stdin.isatty():
            raise click.UsageError(f"{question} Say yes with {flag}.")
        click.confirm(question, abort=True, err=True)

    def error(self, error: WalstreamError) -> None:
        """An error on stderr: its code, the cause, and on a line of its own what to do."""
        if self.format == "json":
            details = {"code": error.code, "message": error.message, "repair": repair_of(error)}
            if isinstance(error, DatabaseRefused):
                details |= {"reason": error.reason, "sqlstate": error.sqlstate}
            self.say(self._json({"error": details}))
            return
        message = " ".join(line.strip() for line in error.message.splitlines())  # libpq's have several lines
        self.say(f"error: {message} [{_name(error)}]")
        if repair := repair_of(error):
            self.say(f"repair: {repair}")

    def _json(self, value: object) -> str:
        text = _encode(value)
        return (msgspec.json.format(text, indent=2) if sys.stdout.isatty() else text).decode()


def _wait_while_read(seconds: float) -> None:
    """A pipe tells by POLLERR that its other end was closed; who has nothing to write would never find out."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        time.sleep(seconds)
        return
    poll = select.poll()
    poll.register(descriptor, 0)
    began = time.monotonic()
    if any(event & select.POLLERR for _, event in poll.poll(seconds * 1000)):
        raise BrokenPipeError
    time.sleep(max(0.0, began + seconds - time.monotonic()))  # a hang-up of a terminal wakes it, too


def exit_code(error: WalstreamError) -> int:
    """What the process ends with for an error."""
    match error:
        case ConfigError() | FilterError() | InputError():
            return EXIT_USAGE
        case NotFound():
            return EXIT_NOT_FOUND
        case TokenError():
            return EXIT_NOT_PERMITTED
        case DatabaseUnreachable():
            return EXIT_UNREACHABLE
        case DatabaseRefused() if error.sqlstate in _NOT_PERMITTED:
            return EXIT_NOT_PERMITTED
        case _:
            return EXIT_FAILED


def repair_of(error: WalstreamError) -> str:
    """What to do about an error: its own repair, else what helps against most of its class."""
    if error.repair:
        return error.repair
    match error:
        case DatabaseUnreachable():
            return (
                "see that PostgreSQL runs there and answers: check WALSTREAM_DATABASE_URL, the network and pg_hba.conf"
            )
        case FilterError():
            return "docs/reference/filters.md tells how names, events and filters are written"
        case ConfigError():
            return "docs/reference/config.md has every key"
        case _:
            return ""


def shown(value: object) -> str:
    """A value as a table and CSV show it."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case dt.datetime():
            return value.isoformat(sep=" ", timespec="seconds")
        case list() | tuple():
            return ",".join(map(shown, value))
        case dict() | msgspec.Raw():
            return _encode(value).decode()
        case _:
            return str(value)


def visible(text: str) -> str:
    """A text that cannot steer a terminal: control characters and changes of direction as escapes; line ends stay."""
    return _STEERING.sub(lambda found: repr(found[0])[1:-1], text)


def aligned(lines: Sequence[Sequence[str]], widths: list[int] | None = None) -> list[str]:
    """Lines of cells as text, columns two spaces apart. A cell's line breaks become spaces.

    ``widths``: those of the columns, or an empty list that is filled with what these lines take.
    """
    flat = [[visible(" ".join(cell.splitlines())) for cell in line] for line in lines]
    widths = [] if widths is None else widths
    widths[:] = widths or [max(map(len, column)) for column in zip(*flat, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in flat]


def _csv_line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(cells)  # its own line end, so that both of its characters are quoted in cells
    return text.getvalue().removesuffix("\r\n") + "\n"


def options(*, word: bool = False) -> Callable[[_Decorated], Callable[..., Any]]:
    """Decorator: what every command accepts. The command gets a ``Terminal`` as its first argument.

    ``word``: the last argument may be a format, as in ``walstream subscriptions json``. Where optional arguments come
    before it, it may stand in the place of any of them.
    """

    def decorate(function: _Decorated) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*, as_json: bool, format_name: Format | None, config_file: Path | None, **values: Any) -> Any:
            context = click.get_current_context()
            for value in values.values():
                _check_text(value)
            flags = {key: values.pop(f"config_{key}") for key in configuration.Config.__struct_fields__}
            trailing: Format | None = values.pop("format_word", None)
            chosen: Format | None = "json" if as_json else format_name or trailing
            terminal = context.meta[_META] = Terminal(chosen, config_file, flags)
            return function(terminal, **values)

        decorated: Callable[..., Any] = call
        if word:
            decorated = click.argument("format_word", cls=_FormatWord)(decorated)
        return _common(decorated)

    return decorate


class _FormatWord(click.Argument):
    """The last word where it is a format: taken out of the place of the optional argument that it came in."""

    def __init__(self, param_decls: Sequence[str], **attributes: Any) -> None:
        super().__init__(
            param_decls, required=False, type=click.Choice(FORMATS), metavar="[json]", is_eager=True, **attributes
        )

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        # Eager: the arguments before it have not been looked at yet.
        missing = opts.get(self.name)
        if not isinstance(missing, str) and isinstance(opts, dict):
            places = [place for place in ctx.command.params if isinstance(place, click.Argument) and place is not self]
            given = [place for place in places if place.nargs == 1 and isinstance(opts.get(place.name), str)]
            if given and not given[-1].required and opts[given[-1].name] in FORMATS:
                opts[self.name] = opts[given[-1].name]
                opts[given[-1].name] = missing
        return super().handle_parse_result(ctx, opts, args)


def _check_text(value: object) -> None:
    """Refuse what the shell handed over in another encoding, and the character that PostgreSQL's text cannot hold."""
    if isinstance(value, tuple):
        for one in value:
            _check_text(one)
        return
    if not isinstance(value, str):
        return
    if "\0" in value:
        raise click.UsageError("an argument has a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise click.UsageError(f"an argument is not UTF-8: {value!a}") from error


def current(context: click.Context) -> Terminal:
    """The invocation's terminal, as far as it has been parsed."""
    found: Terminal = context.meta.get(_META) or Terminal()
    return found


def _common(decorated: Callable[..., Any]) -> Callable[..., Any]:
    for key in reversed(configuration.Config.__struct_fields__):
        decorated = click.option(
            f"--{key.replace('_', '-')}", f"config_{key}", help=_SHOWN_FLAGS.get(key), hidden=key not in _SHOWN_FLAGS
        )(decorated)
    file = click.Path(path_type=Path, dir_okay=False)
    decorated = click.option("--config", "config_file", type=file, help="TOML file with the configuration.")(decorated)
    decorated = click.option("--format", "format_name", type=click.Choice(FORMATS), help="Form of the output.")(
        decorated
    )
    return click.option("--json", "as_json", is_flag=True, help="The same as --format json.")(decorated)


def _name(error: WalstreamError) -> str:
    reason = getattr(error, "reason", "")
    return f"{error.code}: {reason}" if isinstance(error, DatabaseRefused) and reason else error.code


def _print_rich(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:  # ids are there to be copied
        table.add_column(column, no_wrap=column == "id" or column.endswith("_id"), overflow="fold")
    for line in cells:
        table.add_row(*(Text(visible(cell)) for cell in line))  # Text: brackets in a value are no markup
    Console().print(table)
