"""Joins that ask for what cannot be had: the client is told in Supabase's words, and its channel stays."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
import trio_websocket

from integration.daemon.conftest import Node, bearer, verdict
from integration.fixtures.daemon import token
from integration.fixtures.ws import PhoenixClient, phoenix

UNABLE = "Unable to subscribe to changes with given parameters. "
NOT_ENABLED = UNABLE + "Please check Realtime is enabled for the given connect parameters: "
EXCEPTION = UNABLE + "An exception happened so please check your connect parameters: "
INVALID = "Exception: ERROR P0001 (raise_exception) "


@pytest.fixture(scope="module")
def table(node: Node) -> str:
    node.table("t", "id bigint primary key, v text, flag boolean, at timestamptz, price numeric")
    node.table("uncaptured", captured=False)
    return "t"


def item(**members: object) -> dict[str, object]:
    return {"event": "*", "schema": "public", "table": "t", **members}


def filtered(text: str) -> dict[str, object]:
    return item(filter=text)


REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("no such table", item(table="ghosts", event="INSERT"),
     NOT_ENABLED + "[event: INSERT, schema: public, table: ghosts, filters: [], select: nil]"),
    ("not captured", item(table="uncaptured"),
     NOT_ENABLED + "[event: *, schema: public, table: uncaptured, filters: [], select: nil]"),
    ("no such schema", item(schema="nowhere"),
     NOT_ENABLED + "[event: *, schema: nowhere, table: t, filters: [], select: nil]"),
    ("a name that is too long", item(table="x" * 64), NOT_ENABLED),
    ("a name with NUL", item(table="a\0b"), NOT_ENABLED),
    ("a name of SQL", item(table='t"; drop table t; --'), NOT_ENABLED),
    ("the system's schema", item(schema="pg_catalog", table="pg_class"), NOT_ENABLED),
    ("our own table", item(schema="realtime", table="subscriptions"), NOT_ENABLED),
    ("no parameters", {"event": "*"},
     "No subscription params provided. Please provide at least a `schema` or `table` to subscribe to: "),
    ("a filter without a table", {"event": "*", "schema": "public", "filter": "id=eq.1"},
     "No subscription params provided. Please provide at least a `schema` or `table` to subscribe to: "),
    ("a filter without an operator", filtered("wrong"), 'Error parsing `filter` params: ["wrong"]'),
    ("a filter that is no text", item(filter=["wrong"]), "Error parsing `filter` params: "),
    ("an unknown operator", filtered("id=about.1"), ""),
    ("an unknown column", filtered("nope=eq.1"),
     EXCEPTION + '[event: *, schema: public, table: t, filters: [{"nope", "eq", "1"}], select: nil]. '
     + INVALID + "invalid column for filter nope"),
    ("a value that is no number", filtered("id=eq.abc"), EXCEPTION),
    ("a value out of range", filtered("id=eq.99999999999999999999999"), EXCEPTION),
    ("a value that is no time", filtered("at=gt.yesterdayish"), EXCEPTION),
    ("a value that is no boolean", filtered("flag=eq.maybe"), EXCEPTION),
    ("is.true of a text", filtered("v=is.true"), EXCEPTION),
    ("like of a number", filtered("id=like.1%"), EXCEPTION),
    ("a broken regular expression", filtered("v=match.("), EXCEPTION),
    ("too many values", filtered(f"id=in.({','.join(map(str, range(101)))})"), ""),
    ("too many conditions", filtered(",".join(["id=eq.1"] * 101)), ""),
    ("too deep", filtered("and(" * 40 + "id.eq.1" + ")" * 40), ""),
    ("a filter of a megabyte", filtered("v=eq." + "x" * 1_000_000), ""),
    ("NUL in a value", filtered("v=eq.a\0b"), ""),
    ("select that is no list", item(select="id"),
     'Error parsing `select` params: expected a list of column name strings, e.g. select: ["col1", "col2"]'),
    ("select of numbers", item(select=[1]), "Error parsing `select` params: "),
    ("select of an unknown column", item(select=["nope"]), "invalid column for select nope"),
    ("select with a wildcard", {"event": "*", "schema": "public", "table": "*", "select": ["id"]},
     "Column selection is not supported for wildcard subscriptions. Provide an explicit schema and table name."),
]  # fmt: skip


def test_every_refusal_has_its_words(node: Node, table: str) -> None:
    async def main() -> None:
        async with phoenix(node.daemon.websocket_url, apikey=bearer()) as client:
            for number, (name, wish, words) in enumerate(REFUSALS):
                status, message = await verdict(client, f"realtime:{number}", wish)
                assert status == "error", name
                assert words in message, (name, message)
            # All of them are joined, none of them gets anything, and the socket is as good as before.
            await client.subscribe("realtime:good", item())
            node.database.execute("insert into t values (1, 'x')")
            frame = await client.next("postgres_changes")
            assert frame.topic == "realtime:good"
            assert [each.event for each in await client.drain()] == []

    trio.run(main)


GOOD = [
    "id=eq.2", "id=neq.1", "id=lt.3", "id=lte.2", "id=gt.1", "id=gte.2", "id=in.(2,3)", "flag=is.true", "at=is.null",
    "v=like.b%", "v=ilike.B%", "v=match.^b", "v=imatch.^B", "price=isdistinct.1", "id=not.eq.1", "id=gt.1,flag=is.true",
    'v=eq."b,c"', "price=eq.2.50", "",
]  # fmt: skip


def test_every_operator_lets_the_right_row_through(node: Node, table: str) -> None:
    async def main() -> None:
        async with phoenix(node.daemon.websocket_url, apikey=bearer()) as client:
            for number, text in enumerate(GOOD):
                await client.subscribe(f"realtime:{number}", filtered(text) if text else item(filter=text))
            node.database.execute("delete from t; insert into t values (2, 'b,c', true, null, 2.5)")
            seen = {(await client.next("postgres_changes", seconds=10)).topic for _ in range(len(GOOD))}
            # The DELETE of test rows by their keys may match filters on the key, too.
            assert seen <= {f"realtime:{number}" for number in range(len(GOOD))}

            async def inserted() -> set[str]:
                frames = [frame for frame in await client.drain() if frame.event == "postgres_changes"]
                return {frame.topic for frame in frames if frame.payload["data"]["type"] == "INSERT"}

            await inserted()
            node.database.execute("insert into t values (3, 'b,c', true, null, 2.5)")
            await client.next("postgres_changes", topic=f"realtime:{len(GOOD) - 1}")
            topics = await inserted()
            missing = {text for number, text in enumerate(GOOD[:-1]) if f"realtime:{number}" not in topics}
            assert missing == {"id=eq.2", "id=lt.3", "id=lte.2"}

    trio.run(main)


def test_columns_are_cut_to_what_was_selected(node: Node, table: str) -> None:
    async def main() -> None:
        async with phoenix(node.daemon.websocket_url, apikey=bearer()) as client:
            await client.subscribe("realtime:cut", item(select=["v"]))
            node.database.execute("insert into t (id, v, flag) values (100, 'x', true)")
            (change,) = await client.changes(1)
            assert change["record"] == {"id": 100, "v": "x"}

    trio.run(main)


def test_a_subscription_row_cuts_rows_and_columns_for_everybody(node: Node, table: str) -> None:
    node.table("narrow", "id bigint primary key, public_part text, secret text", captured=False)
    node.database.execute(
        "insert into realtime.subscriptions (table_name, filter, columns)"
        " values ('public.narrow', 'id > 10', array['public_part'])"
    )

    async def main() -> None:
        async with phoenix(node.daemon.websocket_url, apikey=bearer("service_role")) as client:
            wish = item(table="narrow")
            for name, other in (("filter", {"filter": "secret=eq.x"}), ("select", {"select": ["secret"]})):
                status, message = await verdict(client, f"realtime:{name}", {**wish, **other})
                assert (status, f"invalid column for {name} secret" in message) == ("error", True), message
            await client.subscribe("realtime:narrow", wish)
            node.database.execute("insert into narrow values (1, 'a', 'hidden'), (11, 'b', 'hidden')")
            (change,) = await client.changes(1)
            assert change["record"] == {"id": 11, "public_part": "b"}
            assert "hidden" not in json.dumps(change)
            assert not await client.drain()

    trio.run(main)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (token("anon", seconds=-5), "InvalidJWTToken: Token has expired"),
        (token("anon", secret="x" * 40), "JwtSignatureError"),
        ("abc", "MalformedJWT"),
        ("a.b.c", "MalformedJWT"),
        ("", "MalformedJWT"),
        ("x" * 100_000, "MalformedJWT"),
    ],
)
def test_a_bad_token_refuses_the_join_alone(node: Node, table: str, key: str, words: str) -> None:
    async def main() -> None:
        async with phoenix(node.daemon.websocket_url, apikey=bearer()) as client:
            payload = {"config": {"postgres_changes": [item()]}, "access_token": key}
            reply = await client.reply(await client.push("realtime:bad", "phx_join", payload))
            assert (reply["status"], words in reply["response"]["reason"]) == ("error", True), reply
            await client.subscribe("realtime:good", item())

    trio.run(main)


def test_ten_thousand_joins_on_one_socket_end_it_and_nobody_else(node: Node, table: str) -> None:
    async def main() -> None:
        async with phoenix(node.daemon.websocket_url, apikey=bearer()) as witness:
            await witness.subscribe("realtime:witness", item())
            async with phoenix(node.daemon.websocket_url, apikey=bearer()) as loop:
                with trio.fail_after(30):
                    await _join_forever(loop)
            node.database.execute("insert into t (id) values (200)")
            assert (await witness.changes(1))[0]["record"]["id"] == 200

    trio.run(main)


async def _join_forever(client: PhoenixClient) -> None:
    async def forever() -> None:
        for number in range(10_000):
            await client.push(f"realtime:{number}", "phx_join", {"config": {"postgres_changes": [item()]}})
        while True:
            await client.connection.get_message()

    with pytest.raises(trio_websocket.ConnectionClosed) as closed:
        await forever()
    assert closed.value.reason is not None
    assert closed.value.reason.code == 1001


def test_five_hundred_items_of_one_join_are_one_subscription(node: Node, table: str) -> None:
    async def main() -> None:
        async with phoenix(node.daemon.websocket_url, apikey=bearer()) as client:
            response = await client.subscribe("realtime:many", *[filtered(f"id=eq.{n}") for n in range(1000, 1500)])
            assert len({each["id"] for each in response["postgres_changes"]}) == 500
            node.database.execute("insert into t (id) values (1250)")
            assert (await client.changes(1))[0]["record"]["id"] == 1250
            status, message = await verdict(client, "realtime:few", item())
            assert status == "ok", message
            changes = [filtered(f"id=eq.{n}") for n in range(501)]
            await client.join("realtime:more", changes=changes)
            assert "Too many items" in (await client.next("system", topic="realtime:more")).payload["message"]

    trio.run(main)
