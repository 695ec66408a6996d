"""Who is present in one room, on every node, as its members are told: a state for who comes, then one diff per tick.

Metas stay the JSON text that their owners sent; the refs by which clients tell versions apart are spliced in.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias

import msgspec

from walstream.rooms import PresenceEntry

_Id: TypeAlias = tuple[str, str]
"""Node and entry."""

_SERVERS_OWN: Final = ("phx_ref", "phx_ref_prev")
_meta_decoder: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class _Metas:
    """What is under one presence key, in the order in which the versions arrived; ``text`` is their JSON, or None."""

    __slots__ = ("by_id", "key", "text")

    def __init__(self, key: str) -> None:
        self.key = msgspec.json.encode(key)
        self.by_id: dict[_Id, bytes] = {}
        self.text: bytes | None = None

    def encoded(self) -> bytes:
        """``"key":{"metas":[…]}``."""
        if self.text is None:
            self.text = _under(self.key, self.by_id.values())
        return self.text


class PresenceRoom:
    """The presences of one room. Changes count at once; clients learn of them by ``commit``, merged.

    A client that was given ``state`` and applies every later commit's diff has the state as of that commit, with the
    metas of each key in the same order: an updated one goes to the end. What changed and changed back between two
    commits is not told. Work of ``apply`` and ``commit`` depends on what changes, not on who is there.
    """

    __slots__ = ("_by_key", "_by_node", "_changed", "_state")

    def __init__(self) -> None:
        self._by_node: dict[str, dict[str, PresenceEntry]] = {}
        self._changed: dict[_Id, PresenceEntry | None] = {}  # what was told last of it
        self._by_key: dict[str, _Metas] = {}  # as of the last commit
        self._state: bytes | None = b"{}"

    def apply(self, node: str, entry: PresenceEntry) -> bool:
        """Take what ``node`` says of one entry. False where that is what it is: also the same meta under a new ref."""
        held = self._by_node.get(node)
        old = held.get(entry.entry) if held is not None else None
        if entry.meta is None:
            if held is None or old is None:
                return False
            del held[entry.entry]
            if not held:
                del self._by_node[node]
        elif old is not None and old.key == entry.key and old.meta == entry.meta:
            return False
        elif held is None:
            self._by_node[node] = {entry.entry: entry}
        else:
            held[entry.entry] = entry
        self._note((node, entry.entry), old)
        return True

    def replace(self, node: str, entries: Iterable[PresenceEntry]) -> bool:
        """Take ``entries`` as all that ``node`` has; False where nothing changes."""
        wanted = {entry.entry: entry for entry in entries if entry.meta is not None}
        gone = [entry for entry in self._by_node.get(node, {}) if entry not in wanted]
        for name in gone:
            self._remove(node, name)
        changed = [self.apply(node, entry) for entry in wanted.values()]
        return bool(gone) or any(changed)

    def drop(self, node: str) -> bool:
        """Take everything of ``node`` away; False where it had nothing."""
        return self.replace(node, ())

    def commit(self) -> bytes | None:
        """The payload of ``presence_diff`` since the last commit, or None where nothing is different in the end.

        An update is a join of the new version, with ``phx_ref_prev``, and a leave of the one that clients have.
        """
        if not self._changed:
            return None
        joins: dict[str, list[bytes]] = {}
        leaves: dict[str, list[bytes]] = {}
        for (node, name), before in self._changed.items():
            now = self._by_node.get(node, {}).get(name)
            if before != now:  # a node that was lost may be back with what it had
                self._tell((node, name), before, now, joins, leaves)
        self._changed.clear()
        if not joins and not leaves:
            return None
        self._state = None
        return b'{"joins":%b,"leaves":%b}' % (_by_keys(joins), _by_keys(leaves))

    @property
    def is_dirty(self) -> bool:
        """Whether there is something to commit."""
        return bool(self._changed)

    @property
    def state(self) -> bytes:
        """The payload of ``presence_state`` as of the last commit; the same object until something is told."""
        if self._state is None:
            self._state = b"{%b}" % b",".join([metas.encoded() for metas in self._by_key.values()])
        return self._state

    @property
    def is_empty(self) -> bool:
        """Whether nobody is here and nobody's leaving has yet to be told."""
        return not self._by_node and not self._changed

    @property
    def keys(self) -> Iterable[str]:
        """The presence keys as of the last commit."""
        return self._by_key.keys()

    def entries(self, node: str) -> list[PresenceEntry]:
        """What ``node`` has now, told to clients or not."""
        return list(self._by_node.get(node, {}).values())

    def __len__(self) -> int:
        """How many presence keys there are as of the last commit."""
        return len(self._by_key)

    def _remove(self, node: str, name: str) -> None:
        held = self._by_node[node]
        old = held.pop(name)
        if not held:
            del self._by_node[node]
        self._note((node, name), old)

    def _note(self, changed: _Id, old: PresenceEntry | None) -> None:
        self._changed.setdefault(changed, old)

    def _tell(
        self,
        changed: _Id,
        before: PresenceEntry | None,
        now: PresenceEntry | None,
        joins: dict[str, list[bytes]],
        leaves: dict[str, list[bytes]],
    ) -> None:
        if before is not None:
            metas = self._by_key[before.key]
            leaves.setdefault(before.key, []).append(metas.by_id.pop(changed))
            metas.text = None
            if not metas.by_id:
                del self._by_key[before.key]
        if now is not None:
            metas = self._by_key.get(now.key) or self._by_key.setdefault(now.key, _Metas(now.key))
            body = _body(now.meta or b"{}")
            metas.by_id[changed] = _with_refs(body, now.ref)
            metas.text = None
            previous = before.ref if before is not None and before.key == now.key else ""
            joins.setdefault(now.key, []).append(_with_refs(body, now.ref, previous))


def count_people(rooms: Iterable[PresenceRoom]) -> int:
    """How many different presence keys there are in ``rooms`` together, as of their last commits."""
    return len({key for room in rooms for key in room.keys})


def _under(key: bytes, metas: Iterable[bytes]) -> bytes:
    return b'%b:{"metas":[%b]}' % (key, b",".join(metas))


def _by_keys(metas: dict[str, list[bytes]]) -> bytes:
    return b"{%b}" % b",".join([_under(msgspec.json.encode(key), texts) for key, texts in metas.items()])


def _body(meta: bytes) -> bytes:
    """The members of an object without its braces, and without refs that are the server's to give.

    A name can be spelled with escapes, too.
    """
    if b"phx_ref" in meta or b"\\u" in meta:
        members = _meta_decoder.decode(meta)
        if any(name in members for name in _SERVERS_OWN):
            meta = msgspec.json.encode({name: raw for name, raw in members.items() if name not in _SERVERS_OWN})
    return meta.strip()[1:-1].strip()


def _with_refs(body: bytes, ref: str, previous: str = "") -> bytes:
    refs = b'"phx_ref":' + msgspec.json.encode(ref)
    if previous:
        refs += b',"phx_ref_prev":' + msgspec.json.encode(previous)
    return b"{%b,%b}" % (refs, body) if body else b"{%b}" % refs
