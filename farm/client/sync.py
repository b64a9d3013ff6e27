"""The blocking client. Threads share it without a thread of its own: whoever waits does the work.

Two locks. `_state` guards the engine and the ZeroMQ socket; nobody waits while holding it. `_leadership` belongs to the
one thread that polls the session's descriptors. A thread that needs something from the engine and finds `_state` taken
leaves a note (`_work`) instead of waiting; the holder looks for notes after it has let go (flat combining).

A thread whose request is open leads if nobody else does: it polls, without `_state`, then advances the engine under
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
from collections.abc import Iterable, Mapping
from time import monotonic_ns
from types import TracebackType
from typing import Any, Final, Self

from farm.client.base import (
    GATHERED_MAX,
    READY_TIMEOUT_S,
    BaseClient,
    Inputs,
    after,
    all_ready,
    attached,
    models_of,
)
from farm.client.catalog import Version
from farm.client.endpoint import Endpoint
from farm.client.engine import UNKNOWN_DEADLINE_NS
from farm.client.lease import Lease, check_shapes
from farm.client.reply import Reply
from farm.client.tickets import FOREVER_NS, Pending, Reap, Ticket
from farm.errors import FarmError, NoFreeSlot
from shm.client import Model

CLOSE_S: Final = 1.0
"""How long `close` waits for the thread that polls; longer only when it is called from a signal handler within it."""

SELECT_FD_MAX: Final = 1024
_MS: Final = 1_000_000


class Client(BaseClient):
    """A service's way to the farm. Safe for many threads; connects at its first use; usable after a fork.

    endpoint: the farm's runtime directory; None looks in the usual places. slot_count, slot_bytes: the arena to ask
    for, which bounds what can be in flight. title: what `farm status` calls this service.

    Raises:
        InvalidRequest: an argument is out of range.
    """

    def __init__(
        self,
        endpoint: Endpoint | None = None,
        *,
        lane: str = "auto",
        slot_count: int = 256,
        slot_bytes: int = 16384,
        title: str | None = None,
    ) -> None:
        super().__init__(endpoint, lane, slot_count, slot_bytes, title)
        self._start()

    def _start(self) -> None:
        self._state = threading.Lock()
        self._leadership = threading.Lock()
        self._followers: dict[Pending, threading.Lock] = {}
        self._leading: Pending | None = None
        self._polling = False
        self._work = False
        self._bell = -1
        self._poller = select.poll()
        self._polled: tuple[int, ...] = ()
        self._polled_as: tuple[int, int] = (-1, -1)

    # requests

    def infer(
        self,
        model: str,
        inputs: Inputs,
        *,
        deadline_ms: float | None = None,
        priority: int = 0,
        version: Version = None,
        key: str | None = None,
        trace: str | None = None,
        fallback: Mapping[str, Any] | None = None,
    ) -> Reply:
        """One answer, by the deadline, which counts from this call's entry.

        deadline_ms: None takes the model's default. version: a number or an alias such as `latest`. key, trace: the
        caller's own, given back with the reply. fallback: outputs that this client answers with itself when the farm
        gives none by the deadline.

        Raises:
            FarmError: every ending that is no answer; the kind says which, and whether to try again.
        """
        ticket = self._ticket(model, inputs, deadline_ms, priority, version, key, trace, fallback)
        self._engine.open(ticket)
        self._wait(ticket)
        return ticket.result()

    def infer_many(
        self,
        model: str,
        inputs: Iterable[Inputs],
        *,
        deadline_ms: float | None = None,
        priority: int = 0,
        version: Version = None,
        key: str | None = None,
        trace: str | None = None,
        fallback: Mapping[str, Any] | None = None,
    ) -> list[Reply | FarmError]:
        """One outcome for each inputs, in their order; all under one deadline and sent as one list.

        More inputs than slots are taken as slots come back. A refusal of one is its error in the list.

        Raises:
            InvalidRequest: an argument that all have in common is out of range.
        """
        entered_ns = monotonic_ns()
        tickets = []
        for each in inputs:
            ticket = self._ticket(model, each, deadline_ms, priority, version, key, trace, fallback, entered_ns)
            tickets.append(ticket)
            try:
                self._engine.open(ticket)
            except FarmError as error:
                ticket.fail(error)
        try:
            for ticket in tickets:
                self._wait(ticket)
        except BaseException:
            for ticket in tickets:
                self._forget(ticket)
            raise
        return [ticket.outcome() for ticket in tickets]

    def submit(
        self,
        model: str,
        inputs: Inputs,
        *,
        deadline_ms: float | None = None,
        priority: int = 0,
        version: Version = None,
        key: str | None = None,
        trace: str | None = None,
        fallback: Mapping[str, Any] | None = None,
        flush: bool = True,
    ) -> Ticket:
        """Send a request and do not wait: `completions` gives the ticket back once it has ended.

        flush: False gathers requests until `flush()`, `completions()` or 64 of them, to send what is due as one list.

        Raises:
            NoFreeSlot: all slots are in flight; take completions first.
            InvalidRequest, ModelNotFound: the request is wrong in itself.
        """
        ticket = self._ticket(model, inputs, deadline_ms, priority, version, key, trace, fallback)
        ticket.submitted = True
        engine = self._engine
        if not engine.open_now(ticket):
            self._push()
            if not engine.open_now(ticket):
                raise no_free_slot(ticket, self._settings.slot_count)
        if flush or len(engine.outbox) >= GATHERED_MAX:
            self._push()
        return ticket

    def flush(self) -> None:
        """Send what `submit(flush=False)` has gathered."""
        self._push()

    def completions(self, timeout: float | None = None) -> list[Ticket]:
        """Tickets of `submit` that have ended since the last call; their `result()` says how.

        timeout: seconds to wait for the first; None: until one has ended or none is open.
        """
        self._push()
        engine = self._engine
        if not engine.finished and engine.submitted and timeout != 0:
            reap = Reap(FOREVER_NS if timeout is None else after(timeout))
            with self._state:
                engine.reap(reap)
            self._wait(reap)
        elif engine.next_due_ns <= monotonic_ns():
            with self._state:
                engine.expire(monotonic_ns())
            self._push()
        return engine.take_finished()

    def lease(self, model: str, shapes: Mapping[str, tuple[Any, Any]], *, version: Version = None) -> Lease:
        """Input arrays that lie in the slots themselves: `with client.lease(m, {name: (shape, dtype)}) as l:`, fill
        `l.inputs[name][...]`, then `l.infer()`. Nothing is copied; the reply's arrays are views, read-only.

        Raises:
            InvalidRequest: the shapes are not of that form. Whether they fit the model is checked at the block's
                beginning.
        """
        return Lease(self, model, check_shapes(shapes), version)

    # the farm

    def wait_ready(self, timeout: float = READY_TIMEOUT_S) -> None:
        """Wait until every model can answer, at most so many seconds.

        Raises:
            Unavailable: the time is up; the message names what is not ready.
        """
        watch = all_ready(timeout)
        with self._state:
            self._engine.watch(watch)
        self._wait(watch)
        if watch.error is not None:
            raise watch.error

    def models(self) -> list[Model]:
        """Every model version of the farm: name, version, whether it is ready, signature, aliases.

        Raises:
            Unavailable: no farm answers.
        """
        watch = attached(UNKNOWN_DEADLINE_NS / 1e9)
        with self._state:
            self._engine.watch(watch)
        self._wait(watch)
        if watch.error is not None:
            raise watch.error
        return models_of(self._engine.session)

    def close(self) -> None:
        """End what is open and let go of everything. A second call does nothing."""
        engine = self._engine
        if engine.closed:
            return
        with self._state:
            engine.shut()
        self._ring()
        led = self._leadership.acquire(timeout=CLOSE_S)
        try:
            with self._state:
                engine.dispose()
            if self._bell >= 0:
                os.close(self._bell)
                self._bell = -1
        finally:
            if led:
                self._leadership.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # waiting

    def _push(self) -> None:
        """Let the engine send and receive: here, or by the thread that is at it already."""
        self._work = True
        while self._work and self._state.acquire(False):
            try:
                self._work = False
                self._engine.pump()
            finally:
                self._state.release()

    def _wait(self, pending: Pending) -> None:
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
            self._forget(pending)
            raise
        finally:
            if self._followers and not self._leadership.locked():
                self._promote()

    def _lead(self, pending: Pending) -> None:
        engine = self._engine
        hear = False
        while True:
            with self._state:
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
            self._push()

    def _follow(self, pending: Pending) -> None:
        self._push()
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
            with self._state:
                # A reply that is in the socket by now counts.
                self._engine.pump()
                self._engine.expire(monotonic_ns())
            self._push()

    def _promote(self) -> None:
        try:
            _, waiter = self._followers.popitem()
        except KeyError:
            return
        waiter.release()

    def _notify(self, pending: Pending) -> None:
        waiter = self._followers.pop(pending, None)
        if waiter is not None:
            waiter.release()
        elif self._polling and pending is self._leading:
            self._ring()

    def _nudge(self) -> None:
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

    def _forget(self, pending: Pending) -> None:
        if not pending.done:
            with self._state:
                self._engine.forget(pending)
            self._push()

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
        """Sleep until something came or the time is up. True when the attach socket has something."""
        if wait_ns >= _MS or max(self._polled) >= SELECT_FD_MAX:
            ready = [fd for fd, _ in self._poller.poll(min(max(wait_ns / _MS, 0.0), 1e6))]
        else:
            # poll() counts whole milliseconds: the last one would end up to 1 ms late.
            ready = select.select(self._polled, (), (), max(0.0, wait_ns / 1e9))[0]
        if self._bell in ready:
            os.eventfd_read(self._bell)
        return len(ready) > 0 and any(fd not in (self._bell, self._polled[0]) for fd in ready)

    def _after_fork(self) -> object:
        bell = self._bell
        kept = super()._after_fork()
        if bell >= 0:
            os.close(bell)
        self._start()
        return kept


def no_free_slot(ticket: Ticket, slot_count: int) -> NoFreeSlot:
    return NoFreeSlot(
        f"all {slot_count} slots of this client are in flight: take completions first, or make the client with more",
        reason="no_free_slot",
        retryable=True,
        request_id=ticket.request_id,
        model=ticket.model,
    )
