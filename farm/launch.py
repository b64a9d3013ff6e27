"""Starts one child process: `python -P farm/launch.py router|worker|supervisor LEASH_FD`.

Run by path, so nothing of the product is importable yet. What must be true before the first real import is made true
here: the environment that ONNX Runtime and OpenBLAS read at import, an import path on which `farm`, `router`,
`workers` and `shm` are ours whatever else lies about, and a death that follows the parent's.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OURS = frozenset({"farm", "router", "workers", "shm"})
SERVICES = {"router": "router.service", "worker": "workers.service", "supervisor": "farm.supervisor.entry"}

PR_SET_PDEATHSIG = 1
"""sys/prctl.h. Tied to the parent's *thread*: the supervisor has one only; `farm.Farm`'s caller may have many, so a
supervisor that is somebody's child watches that process instead."""


class OurPackages:
    """Finds our four packages beside this one, before `sys.path` is looked at, and nothing else.

    Putting our directory first on `sys.path` was rejected: it is usually site-packages, and what lies there would then
    come before the standard library.
    """

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [ROOT]) if path is None and name in OURS else None


def main() -> int:
    role, leash_fd = sys.argv[1], int(sys.argv[2])
    # Its wheels start a telemetry thread with a database in the home directory; OpenBLAS a thread a CPU.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    sys.meta_path.insert(0, OurPackages)

    import signal
    import socket

    os.set_inheritable(leash_fd, False)
    leash = socket.socket(fileno=leash_fd)
    leash.setblocking(False)
    # A parent may have blocked signals in the thread that started us, and that is inherited.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    if role != "supervisor":
        # Ctrl-C at the terminal is the supervisor's business: it drains first.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        die_with_parent(leash)

    from importlib import import_module

    code: int = import_module(SERVICES[role]).main(leash)
    return code


def die_with_parent(leash: socket.socket) -> None:
    """SIGKILL for this process when its parent ends, also when that has happened already.

    The parent made the leash, so the kernel knows it as the leash's peer; asking for it by number would need a
    further argument and would say no more.
    """
    import ctypes
    import signal
    import socket
    import struct

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_PDEATHSIG was refused")
    parent, _, _ = struct.unpack("iII", leash.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if os.getppid() != parent:
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
