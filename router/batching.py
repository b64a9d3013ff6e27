"""One model's queue: earliest deadline first within a priority, and which requests may run together.

The queue is a heap for each (priority, shape): `shape` is what must agree for two requests to be rows of one batch,
None where the signature fixes it, so that nearly every model has one heap a priority in use. A deadline counts less
the reserve that was kept before it at arrival, which is when an answer is due: so the heaps are also the timer queue.
What leaves the queue otherwise (cancelled, client lost) stays behind as a closed entry and is dropped when it comes up.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from router.ledger import Entry, State

Heap = list[tuple[int, int, Entry]]

STALE_MAX = 64
"""Places of closed entries that are not worth a walk through the heaps, on top of one for each queued entry."""


class ModelQueue:
    """Queued requests of one model, counted in requests, rows and bytes."""

    __slots__ = ("_heaps", "_sequence", "_stale", "count", "payload_bytes", "rows", "waiting_since_ns")

    def __init__(self) -> None:
        self._heaps: dict[tuple[int, object], Heap] = {}
        self._sequence = 0
        self._stale = 0
        self.count = 0
        self.rows = 0
        self.payload_bytes = 0
        self.waiting_since_ns = 0

    def push(self, entry: Entry, now_ns: int) -> None:
        request = entry.request
        key = (-request.priority, entry.shape)
        heap = self._heaps.get(key)
        if heap is None:
            heap = self._heaps[key] = []
        self._sequence += 1
        heappush(heap, (entry.due_ns, self._sequence, entry))
        if not self.count:
            self.waiting_since_ns = now_ns
        self.count += 1
        self.rows += request.rows or 1
        self.payload_bytes += entry.payload_bytes

    def forget(self, entry: Entry) -> None:
        """This queued entry is about to be closed; its place in the heap is dropped when it comes up, or when there
        are more such places than queued entries: a client that asks and cancels must not fill the memory."""
        self._uncount(entry)
        self._stale += 1
        if self._stale > STALE_MAX + self.count:
            self._drop_stale(entry)

    def _drop_stale(self, closing: Entry) -> None:
        for key in list(self._heaps):
            kept = [place for place in self._heaps[key] if place[2].state is State.QUEUED and place[2] is not closing]
            if kept:
                heapify(kept)
                self._heaps[key] = kept
            else:
                del self._heaps[key]
        self._stale = 0

    def _uncount(self, entry: Entry) -> None:
        self.count -= 1
        self.rows -= entry.request.rows or 1
        self.payload_bytes -= entry.payload_bytes

    def due_ns(self) -> int | None:
        """When the first queued request must be answered, None when nothing is queued."""
        earliest = None
        for key in list(self._heaps):
            head = self._head(key)
            if head is not None and (earliest is None or head.due_ns < earliest):
                earliest = head.due_ns
        return earliest

    def take_due(self, now_ns: int) -> list[Entry]:
        """Take every entry out whose answer is due."""
        due = []
        for key in list(self._heaps):
            while (head := self._head(key)) is not None and head.due_ns <= now_ns:
                heappop(self._heaps[key])
                self._uncount(head)
                due.append(head)
        return due

    def take_all(self) -> list[Entry]:
        """Empty the queue."""
        entries = [entry for heap in self._heaps.values() for _, _, entry in heap if entry.state is State.QUEUED]
        self._heaps.clear()
        self._stale = 0
        self.count = self.rows = self.payload_bytes = 0
        return entries

    def take_batch(self, rows_max: int, members_max: int) -> list[Entry]:
        """The next batch: the first request of the highest priority, and what may join it, in that order.

        A request that must run alone, or has `rows_max` rows or more by itself, is its own batch.
        """
        first_key: tuple[int, object] | None = None
        first: Entry | None = None
        for key in sorted(self._heaps, key=_priority_of) if len(self._heaps) > 1 else list(self._heaps):
            if first_key is not None and key[0] > first_key[0]:
                break
            head = self._head(key)
            if head is not None and (first is None or head.due_ns < first.due_ns):
                first_key, first = key, head
        if first_key is None or first is None:
            return []
        batch = [first]
        heappop(self._heaps[first_key])
        self._uncount(first)
        rows = first.request.rows or 1
        if self.count and members_max > 1 and not first.alone:
            self._fill(batch, first_key[1], rows_max - rows, members_max - 1)
        return batch

    def _fill(self, batch: list[Entry], shape: object, rows_left: int, members_left: int) -> None:
        keys = [key for key in self._heaps if key[1] == shape]
        if len(keys) > 1:
            keys.sort(key=_priority_of)
        for key in keys:
            heap = self._heaps[key]
            while members_left > 0 and (head := self._head(key)) is not None:
                rows = head.request.rows or 1
                if rows > rows_left or head.alone:
                    break
                heappop(heap)
                self._uncount(head)
                batch.append(head)
                rows_left -= rows
                members_left -= 1

    def _head(self, key: tuple[int, object]) -> Entry | None:
        heap = self._heaps[key]
        while heap:
            entry = heap[0][2]
            if entry.state is State.QUEUED:
                return entry
            heappop(heap)
            self._stale -= 1
        del self._heaps[key]
        return None

    def check_invariants(self) -> None:
        queued = [e for heap in self._heaps.values() for _, _, e in heap if e.state is State.QUEUED]
        assert len(queued) == self.count, (len(queued), self.count)
        assert sum(map(len, self._heaps.values())) - len(queued) == self._stale <= STALE_MAX + self.count
        assert sum(e.request.rows or 1 for e in queued) == self.rows
        assert sum(e.payload_bytes for e in queued) == self.payload_bytes


def _priority_of(key: tuple[int, object]) -> int:
    return key[0]
