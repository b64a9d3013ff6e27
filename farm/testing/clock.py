"""Time, as the fake farm and its clients see it.

By default nobody waits: `StillClock` stands still until something would wait, and then jumps to the end of the wait. A
request with a deadline of ten seconds that meets silence ends at once, and its `stages["total"]` says ten seconds.
Patching `time` was rejected: the service under test has its own use for it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Final, Protocol

NS_PER_MS: Final = 1_000_000
NS_PER_S: Final = 1_000_000_000


class Clock(Protocol):
    """What a `FakeFarm` may be given as its time. Called from any thread."""

    def now_ns(self) -> int:
        """Nanoseconds that never fall."""

    def wait_until(self, at_ns: int) -> None:
        """Return when `now_ns()` is at least `at_ns`."""

    async def wait_until_async(self, at_ns: int) -> None:
        """The same for asyncio; lets other tasks run at least once."""


class StillClock:
    """Moves when somebody would wait, and when a test says so.

    One thread's wait moves it for all: a thread that waits for slots which another one holds is past its deadline at
    once. Tests of such a race want a `WallClock`.
    """

    def __init__(self, start_ns: int = NS_PER_S) -> None:
        self._now_ns = start_ns
        self._lock = threading.Lock()

    def now_ns(self) -> int:
        return self._now_ns

    def advance_ms(self, duration_ms: float) -> None:
        """Let time pass, for instance between `submit` and `completions`."""
        with self._lock:
            self._now_ns += int(duration_ms * NS_PER_MS)

    def wait_until(self, at_ns: int) -> None:
        with self._lock:
            self._now_ns = max(self._now_ns, at_ns)

    async def wait_until_async(self, at_ns: int) -> None:
        await asyncio.sleep(0)
        self.wait_until(at_ns)


class WallClock:
    """Real time: for a test of the service's own time-outs around a silent farm."""

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def wait_until(self, at_ns: int) -> None:
        while (left_ns := at_ns - time.monotonic_ns()) > 0:
            time.sleep(left_ns / NS_PER_S)

    async def wait_until_async(self, at_ns: int) -> None:
        await asyncio.sleep(0)
        while (left_ns := at_ns - time.monotonic_ns()) > 0:
            await asyncio.sleep(left_ns / NS_PER_S)
