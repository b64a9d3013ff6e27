"""Closed loops: a given number of requests in flight, kept there by callers of the kinds that services are made of.

A request of a closed loop is due when it is sent, so a server that stalls is asked less: its latencies flatter it,
which is why open loops exist. What closed loops tell is the most that a server carries, and what one caller waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import threading
import time
from collections.abc import Callable
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

import uvloop

from bench.tape import Tape
from bench.target import TargetFailed
from farm.client import AsyncClient, Client
from farm.client.reply import Reply
from farm.errors import FarmError

if TYPE_CHECKING:
    from bench.generator import Job

READY_S = 30.0
CLIENT_SLOTS = 4
"""Of a client that has one request in flight."""

Begin = Callable[[], int]
Inputs = list[list[Any]]


class Loop:
    """What every kind of caller shares: which request comes next, when it is over, and the record.

    Until `begin` is called, requests are made with `end_ns` unknown: a caller connects first and begins after.
    """

    def __init__(self, job: Job, tape: Tape, inputs: Inputs) -> None:
        self.job = job
        self.load = job.load
        self.tape = tape
        self.inputs = inputs
        self.streams = [(stream.model, stream.deadline_ms, stream.priority) for stream in job.load.streams]
        self.in_flight = job.load.in_flight // job.parts + (job.part < job.load.in_flight % job.parts)
        self.end_ns = 0
        self.count = 0

    def begin(self, begin_ns: int) -> None:
        self.end_ns = begin_ns + int(self.load.seconds * 1e9)

    def next(self) -> tuple[str, Any, float, int, int]:
        """Model, inputs, deadline, priority, stream of one more request."""
        number = self.count
        self.count += 1
        stream = number % len(self.streams)
        model, deadline_ms, priority = self.streams[stream]
        choice = self.inputs[stream]
        return model, choice[number % len(choice)], deadline_ms, priority, stream

    def note(self, sent_ns: int, outcome: Reply | FarmError, stream: int) -> int:
        """Returns the moment at which it ended: now."""
        done_ns = monotonic_ns()
        self.tape.add(sent_ns, sent_ns, done_ns, self.tape.code_of(outcome), stream)
        return done_ns

    def client(self, slot_count: int | None = None, **more: Any) -> Client:
        return Client(
            self.job.endpoint,
            lane=self.load.lane,
            slot_count=slot_count or self.job.slot_count,
            slot_bytes=self.job.slot_bytes,
            title="bench",
            **more,
        )

    def async_client(self, slot_count: int) -> AsyncClient:
        return AsyncClient(
            self.job.endpoint,
            lane=self.load.lane,
            slot_count=slot_count,
            slot_bytes=self.job.slot_bytes,
            title="bench",
        )


def closed_loop(job: Job, tape: Tape, inputs: Inputs, wait_for_begin: Begin) -> float:
    """CPU seconds of this process over load, warm-up included as it is in nobody's favour."""
    loop = Loop(job, tape, inputs)
    began_s = 0.0

    def begin() -> None:
        nonlocal began_s
        loop.begin(wait_for_begin())
        began_s = time.process_time()

    CALLERS[job.load.caller](loop, begin)
    return time.process_time() - began_s


def _submit(loop: Loop, begin: Callable[[], None]) -> None:
    """One client; whatever has come back is asked anew as one list."""
    with loop.client(spin_us=0) as client:
        client.wait_ready(READY_S)
        begin()
        open_of: dict[int, tuple[int, int]] = {}
        now_ns = monotonic_ns()
        while now_ns < loop.end_ns or open_of:
            if now_ns < loop.end_ns:
                while len(open_of) < loop.in_flight:
                    model, inputs, deadline_ms, priority, stream = loop.next()
                    sent_ns = monotonic_ns()
                    try:
                        ticket = client.submit(model, inputs, deadline_ms=deadline_ms, priority=priority, flush=False)
                    except FarmError as error:
                        loop.note(sent_ns, error, stream)
                        break
                    open_of[ticket.request_id] = (sent_ns, stream)
            for ticket in client.completions(1.0):
                loop.note(*_around(open_of.pop(ticket.request_id), ticket.outcome()))
            now_ns = monotonic_ns()


def _around(sent: tuple[int, int], outcome: Reply | FarmError) -> tuple[int, Reply | FarmError, int]:
    return sent[0], outcome, sent[1]


def _one_by_one(loop: Loop, client: Client) -> None:
    """A plain caller: asks, waits, asks again."""
    now_ns = monotonic_ns()
    while now_ns < loop.end_ns:
        model, inputs, deadline_ms, priority, stream = loop.next()
        sent_ns = monotonic_ns()
        try:
            outcome: Reply | FarmError = client.infer(model, inputs, deadline_ms=deadline_ms, priority=priority)
        except FarmError as error:
            outcome = error
        now_ns = loop.note(sent_ns, outcome, stream)


def _infer(loop: Loop, begin: Callable[[], None]) -> None:
    with loop.client() as client:
        client.wait_ready(READY_S)
        begin()
        _one_by_one(loop, client)


def _lease(loop: Loop, begin: Callable[[], None]) -> None:
    """Inputs written where the model reads them. Each request touches its first element only: what a camera or a
    decoder writes, it writes anyway."""
    with loop.client() as client:
        client.wait_ready(READY_S)
        begin()
        now_ns = monotonic_ns()
        while now_ns < loop.end_ns:
            model, inputs, deadline_ms, priority, stream = loop.next()
            sent_ns = monotonic_ns()
            name = loop.job.models[0].input
            try:
                with client.lease(model, {name: (inputs.shape, inputs.dtype)}) as lease:
                    lease.inputs[name][0, 0] = 1
                    outcome: Reply | FarmError = lease.infer(deadline_ms=deadline_ms, priority=priority)
            except FarmError as error:
                outcome = error
            now_ns = loop.note(sent_ns, outcome, stream)


def _clients(loop: Loop, begin: Callable[[], None]) -> None:
    """Independent clients with one request each, in one process that waits for all of them at once: how a C load
    generator drives an HTTP server by as many connections."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(loop.client(slot_count=CLIENT_SLOTS, spin_us=0)) for _ in range(loop.in_flight)]
        for client in clients:
            client.wait_ready(READY_S)
        # The public client does not give its descriptor away; who waits for many in one thread needs it.
        poller = stack.enter_context(select.epoll())
        by_fd = {client._engine.descriptors()[0]: client for client in clients}
        for fd in by_fd:
            poller.register(fd, select.EPOLLIN)
        begin()
        # ZeroMQ's descriptor tells once, and a send may have taken what it told.
        look_again = clients[0].lane == "zeromq"
        open_of: dict[Client, tuple[int, int]] = {}
        idle = list(clients)

        def reap(client: Client) -> None:
            for ticket in client.completions(0):
                loop.note(*_around(open_of.pop(client), ticket.outcome()))
                idle.append(client)

        now_ns = monotonic_ns()
        while now_ns < loop.end_ns or open_of:
            asking, idle = idle if now_ns < loop.end_ns else [], []
            for client in asking:
                model, inputs, deadline_ms, priority, stream = loop.next()
                open_of[client] = (monotonic_ns(), stream)
                client.submit(model, inputs, deadline_ms=deadline_ms, priority=priority)
                if look_again:
                    reap(client)
            for fd, _ in poller.poll(0.0 if idle else 1.0):
                reap(by_fd[fd])
            now_ns = monotonic_ns()
            if now_ns > loop.end_ns + int(READY_S * 1e9):
                raise TargetFailed(f"{len(open_of)} of {loop.in_flight} clients have had no answer for {READY_S:g} s")


async def _call(loop: Loop, client: AsyncClient) -> None:
    now_ns = monotonic_ns()
    while now_ns < loop.end_ns:
        model, inputs, deadline_ms, priority, stream = loop.next()
        sent_ns = monotonic_ns()
        try:
            outcome: Reply | FarmError = await client.infer(model, inputs, deadline_ms=deadline_ms, priority=priority)
        except FarmError as error:
            outcome = error
        now_ns = loop.note(sent_ns, outcome, stream)


def _asyncio(loop: Loop, begin: Callable[[], None]) -> None:
    """One AsyncClient and a task per request in flight: how an asyncio service calls."""

    async def run() -> None:
        async with loop.async_client(loop.job.slot_count) as client:
            await client.wait_ready(READY_S)
            begin()
            await asyncio.gather(*(_call(loop, client) for _ in range(loop.in_flight)))

    uvloop.run(run())


def _asyncio_clients(loop: Loop, begin: Callable[[], None]) -> None:
    """As many AsyncClients with one task each."""

    async def run() -> None:
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(loop.async_client(CLIENT_SLOTS)) for _ in range(loop.in_flight)]
            for client in clients:
                await client.wait_ready(READY_S)
            begin()
            await asyncio.gather(*(_call(loop, client) for client in clients))

    uvloop.run(run())


def _in_threads(loop: Loop, clients: list[Client], begin: Callable[[], None]) -> None:
    for client in set(clients):
        client.wait_ready(READY_S)
    start = threading.Event()

    def run(client: Client) -> None:
        start.wait(READY_S)
        _one_by_one(loop, client)

    threads = [threading.Thread(target=run, args=(client,), daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    begin()
    start.set()
    for thread in threads:
        thread.join()


def _threads(loop: Loop, begin: Callable[[], None]) -> None:
    """One client that threads share: how a threaded web server calls."""
    with loop.client() as client:
        _in_threads(loop, [client] * loop.in_flight, begin)


def _threads_own(loop: Loop, begin: Callable[[], None]) -> None:
    """Threads with a client each."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(loop.client(slot_count=CLIENT_SLOTS)) for _ in range(loop.in_flight)]
        _in_threads(loop, clients, begin)


CALLERS: dict[str, Callable[[Loop, Callable[[], None]], None]] = {
    "submit": _submit,
    "infer": _infer,
    "lease": _lease,
    "clients": _clients,
    "asyncio": _asyncio,
    "asyncio-clients": _asyncio_clients,
    "threads": _threads,
    "threads-own": _threads_own,
}
