"""The systemd unit: read by systemd's own checker where it is installed, and by its keys everywhere."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from walstream import config

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
UNIT = DEPLOY / "walstream.service"
PROGRAM = "/opt/walstream/bin/walstream"

HARDENING = {
    "CapabilityBoundingSet": "",
    "DynamicUser": "yes",
    "MemoryDenyWriteExecute": "yes",
    "NoNewPrivileges": "yes",
    "PrivateDevices": "yes",
    "PrivateTmp": "yes",
    "ProtectHome": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectSystem": "strict",
    "RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6",
    "RestrictNamespaces": "yes",
    "UMask": "0077",
}


def keys() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text(encoding="utf-8").splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_systemd_has_nothing_to_say_against_the_unit(tmp_path: Path) -> None:
    text = UNIT.read_text(encoding="utf-8")
    assert re.search(rf"^ExecStart={PROGRAM} serve$", text, re.MULTILINE)
    analyze = shutil.which("systemd-analyze")
    if analyze is not None:
        copy = tmp_path / UNIT.name
        copy.write_text(text.replace(PROGRAM, shutil.which("true") or "/bin/true"))
        done = subprocess.run([analyze, "verify", copy], capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_is_hardened() -> None:
    found = keys()
    assert {key: found.get(key, ["missing"])[-1] for key in HARDENING} == HARDENING
    assert found["SystemCallFilter"] == ["@system-service", "~@privileged @resources"]


def test_systemd_waits_longer_than_the_daemon_drains() -> None:
    assert config.parse_seconds("TimeoutStopSec", keys()["TimeoutStopSec"][0]) > config.Config().drain_seconds


def test_the_unit_allows_as_many_descriptors_as_clients() -> None:
    assert int(keys()["LimitNOFILE"][0]) > 2 * config.Config().max_connections


def test_the_example_environment_is_a_valid_configuration() -> None:
    lines = (DEPLOY / "walstream.env.example").read_text(encoding="utf-8").splitlines()
    environ = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    loaded = config.load(environ=environ)
    assert loaded.has_keys
    assert loaded.is_loopback
