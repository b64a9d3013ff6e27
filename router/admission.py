"""Admission: a request that arrives is refused as wrong, ended at once, or queued. Exactly these three endings.

Everything is checked here, in this order, before a request costs a worker anything: what it names (model, slots,
deadline), what it brings (tensors against the signature), and whether there is room and time for it.
"""

from __future__ import annotations

from router import events as ev
from router.closing import Closing
from router.counters import Counters
from router.ledger import Entry, Ledger, Session
from router.models import ModelState
from router.outbox import Outbox
from router.reserve import FLOOR_NS, Reserve
from router.roster import Roster
from shm.client import Reply, Request
from shm.endings import Ending, Reason
from shm.errors import TensorRefused
from shm.limits import DEADLINE_NS_MAX


class Admission:
    """`take` each request once. `draining`: nothing is queued any more."""

    __slots__ = ("_closing", "_counters", "_ledger", "_models", "_outbox", "_reserve", "_roster", "draining")

    def __init__(
        self,
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
        self.draining = False

    def take(self, session: Session, request: Request, now_ns: int) -> None:
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
        self._admit(entry, model, now_ns)

    def _check_names(self, session: Session, request: Request, now_ns: int) -> ModelState:
        """Model, slots and deadline.

        Raises:
            TensorRefused: one of them cannot be; slots count as the request's own memory.
        """
        if request.model >= len(self._models):
            raise TensorRefused(Reason.UNKNOWN_MODEL, f"there is no model with index {request.model}")
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
        queue, closing = model.queue, self._closing
        if entry.request.deadline_ns <= now_ns:
            closing.end(entry, Ending.EXPIRED, Reason.EXPIRED_ON_ARRIVAL, now_ns)
        elif self.draining:
            closing.end(entry, Ending.SHED, Reason.DRAINING, now_ns)
        elif model.signature is None:
            closing.end(entry, Ending.SHED, Reason.NO_WORKER, now_ns)
        elif queue.count >= model.config.queue_requests:
            closing.end(entry, Ending.SHED, Reason.QUEUE_FULL, now_ns)
        elif queue.payload_bytes + entry.payload_bytes > model.queue_bytes_max:
            closing.end(entry, Ending.SHED, Reason.BYTES_FULL, now_ns)
        elif now_ns + model.costs.estimate(entry.request.rows or 1) > entry.due_ns:
            self._doubt(entry, model, now_ns)
            closing.answer_late(entry, Reason.PREDICTED_LATE, now_ns)
        else:
            queue.push(entry, now_ns)

    def _doubt(self, entry: Entry, model: ModelState, now_ns: int) -> None:
        """A refusal by prediction weakens what it rests on: nothing else corrects it once it refuses everything."""
        rows = entry.request.rows or 1
        if now_ns + model.costs.estimate(rows) <= entry.request.deadline_ns - FLOOR_NS:
            self._reserve.observe(0)
        elif not model.queue.count and self._roster.pick(model.index, 1) is not None:
            model.costs.doubt(rows)
