"""Admission: a request that arrives is refused as wrong, ended at once, or queued. Exactly these three endings.

Everything is checked here, in this order, before a request costs a worker anything: what it names (model, slots,
deadline), what it brings (tensors against the signature), whether there is room (limits, for which lower priorities
give way), and whether there is time: `router.forecast` says when it would be done, `router.shedding` who would be late
for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from router import events as ev
from router.closing import RETRY_AFTER_MS_MAX, Closing
from router.config import RouterConfig
from router.counters import Counters
from router.ledger import Entry, Ledger, Session
from router.models import ModelState
from router.outbox import Outbox
from router.reserve import FLOOR_NS, Reserve
from router.roster import Roster
from router.shedding import lowest_below, make_room, surplus
from shm.client import Reply, Request
from shm.endings import Ending, Reason
from shm.errors import TensorRefused
from shm.limits import DEADLINE_NS_MAX

RATE_BURST_S = 0.1
"""What a client may save up, in seconds of its rate: a burst within that is no more than the rate says, on average."""

EVICTED_MAX = 8
"""Requests that one newcomer may replace in a full queue: those below it may be far smaller than it is."""

HEAVIER = 4
"""How much more than the newcomer's client another must have queued to give way to it. Clients that want about the same
never come to this: to let them evict from each other was tried, see `router.shedding`."""

WORKERLESS_NS = 1_000_000_000
"""Without any worker for so long, one is not just being replaced (0.3 s): who comes then is told at once."""


class Admission:
    """`take` each request once. `draining`: nothing is queued any more."""

    __slots__ = ("_closing", "_counters", "_ledger", "_models", "_outbox", "_rate", "_reserve", "_roster", "draining")

    def __init__(
        self,
        config: RouterConfig,
        ledger: Ledger,
        models: list[ModelState],
        roster: Roster,
        reserve: Reserve,
        closing: Closing,
        counters: Counters,
        outbox: Outbox,
    ) -> None:
        self._ledger = ledger
        self._models = models
        self._roster = roster
        self._reserve = reserve
        self._closing = closing
        self._counters = counters
        self._outbox = outbox
        self._rate = config.client_rate
        self.draining = False

    def take(self, session: Session, request: Request, now_ns: int, *, poison: bool = False) -> None:
        if request.id in session.entries:
            # A reply would be taken for the other one's.
            self._counters.invalid += 1
            message = f"request id {request.id} is in flight already"
            self._outbox.act(ev.SendRejected(session.number, Reason.DUPLICATE_ID, message))
            return
        try:
            model = self._check_names(session, request, now_ns)
            payload_bytes = 0
            if model.signature is not None:
                payload_bytes = model.payload_bytes(request, request.slot_count * session.slot_bytes)
        except TensorRefused as refused:
            # It was never opened, so its slots are the client's.
            self._counters.invalid += 1
            self._outbox.reply(
                session.number, Reply(request.id, Ending.INVALID, refused.reason, message=str(refused)[:512])
            )
            return
        due_ns = request.deadline_ns - self._reserve.before_ns
        shape = None if request.tensors is None else model.shape_of(request)
        entry = Entry(session, request, now_ns, due_ns, payload_bytes, shape)
        self._ledger.open(entry)
        model.retries.earn()
        if poison:
            self._counters.poison += 1
            message = "two workers died of this input or hung in it; it is refused for a while"
            self._closing.end(entry, Ending.FAILED, Reason.POISON, now_ns, message=message)
        else:
            self._admit(entry, model, now_ns)

    def _check_names(self, session: Session, request: Request, now_ns: int) -> ModelState:
        """Model, slots and deadline.

        Raises:
            TensorRefused: one of them cannot be; slots count as the request's own memory.
        """
        if request.model >= len(self._models):
            raise TensorRefused(Reason.UNKNOWN_MODEL, f"there is no model with index {request.model}")
        if session.denied and request.model in session.denied:
            name = self._models[request.model].config.name
            raise TensorRefused(
                Reason.NOT_ALLOWED, f"this user may not ask for model {name}: [models.{name}] allow does not name it"
            )
        if request.slot + request.slot_count > session.slot_count:
            last = request.slot + request.slot_count - 1
            raise TensorRefused(
                Reason.SLOT_RANGE, f"slots {request.slot}..{last} are named; this client has {session.slot_count}"
            )
        if not self._ledger.slots_free(session, request):
            raise TensorRefused(
                Reason.SLOT_BUSY, f"slot {request.slot} (or one after it) belongs to a request in flight"
            )
        if request.deadline_ns - now_ns > DEADLINE_NS_MAX:
            days = (request.deadline_ns - now_ns) / 86_400e9
            raise TensorRefused(
                Reason.DEADLINE_RANGE,
                f"the deadline is {days:.1f} days away; at most one day is allowed (CLOCK_MONOTONIC ns)",
            )
        return self._models[request.model]

    def _admit(self, entry: Entry, model: ModelState, now_ns: int) -> None:
        """Queue it or end it. An entry that is closed here was answered."""
        queue, closing = model.queue, self._closing
        if entry.request.deadline_ns <= now_ns:
            closing.end(entry, Ending.EXPIRED, Reason.EXPIRED_ON_ARRIVAL, now_ns)
        elif self.draining:
            closing.end(entry, Ending.SHED, Reason.DRAINING, now_ns)
        elif self._rate and not self._within_rate(entry.session, now_ns):
            earned_ms = math.ceil((1 - entry.session.tokens) / self._rate * 1000)
            closing.end(entry, Ending.SHED, Reason.RATE, now_ns, retry_after_ms=min(earned_ms, RETRY_AFTER_MS_MAX))
        elif not model.ready and self._is_out_of_order(model, now_ns):
            closing.end(entry, Ending.SHED, Reason.NO_WORKER, now_ns)
        elif (
            queue.count >= model.half_requests
            or queue.payload_bytes + entry.payload_bytes > model.queue_bytes_max
            or self._ledger.open_of[model.index] > model.in_flight_max
        ) and (full := self._full(entry, model, now_ns)) is not None:
            closing.end(entry, Ending.SHED, full, now_ns)
        elif (
            self._is_calm(entry, model, now_ns)
            or self._has_time(entry, model, now_ns)
            or self._is_nobody_elses(entry, model, now_ns)
        ):
            queue.push(entry, now_ns)
        else:
            self._doubt(entry, model, now_ns)
            closing.end(entry, Ending.SHED, Reason.PREDICTED_LATE, now_ns)

    def _is_out_of_order(self, model: ModelState, now_ns: int) -> bool:
        """Whether nobody has loaded it yet, or every worker has been gone for a while."""
        return model.signature is None or self._roster.is_workerless(model.index, now_ns - WORKERLESS_NS)

    def _within_rate(self, session: Session, now_ns: int) -> bool:
        most = max(1.0, self._rate * RATE_BURST_S)
        earned = most if not session.tokens_ns else (now_ns - session.tokens_ns) / 1e9 * self._rate
        session.tokens = min(most, session.tokens + earned)
        session.tokens_ns = now_ns
        if session.tokens < 1:
            return False
        session.tokens -= 1
        return True

    # Room

    def _full(self, entry: Entry, model: ModelState, now_ns: int) -> Reason | None:
        """The limit that this request would break and nobody gives way for, None when there is room."""
        for _ in range(EVICTED_MAX):
            reason = self._limit(entry, model)
            other = lowest_below(model.queue, entry.request.priority)
            if reason is None:
                return None
            if other is None:
                other = self._heaviest(entry, model)
            if other is None:
                return reason
            self._evict((other,), model, now_ns)
        return self._limit(entry, model)

    def _heaviest(self, entry: Entry, model: ModelState) -> Entry | None:
        """The last request of a client that has more than half of the queue, where the newcomer's client has less than
        a quarter of that: else one client that always asks again keeps a queue full and everyone else out."""
        queue, priority = model.queue, entry.request.priority
        clients = queue.clients(priority)
        number = max(clients, key=clients.__getitem__, default=0)
        most = clients.get(number, 0)
        if 2 * most <= queue.count or HEAVIER * clients.get(entry.session.number, 0) >= most:
            return None
        return next(place[2] for place in reversed(queue.line(priority)) if place[2].session.number == number)

    def _limit(self, entry: Entry, model: ModelState) -> Reason | None:
        queue = model.queue
        if queue.count >= model.queue_requests * (1 - surplus(queue, entry)):
            return Reason.QUEUE_FULL
        if queue.payload_bytes + entry.payload_bytes > model.queue_bytes_max:
            return Reason.BYTES_FULL
        if self._ledger.open_of[model.index] > model.in_flight_max:
            return Reason.IN_FLIGHT_FULL
        return None

    def _evict(self, entries: Sequence[Entry], model: ModelState, now_ns: int) -> None:
        for entry in entries:
            model.queue.forget(entry)
            self._counters.evicted += 1
            self._closing.end(entry, Ending.SHED, Reason.EVICTED, now_ns)

    # Time

    def _is_calm(self, entry: Entry, model: ModelState, now_ns: int) -> bool:
        """Whether all that waits is done before anybody is due even if one worker has to do it all, after all that any
        has in hand. The usual case, and its check must be cheap; where it fails, nothing is said yet."""
        queue = model.queue
        due_ns = entry.due_ns if entry.due_ns < queue.not_before_ns else queue.not_before_ns
        begin_ns = model.busy_until_ns
        if begin_ns <= now_ns:
            if model.in_hand:
                return False  # over its time, and nobody knows for how long
            begin_ns = now_ns
        rows, full = queue.rows + (entry.request.rows or 1), model.max_batch
        cost_ns = model.costs.estimate(rows if rows < full else full) * ((rows - 1) // full + 1)
        return begin_ns + cost_ns <= due_ns and not model.suspects

    def _has_time(self, entry: Entry, model: ModelState, now_ns: int) -> bool:
        """Whether it and everyone it would overtake are done in time; who must give way for that is evicted."""
        forecast, queue = model.forecast, model.queue
        forecast.look(self._roster.of_model(model.index), model.max_batch, now_ns)
        late = make_room(queue, forecast, entry)
        if late is None:
            return False
        self._evict(late, model, now_ns)
        return True

    def _is_idle(self, model: ModelState) -> bool:
        return not model.queue.count and self._roster.idle(model.index) is not None

    def _is_nobody_elses(self, entry: Entry, model: ModelState, now_ns: int) -> bool:
        """Whether a worker has nothing else to do, so that a request which more likely than not is in time may try."""
        return self._is_idle(model) and now_ns + model.costs.median(entry.request.rows or 1) <= entry.due_ns

    def _doubt(self, entry: Entry, model: ModelState, now_ns: int) -> None:
        """A refusal by prediction weakens what it rests on: nothing else corrects it once it refuses everything."""
        if not self._is_idle(model):
            return
        rows = entry.request.rows or 1
        if now_ns + model.costs.estimate(rows) <= entry.request.deadline_ns - FLOOR_NS:
            self._reserve.observe(0)
        else:
            model.costs.doubt(rows)
