"""Who dies next in a farm under load, what survivors may see of it, and what may be left of the dead."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import farm
from farm import control
from tests import models
from tests.crowd import Service, answers, write_script
from tests.farmprocess import Serving, gone, wait_until

LONG_MS, SHORT_MS = 8000.0, 25.0
LATE_MS = 500.0
"""How much later than its deadline a call may end: these services share two CPUs with a farm that is being killed, and
a thread that has got its answer may have to wait for one. Typical are 2 to 12 ms."""
MOMENT_S_MAX = 0.08
SETTLE_S = 20.0
USS_KIB_MAX = 12 * 1024
"""By how much a process's own memory may have grown. A client's arena has 8 MiB and there were 20 deaths, so that a
leak would pass it by far; what a run needs at first use does not."""

WAYS = ("threads", "asyncio", "submit")
QUICK = {"restart_delay_ms": 1, "restart_delay_ms_max": 20, "pin": False}

FITS_LONG = {"model/ok"}
FITS_SHORT = FITS_LONG | {
    "DeadlineExceeded/timeout",
    "DeadlineExceeded/no_worker",
    "DeadlineExceeded/expired_on_arrival",
    "Overloaded/predicted_late",
    "Overloaded/no_worker",
    "RunFailed/worker_died",
    "Unavailable/unavailable",
}


class Held(NamedTuple):
    """What one process of a farm holds. `memory_files`: descriptors of them, `mappings`: mapped parts of them."""

    open_fds: int
    memory_files: int
    mappings: int
    uss_kib: int

    @classmethod
    def by(cls, pid: int, uss_kib: int) -> Held:
        targets = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        files = sum(target.startswith("/memfd:") for target in targets)
        mapped = sum("/memfd:" in line for line in Path(f"/proc/{pid}/maps").read_text().splitlines())
        return cls(len(targets), files, mapped, uss_kib)


def levels(endpoint: str) -> dict[str, list[Held]] | None:
    """By role; None when a process ended while we looked."""
    found: dict[str, list[Held]] = {}
    try:
        for row in control.status(endpoint)["processes"]:
            found.setdefault(row["role"], []).append(Held.by(row["pid"], row["uss_kib"] or 0))
    except OSError:
        return None
    return found


Running = farm.Farm | Serving
"""Both have an endpoint and a status."""


class Siege:
    """A farm under load. Each method that kills returns when the next death may come."""

    def __init__(
        self,
        running: Running,
        nursery: Service,
        services: list[Service],
        empty: dict[str, list[Held]],
        chance: random.Random,
    ) -> None:
        self.running = running
        self.services = services
        self._nursery = nursery
        self._empty = empty
        self._random = chance

    def client(self) -> None:
        pid = self.born()
        self._moment()
        os.kill(pid, signal.SIGKILL)

    def worker(self) -> None:
        self._one("worker")

    def router(self) -> None:
        self._one("router")

    def together(self) -> None:
        """One of each, with nothing in between, or a little."""
        pids = [self.born(), self.pid_of("worker"), self.pid_of("router")]
        self._random.shuffle(pids)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            time.sleep(self._random.choice((0.0, 0.0, 0.001, 0.01)))
        wait_until(lambda: whole(self.running, without=pids), "the dead were replaced")

    def born(self) -> int:
        """A client that has had an answer."""
        self._nursery.say(self._random.choice(WAYS))
        return int(self._nursery.line()["pid"])

    def _moment(self) -> None:
        # Waits for nothing: at which moment death comes is what this is about.
        time.sleep(self._random.uniform(0.0, MOMENT_S_MAX))

    def pid_of(self, role: str) -> int:
        rows = [row for row in self.running.status()["processes"] if row["role"] == role]
        return int(self._random.choice(rows)["pid"])

    def _one(self, role: str) -> None:
        while True:
            pid = self.pid_of(role)
            self._moment()
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # the router had killed it first: a worker that did not stop in time
            break
        wait_until(lambda: whole(self.running, without=[pid]), f"the {role} was replaced")

    def go_on(self, fits_long: set[str] = FITS_LONG) -> None:
        """Everybody who lives is answered as before, and all that has ended has ended rightly."""
        for service in self.services:
            had = answers(service.told())
            wait_until(lambda service=service, had=had: answers(service.told()) > had + 20, "it goes on")
            judge(service.told(), fits_long)

    def wait_level(self, sessions: int) -> None:
        """Until nobody holds more than it must for so many clients."""
        end = time.monotonic() + SETTLE_S
        while why := self._above(sessions):
            assert time.monotonic() < end, why
            time.sleep(0.02)

    def _above(self, sessions: int) -> str:
        found = levels(self.running.endpoint)
        router = self.running.status()["router"]
        if found is None or router is None:
            return "it is not whole"
        if router["session_count"] != sessions:
            return f"{router['session_count']} sessions"
        if not sessions and (router["arena_mib"] or router["open_requests"]):
            return f"{router['arena_mib']} MiB of arenas, {router['open_requests']} open requests"
        # What one client costs. The router: its socket, its pidfd, two memory files, its connection on the ZeroMQ lane.
        # A worker: the two files and, while they are mapped, each mapping's own descriptor.
        for role, each in (("supervisor", (0, 0, 0)), ("router", (5, 2, 0)), ("worker", (4, 4, 2))):
            if len(found[role]) != len(self._empty[role]):
                return f"{len(found[role])} processes are {role}"
            most = [max(column) for column in zip(*self._empty[role], strict=True)]
            for one in found[role]:
                if any(have > m + e * sessions for have, m, e in zip(one, most, each, strict=False)):
                    return f"{role}: {one}, without clients {self._empty[role]}"
                if not sessions and one.uss_kib > most[-1] + USS_KIB_MAX:
                    return f"{role}: {one}, before {self._empty[role]}"
        return ""


def whole(running: Running, without: Sequence[int] = ()) -> bool:
    """Everybody who should be there is; of those who should not, supervisor and router have taken note."""
    status = running.status()
    router = status["router"]
    known = {row["pid"] for row in status["processes"]}
    return bool(
        gone(without)
        and not status["waiting"]
        and router is not None
        and known.union(worker["pid"] for worker in router["workers"]).isdisjoint(without)
        and [worker["state"] for worker in router["workers"]] == ["ready"] * sum(status["wanted"].values())
    )


def judge(
    told: dict[str, Any],
    fits_long: set[str] = FITS_LONG,
    fits_short: set[str] = FITS_SHORT,
    late_ms: float = LATE_MS,
) -> None:
    """Each call of a surviving service has ended rightly, none later than its deadline and `late_ms`."""
    assert not told["failed"] and not told["wrong"], told
    for end, count in told["ends"].items():
        deadline, how = end.split(" ")
        fits = fits_long if float(deadline) == LONG_MS else fits_short
        assert how in fits, f"{count} calls with a deadline of {deadline} ms ended {how}: {told}"
    assert told["late_ms_max"] < late_ms, told


@contextlib.contextmanager
def siege(
    folder: Path, crowd: list[tuple[str, str]], fits_long: set[str] = FITS_LONG, **options: Any
) -> Iterator[Siege]:
    """A farm of two workers, surviving services (lane, way), and a nursery of services that are to die.

    At the end the survivors let what is open end, and everything is to be back at its level.
    """
    seed = int(os.environ.get("KILL_SEED", "0")) or secrets.randbelow(1_000_000) + 1
    print(f"KILL_SEED={seed}")
    model = models.slow(folder / "chain.onnx", nodes=40, size=64)
    script = write_script(folder, model, [LONG_MS, SHORT_MS])
    with (
        farm.Farm({"chain": model}, workers=2, **QUICK, **options) as running,
        besiege(running, [(lane, way, script) for lane, way in crowd], random.Random(seed), fits_long) as besieged,
    ):
        yield besieged


@contextlib.contextmanager
def besiege(
    running: Running,
    crowd: Sequence[tuple[str, str, Path]],
    chance: random.Random,
    fits_long: set[str] = FITS_LONG,
    late_ms: float = LATE_MS,
    stalls: bool = False,
) -> Iterator[Siege]:
    """As `siege`, of a farm that is there; what each service of the crowd asks is its own script.

    `stalls`: a service may be later by as much as it was itself kept from a CPU, which is measured beside its calls.
    """
    with contextlib.ExitStack() as stack:
        wait_until(lambda: whole(running), "it is whole")
        empty = levels(running.endpoint)
        assert empty is not None
        services = [stack.enter_context(Service(running.endpoint, *each)) for each in crowd]
        lane, _, script = crowd[0]
        nursery = stack.enter_context(Service(running.endpoint, lane, "nursery", script))
        for service in services:
            wait_until(lambda service=service: answers(service.told()) > 20, "it has had answers")
        besieged = Siege(running, nursery, services, empty, chance)
        yield besieged
        for service in services:
            told = service.finish()
            print(service.way, told)
            judge(told, fits_long, late_ms=late_ms + (told["stalled_ms_max"] if stalls else 0.0))
            assert told["open"] == 0
            # Of a closed client nothing is left, however many routers it has outlived.
            assert (told["open_fds"], told["mappings"]) == (3, 0), told
        stack.close()
        besieged.wait_level(0)
