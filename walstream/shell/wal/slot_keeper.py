"""The slot before each stream: found or made, judged by what was read before, and ended where it cannot go on.

Streaming from it is ``wal_reader``; what its turns mean for people is told in ``slot_life``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from walstream.decoder import DECODERS
from walstream.errors import DatabaseRefused, DatabaseUnreachable
from walstream.history.lineage import Lineage
from walstream.history.plan_log import Anew
from walstream.history.resume import POISON_SKIPPED
from walstream.lsn import Lsn
from walstream.shell.database import parked, publications, slots, timelines
from walstream.shell.database.rows import only

if TYPE_CHECKING:
    from psycopg2.extensions import connection as PgConnection  # noqa: N812 - a class under its role's name


class Reading(NamedTuple):
    """What the reader has to know from the configuration."""

    dsn: str
    slot: str
    decoder: str = "auto"
    schema: str = "realtime"

    @property
    def application_name(self) -> str:
        """Under which the stream is found in pg_stat_replication, and kept out of ``synchronous_standby_names``."""
        return f"walstream_stream_{self.slot}"[:63]


class Stream(NamedTuple):
    """What is known of a stream before its first message.

    ``lineage``: of who answers. ``server_start``: seconds since the epoch. ``is_new_slot``: whatever was
    committed before now is not in it. ``confirmed``: nothing that ends before it comes. ``wal_end``: how far the
    server's WAL goes; both 0 if unknown. ``turns``: what became of the slot, each with details. ``gap``: why what
    was read before has no continuation here, in the word that clients are told; "" where it has. ``anew``: tables that
    had to be published before it. ``lost``: why what ends before ``confirmed`` cannot be had, in such a word; "" where
    that is not known.
    """

    plugin: str
    lineage: Lineage
    server_start: float
    is_new_slot: bool
    confirmed: Lsn = Lsn(0)
    wal_end: Lsn = Lsn(0)
    turns: tuple[tuple[str, str], ...] = ()
    gap: str = ""
    anew: Anew | None = None
    lost: str = ""


class Read(NamedTuple):
    """How far a stream was read: every commit of ``cluster`` that ends at or before ``position`` has come.

    ``newest``: end of the newest one of them.
    """

    cluster: str
    position: int
    newest: int = 0

    def on(self, lineage: Lineage) -> Read:
        """The same, of a history that has all these commits: what lies beyond its beginning brought none of them."""
        return Read(lineage.cluster, min(self.position, lineage.ancestors.get(self.cluster, self.position)))

    def judge(self, stream: Stream) -> Stream:
        """The next stream, with its gap and the turn that made it."""
        if not self.cluster:
            return stream
        turn = detail = gap = ""
        position = self.on(stream.lineage).position
        has_all = stream.lineage.has(self.cluster, self.newest)
        if has_all and stream.lineage.cluster != self.cluster:
            turn, detail = "promoted", f"a standby was promoted at {stream.lineage.ancestors[self.cluster]}"
        if not has_all:
            turn, gap, detail = "other_cluster", "other_cluster", _whose(stream.lineage, self)
        elif stream.wal_end and stream.wal_end < position:
            turn, gap = "fell_back", "other_cluster"
            detail = f"the WAL ends at {stream.wal_end}, and was read up to {Lsn(position)}"
        elif stream.is_new_slot:
            gap = "slot_lost"
        elif stream.confirmed > position:
            turn, gap = "moved", "slot_lost"
            detail = f"it begins at {stream.confirmed}, and was read up to {Lsn(position)}"
        turns = ((turn, detail), *stream.turns) if turn else stream.turns
        return stream._replace(gap=gap, turns=turns)


class SlotKeeper:
    """Prepares the slot. ``own_pid``: PostgreSQL's process of our newest stream, 0 for none."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._known = False  # there was a slot of ours: if it is missing later, somebody dropped it
        self._unwanted: tuple[str, str] | None = None
        self._turns: list[tuple[str, str]] = []  # not told yet: what was begun may fail before it is done
        self._anew: Anew | None = None  # the same
        self._server_start = 0.0
        self._origin = ("", 0)  # system and timeline of the lineage
        self._lineage = Lineage()
        self.own_pid = 0

    def renew(self, turn: str, detail: str) -> None:
        """Make the slot anew before the next stream, for this reason."""
        self._unwanted = (turn, detail)

    def prepare(self, opened: PgConnection) -> tuple[Stream, float]:
        """Find or make the slot; the stream to be, and ``wal_sender_timeout`` in seconds (0: none).

        Blocks, for as long as a transaction is under way where a slot is made. Raises DatabaseRefused, psycopg2.Error.
        """
        with opened.cursor() as cursor:
            cursor.execute(
                "select pg_catalog.current_setting('server_encoding'), pg_catalog.current_database()::text,"
                " (select setting::float8 / 1000 from pg_catalog.pg_settings where name = 'wal_sender_timeout'),"
                " extract(epoch from pg_catalog.pg_postmaster_start_time())::float8,"
                " (select system_identifier::text from pg_catalog.pg_control_system()),"
                # The control file names the old timeline until the checkpoint after a promotion, maybe for minutes.
                " ('x' || left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8))::bit(32)::integer"
            )
            encoding, database, timeout, started, system, timeline = only(cursor)
        if encoding != "UTF8":
            raise DatabaseRefused(
                f"the database's encoding is {encoding}",
                reason="encoding",
                repair="walstream needs a UTF8 database",
            )
        if started != self._server_start:
            self._server_start, self.own_pid = started, 0  # its processes have other numbers now
        if (system, timeline) != self._origin:
            self._lineage = timelines.trace(self._reading.dsn, system, timeline)
            self._origin = system, timeline
        blank = Stream("", self._lineage, started, is_new_slot=False)
        stream = self._slot(opened, database, blank)
        stream, self._turns, self._anew = stream._replace(turns=tuple(self._turns), anew=self._anew), [], None
        return stream, timeout

    def _slot(self, opened: PgConnection, database: str, blank: Stream) -> Stream:
        """Adopt the slot, or make it (anew)."""
        reading = self._reading
        turns = self._turns
        if slots.take_back(opened, reading.slot, self.own_pid):
            turns.append(("freed", f"PostgreSQL's process {self.own_pid} held it for a connection that has ended"))
        slot = slots.find(opened, reading.slot)
        if slot is not None:
            self._check(slot, database)
            ended = self._ended(slot) or self._unpublished(opened, slot)
            if ended is None:
                self._known = True
                turns.append(("adopted", f"{slot.plugin}, confirmed up to {slot.confirmed_lsn}{_failover(slot)}"))
                return blank._replace(
                    plugin=slot.plugin,
                    confirmed=slot.confirmed_lsn or Lsn(0),
                    wal_end=slot.wal_end or Lsn(0),
                    lost=POISON_SKIPPED if self._was_advanced(opened, slot) else "",
                )
            slots.drop(opened, reading.slot)
            turns.append(ended)
            self._known = False
        elif self._known:
            turns.append(("dropped", "it is not there any more"))
            self._known = False
        if reading.decoder != "wal2json":
            # Before the slot: a publication that is younger than the slot is unknown to the WAL between them.
            publications.sync_publications(opened, reading.schema)
        plugin, position = slots.create(opened, reading.slot, reading.decoder)
        self._known, self._unwanted = True, None
        turns.append(("created", f"{plugin}, from {position} on"))
        return blank._replace(plugin=plugin, is_new_slot=True, confirmed=position, wal_end=position, turns=tuple(turns))

    def _was_advanced(self, opened: PgConnection, slot: slots.Slot) -> bool:
        """Whether it begins right behind a transaction that was left out: see ``Poison.leave_out``."""
        lsn = Lsn(max(0, (slot.confirmed_lsn or 0) - 1))
        return parked.is_left_out(opened, self._reading.schema, slot.name, lsn)

    def _ended(self, slot: slots.Slot) -> tuple[str, str] | None:
        """The turn by which a slot of ours is of no use any more."""
        if slot.wal_status == "lost":
            return "lost", f"the server has removed WAL that it needed{_why(slot)}"
        if slot.is_ahead:
            return "ahead", f"it has confirmed {slot.confirmed_lsn}, and the WAL ends at {slot.wal_end}"
        return self._unwanted

    def _unpublished(self, opened: PgConnection, slot: slots.Slot) -> tuple[str, str] | None:
        """Let the publications follow the plan. One that had to be made means nothing for the WAL before it."""
        if slot.plugin != "pgoutput":
            return None
        synced = publications.sync_publications(opened, self._reading.schema)
        if synced.added:
            self._anew = publications.anew(opened, {*synced.added, *(self._anew.tables if self._anew else ())})
        return ("unpublished", f"{', '.join(synced.made)} was not there") if synced.made else None

    def _check(self, slot: slots.Slot, database: str) -> None:
        """Raises DatabaseRefused for a slot that is not for us, which is then left alone whatever its state.

        Raises DatabaseUnreachable for one that our own last stream has not let go.
        """
        if slot.database != database:
            raise DatabaseRefused(
                f"slot {slot.name} belongs to the database {slot.database}, not to {database}",
                reason="slot_database",
                repair="give this node another WALSTREAM_SLOT: names of slots are one for all databases of a server",
            )
        if slot.plugin not in DECODERS or self._reading.decoder not in ("auto", slot.plugin):
            raise DatabaseRefused(
                f"slot {slot.name} was made with {slot.plugin}, and WALSTREAM_DECODER is {self._reading.decoder}",
                reason="slot_plugin",
                repair=f"walstream slot drop {slot.name}, or another WALSTREAM_SLOT, or WALSTREAM_DECODER=auto",
            )
        if slot.active and slot.active_pid == self.own_pid:
            raise DatabaseUnreachable(f"PostgreSQL's process {self.own_pid} of our last stream has not ended yet")
        if slot.active:
            raise DatabaseRefused(
                f"another process streams from slot {slot.name} (PostgreSQL's process {slot.active_pid})",
                reason="slot_active",
                repair="stop it, or give this node its own WALSTREAM_SLOT",
            )


def _failover(slot: slots.Slot) -> str:
    return ", kept by standbys for a failover" if slot.failover else ""


def _whose(lineage: Lineage, read: Read) -> str:
    left = lineage.ancestors.get(read.cluster)
    if left is None:
        return "another system or timeline answers"
    return f"a standby was promoted at {left}, and a commit that ends at {Lsn(read.newest)} was read before"


def _why(slot: slots.Slot) -> str:
    return f" ({slot.invalidation})" if slot.invalidation else ""
