"""The direct lane: requests and replies on the attach socket itself, for clients on the same host.

No I/O threads, no token, no reconnect to guard against: the kernel says who speaks. Back-pressure is the socket's own
buffer; what does not fit waits here, bounded, and a client that lets it grow past that does not read.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Sequence

from shm import seqpacket
from shm.errors import PeerGone

FRAMES_WAITING_MAX = 1_000
"""Frames kept for a client whose socket is full: at most 128 MB of full frames, 50 kB of usual ones."""

DESCRIPTORS_WAITING_MAX = 128
"""Of those frames, how many may hold a descriptor: each is one of the router's own, and keeps a memory file alive. The
socket holds some 270 more; one run brings at most 100."""


class DirectLane:
    """The sockets are the door's; it brings the frames that came, and takes a session out when it ends."""

    name = "direct"

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._sockets: dict[int, socket.socket] = {}
        self._waiting: dict[int, deque[tuple[bytes, list[int]]]] = {}

    def admit(self, session: int, sock: socket.socket) -> None:
        self._sockets[session] = sock

    def send(self, session: int, frame: bytes, fds: Sequence[int] = ()) -> bool:
        """False when the frame cannot be queued: that client does not read. The descriptors stay the caller's."""
        sock = self._sockets.get(session)
        if sock is None:
            return False
        waiting = self._waiting.get(session)
        try:
            if waiting is None and seqpacket.send(sock, frame, fds):
                return True
        except PeerGone:
            # Its end of file is on the way and ends the session.
            return True
        if waiting is None:
            waiting = self._waiting[session] = deque()
            self._loop.add_writer(sock.fileno(), self._writable, session)
        if len(waiting) >= FRAMES_WAITING_MAX:
            return False
        if fds and sum(len(kept) for _, kept in waiting) + len(fds) > DESCRIPTORS_WAITING_MAX:
            return False
        try:
            waiting.append((frame, seqpacket.duplicate(fds)))
        except OSError:
            # No descriptor is left here: better this session than what others are owed in this turn.
            return False
        return True

    def _writable(self, session: int) -> None:
        sock, waiting = self._sockets[session], self._waiting[session]
        try:
            while waiting and seqpacket.send(sock, *waiting[0]):
                seqpacket.close_all(waiting.popleft()[1])
        except PeerGone:
            self._drop(session, sock)
            return
        if not waiting:
            self._drop(session, sock)

    def _drop(self, session: int, sock: socket.socket) -> None:
        waiting = self._waiting.pop(session, None)
        if waiting is not None:
            self._loop.remove_writer(sock.fileno())
            for _, fds in waiting:
                seqpacket.close_all(fds)

    def end(self, session: int) -> None:
        """The session is over; called before its socket is closed."""
        sock = self._sockets.pop(session, None)
        if sock is not None:
            self._drop(session, sock)
