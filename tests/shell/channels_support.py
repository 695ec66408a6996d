"""Rows, transactions and a database of channels for tests without one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import msgspec
import trio

from walstream.auth.tokens import Claims
from walstream.channel.permission import Answer, Question, Reading, nothing
from walstream.channel.registry import Membership, Registry, channel_from
from walstream.errors import DatabaseUnreachable
from walstream.lsn import Lsn
from walstream.model import Change, Column, Operation, Relation, Row, Snapshot, Transaction
from walstream.shell.channels.directory import Directory
from walstream.shell.channels.seats import Seat
from walstream.shell.database.access import RoleFacts
from walstream.shell.database.channel_rows import LoadedChannels, LoadedMembers, Pair

STARTED = 1000.0
COLUMNS = {
    "channels": ("id", "slug", "name", "type", "persist", "retention_hours", "metadata"),
    "channel_members": ("id", "channel_id", "user_id", "role", "muted"),
    "messages": (
        "id", "seq", "topic", "channel_id", "extension", "event", "payload", "binary_payload", "private", "sent_at",
        "hidden", "expires_at",
    ),
}  # fmt: skip
RELATIONS = {
    name: Relation("realtime", name, tuple(Column(column, 25, "text") for column in columns))
    for name, columns in COLUMNS.items()
}


def snapshot(sees_below: int) -> Snapshot:
    """A snapshot that sees all transactions with a lower xid."""
    return Snapshot(sees_below, sees_below, frozenset(), sees_below, sees_below, STARTED)


def row(table: str, values: Mapping[str, Any] | None) -> Row | None:
    """Cells in the order of the table; None stands for what the WAL does not carry."""
    if values is None:
        return None
    return tuple(msgspec.json.encode(values[name]) if name in values else None for name in COLUMNS[table])


def change(
    table: str, new: Mapping[str, Any] | None = None, old: Mapping[str, Any] | None = None, *, truncate: bool = False
) -> Change:
    """INSERT, UPDATE or DELETE by which of the rows are there."""
    operation = Operation.INSERT if old is None else Operation.DELETE if new is None else Operation.UPDATE
    if truncate:
        operation = Operation.TRUNCATE
    return Change(RELATIONS[table], operation, row(table, new), row(table, old), 0)


def transaction(xid: int, *control: Change) -> Transaction:
    """A committed transaction; its position rises with its xid."""
    return Transaction(xid, Lsn(xid), 0, (), tuple(control))


def channel(slug: str = "general", **more: Any) -> dict[str, Any]:
    """A row of channels."""
    return {
        "id": f"id-{slug}", "slug": slug, "name": slug, "type": "public", "persist": True, "retention_hours": None,
        "metadata": {}, **more,
    }  # fmt: skip


def member(user: str, slug: str = "general", role: str = "member", *, muted: bool = False) -> dict[str, Any]:
    """A row of channel_members."""
    return {"id": f"{slug}-{user}", "channel_id": f"id-{slug}", "user_id": user, "role": role, "muted": muted}


def claims(user: str = "", role: str = "authenticated") -> Claims:
    """Of somebody's token."""
    return Claims(role, user)


class FakeRows:
    """The two tables. ``is_away``: every question fails; ``hangs``: it never ends. ``before``: called by the next."""

    def __init__(self, channels: Iterable[Mapping[str, Any]] = (), members: Iterable[Mapping[str, Any]] = ()) -> None:
        self.channel_rows = list(channels)
        self.member_rows = list(members)
        self.is_away = False
        self.hangs = False
        self.xid = 100
        self.asked: list[set[Pair]] = []
        self.before: deque[Any] = deque()

    async def _wait(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.hangs:
            await trio.sleep_forever()
        if self.is_away:
            raise DatabaseUnreachable("away")

    async def channels(self) -> LoadedChannels:
        await self._wait()
        answer = LoadedChannels(Registry(map(channel_from, self.channel_rows)), snapshot(self.xid))
        if self.before:
            self.before.popleft()()
        return answer

    async def members(self, pairs: Collection[Pair], roles: Collection[str]) -> LoadedMembers:
        await self._wait()
        self.asked.append(set(pairs))
        found: dict[Pair, Membership | None] = dict.fromkeys(pairs)
        for values in self.member_rows:
            pair = (values["channel_id"], values["user_id"])
            if pair in found:
                found[pair] = Membership(pair[0], pair[1], values["role"], values["muted"])
        facts = {role: RoleFacts(role == "service_role", superuser=False, member=True) for role in roles}
        answer = LoadedMembers(found, facts, snapshot(self.xid))
        if self.before:
            self.before.popleft()()
        return answer


class FakePolicies:
    """An authorizer whose answers are ``says``, by question or by default nothing. ``waits``: it keeps them back."""

    def __init__(self, says: Callable[[Question], Answer] = nothing) -> None:
        self.says = says
        self.admits = True
        self.waits = False
        self.asked: list[Question] = []
        self.patient: list[Question] = []
        self.kept: list[tuple[Question, Callable[[Answer], None]]] = []

    def ask(self, question: Question, answered: Callable[[Answer], None], *, patient: bool = False) -> None:
        (self.patient if patient else self.asked).append(question)
        if self.waits:
            self.kept.append((question, answered))
        else:
            answered(self.says(question))

    def answer_kept(self) -> None:
        """Answer all that was kept back."""
        kept, self.kept = self.kept, []
        for question, answered in kept:
            answered(self.says(question))

    def may_admit(self) -> bool:
        return self.admits


class Guest:
    """Asks a directory, and remembers what it was told."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self.answers: list[Seat | str] = []
        self.endings: list[tuple[str, str]] = []
        self.changes: list[Reading] = []

    def ask(self, room: Any, who: Claims) -> None:
        seat = Seat(
            room, who, ended=lambda code, text: self.endings.append((code, text)),
            changed=lambda: self.changes.append(seat.reading),
        )  # fmt: skip
        self.directory.ask(seat, self.answers.append)

    @property
    def seat(self) -> Seat:
        (answer,) = self.answers
        assert isinstance(answer, Seat), answer
        return answer
