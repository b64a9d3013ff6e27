"""How long to wait before a dead process is replaced. Pure.

The first replacement is at once: most deaths are single, and a service is waiting. Then 0.1 s doubling to 30 s, so
that a process that dies at every start costs little; forgotten after 60 s of health. (OTP allows 1 restart in 5 s and
then gives up, which would turn one bad minute into an outage; Kubernetes starts at 10 s, too slow for a first death.)
"""

from __future__ import annotations


class Backoff:
    """One process's history."""

    __slots__ = ("delay_ns", "delay_ns_max", "failures", "healthy_ns")

    def __init__(self, delay_ns: int, delay_ns_max: int, healthy_ns: int) -> None:
        self.delay_ns = delay_ns
        self.delay_ns_max = delay_ns_max
        self.healthy_ns = healthy_ns
        self.failures = 0

    def next_ns(self, now_ns: int, ready_ns: int | None) -> int:
        """The delay after a death now; `ready_ns`: since when that life had been healthy, None: never."""
        if ready_ns is not None and now_ns - ready_ns >= self.healthy_ns:
            self.failures = 0
        failures = self.failures
        self.failures += 1
        if failures == 0:
            return 0
        # Capped before the shift: a process that dies for a year must not make a number of a million bits.
        return min(self.delay_ns << min(failures - 1, 32), self.delay_ns_max)
