"""Both clients behind one blocking surface, so that one test holds for either.

The asyncio client runs on a loop of its own that turns only while a call waits, as in a service that does nothing else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import uvloop

from farm.client import AsyncClient, Client

KINDS = ("sync direct", "sync zeromq", "asyncio direct", "uvloop zeromq")
LIMIT_S = 10.0

# libuv opens a pipe for signals with its first loop, for the life of the process.
uvloop.run(asyncio.sleep(0))


class Calls:
    """`client` is the real one; the methods here are its own, made blocking."""

    def __init__(self, kind: str, *args: Any, **options: Any) -> None:
        self.kind, _, lane = kind.partition(" ")
        options.setdefault("lane", lane or "auto")
        kind = self.kind
        self.loop: asyncio.AbstractEventLoop | None = None
        if kind == "sync":
            self.client: Any = Client(*args, **options)
        else:
            self.client = AsyncClient(*args, **options)
            self.loop = uvloop.new_event_loop() if kind == "uvloop" else asyncio.new_event_loop()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        assert self.loop is not None
        return self.loop.run_until_complete(work)

    def _call(self, name: str, *args: Any, **options: Any) -> Any:
        method = getattr(self.client, name)
        if self.loop is None:
            return method(*args, **options)

        async def call() -> Any:
            result = method(*args, **options)
            return await result if asyncio.iscoroutine(result) else result

        return self.run(call())

    def infer(self, *args: Any, **options: Any) -> Any:
        return self._call("infer", *args, **options)

    def infer_many(self, *args: Any, **options: Any) -> Any:
        return self._call("infer_many", *args, **options)

    def submit(self, *args: Any, **options: Any) -> Any:
        return self._call("submit", *args, **options)

    def flush(self) -> None:
        self._call("flush")
        self.turn()

    def completions(self, timeout: float | None = None) -> Any:
        return self._call("completions", timeout)

    def wait_ready(self, timeout: float = 10.0) -> None:
        self._call("wait_ready", timeout)

    def models(self) -> Any:
        return self._call("models")

    def close(self) -> None:
        if self.loop is None:
            self.client.close()
        elif not self.loop.is_closed():
            self._call("close")
            self.loop.close()

    def turn(self) -> None:
        """Let the client work once, without waiting."""
        if self.loop is not None:
            self.run(asyncio.sleep(0))
            self.run(asyncio.sleep(0))
        else:
            self.client.flush()

    def until(self, holds: Callable[[], Any]) -> Any:
        """Let the client work until a condition holds, with a limit."""
        end = time.monotonic() + LIMIT_S
        while not (found := holds()):
            assert time.monotonic() < end, "the condition did not come to hold"
            self.turn()
            time.sleep(0.001)
        return found

    def free_slots(self) -> int:
        """Slots that are free after what has come is taken in."""
        self.turn()
        session = self.client._engine.session
        return session.free_count() if session is not None else -1

    def inferring(self, count: int, *args: Any, **options: Any) -> list[Any]:
        """So many `infer` at the same time: their replies or errors."""
        if self.loop is None:
            import concurrent.futures

            with concurrent.futures.ThreadPoolExecutor(count) as pool:
                futures = [pool.submit(self.client.infer, *args, **options) for _ in range(count)]
                return [future.exception() or future.result() for future in futures]

        async def all_of_them() -> list[Any]:
            calls = [self.client.infer(*args, **options) for _ in range(count)]
            return await asyncio.gather(*calls, return_exceptions=True)

        return self.run(all_of_them())

    @contextmanager
    def lease(self, *args: Any, **options: Any) -> Iterator[Any]:
        lease = self.client.lease(*args, **options)
        if self.loop is None:
            with lease as entered:
                yield entered
            return
        yield_to = self.run(lease.__aenter__())
        try:
            yield Blocking(yield_to, self.run)
        finally:
            self.run(lease.__aexit__(None, None, None))


class Blocking:
    """A lease whose `infer` blocks."""

    def __init__(self, lease: Any, run: Callable[[Any], Any]) -> None:
        self.lease = lease
        self._run = run

    @property
    def inputs(self) -> Any:
        return self.lease.inputs

    def infer(self, **options: Any) -> Any:
        return self._run(self.lease.infer(**options))
