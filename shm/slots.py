"""The client's free list: runs of consecutive slots of its own arena, taken and put back without a round trip.

Only the client allocates; the router keeps its own table of what is in flight and refuses what overlaps. A slot is
put back in three cases only, all decided elsewhere: a reply that does not say `held`, a Release, or the session's end.

Single slots, nearly every request of a service, come from a stack: last in, first out, so that the warmest memory is
used next. Longer runs search a map of bytes (`bytearray.find`, 0.1 us a kilobyte), and take single slots out of the
stack lazily: a slot on the stack counts only while the map says that it is free. A buddy allocator was rejected: it
rounds a run of 37 slots (an image) up to 64.
"""

from __future__ import annotations

from shm.errors import NoRoom, TooLarge

_FREE = 0
_TAKEN = 1


class SlotPool:
    """Which of `slot_count` slots are free. Not safe for threads: the session holds its lock around every call."""

    def __init__(self, slot_count: int) -> None:
        assert slot_count > 0
        self.slot_count = slot_count
        self.free_count = slot_count
        self._taken = bytearray(slot_count)
        self._stack = list(range(slot_count - 1, -1, -1))

    def acquire(self, count: int) -> int:
        """The first slot of a run of `count`, now the caller's.

        Raises:
            NoRoom: no run is free now.
            TooLarge: the arena never has one.
        """
        if count == 1:
            while self._stack:
                slot = self._stack.pop()
                if self._taken[slot] == _FREE:
                    self._taken[slot] = _TAKEN
                    self.free_count -= 1
                    return slot
            raise NoRoom(f"all {self.slot_count} slots are taken")
        if count > self.slot_count:
            raise TooLarge(f"{count} slots were asked for; the arena has {self.slot_count}")
        slot = self._taken.find(bytes(count))
        if slot < 0:
            raise NoRoom(f"no {count} consecutive slots are free ({self.free_count} of {self.slot_count} are)")
        self._taken[slot : slot + count] = b"\x01" * count
        self.free_count -= count
        return slot

    def release(self, slot: int, count: int) -> None:
        """Put a run back. It must be one that `acquire` gave and that was not put back since."""
        assert slot >= 0 and slot + count <= self.slot_count, (slot, count)
        assert self._taken.count(_TAKEN, slot, slot + count) == count, "a slot was released twice"
        self._taken[slot : slot + count] = bytes(count)
        self.free_count += count
        self._stack.extend(range(slot + count - 1, slot - 1, -1))
        if len(self._stack) > 4 * self.slot_count:
            self._rebuild_stack()

    def _rebuild_stack(self) -> None:
        # Long runs leave stale entries behind; keep each free slot once, the latest on top.
        seen = set()
        kept = []
        for slot in reversed(self._stack):
            if slot not in seen and self._taken[slot] == _FREE:
                seen.add(slot)
                kept.append(slot)
        self._stack = kept[::-1]
