"""The watch on the public lane's connections: sees them come and go, looks at the router's memory, and cuts.

libzmq has no call that ends a connection: its socket monitor tells the descriptor, and a shutdown of that does. The
number is only trusted for a socket of this lane's path with the inode that was accepted. Events wait in a pipe of some
thousand, and then libzmq accepts no more: so a flood cannot outrun a loop that is busy, and descriptors stay bounded.

While nobody is connected nothing is looked at.
"""

from __future__ import annotations

import array
import asyncio
import ctypes
import fcntl
import logging
import os
import resource
import socket
import struct
import termios
import time
from collections.abc import Callable

import zmq

from router.counters import Counters
from router.lanes.peers import Peer, Peers, Pressure, culprits, pressure

log = logging.getLogger("shmfarm.router")

LOOK_S = 0.05
"""One peer makes libzmq's memory grow by some 500 MB/s: 25 MB between two looks."""

CALM_LOOK_S = 0.2
"""The same while memory is as it was and everyone has a session: a wake-up costs an idle farm 100 us."""

EVENTS_MAX = 256
"""Connections that came or went, taken in one turn."""

DESCRIPTORS_MIN = 4096
"""Descriptors that the lane needs at the worst: some 1,000 not yet told, 256 strangers, and the sessions'."""

TRIMS = 4
"""Looks after a cut at which freed memory is given back to the system: libzmq frees what a peer held when it has seen
the end of the connection, part by part."""

MIB = 1024 * 1024
MONITOR = "inproc://lane-monitor"
_PAGE = os.sysconf("SC_PAGE_SIZE")
_EVENT = struct.Struct("=HI")
_SEND_QUEUE = termios.TIOCOUTQ
_RECEIVE_QUEUE = termios.FIONREAD


def raise_descriptors() -> None:
    """To what the system lets: libzmq's ipc listener aborts the process when a descriptor cannot be had."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS_MIN:
        log.warning("descriptors_few limit=%d wanted=%d", hard, DESCRIPTORS_MIN)


class Watch:
    """`end(session, why)` ends a session whose connection was cut."""

    def __init__(
        self,
        lane: zmq.Socket[bytes],
        path: str,
        bound_bytes: int,
        loop: asyncio.AbstractEventLoop,
        counters: Counters,
        end: Callable[[int, str], None],
        accounted: Callable[[], int],
    ) -> None:
        """`accounted()`: bytes that the router keeps on purpose and bounds elsewhere.

        Before the lane's socket is bound: what is accepted before the monitor is there is never told."""
        self.peers = Peers()
        self.heard: set[int] | None = None
        """Sessions that brought a message since the router began to grow; None while it does not."""
        self._path = path
        self._bound_bytes = bound_bytes
        self._loop = loop
        self._counters = counters
        self._end = end
        self._accounted = accounted
        self._level = 0
        """The least that the router had since the first connection."""
        self._last = 0
        self._trims = 0
        self._own_at_cut = 0
        self._settle = False
        self._looking: asyncio.TimerHandle | None = None
        lane.monitor(MONITOR, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self._monitor = lane.context.socket(zmq.PAIR)
        self._monitor.setsockopt(zmq.RCVHWM, 1)
        self._monitor.setsockopt(zmq.LINGER, 0)
        self._monitor.connect(MONITOR)
        self._fd = int(self._monitor.getsockopt(zmq.FD))
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._libc = ctypes.CDLL(None)
        loop.add_reader(self._fd, self._told)

    def _told(self) -> None:
        """The descriptor is edge-triggered: taken until empty, or looked at again."""
        for _ in range(EVENTS_MAX):
            try:
                told = self._monitor.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            kind, fd = _EVENT.unpack(told[0])
            if kind == zmq.EVENT_ACCEPTED:
                self._accepted(fd)
            else:
                self.peers.gone(fd)
        self._loop.call_soon(self._again)

    def _again(self) -> None:
        if not self._monitor.closed:
            self._told()

    def _accepted(self, fd: int) -> None:
        try:
            inode = os.fstat(fd).st_ino
        except OSError:
            # It is gone already, and that will be told too.
            inode = 0
        in_the_way = self.peers.accepted(fd, inode, time.monotonic_ns())
        if in_the_way is not None:
            self.cut(in_the_way, "more connections without a session than may be")
        if self._looking is not None:
            self._hurry()
        else:
            self._level = self._last = self._own_bytes()
            self._looking = self._loop.call_later(LOOK_S, self._look)

    def _hurry(self) -> None:
        """A stranger's second is not to end in a calm stretch."""
        assert self._looking is not None
        if self._looking.when() > self._loop.time() + LOOK_S:
            self._looking.cancel()
            self._looking = self._loop.call_later(LOOK_S, self._look)

    def _own_bytes(self) -> int:
        """Memory of the process that is no file's, no arena's, and not what it keeps on purpose."""
        fields = os.pread(self._statm, 128, 0).split()
        return (int(fields[1]) - int(fields[2])) * _PAGE - self._accounted()

    def _look(self) -> None:
        # What is in the monitor's pipe came first.
        self._told()
        if self._trims:
            self._trims -= 1
            self._libc.malloc_trim(0)
            if not self._trims and self._settle:
                self._settle = False
                self._level = self._own_bytes()
        for peer in self.peers.late(time.monotonic_ns()):
            self.cut(peer, "no token in time")
        own = self._own_bytes()
        calm = own <= self._last + MIB and not self.peers.strangers()
        self._last = own
        self._level = min(self._level, own)
        how = pressure(own - self._level, self._bound_bytes)
        if how is not Pressure.NONE or self.heard is not None:
            self._under(how, own)
        self._looking = None
        if len(self.peers) or self._trims:
            self._looking = self._loop.call_later(CALM_LOOK_S if calm else LOOK_S, self._look)

    def _under(self, how: Pressure, own: int) -> None:
        if self._trims and own <= self._own_at_cut + MIB:
            # What was cut is being given back.
            return
        if self.heard is None:
            self.heard = set()
        found = culprits(self.peers, how, self._is_unread, self.heard)
        for peer in found:
            self._counters.lane_memory_cut += 1
            self.cut(peer, f"the router grew by {(own - self._level) // MIB} MiB ({how.name.lower()})")
        if how is Pressure.NONE:
            self.heard = None
        if found:
            self._trims, self._own_at_cut = TRIMS, own
            # Innocents may have been among them: what stays then is not the lane's, and is not to cost others.
            self._settle = how >= Pressure.BUSY

    def _is_unread(self, peer: Peer) -> bool:
        """Whether bytes lie in its socket, from it or for it."""
        count = array.array("i", [0])
        try:
            for which in (_RECEIVE_QUEUE, _SEND_QUEUE):
                fcntl.ioctl(peer.fd, which, count)
                if count[0]:
                    return True
        except OSError:
            pass
        return False

    def cut(self, peer: Peer, why: str) -> None:
        """End this connection, and its session by name. It is out of the table at once."""
        self.peers.gone(peer.fd)
        self._shut(peer)
        if peer.session is not None:
            self._end(peer.session, why)
        else:
            self._counters.strangers_cut += 1

    def greeted(self, fd: int, session: int) -> None:
        if self.peers.of_fd(fd) is None:
            # Its frame was faster than the word that it was accepted.
            self._told()
        self.peers.greeted(fd, session)

    def stranger_spoke(self, fd: int) -> None:
        peer = self.peers.stranger_spoke(fd)
        if peer is not None:
            self.cut(peer, "frames without a session")

    def ended(self, session: int) -> None:
        """The session is over, and so is its connection."""
        peer = self.peers.of_session(session)
        if peer is not None:
            self.peers.gone(peer.fd)
            self._shut(peer)

    def _shut(self, peer: Peer) -> None:
        try:
            sock = socket.socket(fileno=os.dup(peer.fd))
        except OSError:
            return
        with sock:
            try:
                if os.fstat(sock.fileno()).st_ino == peer.inode and sock.getsockname() == self._path:
                    sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        self._loop.remove_reader(self._fd)
        self._monitor.close(0)
        os.close(self._statm)
