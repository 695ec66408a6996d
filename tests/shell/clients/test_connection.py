"""A socket, a session and somebody who answers joins, put together: order on the wire, bulkheads, deadlines, counts."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from tests.channel.channel_support import SECRET, TODOS, TOPIC, VSN_1, VSN_2, Frame, read, token
from tests.shell.edge_support import masked, read_frame, read_head_text, socket_pair, upgrade_head
from tests.support import run
from walstream.auth.rules import Revocations
from walstream.auth.tokens import Claims, Verifier, mint
from walstream.channel.effects import Accepted, JoinRequest, Refused
from walstream.channel.origins import Origins
from walstream.channel.pushes import Push
from walstream.channel.session import SessionLimits
from walstream.config import Config
from walstream.protocol.phoenix import ClientMessage
from walstream.protocol.websocket import frame
from walstream.shell.channels.connection_report import ConnectionFacts
from walstream.shell.channels.guests import RoomOwner
from walstream.shell.clients.admission import Admission, session_limits
from walstream.shell.clients.connection import Connection, Connections, JoinOwner
from walstream.shell.clients.expiries import Expiries
from walstream.shell.clients.gate import Gate
from walstream.shell.clients.sockets import Head, HttpReply, Socket
from walstream.shell.clients.stream import SocketStream
from walstream.shell.clients.websocket import WebSockets
from walstream.shell.delivery.outbox import Drains, Outbox
from walstream.telemetry.metrics import Metrics

BLOCKED = trio.testing.wait_all_tasks_blocked
CHANGES = {"postgres_changes": [TODOS]}
START = 1_700_000_000.0


class FakeJoins:
    """Remembers what it is asked; answers at once where ``answer`` says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[JoinOwner, JoinRequest]] = []
        self.forgotten: list[int] = []
        self.claims: list[tuple[int, Claims]] = []
        self.answer: Accepted | None = None
        self.fails = False

    def ask(self, owner: JoinOwner, request: JoinRequest) -> None:
        if self.fails:
            raise ZeroDivisionError
        self.asked.append((owner, request))
        if self.answer is not None:
            owner.join_ready(request.serial, self.answer)

    def forget(self, owner: JoinOwner, serial: int) -> None:
        self.forgotten.append(serial)
        owner.outbox.push(frame(b"the last change"))

    def refreshed(self, owner: JoinOwner, serial: int, claims: Claims) -> None:
        if self.fails:
            raise ZeroDivisionError
        self.claims.append((serial, claims))


class OpenRooms:
    """Lets everybody in and remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []
        self.pushes: list[Push] = []
        self.refuses = ""
        self.greets = False

    def ask(
        self, owner: RoomOwner, request: JoinRequest, admitted: Callable[[], None], refused: Callable[[str], None]
    ) -> None:
        self.told.append(("ask", request.serial))
        if self.refuses:
            refused(self.refuses)
        else:
            admitted()

    def enter(self, owner: RoomOwner, serial: int) -> None:
        self.told.append(("enter", serial))
        if self.greets:
            owner.push(serial, "presence_state", b"{}")

    def leave(self, owner: RoomOwner, serial: int) -> None:
        self.told.append(("leave", serial))

    def refreshed(self, owner: RoomOwner, serial: int, claims: Claims) -> None:
        self.told.append(("refreshed", serial))

    def pushed(self, owner: RoomOwner, serial: int, push: Push, asked: ClientMessage | None) -> None:
        self.pushes.append(push)
        if asked is not None:
            owner.answer(asked, "ok", b'{"id":"1"}')


class Guestbook:
    """Who is there."""

    def __init__(self) -> None:
        self.open: dict[str, Callable[[], ConnectionFacts]] = {}

    def opened(self, connection_id: str, facts: Callable[[], ConnectionFacts]) -> None:
        self.open[connection_id] = facts

    def closed(self, connection_id: str) -> None:
        del self.open[connection_id]


class Served:
    """One client over a socket pair, admitted by its handshake."""

    def __init__(self, joins: FakeJoins, shared: Connections, sockets: WebSockets, client: Any, vsn: str) -> None:
        self.joins = joins
        self.shared = shared
        self.sockets = sockets
        self.client = client
        self.vsn = vsn

    async def send(self, *frames: list[Any]) -> None:
        self.client.send(b"".join(masked(json.dumps(each).encode()) for each in frames))
        await BLOCKED()

    async def read(self) -> Frame:
        opcode, payload = await read_frame(self.client)
        assert opcode == 1, payload
        return read(self.vsn, payload)

    def nothing_to_read(self) -> bool:
        with pytest.raises(BlockingIOError):
            self.client.recv(1)
        return True

    @property
    def rooms(self) -> OpenRooms:
        assert isinstance(self.shared.rooms, OpenRooms)
        return self.shared.rooms

    @property
    def owner(self) -> Connection:
        owner = self.joins.asked[-1][0]
        assert isinstance(owner, Connection)
        return owner

    @property
    def serial(self) -> int:
        return self.joins.asked[-1][1].serial


def admission(
    joins: FakeJoins, limits: SessionLimits | None = None, gate: Gate | None = None, origins: str = "*"
) -> tuple[Admission, Connections]:
    began = trio.current_time()

    def clock() -> float:
        return START + trio.current_time() - began

    shared = Connections(joins, OpenRooms(), Guestbook(), Expiries(clock), Metrics(), clock=clock)
    verifier = Verifier(SECRET, api_keys={"opaque": "anon"})
    return Admission(verifier, limits or SessionLimits(), shared, gate, Origins(origins)), shared


def handshake(**query: str) -> Head:
    head = upgrade_head("/realtime/v1/websocket")
    return Head(head.method, head.path, tuple(query.items()), head.headers, head.peer, head.raw)


@asynccontextmanager
async def served(
    limits: SessionLimits | None = None, *, vsn: str = VSN_2, gate: Gate | None = None
) -> AsyncIterator[Served]:
    joins = FakeJoins()
    with socket_pair() as (ours, theirs):
        async with trio.open_nursery() as nursery:
            drains = Drains()
            sockets = WebSockets(max_frame_bytes=100_000)
            await nursery.start(drains.run)
            await nursery.start(sockets.run)
            admit, shared = admission(joins, limits, gate)
            await nursery.start(shared.expiries.run)
            head = handshake(apikey="opaque", vsn=vsn)
            admitted = admit(head)
            assert not isinstance(admitted, HttpReply)
            await sockets.accept(SocketStream(ours, Outbox(ours, 100_000, drains.wake)), head, admitted)
            assert (await read_head_text(theirs)).startswith("HTTP/1.1 101 ")
            yield Served(joins, shared, sockets, theirs, vsn)
            nursery.cancel_scope.cancel()


def join(config: object, *, ref: str = "1", topic: str = TOPIC, **extra: object) -> list[Any]:
    return [ref, ref, topic, "phx_join", {"config": config, **extra}]


# -- admission


@pytest.mark.parametrize(
    ("query", "status", "body", "code"),
    [
        ({"apikey": "opaque", "vsn": "9"}, 403, b"", "UnsupportedVersion"),
        ({}, 401, b'{"error":"API key is missing"}', "MissingAPIKey"),
        ({"apikey": "bad"}, 401, b'{"error":"The token provided is not a valid JWT"}', "MalformedJWT"),
    ],
)
def test_who_is_not_let_in_gets_an_http_answer(query: dict[str, str], status: int, body: bytes, code: str) -> None:
    async def main() -> object:
        return admission(FakeJoins())[0](handshake(**query))

    assert run(main) == HttpReply(status, body, why="key", code=code)


def test_limits_come_from_the_configuration() -> None:
    config = Config(max_channels_per_connection=3, max_joins_per_second=4, max_messages_per_second=0)
    assert session_limits(config) == SessionLimits(3, 4, 0)


# -- messages


def test_a_join_goes_to_joins_and_its_answer_to_the_client() -> None:
    async def main() -> None:
        async with served() as ws:
            await ws.send(join(CHANGES, access_token=mint(SECRET, {"role": "r", "exp": int(START) + 60})))
            assert ws.nothing_to_read()
            [(owner, request)] = ws.joins.asked
            assert (request.topic, request.claims.role, owner.vsn) == (TOPIC, "r", VSN_2)
            assert owner.join_ready(request.serial, Accepted((7,)))
            owner.outbox.push(frame(json.dumps([None, None, TOPIC, "postgres_changes", {}]).encode()))
            owner.outbox.flush()
            assert [(await ws.read()).event for _ in range(3)] == ["phx_reply", "system", "postgres_changes"]
            assert not owner.join_ready(99, Accepted())
            owner.system(request.serial, "ok", "m", {"event": "gap"})
            assert (await ws.read()).payload["event"] == "gap"

    run(main)


def test_joins_that_are_answered_at_once_come_out_in_order() -> None:
    async def main() -> list[object]:
        async with served() as ws:
            ws.joins.answer = Accepted()
            await ws.send(*(join({}, ref=str(ref), topic=f"realtime:{ref}") for ref in range(20)))
            return [(await ws.read()).ref for _ in range(20)]

    assert run(main) == [str(ref) for ref in range(20)]


def test_a_client_of_the_first_version_is_answered_in_it() -> None:
    async def main() -> Frame:
        async with served(vsn=VSN_1) as ws:
            ws.joins.answer = Accepted()
            names = ("join_ref", "ref", "topic", "event", "payload")
            ws.client.send(masked(json.dumps(dict(zip(names, join({}), strict=True))).encode()))
            return await ws.read()

    assert run(main).ref == "1"


def test_the_last_change_comes_before_the_goodbye() -> None:
    async def main() -> list[bytes]:
        async with served() as ws:
            ws.joins.answer = Accepted((7,))
            await ws.send(join(CHANGES), ["1", "2", TOPIC, "phx_leave", {}])
            assert ws.joins.forgotten == [ws.serial]
            return [(await read_frame(ws.client))[1] for _ in range(5)]

    reply, system, change, left, closed = run(main)
    assert b'"id":7' in reply
    assert b"Subscribed" in system
    assert change == b"the last change"
    assert b"phx_reply" in left
    assert b"phx_close" in closed


def test_heartbeats_are_answered() -> None:
    async def main() -> Frame:
        async with served() as ws:
            await ws.send([None, "11", "phoenix", "heartbeat", {}])
            return await ws.read()

    assert run(main) == Frame(None, "11", "phoenix", "phx_reply", {"status": "ok", "response": {}})


def test_a_refusal_and_an_end_reach_the_client() -> None:
    async def main() -> None:
        async with served() as ws:
            await ws.send(join({}))
            assert not ws.owner.join_ready(ws.serial, Refused("Unauthorized: no"))
            assert (await ws.read()).payload["response"] == {"reason": "Unauthorized: no"}
            await ws.send(join({}, ref="2"))
            assert ws.owner.join_ready(ws.serial, Accepted())
            ws.owner.end(ws.serial, "Unauthorized", "no longer")
            assert ws.joins.forgotten == [ws.serial]
            assert (await ws.read()).event == "phx_reply"
            assert (await read_frame(ws.client))[1] == b"the last change"
            assert [(await ws.read()).event for _ in range(2)] == ["system", "phx_close"]

    run(main)


def test_too_many_joins_close_the_connection() -> None:
    async def main() -> bytes:
        async with served(SessionLimits(max_channels=1, max_joins_per_second=0.1)) as ws:
            await ws.send(join({}), join({}, ref="2"))
            while True:
                opcode, payload = await read_frame(ws.client)
                if opcode == 8:
                    return payload

    assert run(main)[:2] == (1001).to_bytes(2, "big")


# -- time


def test_a_token_that_is_revoked_ends_its_channel() -> None:
    async def main() -> None:
        async with served() as ws:
            ws.joins.answer = Accepted()
            await ws.send(join({}, access_token=mint(SECRET, {"role": "r", "exp": int(START) + 600, "jti": "a"})))
            assert (await ws.read()).event == "phx_reply"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ws.shared.run)
                ws.owner._session._verifier.revocations = Revocations.parse("a")
                ws.shared.recheck()
                assert (await read_frame(ws.client))[1] == b"the last change"
                assert (await ws.read()).payload["message"] == "The token has been revoked"
                assert (await ws.read()).event == "phx_close"
                nursery.cancel_scope.cancel()

    run(main)


def test_an_expired_token_ends_its_channel_by_itself() -> None:
    async def main() -> None:
        async with served() as ws:
            ws.joins.answer = Accepted()
            expires = mint(SECRET, {"role": "r", "exp": int(START) + 600})
            await ws.send(join({}, access_token=expires), join({}, topic="realtime:other"))
            assert [(await ws.read()).event for _ in range(2)] == ["phx_reply", "phx_reply"]
            await trio.sleep(700)
            assert ws.joins.forgotten == [ws.joins.asked[0][1].serial]
            assert (await read_frame(ws.client))[1] == b"the last change"
            told = await ws.read()
            assert (told.event, told.payload["message"]) == ("system", "Token has expired 0 seconds ago")
            assert (await ws.read()).event == "phx_error"
            assert ws.shared.channels == 1

    run(main, autojump=True)


def test_a_token_renewed_in_time_goes_to_joins() -> None:
    async def main() -> None:
        async with served() as ws:
            ws.joins.answer = Accepted()
            await ws.send(join({}, access_token=mint(SECRET, {"role": "r", "exp": int(START) + 600})))
            renewed = mint(SECRET, {"role": "s", "exp": int(START) + 6000})
            await ws.send(["1", "2", TOPIC, "access_token", {"access_token": renewed}])
            [(serial, claims)] = ws.joins.claims
            assert (serial, claims.role) == (ws.serial, "s")
            await trio.sleep(700)
            assert ws.joins.forgotten == []

    run(main, autojump=True)


def test_a_token_renewed_before_the_answer_is_told_after_it() -> None:
    async def main() -> None:
        async with served() as ws:
            await ws.send(join({}), ["1", "2", TOPIC, "access_token", {"access_token": token(role="s")}])
            assert ws.owner.join_ready(ws.serial, Accepted())
            assert ws.joins.claims == []
            await trio.sleep(1)
            [(_, claims)] = ws.joins.claims
            assert claims.role == "s"

    run(main, autojump=True)


def test_a_join_that_waits_gives_up_by_itself() -> None:
    async def main() -> None:
        async with served() as ws:
            await ws.send(join({**CHANGES, "postgres_changes_options": {"wait": True}}))
            await trio.sleep(16)
            assert ws.joins.forgotten == [ws.serial]
            assert (await read_frame(ws.client))[1] == b"the last change"
            assert "PostgresChangesSubscribeTimeout" in (await ws.read()).payload["response"]["reason"]

    run(main, autojump=True)


# -- ends


def test_a_drain_tells_joined_channels_before_the_close() -> None:
    async def main() -> None:
        async with served() as ws:
            ws.joins.answer = Accepted()
            await ws.send(join({}))
            await ws.read()
            await ws.sockets.drain(1012, "Server requested disconnect")
            assert (await ws.read()).payload["message"] == "Server requested disconnect"
            opcode, payload = await read_frame(ws.client)
            assert (opcode, payload[:2]) == (8, (1012).to_bytes(2, "big"))

    run(main)


def test_a_connection_that_is_gone_is_forgotten_everywhere() -> None:
    async def main() -> None:
        async with served() as ws:
            ws.joins.answer = Accepted()
            for ref in ("1", "2"):
                await ws.send(join({}, ref=ref, topic=f"realtime:{ref}", access_token=token()))
            owner = ws.owner
            assert (ws.shared.channels, len(ws.shared.expiries)) == (2, 1)
            assert b"walstream_channels 2.0" in ws.shared.metrics.page()[0]
            ws.client.close()
            await ws.sockets.wait_empty()
            assert ws.joins.forgotten == [request.serial for _, request in ws.joins.asked]
            assert (ws.shared.channels, len(ws.shared.expiries)) == (0, 0)
            assert not owner.join_ready(1, Accepted())
            owner.system(1, "ok", "late")
            owner.end(1, "Unauthorized", "late")

    run(main)


def test_a_bug_met_by_one_connection_closes_that_one_only() -> None:
    async def main() -> None:
        async with served() as ws:
            await ws.send(join(CHANGES))
            with capture_logs() as logs:
                assert not ws.owner.join_ready(ws.serial, Accepted((1, 2, 3)))
            assert [entry["event"] for entry in logs] == ["handler.failed"]
            opcode, payload = await read_frame(ws.client)
            assert (opcode, payload[:2]) == (8, (1011).to_bytes(2, "big"))

    run(main)


def test_a_bug_met_by_a_message_closes_that_connection_only() -> None:
    async def main() -> None:
        async with served() as ws:
            ws.joins.fails = True
            with capture_logs():
                await ws.send(join(CHANGES))
            assert (await read_frame(ws.client))[0] == 8

    run(main)


# -- what operators see


def test_joins_and_messages_are_counted_and_the_first_complaint_of_a_kind_is_logged() -> None:
    async def main() -> tuple[str, list[str]]:
        async with served() as ws:
            ws.joins.answer = Accepted()
            with capture_logs() as logs:
                await ws.send(join({}), join({}, topic="realtime:"), [], [])
            page = ws.shared.metrics.page()[0].decode()
            return page, [f"{entry['log_level']} {entry['event']}" for entry in logs]

    page, logs = run(main)
    assert 'walstream_joins_total{result="ok"} 1.0' in page
    assert 'walstream_joins_total{result="refused"} 1.0' in page
    assert "walstream_messages_in_total 4.0" in page
    assert "walstream_join_seconds_count 2.0" in page
    assert logs == [
        "debug channel.joined", "info channel.refused", "info message.refused", "debug message.refused",
    ]  # fmt: skip


def test_a_connection_is_a_handler_without_a_socket_library() -> None:
    async def main() -> bytes:
        joins = FakeJoins()
        admit, _ = admission(joins)
        admitted = admit(handshake(apikey="opaque"))
        assert not isinstance(admitted, HttpReply)
        with socket_pair() as (ours, theirs):
            socket = Socket(SocketStream(ours, Outbox(ours, 1000, lambda outbox: None)), "peer", 0.0)
            connection = admitted.handler(socket)
            connection.message('{"topic":"phoenix","event":"heartbeat","payload":{},"ref":null}')
            return theirs.recv(1000)

    assert b"phx_reply" in run(main)


# -- rooms


def test_a_join_is_judged_by_the_rooms_first() -> None:
    async def main() -> None:
        async with served() as ws:
            ws.rooms.refuses = "Unauthorized: no"
            await ws.send(join(CHANGES))
            assert ws.joins.asked == []
            assert (await ws.read()).payload["response"] == {"reason": "Unauthorized: no"}
            assert ws.rooms.told == [("ask", 1), ("leave", 1)]

    run(main)


def test_what_a_room_owes_comes_between_reply_and_system_frame() -> None:
    async def main() -> None:
        async with served() as ws:
            ws.rooms.greets = True
            ws.joins.answer = Accepted((7,))
            await ws.send(join(CHANGES))
            assert [(await ws.read()).event for _ in range(3)] == ["phx_reply", "presence_state", "system"]
            await ws.send(["1", "2", TOPIC, "presence", {"event": "track"}])
            assert (await ws.read()).payload == {"status": "ok", "response": {"id": "1"}}
            await ws.send(["1", "3", TOPIC, "phx_leave", {}])
            assert ws.rooms.told == [("ask", 1), ("enter", 1), ("leave", 1)]

    run(main)


def test_a_join_that_is_refused_later_leaves_its_room() -> None:
    async def main() -> None:
        async with served() as ws:
            await ws.send(join(CHANGES))
            assert not ws.owner.join_ready(ws.serial, Refused("RealtimeRestarting: wait"))
            assert ws.rooms.told == [("ask", 1), ("leave", 1)]

    run(main)


def test_the_report_knows_who_is_there() -> None:
    async def main() -> None:
        async with served() as ws:
            book = ws.shared.report
            assert isinstance(book, Guestbook)
            await ws.send(join(CHANGES))
            [(id_, facts)] = book.open.items()
            assert id_ == ws.owner.id
            assert (facts().vsn, facts().topics, facts().user_id) == (VSN_2, 1, None)
            ws.client.close()
            await BLOCKED()
            assert book.open == {}

    run(main)
