"""What sync and async clients share: everything but waiting.

Requests go open -> (waiting, for a session, a model or slots) -> outbox -> in flight -> done. `open` may be called from
any thread, and only appends to deques; everything else runs under the client's lock, in one thread at a time.
`advance` alone opens and closes descriptors, so that nobody polls one that was closed meanwhile; `pump` only sends and
receives.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic_ns
from typing import Final

from farm.client import inputs as packing
from farm.client.link import Link
from farm.client.options import Settings
from farm.client.placing import NO_ROOM, NOT_READY, PLACED, place
from farm.client.session import Session, own_answer
from farm.client.tickets import FOREVER_NS, Grant, Pending, Reap, Ticket, Watch
from farm.errors import Cancelled, DeadlineExceeded, FarmError, NoFreeSlot, Overloaded, Unavailable
from shm import client as wire
from shm.endings import Ending, Reason
from shm.errors import FrameRefused, PeerGone, SegmentRefused, TensorRefused
from shm.limits import REQUESTS_MAX

log = logging.getLogger("farm")

UNKNOWN_DEADLINE_NS: Final = 2_000_000_000
"""For a request that names no deadline while no farm has told the model's: long enough for a router's restart."""

STALL_NS: Final = 1_000_000_000
"""A lane that takes no frame for so long, while the attach socket stands, has lost its connection."""


class Engine:
    """One client's requests, over all of its sessions.

    notify: called with a Pending that is done, or whose deadline has changed. nudge: called when somebody has to call
    `advance` soon. Both may come from any thread. unwatch: called before a descriptor is closed.
    """

    def __init__(
        self,
        settings: Settings,
        notify: Callable[[Pending], None],
        nudge: Callable[[], None],
        unwatch: Callable[[], None],
    ) -> None:
        self.link = Link(settings, unwatch)
        self.session: Session | None = None
        self.generation = 0
        self.next_due_ns = FOREVER_NS
        self.closed = False
        self.waiting: deque[Ticket] = deque()
        self.outbox: deque[Ticket] = deque()
        self.submitted: dict[int, Ticket] = {}
        self.finished: deque[Ticket] = deque()
        self._watches: list[Watch] = []
        self._reaps: list[Reap] = []
        self._cancels: list[int] = []
        self._unseen = False
        """Somebody began to wait since the last pump."""
        self._notify = notify
        self._nudge = nudge
        self._unwatch = unwatch
        self.next_id = itertools.count(1).__next__

    # from any thread

    def open(self, ticket: Ticket) -> None:
        """Take a request in: into the outbox if it can be placed now, else to those who wait.

        Raises:
            InvalidRequest, ModelNotFound: it can never be placed.
            Unavailable: this client is closed.
        """
        if self.closed:
            raise closed_error()
        session = self.session
        if session is not None and not self.waiting and not session.lost and self._place(session, ticket) == PLACED:
            return
        self._wait(ticket)

    def open_now(self, ticket: Ticket) -> bool:
        """As `open`, for a caller who does not wait for slots: False when there are none.

        While there is no farm yet, or the model is not ready, the request waits, with a copy of its inputs.
        """
        if self.closed:
            raise closed_error()
        session = self.session
        if session is not None and not session.lost:
            placed = self._place(session, ticket)
            if placed == NO_ROOM:
                return False
            if placed == PLACED:
                self.submitted[ticket.request_id] = ticket
                return True
        ticket.inputs = packing.snapshot(ticket.inputs)
        self.submitted[ticket.request_id] = ticket
        self._wait(ticket)
        return True

    def resume(self, ticket: Ticket) -> None:
        """Take a request whose slots are written already: a lease's. In a session that has ended it is moved."""
        if self.closed:
            raise closed_error()
        self.outbox.append(ticket)

    def _wait(self, ticket: Ticket) -> None:
        if ticket.deadline_ns == FOREVER_NS:
            ticket.deadline_ns = ticket.entered_ns + UNKNOWN_DEADLINE_NS
        self.waiting.append(ticket)
        self._unseen = True

    def _place(self, session: Session, ticket: Ticket) -> int:
        try:
            placed = place(session, ticket)
        except TensorRefused as error:
            raise packing.invalid(error, ticket.model, ticket.request_id) from error
        if placed == PLACED and not isinstance(ticket, Grant):
            self.outbox.append(ticket)
        return placed

    # under the client's lock

    def advance(self, *, hear: bool) -> None:
        """Do all that can be done now. `hear`: the attach socket may have something."""
        if self.closed:
            self._fail_all(closed_error())
            return
        session = self.session
        if session is not None and hear:
            self._hear(session)
        self.pump()
        if session is not None:
            if session.blocked_ns and not session.lost and monotonic_ns() - session.blocked_ns > STALL_NS:
                session.lost = "its lane takes no frames"
            if session.lost:
                self._lose(session)
        if self.session is None and self._wanted():
            self._attach()

    def pump(self) -> None:
        """Place who waits, send what is due, take what has come; until nothing moves any more."""
        session = self.session
        if self._unseen:
            self._unseen = False
            self.next_due_ns = min([self.next_due_ns, *(ticket.deadline_ns for ticket in list(self.waiting))])
            if session is not None:
                session.stirred = True
        if session is None or session.lost:
            return
        while not session.lost:
            if session.stirred:
                session.stirred = False
                if self.waiting:
                    self._place_waiting(session)
                if self._watches:
                    self._check_watches(session)
            if self.outbox or self._cancels or session.greeting is not None:
                self._flush(session)
            self._drain(session)
            if session.stirred and (self.waiting or self._watches):
                continue
            # A receive may have swallowed the edge that told that the lane takes frames again.
            if not (session.blocked_ns and session.lane.writable()):
                break
        if session.lost:
            self._nudge()

    def expire(self, now_ns: int) -> None:
        """End everything whose time is up; look for the next deadline."""
        self.next_due_ns = FOREVER_NS
        for ticket in list(self._open_tickets()):
            if ticket.done:
                continue
            if ticket.deadline_ns <= now_ns:
                self._time_out(ticket, now_ns)
            elif ticket.deadline_ns < self.next_due_ns:
                self.next_due_ns = ticket.deadline_ns
        self._sweep()
        for watch in [w for w in self._watches if w.deadline_ns <= now_ns]:
            self._watches.remove(watch)
            watch.error = self._not_there(watch)
            self._finish(watch)
        for reap in [r for r in self._reaps if r.deadline_ns <= now_ns]:
            self._reaps.remove(reap)
            self._finish(reap)
        for pending in (*self._watches, *self._reaps):
            self.next_due_ns = min(self.next_due_ns, pending.deadline_ns)

    def cancel(self, ticket: Ticket) -> None:
        """Its caller is gone. What the farm has of it stays the farm's until the farm replies."""
        if not ticket.done:
            ticket.fail(Cancelled("the caller cancelled this request", reason=Reason.CANCELLED.code))
            self._recall(ticket)
            self._finish_ticket(ticket)
            self._sweep()

    def watch(self, watch: Watch) -> None:
        if self.closed:
            raise closed_error()
        self._watches.append(watch)
        self.next_due_ns = min(self.next_due_ns, watch.deadline_ns)
        if self.session is not None:
            self._check_watches(self.session)

    def reap(self, reap: Reap) -> None:
        """Done at once when a submitted request has ended, or when none is open."""
        if self.finished or not self.submitted:
            reap.done = True
            return
        self._reaps.append(reap)
        self.next_due_ns = min(self.next_due_ns, reap.deadline_ns)

    def forget(self, pending: Pending) -> None:
        """Its caller is gone."""
        if isinstance(pending, Ticket):
            self.cancel(pending)
        elif isinstance(pending, Watch) and pending in self._watches:
            self._watches.remove(pending)
        elif isinstance(pending, Reap) and pending in self._reaps:
            self._reaps.remove(pending)

    def take_finished(self) -> list[Ticket]:
        taken = []
        while self.finished:
            taken.append(self.finished.popleft())
        return taken

    def wake_at_ns(self) -> int:
        """When `advance` (and `expire`, if it is the next deadline) is to be called although nothing came."""
        session = self.session
        if session is None:
            if self._wanted():
                return min(self.next_due_ns, self.link.wake_at_ns())
        elif session.blocked_ns and (self.outbox or session.greeting is not None):
            return min(self.next_due_ns, session.blocked_ns + STALL_NS)
        return self.next_due_ns

    def descriptors(self) -> tuple[int, int]:
        """What to watch for reading: the lane, the attach socket; -1 for what is not there."""
        if self.session is not None:
            return self.session.lane.descriptor, self.session.socket.fileno()
        return -1, self.link.descriptor()

    def watched(self) -> tuple[int, int]:
        """Changes whenever `descriptors` does."""
        return self.generation, self.link.generation

    def shut(self) -> None:
        """End everything that is open: this client is closed."""
        self.closed = True
        self._fail_all(closed_error())

    def dispose(self) -> None:
        """Close every descriptor. After `shut`, once nobody polls."""
        if self.session is not None:
            self._drop(self.session)
        self.waiting.clear()
        self.outbox.clear()
        self.link.close()

    def abandon(self) -> object:
        """In a forked child: close the parent's descriptors, use nothing else of it. The result must be kept for the
        child's life: ZeroMQ's objects must not be finalised there."""
        self.closed = True
        session, self.session = self.session, None
        context = self.link.abandon()
        if session is None:
            return context
        session.nudge = _nothing
        session.socket.close()
        return session.lane, context

    # how

    def _attach(self) -> None:
        try:
            session = self.link.step(monotonic_ns())
        except FarmError as error:
            self._fail_all(error)
            return
        if session is not None:
            session.nudge = self._returned
            self.session = session
            self.generation += 1
            log.info("attached epoch=%d slots=%d", session.epoch, session.slot_count)
            self.pump()

    def _returned(self) -> None:
        # A lease has let a run go, in any thread, perhaps in the garbage collector: no lock is taken here.
        session = self.session
        if session is not None and self.waiting:
            session.stirred = True
            self._nudge()

    def _wanted(self) -> bool:
        return bool(self.waiting or self.outbox or self._watches)

    def _lose(self, session: Session) -> None:
        orphans = [t for t in (*session.flight.values(), *(a[0] for a in session.awaiting.values())) if not t.done]
        while self.outbox:
            orphans.append(self.outbox.popleft())
        orphans = sorted({t.request_id: t for t in orphans if not t.done}.values(), key=lambda t: t.request_id)
        log.warning("session_lost epoch=%d why=%r open=%d", session.epoch, session.lost, len(orphans))
        for ticket in orphans:
            ticket.sent_ns = 0
            session.flight.pop(ticket.request_id, None)
            session.held.pop(ticket.request_id, None)
        session.awaiting.clear()
        self._cancels.clear()
        self._drop(session)
        self.waiting.extendleft(reversed(orphans))
        self.link.why = f"the router is gone ({session.lost})"

    def _drop(self, session: Session) -> None:
        self._unwatch()
        self.session = None
        self.generation += 1
        session.close()

    def _hear(self, session: Session) -> None:
        try:
            while (message := session.hear()) is not None:
                if isinstance(message, wire.Overflow):
                    ticket = session.overflowed(message.id)
                    if ticket is not None:
                        self._finish_ticket(ticket)
        except (PeerGone, FrameRefused, SegmentRefused) as error:
            # What the lane still holds was answered in time: take it before the lane is closed.
            self._drain(session)
            session.lost = session.lost or str(error)

    def _place_waiting(self, session: Session) -> None:
        unready = []
        while self.waiting:
            ticket = self.waiting.popleft()
            if ticket.done:
                continue
            due_ns = ticket.deadline_ns
            try:
                placed = self._place(session, ticket)
            except FarmError as error:
                ticket.fail(error)
                self._finish_ticket(ticket)
                continue
            if placed == NO_ROOM:
                # Nobody overtakes: a long run would never find its room behind a stream of short ones.
                self.waiting.appendleft(ticket)
                break
            if placed == NOT_READY:
                unready.append(ticket)
            self.next_due_ns = min(self.next_due_ns, ticket.deadline_ns)
            if ticket.done or ticket.deadline_ns != due_ns:
                self._notify(ticket)
        self.waiting.extendleft(reversed(unready))

    def _check_watches(self, session: Session) -> None:
        for watch in [w for w in self._watches if w.holds(session)]:
            self._watches.remove(watch)
            self._finish(watch)

    def _flush(self, session: Session) -> None:
        if session.greeting is not None:
            if not self._send(session, session.greeting):
                return
            session.greeting = None
        while self.outbox:
            batch = self._next_batch(session)
            for frame, tickets in session.submit_frames(batch) if batch else ():
                if not self._send(session, frame):
                    self.outbox.extendleft(t for t in reversed(batch) if not t.sent_ns)
                    return
                now_ns = monotonic_ns()
                for ticket in tickets:
                    ticket.sent_ns = now_ns
                    session.flight[ticket.request_id] = ticket
                    if ticket.deadline_ns < self.next_due_ns:
                        self.next_due_ns = ticket.deadline_ns
        while self._cancels:
            if not self._send(session, session.cancel_frame(self._cancels[:REQUESTS_MAX])):
                return
            del self._cancels[:REQUESTS_MAX]

    def _next_batch(self, session: Session) -> list[Ticket]:
        batch: list[Ticket] = []
        while self.outbox and len(batch) < REQUESTS_MAX:
            ticket = self.outbox.popleft()
            if ticket.session is not session:
                if not ticket.done:
                    self.waiting.appendleft(ticket)
                    session.stirred = True
            elif ticket.done:
                session.give_back(ticket)
            else:
                batch.append(ticket)
        return batch

    def _send(self, session: Session, frame: bytes) -> bool:
        if session.lane.send(frame):
            session.blocked_ns = 0
            return True
        if not session.blocked_ns:
            session.blocked_ns = monotonic_ns()
        return False

    def _drain(self, session: Session) -> None:
        receive = session.lane.receive
        try:
            while (frame := receive()) is not None:
                message = session.decode(frame)
                if isinstance(message, wire.Replies):
                    now_ns = monotonic_ns()
                    for reply in message.replies:
                        if reply.reason == Reason.STALE_EPOCH and reply.ending == Ending.INVALID:
                            session.lost = "another router answered"
                            continue
                        ticket = session.replied(reply, now_ns)
                        if ticket is not None:
                            self._finish_ticket(ticket)
                elif isinstance(message, wire.Release):
                    for request_id in message.ids:
                        session.released(request_id)
                else:
                    log.warning("frame_rejected reason=%d message=%r", message.reason, message.message)
                    if message.reason == Reason.STALE_EPOCH:
                        session.lost = "another router answered"
        except FrameRefused as error:
            session.lost = str(error)

    def _finish(self, pending: Pending) -> None:
        pending.done = True
        self._notify(pending)

    def _finish_ticket(self, ticket: Ticket) -> None:
        ticket.inputs = None
        if ticket.submitted:
            self.submitted.pop(ticket.request_id, None)
            self.finished.append(ticket)
            while self._reaps:
                self._finish(self._reaps.pop())
        self._notify(ticket)

    def _time_out(self, ticket: Ticket, now_ns: int) -> None:
        error = self._overdue(ticket)
        if ticket.options.fallback is not None:
            late = isinstance(error, DeadlineExceeded | NoFreeSlot)
            ticket.answer(own_answer(ticket, "timeout" if late else "unavailable", now_ns))
        else:
            ticket.fail(error)
        self._recall(ticket)
        self._finish_ticket(ticket)

    def _recall(self, ticket: Ticket) -> None:
        session = self.session
        if session is not None and ticket.request_id in session.flight:
            self._cancels.append(ticket.request_id)

    def _overdue(self, ticket: Ticket) -> FarmError:
        budget_ms = (ticket.deadline_ns - ticket.entered_ns) / 1e6
        within = f"within {budget_ms:.6g} ms"
        about = {"request_id": ticket.request_id, "model": ticket.model}
        session = self.session
        if session is None:
            return _error(Unavailable, f"no farm took the request {within}: {self.link.why}", "unavailable", about)
        if ticket.sent_ns:
            return _error(DeadlineExceeded, f"{ticket.model} gave no answer {within}", "timeout", about)
        if session.blocked_ns:
            return _error(Unavailable, f"the router took no frame {within}", "unavailable", about)
        if ticket.served is None or ticket.served.inputs is None:
            return _error(Overloaded, f"no worker of {ticket.model} was ready {within}", "no_worker", about)
        return _error(
            NoFreeSlot,
            f"all {session.slot_count} slots of this client were taken and none came back {within}: make the client "
            "with more slots, or keep fewer requests in flight",
            "no_free_slot",
            about,
        )

    def _not_there(self, watch: Watch) -> FarmError:
        if self.session is None:
            return Unavailable(f"no farm answered in time: {self.link.why}", reason="unavailable", retryable=True)
        return Unavailable(watch.lacking(self.session), reason="no_worker", retryable=True)

    def _fail_all(self, error: FarmError) -> None:
        for ticket in list(self._open_tickets()):
            if not ticket.done:
                ticket.fail(error)
                self._recall(ticket)
                self._finish_ticket(ticket)
        self._sweep()
        for watch in self._watches:
            watch.error = error
            self._finish(watch)
        self._watches.clear()
        while self._reaps:
            self._finish(self._reaps.pop())

    def _open_tickets(self) -> Iterator[Ticket]:
        session = self.session
        if session is not None:
            yield from session.flight.values()
            yield from [ticket for ticket, _, _ in session.awaiting.values()]
        yield from list(self.outbox)
        yield from list(self.waiting)

    def _sweep(self) -> None:
        for _ in range(len(self.waiting)):
            ticket = self.waiting.popleft()
            if not ticket.done:
                self.waiting.append(ticket)


def _error(kind: type[FarmError], message: str, reason: str, about: dict[str, object]) -> FarmError:
    return kind(message, reason=reason, retryable=True, **about)  # type: ignore[arg-type]


def closed_error() -> FarmError:
    return Unavailable("this client is closed; make a new one", reason="closed")


def _nothing() -> None:
    pass
