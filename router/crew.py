"""The router's end of every worker: its two sockets, its pidfd, and which arenas it has been given.

Sends runs with the descriptors that the worker has not seen yet, and turns what comes back into events. The end of a
socket means that a worker is lost; only its pidfd says that it is gone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from router import events as ev
from router.arena import Arena
from router.gate import Gate
from shm import seqpacket
from shm.errors import FrameRefused, PeerGone
from shm.limits import MEMBERS_MAX
from shm.worker import (
    ArenaOpened,
    ArenasClosed,
    Done,
    Inspect,
    Inspected,
    Ready,
    Run,
    Stop,
    Terminate,
    done_codec,
    run_codec,
    watch_codec,
)

log = logging.getLogger("shmfarm.router")

FRAMES_LEFT_MAX = 8
"""What a worker can have said before it died: the ends of the runs in its hands, its Ready, facts that were asked."""


@dataclass(slots=True)
class Link:
    """One worker's sockets. `arenas`: sessions whose memory it has mapped, the least recently used first."""

    worker: int
    pid: int
    model: int
    cpus: tuple[int, ...]
    run_sock: socket.socket
    watch_sock: socket.socket
    pidfd: int
    arenas: OrderedDict[int, None] = field(default_factory=OrderedDict)
    pending: deque[tuple[bytes, tuple[int, ...]]] = field(default_factory=deque)
    lost: bool = False


class Crew:
    """All links. `on_event(event, fds)` gets what workers say; `fds` are of RunFinished's members, in their order, and
    are closed after the call."""

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        gate: Gate,
        arena_of: Callable[[int], Arena | None],
        arenas_max: int,
        private: bool,
        on_event: Callable[[ev.Event, list[int]], None],
        on_ready: Callable[[int, Ready], None],
        on_inspected: Callable[[Inspected], None],
    ) -> None:
        # A worker may hold the arenas of two runs at once, and they must not push each other out.
        self._arenas_max = max(arenas_max, 2 * MEMBERS_MAX)
        self.links: dict[int, Link] = {}
        self._loop = loop
        self._gate = gate
        self._arena_of = arena_of
        self._private = private
        self._on_event = on_event
        self._on_ready = on_ready
        self._on_inspected = on_inspected

    def add(self, worker: int, pid: int, model: int, cpus: tuple[int, ...], fds: list[int]) -> None:
        """Take over a worker's run socket, watch socket and pidfd."""
        run_sock, watch_sock = (socket.socket(fileno=fd) for fd in fds[:2])
        for sock in (run_sock, watch_sock):
            sock.setblocking(False)
        link = Link(worker, pid, model, cpus, run_sock, watch_sock, fds[2])
        self.links[worker] = link
        self._gate.add(run_sock.fileno(), partial(self._readable, link))
        self._loop.add_reader(link.pidfd, self._gone, link)

    def _readable(self, link: Link) -> None:
        """One frame; the loop calls again while there are more. A second look would cost more than it finds."""
        try:
            got = seqpacket.receive(link.run_sock, MEMBERS_MAX)
            if got is not None:
                self._take(link, *got)
        except PeerGone:
            self._lose(link)
        except FrameRefused as refused:
            log.error("worker_frame_refused worker=%d error=%s", link.worker, refused)
            self._lose(link)

    def _take(self, link: Link, frame: bytes, fds: list[int]) -> None:
        try:
            message = done_codec.decode(frame)
            if isinstance(message, Done):
                if fds or message.members:
                    _check_overflows(message, fds)
                event = ev.RunFinished(
                    link.worker,
                    message.run,
                    message.status,
                    message.started_ns,
                    message.finished_ns,
                    message.members,
                    message.copies,
                )
                self._on_event(event, fds)
            elif isinstance(message, Ready):
                self._on_ready(link.worker, message)
            else:
                self._on_inspected(message)
        finally:
            if fds:
                seqpacket.close_all(fds)

    def _lose(self, link: Link) -> None:
        if link.lost:
            return
        link.lost = True
        self._gate.remove(link.run_sock.fileno())
        if link.pending:
            self._loop.remove_writer(link.run_sock.fileno())
            for _, fds in link.pending:
                seqpacket.close_all(fds)
            link.pending.clear()
        link.run_sock.close()
        link.watch_sock.close()
        self._on_event(ev.WorkerLost(link.worker), [])

    def _gone(self, link: Link) -> None:
        """The process has ended. What it said before that is still in its socket and comes first."""
        self._loop.remove_reader(link.pidfd)
        for _ in range(FRAMES_LEFT_MAX):
            if not link.lost:
                self._readable(link)
        self._lose(link)
        os.close(link.pidfd)
        del self.links[link.worker]
        self._on_event(ev.WorkerGone(link.worker), [])

    def dispatch(self, action: ev.Dispatch) -> None:
        """Send a run, with what the worker has not yet mapped."""
        link = self.links.get(action.worker)
        if link is None or link.lost:
            return
        opened: list[ArenaOpened] = []
        fds: list[int] = []
        for member in action.members:
            session = member.session
            if session in link.arenas:
                link.arenas.move_to_end(session)
                continue
            arena = self._arena_of(session)
            assert arena is not None, "a run was dispatched for a session without memory"
            link.arenas[session] = None
            opened.append(ArenaOpened(session, arena.slot_count, arena.slot_bytes))
            fds += (arena.in_fd, arena.out_fd)
        if len(link.arenas) > self._arenas_max:
            surplus = len(link.arenas) - self._arenas_max
            self._send(
                link, run_codec.encode(ArenasClosed([link.arenas.popitem(last=False)[0] for _ in range(surplus)]))
            )
        run = Run(action.run, action.not_after_ns, action.members, opened, self._private)
        self._send(link, run_codec.encode(run), tuple(fds))

    def close_arena(self, session: int) -> None:
        """No worker keeps this memory mapped."""
        for link in self.links.values():
            if session in link.arenas and not link.lost:
                del link.arenas[session]
                self._send(link, run_codec.encode(ArenasClosed([session])))

    def stop(self, worker: int) -> None:
        link = self.links.get(worker)
        if link is not None and not link.lost:
            self._send(link, run_codec.encode(Stop()))

    def inspect(self, worker: int, number: int) -> bool:
        link = self.links.get(worker)
        if link is None or link.lost:
            return False
        self._send(link, run_codec.encode(Inspect(number)))
        return True

    def terminate(self, worker: int, run: int) -> None:
        """Tell the watcher thread. A full socket means that it has been told before and does not listen."""
        link = self.links.get(worker)
        if link is None or link.lost:
            return
        try:
            seqpacket.send(link.watch_sock, watch_codec.encode(Terminate(run)))
        except PeerGone:
            pass

    def kill(self, worker: int) -> None:
        """SIGKILL by pidfd: no other process can be hit."""
        link = self.links.get(worker)
        if link is None:
            return
        try:
            signal.pidfd_send_signal(link.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def _send(self, link: Link, frame: bytes, fds: tuple[int, ...] = ()) -> None:
        try:
            if not link.pending and seqpacket.send(link.run_sock, frame, fds):
                return
        except PeerGone:
            self._loop.call_soon(self._lose, link)
            return
        # Two runs at a time fit; this is for the small frames behind them.
        if not link.pending:
            self._loop.add_writer(link.run_sock.fileno(), self._writable, link)
        link.pending.append((frame, tuple(seqpacket.duplicate(fds))))

    def _writable(self, link: Link) -> None:
        while link.pending:
            frame, fds = link.pending[0]
            try:
                if not seqpacket.send(link.run_sock, frame, fds):
                    return
            except PeerGone:
                self._lose(link)
                return
            link.pending.popleft()
            seqpacket.close_all(fds)
        self._loop.remove_writer(link.run_sock.fileno())

    def close(self) -> None:
        for link in self.links.values():
            if not link.lost:
                link.lost = True
                self._gate.remove(link.run_sock.fileno())
                link.run_sock.close()
                link.watch_sock.close()
            self._loop.remove_reader(link.pidfd)
            os.close(link.pidfd)
        self.links.clear()


def _check_overflows(done: Done, fds: list[int]) -> None:
    if sum(1 for member in done.members if member.overflow_bytes) != len(fds):
        raise FrameRefused("descriptors and outputs of a run do not agree")
