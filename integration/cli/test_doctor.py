"""doctor finds each misconfiguration of a real server by its code, and its repair mends it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.cli.conftest import Walstream
from integration.cli.pooler import pooler
from integration.fixtures.postgres import TestDatabase, fresh_cluster, fresh_database, migrate, prepared_template
from walstream.shell.commands import preflight
from walstream.shell.commands.private_cluster import Cluster
from walstream.shell.database import postgres

SETTING = "output_plugin_libraries"
"""Minor releases since August 2026 ask it which output plugins may be used."""

TABLES = """
create table public.users (id integer primary key, name text);
grant select on public.users to anon, authenticated;
"""
LIMITED = {"max_slot_wal_keep_size": "10GB"}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, str]]:
    """A server of this module's own, whose settings and roles the tests change, and a template."""
    with fresh_cluster(tmp_path_factory.mktemp("doctor"), LIMITED) as cluster, prepared_template(cluster) as template:
        yield cluster, template


@pytest.fixture
def ground(own: tuple[Cluster, str]) -> Iterator[TestDatabase]:
    """A database in which nothing is wrong."""
    with fresh_database(*own) as database:
        database.execute(TABLES)
        yield database


@pytest.fixture
def doctor(ground: TestDatabase) -> Walstream:
    return Walstream(ground.dsn)


def wrong(walstream: Walstream, *arguments: str) -> list[tuple[str, str]]:
    """Severity and code of whatever is not in order; the exit code must agree."""
    done = walstream("doctor", *arguments, "--json")
    found = [(finding["severity"], finding["code"]) for finding in done.value if finding["severity"] != "ok"]
    assert done.code == (1 if any(severity == "error" for severity, _ in found) else 0), done
    for finding in done.value:
        assert finding["severity"] in ("ok", "unknown") or (finding["cause"] and finding["repair"]), finding
    return found


def repair(walstream: Walstream, code: str, *arguments: str) -> str:
    [found] = [
        finding["repair"]
        for finding in walstream("doctor", *arguments, "--json").value
        if finding["code"] == code and finding["severity"] != "ok"
    ]
    return str(found)


def test_nothing_is_wrong_where_all_is_as_documented(doctor: Walstream) -> None:
    doctor.ok("subscribe", "users")
    assert wrong(doctor) == []
    assert wrong(doctor, "users") == []
    done = doctor("doctor")
    assert (done.code, done.out) == (0, "")
    assert done.err.startswith("0 error, 0 warning, 0 unknown, ")
    shown = doctor("doctor", "users", "--all").out
    for code in ("wal_level", "slot", "subscription", "replica_identity", "select_right"):
        assert f"[{code}]" in shown


def test_doctor_leaves_no_slot_behind(doctor: Walstream, ground: TestDatabase) -> None:
    doctor("doctor")
    assert ground.scalar("select count(*) from pg_replication_slots") == 0


def test_doctor_does_not_wait_for_long_transactions(doctor: Walstream, ground: TestDatabase) -> None:
    with contextlib.closing(ground.connect(autocommit=False)) as blocker, blocker.cursor() as cursor:
        cursor.execute("create table public.held ()")  # a transaction with an id
        assert wrong(doctor) == []
        assert "has to wait for transactions" in doctor("doctor", "--all").out
    assert ground.scalar("select count(*) from pg_replication_slots") == 0


def test_settings_that_need_a_restart(tmp_path: Path) -> None:
    settings = {**LIMITED, "wal_level": "replica", "max_wal_senders": "0", "max_replication_slots": "0"}
    with fresh_cluster(tmp_path, settings) as cluster, fresh_database(cluster) as database:
        migrate(database.dsn)
        assert set(wrong(Walstream(database.dsn))) == {
            ("error", "wal_level"), ("error", "wal_senders"), ("error", "replication_slots"), ("unknown", "plugin"),
        }  # fmt: skip


def test_settings_of_the_server(own: tuple[Cluster, str], doctor: Walstream, ground: TestDatabase) -> None:
    for setting, value, expected in (
        ("max_slot_wal_keep_size", "-1", ("warning", "slot_wal_limit")),
        ("synchronous_commit", "off", ("warning", "synchronous_commit")),
        ("synchronous_standby_names", "'FIRST 1 (walstream)'", ("error", "synchronous_standby")),
    ):
        ground.execute(f"alter system set {setting} = {value}")
        ground.execute("select pg_reload_conf()")
        try:
            assert wrong(doctor) == [expected], setting
        finally:
            ground.execute(f"alter system reset {setting}")
            ground.execute("select pg_reload_conf()")
    assert wrong(doctor) == []


def test_a_database_that_is_not_utf8(own: tuple[Cluster, str], ground: TestDatabase) -> None:
    ground.execute("create database latin template template0 encoding 'LATIN1' locale 'C'")
    try:
        assert ("error", "encoding") in wrong(Walstream(own[0].dsn("latin")))
    finally:
        ground.execute("drop database latin")


def test_a_role_without_rights(own: tuple[Cluster, str], ground: TestDatabase) -> None:
    ground.execute("create role app login; grant anon to app")
    walstream = Walstream(own[0].dsn(ground.name, "app"))
    try:
        assert wrong(walstream) == [
            ("error", "replication_right"), ("warning", "client_role"), ("warning", "client_role"),
            ("unknown", "plugin"), ("unknown", "plugin"), ("error", "schema_right"),
        ]  # fmt: skip
        ground.execute(repair(walstream, "schema_right"))
        ground.execute(repair(walstream, "replication_right").partition("runs: ")[2].partition(" (")[0])
        ground.execute("grant authenticated, service_role to app")
        if ground.cluster.binaries.knows(SETTING):
            _plugin_refused(walstream, ground)
        assert wrong(walstream) == []
    finally:
        ground.execute("drop owned by app; drop role app")


def _plugin_refused(walstream: Walstream, ground: TestDatabase) -> None:
    """The server-wide list permits the plugin, this role's own does not."""
    ground.execute(f"alter role app set {SETTING} = pgoutput")
    assert wrong(walstream) == [("warning", "plugin_refused"), ("warning", "publications")]
    assert wrong(walstream, "--decoder", "wal2json") == [("error", "plugin_refused")]
    made = walstream.json("slot", "create", "app_slot")
    assert made["plugin"] == "pgoutput"
    walstream.ok("slot", "drop", "app_slot")
    refused = walstream("slot", "create", "app_slot", "--decoder", "wal2json")
    assert (refused.code, "[database_refused: plugin_refused]" in refused.err) == (4, True)
    ground.execute(repair(walstream, "plugin_refused").partition("runs: ")[2])


def test_the_role_that_init_made_for_the_daemon_lacks_nothing(own: tuple[Cluster, str], ground: TestDatabase) -> None:
    walstream = Walstream(own[0].dsn(ground.name, "walstream_daemon"))
    ground.execute("insert into realtime.subscriptions (table_name) values ('public.users')")
    assert wrong(walstream) == []
    assert wrong(walstream, "users") == []


def test_a_plugin_that_is_not_installed(ground: TestDatabase) -> None:
    asks = ground.cluster.binaries.knows(SETTING)
    dsn = f"{ground.dsn} options='-c {SETTING}=no_such_plugin'" if asks else ground.dsn
    with postgres.connection(dsn, "walstream tests") as connection:
        probe = preflight.probe_plugin(connection, "no_such_plugin")
        assert (probe.state, probe.plugin) == ("missing", "no_such_plugin")
        assert preflight.probe_plugin(connection, "pgoutput").state == ("refused" if asks else "usable")
        with connection.cursor() as cursor:
            cursor.execute("show statement_timeout")
            assert cursor.fetchone() == ("0",)


def test_slots_that_cannot_be_used(own: tuple[Cluster, str], doctor: Walstream, ground: TestDatabase) -> None:
    doctor.ok("slot", "create")
    try:
        assert wrong(doctor) == [("warning", "slot_idle")]
        assert wrong(doctor, "--decoder", "pgoutput") == [("error", "slot_plugin")]
        with fresh_database(*own) as other:
            assert wrong(Walstream(other.dsn)) == [("error", "slot_database")]
    finally:
        doctor.ok("slot", "drop", "walstream")
    ground.execute("select pg_create_physical_replication_slot('walstream')")
    try:
        assert wrong(doctor) == [("error", "slot_physical")]
    finally:
        ground.execute("select pg_drop_replication_slot('walstream')")


def test_a_slot_that_was_lost(tmp_path: Path) -> None:
    settings = {"max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB", "max_wal_size": "32MB"}
    with fresh_cluster(tmp_path, settings) as cluster, fresh_database(cluster) as database:
        migrate(database.dsn)
        walstream = Walstream(database.dsn)
        walstream.ok("slot", "create")
        for _ in range(4):
            database.execute("select pg_switch_wal()")
            database.execute("create table if not exists public.noise as select 1 as a")
            database.execute("insert into public.noise select 1")
        database.execute("checkpoint")
        assert wrong(walstream) == [("error", "slot_lost")]


def test_a_pooler_in_between(ground: TestDatabase) -> None:
    parts = dict(part.split("=", 1) for part in ground.dsn.split())
    with pooler(f"{parts['host']}/.s.PGSQL.{parts['port']}") as port:
        dsn = f"host=127.0.0.1 port={port} dbname={ground.name} user=postgres sslmode=disable gssencmode=disable"
        assert wrong(Walstream(dsn)) == [("error", "pooler")]


def test_rows_and_tables_that_cannot_work(doctor: Walstream, ground: TestDatabase) -> None:
    ground.execute(
        "create table public.nokey (a integer); grant select on public.nokey to anon;"
        "create table public.guarded (id integer primary key); grant select on public.guarded to anon;"
        "alter table public.guarded enable row level security;"
        "create table public.closed (id integer primary key)"
    )
    ground.execute(
        "insert into realtime.subscriptions (table_name) values ('public.gone'), ('users'), ('public.guarded')"
    )
    doctor.ok("subscribe", "nokey")
    doctor.ok("subscribe", "closed")
    doctor.ok("subscribe", "users", "*", "name = 'x'")
    assert sorted(wrong(doctor)) == [
        ("error", "subscription"), ("error", "subscription"),
        ("warning", "filter_on_delete"), ("warning", "replica_identity"), ("warning", "row_security"),
        ("warning", "select_right"),
    ]  # fmt: skip
    assert wrong(doctor, "nokey") == [("warning", "replica_identity")]
    ground.execute(repair(doctor, "replica_identity", "nokey").partition(";")[0])
    assert wrong(doctor, "nokey") == []
    ground.execute(repair(doctor, "filter_on_delete", "users"))
    ground.execute(repair(doctor, "select_right", "closed"))
    assert wrong(doctor, "users") == wrong(doctor, "closed") == []
    assert wrong(doctor, "guarded") == [("warning", "row_security")]
    ground.execute("update realtime.subscriptions set notify = true where table_name = 'public.guarded'")
    assert wrong(doctor, "guarded") == [("warning", "notify_mirror"), ("warning", "row_security")]
    assert ("warning", "notify_mirror") in wrong(doctor)


def test_policies_that_cannot_be_judged_for_some_rows(doctor: Walstream, ground: TestDatabase) -> None:
    ground.execute(
        "create table public.notes (id integer, owner text, body text, primary key (id)) partition by range (id);"
        "create table public.low partition of public.notes for values from (0) to (10);"
        "create table public.high partition of public.notes for values from (10) to (20);"
        "alter table public.low replica identity full;"
        "grant select on public.notes to authenticated; alter table public.notes enable row level security;"
        "create policy own on public.notes to authenticated using (owner = current_user);"
        "create policy everything on public.notes to service_role using (body <> '' and tableoid > 0)"
    )
    doctor.ok("subscribe", "notes", "INSERT,UPDATE")
    assert wrong(doctor, "notes") == []
    ground.execute(
        "insert into public.notes select 11, 'x', string_agg(md5(n::text), '') from generate_series(1, 999) n"
    )
    assert wrong(doctor, "notes") == [("warning", "policy_on_update")]
    doctor.ok("subscribe", "notes", "INSERT,UPDATE,DELETE")
    assert wrong(doctor, "notes") == [
        ("warning", "policy_on_delete"), ("warning", "policy_on_update")
    ]  # fmt: skip
    assert repair(doctor, "policy_on_update", "notes") == repair(doctor, "policy_on_delete", "notes")
    ground.execute(repair(doctor, "policy_on_delete", "notes"))
    assert wrong(doctor, "notes") == wrong(doctor) == []
    ground.execute("alter policy everything on public.notes to anon")
    assert wrong(doctor, "notes") == [("warning", "policy_columns")]


def test_policies_that_nobody_may_evaluate(doctor: Walstream, ground: TestDatabase) -> None:
    ground.execute(
        "create table public.notes (id integer primary key, team integer); create table public.members (team integer);"
        "grant select on public.notes to anon, authenticated; grant select on public.members to authenticated;"
        "alter table public.notes enable row level security; alter table public.notes replica identity full;"
        "create policy team on public.notes"
        " using (exists (select from public.members m where m.team = notes.team));"
        "create table public.mine (id integer primary key); grant select on public.mine to anon, authenticated;"
        "alter table public.mine enable row level security;"
        "create policy own on public.mine using (abs(id) = current_setting('request.jwt.claim.sub')::integer)"
    )
    doctor.ok("subscribe", "notes")
    doctor.ok("subscribe", "mine")
    assert wrong(doctor, "notes") == [("warning", "policy_error")]
    [told] = [line for line in doctor("doctor", "notes", "--json").value if line["code"] == "policy_error"]
    assert "as anon" in told["cause"]
    assert "permission denied for table members" in told["cause"]
    ground.execute("grant select on public.members to anon")
    assert wrong(doctor) == []


def test_rows_that_daemons_kept_from_viewers(doctor: Walstream, ground: TestDatabase) -> None:
    doctor.ok("subscribe", "users")
    doubts = [
        {"table": "public.users", "reason": "unchanged_toast", "rows": 7},
        {"table": "public.Other", "reason": "policy_error", "rows": 1},
        {"table": "public.users", "reason": "unchanged_toast", "rows": "many"},
    ]
    for number, seconds in enumerate((0, 10, 600)):
        ground.execute(
            "insert into realtime.nodes"
            " (node_id, address, version, pid, slot, clients, status, started_at, last_seen_at)"
            " values (%s, '', '1', 1, 'walstream', 0, %s, now(), now() - make_interval(secs => %s))",
            (f"n{number}", json.dumps({"health": {"doubts": doubts}}), seconds),
        )
    assert wrong(doctor, "users") == [("warning", "rows_in_doubt")]
    assert repair(doctor, "rows_in_doubt", "users") == "alter table public.users replica identity full"
    [told] = [line for line in doctor("doctor", "users", "--json").value if line["code"] == "rows_in_doubt"]
    assert told["cause"].startswith("14 rows were kept")
    assert wrong(doctor) == [("warning", "rows_in_doubt")] * 2


def test_a_literal_that_no_longer_casts(doctor: Walstream, ground: TestDatabase) -> None:
    ground.execute("create type mood as enum ('calm'); create table public.moods (id integer primary key, m mood)")
    ground.execute("grant select on public.moods to anon")
    ground.execute("insert into realtime.subscriptions (table_name, filter) values ('public.moods', 'm = ''angry''')")
    assert wrong(doctor, "moods") == [("error", "subscription")]
    ground.execute("alter type mood add value 'angry'; alter table public.moods replica identity full")
    assert wrong(doctor, "moods") == []


def test_one_table(doctor: Walstream) -> None:
    assert wrong(doctor, "users") == [("error", "not_captured")]
    assert repair(doctor, "not_captured", "users") == "walstream subscribe public.users"
    doctor.ok("subscribe", "public.*")
    assert wrong(doctor, "users") == []
    assert doctor("doctor", "nothing").code == 3
    assert doctor("doctor", "realtime.messages").code == 1


def test_the_schema_and_what_is_left_of_other_products(
    own: tuple[Cluster, str], doctor: Walstream, ground: TestDatabase
) -> None:
    ground.execute("create trigger old after insert on public.users execute function realtime.touch_updated_at()")
    assert wrong(doctor) == [("warning", "triggers")]
    ground.execute(repair(doctor, "triggers"))
    assert wrong(doctor) == []
    assert wrong(doctor, "--publication", "nope") == [("error", "publication")]
    ground.execute(repair(doctor, "publication", "--publication", "nope").partition(",")[0])
    assert wrong(doctor, "--publication", "nope") == []
    with fresh_database(own[0]) as empty:
        assert wrong(Walstream(empty.dsn)) == [("error", "schema")]
        empty.execute("create schema realtime; create table realtime.subscription (id integer)")
        assert wrong(Walstream(empty.dsn)) == [("error", "schema")]


def test_publications_that_are_behind(doctor: Walstream, ground: TestDatabase) -> None:
    doctor.ok("slot", "create", "--decoder", "pgoutput")
    try:
        doctor.ok("subscribe", "users")
        assert wrong(doctor) == [("warning", "slot_idle")]
        ground.execute("alter publication walstream_all drop table public.users")
        assert wrong(doctor) == [("warning", "slot_idle"), ("error", "publications")]
        ground.execute(repair(doctor, "publications"))
        assert wrong(doctor) == [("warning", "slot_idle")]
    finally:
        doctor.ok("slot", "drop", "walstream")
