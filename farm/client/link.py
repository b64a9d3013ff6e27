"""Getting to a router and back to the next one: attach attempts with a jittered back-off, never waiting in here."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

import zmq

from farm.client.attach import Attaching, Welcome
from farm.client.lane import DirectLane, Lane, ZeroMQLane
from farm.client.options import Settings
from farm.client.session import Session
from farm.errors import FarmError, Unavailable
from shm.errors import PeerGone, SegmentRefused

MS: Final = 1_000_000
RETRY_NS_MIN: Final = 2 * MS
RETRY_NS_MAX: Final = 50 * MS
"""A router is back in 0.1 to 0.3 s; forty clients at one try each 50 ms cost it nothing."""
ATTACHING_NS_MAX: Final = 10_000 * MS
"""Of one attempt that got a connection and no answer: a stopped router. Callers give up by their own deadlines."""


class Link:
    """Makes sessions, one after the other, for one client.

    `generation` changes with every descriptor that is to be watched.
    """

    def __init__(self, settings: Settings, unwatch: Callable[[], None]) -> None:
        self.settings = settings
        self._unwatch = unwatch
        self.generation = 0
        self.why = "the client has not attached yet"
        self.attaching: Attaching | None = None
        self._retry_at_ns = 0
        self._failures = 0
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None

    def step(self, now_ns: int) -> Session | None:
        """Go on with attach as far as it goes now.

        Raises:
            FarmError: the farm is there and refuses this client.
        """
        if self.attaching is None:
            if now_ns < self._retry_at_ns:
                return None
            try:
                self.attaching = Attaching(self.settings, self.settings.lane, now_ns)
            except (Unavailable, PeerGone) as error:
                self.why = str(error)
                self._put_off(now_ns)
                return None
            self.generation += 1
            self.why = "the farm has not answered the attach yet"
        try:
            welcome = self.attaching.step()
            if welcome is None:
                if now_ns - self.attaching.started_ns > ATTACHING_NS_MAX:
                    raise PeerGone("no answer to attach")
                return None
            self._unwatch()
            self.attaching = None
            self.generation += 1
            session = Session(welcome, self._lane, now_ns)
        except (PeerGone, SegmentRefused) as error:
            self.why = f"attach failed: {error}"
            self._drop_attempt()
            self._put_off(now_ns)
            return None
        except FarmError:
            self._drop_attempt()
            self._put_off(now_ns)
            raise
        self._failures = 0
        self._retry_at_ns = 0
        return session

    def wake_at_ns(self) -> int:
        """When `step` is to be called although nothing came."""
        if self.attaching is not None:
            return self.attaching.started_ns + ATTACHING_NS_MAX
        return self._retry_at_ns

    def descriptor(self) -> int:
        return self.attaching.socket.fileno() if self.attaching is not None else -1

    def close(self) -> None:
        """All sessions' lanes are closed by now, so that ending the ZeroMQ context does not wait."""
        self._drop_attempt()
        if self._context is not None:
            self._context.term()
            self._context = None

    def abandon(self) -> object:
        """In a forked child: close what is the child's, return what must be kept from being finalised."""
        context, self._context = self._context, None
        self._drop_attempt()
        return context

    def _lane(self, welcome: Welcome) -> Lane:
        if welcome.attached.lane == DirectLane.name:
            return DirectLane(welcome.socket)
        if self._context is None:
            self._context = zmq.Context()
        return ZeroMQLane(self._context, welcome.attached.lane_path, welcome.socket)

    def _drop_attempt(self) -> None:
        if self.attaching is not None:
            self._unwatch()
            self.attaching.close()
            self.attaching = None
            self.generation += 1

    def _put_off(self, now_ns: int) -> None:
        delay_ns = min(RETRY_NS_MAX, RETRY_NS_MIN << min(self._failures, 10))
        self._failures += 1
        self._retry_at_ns = now_ns + int(delay_ns * random.uniform(0.5, 1.5))
