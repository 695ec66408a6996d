"""Unmodified official clients in private channels: let in and refused by policies, with tokens that change and end."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import pytest

from integration.clients.official import SUPABASE, OfficialClient, official_client
from integration.fixtures.daemon import Daemon, running_daemon, token
from integration.fixtures.node import eventually
from integration.fixtures.postgres import TestDatabase, fresh_database
from walstream.shell.commands.private_cluster import Cluster

_rooms = (f"den-{number}" for number in itertools.count(1))
GREETINGS: dict[str, object] = {"type": "broadcast", "event": "greet"}
PRESENCE: dict[str, object] = {"type": "presence"}
ACKED = {"private": True, "broadcast": {"ack": True}}
JAVASCRIPT = tuple(name for name in SUPABASE if name != "python")
FORBIDDEN = "Unauthorized: You do not have permissions to read from this Channel topic: {}"

POLICIES = """
create table public.grants (who uuid, topic text, verb text, extension text);
grant select on public.grants to authenticated;
create policy reads on realtime.messages for select to authenticated using (exists (
    select from public.grants g where g.who = auth.uid() and g.topic = realtime.topic()
       and g.verb = 'read' and g.extension = messages.extension));
create policy writes on realtime.messages for insert to authenticated with check (exists (
    select from public.grants g where g.who = auth.uid() and g.topic = realtime.topic()
       and g.verb = 'write' and g.extension = messages.extension));
"""
ADA, BOB = "11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222"


@pytest.fixture(scope="module")
def database(cluster: Cluster, template: str) -> Iterator[TestDatabase]:
    with fresh_database(cluster, template) as made:
        made.execute(POLICIES)
        yield made


@pytest.fixture(scope="module")
def daemon(database: TestDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running_daemon(database.dsn, tmp_path_factory.mktemp("daemon")) as running:
        yield running
        assert running.is_running, running.log_tail()
        assert not [line for line in running.log() if line.get("event") == "handler.failed"]


def person(sub: str, seconds: float = 3600) -> str:
    return token("authenticated", sub=sub, seconds=seconds)


def allow(database: TestDatabase, who: str, topic: str, *rights: str) -> None:
    """``rights``: such as ``read broadcast``."""
    for right in rights:
        verb, extension = right.split()
        database.execute("insert into public.grants values (%s, %s, %s, %s)", (who, topic, verb, extension))


EVERYTHING = ("read broadcast", "read presence", "write broadcast", "write presence")


@contextlib.contextmanager
def as_person(library: str, daemon: Daemon, apikey: str) -> Iterator[OfficialClient]:
    """A client with the key that everybody has, and then somebody's token, as an application does it."""
    callback = ("callback",) if library != "python" else ()
    with official_client(library, daemon.url, token("anon"), *callback) as client:
        client.do("auth", "", token=apikey)
        client.expect("authorized")
        yield client


@pytest.mark.parametrize("library", SUPABASE)
def test_who_may_comes_in_and_says_what_they_may(library: str, daemon: Daemon, database: TestDatabase) -> None:
    room, other_room = next(_rooms), next(_rooms)
    allow(database, ADA, room, *EVERYTHING)
    allow(database, BOB, room, "read broadcast", "read presence")
    with as_person(library, daemon, person(ADA)) as ada, as_person("supabase-js", daemon, person(BOB)) as bob:
        key = {"presence": {"key": "ada", "enabled": True}}
        ada.join(room, GREETINGS, PRESENCE, config={**ACKED, **key})
        bob.join(room, GREETINGS, PRESENCE, config={**ACKED, "presence": {"key": "bob", "enabled": True}})
        ada.do("send", room, event="greet", payload={"n": 1})
        assert ada.expect("sent", room)["outcome"] == "ok"
        assert bob.expect("broadcast", room)["message"]["payload"] == {"n": 1}
        ada.do("track", room, payload={"mood": "fine"})
        bob.expect("join", room, key="ada")
        bob.do("send", room, event="greet", payload={"n": 2})
        assert bob.expect("sent", room)["outcome"] == "error"
        bob.do("track", room, payload={})
        assert bob.expect("tracked", room)["outcome"] == "error"
        ada.do("join", other_room, bind=[], config=ACKED)
        refused = ada.expect("status", other_room, status="CHANNEL_ERROR")
        assert FORBIDDEN.format(other_room) in refused["error"]


@pytest.mark.parametrize("library", JAVASCRIPT)
def test_a_refreshed_token_goes_on_and_one_that_lost_the_right_ends_the_channel(
    library: str, daemon: Daemon, database: TestDatabase
) -> None:
    room = next(_rooms)
    allow(database, ADA, room, *EVERYTHING)
    with as_person(library, daemon, person(ADA)) as ada:
        ada.join(room, GREETINGS, config=ACKED)
        ada.do("auth", "", token=person(ADA, seconds=7000))
        ada.expect("authorized")
        ada.do("send", room, event="greet", payload={})
        assert ada.expect("sent", room)["outcome"] == "ok"
        ada.do("auth", "", token=person(BOB))
        assert "no longer have permission" in ada.expect("system", room)["message"]["message"]
        ada.expect("status", room, status="CLOSED")


@pytest.mark.parametrize("library", JAVASCRIPT)
def test_a_token_that_expires_is_mended_by_the_next_one(library: str, daemon: Daemon, database: TestDatabase) -> None:
    """The end is ``phx_error``: the client joins again by itself, with the token that it has by then."""
    room = next(_rooms)
    allow(database, ADA, room, *EVERYTHING)
    with as_person(library, daemon, person(ADA, seconds=3)) as ada:
        ada.join(room, GREETINGS, config=ACKED)
        told = ada.expect("system", room)["message"]
        assert (told["extension"], told["status"]) == ("system", "error")
        assert told["message"].startswith("Token has expired")
        ada.expect("status", room, status="CHANNEL_ERROR")
        ada.do("auth", "", token=person(ADA))
        ada.expect("authorized")
        ada.expect("status", room, status="SUBSCRIBED", seconds=40)
        ada.do("send", room, event="greet", payload={})
        assert ada.expect("sent", room)["outcome"] == "ok"


@pytest.mark.parametrize("library", SUPABASE)
def test_a_revoked_token_ends_for_good(
    library: str, database: TestDatabase, tmp_path_factory: pytest.TempPathFactory
) -> None:
    room = next(_rooms)
    allow(database, ADA, room, *EVERYTHING)
    directory = tmp_path_factory.mktemp("revoked")
    path = directory / "list"
    path.write_text("")
    with (
        running_daemon(database.dsn, directory, {"WALSTREAM_REVOKED": str(path)}) as daemon,
        as_person(library, daemon, person(ADA)) as ada,
    ):
        ada.join(room, GREETINGS, config=ACKED)
        path.write_text(f"sub:{ADA}\n")
        if library != "python":  # it keeps such messages to itself
            assert ada.expect("system", room)["message"]["message"] == "The token has been revoked"
            ada.expect("status", room, status="CLOSED")
        eventually(lambda: any(line["event"] == "revocations.changed" for line in daemon.log()))
