"""Frames of the run socket, received into one buffer that stays.

`shm.seqpacket.receive` makes a buffer of the largest frame for each receive that may bring descriptors: 3.6 us a
frame, 1.3 this way. A frame is valid until the next receive.
"""

from __future__ import annotations

import array
import socket
from typing import Final

from shm import seqpacket
from shm.errors import FrameRefused, PeerGone
from shm.limits import FRAME_BYTES_MAX, MEMBERS_MAX

FDS_MAX: Final = 2 * MEMBERS_MAX
"""Two with each arena that a run opens."""

_NO_FDS: Final[list[int]] = []


class Inbox:
    """Receives from a non-blocking SEQPACKET socket, which stays the caller's."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray(FRAME_BYTES_MAX)
        self._view = memoryview(self._buffer)
        self._ancillary_bytes = socket.CMSG_SPACE(FDS_MAX * array.array("i").itemsize)

    def receive(self) -> tuple[memoryview, list[int]] | None:
        """One frame and the caller's descriptors with it; None when nothing is there.

        Raises:
            PeerGone: end of file.
            FrameRefused: frame or descriptors did not fit; those that came are closed.
        """
        try:
            size, ancillary, flags, _ = self._sock.recvmsg_into(
                [self._buffer], self._ancillary_bytes, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        except ConnectionError as error:
            raise PeerGone(str(error)) from error
        if size and not ancillary and not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            return self._view[:size], _NO_FDS
        fds = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            seqpacket.close_all(fds)
            raise FrameRefused("a frame or its descriptors came that are larger than the limit")
        if not size:
            seqpacket.close_all(fds)
            raise PeerGone("end of file")
        return self._view[:size], list(fds)
