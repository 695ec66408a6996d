"""Row-level security with ``user_id = auth.uid()``: 3,000 subscribers with tokens of their own, against one.

Each change is for one of them. Beside it what that costs subscribers of a table without row-level security: the same
changes of another table with and without the 3,000 at the same daemon.
"""

from __future__ import annotations

import socket
import uuid
from urllib.parse import urlencode

from benchmarks import rig

SUBSCRIBERS = 3000
CHANGES = 20_000
ROUNDS = 3

SETUP = """
create schema if not exists auth;
create or replace function auth.uid() returns uuid language sql stable
    as $$ select (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid $$;
grant usage on schema auth to public;
create table public.own (id bigint generated always as identity primary key, user_id uuid, title text);
alter table public.own enable row level security;
create policy own on public.own for select using (user_id = auth.uid());
grant select on public.own to authenticated;
insert into realtime.subscriptions (table_name) values ('public.own');
"""
INSERT = {
    "own": "insert into public.own (user_id, title) values ('{user}', 'a title of some length')",
    "bench": "insert into public.bench (room, title, amount, done) values (7, 'a title of some length', 1.25, true)",
}


def main() -> None:
    """Measure and print."""
    with rig.cluster() as server:
        dsn = rig.prepare(server)
        rig.execute(dsn, SETUP)
        alone, open_alone = _measure(dsn, 1)
        crowd, open_crowd = _measure(dsn, SUBSCRIBERS)
    rig.report(
        f"row-level security, user_id = auth.uid(), {CHANGES:,} single-row commits, {ROUNDS} rounds (median)",
        [
            ("1 subscriber: processor time per change", f"{alone * 1e6:.1f} us"),
            (f"{SUBSCRIBERS:,} subscribers (mark: at most 500)", f"{crowd * 1e6:.1f} us"),
            ("a table without it, beside 1", f"{open_alone * 1e6:.1f} us"),
            (f"a table without it, beside {SUBSCRIBERS:,}", f"{open_crowd * 1e6:.1f} us"),
            ("  ratio", f"{open_crowd / open_alone:.2f}"),
        ],
    )


def _user(number: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, str(number)))


def _measure(dsn: str, subscribers: int) -> tuple[float, float]:
    """Processor time of the daemon per change: of the protected table, and of the other."""
    # Nobody reads the idle ones, nor answers their pings.
    daemon = rig.Daemon(dsn, rig.free_port(), decoder="wal2json", idle_seconds="1h", ping_seconds="50min")
    sockets = []
    try:
        for number in range(subscribers):
            bearer = rig.token("authenticated", sub=_user(number))
            raw = rig.connect(daemon.port, "/realtime/v1/websocket?" + urlencode({"apikey": bearer, "vsn": "2.0.0"}))
            rig.join(raw, "own", [{"event": "INSERT", "schema": "public", "table": "own"}])
            sockets.append(raw)
        witness = rig.connect(daemon.port)
        rig.join(witness, "open", [{"event": "INSERT", "schema": "public", "table": "bench"}])
        sockets.append(witness)
        own = rig.median([_round(dsn, daemon, "own", sockets[0]) for _ in range(ROUNDS)])
        return own, rig.median([_round(dsn, daemon, "bench", witness) for _ in range(ROUNDS)])
    finally:
        for raw in sockets:
            raw.close()
        daemon.stop()


def _round(dsn: str, daemon: rig.Daemon, table: str, reader: socket.socket) -> float:
    insert = INSERT[table].format(user=_user(0))
    daemon.pause()
    rig.execute(dsn, f"do $$ begin for i in 1..{CHANGES} loop {insert}; commit; end loop; end $$")
    before = daemon.cpu_seconds()
    daemon.resume()
    rig.read_all([reader], CHANGES)
    return (daemon.cpu_seconds() - before) / CHANGES


if __name__ == "__main__":
    main()
