"""What a farm could leave behind, noted while it runs and looked for after its end. Reads /proc, sends nothing."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

SETTLE_S = 2.0
"""A process that has ended stays in /proc until it is reaped."""


class Traces(NamedTuple):
    """Processes (with their start times, since a pid may be used again), and the runtime directory."""

    processes: frozenset[tuple[int, int]]
    runtime_dir: str

    @classmethod
    def of_children(cls, runtime_dir: str) -> Traces:
        """Of every process that this one has started, and that those have."""
        return cls(frozenset(_descendants(os.getpid())), runtime_dir)

    def left(self) -> list[str]:
        """What is still there of it, in words; empty when nothing is.

        Memory files have no names: they are held by descriptors and mappings alone. So when the processes are gone and
        this one holds none, there are none.
        """
        end = time.monotonic() + SETTLE_S
        while (found := self._look()) and time.monotonic() < end:
            time.sleep(0.02)
        return found

    def _look(self) -> list[str]:
        found = [f"process {pid}" for pid, started in sorted(self.processes) if _start_time(pid) == started]
        if os.path.exists(self.runtime_dir):
            found += [str(path) for path in (Path(self.runtime_dir), *Path(self.runtime_dir).rglob("*"))]
        return found + _memory_files()


def _descendants(pid: int) -> list[tuple[int, int]]:
    found = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split()):
                started = _start_time(child)
                if started is not None:
                    found.append((child, started))
                    found += _descendants(child)
    except OSError:
        pass  # it ended meanwhile
    return found


def _start_time(pid: int) -> int | None:
    """Clock ticks since boot, None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name in parentheses may hold spaces; the start time is the 20th field after it.
    return int(stat.rpartition(")")[2].split()[19])


def _memory_files() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue  # the one that listed
        if target.startswith("/memfd:"):
            found.append(f"memory file {target}")
    with open("/proc/self/maps") as lines:
        found += [f"mapping {line.split()[-2]}" for line in lines if "/memfd:" in line]
    return found
