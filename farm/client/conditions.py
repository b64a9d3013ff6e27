"""What callers wait for that is no request: a state of the farm, or the end of some submitted request."""

from __future__ import annotations

from collections.abc import Callable

from farm.client.refusals import not_there
from farm.client.session import Session
from farm.client.tickets import FOREVER_NS, Pending, Reap, Watch
from farm.errors import FarmError


class Conditions:
    """Under the client's lock. `notify` gets each that is done."""

    def __init__(self, notify: Callable[[Pending], None]) -> None:
        self.watches: list[Watch] = []
        self.reaps: list[Reap] = []
        self.unheard = False
        """A watch came in since the attach socket was last looked at."""
        self._notify = notify

    def watch(self, watch: Watch) -> None:
        self.watches.append(watch)
        self.unheard = True

    def heard(self, session: Session) -> None:
        """All that the router has told is taken in: what holds now is not read off a session that has ended."""
        self.unheard = False
        for watch in self.watches:
            watch.heard = True
        self.check(session)

    def check(self, session: Session) -> None:
        """Models or session are new."""
        for watch in [w for w in self.watches if w.heard and w.holds(session)]:
            self.watches.remove(watch)
            self._finish(watch)

    def reaped(self) -> None:
        """A submitted request has ended."""
        while self.reaps:
            self._finish(self.reaps.pop())

    def expire(self, now_ns: int, session: Session | None, why: str) -> int:
        """End those whose time is up; returns the next deadline. `why`: why there is no session, if there is none."""
        for watch in [w for w in self.watches if w.deadline_ns <= now_ns]:
            self.watches.remove(watch)
            watch.error = not_there(watch, session, why)
            self._finish(watch)
        for reap in [r for r in self.reaps if r.deadline_ns <= now_ns]:
            self.reaps.remove(reap)
            self._finish(reap)
        return min((pending.deadline_ns for pending in (*self.watches, *self.reaps)), default=FOREVER_NS)

    def fail(self, error: FarmError) -> None:
        """The farm refuses this client, or the client is closed."""
        while self.watches:
            watch = self.watches.pop()
            watch.error = error
            self._finish(watch)
        self.reaped()

    def forget(self, pending: Pending) -> None:
        """Its caller is gone."""
        if isinstance(pending, Watch) and pending in self.watches:
            self.watches.remove(pending)
        elif isinstance(pending, Reap) and pending in self.reaps:
            self.reaps.remove(pending)

    def _finish(self, pending: Pending) -> None:
        pending.done = True
        self._notify(pending)
