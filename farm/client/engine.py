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
from farm.client.answers import own_answer
from farm.client.conditions import Conditions
from farm.client.inbox import drain, hear_attach
from farm.client.link import Link
from farm.client.options import Settings
from farm.client.outbox import Outbox
from farm.client.placing import NO_ROOM, NOT_READY, PLACED, place
from farm.client.refusals import closed_error, overdue
from farm.client.session import Session, nobody
from farm.client.tickets import FOREVER_NS, Grant, Pending, Reap, Ticket, Watch
from farm.errors import Cancelled, DeadlineExceeded, FarmError, NoFreeSlot
from shm.endings import Reason
from shm.errors import TensorRefused

log = logging.getLogger("farm")

UNKNOWN_DEADLINE_NS: Final = 2_000_000_000
"""For a request that names no deadline while no farm has told the model's: long enough for a router's restart."""

STALL_NS: Final = 1_000_000_000
"""A lane that takes no frame for so long, while the attach socket stands, has lost its connection."""

SEND_AGAIN_NS: Final = 1_000_000


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
        self.outbox = Outbox()
        self.submitted: dict[int, Ticket] = {}
        self.finished: deque[Ticket] = deque()
        self.conditions = Conditions(notify)
        self._unseen = False  # somebody began to wait since the last pump
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
        self.submitted[ticket.request_id] = ticket  # before it is placed: another thread may send and end it at once
        session = self.session
        placed = NOT_READY
        try:
            if session is not None and not session.lost:
                placed = self._place(session, ticket)
        except FarmError:
            del self.submitted[ticket.request_id]
            raise
        if placed == NO_ROOM:
            del self.submitted[ticket.request_id]
        elif placed == NOT_READY:
            ticket.inputs = packing.snapshot(ticket.inputs)
            self._wait(ticket)
        return placed != NO_ROOM

    def resume(self, ticket: Ticket) -> None:
        """Take a request whose slots are written already: a lease's. In a session that has ended it is moved."""
        if self.closed:
            raise closed_error()
        self.outbox.tickets.append(ticket) if ticket.session is self.session else self._wait(ticket)

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
            self.outbox.tickets.append(ticket)
        return placed

    # under the client's lock

    def advance(self, *, hear: bool) -> None:
        """Do all that can be done now. `hear`: the attach socket may have something."""
        if self.closed:
            self._fail_all(closed_error())
            return
        session = self.session
        if session is not None and (hear or self.conditions.unheard):
            # The direct lane hears only what a receive has come upon.
            drain(session, self._finish_ticket)
            hear_attach(session, self._finish_ticket)
            if not session.lost:
                self.conditions.heard(session)
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
                if self.conditions.watches:
                    self.conditions.check(session)
            if self.outbox.wanted(session):
                due_ns = self.outbox.flush(session)
                if due_ns < self.next_due_ns:
                    self.next_due_ns = due_ns
                if self.outbox.strays:
                    self._readmit(session)
            drain(session, self._finish_ticket)
            if session.stirred and (self.waiting or self.conditions.watches):
                continue
            # A receive may have swallowed the edge that told that the lane takes frames again.
            if not (session.blocked_ns and self.outbox.wanted(session) and session.lane.writable()):
                break
        if session.lost:
            self._nudge()

    def expire(self, now_ns: int) -> None:
        """End everything whose time is up; look for the next deadline. A reply that is there by now counts."""
        if self.session is not None and not self.session.lost:
            drain(self.session, self._finish_ticket)
        self.next_due_ns = FOREVER_NS
        for ticket in list(self._open_tickets()):
            if ticket.done:
                continue
            if ticket.deadline_ns <= now_ns:
                self._time_out(ticket, now_ns)
            elif ticket.deadline_ns < self.next_due_ns:
                self.next_due_ns = ticket.deadline_ns
        self._sweep()
        self.next_due_ns = min(self.next_due_ns, self.conditions.expire(now_ns, self.session, self.link.why))

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
        self.conditions.watch(watch)
        self.next_due_ns = min(self.next_due_ns, watch.deadline_ns)
        self._nudge()

    def reap(self, reap: Reap) -> None:
        """Wait for a submitted request to end; done at once when one has, or when none is open."""
        if self.finished or not self.submitted:
            reap.done = True
            return
        self.conditions.reaps.append(reap)
        self.next_due_ns = min(self.next_due_ns, reap.deadline_ns)

    def forget(self, pending: Pending) -> None:
        self.cancel(pending) if isinstance(pending, Ticket) else self.conditions.forget(pending)

    def take_finished(self) -> list[Ticket]:
        return [self.finished.popleft() for _ in range(len(self.finished))]

    def wake_at_ns(self) -> int:
        """When `advance` (and `expire`, if it is the next deadline) is to be called although nothing came."""
        session = self.session
        if session is None:
            if self._wanted():
                return min(self.next_due_ns, self.link.wake_at_ns())
        elif session.blocked_ns and self.outbox.wanted(session):
            # The direct lane does not tell when it takes frames again, but by a reply.
            return min(self.next_due_ns, monotonic_ns() + SEND_AGAIN_NS)
        return self.next_due_ns

    def descriptors(self) -> tuple[int, int]:
        """What to watch for reading: the lane, the attach socket; -1 for what is not there."""
        if self.session is not None:
            lane, attach = self.session.lane.descriptor, self.session.socket.fileno()
            return lane, -1 if attach == lane else attach
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
        for ticket in (*self.waiting, *self.outbox.empty()):
            ticket.session = ticket.run = None
        self.waiting.clear()
        self.link.close()

    def abandon(self) -> object:
        """In a forked child: close the parent's descriptors, use nothing else of it. The result must be kept for the
        child's life: ZeroMQ's objects must not be finalised there."""
        self.closed = True
        session, self.session = self.session, None
        context = self.link.abandon()
        if session is None:
            return context
        session.nudge = nobody
        session.socket.close()
        return session.lane, context

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
            self.conditions.heard(session)
            log.info("attached epoch=%d slots=%d", session.epoch, session.slot_count)
            self.pump()

    def _returned(self) -> None:
        # A lease has let a run go, in any thread, perhaps in the garbage collector: no lock is taken here.
        if (session := self.session) is not None and self.waiting:
            session.stirred = True
            self._nudge()

    def _wanted(self) -> bool:
        return bool(self.waiting or self.outbox.tickets or self.conditions.watches)

    def _lose(self, session: Session) -> None:
        left = [*session.flight.values(), *(a[0] for a in session.awaiting.values()), *self.outbox.empty()]
        orphans = sorted({t.request_id: t for t in left if not t.done}.values(), key=lambda t: t.request_id)
        log.warning("session_lost epoch=%d why=%r open=%d", session.epoch, session.lost, len(orphans))
        for ticket in orphans:
            ticket.sent_ns = 0
            ticket.resent = True
            session.flight.pop(ticket.request_id, None)
            session.held.pop(ticket.request_id, None)
        session.awaiting.clear()
        self._drop(session)
        self.waiting.extendleft(reversed(orphans))
        # Some were not sent yet, and have a deadline that nobody has looked at.
        self.next_due_ns = min([self.next_due_ns, *(ticket.deadline_ns for ticket in orphans)])
        self.link.why = f"the router is gone ({session.lost})"

    def _drop(self, session: Session) -> None:
        self._unwatch()
        self.session = None
        self.generation += 1
        session.close()

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

    def _readmit(self, session: Session) -> None:
        # Placed by a thread in a session that ended before it came to the outbox.
        self.waiting.extendleft(reversed(self.outbox.strays))
        self.outbox.strays.clear()
        session.stirred = True

    def _finish_ticket(self, ticket: Ticket) -> None:
        ticket.inputs = None
        if ticket.submitted:
            self.submitted.pop(ticket.request_id, None)
            self.finished.append(ticket)
            self.conditions.reaped()
        self._notify(ticket)

    def _time_out(self, ticket: Ticket, now_ns: int) -> None:
        error = overdue(ticket, self.session, self.link.why)
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
            self.outbox.cancels.append(ticket.request_id)

    def _fail_all(self, error: FarmError) -> None:
        for ticket in list(self._open_tickets()):
            if not ticket.done:
                ticket.fail(error)
                self._recall(ticket)
                self._finish_ticket(ticket)
        self._sweep()
        self.conditions.fail(error)

    def _open_tickets(self) -> Iterator[Ticket]:
        if (session := self.session) is not None:
            yield from session.flight.values()
            yield from [ticket for ticket, _, _ in session.awaiting.values()]
        yield from [*self.outbox.tickets, *self.waiting]

    def _sweep(self) -> None:
        for _ in range(len(self.waiting)):
            ticket = self.waiting.popleft()
            if not ticket.done:
                self.waiting.append(ticket)
            else:
                ticket.part()
