"""When a queued row will be done, from what the workers have in hand and what a run costs. Pure, one a model.

Rows are charged as they will run: a first batch at its own size, every one after it as a full batch, since whatever
arrives meanwhile fills it. With `b` batches before it, a batch begins when the first of `k` workers is free. Of the `j`
workers that are free soonest, the one with the least to do has no more than the mean, so

    begin <= min over j of (what those j have left + b x full batch) / j

which is exact for one worker, and for several never too early by more than the spread of what they have in hand
(R. L. Graham's bound for list scheduling, 1966). To simulate each batch on each worker was rejected: it gives the same
answer, and takes longer with every request that waits.
"""

from __future__ import annotations

from collections.abc import Sequence

from router.costs import RunCosts
from router.roster import Worker, WorkerState


class Forecast:
    """`look` at the workers, then ask."""

    __slots__ = ("_costs", "_full_ns", "_loads", "_max_batch", "now_ns")

    def __init__(self, costs: RunCosts) -> None:
        self._costs = costs
        self._max_batch = 1
        self._full_ns = 0
        self._loads: list[tuple[int, int]] = []
        """(j, what the j workers that are free soonest have left, in ns), for each j."""
        self.now_ns = -1

    def look(self, workers: Sequence[Worker], max_batch: int, now_ns: int) -> None:
        """See the workers as they are now, unless that was done at this time already. Without a ready one: as if one
        came now; a queue waits for it."""
        if self.now_ns == now_ns:
            return
        self.now_ns = now_ns
        self._max_batch = max_batch
        self._full_ns = self._costs.estimate(max_batch)
        left = [self._left_ns(w, now_ns) for w in workers if w.state is WorkerState.READY and not w.suspect]
        if not left:
            # All were told to stop: one that does not is killed at a known time.
            left = [max(0, w.runs[0].kill_ns - now_ns) for w in workers if w.suspect and w.runs]
        left.sort()
        self._loads = []
        load = 0
        for j, each in enumerate(left or [0], 1):
            load += each
            self._loads.append((j, load))

    def forget(self) -> None:
        """What was seen is so no longer: a run began or ended."""
        self.now_ns = -1

    def _left_ns(self, worker: Worker, now_ns: int) -> int:
        if not worker.runs:
            return 0
        left = worker.free_ns - now_ns
        # Who is over its time already may be so for as long again.
        return left if left > 0 else max(-left, self._costs.estimate(worker.runs[0].rows))

    def finish_ns(self, rows: int) -> int:
        """When the last of `rows` queued rows is done, given that they run in order."""
        batches = (rows - 1) // self._max_batch
        if not batches:
            # Nobody before it in the queue: the worker that is free soonest takes it.
            return self.now_ns + self._loads[0][1] + self._costs.estimate(rows)
        work_ns = batches * self._full_ns
        loads = self._loads
        if len(loads) == 1:
            return self.now_ns + loads[0][1] + work_ns + self._full_ns
        return self.now_ns + min((load + work_ns) // j for j, load in loads) + self._full_ns
