"""Asking PostgreSQL, as a viewer, whether rows of the WAL satisfy a condition. Blocking SQL.

Which rows are asked about, when, and what becomes of the answers is ``shell.delivery.judge``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import TRANSACTION_STATUS_IDLE

from walstream.policy.claims import session_settings
from walstream.policy.model import Ask, Viewer
from walstream.shell.database.catalog import is_name

if TYPE_CHECKING:
    from psycopg2.extensions import connection as PgConnection  # noqa: N812 - a class under its role's name

STATEMENT_SECONDS: Final = 5.0
"""For all rows of one viewer in one statement. What takes longer is in doubt: PostgreSQL's own query would be no
faster, and others wait."""

LOCK_SECONDS: Final = 1.0
"""For a lock that a policy's sub-query waits for; the rows are asked about again then."""

PREPARED_MAX: Final = 200
"""Statements that one session keeps prepared."""

_PASSING: Final = ("08", "57P")
"""Classes of SQLSTATE that tell of the connection or the server, not of the question."""

_WHATEVER_THE_VALUES: Final = ("25", "42")
"""Classes of SQLSTATE: writing in a read-only transaction; missing rights, and names that mean nothing."""

_LOCKED: Final = "55P03"
_CANCELED: Final = "57014"
_DENIED: Final = "42501"

_BEGIN: Final = b"begin transaction isolation level read committed, read only; "


class Form:
    """One condition as a statement. Made once, and its own identity: sessions prepare it by that.

    ``as_text``: the columns that are read as text and cast (see ``decoder.rebuild``). The statement takes the rows as a
    JSON array of objects, whose members are the columns' numbers in ``ask.columns``, and returns the numbers of the
    rows for which the condition is true, beginning with 1.
    """

    __slots__ = ("ask", "statement")

    def __init__(self, ask: Ask, as_text: Sequence[bool]) -> None:
        self.ask = ask
        self.statement = _statement(ask, as_text)


def _statement(ask: Ask, as_text: Sequence[bool]) -> sql.Composed:
    number = _free_name({name for name, _ in ask.columns})
    keys = [sql.Identifier(str(at)) for at in range(len(ask.columns))]
    types = [sql.SQL(written) for _, written in ask.columns]
    declared = [
        sql.SQL("{} {}").format(key, sql.SQL("pg_catalog.text") if text else written)
        for key, written, text in zip(keys, types, as_text, strict=True)
    ]
    chosen = [
        sql.SQL("cast(r.{} as {}) as {}" if text else "r.{0} as {2}").format(key, written, sql.Identifier(name))
        for key, written, text, (name, _) in zip(keys, types, as_text, ask.columns, strict=True)
    ]
    none = sql.SQL("{} pg_catalog.int4").format(sql.Identifier("0"))  # a list of columns has to have one
    # The alias is the table's own name: policies' sub-queries name the row's columns by it.
    return sql.SQL(
        "select {number} from (select {chosen} from"
        " rows from (pg_catalog.json_to_recordset($1) as ({declared})) with ordinality r({keys}, {number})) as {table}"
        " where ({condition})"
    ).format(
        number=number,
        chosen=sql.SQL(", ").join([*chosen, sql.SQL("r.{}").format(number)]),
        declared=sql.SQL(", ").join(declared or [none]),
        keys=sql.SQL(", ").join(keys or [sql.Identifier("0")]),
        table=sql.Identifier(ask.table),
        condition=sql.SQL(ask.condition),
    )


def _free_name(taken: set[str]) -> sql.Identifier:
    name = "row number"
    while name in taken:
        name += "'"
    return sql.Identifier(name)


class Fragments(NamedTuple):
    """One row as the form reads it: a JSON object, or several where a null may have been one of several values.

    ``loss``: the reason of the doubt if these do not agree.
    """

    texts: tuple[str, ...]
    loss: str = ""


class Question(NamedTuple):
    """Rows that one viewer may see or not. ``rows``: at least one."""

    viewer: Viewer
    form: Form
    rows: Sequence[Fragments]


class Outcome(NamedTuple):
    """``visible``: indexes of rows. ``doubts``: reasons by index. Rows that are in neither are not visible.

    ``error``: PostgreSQL's own, where there are doubts for its sake. ``slow``: a timeout was met. ``again``: nothing
    was learnt, for a lock stood in the way.
    """

    visible: frozenset[int] = frozenset()
    doubts: dict[int, str] = {}  # noqa: RUF012 - never changed
    error: str = ""
    repair: str = ""
    slow: bool = False
    again: bool = False


class Session:
    """A connection and what it has prepared. ``connection`` is in autocommit."""

    def __init__(self, connection: PgConnection) -> None:
        self._connection = connection
        self._prepared: dict[tuple[Form, str], sql.Composable] = {}
        self._numbers = 0
        with connection.cursor() as cursor:
            # Set outside a transaction: what a policy's function sets inside is gone with its rollback.
            cursor.execute(
                "select pg_catalog.set_config('statement_timeout', %s, false),"
                " pg_catalog.set_config('lock_timeout', %s, false), pg_catalog.set_config('jit', 'off', false)",
                (f"{STATEMENT_SECONDS * 1000:.0f}", f"{LOCK_SECONDS * 1000:.0f}"),
            )

    def judge(self, question: Question) -> Outcome:
        """Answer a question. Raises psycopg2.Error where it could not be asked (a lost connection)."""
        if not can_look(question.viewer):
            return _all_in_doubt(question, f"nobody can look as the role {question.viewer.role!r} with these claims")
        try:
            return self._judge(question)
        except psycopg2.Error as error:
            if is_passing(error) or self._connection.closed:
                raise
            return self._refused(question, error)

    def complaint(self, viewer: Viewer, form: Form) -> tuple[str, str]:
        """Why PostgreSQL refuses the question whatever rows and claims are, and a repair; "" if it does not.

        Raises psycopg2.Error for a lost connection.
        """
        try:
            self._true_for(Question(viewer, form, ()), ())
        except psycopg2.Error as error:
            if is_passing(error):
                raise
            if (error.pgcode or "")[:2] in _WHATEVER_THE_VALUES:
                return _message(error), _repair(error)
        finally:
            if not self._connection.closed:
                self.rest()
        return "", ""

    def rest(self) -> None:
        """End the transaction: nothing of the viewer is left. Raises psycopg2.Error."""
        if self._connection.info.transaction_status != TRANSACTION_STATUS_IDLE:
            with self._connection.cursor() as cursor:
                cursor.execute("rollback")

    def _judge(self, question: Question) -> Outcome:
        texts = [text for row in question.rows for text in row.texts]
        numbers = self._true_for(question, texts)
        if len(texts) == len(question.rows):
            return Outcome(frozenset([number - 1 for number in numbers]))
        visible, doubts, at = set(), {}, 0
        for index, row in enumerate(question.rows):
            found = sum(1 for number in range(at + 1, at + 1 + len(row.texts)) if number in numbers)
            at += len(row.texts)
            if found == len(row.texts):
                visible.add(index)
            elif found:
                doubts[index] = row.loss
        return Outcome(frozenset(visible), doubts)

    def _true_for(self, question: Question, texts: Sequence[str]) -> set[int]:
        """The statement itself: one trip for everything, the end of the former viewer's transaction included."""
        name = self._prepare(question)
        with self._connection.cursor() as cursor:
            cursor.execute(
                self._as_viewer(cursor, question.viewer)
                + b"execute %b(%b)" % (name.as_string(cursor).encode(), cursor.mogrify("%s", (f"[{','.join(texts)}]",)))
            )
            return {number for (number,) in cursor.fetchall()}

    def _as_viewer(self, cursor: Any, viewer: Viewer) -> bytes:
        end = b"" if self._connection.info.transaction_status == TRANSACTION_STATUS_IDLE else b"rollback; "
        settings = _settings(viewer)
        calls = ", ".join(["pg_catalog.set_config(%s, %s, true)"] * len(settings))
        values = [text for setting in settings.items() for text in setting]
        return end + _BEGIN + bytes(cursor.mogrify(f"select {calls}; ", values))

    def _prepare(self, question: Question) -> sql.Composable:
        """The statement's name in this session, one for each role: it is analysed anew when the role changes."""
        key = (question.form, question.viewer.role)
        name = self._prepared.pop(key, None)
        if name is None:
            while len(self._prepared) >= PREPARED_MAX:
                self._run(sql.SQL("deallocate {}").format(self._prepared.pop(next(iter(self._prepared)))))
            name = self._analyse(question)
        self._prepared[key] = name  # the newest is the last one
        return name

    def _analyse(self, question: Question) -> sql.Composable:
        """A policy's names were looked up when it was made, so its viewers need no right to their schemas.

        That is why the daemon's own role looks them up; where it has no right to them, the viewer's does.
        """
        self._numbers += 1
        name = sql.Identifier(f"judge {self._numbers}")
        statement = sql.SQL("prepare {}(pg_catalog.json) as {}").format(name, question.form.statement)
        self.rest()
        try:
            self._run(statement)
        except psycopg2.Error as error:
            if error.pgcode != _DENIED:
                raise
            with self._connection.cursor() as cursor:
                cursor.execute(self._as_viewer(cursor, question.viewer) + statement.as_string(cursor).encode())
        return name

    def _run(self, statement: sql.Composable) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(statement)

    def _refused(self, question: Question, error: psycopg2.Error) -> Outcome:
        """What is left to say after an error of the question's own."""
        if error.pgcode in (_LOCKED, _CANCELED):
            return _timed_out(question, error)
        if len(question.rows) > 1 and self._fails_without_rows(question):
            return _all_in_doubt(question, _message(error), _repair(error))
        return self._divide(question, error)

    def _fails_without_rows(self, question: Question) -> bool:
        """Whether the error has nothing to do with any row: a missing right, a function that is gone."""
        try:
            self._true_for(question, [])
        except psycopg2.Error as error:
            if is_passing(error):
                raise
            return True
        return False

    def _divide(self, question: Question, error: psycopg2.Error) -> Outcome:
        """Ask about both halves apart, until the rows that cannot be judged stand alone."""
        visible: set[int] = set()
        doubts: dict[int, str] = {}
        ends = time.monotonic() + STATEMENT_SECONDS
        waiting = [range(len(question.rows))]
        while waiting:
            part = waiting.pop()
            if len(part) > 1:
                if time.monotonic() > ends:
                    doubts.update(dict.fromkeys(part, "policy_error"))
                    continue
                middle = (part.start + part.stop) // 2
                halves = [range(part.start, middle), range(middle, part.stop)]
            else:
                doubts[part.start] = self._reason(question, question.rows[part.start])
                continue
            for half in halves:
                try:
                    found = self._judge(question._replace(rows=question.rows[half.start : half.stop]))
                except psycopg2.Error as failed:
                    if is_passing(failed) or self._connection.closed:
                        raise
                    if failed.pgcode in (_LOCKED, _CANCELED):
                        return _timed_out(question, failed)
                    waiting.append(half)
                    continue
                visible.update(half.start + index for index in found.visible)
                doubts.update({half.start + index: reason for index, reason in found.doubts.items()})
        if "policy_error" not in doubts.values():
            return Outcome(frozenset(visible), doubts)
        return Outcome(frozenset(visible), doubts, _message(error), _repair(error))

    def _reason(self, question: Question, row: Fragments) -> str:
        """Why a row that cannot be judged is in doubt: for what its null may be, if as NULL it raises no error."""
        if row.loss:
            try:
                self._true_for(question, row.texts[:1])
            except psycopg2.Error as error:
                if is_passing(error):
                    raise
            else:
                return row.loss
        return "policy_error"


class Sessions:
    """The sessions of one pool's connections. Threads may use it at once, each with a connection of its own."""

    def __init__(self) -> None:
        self._of: dict[PgConnection, Session] = {}
        self._lock = threading.Lock()

    def of(self, connection: PgConnection) -> Session:
        """The connection's session, made when it is first met. Raises psycopg2.Error."""
        session = self._of.get(connection)
        if session is None:
            session = Session(connection)
            with self._lock:
                self._of = {other: of for other, of in self._of.items() if not other.closed}
                self._of[connection] = session
        return session


def is_passing(error: psycopg2.Error) -> bool:
    """Whether the error tells of the connection or the server: asked again later, there may be an answer."""
    return error.pgcode is None or error.pgcode.startswith(_PASSING)


def can_look(viewer: Viewer) -> bool:
    """Whether a session can be made the viewer's. "none" is SQL's word for taking a role off again."""
    role, claims = viewer
    try:
        claims.encode()
    except UnicodeEncodeError:
        return False
    return bool(role) and role.lower() != "none" and is_name(role) and "\0" not in claims


_settings = lru_cache(maxsize=10_000)(session_settings)


def _all_in_doubt(question: Question, error: str, repair: str = "", *, slow: bool = False) -> Outcome:
    return Outcome(
        doubts=dict.fromkeys(range(len(question.rows)), "policy_error"), error=error, repair=repair, slow=slow
    )


def _timed_out(question: Question, error: psycopg2.Error) -> Outcome:
    if error.pgcode == _LOCKED:
        return Outcome(again=True, slow=True)
    return _all_in_doubt(question, _message(error), slow=True)


def _message(error: psycopg2.Error) -> str:
    return (error.diag.message_primary or str(error)).strip()


_REPAIRS: Final = {
    "42501": "grant the right that the message names: to the viewer's role, for a schema also to the daemon's",
    "42P01": "the policy's functions run with an empty search_path: alter function … set search_path = …",
    "42883": "the policy's functions run with an empty search_path: alter function … set search_path = …",
    "42704": "the policy's functions run with an empty search_path: alter function … set search_path = …",
    "25006": "policies are asked in read-only transactions: a function that they call must not write",
}


def _repair(error: psycopg2.Error) -> str:
    return _REPAIRS.get(error.pgcode or "", "")
