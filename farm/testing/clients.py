"""Clients of a fake farm: the real classes, with another engine below and no polling.

They are subclasses, so that a service's type checker and its `isinstance` take them for what they stand for, and so
that every argument is checked, every default chosen and every message written by the code that does it in production.
A Protocol beside the real classes was rejected: it would have to be kept equal by hand, and every service would have to
annotate with it. Only waiting is replaced; a test compares the public surface all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from farm.client import AsyncClient, Client
from farm.client.endpoint import Endpoint
from farm.client.leader import Turns
from farm.client.spin import SPIN_US
from farm.client.tickets import Pending
from farm.testing.engine import FakeEngine

if TYPE_CHECKING:
    from farm.testing.fake import FakeFarm


class FakeClient(Client):
    """A `farm.Client` of a `FakeFarm`; made by `FakeFarm.client`."""

    def __init__(
        self,
        farm: FakeFarm,
        endpoint: Endpoint | None = None,
        *,
        lane: str = "auto",
        slot_count: int = 256,
        slot_bytes: int = 16384,
        title: str | None = None,
        spin_us: int = SPIN_US,
    ) -> None:
        super().__init__(
            endpoint, lane=lane, slot_count=slot_count, slot_bytes=slot_bytes, title=title, spin_us=spin_us
        )
        self._engine: FakeEngine = FakeEngine(farm, self._settings, self._notify, self._nudge)
        self._turns = _ClockTurns(self._engine)

    def _after_fork(self) -> object:
        # What is fake is this process's own already; only locks may be in the hands of the parent's threads.
        self._engine.renew()
        self._turns = _ClockTurns(self._engine)
        return None


class _ClockTurns(Turns):
    """Whoever waits moves the clock; there is nobody to lead and nothing to poll."""

    def __init__(self, engine: FakeEngine) -> None:
        super().__init__(engine)
        self._fake = engine

    def push(self) -> None:
        self._fake.pump()

    def step(self) -> None:
        self._fake.pump()

    def wait(self, pending: Pending) -> None:
        try:
            while not pending.done:
                at_ns = self._fake.step(pending)
                if not pending.done:
                    self._fake.clock.wait_until(at_ns)
        except BaseException:
            self._fake.forget(pending)
            raise

    def forget(self, pending: Pending) -> None:
        self._fake.forget(pending)

    def notify(self, pending: Pending) -> None:
        pass

    def nudge(self) -> None:
        pass

    def close(self) -> None:
        self._fake.shut()


class FakeAsyncClient(AsyncClient):
    """A `farm.AsyncClient` of a `FakeFarm`; made by `FakeFarm.async_client`."""

    def __init__(
        self,
        farm: FakeFarm,
        endpoint: Endpoint | None = None,
        *,
        lane: str = "auto",
        slot_count: int = 256,
        slot_bytes: int = 16384,
        title: str | None = None,
    ) -> None:
        super().__init__(endpoint, lane=lane, slot_count=slot_count, slot_bytes=slot_bytes, title=title)
        self._engine: FakeEngine = FakeEngine(farm, self._settings, self._notify, self._nudge)

    async def _wait(self, pending: Pending) -> None:
        engine = self._engine
        try:
            # At least one turn of the loop, as with a farm: a service must not come to rely on an answer without one.
            await engine.clock.wait_until_async(engine.clock.now_ns())
            while not pending.done:
                at_ns = engine.step(pending)
                if not pending.done:
                    await engine.clock.wait_until_async(at_ns)
        except BaseException:
            engine.forget(pending)
            raise

    def _turn(self) -> None:
        self._turn_asked = False
        self._engine.pump()

    def _after_fork(self) -> object:
        self._engine.renew()
        self._start()
        return None
