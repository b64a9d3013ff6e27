"""How frames travel between an attached client and its router. The session knows only the `Lane` of this module.

A lane never waits. Its descriptor is readable whenever something may have changed; the owner then receives until
None. ZeroMQ's is edge-triggered, so whoever sends must receive until None too: a send may swallow the edge.
"""

from __future__ import annotations

from typing import Final, Protocol

import zmq

QUEUED_FRAMES_MAX: Final = 100_000
"""Of ZeroMQ's own queues, each way. Slots bound what is in flight far below; this bounds a fault."""

_NOBLOCK: Final = int(zmq.NOBLOCK)
_EVENTS: Final = int(zmq.EVENTS)
_IN: Final = int(zmq.POLLIN)
_OUT: Final = int(zmq.POLLOUT)


class Lane(Protocol):
    """Frames out and in. Not safe for threads: the client holds its lock around every call."""

    name: str
    descriptor: int

    def send(self, frame: bytes) -> bool:
        """False when nothing can be taken now; nothing was sent then."""

    def receive(self) -> bytes | None:
        """The next frame, None when there is none now."""

    def writable(self) -> bool:
        """Whether a send would be taken now."""

    def close(self) -> None:
        """Frames that were not sent yet are dropped."""


class ZeroMQLane:
    """A DEALER to the router's ipc path: one connection in its life, so that no old frame meets a new router."""

    name = "zeromq"

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], path: str) -> None:
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        self._socket.setsockopt(zmq.RECONNECT_IVL, -1)
        self._socket.setsockopt(zmq.SNDHWM, QUEUED_FRAMES_MAX)
        self._socket.setsockopt(zmq.RCVHWM, QUEUED_FRAMES_MAX)
        self._socket.connect(f"ipc://{path}")
        self.descriptor = int(self._socket.getsockopt(zmq.FD))
        self._send = self._socket.send
        self._receive = self._socket.recv
        self._option = self._socket.getsockopt

    def send(self, frame: bytes) -> bool:
        try:
            self._send(frame, _NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self) -> bytes | None:
        # Asking first costs 1.0 us; a receive that finds nothing 2.8, the exception counted.
        if not self._option(_EVENTS) & _IN:  # type: ignore[operator]
            return None
        try:
            return self._receive(_NOBLOCK)
        except zmq.Again:
            return None

    def writable(self) -> bool:
        return bool(self._option(_EVENTS) & _OUT)  # type: ignore[operator]

    def close(self) -> None:
        self._socket.close(0)
