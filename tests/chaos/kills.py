"""The kill loop: seeded deaths of a real farm's processes under real load, each judged before the next.

Deaths come in rounds, each with a farm and survivors of its own, so that memory too is compared with that of a farm
nobody has used. Supervisors die in rounds of their own: without one there is no farm, and calls may say so.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests import models
from tests.chaos.figures import Figures
from tests.chaos.victims import KINDS, SIGNALS, Hit, hit
from tests.crowd import Service, write_script
from tests.farmprocess import Serving, gone, wait_until
from tests.killing import LATE_MS, LONG_MS, SHORT_MS, WAYS, Siege, besiege, judge, whole

ROUND = 100
LEVEL_EVERY = 10
AGAIN_S = 30.0
ORPHANS_S_MAX = 1.0
"""How long a process may outlive its supervisor."""
MOMENT_S_MAX = 0.08
MIB = 1 << 20
SLOTS = 256

CONFIG = """\
[farm]
pin = false
restart_delay_ms = 1
restart_delay_ms_max = 20
[models.chain]
path = "chain.onnx"
workers = {workers}
"""


class Plan(NamedTuple):
    """What is wanted. `stops`: the part of hits that stop instead of killing. `arena_mib`: of each survivor's arena."""

    deaths: dict[str, int]
    seed: int
    stops: float = 0.2
    crashes: float = 0.2
    arena_mib: int = 8
    workers: int = 2
    late_ms: float = LATE_MS


class Death(NamedTuple):
    kind: str
    signum: int


def rounds(plan: Plan) -> list[list[Death]]:
    """Every death of a plan, in the order of its seed."""
    chance = random.Random(plan.seed)
    kill, stop, crash = SIGNALS
    weights = (1 - plan.stops - plan.crashes, plan.stops, plan.crashes)

    def some(kind: str) -> list[Death]:
        return [Death(kind, signum) for signum in chance.choices((kill, stop, crash), weights, k=plan.deaths[kind])]

    mixed = [death for kind in plan.deaths if kind != "supervisor" for death in some(kind)]
    chance.shuffle(mixed)
    alone = some("supervisor") if plan.deaths.get("supervisor") else []
    cut = [deaths[at : at + ROUND] for deaths in (mixed, alone) for at in range(0, len(deaths), ROUND)]
    chance.shuffle(cut)
    return cut


class Loop:
    """Goes through a plan. `figures` are right at any moment; a round in which something was wrong is given up."""

    def __init__(self, plan: Plan, command: Sequence[str]) -> None:
        self.plan = plan
        self.figures = Figures()
        self.done: Counter[str] = Counter()
        self._command = list(command)
        self._chance = random.Random(plan.seed + 1)

    def run(self) -> Iterator[int]:
        """Gives after each death how many there were."""
        for number, deaths in enumerate(rounds(self.plan)):
            try:
                yield from self._round(deaths)
            except AssertionError as error:
                last = f"round {number}, after {self.done.total()} deaths ({dict(self.done)})"
                self.figures.faults.append(f"seed {self.plan.seed}, {last}: {str(error)[:2000]}")

    def _round(self, deaths: list[Death]) -> Iterator[int]:
        fits_long = set().union(*(KINDS[death.kind].fits_long for death in deaths))
        with tempfile.TemporaryDirectory(prefix="c-") as name, contextlib.ExitStack() as stack:
            folder = Path(name)
            model = models.slow(folder / "chain.onnx", nodes=40, size=64)
            (folder / "farm.toml").write_text(CONFIG.format(workers=self.plan.workers))
            # Half of an arena is `in`, half `out`.
            slot_bytes = self.plan.arena_mib * MIB // (2 * SLOTS)
            script = write_script(
                folder, model, [LONG_MS, SHORT_MS], client={"slot_count": SLOTS, "slot_bytes": slot_bytes}
            )
            crowd = [(("direct", "zeromq")[turn % 2], way, script) for turn, way in enumerate(WAYS)]
            serving = self._serve(folder, stack)
            with besiege(serving, crowd, self._chance, fits_long, self.plan.late_ms, stalls=True) as siege:
                before = [service.told()["ends"] for service in siege.services]
                for number, death in enumerate(deaths, 1):
                    before = self.death(siege, death, folder, stack, before)
                    self.done[death.kind] += 1
                    yield self.done.total()
                    if number % LEVEL_EVERY == 0:
                        siege.wait_level(len(siege.services))
            stack.close()
            assert gone(serving.pids), "processes are left"

    def _serve(self, folder: Path, stack: contextlib.ExitStack) -> Serving:
        serving = Serving(self._command, folder / "run", "--config", str(folder / "farm.toml"))
        return stack.enter_context(serving).ready()

    def death(
        self, siege: Siege, death: Death, folder: Path, stack: contextlib.ExitStack | None, before: list[dict[str, int]]
    ) -> list[dict[str, int]]:
        """One hit, until everybody is as before; gives how survivors' calls have ended until now.

        `stack` owns the farm that a killed supervisor's place is taken by; None where none is hit.
        """
        kind = KINDS[death.kind]
        struck: Hit | None = None
        known: set[int] = set()
        while struck is None:
            pid = kind.pid(siege)
            if death.kind == "supervisor":
                known = {row["pid"] for row in siege.running.status()["processes"]}
            # Waits for nothing: at which moment death comes is what this is about.
            time.sleep(self._chance.uniform(0.0, MOMENT_S_MAX))
            struck = hit(kind, pid, death.signum, self._chance)
        what = f"{death.kind} {struck.how}"
        since_ns = struck.at_ns
        if death.kind == "supervisor" and struck.ends:
            wait_until(lambda: gone(known), "no process outlives its supervisor", ORPHANS_S_MAX)
            assert stack is not None
            # A router may answer until it knows that its supervisor is gone; this is about the next farm's answers.
            since_ns = time.monotonic_ns()
            self.figures.add(what, orphans=(since_ns - struck.at_ns) / 1e6)
            siege.running = self._serve(folder, stack)
        told = [self._again(service, since_ns) for service in siege.services]
        again_ms = [(one["again_ns"] - struck.at_ns) / 1e6 for one in told]
        wait_until(lambda: whole(siege.running, [struck.pid] if struck.ends else ()), f"it is whole after {what}")
        whole_ms = (time.monotonic_ns() - struck.at_ns) / 1e6
        told = [service.told(struck.at_ns) for service in siege.services]
        slowest_ms = max(one["slowest_ms"] for one in told)
        self.figures.add(what, first=min(again_ms), all=max(again_ms), whole=whole_ms, slowest=slowest_ms)
        for service, one, had in zip(siege.services, told, before, strict=True):
            ends = {end: count - had.get(end, 0) for end, count in one["ends"].items() if count > had.get(end, 0)}
            self.figures.ends[what].update(ends)
            self.figures.late_ms_max = max(self.figures.late_ms_max, one["late_ms_max"])
            self.figures.stalled_ms_max = max(self.figures.stalled_ms_max, one["stalled_ms_max"])
            bound_ms = self.plan.late_ms + one["stalled_ms_max"]
            judge({**one, "way": service.way, "ends": ends}, kind.fits_long, kind.fits_short, bound_ms)
        return [one["ends"] for one in told]

    def _again(self, service: Service, at_ns: int) -> dict[str, Any]:
        told: dict[str, Any] = {}

        def answered() -> bool:
            told.update(service.told(at_ns))
            return told["again_ns"] is not None

        wait_until(answered, f"{service.way} is answered again", AGAIN_S)
        return told
