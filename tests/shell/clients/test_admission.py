"""Who is let in: pages, counts and rates by address, key and user, and what each refused one is told."""

from __future__ import annotations

import json

import msgspec
from structlog.testing import capture_logs

from tests.channel.channel_support import TOPIC, token
from tests.shell.clients.test_connection import FakeJoins, admission, handshake, join, served
from tests.shell.edge_support import read_frame
from tests.support import run
from walstream.channel.effects import Accepted
from walstream.shell.clients.gate import Gate, GateLimits
from walstream.shell.clients.sockets import HttpReply


def refused(answer: object) -> tuple[int, str, str]:
    assert isinstance(answer, HttpReply)
    return answer.status, answer.why, json.loads(answer.body)["error"]


def test_a_foreign_page_is_sent_away_before_its_key_is_looked_at() -> None:
    async def main() -> None:
        admit, _ = admission(FakeJoins(), origins="https://app.example.org")
        head = handshake(apikey="opaque")
        page = msgspec.structs.replace(head, headers=(*head.headers, ("origin", "https://evil.test")))
        assert refused(admit(page)) == (403, "origin", "Origin not allowed")
        assert not isinstance(admit(head), HttpReply)

    run(main)


def test_who_connects_too_often_or_too_much_is_told_which_limit_it_was() -> None:
    async def main() -> None:
        admit, _ = admission(FakeJoins(), gate=Gate(GateLimits(max_connects_per_second_per_address=0.1)))
        assert not isinstance(admit(handshake(apikey="opaque")), HttpReply)
        answer = admit(handshake(apikey="opaque"))
        assert refused(answer) == (429, "address_rate", "Too many joins per second")
        assert isinstance(answer, HttpReply)
        assert dict(answer.headers)["retry-after"] == "1"
        admit, _ = admission(FakeJoins(), gate=Gate(GateLimits(max_connections_per_key=1)))
        first = admit(handshake(apikey="opaque"))
        assert not isinstance(first, HttpReply)
        assert refused(admit(handshake(apikey="opaque"))) == (429, "key_connections", "Too many connected users")
        first.missed()
        assert not isinstance(admit(handshake(apikey="opaque")), HttpReply)

    run(main)


def test_a_place_is_free_again_when_its_connection_has_gone() -> None:
    async def main() -> None:
        gate = Gate(GateLimits(max_connections_per_key=1))
        async with served(gate=gate) as ws:
            assert gate.enter("", "opaque", "") == "key"
            ws.client.close()
            await ws.sockets.wait_empty()
            assert not isinstance(gate.enter("", "opaque", ""), str)

    run(main)


def test_a_user_named_by_a_join_is_counted_and_refused_there() -> None:
    async def main() -> None:
        gate = Gate(GateLimits(max_connections_per_user=1))
        other = gate.enter("", "", "ada")
        assert not isinstance(other, str)
        async with served(gate=gate) as ws:
            ws.joins.answer = Accepted()
            with capture_logs() as lines:
                await ws.send(join({}, access_token=token(sub="ada")))
            [line] = [line for line in lines if line["event"] == "channel.refused"]
            assert (line["role"], line["user"], line["peer"]) == ("authenticated", "ada", "192.0.2.1:5")
            reply = (await ws.read()).payload
            assert reply["response"]["reason"] == "ConnectionRateLimitReached: Too many connected users"
            assert ws.joins.asked == []
            await ws.send(join({}, access_token=token(sub="bob"), ref="2"))
            assert (await ws.read()).payload["status"] == "ok"
            assert gate.enter("", "", "bob") == "user"
            await ws.send(["2", "3", TOPIC, "access_token", {"access_token": token(sub="ada")}])
            assert (await read_frame(ws.client))[1] == b"the last change"
            frames = [await ws.read(), await ws.read()]
            assert (frames[0].payload["message"], frames[1].event) == ("Too many connected users", "phx_error")
            samples = ws.shared.metrics.registry.get_sample_value
            assert samples("walstream_refusals_total", {"reason": "user_connections"}) == 2

    run(main)
