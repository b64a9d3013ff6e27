"""Who gives way when a newcomer does not fit: the newcomer, or others who have less right to the time.

`make_room` says whether a newcomer can be admitted so that it *and everyone it would overtake* stay in time, and at
whose cost. Simulated with batches and mixed deadlines at twice the capacity, to ask only whether the newcomer is in
time let 72 % of those admitted be late: each short deadline pushed the long ones behind it over theirs.

- Who is overtaken within the newcomer's priority is never pushed over its time: then the newcomer is refused.
- Who is overtaken and has a lower priority gives way: it is evicted, at once, when it would be late.
- Between clients of one priority, whoever has more than its part of the queue may use less of it (`surplus`), so that
  whoever has less finds room. To evict requests of the heaviest client instead was tried: four equal clients at five
  times the capacity then evicted a fifth of all that was admitted from each other. Only a full queue of which one
  client has most gives one of its places to a client that has next to nothing there (`Admission._heaviest`).

A lower priority keeps a share of the batches (`batching.SHARE_EVERY`), so it is in time by its turn or by its share.
"""

from __future__ import annotations

from collections.abc import Sequence

from router.batching import SHARE_EVERY, ModelQueue, Place
from router.forecast import Forecast
from router.ledger import Entry

SURPLUS_SHARE = 0.5
"""Of ten clients at twice the capacity one asks ten times as often. It gets 1.3 of a tenth and each other 0.97, where
an even tenth each were right; with a quarter 1.4 and 0.95, without any 5.3 and 0.52 [simulated, docs/ADMISSION.md]."""
SURPLUS_MAX = 0.5


def make_room(queue: ModelQueue, forecast: Forecast, entry: Entry) -> Sequence[Entry] | None:
    """Whom to evict so that `entry` can be queued, mostly nobody; None where it cannot be in time or makes others late.

    `forecast` is fresh.
    """
    rows, due_ns, priority = entry.request.rows or 1, entry.due_ns, entry.request.priority
    finish_ns = forecast.finish_ns
    earliest_ns = queue.due_ns()
    if earliest_ns is None or earliest_ns > due_ns:
        earliest_ns = due_ns
    # If everything that waits is done before the first of it is due, order does not matter.
    if finish_ns(queue.rows + rows) <= earliest_ns:
        return ()
    above, own, at = queue.before(priority, due_ns)
    by_ns = due_ns - int((due_ns - forecast.now_ns) * surplus(queue, entry))
    if finish_ns(above + own + rows) > by_ns and not _in_time_by_share(queue, forecast, priority, rows, by_ns):
        return None
    line = queue.line(priority)
    if at < len(line) and not _in_time(line, queue.rows_up_to(priority), at, len(line), above + rows, forecast):
        return None
    return _late_below(queue, forecast, priority, above + queue.line_rows(priority) + rows)


def surplus(queue: ModelQueue, entry: Entry) -> float:
    """The share of its time, or of a queue's places, that the newcomer may not use because its client has more queued
    than the mean of the clients of its priority: nothing at the mean, half at twice the mean and beyond. So places even
    out between clients that want more than there is, and whoever wants less than its part gets all of it."""
    clients = queue.clients(entry.request.priority)
    mine = clients.get(entry.session.number, 0) * len(clients)
    count = len(queue.line(entry.request.priority))
    if mine <= count:
        return 0.0
    return min(SURPLUS_MAX, (mine / count - 1) * SURPLUS_SHARE)


def _in_time(line: Sequence[Place], up_to: Sequence[int], low: int, high: int, more: int, forecast: Forecast) -> bool:
    """Whether every place of line[low:high] is done in time with `more` rows before the line. Both due times and
    finishes rise along the line, so where the last is done before the first is due nobody in between need be asked."""
    if forecast.finish_ns(up_to[high - 1] + more) <= line[low][0]:
        return True
    if high - low == 1:
        return False
    middle = (low + high) // 2
    return _in_time(line, up_to, low, middle, more, forecast) and _in_time(line, up_to, middle, high, more, forecast)


def _in_time_by_share(queue: ModelQueue, forecast: Forecast, priority: int, rows: int, due_ns: int) -> bool:
    """Whether the share of those below the highest priority is enough for so many rows more."""
    if not queue.priorities or priority >= queue.priorities[0]:
        return False
    waiting = sum(queue.line_rows(below) for below in queue.priorities[1:])
    return forecast.finish_ns((waiting + rows) * SHARE_EVERY) <= due_ns


def _late_below(queue: ModelQueue, forecast: Forecast, priority: int, before: int) -> list[Entry]:
    """Who of the lower priorities is late when `before` rows go before them. Each that leaves lets the next come up."""
    late: list[Entry] = []
    shared = 0
    for below in queue.priorities:
        if below >= priority:
            continue
        line, rows = queue.line(below), queue.line_rows(below)
        if forecast.finish_ns(before + rows) <= line[0][0]:
            before += rows
            shared += rows
            continue
        for due_ns, _, entry in line:
            rows = entry.request.rows or 1
            in_turn = forecast.finish_ns(before + rows) <= due_ns
            if in_turn or forecast.finish_ns((shared + rows) * SHARE_EVERY) <= due_ns:
                before += rows
                shared += rows
            else:
                late.append(entry)
    return late


def lowest_below(queue: ModelQueue, priority: int) -> Entry | None:
    """Who gives up its place in a full queue for a newcomer of this priority: the last of the lowest below it."""
    if queue.priorities and queue.priorities[-1] < priority:
        return queue.line(queue.priorities[-1])[-1][2]
    return None
