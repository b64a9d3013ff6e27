"""Mappings of clients' arenas in this worker: `in` read-only, `out` writable, made at first use, dropped on word.

An arena's descriptors stay until the router says that it is closed, its mapping only while it is among the
`arenas_max` last mapped ones at the end of a run: one that had to go comes back at 24 us. Nothing is closed by force:
a mapping goes with the last array that lies in it.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable

import numpy as np

from shm import segment
from shm.errors import FrameRefused
from shm.layout import RowPlan, place
from shm.tensors import NUMPY, Array, address, view
from shm.worker import ArenaOpened, Member
from workers.session import Bound

BOUND_MAX = 4096
"""Prepared runs kept over all arenas, 3 KB each. Beyond it all are dropped and made again, 7 us each, as they come."""


class Arena:
    """One client's memory as this worker sees it."""

    __slots__ = (
        "_fds",
        "_in_rows",
        "_out_rows",
        "bound",
        "in_map",
        "out_map",
        "payload_bytes",
        "session",
        "slot_bytes",
        "slot_count",
    )

    def __init__(self, opened: ArenaOpened, fds: tuple[int, int]) -> None:
        self.session = opened.session
        self.slot_count = opened.slot_count
        self.slot_bytes = opened.slot_bytes
        self.payload_bytes = opened.slot_count * opened.slot_bytes
        self.in_map: mmap.mmap | None = None
        self.out_map: mmap.mmap | None = None
        self.bound: dict[int, Bound] = {}
        """Prepared runs by `slot * 2**32 + rows`."""
        self._in_rows: list[Array] | None = None
        self._out_rows: list[Array] | None = None
        self._fds = fds

    def map(self) -> None:
        """Raises SegmentRefused: the descriptors are not what they should be, or no mapping can be had."""
        in_fd, out_fd = self._fds
        segment.check(in_fd, self.payload_bytes)
        segment.check(out_fd, self.payload_bytes)
        in_map = segment.map_memory(in_fd, self.payload_bytes, writable=False)
        self.out_map = segment.map_memory(out_fd, self.payload_bytes, writable=True)
        self.in_map = in_map

    def unmap(self) -> None:
        self.bound.clear()
        self._in_rows = self._out_rows = None
        self.in_map = self.out_map = None

    def close(self) -> None:
        self.unmap()
        for fd in self._fds:
            os.close(fd)
        self._fds = (-1, -1)

    def room(self, slot: int, slot_count: int) -> tuple[int, int]:
        """(start, bytes) of a run of slots.

        Raises:
            FrameRefused: outside the arena; the router has checked this, so one of us is wrong.
        """
        if slot < 0 or slot_count < 1 or slot + slot_count > self.slot_count:
            raise FrameRefused(f"slots {slot}..{slot + slot_count} were named of an arena of {self.slot_count}")
        return slot * self.slot_bytes, slot_count * self.slot_bytes

    def arrays(self, plan: RowPlan, member: Member, *, out: bool) -> list[Array]:
        """Views of one member's tensors at the places that the plan and its rows give.

        Raises:
            FrameRefused: they pass the member's slots. For inputs the router has checked this, for outputs the
                caller has.
        """
        start, room_bytes = self.room(member.slot, member.slot_count)
        offsets, payload_bytes = place(plan.sizes(member.rows))
        if payload_bytes > room_bytes:
            raise FrameRefused(f"{payload_bytes} bytes were named in slots of {room_bytes}")
        buffer = self.out_map if out else self.in_map
        assert buffer is not None
        return [
            view(buffer, start + offset, spec.dtype, plan.dims(index, member.rows), writable=out)
            for index, (spec, offset) in enumerate(zip(plan.specs, offsets, strict=True))
        ]

    def in_rows(self, plan: RowPlan) -> list[Array]:
        """For each input of a row-form plan an array over the whole arena: entry k is that of a one-row request in
        slot k, shape (slots, *tail)."""
        if self._in_rows is None:
            self._in_rows = self._rows_of(plan, self.in_map)
        return self._in_rows

    def out_rows(self, plan: RowPlan) -> list[Array]:
        """The same for the outputs."""
        if self._out_rows is None:
            self._out_rows = self._rows_of(plan, self.out_map)
        return self._out_rows

    def _rows_of(self, plan: RowPlan, buffer: mmap.mmap | None) -> list[Array]:
        assert buffer is not None  # numpy would take None for a wish for new memory
        views = []
        for index, offset in enumerate(plan.offsets(1)):
            dtype = NUMPY[plan.specs[index].dtype]
            tail = plan.tails[index]
            count = (self.payload_bytes - offset - plan.row_bytes[index]) // self.slot_bytes + 1
            strides = np.empty(tail, dtype).strides
            views.append(np.ndarray((max(0, count), *tail), dtype, buffer, offset, (self.slot_bytes, *strides)))
        return views

    def facts(self) -> dict[str, int | None]:
        return {
            "session": self.session,
            "slot_count": self.slot_count,
            "slot_bytes": self.slot_bytes,
            "in_address": _base(self.in_map),
            "out_address": _base(self.out_map),
        }


class Arenas:
    """All arenas that the router has opened here."""

    def __init__(self, arenas_max: int) -> None:
        self._arenas_max = arenas_max
        self._arenas: dict[int, Arena] = {}
        self.mapped: dict[int, Arena] = {}
        """Those that are mapped, by session, the one mapped longest first. To be looked at only."""
        self._bound_count = 0
        self.over = False
        """More are mapped than should be: `trim` when the run is over."""

    def __len__(self) -> int:
        return len(self._arenas)

    def open(self, opened: ArenaOpened, fds: tuple[int, int]) -> None:
        """The descriptors are ours from here on."""
        known = self._arenas.get(opened.session)
        if known is not None:
            self.close([opened.session])
        self._arenas[opened.session] = Arena(opened, fds)

    def get(self, session: int) -> Arena:
        """The arena, mapped.

        Raises:
            FrameRefused: the router never opened it here.
            SegmentRefused: it cannot be mapped.
        """
        arena = self.mapped.get(session)
        if arena is not None:
            return arena
        arena = self._arenas.get(session)
        if arena is None:
            raise FrameRefused(f"a run names the arena of session {session}, which was not opened")
        arena.map()
        self.mapped[session] = arena
        self.over = len(self.mapped) > self._arenas_max
        return arena

    def trim(self) -> None:
        """Drop the mappings above `arenas_max` that are oldest. Between runs only: a run may need more than that."""
        while len(self.mapped) > self._arenas_max:
            oldest = self.mapped.pop(next(iter(self.mapped)))
            self._bound_count -= len(oldest.bound)
            oldest.unmap()
        self.over = False

    def keep(self, arena: Arena, key: int, bound: Bound) -> None:
        """Keep a prepared run with its arena."""
        if self._bound_count >= BOUND_MAX:
            for each in self.mapped.values():
                each.bound.clear()
            self._bound_count = 0
        arena.bound[key] = bound
        self._bound_count += 1

    def close(self, sessions: Iterable[int]) -> None:
        """Drop these mappings and descriptors; unknown ones are no fault."""
        for session in sessions:
            self.mapped.pop(session, None)
            arena = self._arenas.pop(session, None)
            if arena is not None:
                self._bound_count -= len(arena.bound)
                arena.close()

    def close_all(self) -> None:
        self.close(list(self._arenas))

    def facts(self) -> list[dict[str, int | None]]:
        return [arena.facts() for arena in self._arenas.values()]


def _base(mapping: mmap.mmap | None) -> int | None:
    return None if mapping is None else address(np.frombuffer(mapping, np.uint8, 1))
