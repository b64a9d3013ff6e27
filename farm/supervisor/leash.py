"""The supervisor's end of a child's leash: frames go out in order, and wait here while the child does not read."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Sequence

from shm import seqpacket
from shm.errors import PeerGone

WAITING_MAX = 4096
"""A child that leaves so many frames unread is hung, and something else will say so; the frames are dropped."""


class Leash:
    """Owns the socket and the descriptors that wait to be sent."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._waiting: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self.gone = False

    @property
    def wants_write(self) -> bool:
        return bool(self._waiting) and not self.gone

    def send(self, frame: bytes, fds: Sequence[int] = ()) -> None:
        """Send, or keep until `flush`. The descriptors are duplicated by the kernel or here: the caller keeps its own
        only for as long as it likes."""
        if self.gone or len(self._waiting) >= WAITING_MAX:
            return
        if not self._waiting and self._try(frame, fds):
            return
        self._waiting.append((frame, tuple(_duplicate(fd) for fd in fds)))

    def flush(self) -> None:
        """Send what waits, as far as it goes."""
        while self._waiting:
            frame, fds = self._waiting[0]
            if not self._try(frame, fds):
                return
            seqpacket.close_all(fds)
            self._waiting.popleft()

    def close(self) -> None:
        self.gone = True
        for _, fds in self._waiting:
            seqpacket.close_all(fds)
        self._waiting.clear()
        self.sock.close()

    def _try(self, frame: bytes, fds: Sequence[int]) -> bool:
        """False: later. A frame to a child that is gone counts as sent: its death is on the way by another road."""
        try:
            return seqpacket.send(self.sock, frame, fds)
        except PeerGone:
            self.gone = True
            return True


def _duplicate(fd: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
