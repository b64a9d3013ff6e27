"""What others do under overload, on the same machine, workers and queue: so that the comparison is of admission alone.

Each is an Admission that differs in who is let in and, where it has one, in what `Policy.stale` drops before a run.
"""

from __future__ import annotations

from collections.abc import Callable

from router.admission import Admission
from router.ledger import Entry
from router.machine import RouterMachine
from router.models import ModelState
from router.roster import Worker
from shm.endings import Ending, Reason

MS = 1_000_000


class Fixed(Admission):
    """A bounded queue and nothing else: whoever finds a place is queued, and runs if its deadline has not passed."""

    def _is_calm(self, entry: Entry, model: ModelState, now_ns: int) -> bool:
        return True

    def stale(self, entry: Entry, model: ModelState, now_ns: int) -> bool:
        """Whether a request that is about to run is dropped instead."""
        return False


class CoDel(Fixed):
    """Controlled delay as it is used in front of servers (K. Nichols and V. Jacobson, 2012; B. Maurer, 2015): once the
    queue has not been empty for INTERVAL, whoever has waited longer than TARGET is dropped."""

    INTERVAL_NS = 100 * MS
    TARGET_NS = 5 * MS
    empty_ns = 0

    def stale(self, entry: Entry, model: ModelState, now_ns: int) -> bool:
        if model.queue.count <= 1:
            self.empty_ns = now_ns
        patience_ns = self.TARGET_NS if now_ns - self.empty_ns > self.INTERVAL_NS else self.INTERVAL_NS
        return now_ns - entry.arrived_ns > patience_ns


class Gradient(Fixed):
    """A limit on requests in flight that follows the gradient of the latency: the least seen over the latest (the
    second algorithm of Netflix's concurrency-limits, 2018, with its constants)."""

    limit = 20.0
    least_ns = 0.0
    latest_ns = 0.0

    def _is_calm(self, entry: Entry, model: ModelState, now_ns: int) -> bool:
        return self._ledger.open_of[model.index] <= self.limit

    def _has_time(self, entry: Entry, model: ModelState, now_ns: int) -> bool:
        return False

    def answered(self, latency_ns: int) -> None:
        """A request came back by its model."""
        self.latest_ns = latency_ns
        long_ns = self.least_ns or latency_ns
        self.least_ns = long_ns + (latency_ns - long_ns) * 2 / 601
        if self.least_ns / latency_ns > 2:
            self.least_ns *= 0.95
        gradient = max(0.5, min(1.0, 1.5 * self.least_ns / latency_ns))
        wanted = self.limit * gradient + 4
        self.limit = max(20.0, min(1000.0, self.limit * 0.8 + wanted * 0.2))


class OnlyNewcomer(Admission):
    """Prediction that asks for the newcomer's own time and not for those whom it overtakes."""

    def _has_time(self, entry: Entry, model: ModelState, now_ns: int) -> bool:
        forecast = model.forecast
        forecast.look(self._roster.of_model(model.index), model.max_batch, now_ns)
        above, own, _ = model.queue.before(entry.request.priority, entry.due_ns)
        return forecast.finish_ns(above + own + (entry.request.rows or 1)) <= entry.due_ns


class Compared(RouterMachine):
    """The router's machine with another policy's drops before a run, where it has some."""

    def _next_batch(self, model: ModelState, worker: Worker, now_ns: int) -> list[Entry] | None:
        admission = self._admission
        if not isinstance(admission, Fixed):
            return super()._next_batch(model, worker, now_ns)
        queue = model.queue
        while queue.count and admission.stale(queue.first(), model, now_ns):
            first = queue.first()
            queue.forget(first)
            self._closing.end(first, Ending.SHED, Reason.QUEUE_FULL, now_ns)
        return queue.take_batch(model.max_batch, model.members_max) if queue.count else []


Build = Callable[..., RouterMachine]
POLICIES: dict[str, type[Admission]] = {
    "fixed queue": Fixed,
    "CoDel": CoDel,
    "gradient": Gradient,
    "prediction, newcomer only": OnlyNewcomer,
    "prediction": Admission,
}
