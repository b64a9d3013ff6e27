"""What is to go out on a session's lane: requests as lists, then cancels. Whatever is there goes as one frame."""

from __future__ import annotations

from collections import deque
from time import monotonic_ns

from farm.client.session import Session
from farm.client.tickets import FOREVER_NS, Ticket
from shm.limits import REQUESTS_MAX


class Outbox:
    """Any thread may append to `tickets`; the rest runs under the client's lock.

    tickets: placed, and to be sent in this order. cancels: ids that nobody waits for any more. strays: requests that
    `flush` found placed in another session; the owner takes them.
    """

    def __init__(self) -> None:
        self.tickets: deque[Ticket] = deque()
        self.cancels: list[int] = []
        self.strays: list[Ticket] = []

    def wanted(self, session: Session) -> bool:
        """Whether there is something to send."""
        return bool(self.tickets) or bool(self.cancels) or session.greeting is not None

    def flush(self, session: Session) -> int:
        """Send what the lane takes now. Returns the earliest deadline of what was sent, and of what could not be."""
        due_ns = FOREVER_NS
        if session.greeting is not None:
            if not _send(session, session.greeting):
                return self._due_ns()
            session.greeting = None
        while self.tickets:
            batch = self._next_batch(session)
            for frame, tickets in session.submit_frames(batch) if batch else ():
                # Before the send: the router may have it before this thread runs again.
                now_ns = monotonic_ns()
                if not _send(session, frame):
                    self.tickets.extendleft(ticket for ticket in reversed(batch) if not ticket.sent_ns)
                    return min(due_ns, self._due_ns())
                for ticket in tickets:
                    ticket.sent_ns = now_ns
                    session.flight[ticket.request_id] = ticket
                    if ticket.deadline_ns < due_ns:
                        due_ns = ticket.deadline_ns
        while self.cancels:
            if not _send(session, session.cancel_frame(self.cancels[:REQUESTS_MAX])):
                return due_ns
            del self.cancels[:REQUESTS_MAX]
        return due_ns

    def empty(self) -> list[Ticket]:
        """Everything that was not sent and is still open: the session has ended."""
        left = list(self.tickets)
        self.tickets.clear()
        self.cancels.clear()
        for ticket in left:
            if ticket.done:
                ticket.part()
        return [ticket for ticket in left if not ticket.done]

    def _due_ns(self) -> int:
        return min((ticket.deadline_ns for ticket in list(self.tickets)), default=FOREVER_NS)

    def _next_batch(self, session: Session) -> list[Ticket]:
        batch: list[Ticket] = []
        while self.tickets and len(batch) < REQUESTS_MAX:
            ticket = self.tickets.popleft()
            if ticket.session is not session:
                if ticket.done:
                    ticket.part()
                else:
                    self.strays.append(ticket)
            elif ticket.done:
                # Its caller went before it was sent: the farm never saw its slots.
                session.give_back(ticket)
            else:
                batch.append(ticket)
        return batch


def _send(session: Session, frame: bytes) -> bool:
    if session.lane.send(frame):
        session.blocked_ns = 0
        return True
    if not session.blocked_ns:
        session.blocked_ns = monotonic_ns()
    return False
