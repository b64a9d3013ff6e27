"""What processes cost over a while: CPU time, memory, context switches, page faults, as the kernel counts them.

CPU comes from the process's own CPU clock, in nanoseconds and with the threads that have ended; the usual clock ticks
are 10 ms long. Context switches are those of the threads that live.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from bench.host import TICKS_A_SECOND, Ticks
from bench.target import ProcessCost


class Count(Struct, frozen=True):
    """One process so far."""

    cpu_ns: int
    voluntary: int
    involuntary: int
    minor_faults: int
    major_faults: int


SCHEDULED = 2
"""Of the clocks that a process has, the one that the scheduler keeps; see clock_getcpuclockid(3)."""

ZERO = Count(0, 0, 0, 0, 0)


def count_of(pid: int) -> Count | None:
    """None when it is gone."""
    try:
        cpu_ns = time.clock_gettime_ns(~pid << 3 | SCHEDULED)
        voluntary = involuntary = 0
        for task in os.listdir(f"/proc/{pid}/task"):
            try:
                for line in _read(f"/proc/{pid}/task/{task}/status").splitlines():
                    if line.startswith("voluntary_ctxt_switches"):
                        voluntary += int(line.split()[1])
                    elif line.startswith("nonvoluntary_ctxt_switches"):
                        involuntary += int(line.split()[1])
            except OSError:
                continue  # this thread ended
        # After the command's name, which may hold anything, in brackets.
        fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        return Count(cpu_ns, voluntary, involuntary, int(fields[7]), int(fields[9]))
    except OSError:
        return None


def pss_mib(pid: int) -> float | None:
    """Memory with what is shared divided among those who share it. None when the kernel does not tell."""
    try:
        for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
            if line.startswith("Pss:"):
                return round(int(line.split()[1]) / 1024, 2)
    except OSError:
        pass
    return None


class Account:
    """The costs of some processes between `begin` and `end`: a Watcher that a target's `drive` calls.

    pids: asked at both moments; a process that is there only at the end counts from zero. at_begin: called in the
    account's own thread at the moment when the measured part begins; it gets that moment. Of the whole host, afterwards
    known: steal_percent; busy_s and host_s, seconds of all its CPUs that were busy and that there were.
    """

    def __init__(self, pids: Callable[[], dict[int, str]], at_begin: Callable[[int], None] | None = None) -> None:
        self._pids = pids
        self._at_begin = at_begin
        self._thread: threading.Thread | None = None
        self._cancelled = threading.Event()
        self._before: dict[int, Count] = {}
        self._roles: dict[int, str] = {}
        self._host = Ticks.now()
        self.steal_percent: float | None = None
        self.busy_s = 0.0
        self.host_s = 0.0
        self.processes: list[ProcessCost] = []

    def begin(self, at_ns: int) -> None:
        self._roles = self._pids()
        self._thread = threading.Thread(target=self._wait_and_count, args=(at_ns,))
        self._thread.start()

    def _wait_and_count(self, at_ns: int) -> None:
        if self._cancelled.wait(max(0.0, (at_ns - time.monotonic_ns()) / 1e9)):
            return
        self._host = Ticks.now()
        self._before = {pid: count for pid in self._roles if (count := count_of(pid)) is not None}
        if self._at_begin is not None:
            self._at_begin(at_ns)

    def end(self) -> None:
        self.cancel()
        host, before = Ticks.now(), self._host
        ticks = max(1, host.all - before.all)
        self.steal_percent = round(100 * (host.stolen - before.stolen) / ticks, 2)
        self.busy_s, self.host_s = (host.busy - before.busy) / TICKS_A_SECOND, ticks / TICKS_A_SECOND
        self._roles |= self._pids()
        self.processes = []
        for pid, role in self._roles.items():
            now = count_of(pid)
            if now is not None:
                self.processes.append(_cost(pid, role, self._before.get(pid, ZERO), now))

    def cancel(self) -> None:
        """Leave no thread behind, also where the load never began."""
        self._cancelled.set()
        if self._thread is not None:
            self._thread.join()


def per_request(processes: list[ProcessCost], requests: int) -> list[ProcessCost]:
    """The same, with CPU per request."""
    if not requests:
        return processes
    return [_with_share(process, requests) for process in processes]


def _with_share(process: ProcessCost, requests: int) -> ProcessCost:
    return msgspec.structs.replace(process, cpu_us_per_request=round(process.cpu_s / requests * 1e6, 3))


def _cost(pid: int, role: str, before: Count, now: Count) -> ProcessCost:
    return ProcessCost(
        role=role,
        pid=pid,
        cpu_us_per_request=0.0,
        cpu_s=round((now.cpu_ns - before.cpu_ns) / 1e9, 6),
        pss_mib=pss_mib(pid),
        voluntary_switches=max(0, now.voluntary - before.voluntary),
        involuntary_switches=max(0, now.involuntary - before.involuntary),
        minor_faults=now.minor_faults - before.minor_faults,
        major_faults=now.major_faults - before.major_faults,
    )


def _read(path: str) -> str:
    return Path(path).read_text()
