"""What the supervisor waits for: descriptors and signals. Nothing spins: with nothing due it sleeps for good."""

from __future__ import annotations

import select
import signal
import socket
from collections.abc import Callable

STOPPING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Loop:
    """Calls a handler for each descriptor that can be read."""

    def __init__(self) -> None:
        self._poller = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._writing: set[int] = set()

    def watch(self, fd: int, handler: Callable[[], None]) -> None:
        self._handlers[fd] = handler
        self._poller.register(fd, select.POLLIN)

    def unwatch(self, fd: int) -> None:
        """No more calls; unknown descriptors are let pass, since ends are told by several roads."""
        if self._handlers.pop(fd, None) is not None:
            self._poller.unregister(fd)
        self._writing.discard(fd)

    def want_room(self, fd: int, wanted: bool) -> None:
        """Wake up too when a watched descriptor can be written."""
        if wanted == (fd in self._writing) or fd not in self._handlers:
            return
        self._poller.modify(fd, select.POLLIN | (select.POLLOUT if wanted else 0))
        (self._writing.add if wanted else self._writing.discard)(fd)

    def turn(self, patience_ns: int | None) -> None:
        """Wait, at most so long (None: until something happens), and call the handlers of what is there."""
        # poll counts in milliseconds and rounds down: one more, or the last millisecond would be spun away.
        patience_ms = None if patience_ns is None else max(0.0, patience_ns / 1e6) + 1
        for fd, _ in self._poller.poll(patience_ms):
            handler = self._handlers.get(fd)
            if handler is not None:
                handler()


class Signals:
    """From here on a signal is a byte in a socket, and the loop acts on it. Owns the sockets; `close` at the end."""

    def __init__(self, loop: Loop, child_ended: Callable[[], None], stop: Callable[[str], None]) -> None:
        self._loop = loop
        self._child_ended, self._stop = child_ended, stop
        self._reading, self._writing = socket.socketpair()
        self._reading.setblocking(False)
        self._writing.setblocking(False)
        signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _only_wake)
        for signum in STOPPING_SIGNALS:
            if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:  # nohup wants it ignored
                signal.signal(signum, _only_wake)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        loop.watch(self._reading.fileno(), self._read)

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        self._loop.unwatch(self._reading.fileno())
        self._reading.close()
        self._writing.close()

    def _read(self) -> None:
        try:
            numbers = self._reading.recv(4096)
        except BlockingIOError:
            return
        if signal.SIGCHLD in numbers:
            self._child_ended()
        for number in numbers:
            if number in STOPPING_SIGNALS:
                self._stop(signal.Signals(number).name)


def _only_wake(signum: int, frame: object) -> None:
    """The byte in the wake-up socket is all that a signal does."""
