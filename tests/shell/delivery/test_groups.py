"""Groups: who gets what in which order, with how many writes."""

from __future__ import annotations

from typing import Any

import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from tests.shell.fanout_support import Wire
from tests.shell.fanout_support import outbox as make_outbox
from tests.support import run
from walstream.channel.broadcast import Ear, Frames
from walstream.protocol.websocket import frame
from walstream.shell.delivery.groups import Group, GroupMember, Groups
from walstream.shell.delivery.outbox import Outbox


def message(text: str, *, binary: bool = False) -> Frames:
    """Frames that say for which kind of socket they are."""
    first, second, third = (b"" if binary and ear is not Ear.BINARY else frame(f"{text}.{ear}".encode()) for ear in Ear)
    return first, second, third


def socket() -> tuple[Wire, Outbox]:
    wire = Wire()
    return wire, make_outbox(wire)


def test_what_waits_goes_out_in_one_write() -> None:
    group, (wire, outbox) = Group(), socket()
    group.join(outbox, Ear.V1)
    for number in range(3):
        group.push(message(str(number)))
    assert wire.writes == 0
    group.flush()
    assert (wire.frames(), wire.writes) == ([b"0.0", b"1.0", b"2.0"], 1)


def test_the_sender_is_left_out_of_its_own_alone() -> None:
    group, (one, outbox_1), (two, outbox_2) = Group(), socket(), socket()
    first, second = group.join(outbox_1, Ear.V1), group.join(outbox_2, Ear.BINARY)
    group.push(message("a"), [first])
    group.push(message("b"), [second])
    group.push(message("c"), [first, second])
    group.flush()
    assert (one.frames(), two.frames()) == ([b"b.0"], [b"a.2"])
    assert (one.writes, two.writes) == (1, 1)


def test_bytes_cost_nobody_a_write_who_cannot_hear_them() -> None:
    group, (one, outbox_1), (two, outbox_2) = Group(), socket(), socket()
    group.join(outbox_1, Ear.V1)
    group.join(outbox_2, Ear.BINARY)
    group.push(message("a", binary=True))
    group.flush()
    assert (one.writes, two.frames()) == (0, [b"a.2"])


def test_a_slice_goes_on_where_the_last_one_ended() -> None:
    group = Group()
    sockets = [socket() for _ in range(10)]
    for _, outbox in sockets:
        group.join(outbox, Ear.V2)
    group.push(message("a"))
    assert group.write(4) == 4
    group.push(message("b"))
    assert sum(wire.writes for wire, _ in sockets) == 4
    group.flush()
    assert all(wire.frames() == [b"a.1", b"b.1"] for wire, _ in sockets)
    assert group.write(4) == 0


def test_a_flush_leaves_nothing_and_counts_frames() -> None:
    async def main() -> None:
        groups, group = Groups(), Group()
        sockets = [socket() for _ in range(1500)]
        members = [group.join(outbox, Ear.V2) for _, outbox in sockets]
        assert not groups.wake.is_set()
        groups.push(group, message("a"), [members[0]])
        groups.push(group, message("b"))
        assert groups.wake.is_set()
        with trio.fail_after(5):
            await groups.flush()
        assert not groups.wake.is_set()
        assert sockets[0][0].frames() == [b"b.1"]
        assert all(wire.frames() == [b"a.1", b"b.1"] for wire, _ in sockets[1:])
        assert groups.frames_out == 2999

    run(main)


class GroupMachine(RuleBasedStateMachine):
    """Every socket gets exactly what was pushed between its join and its leave, in order, less what leaves it out."""

    def __init__(self) -> None:
        super().__init__()
        self.group = Group()
        self.members: dict[GroupMember, tuple[Wire, list[bytes]]] = {}
        self.number = 0

    @rule(ear=st.sampled_from(list(Ear)))
    def join(self, ear: Ear) -> None:
        wire, outbox = socket()
        self.members[self.group.join(outbox, ear)] = (wire, [])

    @rule(data=st.data(), binary=st.booleans())
    def push(self, data: Any, binary: bool) -> None:
        self.number += 1
        members = list(self.members)
        without = data.draw(st.lists(st.sampled_from(members), max_size=2, unique=True)) if members else []
        self.group.push(message(str(self.number), binary=binary), without)
        for member, (_, wanted) in self.members.items():
            if member not in without and (not binary or member.ear is Ear.BINARY):
                wanted.append(f"{self.number}.{member.ear}".encode())

    @rule(data=st.data())
    def leave(self, data: Any) -> None:
        if self.members:
            member = data.draw(st.sampled_from(list(self.members)))
            self.group.leave(member)
            wire, wanted = self.members.pop(member)
            assert wire.frames() == wanted

    @rule(some=st.integers(1, 3))
    def write(self, some: int) -> None:
        self.group.write(some)

    def teardown(self) -> None:
        self.group.flush()
        assert self.group.write(1) == 0
        for wire, wanted in self.members.values():
            assert wire.frames() == wanted


GroupMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestGroup = GroupMachine.TestCase
