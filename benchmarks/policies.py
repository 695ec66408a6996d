"""Row-level security that PostgreSQL has to be asked about: membership through a join, 100 distinct claims.

The judge over a private PostgreSQL: every change of a transaction of 100 is judged for every viewer; by a sub-query,
and by a function that PostgreSQL has to call for each row. Beside it, in the same run and over the same rows, one
look-up by primary key per change and viewer, under the viewer's role and claims, by a prepared statement inside one
PL/pgSQL call: the way of Supabase's ``apply_rls``, without its decoding and filters.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence

import trio

from benchmarks import rig
from walstream.lsn import Lsn
from walstream.model import Catalog, Change, Column, Operation, Relation, Row, Transaction
from walstream.policy import Ask, Viewer, guard
from walstream.shell.database.catalog import load_types
from walstream.shell.database.policies import load_protections
from walstream.shell.database.postgres import Database, PgConnection
from walstream.shell.delivery.doubts import Doubts
from walstream.shell.delivery.judge import SESSIONS, Judge, Verdict

VIEWERS = 100
BATCH = 100
BATCHES = 60
UNDER_WAY = 2
USERS = 10_000
TEAMS = 500
TEAMS_EACH = 10
RUNS = 3
PEER_CHANGES = 100

JOIN = "exists (select from public.members m where m.team = judged.team and m.uid = auth.uid())"
CALL = "public.is_member(team)"

SETUP = f"""
create schema auth;
create function auth.uid() returns uuid language sql stable
    as $$ select (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid $$;
grant usage on schema auth to public;
create table public.members (team integer, uid uuid, primary key (team, uid));
insert into public.members
select (n * 7919 + team * 13) % {TEAMS}, md5(n::text)::uuid
  from generate_series(0, {USERS - 1}) n, generate_series(0, {TEAMS_EACH - 1}) team;
create index on public.members (uid);
create table public.judged (id integer primary key, team integer, title text);
insert into public.judged select n, n % {TEAMS}, 'a title of some length' from generate_series(1, {BATCH * BATCHES}) n;
create function public.is_member(integer) returns boolean language plpgsql stable security definer
    as $$ begin return exists (select from public.members m where m.team = $1 and m.uid = auth.uid()); end $$;
alter table public.judged enable row level security;
create policy team on public.judged for select to authenticated using ({JOIN});
grant select on public.members, public.judged to authenticated;
analyze public.members; analyze public.judged;
"""

PEER = """
do $$
declare
    claims text[] := '{claims}';
    own text := current_user;
    found integer;
    seen integer := 0;
begin
    for change in 1..{changes} loop
        execute 'prepare look_up as select 1 from public.judged where id = ' || change;
        for viewer in 1..{viewers} loop
            perform set_config('role', 'authenticated', true), set_config('request.jwt.claims', claims[viewer], true);
            execute 'execute look_up' into found;
            if found is not null then seen := seen + 1; end if;
        end loop;
        perform set_config('role', own, true);
        deallocate look_up;
    end loop;
    if seen = 0 then raise exception 'nobody saw anything'; end if;
end $$
"""


def main() -> None:
    """Measure and print."""
    with rig.cluster() as server:
        dsn = rig.prepare(server)
        rig.execute(dsn, SETUP)
        runs = [trio.run(_judged, dsn) for _ in range(RUNS)]
        peer = rig.median([_peer(dsn) for _ in range(RUNS)])
        rig.execute(dsn, f"alter policy team on public.judged using ({CALL})")
        called = rig.median([trio.run(_judged, dsn)[0] for _ in range(RUNS)])
        peer_called = rig.median([_peer(dsn) for _ in range(RUNS)])
    rates = [rate for rate, _ in runs]
    rate = rig.median(rates)
    rig.report(
        f"a policy that PostgreSQL is asked about, {VIEWERS} distinct claims, changes in batches of {BATCH}",
        [
            (
                "membership through a join: changes/s (mark: 1,000)",
                f"{rate:,.0f} ({min(rates):,.0f} to {max(rates):,.0f})",
            ),
            ("  verdicts/s", f"{rate * VIEWERS:,.0f}"),
            ("  processor time of this process per verdict", f"{rig.median([cpu for _, cpu in runs]) * 1e6:.1f} us"),
            ("  peer, a look-up by key for each viewer: changes/s", f"{peer:,.0f}"),
            ("by a function, called for each row: changes/s", f"{called:,.0f}"),
            ("  peer: changes/s", f"{peer_called:,.0f}"),
        ],
    )


async def _judged(dsn: str) -> tuple[float, float]:
    """Changes a second, and processor time of this process per verdict."""
    database = Database(dsn, "bench", size=SESSIONS + 1)
    relation, catalog, ask = await database.run(_facts)
    viewers = [Viewer("authenticated", claims) for claims in _claims()]
    judge = Judge(database, catalog, Doubts())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(judge.run)
        await _send(judge, ask, relation, viewers, batches=2)  # sessions and statements are made
        started, cpu = time.perf_counter(), time.process_time()
        visible = await _send(judge, ask, relation, viewers, batches=BATCHES)
        seconds, used = time.perf_counter() - started, time.process_time() - cpu
        nursery.cancel_scope.cancel()
    await database.aclose()
    if visible == 0 or len(judge) or list(judge.doubts):
        raise SystemExit(f"{visible} visible, {len(judge)} due, in doubt: {judge.doubts.health()}")
    return BATCH * BATCHES / seconds, used / (BATCH * BATCHES * VIEWERS)


async def _send(judge: Judge, ask: Ask, relation: Relation, viewers: Sequence[Viewer], batches: int) -> int:
    """Ask about batches, ``UNDER_WAY`` of them at once, and see all answers. Returns how many are yes."""
    answered = trio.Event()
    visible = 0
    waiting: deque[deque[Verdict]] = deque()

    def answers() -> None:
        nonlocal answered
        answered.set()
        answered = trio.Event()

    judge.on_answers = answers
    for number in range(batches + UNDER_WAY - 1):
        if number < batches:
            waiting.append(deque(_ask_all(judge, ask, _transaction(relation, number), viewers)))
        while len(waiting) >= UNDER_WAY or number >= batches:
            first = waiting[0]
            while first and first[0].answer is not None:
                visible += bool(first.popleft().answer)
            if first:
                await answered.wait()
                continue
            waiting.popleft()
            break
    return visible


def _ask_all(judge: Judge, ask: Ask, transaction: Transaction, viewers: Sequence[Viewer]) -> Iterator[Verdict]:
    for change in transaction.changes:
        row = change.new
        assert row is not None
        for viewer in viewers:
            yield judge.ask(viewer, ask, transaction, change.relation, row, is_old=False)


def _transaction(relation: Relation, number: int) -> Transaction:
    changes = []
    for at in range(BATCH):
        key = number * BATCH + at + 1
        row: Row = (b"%d" % key, b"%d" % (key % TEAMS), b'"a title of some length"')
        changes.append(Change(relation, Operation.INSERT, row, None, lsn=1, ordinal=at))
    return Transaction(xid=3, commit_lsn=Lsn(1 + number), commit_at=0, changes=changes)


def _facts(connection: PgConnection) -> tuple[Relation, Catalog, Ask]:
    with connection.cursor() as cursor:
        cursor.execute(
            "select a.attname, a.atttypid::int8, t.typname from pg_attribute a join pg_type t on t.oid = a.atttypid"
            " where a.attrelid = 'public.judged'::regclass and a.attnum > 0 order by a.attnum"
        )
        columns = tuple(Column(*found) for found in cursor.fetchall())
    catalog = Catalog()
    catalog.load(types=load_types(connection, [column.type_oid for column in columns]))
    relation = Relation("public", "judged", columns)
    protections = load_protections(connection, ["authenticated"], [("public", "judged")])
    found = guard(
        protections["authenticated", "public", "judged"], Viewer("authenticated", _claims()[0]), relation, catalog
    )
    if not isinstance(found, Ask):
        raise SystemExit(f"nobody has to be asked: {found}")
    return relation, catalog, found


def _claims() -> list[str]:
    uids = [uuid.UUID(hashlib.md5(str(number).encode()).hexdigest()) for number in range(VIEWERS)]
    return [json.dumps({"sub": str(uid), "role": "authenticated"}) for uid in uids]


def _peer(dsn: str) -> float:
    """Changes a second."""
    listed = "{" + ",".join(json.dumps(claims) for claims in _claims()) + "}"
    statement = PEER.format(claims=listed, changes=PEER_CHANGES, viewers=VIEWERS)
    started = time.perf_counter()
    rig.execute(dsn, statement)
    return PEER_CHANGES / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
