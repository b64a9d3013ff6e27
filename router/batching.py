"""One model's queue: earliest deadline first within a priority, and which requests may run together.

A line for each priority, sorted by the time an answer is due (the deadline less the reserve that was kept before it at
arrival), so the lines are also the timer queue. Lines are plain sorted lists: the usual request is due last and goes to
the end, and to insert into or delete from a list of a thousand places moves less memory than a heap makes Python
compare. A heap was tried: it keeps places of what has left, and cannot say how many rows wait before a deadline.

The highest priority goes first, but one batch in SHARE_EVERY is led by whoever of the others is due soonest. So a
request waits for at most so many batches before the first of its priority is served, however busy those above are.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate, islice

from router.ledger import Entry, State
from shm.limits import PRIORITY_MAX

Place = tuple[int, int, Entry]
"""due_ns, number in order of arrival, entry."""

SHARE_EVERY = 16
"""A sixteenth of the workers' time: enough that the lowest priority is never still, and a price of 6 % at most."""
FAR_NS = 2**63
LOOK_MAX = 256
"""Places looked at for company in one line; of another shape, or to run alone, they may be many."""


class ModelQueue:
    """Queued requests of one model, counted in requests, rows and bytes, and by priority and client."""

    __slots__ = (
        "_batches_to_share", "_clients", "_lines", "_many_rows", "_rows", "_sequence", "count", "not_before_ns",
        "payload_bytes", "priorities", "rows", "waiting_since_ns",
    )  # fmt: skip

    def __init__(self) -> None:
        self._lines: list[list[Place]] = [[] for _ in range(PRIORITY_MAX + 1)]
        self._rows = [0] * (PRIORITY_MAX + 1)
        self._clients: list[dict[int, int]] = [{} for _ in range(PRIORITY_MAX + 1)]
        self._many_rows = 0
        """Entries with more or fewer rows than one: without any, a place in a line is a count of rows."""
        self._sequence = 0
        self._batches_to_share = SHARE_EVERY
        self.priorities: list[int] = []
        """Those that have anybody, the highest first."""
        self.count = 0
        self.rows = 0
        self.payload_bytes = 0
        self.waiting_since_ns = 0
        self.not_before_ns = FAR_NS
        """Nobody is due before; exact after `due_ns`, else maybe too early."""

    def push(self, entry: Entry, now_ns: int) -> None:
        request = entry.request
        priority = request.priority
        line = self._lines[priority]
        self._sequence += 1
        entry.sequence = self._sequence
        place = (entry.due_ns, self._sequence, entry)
        if not line:
            insort(self.priorities, priority, key=lambda p: -p)
            line.append(place)
        elif line[-1][0] <= entry.due_ns:
            line.append(place)
        else:
            insort(line, place)
        if not self.count:
            self.waiting_since_ns = now_ns
        rows = request.rows or 1
        self.count += 1
        self.rows += rows
        self._rows[priority] += rows
        self._many_rows += rows != 1
        self.payload_bytes += entry.payload_bytes
        if entry.due_ns < self.not_before_ns:
            self.not_before_ns = entry.due_ns
        clients, number = self._clients[priority], entry.session.number
        clients[number] = clients.get(number, 0) + 1

    def forget(self, entry: Entry) -> None:
        """Take this queued entry out: it was cancelled or evicted, or its client is lost."""
        line = self._lines[entry.request.priority]
        at = bisect_left(line, (entry.due_ns, entry.sequence))
        assert line[at][2] is entry
        del line[at]
        self._uncount(entry)
        self._drop_empty()

    def _uncount(self, entry: Entry) -> None:
        """It is no longer in its line."""
        request = entry.request
        rows = request.rows or 1
        self.count -= 1
        self.rows -= rows
        self._rows[request.priority] -= rows
        self._many_rows -= rows != 1
        self.payload_bytes -= entry.payload_bytes
        clients, number = self._clients[request.priority], entry.session.number
        if clients[number] == 1:
            del clients[number]
        else:
            clients[number] -= 1

    def _drop_empty(self) -> None:
        """After places were taken out."""
        lines = self._lines
        for priority in self.priorities:
            if not lines[priority]:
                self.priorities = [kept for kept in self.priorities if lines[kept]]
                break

    def due_ns(self) -> int | None:
        """When the first queued request must be answered, None when nothing is queued."""
        lines, priorities = self._lines, self.priorities
        if not priorities:
            self.not_before_ns = FAR_NS
            return None
        due_ns = lines[priorities[0]][0][0]
        for priority in priorities:
            if lines[priority][0][0] < due_ns:
                due_ns = lines[priority][0][0]
        self.not_before_ns = due_ns
        return due_ns

    def take_due(self, now_ns: int) -> list[Entry]:
        """Take every entry out whose answer is due."""
        due: list[Entry] = []
        for priority in list(self.priorities):
            line = self._lines[priority]
            end = bisect_left(line, (now_ns + 1,))
            if end:
                due += self._cut(line, end)
        return due

    def take_all(self) -> list[Entry]:
        """Empty the queue."""
        return [entry for p in list(self.priorities) for entry in self._cut(self._lines[p], len(self._lines[p]))]

    def _cut(self, line: list[Place], end: int) -> list[Entry]:
        entries = [place[2] for place in line[:end]]
        del line[:end]
        for entry in entries:
            self._uncount(entry)
        self._drop_empty()
        return entries

    # What admission asks

    def line(self, priority: int) -> list[Place]:
        """The places of one priority, in order. Not to be changed."""
        return self._lines[priority]

    def clients(self, priority: int) -> dict[int, int]:
        """Session number to its queued requests of this priority. Not to be changed."""
        return self._clients[priority]

    def line_rows(self, priority: int) -> int:
        return self._rows[priority]

    def before(self, priority: int, due_ns: int) -> tuple[int, int, int]:
        """For a newcomer of this priority and due time: the rows of all higher priorities, the rows before it in its
        own line, and its place there."""
        above = 0
        for other in self.priorities:
            if other > priority:
                above += self._rows[other]
        line = self._lines[priority]
        if not line or line[-1][0] <= due_ns:
            return above, self._rows[priority], len(line)
        at = bisect_left(line, (due_ns + 1,))
        return above, (sum(place[2].request.rows or 1 for place in line[:at]) if self._many_rows else at), at

    def rows_up_to(self, priority: int) -> list[int] | range:
        """For each place of a line: how many rows there are in it up to and with this one."""
        line = self._lines[priority]
        if not self._many_rows:
            return range(1, len(line) + 1)
        return list(accumulate(place[2].request.rows or 1 for place in line))

    # Batches

    def first(self) -> Entry:
        """Who leads the next batch."""
        priorities = self.priorities
        return self._lines[priorities[0] if len(priorities) == 1 else self._leading()][0][2]

    def _leading(self) -> int:
        priorities = self.priorities
        if len(priorities) > 1 and self._batches_to_share <= 1:
            return min(priorities[1:], key=lambda p: self._lines[p][0][0])
        return priorities[0]

    def take_batch(self, rows_max: int, members_max: int, done_ns: int = 0) -> list[Entry]:
        """The next batch: `first`, and what may join it, the highest priority first. Not empty.

        A request that must run alone, or has `rows_max` rows or more by itself, is its own batch. done_ns: when a run
        of `rows_max` rows will be done; nobody joins it who is due before.
        """
        if self.count == 1:
            only = self._lines[self.priorities.pop()].pop()[2]
            self._uncount(only)
            self.not_before_ns = FAR_NS
            return [only]
        leading = self._leading()
        if len(self.priorities) > 1:
            # Counted while more than one priority waits; a batch that goes by turn begins the count anew.
            self._batches_to_share = SHARE_EVERY if leading != self.priorities[0] else self._batches_to_share - 1
        line = self._lines[leading]
        first = line.pop(0)[2]
        batch = [first]
        rows_left = rows_max - (first.request.rows or 1)
        if members_max > 1 and rows_left > 0 and self.count > 1 and not first.alone:
            for priority in (leading, *(p for p in self.priorities if p != leading)):
                rows_left = self._fill(batch, self._lines[priority], rows_left, members_max, done_ns)
        for entry in batch:
            self._uncount(entry)
        if self.count:
            self._drop_empty()
        else:
            self.priorities = []
            self.not_before_ns = FAR_NS
        return batch

    def _fill(self, batch: list[Entry], line: list[Place], rows_left: int, members_max: int, done_ns: int) -> int:
        shape = batch[0].shape
        passed: list[Place] = []
        end = 0
        for place in islice(line, LOOK_MAX):
            entry = place[2]
            rows = entry.request.rows or 1
            if len(batch) == members_max or rows > rows_left:
                break
            if entry.shape == shape and not entry.alone and entry.due_ns >= done_ns:
                batch.append(entry)
                rows_left -= rows
            else:
                passed.append(place)
            end += 1
        line[:end] = passed
        return rows_left

    def entries(self) -> Iterator[Entry]:
        """Everybody, in the order of their turn."""
        return (place[2] for priority in self.priorities for place in self._lines[priority])

    def check_invariants(self) -> None:
        queued = list(self.entries())
        assert all(entry.state is State.QUEUED for entry in queued)
        assert [p for p in range(PRIORITY_MAX, -1, -1) if self._lines[p]] == self.priorities
        assert all(line == sorted(line) for line in self._lines)
        assert len(queued) == self.count, (len(queued), self.count)
        assert sum(e.request.rows or 1 for e in queued) == self.rows == sum(self._rows)
        assert sum((e.request.rows or 1) != 1 for e in queued) == self._many_rows
        assert sum(e.payload_bytes for e in queued) == self.payload_bytes
        for priority, line in enumerate(self._lines):
            assert self._clients[priority] == Counter(place[2].session.number for place in line)
