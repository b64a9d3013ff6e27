"""The door: who attaches, with which arena, and when a client is gone.

One connection on the attach socket is one session. Its arena is made here, a step of memory a loop turn, so that a
client that asks for much delays nobody; then the client gets its descriptors, and from then on this socket and the
client's pidfd are its liveness: a forked child may keep the socket open, so the end of either ends the session.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from router.arena import Arena, Chores, Steps
from router.config import RouterConfig
from router.counters import Counters
from router.gate import Gate
from router.lanes.direct import DirectLane
from shm import segment, seqpacket
from shm.client import Attach, Attached, AttachRefused, Model, Overflow, attach_codec, welcome_codec
from shm.endings import Reason
from shm.errors import FrameRefused, PeerGone, SegmentRefused
from shm.limits import MESSAGE_CHARS_MAX, PROTOCOL_VERSION

ATTACH_WITHIN_S = 1.0
"""A connection that has not asked by then is closed: it only costs a descriptor. Making the arena is not in it."""

HALF_OPEN_MAX = 256
"""Connections that have not asked yet. One more, and the oldest is closed: who opens them without end finds no end of
descriptors, and who asks at once, as a client does, is not in their way."""

MIB = 1024 * 1024


@dataclass(slots=True)
class Client:
    """One connection: a session once `arena` is there."""

    number: int
    sock: socket.socket
    pid: int
    uid: int
    gids: frozenset[int]
    pidfd: int | None
    title: str = ""
    lane: str = ""
    arena: Arena | None = None
    granted: bool = False
    over: bool = False
    faults: int = 0
    reserved_bytes: int = 0
    timeout: asyncio.TimerHandle | None = field(default=None, repr=False)


class Door:
    """Listens at `path`. Calls `on_attached(client, token)` and `on_lost(client)`, the latter once for each of the
    former, and `on_frame(session, frame)` for what a client of the direct lane sends."""

    def __init__(
        self,
        *,
        path: str,
        mode: int,
        lanes: dict[str, str],
        epoch: int,
        config: RouterConfig,
        counters: Counters,
        loop: asyncio.AbstractEventLoop,
        gate: Gate,
        allowed: Callable[[int, frozenset[int] | None], bool],
        catalog: Callable[[], Iterable[Model]],
        on_attached: Callable[[Client, bytes], None],
        on_lost: Callable[[Client], None],
        on_frame: Callable[[int, bytes], None],
        direct: DirectLane,
    ) -> None:
        """`lanes`: name to path of each lane on offer, the one that `auto` means first."""
        self.path = path
        self.clients: dict[int, Client] = {}
        self.arena_bytes = 0
        self._half_open: dict[int, Client] = {}
        self._lanes = lanes
        self._on_frame = on_frame
        self._direct = direct
        self._epoch = epoch
        self._config = config
        self._counters = counters
        self._loop = loop
        self._gate = gate
        self._chores = Chores(loop)
        self._allowed = allowed
        self._catalog = catalog
        self._on_attached = on_attached
        self._on_lost = on_lost
        self._number = 0
        self._listener = seqpacket.listen(path, mode)
        loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(16):
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError:
                # No descriptor is left. Closing none would make this turn repeat at once; the backlog waits instead.
                self._loop.remove_reader(self._listener.fileno())
                self._loop.call_later(0.1, self._listen_again)
                return
            sock.setblocking(False)
            pid, uid, gid = seqpacket.peer_credentials(sock)
            self._number += 1
            others = seqpacket.peer_groups(sock)
            gids = frozenset((gid, *(others or ())))
            client = Client(self._number, sock, pid, uid, gids, None)
            if not self._allowed(uid, None if others is None else gids):
                self._refuse(client, Reason.NOT_ALLOWED, f"user {uid} (group {gid}) may not use this farm")
                continue
            client.pidfd = seqpacket.peer_pidfd(sock)
            self.clients[client.number] = self._half_open[client.number] = client
            client.timeout = self._loop.call_later(ATTACH_WITHIN_S, self.end, client)
            self._gate.add(sock.fileno(), partial(self._readable, client))
            if client.pidfd is not None:
                self._loop.add_reader(client.pidfd, self.end, client)
            if len(self._half_open) > HALF_OPEN_MAX:
                self.end(next(iter(self._half_open.values())))

    def _listen_again(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener.fileno(), self._accept)

    def _readable(self, client: Client) -> None:
        try:
            got = seqpacket.receive(client.sock)
        except (PeerGone, FrameRefused):
            self.end(client)
            return
        if got is None:
            return
        if client.granted and client.lane == DirectLane.name:
            self._on_frame(client.number, got[0])
            return
        if client.reserved_bytes:
            # A client of another lane sends nothing more this way, and nobody before the door has answered.
            self._counters.frames_rejected += 1
            self.end(client)
            return
        try:
            self._grant(client, attach_codec.decode(got[0]))
        except FrameRefused as refused:
            self._counters.frames_rejected += 1
            self._refuse(client, Reason.FRAME, str(refused))

    def _grant(self, client: Client, attach: Attach) -> None:
        config = self._config
        del self._half_open[client.number]
        if client.timeout is not None:
            client.timeout.cancel()
        client.title = attach.title
        client.lane = next(iter(self._lanes)) if attach.lane == "auto" else attach.lane
        payload_bytes = attach.slot_count * attach.slot_bytes
        if attach.protocol != PROTOCOL_VERSION:
            message = (
                f"this farm speaks protocol {PROTOCOL_VERSION}, the client {attach.protocol}; install the same version"
            )
            self._refuse(client, Reason.PROTOCOL, message)
        elif client.lane not in self._lanes:
            message = f"there is no lane {attach.lane!r}; this farm has {', '.join(self._lanes)}"
            self._refuse(client, Reason.PROTOCOL, message)
        elif attach.slot_count > config.slot_count_max:
            message = f"{attach.slot_count} slots were asked for; slot_count_max allows {config.slot_count_max}"
            self._refuse(client, Reason.BUDGET, message)
        elif attach.slot_bytes % 64:
            self._refuse(client, Reason.FRAME, f"slots of {attach.slot_bytes} bytes are no multiple of 64")
        elif sum(1 for other in self.clients.values() if other.reserved_bytes) >= config.clients_max:
            message = (
                f"{config.clients_max} clients are attached, the most that clients_max allows; close one or raise it"
            )
            self._refuse(client, Reason.CLIENTS_FULL, message, retry_after_ms=1000)
        elif 2 * payload_bytes > config.client_mib_max * MIB:
            message = (
                f"{2 * payload_bytes / MIB:.1f} MiB were asked for (in and out together); client_mib_max allows "
                f"{config.client_mib_max}"
            )
            self._refuse(client, Reason.BUDGET, message)
        elif self.arena_bytes + 2 * payload_bytes > config.arena_budget_mib * MIB:
            message = (
                f"{2 * payload_bytes / MIB:.1f} MiB were asked for, {self.arena_bytes / MIB:.1f} of "
                f"{config.arena_budget_mib} MiB are taken; ask for less, close a client or raise arena.budget_mib"
            )
            self._refuse(client, Reason.BUDGET, message, retry_after_ms=1000)
        else:
            client.reserved_bytes = 2 * payload_bytes
            self.arena_bytes += client.reserved_bytes
            try:
                client.arena = Arena.create(attach.slot_count, attach.slot_bytes)
            except SegmentRefused as refused:
                self._refuse(client, Reason.BUDGET, str(refused), retry_after_ms=1000)
                return
            self._chores.add(self._make(client, client.arena))

    def _make(self, client: Client, arena: Arena) -> Steps:
        """The arena's memory, then the welcome; nothing of it once the client is gone."""
        if client.over:
            # It was gone before its first turn came.
            return
        try:
            for _ in arena.fill():
                yield
                if client.over:
                    return
            read_only = segment.reopen_read_only(arena.out_fd)
        except SegmentRefused as refused:
            self._refuse(client, Reason.BUDGET, str(refused), retry_after_ms=1000)
            return
        except OSError as error:
            self._refuse(client, Reason.BUDGET, f"no descriptor could be had: {error.strerror}", retry_after_ms=1000)
            return
        try:
            self._welcome(client, arena, read_only)
        finally:
            os.close(read_only)

    def _welcome(self, client: Client, arena: Arena, read_only: int) -> None:
        token = secrets.token_bytes(16)
        models = list(self._catalog())
        attached = Attached(
            PROTOCOL_VERSION,
            client.number,
            self._epoch,
            token,
            arena.slot_count,
            arena.slot_bytes,
            client.lane,
            self._lanes[client.lane],
            len(models),
        )
        client.granted = True
        # The session must exist before the client can know of it.
        self._on_attached(client, token)
        sent = self._send(client, welcome_codec.encode(attached), (arena.in_fd, read_only))
        for model in models:
            sent = sent and self._send(client, welcome_codec.encode(model))

    def _send(self, client: Client, frame: bytes, fds: tuple[int, ...] = ()) -> bool:
        """False when the client is gone or does not read; its session is then over."""
        try:
            if client.lane == DirectLane.name:
                # Behind the replies that wait there, if any do.
                sent = self._direct.send(client.number, frame, fds)
            else:
                sent = seqpacket.send(client.sock, frame, fds)
            if sent:
                return True
            self._counters.clients_cut += 1
        except PeerGone:
            pass
        self.end(client)
        return False

    def publish(self, model: Model) -> None:
        """Tell every client how a model stands now."""
        frame = welcome_codec.encode(model)
        for client in list(self.clients.values()):
            if client.granted:
                self._send(client, frame)

    def send_overflow(self, session: int, request_id: int, payload_bytes: int, fd: int) -> None:
        client = self.clients.get(session)
        if client is not None:
            self._send(client, welcome_codec.encode(Overflow(request_id, payload_bytes)), (fd,))

    def _refuse(self, client: Client, reason: Reason, message: str, retry_after_ms: int = 0) -> None:
        self._counters.clients_refused += 1
        refused = AttachRefused(reason, message[:MESSAGE_CHARS_MAX], retry_after_ms)
        try:
            seqpacket.send(client.sock, welcome_codec.encode(refused))
        except PeerGone:
            pass
        self.end(client)

    def end(self, client: Client) -> None:
        """The connection is over. The arena stays until no run works in it: see `close_arena`."""
        if client.over:
            return
        client.over = True
        self.clients.pop(client.number, None)
        self._half_open.pop(client.number, None)
        if client.timeout is not None:
            client.timeout.cancel()
        # The lane may still watch the socket for writing: its session ends before the socket is closed.
        if client.granted:
            self._on_lost(client)
        self._gate.remove(client.sock.fileno())
        client.sock.close()
        if client.pidfd is not None:
            self._loop.remove_reader(client.pidfd)
            os.close(client.pidfd)
        if not client.granted:
            self.close_arena(client)

    def close_arena(self, client: Client) -> None:
        """No run works in this memory any more, and no worker is sent it again. It counts until it is given back."""
        arena, client.arena = client.arena, None
        if arena is not None:
            self._chores.add(self._give_back(arena, client.reserved_bytes), first=True)
        else:
            self.arena_bytes -= client.reserved_bytes
        client.reserved_bytes = 0

    def _give_back(self, arena: Arena, reserved_bytes: int) -> Steps:
        yield from arena.empty()
        self.arena_bytes -= reserved_bytes

    def close(self) -> None:
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass
        for client in list(self.clients.values()):
            self.end(client)
        self._chores.finish()
