"""Clients of the road: they join, read at their own pace, go away, and come back with the last position they have.

What each was sent is judged frame by frame, in the order of its bytes, by ``judging``. No test lives here.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, Protocol, cast

from tests.road.judging import Judge, Reading
from tests.road.server import Postgres, Row
from tests.shell.fanout_support import Narrow
from tests.shell.joins_support import Owner, join_request
from walstream.channel.effects import SUBSCRIBED, Accepted, JoinOutcome
from walstream.protocol.websocket import frame_header
from walstream.shell.clients.joins import DATABASE_AWAY, Joins
from walstream.shell.delivery.outbox import State

OUTBOX_BYTES: Final = 4000
EVERYTHING: Final = 1 << 40
_serials = itertools.count(1)


class Item(NamedTuple):
    """One of ``postgres_changes``. ``t``: the value of that column which it filters by, "" for none."""

    table: str
    t: str = ""

    def json(self, since: str) -> bytes:
        item = {"event": "*", "schema": "public", "table": self.table}
        item |= {"filter": f"t=eq.{self.t}"} if self.t else {}
        item |= {"since": since} if since else {}
        return json.dumps(item).encode()

    def wants(self, row: Row) -> bool:
        return self.table in ("*", row.table) and self.t in ("", row.t)


class Node(Reading, Protocol):
    """The daemon that a client is connected to. ``began``: where the slot stood when its stream began."""

    joins: Joins

    @property
    def began(self) -> int:
        """Where the slot stood when its history began."""
        ...

    @property
    def newest(self) -> int:
        """The end of the newest commit that it has taken."""
        ...


class Subscriber:
    """Somebody who always comes back. ``resumes``: with the last position."""

    def __init__(self, postgres: Postgres, name: str, items: Sequence[Item], *, resumes: bool) -> None:
        self.name = name
        self.items = items
        self.resumes = resumes
        self.judge = Judge(postgres, name, items)
        self.socket: Socket | None = None
        self.serial = 0
        self.is_refused = False

    @property
    def since(self) -> str:
        return self.judge.position if self.resumes else ""


class Socket(Owner):
    """A connection, and who joins by it. Whatever is said about a join carries what was so in that moment."""

    def __init__(self, node: Node, postgres: Postgres, *, slow: bool) -> None:
        super().__init__(node, Narrow(), OUTBOX_BYTES)
        self.node = node
        self.postgres = postgres
        self.subscribers: dict[int, Subscriber] = {}
        self.narrow = cast(Narrow, self.wire)
        self.narrow.room = 0 if slow else EVERYTHING
        self._read = 0

    # -- what the client does

    def join(self, subscriber: Subscriber) -> None:
        serial = subscriber.serial = next(_serials)
        subscriber.socket = self
        self.subscribers[serial] = subscriber
        self.present.add(serial)
        subscriber.judge.asked(subscriber.since, self.node)
        items = [item.json(subscriber.since) for item in subscriber.items]
        self.node.joins.ask(self, join_request(serial, *items, topic=subscriber.name))

    def read(self, room: int) -> None:
        """Take so many bytes more, and look at the whole frames among all that came."""
        self.narrow.room += room
        self.outbox.parked = False
        self.outbox.flush()
        self.look()

    def look(self) -> None:
        for payload in self._whole_frames():
            frame = json.loads(payload)
            subscriber = next((each for each in self.subscribers.values() if each.name == frame["topic"][9:]), None)
            if subscriber is not None:
                self._take(subscriber, frame["event"], frame["payload"])

    def _whole_frames(self) -> list[bytes]:
        found = []
        data = self.wire.data
        while len(data) - self._read >= 4:
            at, size = self._read + 2, data[self._read + 1]
            if size == 126:
                at, size = at + 2, int.from_bytes(data[at : at + 2], "big")
            if len(data) < at + size:
                break
            found.append(data[at : at + size])
            self._read = at + size
        return found

    def _take(self, subscriber: Subscriber, event: str, payload: Any) -> None:
        judge = subscriber.judge
        subscriber.is_refused = event == "refused"
        if event == "postgres_changes":
            judge.got(payload["data"], payload["ids"])
        elif event == "refused":
            self.drop(subscriber)
        elif event == "subscribed":
            judge.joined(payload)
        elif payload["event"] == "resumed":
            judge.resumed(payload)
        else:
            judge.gap(payload)

    def drop(self, subscriber: Subscriber) -> None:
        """Leave."""
        self.subscribers.pop(subscriber.serial, None)
        subscriber.socket = None
        subscriber.judge.lost()
        self.leave(subscriber.serial)

    def lose(self) -> None:
        """The connection is gone; what had reached the client before that is read."""
        self.look()
        self.outbox.die()
        for subscriber in list(self.subscribers.values()):
            self.drop(subscriber)

    @property
    def is_closed(self) -> bool:
        """Whether the daemon has given it up."""
        return self.outbox.state is not State.OPEN

    # -- as JoinOwner

    def join_ready(self, serial: int, outcome: JoinOutcome) -> bool:
        is_joined = super().join_ready(serial, outcome)
        if isinstance(outcome, Accepted) and outcome.message == SUBSCRIBED:
            self._say(serial, "subscribed", {"ids": outcome.ids})
        elif not isinstance(outcome, Accepted) or outcome.message != DATABASE_AWAY:
            self._say(serial, "refused", {})
            return False
        else:
            self.details.setdefault(serial, []).append({"ids": json.dumps(outcome.ids)})
        return is_joined and serial in self.present

    def system(
        self, serial: int, status: Literal["ok", "error"], message: str, details: Mapping[str, str] | None = None
    ) -> None:
        if serial not in self.present:
            return
        if details:
            self._say(serial, "system", dict(details))
        elif message == SUBSCRIBED:
            self._say(serial, "subscribed", {"ids": json.loads(self.details[serial][0]["ids"])})
        else:
            self._say(serial, "refused", {})

    def _say(self, serial: int, event: str, payload: dict[str, Any]) -> None:
        subscriber = self.subscribers.get(serial)
        if subscriber is None:
            return
        now = {
            "tick": self.postgres.tick,
            "wal_end": self.postgres.wal_end,
            "newest": self.node.newest,
            "began": self.node.began,
        }
        text = json.dumps({"topic": f"realtime:{subscriber.name}", "event": event, "payload": payload | now}).encode()
        self.outbox.push(frame_header(len(text)) + text)
        self.outbox.flush()
