"""The descriptors that make turns, in one epoll set that is itself one descriptor of the loop.

Clients' sockets, workers' run sockets and the ZeroMQ lane are looked at together: whatever is ready makes one turn, so
that what came together runs together and a client gets one frame of replies. To give each descriptor to the loop and
to gather with `call_soon` was rejected: another pass of the loop for every request.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable

READY_MAX = 64
"""Descriptors looked at in one turn; the others are still ready in the next."""

Ready = list[tuple[int, int]]


class Gate:
    """`turn()` is called after the handlers of one pass; `full()` ends a pass early when a turn has enough.

    Who was ready in a pass that ended early comes first in the next: the kernel gives descriptors in the same order
    again and again, and one client that always has a full frame would be all that is ever looked at.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, turn: Callable[[], None], full: Callable[[], bool]) -> None:
        self._loop = loop
        self.turn = turn
        self._full = full
        self._handlers: dict[int, Callable[[], None]] = {}
        self._left: Ready = []
        self._epoll = select.epoll()
        self._poll = self._epoll.poll
        loop.add_reader(self._epoll.fileno(), self._pass)

    def add(self, fd: int, handler: Callable[[], None]) -> None:
        """Call `handler()` whenever `fd` is readable, until it is removed."""
        self._handlers[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def remove(self, fd: int) -> None:
        """Before the descriptor is closed. Nothing happens when it was never added."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _pass(self) -> None:
        handlers = self._handlers
        ready, self._left = self._left or self._poll(0, READY_MAX), []
        try:
            for position, (fd, _) in enumerate(ready):
                handler = handlers.get(fd)
                if handler is not None:
                    handler()
                    if len(ready) > 1 and self._full():
                        self._left = ready[position + 1 :]
                        break
        finally:
            # A handler that fails is one client's matter; what the others' have brought is not to wait for another.
            self.turn()

    def close(self) -> None:
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
