"""What a run of a model costs, by its number of rows: seeded at warm-up, kept up to date by every run.

The cost is what the router sees: from the moment a worker can begin with a run to the turn that hears of its end. So
it holds the way there and back and the router's own work, which for a small model are most of it, and predictions stay
true when it is the router that is short of time.

A quantile is tracked without keeping a window: after each run the estimate rises by `q` steps when the run was slower
and falls by `1 - q` steps when it was faster, so that it settles where a share `q` of runs is below (Robbins and
Monro's stochastic approximation). A step is a fiftieth of the estimate: an outlier of any size moves it by one step,
and a lasting change of twofold is followed within about seventy runs. A window of the last 256 runs was rejected: it
costs a sort, and memory, for the same figure. Three quantiles are kept: p95 decides at arrival, p90 again at dispatch,
where less is unknown, and the median where a worker has nothing else to do: where others take its CPU now and then, the
p95 may be beyond every deadline, and to refuse everybody while workers are idle helps nobody.

Sizes that do not occur for a while follow those that do (every TREND_RUNS runs): else an estimate from a bad time, by
which large batches are never formed again, would never be put right.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable

AT_ARRIVAL = 0.95
AT_DISPATCH = 0.90
WHEN_IDLE = 0.5
STEP = 0.02
FLOOR_NS = 1_000
SIZES_MAX = 4096
"""Sizes that are kept; clients choose them, so there must be an end to it."""
UNKNOWN_NS = 1_000_000
"""Before anything was measured; replaced by the first run."""
WAY_NS = 150_000
"""To a worker and back, added to what a warm-up measures inside one: 70 to 200 us between idle processes [two cores,
shared]. The first runs put it right."""
TREND_RUNS = 64

# By what an estimate rises after a run that was slower, and falls after one that was not.
_ARRIVAL_UP, _ARRIVAL_DOWN = 1 + STEP * AT_ARRIVAL, 1 - STEP * (1 - AT_ARRIVAL)
_DISPATCH_UP, _DISPATCH_DOWN = 1 + STEP * AT_DISPATCH, 1 - STEP * (1 - AT_DISPATCH)
_IDLE_UP, _IDLE_DOWN = 1 + STEP * WHEN_IDLE, 1 - STEP * (1 - WHEN_IDLE)


class RunCosts:
    """Estimated cost in ns for every number of rows."""

    __slots__ = ("_at", "_began", "_known", "_likely", "_median", "_runs_left")

    def __init__(self) -> None:
        self._at: dict[int, float] = {}
        self._likely: dict[int, float] = {}
        self._median: dict[int, float] = {}
        self._known: list[int] = []
        self._began: dict[int, float] = {}
        """By size seen since the last look at the trend: its estimate then."""
        self._runs_left = TREND_RUNS

    def seed(self, costs: Iterable[tuple[int, int]]) -> None:
        """Take (rows, cost_ns) as a worker's warm-up has it; what runs have taught is kept."""
        for rows, cost_ns in costs:
            if rows not in self._at:
                self._learn_size(rows, float(max(cost_ns, FLOOR_NS)))

    def _learn_size(self, rows: int, cost_ns: float) -> None:
        self._at[rows] = self._likely[rows] = self._median[rows] = cost_ns
        insort(self._known, rows)

    def observe(self, rows: int, cost_ns: int) -> None:
        """Learn from a run."""
        at = self._at
        estimate = at.get(rows)
        if estimate is None:
            if len(self._known) < SIZES_MAX:
                # The first run of a size may be the outlier, so it is believed up to twice what the others say.
                most = 2 * self.estimate(rows) if self._known else cost_ns
                self._learn_size(rows, float(max(min(cost_ns, most), FLOOR_NS)))
            return
        if rows not in self._began:
            self._began[rows] = estimate
        if cost_ns > estimate:
            at[rows] = estimate * _ARRIVAL_UP
        elif estimate > FLOOR_NS:
            at[rows] = estimate * _ARRIVAL_DOWN
        likely = self._likely[rows]
        if cost_ns > likely:
            self._likely[rows] = likely * _DISPATCH_UP
        elif likely > FLOOR_NS:
            self._likely[rows] = likely * _DISPATCH_DOWN
        median = self._median[rows]
        if cost_ns > median:
            self._median[rows] = median * _IDLE_UP
        elif median > FLOOR_NS:
            self._median[rows] = median * _IDLE_DOWN
        self._runs_left -= 1
        if not self._runs_left:
            self._follow_trend()

    def _follow_trend(self) -> None:
        """Move what was not seen lately as what was seen has moved."""
        self._runs_left = TREND_RUNS
        began, self._began = self._began, {}
        if not began or len(began) == len(self._known):
            return
        moved = sum(self._at[rows] / before for rows, before in began.items()) / len(began)
        for rows in self._known:
            if rows not in began:
                self._at[rows] = max(self._at[rows] * moved, FLOOR_NS)
                self._likely[rows] = max(self._likely[rows] * moved, FLOOR_NS)
                self._median[rows] = max(self._median[rows] * moved, FLOOR_NS)

    def doubt(self, rows: int) -> None:
        """A request was refused by this estimate while a worker had nothing to do. What is refused teaches nothing, so
        an estimate from a bad time would refuse for ever; it falls by what a fast run would teach, until one is let
        in. Where the estimate is right, that is about one refusal in twenty, on time that nobody else wanted."""
        if rows not in self._at:
            if not self._known or len(self._known) >= SIZES_MAX:
                return
            self._learn_size(rows, float(self.estimate(rows)))
        for at, down in ((self._at, _ARRIVAL_DOWN), (self._likely, _DISPATCH_DOWN), (self._median, _IDLE_DOWN)):
            if at[rows] > FLOOR_NS:
                at[rows] *= down

    def estimate(self, rows: int) -> int:
        """The p95 of a run of so many rows; between known sizes by a straight line, beyond them in proportion."""
        known = self._at.get(rows)
        return int(known) if known is not None else self._between(self._at, rows)

    def likely(self, rows: int) -> int:
        """The p90, by the same rule."""
        known = self._likely.get(rows)
        return int(known) if known is not None else self._between(self._likely, rows)

    def median(self, rows: int) -> int:
        """The median, by the same rule."""
        known = self._median.get(rows)
        return int(known) if known is not None else self._between(self._median, rows)

    def knows(self, rows: int) -> bool:
        """Whether runs of so many rows or more were seen: beyond those, that a row costs the same is only assumed."""
        return bool(self._known) and rows <= self._known[-1]

    def rows_within(self, time_ns: int, rows_max: int) -> int:
        """The most rows, up to `rows_max`, that likely take no longer than `time_ns`; 0 where not even one does."""
        return bisect_right(range(1, rows_max + 1), time_ns, key=self.likely)

    def _between(self, at: dict[int, float], rows: int) -> int:
        if not self._known:
            return UNKNOWN_NS
        place = bisect_left(self._known, rows)
        if place == len(self._known):
            last = self._known[-1]
            return int(at[last] * max(1, rows) / max(1, last))
        high = self._known[place]
        if not place:
            return int(at[high])
        low = self._known[place - 1]
        share = (rows - low) / (high - low)
        return int(at[low] + share * (at[high] - at[low]))
