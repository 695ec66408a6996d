"""The judge: collects rows of which only PostgreSQL can say who may see them, and asks in batches.

The statements are ``shell.database.judgement``. What a verdict means for delivery, and how long one is waited for, is
decided by who asked.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple, Protocol, TypeVar

import structlog
import trio

from walstream.decoder.nested import NULL
from walstream.decoder.rebuild import NAN, NOT_FINITE, Lossy, Rebuild, rebuild
from walstream.errors import DatabaseRefused, EnvironmentFailure
from walstream.history.visibility import is_live
from walstream.model import Catalog, CatalogMiss, Cell, Relation, Row, Snapshot, Transaction
from walstream.policy.model import Ask, Viewer
from walstream.shell.database.join_facts import load_snapshot
from walstream.shell.database.judgement import Form, Fragments, Outcome, Question, Sessions
from walstream.shell.database.postgres import PgConnection
from walstream.shell.delivery.doubts import Doubts
from walstream.shell.supervise import next_delay
from walstream.telemetry.log import POLICIES_UNASKED, POLICY_FAILED

SESSIONS: Final = 4
"""Questions that are asked at once. The pool needs one connection more, for the snapshot."""

ROWS_MAX: Final = 500
BYTES_MAX: Final = 4 * 1024 * 1024
"""Of one statement: rows, and bytes of JSON beyond which no further row is added."""

QUESTIONS_MAX: Final = 64
"""Questions that one session takes at once."""

TURN_SECONDS: Final = 0.05
"""After so long a session gives back what it has not begun, so that a slow question holds up nobody's answers."""

LOOK_SECONDS: Final = 0.005
LOOK_SECONDS_MAX: Final = 0.1
"""Between looks whether a transaction can be seen; the first, doubled up to the second."""

LOCKED_SECONDS: Final = 0.5
"""Before a question is asked again that met a lock."""

VARIANTS_MAX: Final = 16
"""Rows that one row may have to be asked as, for nulls that may be other values in truth."""

CONDITIONS_MAX: Final = 1000
"""Conditions that are kept although nothing is asked about them now."""

TROUBLES_MAX: Final = 1000
"""Errors of policies that are remembered, so that each is told once."""

T = TypeVar("T")

log = structlog.get_logger()


class Statements(Protocol):
    """What runs SQL for us: ``postgres.Database``."""

    async def run(self, work: Callable[[PgConnection], T]) -> T:
        """Call ``work`` with a connection in autocommit. Raises DatabaseUnreachable or DatabaseRefused."""
        ...


class Verdict:
    """Whether one viewer may see one row. ``answer``: None until it is known. In doubt is False."""

    __slots__ = ("answer",)

    def __init__(self, answer: bool | None = None) -> None:
        self.answer = answer


class _Column(NamedTuple):
    """``at``: index in rows, -1 where they have no such column. ``key``: begin of its member in the JSON object."""

    at: int
    key: bytes
    how: Rebuild


class _Shape(NamedTuple):
    """How rows of one relation become what one form reads."""

    form: Form
    columns: tuple[_Column, ...]


class _Asked:
    """One row under one condition, while a verdict about it is due. ``doubt``: why nobody can judge it, "" else."""

    __slots__ = ("condition", "doubt", "form", "fragments", "row", "size", "verdicts")

    def __init__(self, condition: _Condition, form: Form, row: Row) -> None:
        self.condition = condition
        self.form = form
        self.row = row  # keeps its identity its own
        self.doubt = ""
        self.fragments = Fragments(())
        self.size = 0
        self.verdicts: dict[Viewer, Verdict] = {}


class _Condition:
    """What is kept of one ``Ask``."""

    __slots__ = ("ask", "forms", "rows", "shapes")

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.forms: dict[tuple[bool, ...], Form] = {}
        self.shapes: dict[Relation, _Shape] = {}
        self.rows: dict[int, _Asked] = {}  # by the identity of the row


_Queue = dict[tuple[Form, Viewer], list[_Asked]]
_Share = list[tuple[Form, Viewer, list[_Asked]]]


class Judge:
    """Answers whether viewers may see rows. All but ``run`` is synchronous and for the trio thread.

    ``database``: a pool of its own with ``SESSIONS`` + 1 connections, so that nothing else waits behind policies.
    Asked twice about the same row before it has answered, it gives the same verdict.
    """

    def __init__(self, database: Statements, catalog: Catalog, doubts: Doubts, *, sessions: int = SESSIONS) -> None:
        self.on_answers: Callable[[], None] = lambda: None
        self.doubts = doubts
        self._database = database
        self._catalog = catalog
        self._sessions_max = sessions
        self._sessions = Sessions()
        self._conditions: dict[Ask, _Condition] = {}
        self._latest: _Condition | None = None
        self._ready: _Queue = {}
        self._slow: _Queue = {}  # of conditions that met a timeout: one session at most waits for them
        self._slow_forms: set[Form] = set()
        self._slow_is_taken = False
        self._hidden: dict[tuple[int, int], tuple[Transaction, _Queue]] = {}  # not visible yet, by xid and commit
        self._snapshot: Snapshot | None = None
        self._newest: tuple[Transaction, _Queue] | None = None  # the last transaction asked about, and where to
        self._work = trio.Event()
        self._look = trio.Event()
        self._troubles: set[tuple[str, str, str]] = set()
        self._away = ""

    def __len__(self) -> int:
        """Verdicts that are due."""
        return sum(len(asked.verdicts) for condition in self._conditions.values() for asked in condition.rows.values())

    # -- asking

    def ask(
        self, viewer: Viewer, ask: Ask, transaction: Transaction, relation: Relation, row: Row, *, is_old: bool
    ) -> Verdict:
        """Whether the viewer may see the row. ``is_old``: it is the row before an UPDATE or DELETE.

        What cannot be judged is answered at once. ``row`` has to be the change's own tuple: equal rows of two changes
        are two questions.
        """
        # One Ask is asked about by many viewers in a row; hashing it costs more than the rest.
        condition = self._latest
        if condition is None or condition.ask is not ask:
            condition = self._latest = self._conditions.get(ask) or self._condition(ask)
        asked = condition.rows.get(id(row))
        if asked is None:
            asked = self._asked(condition, relation, row, is_old)
        elif viewer in asked.verdicts:
            return asked.verdicts[viewer]
        if asked.doubt:
            self.doubts.count(ask.schema, ask.table, asked.doubt)
            return Verdict(False)
        verdict = asked.verdicts[viewer] = Verdict()
        condition.rows[id(row)] = asked
        newest = self._newest
        if newest is None or newest[0] is not transaction:
            newest = self._queue_of(transaction)
        key = (asked.form, viewer)
        waiting = newest[1].get(key)
        if waiting is None:
            newest[1][key] = [asked]
            if newest[1] is self._ready:
                self._work.set()
        else:
            waiting.append(asked)
        return verdict

    def _condition(self, ask: Ask) -> _Condition:
        if len(self._conditions) > CONDITIONS_MAX:
            for old in [old for old, condition in self._conditions.items() if not condition.rows]:
                del self._conditions[old]
            self._latest = None
        condition = self._conditions[ask] = _Condition(ask)
        return condition

    def _asked(self, condition: _Condition, relation: Relation, row: Row, is_old: bool) -> _Asked:
        shape = condition.shapes.get(relation)
        if shape is None:
            shape = self._shape(condition, relation)
        asked = _Asked(condition, shape.form, row)
        if condition.ask.problem:
            asked.doubt = condition.ask.problem
            return asked
        try:
            asked.fragments = _fragments(shape, row, "key_only_old_row" if is_old else "unchanged_toast")
            asked.size = sum(map(len, asked.fragments.texts))
        except _Doubt as doubt:
            asked.doubt = doubt.reason
        except Lossy as lossy:
            asked.doubt = lossy.reason
        return asked

    def _shape(self, condition: _Condition, relation: Relation) -> _Shape:
        columns = []
        for number, (name, written) in enumerate(condition.ask.columns):
            at = relation.positions.get(name, -1)
            how = self._rebuild(relation, at, written)
            columns.append(_Column(at, b'"%d":' % number, how))
        as_text = tuple(column.how.as_text for column in columns)
        form = condition.forms.get(as_text)
        if form is None:
            form = condition.forms[as_text] = Form(condition.ask, as_text)
        shape = condition.shapes[relation] = _Shape(form, tuple(columns))
        return shape

    def _rebuild(self, relation: Relation, at: int, written: str) -> Rebuild:
        if at < 0:
            return Rebuild()
        try:
            how = rebuild(self._catalog.types.get(relation.columns[at].type_oid), self._catalog)
        except CatalogMiss:  # the decoder has read the value with the types inside it: they have gone since
            return Rebuild(convert=_unknown)
        if how.instead == NOT_FINITE and "(" in written:  # numeric(10,2) has no infinity
            return how._replace(instead=NAN)
        return how

    def _queue_of(self, transaction: Transaction) -> tuple[Transaction, _Queue]:
        """Where questions about the transaction wait."""
        key = (transaction.xid, transaction.commit_lsn)
        if self._is_visible(transaction):
            newest = (transaction, self._ready)
        elif key in self._hidden:
            newest = self._hidden[key]
        else:
            newest = self._hidden[key] = (transaction, {})
            self._look.set()
        self._newest = newest
        return newest

    def cluster_changed(self) -> None:
        """Forget what was seen: no snapshot of another cluster will ever see the transactions that wait.

        They are judged by what there is now.
        """
        self._snapshot = self._newest = None
        for _, queue in self._hidden.values():
            _move(queue, self._ready)
        self._hidden.clear()
        self._work.set()

    def _is_visible(self, transaction: Transaction) -> bool:
        """Whether the newest snapshot sees it; that it was decoded says only that its commit is in the WAL.

        What lay beyond the flush position may be lost in a crash, and its xid be used again.
        """
        snapshot = self._snapshot
        return (
            snapshot is not None
            and transaction.commit_lsn <= snapshot.flush_lsn
            and not is_live(transaction, snapshot)
        )  # fmt: skip

    # -- running

    async def run(self) -> None:
        """Ask for ever; while the database is away everything waits. Cancelled, it leaves verdicts unanswered."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_looking)
            for _ in range(self._sessions_max):
                nursery.start_soon(self._keep_asking)

    async def _keep_looking(self) -> None:
        """Look for transactions that have become visible: at once for new ones, ever more rarely for the rest."""
        pause = LOOK_SECONDS
        while True:
            if not self._hidden:
                pause = LOOK_SECONDS
                await self._look.wait()
            elif not self._look.is_set():
                with trio.move_on_after(pause):
                    await self._look.wait()
                pause = min(LOOK_SECONDS_MAX, pause * 2)
            self._look = trio.Event()
            self._snapshot = await self._patiently(load_snapshot)
            seen = [key for key, (transaction, _) in self._hidden.items() if self._is_visible(transaction)]
            for key in seen:
                _move(self._hidden.pop(key)[1], self._ready)
            if seen:
                self._newest = None
                self._work.set()

    async def _keep_asking(self) -> None:
        while True:
            share = self._take(self._ready)
            if share:
                await self._answer(share)
            elif self._slow and not self._slow_is_taken:
                self._slow_is_taken = True
                try:
                    await self._answer([self._pop(self._slow)])
                finally:
                    self._slow_is_taken = False
                    self._work.set()
            else:
                if self._work.is_set():
                    self._work = trio.Event()
                await self._work.wait()

    def _take(self, queue: _Queue) -> _Share:
        """An even share of what waits, so that all sessions have some."""
        share: _Share = []
        count = min(QUESTIONS_MAX, -(-len(queue) // self._sessions_max))
        while queue and len(share) < count:
            form, viewer, rows = self._pop(queue)
            if form in self._slow_forms:
                self._slow.setdefault((form, viewer), []).extend(rows)
            else:
                share.append((form, viewer, rows))
        return share

    def _pop(self, queue: _Queue) -> tuple[Form, Viewer, list[_Asked]]:
        key = next(iter(queue))
        rows = queue.pop(key)
        count = _fitting(rows)
        if count < len(rows):
            queue[key] = rows[count:]
            del rows[count:]
        return (*key, rows)

    async def _answer(self, share: _Share) -> None:
        questions = [Question(viewer, form, [asked.fragments for asked in rows]) for form, viewer, rows in share]
        outcomes = await self._patiently(partial(_judge_in_turn, self._sessions, questions))
        locked = False
        for (form, viewer, rows), outcome in itertools.zip_longest(share, outcomes):
            if outcome is None:
                self._put_back(form, viewer, rows)
                continue
            self._time(form, outcome.slow)
            if outcome.again:
                self._put_back(form, viewer, rows)
                locked = True
            else:
                self._settle(form.ask, viewer, rows, outcome)
        self.on_answers()
        if locked:
            await trio.sleep(LOCKED_SECONDS)

    def _time(self, form: Form, slow: bool) -> None:
        """Remember which forms meet timeouts: they wait in a queue of their own."""
        if slow:
            self._slow_forms.add(form)
        elif form in self._slow_forms:
            self._slow_forms.discard(form)
            again = {key: rows for key, rows in self._slow.items() if key[0] is form}
            for key in again:
                del self._slow[key]
            _move(again, self._ready)

    def _put_back(self, form: Form, viewer: Viewer, rows: list[_Asked]) -> None:
        queue = self._slow if form in self._slow_forms else self._ready
        queue[form, viewer] = rows + queue.pop((form, viewer), [])
        self._work.set()

    def _settle(self, ask: Ask, viewer: Viewer, rows: Sequence[_Asked], outcome: Outcome) -> None:
        visible = outcome.visible
        for index, asked in enumerate(rows):
            asked.verdicts.pop(viewer).answer = index in visible
            if not asked.verdicts:
                del asked.condition.rows[id(asked.row)]
        for reason in outcome.doubts.values():
            self.doubts.count(ask.schema, ask.table, reason)
        if outcome.error:
            self._tell(ask, viewer, outcome)

    def _tell(self, ask: Ask, viewer: Viewer, outcome: Outcome) -> None:
        trouble = (ask.schema, ask.table, outcome.error)
        if trouble not in self._troubles and len(self._troubles) < TROUBLES_MAX:
            self._troubles.add(trouble)
            log.warning(
                POLICY_FAILED,
                table=f"{ask.schema}.{ask.table}",
                role=viewer.role,
                error=outcome.error,
                repair=outcome.repair,
            )

    async def _patiently(self, work: Callable[[PgConnection], T]) -> T:
        """Run it until the database has answered. What has to be repaired is told once."""
        delay = 0.0
        while True:
            try:
                answer = await self._database.run(work)
            except EnvironmentFailure as error:
                if isinstance(error, DatabaseRefused) and self._away != (error.reason or error.sqlstate):
                    self._away = error.reason or error.sqlstate
                    log.warning(POLICIES_UNASKED, error=str(error), code=self._away)
                delay = next_delay(delay, spread=0.0)
                await trio.sleep(delay)
            else:
                self._away = ""
                return answer


class _Doubt(Exception):
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _unknown(_cell: bytes) -> bytes:
    raise Lossy("lossy_value")


def _fragments(shape: _Shape, row: Row, missing: str) -> Fragments:
    """The row as JSON objects. Raises _Doubt or Lossy."""
    parts: list[bytes] = []
    choices: list[tuple[bytes, ...]] = []
    loss = ""
    for at, key, how in shape.columns:
        if at < 0:
            raise _Doubt("absent_column")
        cell: Cell = row[at]
        if cell is None:
            raise _Doubt(missing)
        if cell == NULL:
            if how.instead:
                loss = how.loss
                choices.append(tuple([key + value for value in (NULL, *how.instead)]))
                continue
        elif how.convert is not None:
            cell = how.convert(cell)
        parts.append(key + cell)
    if not choices:
        return Fragments((f"{{{b','.join(parts).decode()}}}",))
    variants = list(itertools.islice(itertools.product(*choices), VARIANTS_MAX + 1))
    if len(variants) > VARIANTS_MAX:
        raise _Doubt(loss)
    return Fragments(tuple([f"{{{b','.join([*parts, *variant]).decode()}}}" for variant in variants]), loss)


def _fitting(rows: Sequence[_Asked]) -> int:
    """How many of the first rows go into one statement; at least one."""
    size = 0
    for count, asked in enumerate(rows[:ROWS_MAX]):
        size += asked.size
        if size > BYTES_MAX and count:
            return count
    return min(len(rows), ROWS_MAX)


def _move(source: _Queue, target: _Queue) -> None:
    for key, rows in source.items():
        if key in target:
            target[key] += rows
        else:
            target[key] = rows


def _judge_in_turn(sessions: Sessions, questions: Sequence[Question], connection: PgConnection) -> list[Outcome]:
    """The outcomes of the first questions; at least one, and as many as fit into a turn. Raises psycopg2.Error."""
    session = sessions.of(connection)
    ends = time.monotonic() + TURN_SECONDS
    outcomes: list[Outcome] = []
    try:
        for question in questions:
            outcomes.append(session.judge(question))
            if time.monotonic() > ends:
                break
    finally:
        if not connection.closed:
            session.rest()
    return outcomes
