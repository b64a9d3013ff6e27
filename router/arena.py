"""Arenas: two memory files for each client, made and emptied a step a loop turn, so that it delays nobody.

To allocate costs 0.1 to 0.35 ms a MiB, to empty 256 MiB in one go 20 to 30 ms, and more where the client has it mapped:
longer than any reserve that is kept before a deadline. So there is one step of one arena in a turn, whoever else wants
one; what is given back comes first.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from shm import segment
from shm.errors import SegmentRefused

Steps = Iterator[None]


@dataclass(slots=True)
class Arena:
    """Two memory files of `slot_count * slot_bytes`. The router owns the descriptors until `empty` has ended."""

    in_fd: int
    out_fd: int
    slot_count: int
    slot_bytes: int

    @classmethod
    def create(cls, slot_count: int, slot_bytes: int) -> Arena:
        """Without memory yet: see `fill`.

        Raises:
            SegmentRefused: no descriptor is left.
        """
        in_fd = segment.create("shmfarm-in")
        try:
            return cls(in_fd, segment.create("shmfarm-out"), slot_count, slot_bytes)
        except SegmentRefused:
            os.close(in_fd)
            raise

    @property
    def payload_bytes(self) -> int:
        return self.slot_count * self.slot_bytes

    def read(self, slot: int, payload_bytes: int) -> bytes:
        """A copy of what the client wrote, from the start of a slot."""
        return os.pread(self.in_fd, payload_bytes, slot * self.slot_bytes)

    def read_part(self, slot: int, offset: int, payload_bytes: int) -> bytes:
        """The same, from further inside; less than was asked for where the arena ends."""
        return os.pread(self.in_fd, payload_bytes, slot * self.slot_bytes + offset)

    def read_out(self, slot: int, payload_bytes: int) -> bytes:
        """A copy of what a worker wrote, from the start of a slot."""
        return os.pread(self.out_fd, payload_bytes, slot * self.slot_bytes)

    def fill(self) -> Steps:
        """Allocate and seal.

        Raises:
            SegmentRefused: there is no memory.
        """
        for fd in (self.in_fd, self.out_fd):
            for offset, step in _steps(self.payload_bytes):
                segment.allocate(fd, offset, step)
                yield
            segment.seal(fd)

    def empty(self) -> Steps:
        """Punch both files before they are closed: a client that kept its descriptors keeps no memory."""
        for fd in (self.in_fd, self.out_fd):
            for offset, step in _steps(self.payload_bytes):
                segment.punch(fd, step, offset)
                yield
            os.close(fd)


def _steps(payload_bytes: int) -> Iterator[tuple[int, int]]:
    for offset in range(0, payload_bytes, segment.STEP_BYTES):
        yield offset, min(segment.STEP_BYTES, payload_bytes - offset)


class Chores:
    """Work in steps: one step in a turn of the loop, of all that there is."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._urgent: deque[Steps] = deque()
        self._others: deque[Steps] = deque()
        self._handle: asyncio.Handle | None = None

    def add(self, steps: Steps, *, first: bool = False) -> None:
        """Begin now, with one step if nothing else is being done; by turns with the others. `first`: before them."""
        (self._urgent if first else self._others).append(steps)
        if self._handle is None:
            self._step()

    def _step(self) -> None:
        self._handle = None
        chores = self._urgent or self._others
        if not chores:
            return
        steps = chores.popleft()
        # Before the step: what it ends with may add a chore.
        self._handle = self._loop.call_soon(self._step)
        for _ in steps:
            chores.append(steps)
            return

    def finish(self) -> None:
        """Do what was added `first` to its end, now, and nothing else any more."""
        if self._handle is not None:
            self._handle.cancel()
        for steps in self._urgent:
            for _ in steps:
                pass
        self._urgent.clear()
        self._others.clear()
