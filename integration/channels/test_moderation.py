"""What moderators and admins may do, on real tables."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from integration.channels.rooms_rig import GENERAL, Rig, message, register, running
from integration.fixtures.postgres import TestDatabase
from walstream.auth.tokens import Claims
from walstream.rooms import Broadcast
from walstream.shell.channels.moderation import Denied, Done, Moderation
from walstream.shell.channels.seats import Seat
from walstream.shell.database.postgres import Database

MEMBERS = {"ann": "admin", "mod": "moderator", "mod2": "moderator", "bob": "member"}


@pytest.fixture
def channel_id(prepared: TestDatabase) -> str:
    id_ = register(prepared)
    for user, role in MEMBERS.items():
        prepared.execute(
            "insert into realtime.channel_members (channel_id, user_id, role) values (%s, %s, %s)", (id_, user, role)
        )
    return id_


async def perform(rig: Rig, who: str, action: str, /, **params: Any) -> Done | Denied:
    role = "service_role" if who == "service" else "authenticated"
    seat = await rig.seat(GENERAL, Claims(role, who))
    assert isinstance(seat, Seat)
    moderation = Moderation(Database(rig.database.dsn, "moderation"), "realtime", rig.store)
    try:
        return await moderation.perform(seat, action, params)
    finally:
        rig.directory.leave(seat)


def error(outcome: Done | Denied) -> str:
    return outcome.error if isinstance(outcome, Denied) else ""


def members(database: TestDatabase) -> dict[str, tuple[str, bool]]:
    rows = database.query("select user_id, role, muted from realtime.channel_members")
    return {user: (role, muted) for user, role, muted in rows}


@pytest.mark.parametrize(
    ("action", "params"),
    [
        ("delete_message", {"id": "x"}),
        ("hide_message", {"id": "x"}),
        ("remove_member", {"user": "bob"}),
        ("mute", {"user": "bob"}),
        ("unmute", {"user": "bob"}),
        ("set_role", {"user": "bob", "role": "admin"}),
        ("update_channel", {"persist": False}),
        ("delete_channel", {}),
    ],
)
def test_members_may_do_nothing_and_moderators_no_settings(
    prepared: TestDatabase, channel_id: str, action: str, params: dict[str, Any]
) -> None:
    rig = Rig(prepared)

    async def main() -> None:
        async with running(rig, stream=False):
            for user in ("bob", "stranger"):
                assert error(await perform(rig, user, action, **params)) == "unauthorized"
            if action in ("set_role", "update_channel", "delete_channel"):
                assert error(await perform(rig, "mod", action, **params)) == "unauthorized"
            assert error(await perform(rig, "service", action, **params)) in ("", "not_found")

    trio.run(main)


def test_moderators_delete_and_hide_messages(prepared: TestDatabase, channel_id: str) -> None:
    rig = Rig(prepared)

    async def main() -> None:
        async with running(rig, stream=False):
            for action in ("delete_message", "hide_message"):
                stored = await rig.append(message(), channel_id=channel_id)
                assert isinstance(stored, Broadcast)
                outcome = await perform(rig, "mod", action, id=stored.id)
                assert isinstance(outcome, Done)
                assert outcome.response == {"id": stored.id}
                ((event, payload),) = outcome.announce
                assert (event, payload) == (
                    {"delete_message": "message.deleted", "hide_message": "message.hidden"}[action],
                    {"id": stored.id, "by": "mod"},
                )
            for wrong in ("no uuid", "00000000-0000-4000-8000-000000000000", 7, None):
                assert error(await perform(rig, "mod", "hide_message", id=wrong)) == "not_found"
        assert prepared.query("select hidden from realtime.messages") == [(True,)]

    trio.run(main)


def test_moderators_act_against_members_and_not_against_each_other(prepared: TestDatabase, channel_id: str) -> None:
    rig = Rig(prepared)

    async def main() -> None:
        async with running(rig, stream=False):
            assert error(await perform(rig, "mod", "mute", user="bob")) == ""
            assert error(await perform(rig, "mod", "mute", user="troll")) == ""  # nobody's member yet
            for action in ("mute", "unmute", "remove_member"):
                for user in ("mod2", "ann", "mod"):
                    assert error(await perform(rig, "mod", action, user=user)) == "not_found"
            assert members(prepared)["bob"] == ("member", True)
            assert members(prepared)["troll"] == ("member", True)
            assert members(prepared)["ann"] == ("admin", False)
            assert error(await perform(rig, "mod", "unmute", user="bob")) == ""
            assert error(await perform(rig, "mod", "remove_member", user="troll")) == ""
            assert error(await perform(rig, "ann", "remove_member", user="mod2")) == ""
        assert members(prepared) == {"ann": ("admin", False), "mod": ("moderator", False), "bob": ("member", False)}

    trio.run(main)


def test_nobody_who_is_no_member_is_muted_on_a_private_channel(prepared: TestDatabase, channel_id: str) -> None:
    prepared.execute("update realtime.channels set type = 'private'")
    rig = Rig(prepared)

    async def main() -> None:
        async with running(rig, stream=False):
            assert error(await perform(rig, "mod", "mute", user="troll")) == "not_found"
            assert error(await perform(rig, "mod", "mute", user="bob")) == ""

    trio.run(main)


def test_admins_give_roles(prepared: TestDatabase, channel_id: str) -> None:
    prepared.execute("update realtime.channels set metadata = '{\"max_members\": 5}'")
    rig = Rig(prepared)

    async def main() -> None:
        async with running(rig, stream=False):
            outcome = await perform(rig, "ann", "set_role", user="bob", role="moderator")
            assert isinstance(outcome, Done)
            assert outcome.response == {"user": "bob", "role": "moderator"}
            assert error(await perform(rig, "ann", "set_role", user="new", role="member")) == ""
            assert error(await perform(rig, "ann", "set_role", user="one too many", role="member")) == "conflict"
            assert error(await perform(rig, "ann", "set_role", user="bob", role="owner")) == "invalid"
            for user in ("", "a\0b", 7, "x" * 2000):
                assert error(await perform(rig, "ann", "set_role", user=user, role="member")) == "invalid"
        assert members(prepared)["bob"] == ("moderator", False)

    trio.run(main)


def test_admins_change_settings(prepared: TestDatabase, channel_id: str) -> None:
    rig = Rig(prepared)
    metadata = {"max_members": 9, "schemas": {"e": {"type": "object"}}, "colour": "red"}

    async def main() -> None:
        async with running(rig, stream=False):
            outcome = await perform(
                rig, "ann", "update_channel", name="Générale", metadata=metadata, persist=False, retention_hours=5
            )
            assert error(outcome) == ""
            assert prepared.query("select name, metadata, persist, retention_hours from realtime.channels") == [
                ("Générale", metadata, False, 5)
            ]
            assert error(await perform(rig, "ann", "update_channel", retention_hours=None)) == ""
            refused: tuple[dict[str, Any], ...] = (
                {},
                {"slug": "x"},
                {"name": ""},
                {"name": "x", "type": "private"},
                {"metadata": []},
                {"metadata": {"schemas": {"e": {"type": "nothing"}}}},
                {"metadata": {"max_members": "many"}},
                {"metadata": {"x": "\0"}},
                {"persist": 1},
                {"retention_hours": 0},
                {"retention_hours": 10**12},
            )
            for wrong in refused:
                assert error(await perform(rig, "ann", "update_channel", **wrong)) == "invalid", wrong

    trio.run(main)


def test_admins_delete_the_channel_with_all_that_is_in_it(prepared: TestDatabase, channel_id: str) -> None:
    rig = Rig(prepared)

    async def main() -> None:
        async with running(rig, stream=False):
            await rig.append(message(), channel_id=channel_id)
            assert error(await perform(rig, "ann", "delete_channel")) == ""
            assert error(await perform(rig, "service", "delete_channel")) == "not_found"
            assert error(await perform(rig, "ann", "no such action")) == "invalid"
        assert members(prepared) == {}
        assert prepared.query("select * from realtime.messages") == []

    trio.run(main)


def test_without_a_database_nothing_is_done_and_said_so(prepared: TestDatabase, channel_id: str) -> None:
    rig = Rig(prepared)

    async def main() -> None:
        async with running(rig, stream=False):
            seat = await rig.seat(GENERAL, Claims("authenticated", "ann"))
            assert isinstance(seat, Seat)
            away = Moderation(Database("host=/nowhere", "moderation"), "realtime", rig.store)
            assert error(await away.perform(seat, "delete_channel", {})) == "unable_to_connect_to_project"

    trio.run(main)
