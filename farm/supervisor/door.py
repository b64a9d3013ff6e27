"""The control socket's listening side: who may speak, how many, for how long. What is asked goes to the service."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any, Final

import msgspec

from shm import seqpacket
from shm.control import (
    Answer,
    DrainWanted,
    InspectWanted,
    ScaleWanted,
    StatusWanted,
    StopWanted,
    answer_codec,
    wanted_codec,
)
from shm.errors import FrameRefused, PeerGone

CONNECTIONS_MAX: Final = 16
ASKED_WITHIN_NS: Final = 1_000_000_000
"""From connect to the request: a command connects to ask."""

ANSWERED_WITHIN_NS: Final = 5_000_000_000
"""From the request to the answer being taken."""

PAUSE_NS: Final = 1_000_000_000
"""How long no connection is taken after the kernel could not give one: the listener stays readable and would spin."""

FACTS_CHARS_MAX: Final = 119_000
"""`shm.control.Json` takes 120,000, and a frame a little more."""

Wanted = StatusWanted | ScaleWanted | DrainWanted | StopWanted | InspectWanted


class Connection:
    """One operator's command. It asks once, is answered once, and is closed then."""

    __slots__ = ("asked", "due_ns", "refusal", "sock")

    def __init__(self, sock: socket.socket, due_ns: int, refusal: str | None) -> None:
        self.sock = sock
        self.due_ns = due_ns
        self.refusal = refusal
        """Why it will not be heard. Said when it asks: an answer before that could be lost to the reset of a close."""
        self.asked = False


class Door:
    """Owns the listener and its connections, each registered with the service's loop by `watch` and `unwatch`."""

    def __init__(
        self,
        path: str,
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        asked: Callable[[Connection, Wanted], None],
        now_ns: Callable[[], int],
    ) -> None:
        self._listener = seqpacket.listen(path, 0o600, CONNECTIONS_MAX)
        self._watch, self._unwatch, self._asked, self._now_ns = watch, unwatch, asked, now_ns
        self._connections: dict[int, Connection] = {}
        self._paused_until_ns: int | None = None
        watch(self._listener.fileno(), self._accept)

    def due_ns(self) -> int | None:
        times = [connection.due_ns for connection in self._connections.values()]
        if self._paused_until_ns is not None:
            times.append(self._paused_until_ns)
        return min(times, default=None)

    def look_at_time(self) -> None:
        now_ns = self._now_ns()
        for connection in list(self._connections.values()):
            if now_ns >= connection.due_ns:
                self._close(connection)
        if self._paused_until_ns is not None and now_ns >= self._paused_until_ns:
            self._paused_until_ns = None
            self._watch(self._listener.fileno(), self._accept)

    def answer(self, connection: Connection, facts: Any = None, error: str | None = None) -> None:
        """Answer and close. A peer that is gone, or does not read, misses it."""
        if connection.sock.fileno() not in self._connections:
            return
        answer = Answer(error=error[:4096]) if error is not None else Answer(facts=msgspec.json.encode(facts).decode())
        try:
            seqpacket.send(connection.sock, answer_codec.encode_checked(answer))
        except (PeerGone, FrameRefused):
            pass
        self._close(connection)

    def close(self) -> None:
        for connection in list(self._connections.values()):
            self._close(connection)
        if self._paused_until_ns is None:
            self._unwatch(self._listener.fileno())
        self._listener.close()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):
            return
        except OSError:
            self._unwatch(self._listener.fileno())
            self._paused_until_ns = self._now_ns() + PAUSE_NS
            return
        sock.setblocking(False)
        _, uid, _ = seqpacket.peer_credentials(sock)
        refusal = None
        if uid not in (0, os.geteuid()):
            refusal = f"uid {uid} may not control this farm: it belongs to uid {os.geteuid()}"
        elif len(self._connections) >= 2 * CONNECTIONS_MAX:
            sock.close()
            return
        elif len(self._connections) >= CONNECTIONS_MAX:
            refusal = f"{CONNECTIONS_MAX} commands are being answered already: try again"
        connection = Connection(sock, self._now_ns() + ASKED_WITHIN_NS, refusal)
        self._connections[sock.fileno()] = connection
        self._watch(sock.fileno(), lambda: self._read(connection))

    def _read(self, connection: Connection) -> None:
        try:
            got = seqpacket.receive(connection.sock)
        except PeerGone:
            self._close(connection)
            return
        except FrameRefused as error:
            self.answer(connection, error=str(error))
            return
        if got is None:
            return
        if connection.refusal is not None:
            self.answer(connection, error=connection.refusal)
            return
        if connection.asked:
            self.answer(connection, error="a connection takes one command: open another for the next")
            return
        connection.asked, connection.due_ns = True, self._now_ns() + ANSWERED_WITHIN_NS
        try:
            wanted = wanted_codec.decode(got[0])
        except FrameRefused as error:
            self.answer(connection, error=f"{error}; this farm may have another version than the command")
            return
        self._asked(connection, wanted)

    def _close(self, connection: Connection) -> None:
        fd = connection.sock.fileno()
        if self._connections.pop(fd, None) is not None:
            self._unwatch(fd)
            connection.sock.close()
