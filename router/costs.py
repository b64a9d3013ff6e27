"""What a run of a model costs, by its number of rows: seeded at warm-up, kept up to date by every run.

A quantile is tracked without keeping a window: after each run the estimate rises by `q` steps when the run was
slower and falls by `1 - q` steps when it was faster, so that it settles where a share `q` of runs is below (Robbins
and Monro's stochastic approximation). A step is a fiftieth of the estimate: an outlier of any size moves it by one
step, and a lasting change of twofold is followed within about seventy runs. A window of the last 256 runs was
rejected: it costs a sort, and memory, for the same figure.
"""

from __future__ import annotations

from collections.abc import Iterable

QUANTILE = 0.95
STEP = 0.02
FLOOR_NS = 1_000
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
            if len(self._known) < 4096:
                at[rows] = float(max(run_ns, FLOOR_NS))
                self._known = sorted(at)
            return
        if run_ns > estimate:
            at[rows] = estimate * (1 + STEP * QUANTILE)
        elif estimate > FLOOR_NS:
            at[rows] = estimate * (1 - STEP * (1 - QUANTILE))

    def estimate(self, rows: int) -> int:
        """The p95 of a run of so many rows; between known sizes by a straight line, beyond them in proportion."""
        known = self._at.get(rows)
        if known is not None:
            return int(known)
        if not self._known:
            return UNKNOWN_NS
        below = [size for size in self._known if size < rows]
        above = [size for size in self._known if size > rows]
        if not above:
            last = below[-1]
            return int(self._at[last] * max(1, rows) / max(1, last))
        if not below:
            return int(self._at[above[0]])
        low, high = below[-1], above[0]
        share = (rows - low) / (high - low)
        return int(self._at[low] + share * (self._at[high] - self._at[low]))
