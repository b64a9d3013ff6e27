"""Who is connected to the public lane, and who is to be cut: tables that decide and touch nothing.

libzmq bounds neither the connections of a socket nor the memory of a message in many parts, and its ipc listener aborts
the process when no descriptor is left [libzmq 4.3.5, `ipc_listener.cpp`]. So a connection has a second to show its
token, those that have not are few, and when memory grows somebody is cut: first who brings nothing, at last everyone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

HELLO_WITHIN_NS = 1_000_000_000
"""From when a connection is known here. A client sends Hello at once; what it takes longer is its host's stall."""

STRANGERS_MAX = 256
"""Connections that have not shown a token. One more, and the oldest is cut, as at the attach socket."""

STRANGER_FRAMES_MAX = 8
"""Frames that such a connection may send before it is cut."""

STUCK_LOOKS = 2
"""Looks that find bytes unread, less those that do not, before a connection counts as stuck: one look finds any that
is in use."""


@dataclass(slots=True, eq=False)
class Peer:
    """One connection. The descriptor is libzmq's own and its number may be another's by now; the inode tells."""

    fd: int
    inode: int
    since_ns: int
    session: int | None = None
    frames: int = 0
    stuck: int = 0


class Peers:
    """Every connection is here from when it was accepted until it is gone."""

    def __init__(self) -> None:
        self._by_fd: dict[int, Peer] = {}
        self._by_session: dict[int, Peer] = {}
        self._strangers: dict[int, Peer] = {}
        """In the order in which they came."""

    def __len__(self) -> int:
        return len(self._by_fd)

    def all(self) -> list[Peer]:
        return list(self._by_fd.values())

    def accepted(self, fd: int, inode: int, now_ns: int) -> Peer | None:
        """Returns the one that has to make way, if one has."""
        self.gone(fd)
        self._by_fd[fd] = self._strangers[fd] = Peer(fd, inode, now_ns)
        return next(iter(self._strangers.values())) if len(self._strangers) > STRANGERS_MAX else None

    def gone(self, fd: int) -> None:
        peer = self._by_fd.pop(fd, None)
        if peer is not None:
            self._strangers.pop(fd, None)
            if peer.session is not None:
                self._by_session.pop(peer.session, None)

    def greeted(self, fd: int, session: int) -> None:
        """It has shown the token of that session."""
        peer = self._strangers.pop(fd, None)
        if peer is not None:
            peer.session = session
            self._by_session[session] = peer

    def of_session(self, session: int) -> Peer | None:
        return self._by_session.get(session)

    def stranger_spoke(self, fd: int) -> Peer | None:
        """Returns it when it has said too much."""
        peer = self._strangers.get(fd)
        if peer is None:
            return None
        peer.frames += 1
        return peer if peer.frames > STRANGER_FRAMES_MAX else None

    def of_fd(self, fd: int) -> Peer | None:
        return self._by_fd.get(fd)

    def strangers(self) -> list[Peer]:
        return list(self._strangers.values())

    def late(self, now_ns: int) -> list[Peer]:
        """Those who had their second. The first of the table came first, so an idle look costs one comparison."""
        found = []
        for peer in self._strangers.values():
            if now_ns - peer.since_ns < HELLO_WITHIN_NS:
                break
            found.append(peer)
        return found


class Pressure(IntEnum):
    """How far the router has grown beyond its bound, and so who is cut."""

    NONE = 0
    WATCH = 1
    """Half of the bound: nobody yet, but it is noted who brings whole messages."""
    STUCK = 2
    """The bound: who has no session, and who has bytes on the way but brings no message."""
    BUSY = 3
    """Twice the bound: everyone with bytes on the way."""
    ALL = 4
    """Four times the bound: everyone on the lane."""


def pressure(grown_bytes: int, bound_bytes: int) -> Pressure:
    if grown_bytes >= 4 * bound_bytes:
        return Pressure.ALL
    if grown_bytes >= 2 * bound_bytes:
        return Pressure.BUSY
    if grown_bytes >= bound_bytes:
        return Pressure.STUCK
    return Pressure.WATCH if 2 * grown_bytes >= bound_bytes else Pressure.NONE


def culprits(peers: Peers, how: Pressure, unread: Callable[[Peer], bool], heard: set[int]) -> list[Peer]:
    """One look under pressure: `unread(peer)` says whether bytes lie in its socket, in either direction; `heard` are
    the sessions that brought a whole message since the pressure began."""
    found = []
    for peer in peers.all():
        if how < Pressure.WATCH:
            peer.stuck = 0
            continue
        peer.stuck = peer.stuck + 1 if unread(peer) else max(peer.stuck - 1, 0)
        stuck = peer.stuck >= STUCK_LOOKS
        silent = peer.session is None or (stuck and peer.session not in heard)
        if how is Pressure.ALL or (how is Pressure.BUSY and (stuck or silent)) or (how is Pressure.STUCK and silent):
            found.append(peer)
    return found
