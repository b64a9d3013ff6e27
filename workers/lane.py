"""The run socket of one router: usual runs are received, run and answered in one flat path, all else is passed on.

A usual run is one request in row form or of fixed shapes, in slots that a run was prepared on before. Where processes
take turns on a CPU, caches and branch predictors are cold at each turn, and the time a run takes is the amount of code
that is passed: hence one function, and in it no call, no layer and no system call that is not needed. What does not go
as usual goes to `Runner.run`, which comes to the same end by a longer way.

The socket blocks, so that to wait and to receive are one call: to receive in vain, poll and receive costs 3 us more
on a cold CPU. Who wants the main thread back shuts the socket down for reading (`workers.watch`).
"""

from __future__ import annotations

import array
import select
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any, Final

from shm import seqpacket
from shm.errors import FrameRefused, PeerGone
from shm.limits import FRAME_BYTES_MAX, MEMBERS_MAX
from shm.worker import RAN, ArenasClosed, Done, Inspect, MemberDone, Run, Stop, done_codec, run_codec
from workers.arenas import Arenas
from workers.runner import Runner
from workers.session import ORT_ERRORS, Bound, Session

FDS_MAX: Final = 2 * MEMBERS_MAX
"""Two with each arena that a run opens."""

RECEIVE_WAIT_S: Final = 10
"""A receive ends after so long with nothing and is done again."""

SEND_WAIT_MS: Final = 1_000

# Plain ints: to combine flags of an enum costs 1 us each time, 2 on a cold CPU.
_RECEIVE_FLAGS: Final = int(socket.MSG_CMSG_CLOEXEC)
_SEND_FLAGS: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_TRUNCATED: Final = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
_FD_BYTES: Final = array.array("i").itemsize
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(FDS_MAX * _FD_BYTES)

_NO_FDS: Final[list[int]] = []
_NO_ENDS: Final[list[MemberDone]] = []


class Lane:
    """The socket stays the caller's, and blocks from here on."""

    def __init__(self, sock: socket.socket, session: Session, arenas: Arenas, runner: Runner) -> None:
        sock.setblocking(True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", RECEIVE_WAIT_S, 0))
        self._sock = sock
        self._session = session
        self._arenas = arenas
        self._runner = runner
        # One that stays: to make one of the largest frame for each receive costs 2 us.
        self._buffer = bytearray(FRAME_BYTES_MAX)

    def next(self) -> tuple[Run | ArenasClosed | Stop | Inspect, list[int], bool]:
        """Answer usual runs until something else comes: that, the caller's descriptors with it, and whether it is a
        run that has just failed with bound outputs.

        Raises:
            PeerGone: end of file.
            FrameRefused: a frame or its descriptors did not fit, or it cannot be read.
        """
        receive = self._sock.recvmsg_into
        send = self._sock.send
        buffers = [self._buffer]
        view = memoryview(self._buffer)
        decode = run_codec.decode
        encode = done_codec.encode
        clock_ns = time.monotonic_ns
        session = self._session
        run_binding = session.run_binding
        options = session.options
        # Only the runner finds out that outputs cannot be bound, so this holds for as long as we are in here.
        mapped = self._arenas.mapped if session.outputs_bound else {}
        current = self._runner.current
        copies = self._runner.in_place_copies
        guarded = self._runner.guarded if self._runner.guard is not None else None
        run_count = 0
        last: tuple[Run, Bound] | None = None
        try:
            while True:
                try:
                    size, ancillary, flags, _ = receive(buffers, _ANCILLARY_BYTES, _RECEIVE_FLAGS)
                except BlockingIOError:
                    continue
                fds = _NO_FDS
                if ancillary or not size or flags & _TRUNCATED:
                    fds = _descriptors(size, ancillary, flags)
                message = decode(view[:size])
                if type(message) is not Run or fds or message.opened or message.private or len(message.members) != 1:
                    return message, fds, False
                member = message.members[0]
                try:
                    bound = mapped[member.session].bound[member.slot << 32 | member.rows]
                except KeyError:
                    return message, fds, False
                started_ns = clock_ns()
                if (
                    member.tensors is not None
                    or member.slot_count < bound.slot_count
                    or started_ns > message.not_after_ns
                ):
                    return message, fds, False
                # Current.begin and Current.end without the calls.
                current.run = message.run
                if current.word:
                    return message, fds, False
                try:
                    run_binding(bound.binding, options)
                except ORT_ERRORS:
                    # `current` goes on naming this run, so a Terminate that has ended it is not lost.
                    return message, fds, True
                current.run = None
                if current.word:
                    current.settle()
                run_count += 1
                last = (message, bound)
                ends = _NO_ENDS if guarded is None else guarded(bound)
                frame = encode(Done(message.run, RAN, started_ns, clock_ns(), ends, copies))
                try:
                    send(frame, _SEND_FLAGS)
                except BlockingIOError:
                    self.send(frame)
        except ConnectionError as error:
            raise PeerGone(str(error)) from error
        finally:
            if last is not None:
                self._runner.note(run_count, *last)

    def send(self, frame: bytes, fds: Sequence[int] = ()) -> None:
        """Send; wait for a router that is slow to read, for as long as it lives. Raises PeerGone."""
        while not seqpacket.send(self._sock, frame, fds):
            poller = select.poll()
            poller.register(self._sock, select.POLLOUT)
            poller.poll(SEND_WAIT_MS)


def _descriptors(size: int, ancillary: Any, flags: int) -> list[int]:
    """What came with a frame of this size.

    Raises:
        PeerGone: end of file.
        FrameRefused: frame or descriptors did not fit; those that came are closed.
    """
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % _FD_BYTES])
    if flags & _TRUNCATED:
        seqpacket.close_all(fds)
        raise FrameRefused("a frame or its descriptors came that are larger than the limit")
    if not size:
        seqpacket.close_all(fds)
        raise PeerGone("end of file")
    return list(fds)
