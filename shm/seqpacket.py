"""Unix SEQPACKET sockets: borders kept, descriptors passed, the peer's identity from the kernel.

A short receive truncates silently, so every receive here checks MSG_TRUNC and MSG_CTRUNC. All sockets are
non-blocking unless a function says that it waits, and then it takes a limit.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import stat
import struct
import time
from collections.abc import Sequence
from typing import Final

from shm.errors import FrameRefused, PeerGone
from shm.limits import FRAME_BYTES_MAX

SO_PEERGROUPS: Final = 59
SO_PEERPIDFD: Final = 77
"""asm-generic/socket.h, Linux 4.13 and 6.5; Python has no names for them."""

_GROUPS_BYTES: Final = 1024
"""The most that Python asks the kernel for: 256 groups."""

PATH_BYTES_MAX: Final = 107
"""sockaddr_un.sun_path without its closing zero."""

_UCRED: Final = struct.Struct("iII")
_FD_BYTES: Final = array.array("i").itemsize
FDS_MAX: Final = 253
"""SCM_MAX_FD of the kernel."""

# Plain ints: a flag of an enum costs 0.5 us each time it is used.
_SEND_FLAGS: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_CLOEXEC: Final = int(socket.MSG_CMSG_CLOEXEC)
_TRUNCATED: Final = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
_spare: list[bytearray] = []


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends, non-blocking, closed on exec."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
        require_frame_room(end)
    return ends


def listen(path: str, mode: int, backlog: int = 128) -> socket.socket:
    """A listener at a path that nobody else uses: the caller holds the directory's lock.

    Raises:
        FrameRefused: the path is too long for a Unix socket, or the socket cannot hold a frame.
    """
    check_path(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        listener.bind(path)
        os.chmod(path, mode)
        listener.listen(backlog)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def connect(path: str) -> socket.socket:
    """A non-blocking connection. A Unix connect is done at once or refused at once.

    Raises:
        PeerGone: nobody listens there (or the backlog is full: come again).
    """
    check_path(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        sock.setblocking(False)
        sock.connect(path)
        require_frame_room(sock)
    except OSError as error:
        sock.close()
        raise PeerGone(f"nobody answers at {path}: {error.strerror}") from error
    except BaseException:
        sock.close()
        raise
    return sock


def check_path(path: str) -> None:
    size = len(os.fsencode(path))
    if size > PATH_BYTES_MAX:
        raise FrameRefused(
            f"the socket path {path} has {size} bytes, a Unix socket takes {PATH_BYTES_MAX}; "
            "choose a shorter runtime directory"
        )


def require_frame_room(sock: socket.socket) -> None:
    """The socket's send buffer must take the largest frame: the kernel refuses a larger message outright."""
    need = FRAME_BYTES_MAX + 4096
    have = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    if have < need:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, need)
        have = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        if have < need:
            raise FrameRefused(f"a socket buffer holds {have} bytes, {need} are needed; raise net.core.wmem_max")


def send(sock: socket.socket, frame: bytes, fds: Sequence[int] = ()) -> bool:
    """Send one frame. False when the peer's buffer is full, or too many descriptors are on their way: nothing was sent.

    Raises:
        PeerGone: the other end is closed.
    """
    try:
        if fds:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            sock.sendmsg([frame], ancillary, _SEND_FLAGS)
        else:
            sock.send(frame, _SEND_FLAGS)
    except BlockingIOError:
        return False
    except (BrokenPipeError, ConnectionError) as error:
        raise PeerGone(str(error)) from error
    except OSError as error:
        # The kernel counts descriptors on their way by user: others who do not read may have used them up.
        if error.errno != errno.ETOOMANYREFS:
            raise
        return False
    return True


def receive(sock: socket.socket, fds_max: int = 0) -> tuple[bytes, list[int]] | None:
    """One frame and the descriptors with it (now the caller's, closed on exec). None when nothing is there.

    Works on blocking sockets too, and then waits for as long as the socket's own timeout says.

    Raises:
        PeerGone: end of file.
        FrameRefused: the frame or its descriptors did not fit; descriptors that came are closed.
    """
    # A receive allocates what it may get, and 128 KiB cost 9 us each time; hence kept buffers, one a thread at work.
    try:
        buffer = _spare.pop()
    except IndexError:
        buffer = bytearray(FRAME_BYTES_MAX + 1)
    try:
        if not fds_max:
            size = sock.recv_into(buffer)
            if not size:
                raise PeerGone("end of file")
            if size > FRAME_BYTES_MAX:
                raise FrameRefused(f"a frame came that is larger than {FRAME_BYTES_MAX} bytes")
            return bytes(memoryview(buffer)[:size]), []
        size, ancillary, flags, _ = sock.recvmsg_into([buffer], socket.CMSG_SPACE(fds_max * _FD_BYTES), _CLOEXEC)
        frame = bytes(memoryview(buffer)[:size])
    except BlockingIOError:
        return None
    except ConnectionError as error:
        raise PeerGone(str(error)) from error
    finally:
        _spare.append(buffer)
    if not ancillary and 0 < size <= FRAME_BYTES_MAX and not flags & _TRUNCATED:
        return frame, []
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % _FD_BYTES])
    if flags & _TRUNCATED or len(frame) > FRAME_BYTES_MAX:
        close_all(fds)
        what = "list of descriptors" if flags & socket.MSG_CTRUNC else "frame"
        raise FrameRefused(f"a {what} came that is larger than its limit")
    if not frame:
        close_all(fds)
        raise PeerGone("end of file")
    return frame, list(fds)


def receive_within(sock: socket.socket, timeout_s: float, fds_max: int = 0) -> tuple[bytes, list[int]] | None:
    """Wait for one frame, at most so long; None when the time is up."""
    end = time.monotonic() + timeout_s
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    while True:
        got = receive(sock, fds_max)
        if got is not None:
            return got
        left = end - time.monotonic()
        if left <= 0:
            return None
        poller.poll(left * 1000)


def close_all(fds: Sequence[int] | array.array[int]) -> None:
    for fd in fds:
        os.close(fd)


def duplicate(fds: Sequence[int]) -> list[int]:
    """Descriptors of the same files, the caller's: all of them, or OSError and none."""
    copies: list[int] = []
    try:
        for fd in fds:
            copies.append(os.dup(fd))
    except OSError:
        close_all(copies)
        raise
    return copies


def peer_credentials(sock: socket.socket) -> tuple[int, int, int]:
    """(pid, uid, gid) of the peer when it connected. The pid is 0 across sibling pid namespaces: a label, no key."""
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid, gid


def peer_groups(sock: socket.socket) -> tuple[int, ...] | None:
    """The peer's supplementary groups when it connected; None when there are more than 256 or the kernel has no way."""
    try:
        packed = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, _GROUPS_BYTES)
    except OSError:
        return None
    return tuple(memoryview(packed).cast("I"))


def require_owner(sock: socket.socket, directory: str, *, named: bool) -> None:
    """Who listens must be this process's own user or root, or own the directory where it was named by the caller: what
    lies in a usual place may be another user's who was there first.

    Raises:
        PeerGone: it is somebody else's; nothing was sent.
    """
    _, uid, _ = peer_credentials(sock)
    if uid in (0, os.geteuid()):
        return
    try:
        found = os.lstat(directory)
    except OSError:
        found = None
    if named and found is not None and stat.S_ISDIR(found.st_mode) and found.st_uid == uid:
        return
    raise PeerGone(f"uid {uid} listens there, who is neither this user ({os.geteuid()}) nor the directory's owner")


def peer_pidfd(sock: socket.socket) -> int | None:
    """A descriptor that becomes readable when the peer's process has ended; None where the kernel has no way.

    The end of the attach socket alone comes late when the client has forked: the child keeps it open.
    """
    try:
        return sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError:
        pass
    pid = peer_credentials(sock)[0]
    if pid <= 0:
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None
