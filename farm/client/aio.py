"""The asyncio client. One loop, no thread: descriptors are watched by the loop, and a turn does all that is due.

Requests that are made in one turn of the loop go out as one Submit: the first of them asks for a turn with
`call_soon`, which runs after all who are ready now. One timer stands for the earliest deadline of all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from time import monotonic_ns
from types import TracebackType
from typing import Any, Final, Self

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
from farm.client.lease import AsyncLease, check_shapes
from farm.client.options import refused
from farm.client.refusals import no_free_slot
from farm.client.reply import Reply
from farm.client.tickets import FOREVER_NS, Pending, Reap, Ticket, Watch
from farm.errors import FarmError
from shm.client import Model

TIMER_SLACK_NS: Final = 50_000
"""A timer this much later than wanted is left alone: moving it costs more than it wins."""


class AsyncClient(BaseClient):
    """`Client` with coroutines. It can be made anywhere, and belongs to the loop of its first await.

    A cancelled await tells the farm, and its slots come back when the farm has replied. The parameters are those of
    `Client`.

    Raises:
        InvalidRequest: an argument is out of range, or a second loop uses this client.
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
        fork.remember(self)

    def _start(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turn_asked = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_ns = FOREVER_NS
        self._watched = self._engine.watched()
        self._readers: list[int] = []

    # requests

    async def infer(
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
        """As `Client.infer`. The inputs must not change until it returns."""
        self._bind()
        ticket = self._ticket(model, inputs, deadline_ms, priority, version, key, trace, fallback)
        self._engine.open(ticket)
        await self._wait(ticket)
        return ticket.result()

    async def infer_many(
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
        """As `Client.infer_many`."""
        self._bind()
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
                if not ticket.done:
                    await self._wait(ticket)
        except BaseException:
            for ticket in tickets:
                self._engine.forget(ticket)
            self._ask_turn()
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
        """As `Client.submit`, and no coroutine: it never waits. Call it in the loop; take the ticket from
        `await completions()`. What one turn of the loop submits goes out together in any case; `flush=False` gathers
        over turns."""
        self._bind()
        ticket = self._ticket(model, inputs, deadline_ms, priority, version, key, trace, fallback)
        ticket.submitted = True
        engine = self._engine
        if not engine.open_now(ticket):
            engine.pump()
            if not engine.open_now(ticket):
                raise no_free_slot(ticket, self._settings.slot_count)
        if flush or len(engine.outbox.tickets) >= GATHERED_MAX:
            self._ask_turn()
        return ticket

    def flush(self) -> None:
        """Send what `submit(flush=False)` has gathered, in the loop's next turn."""
        self._bind()
        self._ask_turn()

    async def completions(self, timeout: float | None = None) -> list[Ticket]:
        """As `Client.completions`."""
        self._bind()
        engine = self._engine
        if not engine.finished:
            self._turn()
        if not engine.finished and engine.submitted and timeout != 0:
            reap = Reap(FOREVER_NS if timeout is None else after(timeout))
            engine.reap(reap)
            await self._wait(reap)
        return engine.take_finished()

    def lease(self, model: str, shapes: Mapping[str, tuple[Any, Any]], *, version: Version = None) -> AsyncLease:
        """As `Client.lease`: `async with client.lease(...) as l:`, then `await l.infer()`."""
        return AsyncLease(self, model, check_shapes(shapes), version)

    # the farm

    async def wait_ready(self, timeout: float = READY_TIMEOUT_S) -> None:
        """As `Client.wait_ready`."""
        await self._await_watch(all_ready(timeout))

    async def models(self) -> list[Model]:
        """As `Client.models`."""
        await self._await_watch(attached(UNKNOWN_DEADLINE_NS / 1e9))
        return models_of(self._engine.session)

    async def close(self) -> None:
        """End what is open and let go of everything. A second call does nothing."""
        engine = self._engine
        if engine.closed:
            return
        engine.shut()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        engine.dispose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # waiting

    def _bind(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None:
                raise refused("this AsyncClient belongs to another event loop; make one client per loop")
            self._loop = loop

    async def _await_watch(self, watch: Watch) -> None:
        self._bind()
        self._engine.watch(watch)
        await self._wait(watch)
        if watch.error is not None:
            raise watch.error

    async def _wait(self, pending: Pending) -> None:
        if pending.done:
            return
        loop = self._loop
        assert loop is not None
        future = pending.future = loop.create_future()
        if not self._turn_asked:
            self._turn_asked = True
            loop.call_soon(self._turn)
        try:
            await future
        except BaseException:
            self._engine.forget(pending)
            self._ask_turn()
            raise

    def _ask_turn(self) -> None:
        if not self._turn_asked and self._loop is not None:
            self._turn_asked = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_asked = False
        self._advance(hear=False)

    def _advance(self, *, hear: bool) -> None:
        engine = self._engine
        engine.advance(hear=hear)
        while self._watched != engine.watched():
            self._watch()
            # What came before the loop watched has no edge left to tell of it; and it may change what to watch.
            engine.advance(hear=True)
        due_ns = engine.wake_at_ns()
        if due_ns < self._timer_at_ns - TIMER_SLACK_NS:
            self._arm(due_ns)

    def _arm(self, due_ns: int) -> None:
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at_ns = due_ns
        self._timer = self._loop.call_later(max(0.0, (due_ns - monotonic_ns()) / 1e9), self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._timer_at_ns = FOREVER_NS
        # A reply that is in the socket by now counts.
        self._advance(hear=True)
        now_ns = monotonic_ns()
        if self._engine.next_due_ns <= now_ns:
            self._engine.expire(now_ns)
            self._advance(hear=False)

    def _watch(self) -> None:
        self._unwatch()
        assert self._loop is not None
        self._watched = self._engine.watched()
        lane, attach = self._engine.descriptors()
        if lane >= 0:
            self._loop.add_reader(lane, self._on_lane)
            self._readers.append(lane)
        if attach >= 0:
            self._loop.add_reader(attach, self._on_attach)
            self._readers.append(attach)

    def _unwatch(self) -> None:
        for fd in self._readers:
            assert self._loop is not None
            if not self._loop.is_closed():
                self._loop.remove_reader(fd)
        self._readers = []

    def _on_lane(self) -> None:
        self._advance(hear=False)

    def _on_attach(self) -> None:
        self._advance(hear=True)

    def _notify(self, pending: Pending) -> None:
        future = pending.future
        if future is not None and pending.done and not future.done():
            future.set_result(None)

    def _nudge(self) -> None:
        # May come from any thread: a lease's last view can end anywhere.
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ask_turn)

    def _after_fork(self) -> object:
        # The loop's selector is shared with the parent: to unregister anything here would unregister it there.
        self._readers = []
        kept = super()._after_fork()
        self._start()
        return kept
