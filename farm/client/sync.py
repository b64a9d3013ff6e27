"""The blocking client: what a service calls. How its threads wait is in `leader`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from time import monotonic_ns
from types import TracebackType
from typing import Any, Self

from farm.client import fork
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
from farm.client.leader import Turns
from farm.client.lease import Lease, check_shapes
from farm.client.options import refused
from farm.client.refusals import no_free_slot
from farm.client.reply import Reply
from farm.client.spin import SPIN_US, SPIN_US_MAX
from farm.client.tickets import FOREVER_NS, Pending, Reap, Ticket
from farm.errors import FarmError
from shm.client import Model


class Client(BaseClient):
    """A service's way to the farm. Safe for many threads; connects at its first use; usable after a fork.

    endpoint: the farm's runtime directory; None looks in the usual places. slot_count, slot_bytes: the arena to ask
    for, which bounds what can be in flight. title: what `farm status` calls this service. spin_us: how long a thread
    that waits may stay awake for its answer where that pays (see `farm.client.spin`); 0 never does.

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
        spin_us: int = SPIN_US,
    ) -> None:
        super().__init__(endpoint, lane, slot_count, slot_bytes, title)
        if not isinstance(spin_us, int) or not 0 <= spin_us <= SPIN_US_MAX:
            raise refused(f"spin_us is {spin_us!r}; it must be a whole number from 0 to {SPIN_US_MAX}")
        self._spin_us = spin_us
        self._turns = Turns(self._engine, spin_us)
        fork.remember(self)

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
        self._turns.wait(ticket)
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
                self._turns.wait(ticket)
        except BaseException:
            for ticket in tickets:
                self._turns.forget(ticket)
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
            self._turns.push()
            if not engine.open_now(ticket):
                raise no_free_slot(ticket, self._settings.slot_count)
        if engine.session is None:
            self._turns.step()
        elif flush or len(engine.outbox.tickets) >= GATHERED_MAX:
            self._turns.push()
        return ticket

    def flush(self) -> None:
        """Send what `submit(flush=False)` has gathered."""
        self._turns.step()

    def completions(self, timeout: float | None = None) -> list[Ticket]:
        """Tickets of `submit` that have ended since the last call; their `result()` says how.

        timeout: seconds to wait for the first; None: until one has ended or none is open.
        """
        engine = self._engine
        self._turns.step()
        if engine.next_due_ns <= monotonic_ns():
            with self._turns.state:
                engine.expire(monotonic_ns())
            self._turns.push()
        if not engine.finished and engine.submitted and timeout != 0:
            reap = Reap(FOREVER_NS if timeout is None else after(timeout))
            with self._turns.state:
                engine.reap(reap)
            self._turns.wait(reap)
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
        with self._turns.state:
            self._engine.watch(watch)
        self._turns.wait(watch)
        if watch.error is not None:
            raise watch.error

    def models(self) -> list[Model]:
        """Every model version of the farm: name, version, whether it is ready, signature, aliases.

        Raises:
            Unavailable: no farm answers.
        """
        watch = attached(UNKNOWN_DEADLINE_NS / 1e9)
        with self._turns.state:
            self._engine.watch(watch)
        self._turns.wait(watch)
        if watch.error is not None:
            raise watch.error
        return models_of(self._engine.session)

    def close(self) -> None:
        """End what is open and let go of everything. A second call does nothing."""
        engine = self._engine
        if engine.closed:
            return
        self._turns.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _notify(self, pending: Pending) -> None:
        self._turns.notify(pending)

    def _nudge(self) -> None:
        self._turns.nudge()

    def _after_fork(self) -> object:
        kept = super()._after_fork()
        self._turns.abandon()
        self._turns = Turns(self._engine, self._spin_us)
        return kept
