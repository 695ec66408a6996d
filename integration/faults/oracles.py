"""The oracles: each looks at what was observed and returns its complaints, none if the promise was kept.

P1 to P4, P6, P8 and P9 are promises of docs/reliability.md. Nothing here waits or asks anybody; each oracle is shown in
``test_oracles.py`` and, against a daemon with a bug, in ``test_deliberate_bugs.py`` to be able to complain.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from statistics import median
from typing import NamedTuple

from integration.faults.observed import (
    Committed,
    Entry,
    Gap,
    Got,
    Joined,
    Log,
    Lost,
    Sample,
    Tally,
    Timing,
    Untold,
    Usage,
)
from walstream.lsn import Lsn

Complaints = list[str]
_SHOWN = 3
WARM_SECONDS = 300.0
"""Of a life, in which caches and the window may fill."""
SPAN_SECONDS = 120.0
"""Of which the median counts; what is read or sent in a moment comes and goes."""
GROWTH_BYTES = 4 << 20
GROWTH_DESCRIPTORS = 3


class _Found(NamedTuple):
    """``kind``: ``hole``, ``wrong``, ``gap`` or ``untold``."""

    kind: str
    text: str


class _Expected:
    """The changes that one subscriber has to get, in order, each known by its commit's end and its ordinal."""

    def __init__(self, log: Log, truth: Sequence[Committed]) -> None:
        self.keys: list[tuple[int, int]] = []
        self.digests: list[int] = []
        for transaction in truth:
            for ordinal, event in enumerate(transaction.events):
                if log.wants(event.table):
                    self.keys.append((transaction.end, ordinal))
                    self.digests.append(event.digest)

    def after(self, position: int) -> int:
        """Index of the first change of a commit that ends above ``position``."""
        return bisect_right(self.keys, (position, 1 << 62))

    def find(self, got: Got) -> int | None:
        """Index of a change that arrived, None if nobody committed it."""
        at = bisect_left(self.keys, (got.end, got.ordinal))
        return at if at < len(self.keys) and self.keys[at] == (got.end, got.ordinal) else None

    def __len__(self) -> int:
        return len(self.keys)


class _Walk:
    """One subscriber's log along the truth. ``next``: index of the change that has to come, None if any may."""

    def __init__(self, log: Log, truth: Sequence[Committed]) -> None:
        self._log = log
        self._expected = _Expected(log, truth)
        self.next: int | None = None
        self._latest: int | None = None  # no change may come before it any more
        self._newest = -1

    def findings(self) -> Iterator[_Found]:
        for entry in self._log.entries:
            if isinstance(entry, Got):
                yield from self._got(entry)
            elif isinstance(entry, Joined):
                self._begin_anew(None if entry.bound is None else self._expected.after(entry.bound))
            elif isinstance(entry, Gap):
                self._begin_anew(None if entry.bound is None else self._expected.after(entry.bound))
                yield _Found("gap", f"told of a gap ({entry.reason})")
            elif isinstance(entry, Untold):
                yield _Found("untold", f"joined again with {entry.since}, and was told neither resumed nor gap")
        yield from self._end()

    def _begin_anew(self, latest: int | None) -> None:
        self.next = None
        self._latest = latest
        self._newest = -1

    def _got(self, got: Got) -> Iterator[_Found]:
        where = f"{Lsn(got.end)}#{got.ordinal} of {got.table}"
        at = self._expected.find(got)
        if at is None:
            yield _Found("wrong", f"got {where}, which nobody committed")
            return
        if self._expected.digests[at] != got.digest:
            yield _Found("wrong", f"got {where} with other contents than were committed")
        if at == self._newest:
            yield _Found("wrong", f"got {where} twice in a row")
            return
        if at < self._newest:
            yield _Found("wrong", f"got {where} again, or after what was committed later")
            return
        due = self.next if self.next is not None else self._latest
        if due is not None and at > due:
            yield self._hole(due, at)
        self._newest = at
        self.next = at + 1
        self._latest = None

    def _hole(self, start: int, end: int) -> _Found:
        position, ordinal = self._expected.keys[start]
        return _Found("hole", f"{end - start} changes never came, the first is {Lsn(position)}#{ordinal}")

    def _end(self) -> Iterator[_Found]:
        """Runs are judged when all is quiet: who is still connected has to have everything."""
        if self._log.entries and isinstance(self._log.entries[-1], Lost):
            return
        due = self.next if self.next is not None else self._latest
        if due is not None and due < len(self._expected):
            yield self._hole(due, len(self._expected))


def _walk(logs: Iterable[Log], truth: Sequence[Committed], *kinds: str) -> Complaints:
    found = []
    for log in logs:
        mine = [f"{log.name}: {item.text}" for item in _Walk(log, truth).findings() if item.kind in kinds]
        found += mine[:_SHOWN]
        if len(mine) > _SHOWN:
            found.append(f"{log.name}: … and {len(mine) - _SHOWN} more")
    return found


def exactly_once_in_order(logs: Iterable[Log], truth: Sequence[Committed], *, may_gap: bool = False) -> Complaints:
    """P1: every subscriber has exactly what was committed, in the order of the commits.

    ``may_gap``: being told of a gap is no complaint, for the fault cannot be survived. What is between gaps still is.
    """
    return _walk(logs, truth, "wrong", "hole", *(() if may_gap else ("gap",)))


def no_silent_gap(logs: Iterable[Log], truth: Sequence[Committed]) -> Complaints:
    """P3: whoever misses something was told so, and whoever named a position was told what became of it."""
    return _walk(logs, truth, "hole", "untold")


def whole_transactions(logs: Iterable[Log], truth: Sequence[Committed]) -> Complaints:
    """P2: changes come in whole transactions, the last one marked; sums over each are what its writer says."""
    ends = {transaction.end: transaction for transaction in truth}
    found = []
    for log in logs:
        mine = []
        for run in _runs(log):
            mine += [f"{log.name}: {text}" for text in _torn(log, run, ends)]
        found += mine[:_SHOWN]
    return found


def _runs(log: Log) -> Iterator[list[Got]]:
    """The changes between two moments at which a subscriber may legitimately stand within a transaction."""
    run: list[Got] = []
    for entry in log.entries:
        if isinstance(entry, Got):
            run.append(entry)
        elif isinstance(entry, Joined | Gap):
            yield run
            run = []
    yield run


def _torn(log: Log, run: Sequence[Got], ends: dict[int, Committed]) -> Iterator[str]:
    groups = [(end, list(group)) for end, group in groupby(run, key=lambda got: got.end)]
    for number, (end, group) in enumerate(groups):
        transaction = ends.get(end)
        if transaction is None:
            continue  # P1's business
        wanted = sum(log.wants(event.table) for event in transaction.events)
        marks = [got.is_last for got in group]
        is_cut = number == len(groups) - 1 and len(group) < wanted and not marks[-1]
        if is_cut:
            continue  # the connection ended within it, and nothing was claimed
        where = f"the transaction that ends at {Lsn(end)}"
        if len(group) != wanted:
            yield f"{where} came with {len(group)} changes of {wanted}"
        elif not marks[-1]:
            yield f"{where} came without the mark on its last change"
        if any(marks[:-1]):
            yield f"{where} was marked as over before it was"
        if log.tables is None:
            yield from _sums(where, group)


def _sums(where: str, group: Sequence[Got]) -> Iterator[str]:
    moved = sum(got.moved for got in group)
    if moved:
        yield f"{where} makes {moved} out of nothing"
    audits = [got.audit for got in group if got.audit is not None]
    if len(audits) == 1:
        rows = len(group) - 1
        checksum = sum(got.share for got in group if got.audit is None)
        if (rows, checksum) != (audits[0].rows, audits[0].checksum):
            yield f"{where} has {rows} rows with the sum {checksum}, and its audit row says {audits[0]}"


def confirmed_behind_the_window(
    samples: Iterable[Sample], truth: Sequence[Committed], seconds: float, *, slack: float = 0.5
) -> Complaints:
    """P4: what is confirmed lies below the oldest commit that the window has to hold.

    ``seconds``: the window's age; its other bounds must be out of reach. A daemon counts from when it read a commit,
    which is never before the commit's own time; ``slack``: for clocks and for the time that a sample takes.
    """
    oldest_at = [transaction.at for transaction in truth]
    for index in range(len(oldest_at) - 1, 0, -1):  # timestamps are taken a little before commits are ordered
        oldest_at[index - 1] = min(oldest_at[index - 1], oldest_at[index])
    found = []
    for sample in samples:
        index = bisect_right(oldest_at, sample.at - seconds + slack)
        if index < len(truth) and truth[index].at < sample.at - slack and sample.confirmed >= truth[index].end:
            found.append(
                f"{Lsn(sample.confirmed)} was confirmed {sample.at - truth[index].at:.1f} s after the commit that ends"
                f" at {Lsn(truth[index].end)}, which a window of {seconds:g} s has to hold"
            )
    return found[:_SHOWN]


def positions_rise(logs: Iterable[Log]) -> Complaints:
    """P1's short form, where there is no tap: what one connection gets never goes back."""
    found = []
    for log in logs:
        newest = (-1, -1)
        for entry in log.entries:
            if isinstance(entry, Joined):
                newest = (-1, -1)
            elif isinstance(entry, Got):
                if (entry.end, entry.ordinal) <= newest:
                    found.append(
                        f"{log.name}: {Lsn(entry.end)}#{entry.ordinal} came after {Lsn(newest[0])}#{newest[1]}"
                    )
                newest = max(newest, (entry.end, entry.ordinal))
    return found[:_SHOWN]


def good_guest(timings: Iterable[Timing]) -> Complaints:
    """P8: the server stops, and checkpoints, as fast as it may expect."""
    return [
        f"{timing.what} took {timing.seconds:.1f} s, and may take {timing.bound:g} s"
        for timing in timings
        if timing.seconds > timing.bound
    ]


def reads_nothing_more(late: Iterable[Entry], end: int) -> Complaints:
    """P9: a daemon that was frozen where the WAL ended at ``end``, and has lost its slot, reads none of it any more.

    ``late``: what it told when it was awake again. What it had read it may send; it is what its client misses.
    """
    read = [entry for entry in late if not (isinstance(entry, Got) and entry.end <= end)]
    return [f"the one that lost the slot told {len(read)} more, {read[0]} first"] if read else []


def small_enough(peak: int, bound: int) -> Complaints:
    """P6: how much memory the daemon has had resident at most, in bytes."""
    return [f"{peak / 1e6:.0f} MB were resident, and {bound / 1e6:.0f} may be"] if peak > bound else []


def all_counted(tallies: Mapping[int, Tally], truth: Iterable[Committed], table: str) -> Complaints:
    """P6, too: transactions that nobody writes down came whole and in order. ``tallies``: by commits' ends."""
    first, newest = min(tallies, default=0), max(tallies, default=0)
    expected = {}
    for transaction in truth:
        digests = [event.digest for event in transaction.events if event.table == table]
        if digests and first <= transaction.end <= newest:
            tally = Tally()
            for number, digest in enumerate(digests, 1):
                tally = tally.and_then(digest, is_last=number == len(digests))
            expected[transaction.end] = tally
    if not tallies:
        return ["nothing came"]
    return [
        f"of what ends at {Lsn(end)} came {tallies.get(end)}, not {expected.get(end)}"
        for end in sorted(expected.keys() | tallies.keys())
        if expected.get(end) != tallies.get(end)
    ][:_SHOWN]


def quantile(values: Sequence[float], part: float) -> float:
    """The value below which ``part`` of all lie; 0 for none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else 0.0


def back_in_time(pauses: Sequence[float], bound: float) -> Complaints:
    """95 of 100 resuming subscribers have their first new change within ``bound`` seconds after a kill."""
    found = quantile(pauses, 0.95)
    return [f"the 95th percentile of {len(pauses)} pauses is {found:.1f} s, above {bound:g} s"] if found > bound else []


def flat_lives(usages: Iterable[Usage]) -> Complaints:
    """Once warm, a life of the daemon takes no more memory and no more descriptors the longer it lasts.

    Lives that end before two spans can be compared say nothing.
    """
    found = []
    for pid, life in groupby(usages, key=lambda usage: usage.pid):
        warm, last = _spans(list(life))
        if not warm or not last:
            continue
        grown = int(median(usage.resident for usage in last) - median(usage.resident for usage in warm))
        if grown > GROWTH_BYTES:
            found.append(f"process {pid} grew by {grown / (1 << 20):.1f} MiB in {_minutes(warm, last):.0f} minutes")
        opened = median(usage.descriptors for usage in last) - median(usage.descriptors for usage in warm)
        if opened > GROWTH_DESCRIPTORS:
            found.append(f"process {pid} has {opened:g} descriptors more after {_minutes(warm, last):.0f} minutes")
    return found


def _spans(life: Sequence[Usage]) -> tuple[list[Usage], list[Usage]]:
    """The first span after warming up, and the last one; empty where they would overlap."""
    begun, ended = life[0].at + WARM_SECONDS, life[-1].at - SPAN_SECONDS
    if ended < begun + SPAN_SECONDS:
        return [], []
    return [usage for usage in life if 0 <= usage.at - begun < SPAN_SECONDS], [u for u in life if u.at > ended]


def _minutes(warm: Sequence[Usage], last: Sequence[Usage]) -> float:
    return (last[0].at - warm[0].at) / 60
