"""How long before a deadline the router must act for its answer to arrive in time: measured, not guessed.

What goes by is the lateness of the router's own turns (a due time against the moment it was acted on) and the way to
the client. The reserve follows the worst lateness of late, forgotten by a twentieth with each answer that was due, and
never leaves its bounds: below 0.3 ms a timer and a send do not fit [two cores, shared], and a reserve of more than
20 ms would turn every stall of the machine into answers by rule long after it. A request that is refused for the
reserve alone also forgets a twentieth: where all deadlines are shorter than it, nothing else would ever be due.
"""

from __future__ import annotations

FLOOR_NS = 300_000
CEILING_NS = 20_000_000
FORGET = 0.95
UNMEASURED_NS = 1_000_000
"""What is assumed until answers that were due have shown better or worse."""


class Reserve:
    __slots__ = ("_worst_ns", "before_ns")

    def __init__(self) -> None:
        self._worst_ns = float(UNMEASURED_NS)
        self.before_ns = FLOOR_NS + UNMEASURED_NS

    def observe(self, lateness_ns: int) -> None:
        """A due time was acted on so much later."""
        self._worst_ns = max(float(min(lateness_ns, CEILING_NS)), self._worst_ns * FORGET)
        self.before_ns = int(min(CEILING_NS, FLOOR_NS + self._worst_ns))
