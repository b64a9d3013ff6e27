"""Which CPUs each worker runs on. Pure: the service reads the affinity mask and the quota.

A worker that keeps its CPU keeps its caches, and no other worker's run delays it. That holds only while each has its
own: with fewer CPUs than processes nobody is pinned, since the kernel shares better than a fixed table does. A cgroup
quota grants time and not CPUs: the farm next door may hold the same quota over the same CPUs, and two farms that both
pin to the first ones would fight over them while others idle, so a quota below the mask pins nobody either.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

ROUTER_THREADS = 1
"""Kept free for the router, which is not pinned itself: the kernel finds the CPU that no worker holds."""


class CpuPool:
    """Hands CPUs out to workers and takes them back.

    Args:
        allowed: the CPUs this process may use.
        quota_cpus: how many CPUs' time the cgroup grants, None without a limit.
        threads: what each worker of the configuration runs at once; decides whether there is enough for all.
        pin: False hands out nothing.
    """

    def __init__(self, allowed: Iterable[int], quota_cpus: float | None, threads: Sequence[int], *, pin: bool) -> None:
        self.allowed = tuple(sorted(allowed))
        self.usable = len(self.allowed) if quota_cpus is None else min(quota_cpus, len(self.allowed))
        self.needed = sum(threads) + ROUTER_THREADS
        self.processes = len(threads) + 1
        self.quota_bites = self.usable < len(self.allowed)
        self.shared = self.needed > self.usable
        pinning = pin and not self.shared and not self.quota_bites
        self._free = list(self.allowed[ROUTER_THREADS:]) if pinning else []

    def take(self, threads: int) -> tuple[int, ...]:
        """CPUs for one more worker; empty: it is not pinned."""
        if threads > len(self._free):
            return ()
        taken, self._free = tuple(self._free[:threads]), self._free[threads:]
        return taken

    def give_back(self, cpus: Sequence[int]) -> None:
        self._free = sorted({*self._free, *cpus})

    def line(self) -> str | None:
        """What an operator should know at start, when there is less than one CPU a thread."""
        if not self.shared:
            return None
        if self.quota_bites:
            what = f"a quota of {self.usable:g} CPUs"
        else:
            what = f"{len(self.allowed)} CPU" + ("s" if len(self.allowed) > 1 else "")
        return f"{self.processes} processes with {self.needed} threads on {what}: they share, none is pinned"
