"""Writes lines to a descriptor of a log without ever waiting: whoever reads it may be slow, gone, or out of room.

Supervisor, router and workers share one standard error. To ask whether it takes a line and then to write is not enough
where it is a pipe: between the two another of them may have used up the room, and the write would wait. So a pipe is
opened anew for each line, without waiting, and a socket is sent to in the same way; lines are seldom. What is not taken
is dropped and counted.
"""

from __future__ import annotations

import os
import select
import socket
import stat
from typing import Final

LINE_BYTES_MAX: Final = 4096
"""PIPE_BUF: a pipe takes so many bytes at once or not at all, unmixed with other writers."""


class Lines:
    """The descriptor stays the caller's."""

    def __init__(self, fd: int = 2) -> None:
        self._fd = fd
        self.dropped = 0

    def write(self, text: str) -> None:
        """One line: line ends in it become blanks, what is beyond LINE_BYTES_MAX is cut off."""
        line = text.encode(errors="backslashreplace")[: LINE_BYTES_MAX - 1].replace(b"\n", b" ") + b"\n"
        try:
            self._put(line)
        except OSError:
            self.dropped += 1

    def _put(self, line: bytes) -> None:
        """Raises OSError: it was not taken."""
        kind = os.fstat(self._fd).st_mode
        if stat.S_ISFIFO(kind):
            try:
                fd = os.open(f"/proc/self/fd/{self._fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except BlockingIOError:
                raise
            except OSError:
                # No descriptor is left, or the pipe is another user's: then as for a terminal.
                pass
            else:
                try:
                    os.write(fd, line)
                finally:
                    os.close(fd)
                return
        elif stat.S_ISSOCK(kind):
            with socket.socket(fileno=os.dup(self._fd)) as sock:
                sock.send(line, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            return
        poller = select.poll()
        poller.register(self._fd, select.POLLOUT)
        ready = poller.poll(0)
        if not ready or ready[0][1] & (select.POLLERR | select.POLLNVAL):
            raise BlockingIOError
        os.write(self._fd, line)
