"""How frames travel between an attached client and its router. The session knows only the `Lane` of this module.

A lane never waits. Its descriptor is readable whenever something may have changed; the owner then receives until
None. ZeroMQ's is edge-triggered, so whoever sends must receive until None too: a send may swallow the edge.

The direct lane is the attach socket itself, which also carries what the router tells about models and memory files.
Whichever lane it is, those frames are had by `hear`.
"""

from __future__ import annotations

import select
import socket
from collections import deque
from typing import Final, Protocol

import zmq

from farm.client.attach import DESCRIPTORS_MAX
from shm import seqpacket
from shm.errors import PeerGone

QUEUED_FRAMES_MAX: Final = 100_000
"""Of ZeroMQ's own queues, each way. Slots bound what is in flight far below; this bounds a fault."""

REPLY_TAG_MIN: Final = 32
"""Messages that answer requests have tags from here on, those of attach lower ones (`shm.client`). The tag is the
second byte of a frame: a short msgpack array whose first element is a small integer."""

_NOBLOCK: Final = int(zmq.NOBLOCK)
_EVENTS: Final = int(zmq.EVENTS)
_IN: Final = int(zmq.POLLIN)
_OUT: Final = int(zmq.POLLOUT)


class Lane(Protocol):
    """Frames out and in. Not safe for threads: the client holds its lock around every call."""

    name: str
    descriptor: int
    tells_again: bool
    """Whether the descriptor stays readable while there is more, so that nobody has to receive until None."""

    def send(self, frame: bytes) -> bool:
        """False when nothing can be taken now; nothing was sent then."""

    def receive(self) -> bytes | None:
        """The next frame, None when there is none now."""

    def writable(self) -> bool:
        """Whether a send would be taken now."""

    def heard(self) -> bool:
        """Whether `receive` came upon something that `hear` has."""

    def hear(self) -> tuple[bytes, list[int]] | None:
        """The next frame of attach, with its descriptors (the caller's); None when there is none now.

        Raises:
            PeerGone: the attach socket has ended.
        """

    def close(self) -> None:
        """Frames that were not sent yet are dropped."""


class ZeroMQLane:
    """A DEALER to the router's ipc path: one connection in its life, so that no old frame meets a new router."""

    name = "zeromq"
    tells_again = False

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], path: str, attach: socket.socket) -> None:
        self._attach = attach
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

    def heard(self) -> bool:
        return False

    def hear(self) -> tuple[bytes, list[int]] | None:
        return seqpacket.receive(self._attach, DESCRIPTORS_MAX)

    def close(self) -> None:
        self._socket.close(0)


class DirectLane:
    """Requests and replies on the attach socket. The socket is the session's.

    Its descriptor stays readable while there is more, so one look in vain is spared: after a send, whose owner
    receives because of ZeroMQ. It costs a system call and an exception, 4 us.
    """

    name = "direct"
    tells_again = True

    def __init__(self, attach: socket.socket) -> None:
        self._attach = attach
        self.descriptor = attach.fileno()
        self._look = True
        self._aside: deque[tuple[bytes, list[int]]] = deque()
        self._gone = ""
        """How the socket ended. In words: a kept exception keeps its frames, and with them the session's memory."""

    def send(self, frame: bytes) -> bool:
        self._look = False
        try:
            return seqpacket.send(self._attach, frame)
        except PeerGone as error:
            # What the router said before it went is still to be read; `hear` tells the end.
            self._gone = str(error) or "the router is gone"
            return True

    def receive(self) -> bytes | None:
        if not self._look and not self._gone:
            self._look = True
            return None
        try:
            while (got := seqpacket.receive(self._attach, DESCRIPTORS_MAX)) is not None:
                frame = got[0]
                if len(frame) > 1 and frame[1] >= REPLY_TAG_MIN:
                    return frame
                self._aside.append(got)
        except PeerGone as error:
            self._gone = str(error) or "the router is gone"
        return None

    def writable(self) -> bool:
        poller = select.poll()
        poller.register(self._attach, select.POLLOUT)
        return bool(poller.poll(0))

    def heard(self) -> bool:
        return bool(self._aside) or self._gone != ""

    def hear(self) -> tuple[bytes, list[int]] | None:
        if self._aside:
            return self._aside.popleft()
        if self._gone:
            raise PeerGone(self._gone)
        return None

    def close(self) -> None:
        for _, descriptors in self._aside:
            seqpacket.close_all(descriptors)
        self._aside.clear()
