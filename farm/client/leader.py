"""How the threads of a blocking client share its engine, with no thread of its own: whoever waits does the work.

Two locks. `state` guards the engine and the ZeroMQ socket; nobody waits while holding it. `_leadership` belongs to the
one thread that polls the session's descriptors. A thread that needs something from the engine and finds `state` taken
leaves a note (`_work`) instead of waiting; the holder looks for notes after it has let go (flat combining).

A thread whose request is open leads if nobody else does: it polls, without `state`, then advances the engine under
it, which ends other threads' requests too and wakes them. All others follow: each sleeps on a lock of its own, under
which it is registered in `_followers`. No wake-up is lost, because
- a follower registers first and looks at `done` and at `_leadership` after; who ends a request sets `done` first and
  looks for the follower after; a leader leaves first and looks for followers after;
- whoever takes a follower out of the dict, and only he, wakes it, and everyone who leaves with nobody leading wakes
  one: a follower woken to lead that has meanwhile been answered passes it on in the same way;
- a request ended by another thread while its own thread polls rings the eventfd that is polled too.
"""

from __future__ import annotations

import os
import select
import threading
from time import monotonic_ns
from typing import Final

from farm.client.engine import Engine
from farm.client.spin import Spin
from farm.client.tickets import Pending, Ticket

CLOSE_S: Final = 1.0
"""How long `close` waits for the thread that polls; longer only when it is called from a signal handler within it."""

SELECT_FD_MAX: Final = 1024
_MS: Final = 1_000_000


class Turns:
    """Whose turn it is to work for one client.

    state: held around every call of the engine but `open`, `open_now` and `resume`; nobody waits while holding it.
    """

    def __init__(self, engine: Engine, spin_us: int = 0) -> None:
        self._spin = Spin(spin_us)
        self.state = threading.Lock()
        self._engine = engine
        self._leadership = threading.Lock()
        self._followers: dict[Pending, threading.Lock] = {}
        self._leading: Pending | None = None
        self._polling = False
        self._work = False
        self._bell = -1
        self._poller = select.poll()
        self._polled: tuple[int, ...] = ()
        self._polled_as: tuple[int, int] = (-1, -1)

    def push(self) -> None:
        """Let the engine send and receive: here, or by the thread that is at it already."""
        self._work = True
        while self._work and self.state.acquire(False):
            try:
                self._work = False
                self._engine.pump()
            finally:
                self.state.release()

    def step(self) -> None:
        """As `push`, and open and close what is due: for callers who may never wait. Left to whoever leads, if
        somebody does."""
        if not self._leadership.acquire(False):
            self.push()
            return
        try:
            with self.state:
                self._work = False
                self._engine.advance(hear=True)
        finally:
            self._leadership.release()
        if self._work:
            self.push()
        self._pass_on()

    def wait(self, pending: Pending) -> None:
        """Until it is done, which its deadline sees to at the latest."""
        try:
            while not pending.done:
                if self._leadership.acquire(False):
                    try:
                        self._lead(pending)
                    finally:
                        self._leadership.release()
                else:
                    self._follow(pending)
        except BaseException:
            self.forget(pending)
            raise
        finally:
            self._pass_on()

    def _lead(self, pending: Pending) -> None:
        engine = self._engine
        hear = False
        while True:
            with self.state:
                self._polling = False
                self._work = False
                engine.advance(hear=hear)
                if pending.done:
                    self._leading = None
                    break
                now_ns = monotonic_ns()
                if now_ns >= min(pending.deadline_ns, engine.next_due_ns):
                    engine.expire(now_ns)
                    self._work = True  # what was cancelled is to be told
                    hear = False
                    continue
                wait_ns = min(pending.deadline_ns, engine.wake_at_ns()) - now_ns
                if self._polled_as != engine.watched() or self._bell < 0:
                    self._watch_descriptors()
                self._leading = pending
                self._polling = True
            if self._work:
                hear = False
                continue
            hear = self._poll(wait_ns)
        if self._work:
            self.push()

    def _follow(self, pending: Pending) -> None:
        self.push()
        waiter = threading.Lock()
        waiter.acquire()
        self._followers[pending] = waiter
        # Looked at only now that the waiter can be found: see the head of this module.
        if pending.done or not self._leadership.locked():
            self._followers.pop(pending, None)
            return
        left_ns = pending.deadline_ns - monotonic_ns()
        waiter.acquire(timeout=min(max(left_ns / 1e9, 0.0), threading.TIMEOUT_MAX))
        self._followers.pop(pending, None)
        if not pending.done and monotonic_ns() >= pending.deadline_ns:
            with self.state:
                # A reply that is in the socket by now counts.
                self._engine.pump()
                self._engine.expire(monotonic_ns())
            self.push()

    def _pass_on(self) -> None:
        """Somebody must lead while anybody waits."""
        if self._followers and not self._leadership.locked():
            try:
                _, waiter = self._followers.popitem()
            except KeyError:
                return
            waiter.release()

    def notify(self, pending: Pending) -> None:
        waiter = self._followers.pop(pending, None)
        if waiter is not None:
            waiter.release()
        elif self._polling and pending is self._leading:
            self._ring()

    def nudge(self) -> None:
        # May come without the lock: whoever is about to poll looks at the note after it has said that it polls.
        self._work = True
        if self._polling:
            self._ring()

    def _ring(self) -> None:
        bell = self._bell
        if bell >= 0:
            try:
                os.eventfd_write(bell, 1)
            except BlockingIOError:
                pass

    def forget(self, pending: Pending) -> None:
        if not pending.done:
            with self.state:
                self._engine.forget(pending)
            self.push()

    def _watch_descriptors(self) -> None:
        if self._bell < 0:
            self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        lane, attach = self._engine.descriptors()
        self._poller = select.poll()
        self._polled = tuple(fd for fd in (lane, attach, self._bell) if fd >= 0)
        for fd in self._polled:
            self._poller.register(fd, select.POLLIN)
        self._polled_as = self._engine.watched()

    def _poll(self, wait_ns: int) -> bool:
        """Sleep until something came or the time is up. True when it came from elsewhere than the lane."""
        began_ns = monotonic_ns()
        ready: list[int] = []
        if not self._followers and isinstance(self._leading, Ticket):
            ready = [fd for fd, _ in self._spin.look(self._poller, wait_ns)]
        if ready:
            pass
        elif wait_ns >= _MS or max(self._polled) >= SELECT_FD_MAX:
            ready = [fd for fd, _ in self._poller.poll(min(max(wait_ns / _MS, 0.0), 1e6))]
        else:
            # poll() counts whole milliseconds: the last one would end up to 1 ms late.
            ready = select.select(self._polled, (), (), max(0.0, wait_ns / 1e9))[0]
        self._spin.waited(monotonic_ns() - began_ns)
        if self._bell in ready:
            os.eventfd_read(self._bell)
        return any(fd != self._polled[0] for fd in ready)

    def close(self) -> None:
        """End what is open, wait for the thread that polls, close every descriptor."""
        with self.state:
            self._engine.shut()
        self._ring()
        led = self._leadership.acquire(timeout=CLOSE_S)
        try:
            with self.state:
                self._engine.dispose()
            self._close_bell()
        finally:
            if led:
                self._leadership.release()

    def abandon(self) -> None:
        """In a forked child, where other threads' locks may be held for ever: close what is open, and forget."""
        self._polling = False
        self._close_bell()

    def _close_bell(self) -> None:
        bell, self._bell = self._bell, -1
        if bell >= 0:
            os.close(bell)
