"""What goes wrong on purpose in mid-run: real processes are killed or stopped, memory is taken.

A fault is struck from the thread that waits for its moment, and tells what it did, for the mark in the picture.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from bench.scenario import FaultSection
from bench.target import Mark, Target

SPIKE_END_S = 30.0

SPIKE = """
import mmap, sys, time
size = int(sys.argv[1]) * 2**20
began = time.monotonic()
memory = mmap.mmap(-1, size)
for page in range(0, size, 4096):
    memory[page] = 1
took = time.monotonic() - began
time.sleep(max(0.0, float(sys.argv[2]) - took))
memory.close()
"""


class Fault:
    """One fault in one run. `strike_at` is given to the run's account; `end` whatever happened."""

    def __init__(self, section: FaultSection, target: Target, seconds: float) -> None:
        self._section = section
        self._target = target
        self._delay_s = section.at * seconds
        self._cancelled = threading.Event()
        self._thread: threading.Thread | None = None
        self._spike: subprocess.Popen[bytes] | None = None
        self.marks: list[Mark] = []

    def strike_at(self, begin_ns: int) -> None:
        """At its share of the measured part, which begins at that moment."""
        self._thread = threading.Thread(target=self._wait_and_strike, args=(begin_ns,))
        self._thread.start()

    def _wait_and_strike(self, begin_ns: int) -> None:
        pids = self._target.pids()  # asked before: whoever is asked costs something
        left_s = (begin_ns - time.monotonic_ns()) / 1e9 + self._delay_s
        if self._cancelled.wait(max(0.0, left_s)):
            return
        what = self._strike(pids)
        self.marks.append(Mark(at_s=round(self._delay_s, 3), what=what))

    def _strike(self, pids: dict[int, str]) -> str:
        kind = self._section.kind
        if kind == "memory-spike":
            size, hold_s = str(self._section.mib), str(self._section.hold_s)
            self._spike = subprocess.Popen([sys.executable, "-c", SPIKE, size, hold_s], process_group=0)
            return f"{size} MiB taken for {hold_s} s"
        if kind == "client-killed":
            clients: list[int] = getattr(self._target, "client_pids", list)()
            return self._signal(clients, signal.SIGKILL, "client killed")
        wanted = "router" if kind == "router-killed" else "worker"
        candidates = [pid for pid, role in pids.items() if role == wanted]
        if kind == "worker-frozen":
            return self._signal(candidates, signal.SIGSTOP, "worker stopped")
        return self._signal(candidates, signal.SIGKILL, f"{wanted} killed")

    def _signal(self, pids: list[int], number: signal.Signals, what: str) -> str:
        if not pids:
            return f"nothing to strike: no process for {self._section.kind}"
        # The first: of workers it is the one that is given most, of clients as good as any.
        try:
            os.kill(pids[0], number)
        except ProcessLookupError:
            return f"pid {pids[0]} was gone before it could be struck"
        return what

    def end(self) -> None:
        self._cancelled.set()
        if self._thread is not None:
            self._thread.join()
        if self._spike is not None:
            try:
                self._spike.wait(SPIKE_END_S)
            except subprocess.TimeoutExpired:
                self._spike.kill()
                self._spike.wait()


def recovery_of(timeline: list[Any], marks: list[Mark]) -> dict[str, float]:
    """From the first mark on: the longest that goodput stayed below 90 % of what was asked, and what was lost.

    Seconds in slices of the timeline; a slice that was asked nothing counts as kept.
    """
    if not marks or not timeline:
        return {}
    after = [piece for piece in timeline if piece.at_s >= marks[0].at_s - 0.05]
    width_s = timeline[1].at_s - timeline[0].at_s if len(timeline) > 1 else 0.0
    longest = current = 0
    for piece in after:
        current = current + 1 if piece.good < 0.9 * piece.asked else 0
        longest = max(longest, current)
    return {
        "below_90_percent_s": round(longest * width_s, 3),
        "not_in_time_after_fault": float(sum(piece.asked - piece.good for piece in after)),
    }
