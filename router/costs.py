"""What a run of a model costs, by its number of rows: seeded at warm-up, kept up to date by every run.

A quantile is tracked without keeping a window: after each run the estimate rises by `q` steps when the run was
slower and falls by `1 - q` steps when it was faster, so that it settles where a share `q` of runs is below (Robbins
and Monro's stochastic approximation). A step is a fiftieth of the estimate: an outlier of any size moves it by one
step, and a lasting change of twofold is followed within about seventy runs. A window of the last 256 runs was
rejected: it costs a sort, and memory, for the same figure.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

QUANTILE = 0.95
STEP = 0.02
FLOOR_NS = 1_000
SIZES_MAX = 4096
"""Sizes that are kept; clients choose them, so there must be an end to it."""
UNKNOWN_NS = 1_000_000
"""Before anything was measured; replaced by the first run."""


class RunCosts:
    """Estimated run time in ns for every number of rows up to a model's largest batch."""

    __slots__ = ("_at", "_known")

    def __init__(self) -> None:
        self._at: dict[int, float] = {}
        self._known: list[int] = []

    def seed(self, costs: Iterable[tuple[int, int]]) -> None:
        """Take (rows, run_ns) from a worker's warm-up; what runs have taught is kept."""
        for rows, run_ns in costs:
            self._at.setdefault(rows, float(max(run_ns, FLOOR_NS)))
        self._known = sorted(self._at)

    def observe(self, rows: int, run_ns: int) -> None:
        """Learn from a run."""
        at = self._at
        estimate = at.get(rows)
        if estimate is None:
            if len(self._known) < SIZES_MAX:
                # The first run of a size may be the outlier, so it is believed up to twice what the others say.
                most = 2 * self.estimate(rows) if self._known else run_ns
                at[rows] = float(max(min(run_ns, most), FLOOR_NS))
                insort(self._known, rows)
            return
        if run_ns > estimate:
            at[rows] = estimate * (1 + STEP * QUANTILE)
        elif estimate > FLOOR_NS:
            at[rows] = estimate * (1 - STEP * (1 - QUANTILE))

    def doubt(self, rows: int) -> None:
        """A request was refused by this estimate while a worker had nothing to do. What is refused teaches nothing, so
        an estimate from a bad time would refuse for ever; it falls by what a fast run would teach, until one is let
        in. Where the estimate is right, that is about one refusal in twenty, on time that nobody else wanted."""
        at = self._at
        estimate = at.get(rows)
        if estimate is None:
            estimate = float(self.estimate(rows))
            if not self._known or len(self._known) >= SIZES_MAX:
                return
            at[rows] = estimate
            insort(self._known, rows)
        if estimate > FLOOR_NS:
            at[rows] = estimate * (1 - STEP * (1 - QUANTILE))

    def estimate(self, rows: int) -> int:
        """The p95 of a run of so many rows; between known sizes by a straight line, beyond them in proportion."""
        known = self._at.get(rows)
        if known is not None:
            return int(known)
        if not self._known:
            return UNKNOWN_NS
        place = bisect_left(self._known, rows)
        if place == len(self._known):
            last = self._known[-1]
            return int(self._at[last] * max(1, rows) / max(1, last))
        high = self._known[place]
        if not place:
            return int(self._at[high])
        low = self._known[place - 1]
        share = (rows - low) / (high - low)
        return int(self._at[low] + share * (self._at[high] - self._at[low]))
