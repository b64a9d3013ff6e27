"""The watcher: one thread asleep on the second socket, to end a run that the main thread is in the middle of.

ONNX Runtime looks at `RunOptions.terminate` between nodes. The options are one object for all runs (a fresh one costs
0.25 us and its entry more), so who is running is decided under a lock: a Terminate that comes after its run has ended
finds another number there and does nothing; one that comes before its run starts is remembered and keeps it from
starting. The end of file on this socket means that the router is gone, and nobody wants any run of its any more.
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
"""Terminates remembered for runs that have not started; at most two runs are in a worker's hands."""

POLL_MS: Final = 60_000
JOIN_S: Final = 5.0


class Current:
    """Which run is going on, for one router's life. begin and end are the main thread's, the rest the watcher's."""

    def __init__(self, options: Any) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._run: int | None = None
        self._gone = False
        self._early: deque[int] = deque(maxlen=EARLY_MAX)
        self.terminated = False
        """Whether the run going on was told to stop."""

    def begin(self, run: int) -> bool:
        """False when it must not start: it was terminated already, or the router is gone."""
        with self._lock:
            if self._gone or run in self._early:
                return False
            self._run = run
            return True

    def end(self) -> None:
        """After this no Terminate reaches the run, and the options are clean for the next."""
        with self._lock:
            self._run = None
            if self.terminated:
                self.terminated = False
                self._options.terminate = False

    def terminate(self, run: int) -> None:
        with self._lock:
            if self._run == run:
                self._stop()
            else:
                self._early.append(run)

    def abandon(self) -> None:
        """The router is gone: stop what goes on, start nothing more."""
        with self._lock:
            self._gone = True
            if self._run is not None:
                self._stop()

    def _stop(self) -> None:
        self.terminated = True
        self._options.terminate = True


class Watcher:
    """The thread. Owns the socket; ends by itself at end of file."""

    def __init__(self, sock: socket.socket, current: Current) -> None:
        self._sock = sock
        self._current = current
        self._thread = threading.Thread(target=self._watch, name="farm-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and close the socket; the current run, if any, is stopped."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the other end is closed already
        self._thread.join(JOIN_S)
        self._sock.close()

    def _watch(self) -> None:
        setproctitle.setthreadtitle("farm-watch")
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        try:
            while True:
                got = seqpacket.receive(self._sock)
                if got is None:
                    poller.poll(POLL_MS)
                    continue
                self._current.terminate(watch_codec.decode(got[0]).run)
        except PeerGone:
            pass
        except FrameRefused as error:
            log("watch_frame_refused", error=error)
        finally:
            self._current.abandon()
