"""Who can be hit, and by what. A new kind of process is one more entry of `KINDS`."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from typing import NamedTuple

from tests.farmprocess import alive, wait_until
from tests.killing import FITS_LONG, FITS_SHORT, Siege

SIGNALS = (signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV)
STOPPED_S = (0.01, 0.5)
FOREVER_EVERY = 10
"""One in so many stopped workers and routers is not continued: the farm has to notice and kill it."""
NOTICED_S = 20.0


class Kind(NamedTuple):
    """`pid`: chooses one. `fits_long`, `fits_short`: how survivors' calls may end meanwhile, by deadline.

    `noticed`: the farm kills one that stands still. `dies_stopped`: one that was stopped for a while is killed then,
    since it is no part of the farm and would be there for ever.
    """

    pid: Callable[[Siege], int]
    fits_long: set[str] = FITS_LONG
    fits_short: set[str] = FITS_SHORT
    noticed: bool = False
    dies_stopped: bool = False


def _of(role: str) -> Callable[[Siege], int]:
    return lambda siege: siege.pid_of(role)


NO_FARM = {"Unavailable/unavailable", "Overloaded/no_worker", "RunFailed/poison"}
"""While no supervisor is there, there is no farm, and callers are told so. A lease waits 2 s for its slots, whatever
deadline its request will have (`tests.asking`), and a next farm may listen by then and not have loaded its model. And
all workers die with their supervisor: a router that outlives them by a moment has seen two deaths around a request."""

KINDS = {
    "client": Kind(Siege.born, dies_stopped=True),
    "worker": Kind(_of("worker"), noticed=True),
    "router": Kind(_of("router"), noticed=True),
    "supervisor": Kind(_of("supervisor"), FITS_LONG | NO_FARM, FITS_SHORT | NO_FARM),
}


class Hit(NamedTuple):
    """What happened to whom. `ends`: whether the process ends of it."""

    pid: int
    at_ns: int
    how: str
    ends: bool


def hit(kind: Kind, pid: int, signum: int, chance: random.Random) -> Hit | None:
    """One process, by its pidfd, so that nobody else is hit. None when it was gone already."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    try:
        at_ns = time.monotonic_ns()
        signal.pidfd_send_signal(pidfd, signum)
        name = signal.Signals(signum).name
        if signum != signal.SIGSTOP:
            return Hit(pid, at_ns, name, True)
        if kind.noticed and chance.randrange(FOREVER_EVERY) == 0:
            wait_until(lambda: not alive(pid), "the farm has ended what stood still", NOTICED_S)
            return Hit(pid, at_ns, f"{name} for ever", True)
        # Waits for nothing: how long it stands still is what this is about.
        time.sleep(chance.uniform(*STOPPED_S))
        signal.pidfd_send_signal(pidfd, signal.SIGKILL if kind.dies_stopped else signal.SIGCONT)
        return Hit(pid, at_ns, name, kind.dies_stopped)
    except ProcessLookupError:
        return None
    finally:
        os.close(pidfd)
