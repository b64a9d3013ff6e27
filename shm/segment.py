"""Memory files: made, sealed, checked, mapped, emptied. No names in a file system, nothing to clean up after a kill.

An arena is two of them: `in` (the client writes, the farm maps it read-only) and `out` (the farm writes, the client
holds a descriptor that was opened read-only). Neither has a header: the router's table is the only truth about slots.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Callable
from functools import cache
from typing import Final

from shm.errors import SegmentRefused

# fcntl.h; Python names these only from 3.13 on.
F_ADD_SEALS: Final = 1033
F_GET_SEALS: Final = 1034
F_SEAL_SEAL: Final = 0x0001
F_SEAL_SHRINK: Final = 0x0002
F_SEAL_GROW: Final = 0x0004
SEALS: Final = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW

FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02

STEP_BYTES: Final = 1024 * 1024
"""What one loop turn may allocate: 0.35 ms a MiB was measured, and other requests wait meanwhile."""


def create(name: str) -> int:
    """An empty memory file, private to this uid. The caller owns the descriptor and allocates next.

    Memory files are born with mode 0777, by which a holder of a read-only descriptor could open it anew for
    writing; hence the fchmod.
    """
    try:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        raise SegmentRefused(
            f"no memory file could be made: {error.strerror}; check the limit on open files"
        ) from error
    os.fchmod(fd, 0o600)
    return fd


def allocate(fd: int, offset: int, payload_bytes: int) -> None:
    """Reserve real pages, so that a full memory limit is an error here and never a SIGBUS later.

    Raises:
        SegmentRefused: there is no memory. Pages that this call took are given back by the kernel.
    """
    while True:
        try:
            os.posix_fallocate(fd, offset, payload_bytes)
        except InterruptedError:
            continue
        except OSError as error:
            if error.errno == errno.EINTR:
                continue
            raise SegmentRefused(f"{payload_bytes} bytes of memory could not be had: {error.strerror}") from error
        return


def seal(fd: int) -> None:
    """From now on nobody can shrink, grow or seal it: what is mapped stays mapped."""
    fcntl.fcntl(fd, F_ADD_SEALS, SEALS)


def create_sealed(name: str, payload_bytes: int) -> int:
    """A memory file of a size, allocated and sealed, in one go."""
    fd = create(name)
    try:
        allocate(fd, 0, max(1, payload_bytes))
        seal(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def reopen_read_only(fd: int) -> int:
    """A second descriptor of the same file that cannot write, for the other side."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


def check(fd: int, payload_bytes: int) -> None:
    """Trust no descriptor that was handed over: it must be sealed and of the size that was named.

    Raises:
        SegmentRefused: it is not; mapping it could end in SIGBUS.
    """
    try:
        seals = fcntl.fcntl(fd, F_GET_SEALS)
    except OSError as error:
        raise SegmentRefused(f"a descriptor was handed over that is no memory file: {error.strerror}") from error
    if seals & SEALS != SEALS:
        raise SegmentRefused(f"a memory file was handed over that can still change size (seals {seals:#x})")
    size = os.fstat(fd).st_size
    if size < payload_bytes:
        raise SegmentRefused(f"a memory file of {size} bytes was handed over, {payload_bytes} were named")


def map_memory(fd: int, payload_bytes: int, *, writable: bool, populate: bool = False) -> mmap.mmap:
    """A shared mapping of the first `payload_bytes`. The descriptor stays the caller's.

    populate: fault all pages in now (13 ns a page when read later, against up to 9 us at first touch).
    """
    flags = mmap.MAP_SHARED | (mmap.MAP_POPULATE if populate else 0)
    prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    try:
        return mmap.mmap(fd, payload_bytes, flags=flags, prot=prot)
    except (OSError, ValueError) as error:
        raise SegmentRefused(f"{payload_bytes} bytes of a memory file could not be mapped: {error}") from error


def punch(fd: int, payload_bytes: int, offset: int = 0) -> None:
    """Give pages back to the system: who still holds the descriptor reads zeros there, and keeps no memory."""
    number = _fallocate()(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, payload_bytes)
    if number:
        raise OSError(number, os.strerror(number))


@cache
def _fallocate() -> Callable[[int, int, int, int], int]:
    """The call itself: os.posix_fallocate has no mode, and Python offers no other way in.

    Looked up once: each look-up makes a class, which is in a cycle with itself and waits for the collector: 1.2 KiB.
    """
    import ctypes

    call = ctypes.CDLL(None, use_errno=True).fallocate
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]

    def fallocate(fd: int, mode: int, offset: int, payload_bytes: int) -> int:
        return ctypes.get_errno() if call(fd, mode, offset, payload_bytes) else 0

    return fallocate
