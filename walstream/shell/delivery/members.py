"""Who is in which audience: every change of that, and the look-ups that follow from it.

From where a member's changes are live is decided in ``fanout``.
"""

from __future__ import annotations

from walstream.shell.delivery.audience import Audience, AudienceKey, Gate, Member
from walstream.shell.delivery.frames import Frames
from walstream.shell.delivery.outbox import Outbox


class Members:
    """Audiences and their sockets. ``by_binding``: audiences by the ids of their bindings.

    ``joining``: members for whom a transaction may still be older than their join. ``waiting``: audiences with changes
    that wait for answers. ``changes``: counts every change of who is in which audience, and how.
    """

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._audiences: dict[AudienceKey, Audience] = {}
        self._of_outbox: dict[Outbox, list[Member]] = {}
        self.by_binding: dict[int, dict[Audience, None]] = {}
        self.joining: dict[Member, None] = {}
        self.waiting: dict[Audience, None] = {}
        self.changes = 0

    def audience(self, key: AudienceKey, *, fresh: bool = False) -> Audience:
        """The audience of a key, of the first generation where nothing waits. ``fresh``: where nobody is either."""
        audience = self._audiences.get(key)
        while audience is not None and (audience.waiting or (fresh and len(audience))):
            key = key._replace(generation=key.generation + 1)
            audience = self._audiences.get(key)
        if audience is None:
            audience = self._audiences[key] = Audience(key)
            for binding_id in set(key.ids):
                self.by_binding.setdefault(binding_id, {})[audience] = None
        return audience

    def enter(self, member: Member) -> None:
        """Let a member join its audience."""
        self.changes += 1
        audience, outbox = member.audience, member.outbox
        members = self._of_outbox.setdefault(outbox, [])
        members.append(member)
        if len(members) == 2:
            self._share(members[0])
        audience.joining[outbox] = member
        self.joining[member] = None

    def leave(self, member: Member) -> None:
        """Remove a socket from its audience; nothing more of it is delivered."""
        if member.before is not None:
            self.leave(member.before)
            member.before = None
        self.changes += 1
        audience, outbox = member.audience, member.outbox
        self._frames.drain(audience)
        for place in (audience.solo, audience.shared, audience.joining):
            if place.get(outbox) is member:
                del place[outbox]
        self.joining.pop(member, None)
        members = self._of_outbox.get(outbox, [])
        if member in members:
            members.remove(member)
        if not members:
            self._of_outbox.pop(outbox, None)
        if not audience:
            self._forget(audience)

    def _forget(self, audience: Audience) -> None:
        self.waiting.pop(audience, None)
        if self._audiences.get(audience.key) is audience:
            del self._audiences[audience.key]
        for binding_id in set(audience.key.ids):
            audiences = self.by_binding.get(binding_id, {})
            audiences.pop(audience, None)
            if not audiences:
                self.by_binding.pop(binding_id, None)

    def expel(self, member: Member) -> None:
        """Remove a socket that has no room from its audience; what waits there is for the others."""
        self.changes += 1
        audience, outbox = member.audience, member.outbox
        for place in (audience.solo, audience.shared, audience.joining):
            if place.get(outbox) is member:
                del place[outbox]
        self.joining.pop(member, None)
        self._of_outbox[outbox].remove(member)
        if not audience:
            self._forget(audience)

    def isolate(self, member: Member, key: AudienceKey) -> None:
        """Give a member who is in no audience one to which no binding leads."""
        self.changes += 1
        alone = member.audience = Audience(key)
        self.share(member.outbox)
        alone.shared[member.outbox] = member
        self._of_outbox.setdefault(member.outbox, []).append(member)

    def leads_to(self, audience: Audience) -> bool:
        """Whether what is routed comes to an audience."""
        return self._audiences.get(audience.key) is audience

    def of(self, audience: Audience, outbox: Outbox) -> Member | None:
        """The socket's member of an audience."""
        return audience.solo.get(outbox) or audience.shared.get(outbox) or audience.joining.get(outbox)

    def share(self, outbox: Outbox) -> None:
        """The socket is about to get another audience: what it was sent before goes out before what follows."""
        for member in list(self._of_outbox.get(outbox, ())):
            self._share(member)

    def _share(self, member: Member) -> None:
        """The socket has a second audience now: from here on its frames are queued one by one."""
        self.changes += 1
        audience = member.audience
        if audience.solo.get(member.outbox) is member:
            self._frames.drain(audience)
            if audience.solo.pop(member.outbox, None) is not None:  # else it has fallen behind by that
                audience.shared[member.outbox] = member

    def settle(self, member: Member) -> None:
        """Everything from now on is live for the member."""
        self.changes += 1
        audience, outbox = member.audience, member.outbox
        self._frames.drain(audience)
        del audience.joining[outbox]
        place = audience.solo if len(self._of_outbox[outbox]) == 1 else audience.shared
        place[outbox] = member

    def moved(self, member: Member, audience: Audience) -> Member:
        """What a member will be in another audience."""
        moved = Member(member.outbox, audience, member.snapshot)
        moved.live = member.live or member not in self.joining
        return moved

    def detach(self, member: Member) -> Member:
        """Take a member, with all that waits for it, into an audience to which no binding leads."""
        audience, alone = member.audience, Audience(member.audience.key)
        old = Member(member.outbox, alone, member.snapshot)
        old.before, member.before = member.before, None
        is_joining = member.outbox in audience.joining
        for item in audience.waiting:
            if isinstance(item, Gate):
                alone.waiting.append(item)
            elif not is_joining or member in item.live:
                alone.waiting.append(item._replace(live=()))
        # What is held is of the transaction of what waits first.
        if not isinstance(audience.waiting[0], Gate) and (not is_joining or member in audience.waiting[0].live):
            alone.held = audience.held.copy()
        self.leave(member)
        alone.shared[old.outbox] = old
        self._of_outbox.setdefault(old.outbox, []).append(old)
        self.waiting[alone] = None
        return old

    def adopt(self, member: Member, alone: Audience) -> None:
        """Let what waits in a stand-in wait for a new member, in an audience where nobody else is."""
        audience = member.audience = self.audience(member.audience.key, fresh=True)
        for item in alone.waiting:
            audience.waiting.append(item if isinstance(item, Gate) else item._replace(live=(member,)))
        audience.held = alone.held
        self.waiting.pop(alone, None)
        self.waiting[audience] = None
