"""The daemon's highest resident memory while one large row passes through, by its kind and decoder.

The client gets the row whole, but for the last one, of which it is told without its value.
"""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import rig

MB = 1_000_000
TABLE = """
create table public.bench (id bigint generated always as identity primary key, t text, b bytea, j jsonb);
alter table public.bench alter t set storage external, alter b set storage external, alter j set storage external;
grant select on public.bench to anon, authenticated, service_role;
"""
KINDS = {
    "text": f"(t) values (repeat('x', {100 * MB}))",
    "text, every third byte a quote": f"(t) values (repeat('xx\"', {100 * MB // 3}))",
    "text of wide characters": f"(t) values (repeat('€😀', {100 * MB // 7}))",
    "bytea, 100 MB in hexadecimal": f"(b) values (decode(repeat('ab', {50 * MB}), 'hex'))",
    "bytea, 200 MB in hexadecimal": f"(b) values (decode(repeat('ab', {100 * MB}), 'hex'))",
    "jsonb, one string": f"(j) values (jsonb_build_object('a', repeat('x', {100 * MB})))",
    "jsonb, many objects": "(j) select jsonb_agg(jsonb_build_object('id', n, 'name', 'a name')) from"
    f" generate_series(1, {100 * MB // 33}) n",
    "600 MB of text": f"(t) values (repeat('x', {600 * MB}))",
}
WHOLE = {"max_record_bytes": "250MiB", "outbox_bytes": "300MiB"}
WAIT_SECONDS = 5


def main() -> None:
    """Measure and print."""
    with rig.cluster() as server:
        dsn = rig.prepare(server, TABLE)
        for decoder in ("wal2json", "pgoutput"):
            found = [(kind, _peak(dsn, decoder, values)) for kind, values in KINDS.items()]
            rig.report(
                f"highest resident memory with one row of 100 MB, {decoder}",
                [(kind, f"{peak / MB:,.0f} MB") for kind, peak in found],
            )


def _peak(dsn: str, decoder: str, values: str) -> int:
    daemon = rig.Daemon(dsn, rig.free_port(), decoder=decoder, slot=f"bench_{decoder}", **WHOLE)
    raw = rig.connect(daemon.port)
    try:
        rig.join(raw, "rows", [{"event": "*", "schema": "public", "table": "bench"}])
        with ThreadPoolExecutor(1) as pool:
            written = pool.submit(
                rig.execute, dsn, f"insert into bench {values}", "insert into bench (t) values ('behind it')"
            )
            _read_until(raw, b"behind it")
            written.result()
        return _highest_resident_bytes(daemon.process.pid)
    finally:
        raw.close()
        daemon.stop()
        rig.execute(dsn, f"select pg_drop_replication_slot('bench_{decoder}')")


def _read_until(raw: socket.socket, text: bytes) -> None:
    """Take what comes, and be heard of meanwhile."""
    raw.settimeout(WAIT_SECONDS)
    seen = b""
    while text not in seen:
        try:
            data = raw.recv(1 << 20)
        except TimeoutError:
            raw.sendall(rig.masked('[null,"0","phoenix","heartbeat",{}]'))
            continue
        if not data:
            raise RuntimeError(f"closed: {seen!r}")
        seen = seen[-len(text) :] + data


def _highest_resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main()
