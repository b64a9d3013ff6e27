"""The public lane: a ZeroMQ ROUTER on an ipc path, one DEALER a client session.

A peer is nobody until its first frame shows the token that attach gave (`Hello`); identities that peers choose for
themselves are refused, since one could be another session's. ZAP is set and fails closed: without it libzmq accepts
peers of old protocol versions, which carry no credentials.

The FD of a ZeroMQ socket is edge-triggered: it is drained until empty or the limit, and looked at again after sending.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator

import zmq
import zmq.backend

from router.counters import Counters
from router.gate import Gate
from router.lanes.peers import Peer
from router.lanes.watch import Watch
from shm.client import Hello, request_codec
from shm.errors import FrameRefused
from shm.limits import FRAME_BYTES_MAX

REPLIES_QUEUED_MAX = 10_000
"""Frames a client may leave unread before its session is cut: at 50,000 requests a second in lists of ten, 2 s."""
PARTS_A_CALL = 64
"""Parts of one message that are dropped at a time. A right message has one; whose has more than this is cut."""
ZAP_ENDPOINT = "inproc://zeromq.zap.01"

# Plain ints, and the calls of pyzmq's compiled class: the enums and the Python layer over it cost a turn 20 us.
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)
_DONTWAIT = int(zmq.DONTWAIT)
_MORE = int(zmq.DONTWAIT | zmq.SNDMORE)
_RCVMORE = int(zmq.RCVMORE)


class ZeroMqLane:
    name = "zeromq"

    def __init__(
        self,
        path: str,
        mode: int,
        epoch: int,
        loop: asyncio.AbstractEventLoop,
        gate: Gate,
        counters: Counters,
        allowed: Callable[[int, int], bool],
        bound_bytes: int,
        cut: Callable[[int, str], None],
        accounted: Callable[[], int],
    ) -> None:
        """`allowed(uid, gid)`: whether a peer of that user may speak here at all. The caller holds the directory.
        `cut(session, why)` ends a session whose connection was cut, `bound_bytes` is what peers
        may take beside what `accounted()` says that the router keeps."""
        self.path = path
        self.on_readable: Callable[[], None] = lambda: None
        self._epoch = epoch
        self._loop = loop
        self._gate = gate
        self._counters = counters
        self._allowed = allowed
        self._session_of: dict[bytes, int] = {}
        self._peer_of: dict[int, bytes] = {}
        self._tokens: dict[bytes, int] = {}
        self._again = False
        self._drained = True
        self._surplus = False
        self._context = zmq.Context()
        self._zap = self._context.socket(zmq.REP)
        self._zap.bind(ZAP_ENDPOINT)
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.MAXMSGSIZE, 4 * FRAME_BYTES_MAX)
        self._socket.setsockopt(zmq.SNDHWM, REPLIES_QUEUED_MAX)
        self._socket.setsockopt(zmq.RCVHWM, 1000)
        self._socket.setsockopt(zmq.HANDSHAKE_IVL, 500)
        self._socket.setsockopt(zmq.BACKLOG, 1024)
        self._socket.setsockopt_string(zmq.ZAP_DOMAIN, "shmfarm")
        self._watch = Watch(self._socket, path, bound_bytes, loop, counters, cut, accounted)
        self._socket.bind(f"ipc://{path}")
        os.chmod(path, mode)
        compiled = zmq.backend.Socket
        self._get = compiled.get.__get__(self._socket)
        self._receive_part = compiled.recv.__get__(self._socket)
        self._send_part = compiled.send.__get__(self._socket)
        self._fds = [int(socket.getsockopt(zmq.FD)) for socket in (self._socket, self._zap)]
        gate.add(self._fds[0], self._readable)
        loop.add_reader(self._fds[1], self._answer_zap)
        # What came before the readers were there has used up its edge.
        loop.call_soon(self._answer_zap)

    def _readable(self) -> None:
        self.on_readable()

    def receive(self, frames_max: int) -> Iterator[tuple[int, bytes]]:
        """What came from peers with a session. Who takes no more leaves the rest for `look_again`."""
        get, receive = self._get, self._receive_part
        sessions = self._session_of
        self._drained = False
        # Asking first is cheaper than the exception at the end.
        for _ in range(frames_max):
            if not get(_EVENTS) & _POLLIN:
                self._drained = True
                return
            if self._surplus:
                self._drop_parts()
                continue
            peer = receive(_DONTWAIT)
            session = sessions.get(peer)
            if session is None:
                self._meet(peer)
                continue
            frame = receive(_DONTWAIT)
            if get(_RCVMORE):
                self._counters.frames_unknown += 1
                self._drop_parts(self._watch.peers.of_session(session))
                continue
            if self._watch.heard is not None:
                self._watch.heard.add(session)
            yield session, frame

    @property
    def has_more(self) -> bool:
        """Whether something may be there without an edge: who has no peers and was drained need not look again."""
        return bool(self._session_of) or not self._drained

    def look_again(self) -> None:
        """After sends, or a drain that stopped at its limit: frames may be there without a new edge."""
        if not self._again and self._get(_EVENTS) & _POLLIN:
            self._again = True
            self._loop.call_soon(self._run_again)

    def _run_again(self) -> None:
        if self._socket.closed:
            return
        self._again = False
        self.on_readable()
        self._gate.turn()

    def _drop_parts(self, peer: Peer | None = None) -> None:
        """Of a message in more parts than one, a bounded number a call; the next call goes on. Who made it long is cut:
        libzmq keeps all of a message, however many parts it has."""
        for _ in range(PARTS_A_CALL):
            if not self._get(_RCVMORE):
                self._surplus = False
                return
            self._receive_part(_DONTWAIT)
        if peer is not None:
            self._watch.cut(peer, f"a message of more than {PARTS_A_CALL} parts")
        self._surplus = True

    def _meet(self, peer: bytes) -> None:
        """The first frame of a peer binds it to its session, or is dropped and counted."""
        frame = self._socket.recv(_DONTWAIT, copy=False)
        # Deprecated for TCP's sake and undocumented, but the only word on which connection this came by.
        fd = int(frame.get(zmq.SRCFD))
        if not self._get(_RCVMORE) and peer[:1] == b"\x00" and len(frame) <= 64:
            try:
                hello = request_codec.decode(frame.bytes)
            except FrameRefused:
                hello = None
            if isinstance(hello, Hello) and hello.epoch == self._epoch:
                session = self._tokens.pop(hello.token, None)
                if session is not None:
                    self._session_of[peer] = session
                    self._peer_of[session] = peer
                    self._watch.greeted(fd, session)
                    return
        self._counters.frames_unknown += 1
        self._watch.stranger_spoke(fd)
        self._drop_parts(self._watch.peers.of_fd(fd))

    def send(self, session: int, frame: bytes) -> bool:
        peer = self._peer_of.get(session)
        if peer is None:
            return False
        try:
            self._send_part(peer, _MORE)
            self._send_part(frame, _DONTWAIT)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                return False
            raise
        return True

    def admit(self, session: int, token: bytes) -> None:
        self._tokens[token] = session

    def end(self, session: int) -> None:
        peer = self._peer_of.pop(session, None)
        if peer is not None:
            del self._session_of[peer]
            self._watch.ended(session)
        else:
            self._tokens = {token: other for token, other in self._tokens.items() if other != session}

    def _answer_zap(self) -> None:
        """RFC 27: version, request id, domain, address, identity, mechanism. The address of an ipc peer is the
        kernel's word: `localhost:uid:gid:pid`."""
        while True:
            try:
                request = self._zap.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            granted = len(request) >= 6 and request[0] == b"1.0" and self._is_allowed(request[3])
            status = (b"200", b"OK") if granted else (b"400", b"not allowed")
            number = request[1] if len(request) > 1 else b""
            self._zap.send_multipart([b"1.0", number, *status, b"", b""], zmq.DONTWAIT)

    def _is_allowed(self, address: bytes) -> bool:
        try:
            uid, gid, _ = (int(part) for part in address.decode().rsplit(":", 3)[1:])
        except (ValueError, UnicodeDecodeError):
            return False
        return self._allowed(uid, gid)

    def close(self) -> None:
        self._gate.remove(self._fds[0])
        self._loop.remove_reader(self._fds[1])
        self._watch.close()
        for socket in (self._socket, self._zap):
            socket.close(0)
        self._context.term()
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass
