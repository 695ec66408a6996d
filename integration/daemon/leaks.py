"""Tables under random policies, a workload on them, and what every user must and may get of it. No test lives here.

Each policy is written twice, as SQL and as Python. Memberships change while the workload runs: a change must reach
whoever it is visible to at every state since its commit, and may reach only those to whom it is at some state before it
arrives.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

TEAMS = 6


class User(NamedTuple):
    """Who looks. ``uid``: None for nobody in particular. ``claimed``: teams that the token names."""

    role: str
    uid: uuid.UUID | None
    claimed: frozenset[int] = frozenset()

    @property
    def claims(self) -> dict[str, object]:
        """What the token says beside its role."""
        named: dict[str, object] = {"app_metadata": {"teams": [str(team) for team in sorted(self.claimed)]}}
        return named if self.uid is None else {**named, "sub": str(self.uid)}


class Row(NamedTuple):
    """One row. ``title``: the number of the operation that wrote it."""

    id: int
    owner: uuid.UUID | None
    shared: bool | None
    team: int | None
    secret: bool
    title: str


class Memberships:
    """Who is in which team, at every version of the database."""

    def __init__(self) -> None:
        self._changes: dict[tuple[int, uuid.UUID], list[int]] = {}  # versions from which it is the other way round

    def toggle(self, team: int, uid: uuid.UUID, version: int) -> bool:
        """Let somebody in or out from ``version`` on. Returns whether they are in then."""
        changes = self._changes.setdefault((team, uid), [])
        changes.append(version)
        return len(changes) % 2 == 1

    def at(self, team: int | None, uid: uuid.UUID | None, version: int) -> bool:
        """Whether somebody was in at that version."""
        if team is None or uid is None:
            return False
        return sum(change <= version for change in self._changes.get((team, uid), ())) % 2 == 1


class Rule(NamedTuple):
    """One policy. ``truth``: of a row, for a user, at a version. ``roles``: None for everybody."""

    sql: str
    truth: Callable[[Row, User, int, Memberships], bool]
    role: str | None = None
    permissive: bool = True


def _own(row: Row, user: User, version: int, members: Memberships) -> bool:
    return row.owner is not None and row.owner == user.uid


PERMISSIVE: Sequence[Rule] = (
    Rule("owner = auth.uid()", _own),
    Rule("(select auth.uid()) = owner", _own, "authenticated"),
    Rule("shared", lambda row, user, version, members: row.shared is True),
    Rule(
        "exists (select from public.members m where m.team = {table}.team and m.uid = auth.uid())",
        lambda row, user, version, members: members.at(row.team, user.uid, version),
    ),
    Rule(
        "team::text in (select jsonb_array_elements_text(auth.jwt() -> 'app_metadata' -> 'teams'))",
        lambda row, user, version, members: row.team in user.claimed,
    ),
    Rule(
        "public.is_member(team)",
        lambda row, user, version, members: members.at(row.team, user.uid, version),
        "authenticated",
    ),
    Rule("shared and team = 2 or owner = auth.uid()", lambda row, user, version, members: (
        (row.shared is True and row.team == 2) or _own(row, user, version, members)
    )),
    Rule("now() < timestamptz '2000-01-01'", lambda row, user, version, members: False),
)  # fmt: skip
RESTRICTIVE: Sequence[Rule] = (
    Rule("not secret or owner = auth.uid()", lambda row, user, version, members: (
        not row.secret or _own(row, user, version, members)
    ), permissive=False),
    Rule("team is distinct from 3", lambda row, user, version, members: row.team != 3, "authenticated", False),
    Rule("now() > timestamptz '2000-01-01'", lambda row, user, version, members: True, permissive=False),
)  # fmt: skip

PREPARATION = """
create schema if not exists auth;
create or replace function auth.uid() returns uuid language sql stable
    as $$ select (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid $$;
create or replace function auth.jwt() returns jsonb language sql stable
    as $$ select nullif(current_setting('request.jwt.claims', true), '')::jsonb $$;
grant usage on schema auth to anon, authenticated, service_role;
create table public.members (team int, uid uuid, primary key (team, uid));
grant select on public.members to anon, authenticated, service_role;
create function public.is_member(integer) returns boolean language plpgsql stable security definer
    as $$ begin return exists (select from public.members m where m.team = $1 and m.uid = auth.uid()); end $$;
create table public.finis (id int primary key);
alter table public.finis enable row level security;
create policy everyone on public.finis for select using (exists (select from public.members m offset 0) or true);
grant select on public.finis to anon, authenticated, service_role;
"""


class Table:
    """One table and its policies. ``full``: whether the WAL has the whole old row."""

    def __init__(self, name: str, rules: Sequence[Rule], *, full: bool, partitioned: bool = False) -> None:
        self.name = name
        self.rules = rules
        self.full = full
        self.partitioned = partitioned
        self.rows: dict[int, Row] = {}

    def ddl(self) -> str:
        """What creates it."""
        tail = " partition by hash (id)" if self.partitioned else ""
        columns = "id int primary key, owner uuid, shared bool, team int, secret bool not null, title text"
        parts = [f"create table public.{self.name} ({columns}){tail}"]
        leaves = [f"{self.name}_{number}" for number in range(2)] if self.partitioned else []
        for number, leaf in enumerate(leaves):
            parts.append(
                f"create table public.{leaf} partition of public.{self.name}"
                f" for values with (modulus 2, remainder {number})"
            )
        if self.full:
            parts += [f"alter table public.{name} replica identity full" for name in (leaves or [self.name])]
        parts.append(f"alter table public.{self.name} enable row level security")
        for number, rule in enumerate(self.rules):
            kind = "permissive" if rule.permissive else "restrictive"
            condition = rule.sql.format(table=self.name)
            parts.append(
                f"create policy p{number} on public.{self.name} as {kind} for select"
                f" to {rule.role or 'public'} using ({condition})"
            )
        parts.append(f"grant select on public.{self.name} to anon, authenticated, service_role")
        return ";".join(parts)

    def sees(self, row: Row, user: User, version: int, members: Memberships) -> bool:
        """Whether a user may see a row at a version."""
        if user.role == "service_role":
            return True
        mine = [rule for rule in self.rules if rule.role in (None, user.role)]
        truths = [(rule.permissive, rule.truth(row, user, version, members)) for rule in mine]
        return any(truth for permissive, truth in truths if permissive) and all(
            truth for permissive, truth in truths if not permissive
        )


class Event(NamedTuple):
    """One change. ``version``: the first that has it."""

    table: Table
    kind: str
    new: Row | None
    old: Row | None
    version: int

    @property
    def key(self) -> tuple[str, str, int, str]:
        """By what it is told apart from all others."""
        row = self.new or self.old
        assert row is not None
        return self.table.name, self.kind, row.id, "" if self.new is None else row.title


class Workload:
    """Random changes, one transaction after the other. ``version``: of the newest one that is committed."""

    def __init__(self, seed: int, users: Sequence[User]) -> None:
        self.random = random.Random(seed)
        self.users = users
        self.members = Memberships()
        self.events: list[Event] = []
        self.version = 0
        self._last_id = 0
        self._operation = 0
        self.tables = [self._table(number) for number in range(5)]

    def _table(self, number: int) -> Table:
        choose = self.random
        # One at least for everybody: a table without is refused to whoever joins.
        first = choose.choice([rule for rule in PERMISSIVE if rule.role is None])
        others = [rule for rule in PERMISSIVE if rule is not first]
        rules = [first, *choose.sample(others, choose.randint(0, 2)), *choose.sample(RESTRICTIVE, choose.randint(0, 2))]
        return Table(f"guarded_{number}", rules, full=number != 1, partitioned=number == 2)

    def prepare(self, execute: Callable[[str], None]) -> None:
        """Create everything."""
        execute(PREPARATION)
        for table in self.tables:
            execute(table.ddl())

    def step(self, execute: Callable[..., None]) -> None:
        """One transaction."""
        choose = self.random
        version = self.version + 1
        if choose.random() < 0.15:
            user = choose.choice([user for user in self.users if user.uid is not None])
            team = choose.randrange(TEAMS)
            assert user.uid is not None
            if self.members.toggle(team, user.uid, version):
                execute("insert into public.members values (%s, %s)", (team, str(user.uid)))
            else:
                execute("delete from public.members where team = %s and uid = %s", (team, str(user.uid)))
        else:
            statements = [self._change(version) for _ in range(choose.choice([1, 1, 1, 2, 4]))]
            execute(";".join(text for text, _ in statements), [value for _, values in statements for value in values])
        self.version = version

    def _change(self, version: int) -> tuple[str, list[Any]]:
        choose = self.random
        table = choose.choice(self.tables)
        kind = choose.choice(["INSERT", "INSERT", "UPDATE", "UPDATE", "DELETE"]) if table.rows else "INSERT"
        old = choose.choice(list(table.rows.values())) if kind != "INSERT" else None
        new = None if kind == "DELETE" else self._row(old)
        self.events.append(Event(table, kind, new, old, version))
        name = f"public.{table.name}"
        if new is not None:
            table.rows[new.id] = new
            values = [*new[1:], new.id]
            values[0] = None if new.owner is None else str(new.owner)
            if old is not None:
                text = f"update {name} set owner = %s, shared = %s, team = %s, secret = %s, title = %s where id = %s"
                return text, values
            return (
                f"insert into {name} (owner, shared, team, secret, title, id) values (%s, %s, %s, %s, %s, %s)",
                values,
            )
        assert old is not None
        del table.rows[old.id]
        return f"delete from {name} where id = %s", [old.id]

    def _row(self, old: Row | None) -> Row:
        choose = self.random
        self._operation += 1
        if old is None:
            self._last_id += 1
        return Row(
            old.id if old is not None else self._last_id,
            choose.choice(self.users).uid if choose.random() < 0.9 else None,
            choose.choice([True, False, False, None]),
            choose.choice([*range(TEAMS), None]),
            choose.random() < 0.3,
            str(self._operation),
        )


class Got(NamedTuple):
    """One change as a client got it, at a version."""

    data: dict[str, Any]
    version: int

    @property
    def key(self) -> tuple[str, str, int, str]:
        """As ``Event.key``."""
        row = self.data.get("record") or self.data["old_record"]
        return self.data["table"], self.data["type"], row["id"], row["title"] if self.data["type"] != "DELETE" else ""


def complaints(workload: Workload, user: User, got: Sequence[Got]) -> list[str]:
    """What a user got and must not, did not get and must, or got out of order."""
    by_key = {event.key: event for event in workload.events}
    found = [f"twice: {each.key}" for number, each in enumerate(got) if each.key in {one.key for one in got[:number]}]
    order = [workload.events.index(by_key[each.key]) for each in got]
    if order != sorted(order):
        found.append("not in commit order")
    received = {each.key: each for each in got}
    for event in workload.events:
        each = received.get(event.key)
        until = workload.version if each is None else each.version
        row = event.new or event.old
        assert row is not None
        at = [event.table.sees(row, user, v, workload.members) for v in range(event.version, until + 1)]
        is_unknown = event.new is None and not event.table.full and user.role != "service_role"
        if each is None and all(at) and not is_unknown:
            found.append(f"missing: {event}")
        if each is not None and (not any(at) or is_unknown):
            found.append(f"leaked: {event}")
        if each is not None and event.old is not None and set(each.data["old_record"]) > {"id"}:
            before = [event.table.sees(event.old, user, v, workload.members) for v in range(event.version, until + 1)]
            if not any(before):
                found.append(f"an old row leaked: {event}")
    return found
