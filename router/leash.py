"""The router's end of its leash: what the supervisor says, and the beat that tells it that the loop turns."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from shm import seqpacket
from shm.control import (
    Beat,
    Drained,
    DrainStarted,
    InspectAsked,
    RouterConfigured,
    RouterListening,
    StatusAsked,
    Told,
    WorkerBecameReady,
    WorkerRetired,
    WorkerSpawned,
    from_router_codec,
    to_router_codec,
)
from shm.errors import PeerGone

log = logging.getLogger("shmfarm.router")

BEAT_S = 0.25
FDS_MAX = 3

FromSupervisor = RouterConfigured | WorkerSpawned | WorkerRetired | DrainStarted | StatusAsked | InspectAsked
ToSupervisor = RouterListening | Beat | WorkerBecameReady | Drained | Told


class Leash:
    """Calls `on_message(message, fds)`, which owns the descriptors, and `on_gone()` when the supervisor has ended."""

    def __init__(
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        turns: Callable[[], int],
        on_message: Callable[[FromSupervisor, list[int]], None],
        on_gone: Callable[[], None],
    ) -> None:
        self._sock = sock
        self._loop = loop
        self._turns = turns
        self._on_message = on_message
        self._on_gone = on_gone
        loop.add_reader(sock.fileno(), self._readable)
        self._beating = loop.call_soon(self._beat)

    def _readable(self) -> None:
        try:
            got = seqpacket.receive(self._sock, FDS_MAX)
        except PeerGone:
            log.error("supervisor_gone")
            self._on_gone()
            return
        if got is not None:
            self._on_message(to_router_codec.decode(got[0]), got[1])

    def tell(self, message: ToSupervisor) -> None:
        try:
            if not seqpacket.send(self._sock, from_router_codec.encode(message)):
                log.warning("supervisor_slow message=%s", type(message).__name__)
        except PeerGone:
            self._on_gone()

    def _beat(self) -> None:
        self.tell(Beat(self._turns()))
        self._beating = self._loop.call_later(BEAT_S, self._beat)

    def close(self) -> None:
        self._beating.cancel()
        self._loop.remove_reader(self._sock.fileno())
