"""The files of docker/postgres-wal against a real server; no container engine is needed for any of it."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from integration.fixtures.postgres import TestDatabase, fresh_cluster
from walstream.shell.commands.private_cluster import Cluster

IMAGE = Path(__file__).resolve().parents[2] / "docker" / "postgres-wal"


def libpq(cluster: Cluster, dbname: str = "postgres") -> dict[str, str]:
    bin_dir = cluster.binaries.bin_dir
    return {
        "PATH": f"{bin_dir}:{os.environ['PATH']}",
        "PGHOST": str(cluster.socket_dir),
        "PGUSER": "postgres",
        "PGDATABASE": dbname,
    }


def run(command: list[str | Path], environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=dict(environ), capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("name", ["entrypoint.sh", "ready.sh"])
def test_a_shell_script_is_executable_and_parses(name: str) -> None:
    done = run(["sh", "-n", IMAGE / name], os.environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert os.access(IMAGE / name, os.X_OK)


def test_every_file_that_the_image_copies_exists() -> None:
    copied = [
        word
        for line in (IMAGE / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY")
        for word in line.split()[1:-1]
    ]
    assert copied
    assert [name for name in copied if not (IMAGE / name).exists()] == []


def test_the_configuration_starts_a_server_and_every_setting_has_a_reason(tmp_path: Path) -> None:
    lines = (IMAGE / "postgresql.conf").read_text().splitlines()
    previous = ""
    for line in lines:
        if line and not line.startswith("#") and not line.startswith("timezone"):
            assert previous.startswith("#"), f"no reason above: {line}"
        previous = line
    with fresh_cluster(tmp_path) as cluster:
        # Read after our own settings, so it wins, except that nothing listens on TCP here.
        main = cluster.data_dir / "postgresql.conf"
        main.write_text(main.read_text() + "\n".join(lines) + "\nlisten_addresses = ''\n")
        cluster.restart()
        database = TestDatabase(cluster, "postgres")
        assert database.scalar("show max_slot_wal_keep_size") == "4GB"
        assert database.scalar("show max_replication_slots") == "16"
        database.close()


def test_the_access_rules_are_valid_and_keep_passwords_for_the_outside(tmp_path: Path) -> None:
    with fresh_cluster(tmp_path) as cluster:
        database = TestDatabase(cluster, "postgres")
        (cluster.data_dir / "pg_hba.conf").write_text((IMAGE / "pg_hba.conf").read_text())
        rules = database.query("select type, auth_method, error from pg_hba_file_rules order by line_number")
        database.close()
    assert rules == [("local", "trust", None), ("host", "scram-sha-256", None)]


def test_the_roles_can_be_made_twice_and_the_daemon_may_stream_but_is_no_superuser(tmp_path: Path) -> None:
    with fresh_cluster(tmp_path) as cluster:
        database = TestDatabase(cluster, "postgres")
        environ = {**libpq(cluster), "WALSTREAM_DB_PASSWORD": "it's secret"}
        for _ in range(2):
            done = run(["psql", "-X", "-v", "ON_ERROR_STOP=1", "-f", IMAGE / "initdb" / "10_roles.sql"], environ)
            assert done.returncode == 0, done.stderr
        assert database.query(
            "select rolcanlogin, rolreplication, rolinherit, rolsuper, rolpassword like 'SCRAM-SHA-256%'"
            " from pg_authid where rolname = 'walstream_daemon'"
        ) == [(True, True, False, False, True)]
        assert database.query(
            "select r.rolname from pg_auth_members m join pg_roles r on r.oid = m.roleid"
            " join pg_roles d on d.oid = m.member where d.rolname = 'walstream_daemon' order by 1"
        ) == [("anon",), ("authenticated",), ("service_role",)]
        database.close()


def test_ready_once_a_logical_slot_can_be_made_and_leaves_none(cluster: Cluster, tmp_path: Path) -> None:
    environ = {**libpq(cluster), "READY_PROOF": str(tmp_path / "proof")}
    for _ in range(2):
        done = run([IMAGE / "ready.sh"], environ)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    database = TestDatabase(cluster, "postgres")
    assert database.scalar("select count(*) from pg_replication_slots where slot_name like 'ready%'") == 0
    database.close()


def test_not_ready_while_the_server_cannot_decode(tmp_path: Path) -> None:
    with fresh_cluster(tmp_path, {"wal_level": "replica"}) as cluster:
        environ = {**libpq(cluster), "READY_PROOF": str(tmp_path / "proof")}
        done = run([IMAGE / "ready.sh"], environ)
        assert done.returncode != 0
        assert "wal_level" in done.stderr
        cluster.stop()
        assert run([IMAGE / "ready.sh"], environ).returncode != 0


@pytest.mark.parametrize(("known", "written"), [(True, True), (False, False)])
def test_the_plugin_list_is_written_only_for_a_server_that_knows_it(
    tmp_path: Path, *, known: bool, written: bool
) -> None:
    parameter = "output_plugin_libraries" if known else "output_plugin_librariez"
    stand_ins = {
        "postgres": f"printf '%s\\tsighup\\n' {parameter}",
        "docker-entrypoint.sh": 'echo "started $@"',
    }
    for name, body in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(stat.S_IRWXU)
    conf = tmp_path / "plugins.conf"
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "OUTPUT_PLUGINS_CONF": str(conf)}
    done = run([IMAGE / "entrypoint.sh", "postgres", "-c", "a=b"], environ)
    assert (done.returncode, done.stdout) == (0, "started postgres -c a=b\n")
    assert conf.exists() is written
    if written:
        assert conf.read_text() == "output_plugin_libraries = 'pgoutput, test_decoding, wal2json'\n"
