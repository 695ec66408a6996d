"""Failpoints and deliberate bugs, put into a daemon from outside: ``python -m integration.faults.failpoints``.

That command is ``walstream serve`` with one difference: it reads ``FAULTS`` and wraps methods of the daemon's parts
before it runs. walstream itself has none of this: it costs nothing there, no configuration knows it, and nobody can
turn it on. The names of the wrapped methods are those of the sources; each failpoint is seen to fire in
``test_failpoints.py``, each bug to be found in ``test_deliberate_bugs.py``, so a method that is renamed is noticed.

``FAULTS`` is a comma list of ``name:number``: a failpoint kills the process with SIGKILL when it is reached for the
``number``-th time, a bug happens every ``number``-th time (``acknowledge-early`` and ``silence``: always;
``lose-heartbeats``: from then on).

| failpoint | where |
| --- | --- |
| ``after-read`` | messages were read from the slot and not looked at |
| ``after-append`` | a transaction is in the ring, nobody was told, nothing confirmed |
| ``in-fan-out`` | a tick's frames are written to one audience and not to the others |
| ``after-fan-out`` | all frames are written, nothing is confirmed |
| ``after-confirm`` | a position was confirmed and the server has been told |
| ``in-catch-up`` | a resuming client has got part of what it missed |

| bug | the oracle that has to find it |
| --- | --- |
| ``acknowledge-early`` | P4 |
| ``drop-a-change`` | P1 |
| ``reorder-two`` | P1 |
| ``deliver-twice`` | P1 |
| ``tear-a-transaction`` | P2 |
| ``skip-in-catch-up`` | P1, P3 |
| ``silence`` | P3 |
| ``lose-a-row`` | fold |
| ``lose-heartbeats`` | ``/ready`` |
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from walstream import app
from walstream.cli import main
from walstream.config import Config
from walstream.shell.clients import snapshots

VARIABLE = "FAULTS"


class _Count:
    """Says when something happens for every ``number``-th time."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._seen = 0

    def __call__(self) -> bool:
        self._seen += 1
        return self._seen % self._number == 0


def die() -> None:
    """What a failpoint does."""
    os.kill(os.getpid(), signal.SIGKILL)


def _before(owner: Any, name: str, act: Callable[..., object]) -> None:
    inner = getattr(owner, name)

    def wrapped(*arguments: Any, **more: Any) -> Any:
        act()
        return inner(*arguments, **more)

    setattr(owner, name, wrapped)


def _after(owner: Any, name: str, act: Callable[[], object]) -> None:
    inner = getattr(owner, name)

    def wrapped(*arguments: Any, **more: Any) -> Any:
        result = inner(*arguments, **more)
        act()
        return result

    setattr(owner, name, wrapped)


def _die_at(count: _Count) -> Callable[[], None]:
    def act() -> None:
        if count():
            die()

    return act


# -- failpoints


def _after_read(daemon: app.Daemon, count: _Count) -> None:
    _before(daemon.pipeline, "receive", _die_at(count))


def _after_append(daemon: app.Daemon, count: _Count) -> None:
    _after(daemon.ring, "append", _die_at(count))


def _in_fan_out(daemon: app.Daemon, count: _Count) -> None:
    _after(daemon.fanout._frames, "drain", _die_at(count))


def _after_fan_out(daemon: app.Daemon, count: _Count) -> None:
    inner = daemon.pipeline.flush

    async def flush() -> None:
        await inner()
        if count():
            die()

    daemon.pipeline.flush = flush  # type: ignore[method-assign]  # that is what this module does


def _after_confirm(daemon: app.Daemon, count: _Count) -> None:
    reader = daemon.reader
    inner = reader._confirm

    def confirm(cursor: Any) -> None:
        before = reader._confirmed
        inner(cursor)
        if reader._confirmed > before and count():
            cursor.send_feedback(flush_lsn=reader._confirmed, force=True)
            die()

    reader._confirm = confirm  # type: ignore[method-assign]  # that is what this module does


def _in_catch_up(daemon: app.Daemon, count: _Count) -> None:
    pursuits = daemon.fanout.pursuits
    inner = pursuits._step

    def step(pursuit: Any, limit: int) -> int:
        told = inner(pursuit, limit)
        if told:
            pursuit.member.outbox.flush()
            if count():
                die()
        return told

    pursuits._step = step  # type: ignore[method-assign]  # that is what this module does


# -- bugs


def _acknowledge_early(daemon: app.Daemon, count: _Count) -> None:
    def confirmable(*, trailing: bool) -> Any:
        return daemon.ring.newest

    daemon.pipeline.confirmable = confirmable  # type: ignore[method-assign]  # that is what this module does


def _changed(daemon: app.Daemon, count: _Count, alter: Callable[[Any], list[Any]]) -> None:
    """Route something else than every ``number``-th transaction of three or more changes."""
    route = daemon.fanout.route

    def routed(sequence: int, transaction: Any, *, spilled: bool) -> None:
        if not spilled and len(transaction.changes) > 2 and count():
            transaction = msgspec.structs.replace(transaction, changes=alter(list(transaction.changes)))
        route(sequence, transaction, spilled=spilled)

    daemon.fanout.route = routed  # type: ignore[method-assign]  # that is what this module does


def _drop_a_change(daemon: app.Daemon, count: _Count) -> None:
    _changed(daemon, count, lambda changes: [*changes[:1], *changes[2:]])


def _reorder_two(daemon: app.Daemon, count: _Count) -> None:
    _changed(daemon, count, lambda changes: [changes[1], changes[0], *changes[2:]])


def _deliver_twice(daemon: app.Daemon, count: _Count) -> None:
    _changed(daemon, count, lambda changes: [changes[0], *changes])


def _tear_a_transaction(daemon: app.Daemon, count: _Count) -> None:
    _changed(daemon, count, lambda changes: changes[:-1])


def _skip_in_catch_up(daemon: app.Daemon, count: _Count) -> None:
    pursuits = daemon.fanout.pursuits
    inner = pursuits._tell

    def tell(pursuit: Any, change: Any, routing: Any) -> None:
        if not count():
            inner(pursuit, change, routing)

    pursuits._tell = tell  # type: ignore[method-assign]  # that is what this module does


def _silence(daemon: app.Daemon, count: _Count) -> None:
    daemon.pipeline.on_gap = lambda reason: None


def _lose_a_row(daemon: app.Daemon, count: _Count) -> None:
    """Of a snapshot's pages."""
    inner = snapshots._Source._convert

    def convert(source: Any, values: Any) -> None:
        if not count():
            inner(source, values)

    setattr(snapshots._Source, "_convert", convert)  # noqa: B010 - for mypy


def _lose_heartbeats(daemon: app.Daemon, count: _Count) -> None:
    """As if something filtered them away: they are written, and do not come back."""
    returned = daemon.pipeline._returned
    lost = False

    def lose(content: bytes) -> None:
        nonlocal lost
        lost = lost or count()
        if not lost:
            returned(content)

    daemon.pipeline._returned = lose


POINTS: dict[str, Callable[[app.Daemon, _Count], None]] = {
    "after-read": _after_read,
    "after-append": _after_append,
    "in-fan-out": _in_fan_out,
    "after-fan-out": _after_fan_out,
    "after-confirm": _after_confirm,
    "in-catch-up": _in_catch_up,
}
BUGS: dict[str, Callable[[app.Daemon, _Count], None]] = {
    "acknowledge-early": _acknowledge_early,
    "drop-a-change": _drop_a_change,
    "reorder-two": _reorder_two,
    "deliver-twice": _deliver_twice,
    "tear-a-transaction": _tear_a_transaction,
    "skip-in-catch-up": _skip_in_catch_up,
    "silence": _silence,
    "lose-a-row": _lose_a_row,
    "lose-heartbeats": _lose_heartbeats,
}


def arm(daemon: app.Daemon, faults: str) -> None:
    """Put these faults, as ``FAULTS`` names them, into a daemon that does not run yet."""
    for fault in filter(None, faults.split(",")):
        name, _, number = fault.partition(":")
        {**POINTS, **BUGS}[name](daemon, _Count(int(number or "1")))


class FaultyDaemon(app.Daemon):
    """A daemon with the faults that ``FAULTS`` names."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        arm(self, os.environ.get(VARIABLE, ""))


if __name__ == "__main__":
    app.Daemon = FaultyDaemon  # type: ignore[misc]  # app.main makes what this name says
    sys.argv[1:] = ["serve"]
    main()
