"""What carries a fake client's requests: the checks and seams of `farm.client`, with a fake farm and a clock below.

Arguments, models, inputs, slots, fallbacks and the client's own refusals are decided by the functions that decide them
in a service. New is what a router would say, and when: a request is asked of the farm as soon as it has slots, and its
end is kept until the clock has come to it. Ends happen in their order of time, however far the clock jumps.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from time import monotonic_ns
from typing import TYPE_CHECKING, NamedTuple

from farm.client import inputs as packing
from farm.client.answers import conclude, own_answer, stages_of
from farm.client.engine import UNKNOWN_DEADLINE_NS, Engine
from farm.client.options import Outputs, Settings
from farm.client.placing import NO_ROOM, PLACED, place
from farm.client.refusals import closed_error, not_there, overdue
from farm.client.reply import Batch, Reply
from farm.client.tickets import FOREVER_NS, Grant, Pending, Reap, Ticket, Watch
from farm.errors import Cancelled, DeadlineExceeded, FarmError, NoFreeSlot
from farm.testing.endings import Answered, Raised, Refused, Scripted, Silent
from farm.testing.memory import FakeSession
from shm import client as wire
from shm.endings import Ending, Reason, source_of
from shm.errors import TensorRefused

if TYPE_CHECKING:
    from farm.testing.fake import FakeFarm

STOPPED = "the fake farm was stopped by its test"


class Due(NamedTuple):
    """A request that the farm has, what becomes of it, and when. `outputs`: of an answer, the request's own."""

    ticket: Ticket
    due_ns: int
    scripted: Scripted
    outputs: Outputs | None


class FakeEngine(Engine):
    """One client's requests, behind the methods that clients call. Safe for threads.

    The test's functions run outside of the lock, except for requests that had to wait for slots.
    """

    def __init__(
        self, farm: FakeFarm, settings: Settings, notify: Callable[[Pending], None], nudge: Callable[[], None]
    ) -> None:
        super().__init__(settings, notify, nudge, _nothing)
        self.clock = farm.clock
        self._farm = farm
        self._settings = settings
        self._done = notify
        self._woken = nudge
        self._guard = threading.RLock()
        self._kept: dict[int, Due] = {}
        self._watching: list[Watch] = []
        self._reaping: list[Reap] = []

    # what clients and leases call

    def open(self, ticket: Ticket) -> None:
        with self._guard:
            session = self._enter(ticket)
            placed = session is not None and not self.waiting and self._placed(session, ticket) == PLACED
            if not placed:
                self._queue(ticket)
        if placed and not isinstance(ticket, Grant):
            self._ask(ticket, ticket.entered_ns)

    def open_now(self, ticket: Ticket) -> bool:
        with self._guard:
            session = self._enter(ticket)
            placed = None if session is None else self._placed(session, ticket)
            if placed == NO_ROOM:
                return False
            self.submitted[ticket.request_id] = ticket
            if placed != PLACED:
                ticket.inputs = packing.snapshot(ticket.inputs)
                self._queue(ticket)
        if placed == PLACED:
            self._ask(ticket, ticket.entered_ns)
        return True

    def resume(self, ticket: Ticket) -> None:
        self._enter(ticket)
        self._ask(ticket, ticket.entered_ns)

    def pump(self) -> None:
        """Let everything happen that the clock has come to."""
        with self._guard:
            session = self._connect()
            now_ns = self.clock.now_ns()
            while (first := self._first()) is not None and first.due_ns <= now_ns:
                self._end(first)
                # Whoever gets its slots got them then.
                self._admit_waiting(first.due_ns)
            self._admit_waiting(now_ns)
            for ticket in [t for t in self.waiting if t.deadline_ns <= now_ns]:
                self.waiting.remove(ticket)
                self._end_by_timer(ticket, ticket.deadline_ns)
            for watch in list(self._watching):
                if session is not None and watch.holds(session):
                    self._finish_condition(watch)
                elif watch.deadline_ns <= now_ns:
                    watch.error = not_there(watch, session, STOPPED)
                    self._finish_condition(watch)
            for reap in [r for r in self._reaping if self.finished or r.deadline_ns <= now_ns]:
                self._finish_condition(reap)

    def advance(self, *, hear: bool) -> None:
        self.pump()

    def expire(self, now_ns: int) -> None:
        self.pump()

    def step(self, pending: Pending) -> int:
        """Let happen what is due; then say when the next thing happens that `pending` may wait for."""
        self.pump()
        with self._guard:
            first = self._first()
            open_ns = [ticket.deadline_ns for ticket in self.waiting]
            return min([pending.deadline_ns, *open_ns, *([] if first is None else [first.due_ns])])

    def watch(self, watch: Watch) -> None:
        with self._guard:
            if self.closed:
                raise closed_error()
            watch.deadline_ns = self._here(watch.deadline_ns)
            self._watching.append(watch)

    def reap(self, reap: Reap) -> None:
        with self._guard:
            reap.deadline_ns = self._here(reap.deadline_ns)
            reap.done = bool(self.finished) or not self.submitted
            if not reap.done:
                self._reaping.append(reap)

    def forget(self, pending: Pending) -> None:
        with self._guard:
            if isinstance(pending, Ticket):
                self.cancel(pending)
            elif pending in self._watching or pending in self._reaping:
                self._finish_condition(pending)

    def cancel(self, ticket: Ticket) -> None:
        with self._guard:
            if not ticket.done:
                self._give_up(ticket, Cancelled("the caller cancelled this request", reason=Reason.CANCELLED.code))

    def shut(self) -> None:
        with self._guard:
            self.closed = True
            for ticket in [*(due.ticket for due in self._kept.values()), *self.waiting]:
                self._give_up(ticket, closed_error())
            for watch in self._watching:
                watch.error = closed_error()
            for pending in (*self._watching, *self._reaping):
                self._finish_condition(pending)
            self._connect()

    def dispose(self) -> None:
        pass

    def renew(self) -> None:
        """In a forked child: a thread of the parent may have held the lock."""
        self._guard = threading.RLock()

    # a request's way

    def _enter(self, ticket: Ticket) -> FakeSession | None:
        """Clients stamp requests by the host's clock; the fake has its own."""
        if self.closed:
            raise closed_error()
        entered_ns = self.clock.now_ns()
        if ticket.deadline_ns != FOREVER_NS:
            ticket.deadline_ns += entered_ns - ticket.entered_ns
        ticket.entered_ns = entered_ns
        return self._connect()

    def _here(self, deadline_ns: int) -> int:
        if deadline_ns == FOREVER_NS:
            return deadline_ns
        return self.clock.now_ns() + max(0, deadline_ns - monotonic_ns())

    def _connect(self) -> FakeSession | None:
        """There is a session while the farm is up. Its end ends no request: those that are open time out."""
        with self._guard:
            session = self.session
            assert session is None or isinstance(session, FakeSession)
            if self.closed or not self._farm.running:
                session = None
            elif session is None:
                session = FakeSession(self._farm.catalog, self._settings)
                session.nudge = self._woken
            self.session = session
            return session

    def _placed(self, session: FakeSession, ticket: Ticket) -> int:
        try:
            return place(session, ticket)
        except TensorRefused as error:
            raise packing.invalid(error, ticket.model, ticket.request_id) from error

    def _queue(self, ticket: Ticket) -> None:
        if ticket.deadline_ns == FOREVER_NS:
            ticket.deadline_ns = ticket.entered_ns + UNKNOWN_DEADLINE_NS
        self.waiting.append(ticket)

    def _admit_waiting(self, now_ns: int) -> None:
        """Those who wait, in their order; who finds no room stops those behind."""
        session = self._connect()
        if session is None:
            return
        for ticket in [t for t in self.waiting if t.deadline_ns > now_ns]:
            try:
                placed = self._placed(session, ticket)
            except FarmError as error:
                self._give_up(ticket, error)
                continue
            if placed == NO_ROOM:
                return
            if placed == PLACED:
                self.waiting.remove(ticket)
                if isinstance(ticket, Grant):
                    self._done(ticket)
                else:
                    self._ask_late(ticket, max(now_ns, ticket.entered_ns))

    def _ask(self, ticket: Ticket, now_ns: int) -> None:
        session = ticket.session
        assert isinstance(session, FakeSession)
        try:
            scripted, outputs = self._farm.asked(ticket, session.inputs_of(ticket))
        except BaseException:
            # The test's own fault, or its function's: it goes to the caller, and leaves nothing behind.
            self.submitted.pop(ticket.request_id, None)
            session.give_back(ticket)
            raise
        due_ns = now_ns + scripted.after_ns
        if due_ns > ticket.deadline_ns and not isinstance(scripted, Silent):
            scripted = Silent()
        if isinstance(scripted, Silent):
            due_ns = ticket.deadline_ns
        if not isinstance(scripted, Silent) or scripted.why is Reason.TIMEOUT:
            ticket.sent_ns = now_ns
        with self._guard:
            self._kept[ticket.request_id] = Due(ticket, due_ns, scripted, outputs)

    def _ask_late(self, ticket: Ticket, now_ns: int) -> None:
        try:
            self._ask(ticket, now_ns)
        except BaseException as error:
            # Whoever moves the clock just now need not be the one who waits for this request: both are told.
            ticket.fail(error)  # type: ignore[arg-type]
            self._ended(ticket)
            raise

    def _first(self) -> Due | None:
        return min(self._kept.values(), key=lambda due: due.due_ns, default=None)

    def _end(self, due: Due) -> None:
        ticket, scripted = due.ticket, due.scripted
        del self._kept[ticket.request_id]
        match scripted:
            case Answered():
                ticket.answer(_reply(due, scripted))
            case Refused(ending=ending, reason=reason, message=message, retry_after_ms=retry_after_ms):
                told = wire.Reply(ticket.request_id, ending, reason, message=message, retry_after_ms=retry_after_ms)
                conclude(ticket, told, due.due_ns, b"", 0, None)
            case Raised():
                ticket.fail(about(scripted.error, ticket))
            case Silent():
                self._end_by_timer(ticket, due.due_ns, gone=scripted.why is Reason.UNAVAILABLE)
                return
        self._ended(ticket)

    def _end_by_timer(self, ticket: Ticket, now_ns: int, *, gone: bool = False) -> None:
        """The client's own timer. `gone`: as if there were no farm."""
        why = STOPPED if not self._farm.running else "no router listens"
        error = overdue(ticket, None if gone else self.session, why)
        if ticket.options.fallback is None:
            ticket.fail(error)
        else:
            late = isinstance(error, DeadlineExceeded | NoFreeSlot)
            ticket.answer(own_answer(ticket, (Reason.TIMEOUT if late else Reason.UNAVAILABLE).code, now_ns))
        self._ended(ticket)

    def _give_up(self, ticket: Ticket, error: FarmError) -> None:
        self._kept.pop(ticket.request_id, None)
        if ticket in self.waiting:
            self.waiting.remove(ticket)
        ticket.fail(error)
        self._ended(ticket)

    def _ended(self, ticket: Ticket) -> None:
        ticket.inputs = None
        if ticket.session is not None and not isinstance(ticket, Grant):
            ticket.session.give_back(ticket)
        if self.submitted.pop(ticket.request_id, None) is not None:
            self.finished.append(ticket)
        self._done(ticket)

    def _finish_condition(self, pending: Pending) -> None:
        self._watching = [watch for watch in self._watching if watch is not pending]
        self._reaping = [reap for reap in self._reaping if reap is not pending]
        pending.done = True
        self._done(pending)


def _reply(due: Due, scripted: Answered) -> Reply:
    ticket, outputs = due.ticket, due.outputs
    session = ticket.session
    assert isinstance(session, FakeSession) and outputs is not None and ticket.served is not None
    by_model = scripted.ending is Ending.MODEL
    # Time that the farm took is time of the run, and a run takes some.
    spent_ns = max(1, due.due_ns - ticket.sent_ns)
    told = wire.Stages(ticket.sent_ns, 0 if by_model else spent_ns, 0, spent_ns if by_model else 0)
    return Reply(
        outputs=session.views(ticket, outputs) if ticket.leased else outputs,
        source=source_of(scripted.ending),
        reason=scripted.reason.code,
        model=ticket.model,
        model_version=ticket.served.version if scripted.version is None else scripted.version,
        request_id=ticket.request_id,
        stages=stages_of(ticket, told, ticket.sent_ns + spent_ns),
        rule=scripted.rule,
        decision=scripted.decision,
        key=ticket.options.key,
        trace=ticket.options.trace,
        batch=Batch(ticket.request_id, 0, ticket.rows or 1) if by_model else None,
    )


def about(error: FarmError, ticket: Ticket) -> FarmError:
    """A copy, since a raised error collects a traceback; with the request's own number."""
    told = copy.copy(error)
    told.request_id = ticket.request_id
    told.model = ticket.model
    return told


def _nothing() -> None:
    pass
