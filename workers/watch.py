"""The watcher: one thread asleep on the second socket, to end a run that the main thread is in the middle of.

ONNX Runtime looks at `RunOptions.terminate` between nodes. The options are one object for all runs (a fresh one costs
0.25 us and its entry more), so a Terminate must hit the run that it names and no other: one that comes after its run
has ended does nothing; one that comes before its run starts is remembered and keeps it from starting. The end of file
on this socket means that the router is gone, and nobody wants any run of its any more.

It also listens to the leash, since the main thread waits in a receive from the run socket and nowhere else: something
on the leash, or the end of this thread, shuts the run socket down for reading. Frames that are there are still
received, then comes end of file.
"""

from __future__ import annotations

import select
import socket
import threading
from collections import deque
from typing import Any, Final

import setproctitle

from shm import seqpacket
from shm.errors import FrameRefused, PeerGone
from shm.worker import watch_codec
from workers.log import log

EARLY_MAX: Final = 16
"""Terminates remembered for runs that have not started; at most two runs are in a worker's hands. A router's run
numbers rise, so those of earlier runs are forgotten when one begins."""

POLL_MS: Final = 60_000
JOIN_S: Final = 5.0


class Current:
    """Which run is going on, for one router's life. begin, end, settle: the main thread's; the rest: the watcher's.

    A run that nobody terminates takes no lock: it writes `run` and then reads `word`, at its begin and at its end. The
    watcher, under the lock, writes `word` and then reads `run`. Under the GIL these happen in one order that both see.
    So either the main thread sees the word and waits for the lock, where all that the watcher did is settled; or its
    write of `run` came before the watcher's look, which then decides by what is true: the named run goes on, has
    ended, or has not begun.
    """

    __slots__ = ("_early", "_gone", "_lock", "_options", "run", "terminated", "word")

    def __init__(self, options: Any) -> None:
        self.run: int | None = None
        """The main thread's to write."""
        self.word = False
        """The watcher has said something that a begin or an end must look at."""
        self.terminated = False
        """Whether the run going on was told to stop."""
        self._options = options
        self._lock = threading.Lock()
        self._gone = False
        self._early: deque[int] = deque(maxlen=EARLY_MAX)
        options.terminate = False

    def begin(self, run: int) -> bool:
        """False when it must not start: it was terminated already, or the router is gone."""
        self.run = run
        if not self.word:
            return True
        with self._lock:
            refused = self._gone or self.terminated or run in self._early
            for early in [early for early in self._early if early <= run]:
                self._early.remove(early)
            self._settle(None if refused else run)
            return not refused

    def end(self) -> None:
        """After this no Terminate reaches the run, and the options are clean for the next."""
        self.run = None
        if self.word:
            self.settle()

    def settle(self) -> None:
        """Clean up after a run that has ended, when there was a word."""
        with self._lock:
            self._settle(None)

    def terminate(self, run: int) -> None:
        with self._lock:
            self.word = True
            if self.run == run:
                self._stop()
            else:
                self._early.append(run)

    def abandon(self) -> None:
        """The router is gone: stop what goes on, start nothing more."""
        with self._lock:
            self.word = True
            self._gone = True
            if self.run is not None:
                self._stop()

    def _stop(self) -> None:
        self.terminated = True
        self._options.terminate = True

    def _settle(self, run: int | None) -> None:
        self.run = run
        if self.terminated:
            self.terminated = False
            self._options.terminate = False
        self.word = self._gone or bool(self._early)


class Watcher:
    """The thread. Owns the socket, not the leash and the run socket; ends by itself at end of file."""

    def __init__(self, sock: socket.socket, current: Current, leash: socket.socket, run: socket.socket) -> None:
        self.leash_spoke = False
        """The run socket was shut down because something is on the leash."""
        self._sock = sock
        self._current = current
        self._leash = leash
        self._run = run
        self._thread = threading.Thread(target=self._watch, name="farm-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and close the socket; the current run, if any, is stopped."""
        _shut(self._sock, socket.SHUT_RDWR)
        self._thread.join(JOIN_S)
        self._sock.close()

    def _watch(self) -> None:
        setproctitle.setthreadtitle("farm-watch")
        leash_fd = self._leash.fileno()
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        poller.register(leash_fd, select.POLLIN)
        try:
            while True:
                got = seqpacket.receive(self._sock)
                if got is not None:
                    self._current.terminate(watch_codec.decode(got[0]).run)
                elif any(fd == leash_fd for fd, _ in poller.poll(POLL_MS)):
                    poller.unregister(leash_fd)
                    self.leash_spoke = True
                    _shut(self._run, socket.SHUT_RD)
        except PeerGone:
            pass
        except FrameRefused as error:
            log("watch_frame_refused", error=error)
        finally:
            self._current.abandon()
            _shut(self._run, socket.SHUT_RD)


def _shut(sock: socket.socket, how: int) -> None:
    try:
        sock.shutdown(how)
    except OSError:
        pass  # closed already, here or at the other end
