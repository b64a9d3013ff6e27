"""Run the sizes that will occur before the first client does, by the ways that requests will take, and time them.

The first run of a size allocates, plans memory and faults pages in; without a warm-up some client pays for it. The
times seed the router's estimate of what a run costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final

from shm.worker import RunCost
from workers.buffers import Buffers
from workers.log import log
from workers.samples import KINDS, Dice, Kind, sample
from workers.session import ModelFailed, Session

RUNS: Final = 7
LONG_NS: Final = 200_000_000
"""A size whose runs have taken this long together is not run again: large models would take minutes."""


def sizes(max_batch: int, *, batchable: bool) -> list[int]:
    """1, 2, 4 and so on up to max_batch, and max_batch itself.

    >>> sizes(12, batchable=True), sizes(12, batchable=False)
    ([1, 2, 4, 8, 12], [1])
    """
    if not batchable:
        return [1]
    return [*(1 << k for k in range(max_batch.bit_length()) if 1 << k < max_batch), max_batch]


def warm_up(session: Session, buffers: Buffers, max_batch: int) -> list[RunCost]:
    """The median time of a run of each size. Empty when the model takes no made-up input: its first requests tell."""
    kind = _accepted(session)
    if kind is None:
        return []
    dice = Dice(21)
    joined = session.input_plan.fits and session.input_plan.row_form
    costs = []
    run: Callable[[], object]
    for rows in sizes(max_batch, batchable=session.signature.independent_rows):
        feed = sample(session.signature, rows, kind, dice)
        if joined:
            batch = buffers.batch(rows)
            for name, array in feed.items():
                batch.feed[name][...] = array
            run = partial(batch.run, session)
        else:
            run = partial(session.run, feed)
        try:
            costs.append(RunCost(rows, _median_ns(run)))
        except ModelFailed as error:
            log("warm_up_failed", rows=rows, reason=str(error)[:200])
    return costs


def _accepted(session: Session) -> Kind | None:
    reason = ""
    for kind in KINDS:
        try:
            session.run(sample(session.signature, 1, kind, Dice(21)))
        except ModelFailed as error:
            reason = str(error)
        else:
            return kind
    log("warm_up_failed", rows=1, reason=reason[:200])
    return None


def _median_ns(run: Callable[[], object]) -> int:
    """The first run is not counted unless it was the only one there was time for."""
    times: list[int] = []
    while len(times) <= RUNS and sum(times) < LONG_NS:
        start = time.monotonic_ns()
        run()
        times.append(time.monotonic_ns() - start)
    counted = sorted(times[1:] or times)
    return counted[len(counted) // 2]
