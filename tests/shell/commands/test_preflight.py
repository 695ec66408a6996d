"""What is judged of facts that are already known; reading them is tried in integration/cli/test_doctor.py."""

from __future__ import annotations

import msgspec
import psycopg2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.errors import DatabaseRefused
from walstream.history.budget import Budget, Gauge
from walstream.lsn import Lsn
from walstream.shell.commands import preflight
from walstream.shell.commands.migrate import SchemaState
from walstream.shell.commands.preflight import Probe, Server
from walstream.shell.database import postgres
from walstream.shell.database.open_transactions import OpenTransaction
from walstream.shell.database.reports import Finding
from walstream.shell.database.slots import Slot

GIB = 1 << 30
HEALTHY = Server(
    max_slot_wal_bytes=10 * GIB, client_roles={"anon": True, "authenticated": True, "service_role": True}
)  # fmt: skip
SLOT = Slot("walstream", "wal2json", "postgres", True, 7, Lsn(1), Lsn(2), 10, 20, "reserved", 9 * GIB, False)


def wrong(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.severity, finding.code) for finding in findings if finding.severity != "ok"]


def test_nothing_is_wrong_with_a_server_that_is_set_up_as_documented() -> None:
    findings = preflight.judge_server(HEALTHY)
    assert wrong(findings) == []
    assert len({(finding.code, finding.subject) for finding in findings}) == len(findings)


@pytest.mark.parametrize(
    ("change", "expected", "repair"),
    [
        ({"promised_pid": 2}, ("error", "pooler"), "connect to PostgreSQL itself"),
        ({"version": 130012}, ("error", "server_version"), "upgrade"),
        ({"encoding": "LATIN1"}, ("error", "encoding"), "encoding 'UTF8'"),
        ({"in_recovery": True, "version": 150000}, ("error", "standby"), "primary"),
        ({"in_recovery": True}, ("warning", "standby"), "primary"),
        ({"wal_level": "replica"}, ("error", "wal_level"), "alter system set wal_level = logical"),
        ({"max_wal_senders": 0}, ("error", "wal_senders"), "alter system set max_wal_senders = 10"),
        ({"wal_senders": 10}, ("warning", "wal_senders"), "alter system set max_wal_senders = 15"),
        ({"max_replication_slots": 0}, ("error", "replication_slots"), "alter system set max_replication_slots = 10"),
        ({"slots": 10}, ("warning", "replication_slots"), "alter system set max_replication_slots = 15"),
        ({"max_slot_wal_bytes": -1}, ("warning", "slot_wal_limit"), "alter system set max_slot_wal_keep_size"),
        ({"idle_slot_timeout": "60"}, ("warning", "slot_idle_timeout"), "idle_replication_slot_timeout = 0"),
        ({"synchronous_commit": "off"}, ("warning", "synchronous_commit"), "synchronous_commit = on"),
        ({"synchronous_standby_names": "*"}, ("error", "synchronous_standby"), "synchronous_standby_names"),
        ({"synchronous_standby_names": "ANY 1 (a, walstream)"}, ("error", "synchronous_standby"), "real standbys"),
        ({"synchronous_walsenders": ("walstream reader",)}, ("error", "synchronous_standby"), "real standbys"),
        ({"may_replicate": False, "user": "App"}, ("error", "replication_right"), 'alter role "App" replication'),
        (
            {"client_roles": {"anon": True, "authenticated": False, "service_role": True}},
            ("warning", "client_role"),
            "grant authenticated to postgres",
        ),
        ({"client_roles": {"authenticated": True, "service_role": True}}, ("warning", "client_role"), "walstream init"),
    ],
)
def test_each_fault_of_a_server_is_found_by_its_code_with_a_repair_and_nothing_else(
    change: dict[str, object], expected: tuple[str, str], repair: str
) -> None:
    findings = preflight.judge_server(msgspec.structs.replace(HEALTHY, **change))
    assert wrong(findings) == [expected]
    [found] = [finding for finding in findings if finding.severity != "ok"]
    assert repair in found.repair
    assert found.cause


def test_faults_do_not_hide_each_other() -> None:
    server = msgspec.structs.replace(HEALTHY, encoding="LATIN1", wal_level="minimal", may_replicate=False)
    assert [code for _, code in wrong(preflight.judge_server(server))] == ["encoding", "wal_level", "replication_right"]


@pytest.mark.parametrize("names", ["", "s1", "s1, s2", "FIRST 2 (s1, s2)", "any 1 (s1)", "1 (s1, s2)", '"Odd one"'])
def test_other_standbys_are_no_fault(names: str) -> None:
    server = msgspec.structs.replace(HEALTHY, synchronous_standby_names=names)
    assert wrong(preflight.judge_server(server)) == []


@given(
    names=st.lists(st.text("abzAZ09 _$\"*,()'", min_size=1).filter(str.strip), min_size=1),
    form=st.sampled_from(["{}", "2 ({})", "FIRST 1 ({})", "any 1({})"]),
)
def test_quoted_names_of_standbys_are_read_back(names: list[str], form: str) -> None:
    quoted = ", ".join('"' + name.replace('"', '""') + '"' for name in names)
    assert preflight.standby_names(form.format(quoted)) == tuple(names)


@given(st.text())
def test_no_value_of_the_setting_upsets_the_check(text: str) -> None:
    preflight.standby_names(text)


def plugins(decoder: str, slot: Slot | None, *probes: Probe) -> list[Finding]:
    return preflight.judge_plugins(HEALTHY, decoder, slot, probes)


def test_a_refused_plugin_comes_with_the_statement_that_permits_it() -> None:
    [found] = plugins("wal2json", None, Probe("wal2json", "refused", "may not be used"))
    assert (found.severity, found.code) == ("error", "plugin_refused")
    assert "alter role postgres set output_plugin_libraries = pgoutput, test_decoding, wal2json" in found.repair


def test_a_missing_plugin_comes_with_the_package_that_has_it() -> None:
    [found] = plugins("wal2json", None, Probe("wal2json", "missing", "could not access file"))
    assert (found.severity, found.code) == ("error", "plugin_missing")
    assert "apt-get install postgresql-17-wal2json" in found.repair


def test_what_another_plugin_stands_in_for_is_no_error() -> None:
    usable = Probe("pgoutput", "usable")
    assert wrong(plugins("auto", None, Probe("wal2json", "missing", ""), usable)) == []
    assert wrong(plugins("auto", None, Probe("wal2json", "unknown", ""), usable)) == []
    assert wrong(plugins("auto", None, Probe("wal2json", "refused", ""), usable)) == [("warning", "plugin_refused")]


def test_the_plugin_of_the_slot_cannot_be_replaced_by_another() -> None:
    usable = Probe("pgoutput", "usable")
    assert wrong(plugins("auto", SLOT, Probe("wal2json", "refused", ""), usable)) == [("error", "plugin_refused")]
    assert wrong(plugins("auto", SLOT, Probe("wal2json", "missing", ""), usable)) == [("error", "plugin_missing")]


def test_what_could_not_be_tried_is_said_to_be_unknown() -> None:
    assert wrong(plugins("wal2json", None, Probe("wal2json", "unknown", "busy"))) == [("unknown", "plugin")]


def measured(slot: Slot, keep_bytes: int, own_bytes: int = 0) -> Budget:
    return Gauge(own_bytes).measure(0.0, slot.wal_status, slot.retained_bytes, slot.safe_bytes, keep_bytes)


@pytest.mark.parametrize(
    ("change", "decoder", "expected"),
    [
        ({}, "auto", ("ok", "slot")),
        ({"database": "other"}, "auto", ("error", "slot_database")),
        ({"plugin": "test_decoding"}, "auto", ("error", "slot_plugin")),
        ({}, "pgoutput", ("error", "slot_plugin")),
        ({"wal_status": "lost", "active": False}, "auto", ("error", "slot_lost")),
        ({"wal_status": "unreserved", "safe_bytes": -1}, "auto", ("error", "slot_at_risk")),
        ({"safe_bytes": GIB, "retained_bytes": 9 * GIB}, "auto", ("warning", "slot_at_risk")),
        ({"confirmed_lsn": Lsn(9), "wal_end": Lsn(8)}, "auto", ("error", "slot_ahead")),
        ({"failover": True}, "auto", ("ok", "slot")),
        ({"safe_bytes": None}, "auto", ("ok", "slot")),
        ({"active": False}, "auto", ("warning", "slot_idle")),
    ],
)
def test_the_slot_is_judged(change: dict[str, object], decoder: str, expected: tuple[str, str]) -> None:
    slot = SLOT._replace(**change)  # type: ignore[arg-type]  # fields by name
    found = preflight.judge_slot(HEALTHY, decoder, "walstream", slot, measured(slot, HEALTHY.max_slot_wal_bytes))
    assert (found.severity, found.code) == expected
    assert bool(found.repair) == (found.severity != "ok")


@pytest.mark.parametrize(
    ("slot", "says"),
    [
        (SLOT._replace(retained_bytes=3 * GIB, lag_bytes=GIB), "keeps 2048.0 MB of WAL that is confirmed"),
        (SLOT._replace(confirmed_lsn=None), "it will be made after the prepared"),
        (None, "it will be made after the prepared"),
    ],
)
def test_an_open_transaction_is_named_with_what_ends_it(slot: Slot | None, says: str) -> None:
    found = preflight.judge_keeper("walstream", slot, OpenTransaction("it's", None, "app", "shop", 61.0))
    assert (found.severity, found.code, found.subject) == ("warning", "slot_kept", "walstream")
    assert says in found.cause
    assert found.repair == "as its owner, in shop: commit prepared 'it''s' or rollback prepared 'it''s'"


def test_without_a_limit_of_the_server_our_own_counts() -> None:
    server = msgspec.structs.replace(HEALTHY, max_slot_wal_bytes=-1)
    slot = SLOT._replace(safe_bytes=None, retained_bytes=5 * GIB)
    assert preflight.judge_slot(server, "auto", "walstream", slot, measured(slot, -1)).severity == "ok"
    found = preflight.judge_slot(server, "auto", "walstream", slot, measured(slot, -1, 10 * GIB))
    assert (found.severity, found.code) == ("warning", "slot_at_risk")
    assert "wal_budget_bytes" in found.repair


def test_a_daemon_that_stands_still_is_an_error() -> None:
    assert list(preflight.judge_stuck([])) == []
    (found,) = preflight.judge_stuck([("here", "no JSON")])
    assert (found.severity, found.code, found.subject) == ("error", "poisoned", "here")
    assert "no JSON" in found.cause


def test_what_was_left_out_is_told_until_it_is_cleared() -> None:
    assert preflight.judge_parked(0, "").severity == "ok"
    found = preflight.judge_parked(3, "public.t")
    assert (found.severity, found.code) == ("warning", "parked")
    assert "public.t" in found.cause


def test_a_slot_that_is_not_there_is_made_later_unless_its_name_is_taken() -> None:
    assert preflight.judge_slot(HEALTHY, "auto", "walstream", None).severity == "ok"
    server = msgspec.structs.replace(HEALTHY, physical_slots=("walstream",))
    found = preflight.judge_slot(server, "auto", "walstream", None)
    assert (found.severity, found.code) == ("error", "slot_physical")


@pytest.mark.parametrize(
    ("state", "severity", "repair"),
    [
        (SchemaState("current"), "ok", ""),
        (SchemaState("absent"), "error", "walstream init"),
        (SchemaState("empty"), "error", "walstream init"),
        (SchemaState("pending", "0006_pre_more"), "error", "walstream init"),
        (SchemaState("foreign", "has the tables of Supabase Realtime"), "error", "WALSTREAM_SCHEMA"),
        (SchemaState("newer", "0099_pre_future"), "error", "release"),
        (SchemaState("changed", "0001_pre_ledger"), "error", "release"),
    ],
)
def test_the_schema_is_judged(state: SchemaState, severity: str, repair: str) -> None:
    found = preflight.judge_schema("realtime", state)
    assert (found.code, found.severity) == ("schema", severity)
    assert repair in found.repair
    assert state.detail in found.cause


def test_sizes_are_for_people() -> None:
    assert preflight.size(None) == "an unknown amount"
    assert preflight.size(512) == "512 bytes"
    assert preflight.size(-16 << 20) == "-16.0 MB"


@pytest.mark.parametrize(
    "text", ["unsupported startup parameter: options", "unsupported startup parameter in options: x"]
)
def test_a_pooler_that_refuses_our_settings_is_told_from_a_server_that_is_away(text: str) -> None:
    error = postgres.translate(psycopg2.OperationalError(text))
    assert isinstance(error, DatabaseRefused)
    assert (error.reason, error.repair) == ("pooler", postgres.POOLER_REPAIR)
