"""One child: how it is spawned on a leash, and the ways in which it can end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from typing import Literal

from farm import launch
from farm.supervisor.leash import Leash
from shm import seqpacket

LAUNCH = os.path.abspath(launch.__file__)
ROUTER = -1
"""Stands in the place of a worker's number where the router is meant."""


class Child:
    """A living child. `worker` is its number, or ROUTER; `pidfd` the supervisor's own, safe from reuse of the pid.

    Raises:
        OSError: no descriptor was left for the pidfd; the process has been ended then.
    """

    __slots__ = ("leash", "pid", "pidfd", "popen", "spawned_ns", "title", "worker")

    def __init__(self, popen: subprocess.Popen[bytes], leash: Leash, worker: int, title: str, spawned_ns: int) -> None:
        self.popen = popen
        self.pid = popen.pid
        try:
            # Not reaped yet, so the pid is certainly ours.
            self.pidfd = os.pidfd_open(popen.pid)
        except OSError:
            popen.kill()
            popen.wait()
            raise
        self.leash = leash
        self.worker = worker
        self.title = title
        self.spawned_ns = spawned_ns

    def kill(self, signum: int) -> None:
        try:
            signal.pidfd_send_signal(self.pidfd, signum)
        except ProcessLookupError:
            pass

    def reaped(self, status: int) -> int:
        """Its wait status has been collected; gives -n for signal n, else the exit status."""
        code = os.waitstatus_to_exitcode(status)
        self.popen.returncode = code
        return code

    def close(self) -> None:
        self.leash.close()
        os.close(self.pidfd)


def command(role: Literal["router", "worker", "supervisor"], leash_fd: int) -> list[str]:
    """-P: not even the directory of launch.py itself is put on the import path."""
    return [sys.executable, "-P", LAUNCH, role, str(leash_fd)]


def spawn(role: Literal["router", "worker"], theirs: socket.socket) -> subprocess.Popen[bytes]:
    """Start a child with its end of a leash, in a process group of its own: the terminal's signals are ours alone.

    Raises:
        OSError: no process can be had.
    """
    return subprocess.Popen(
        command(role, theirs.fileno()), pass_fds=(theirs.fileno(),), process_group=0, stdin=subprocess.DEVNULL
    )


def pair() -> tuple[Leash, socket.socket]:
    """Our end and the child's."""
    ours, theirs = seqpacket.pair()
    return Leash(ours), theirs


def ended_how(code: int) -> str:
    """`exit status 3`, `signal SIGKILL`."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
