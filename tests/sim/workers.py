"""Virtual workers: they run what they are sent, in order, and go wrong in every way that a process can.

A worker writes to its members' slots from the moment it is sent a run until it says that the run has ended, or until
its process is gone: that is what `Truth` is told, whatever the router believes.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from router import events as ev
from shm.endings import Reason
from shm.worker import RAN, SKIPPED, TERMINATED, Copies, MemberDone, RunCost
from tests.sim.scenario import MS

if TYPE_CHECKING:
    from tests.sim.world import World

_COPIES = Copies()


class SimWorker:
    def __init__(self, world: World, number: int, model: int) -> None:
        self.world = world
        self.number = number
        self.model = model
        self.inbox: deque[ev.Dispatch] = deque()
        self.current: ev.Dispatch | None = None
        self.told_to_stop: set[int] = set()
        self.loaded = False
        self.alive = True
        """Its code runs. A killed process is not alive, and not gone before the kernel has buried it."""
        self.gone = False
        self.stopping = False
        self.hanging = False
        self.in_ns = self.out_ns = 0
        """When the last message to it, and from it, is through: a socket keeps order."""
        self.life = 0
        self.known_in = world.epoch
        """The router that has heard of it."""

    # What it says

    def say(self, event: ev.Event) -> None:
        rng = self.world.rng
        self.out_ns = max(self.out_ns + 1, self.world.now_ns + rng.randint(10_000, 60_000))
        self.world.at(self.out_ns, self.world.deliver, event, self.world.epoch)

    def load(self) -> None:
        if not self.alive:
            return
        self.loaded = True
        self.greet()

    def greet(self) -> None:
        model = self.world.scenario.models[self.model]
        costs = [RunCost(rows, model.base_ns + model.row_ns * rows) for rows in (1, model.config.max_batch)]
        self.say(ev.WorkerReady(self.number, model.signature, costs))

    # What it is told

    def receive(self, run: ev.Dispatch) -> None:
        if not self.alive:
            return
        self.inbox.append(run)
        if self.current is None:
            self.begin()

    def terminate(self, run: int) -> None:
        if not self.alive:
            return
        if self.world.chance("deaf"):
            return
        self.told_to_stop.add(run)
        current = self.current
        if current is not None and current.run == run:
            self.hanging = False
            self.life += 1
            delay = self.world.rng.randint(MS // 2, 4 * MS)
            self.world.after(delay, self.end, current, TERMINATED, self.world.now_ns, self.life)

    def stop(self) -> None:
        self.stopping = True
        if self.alive and self.current is None and not self.inbox:
            self.die()

    def reset(self) -> None:
        """The router is gone: stop, drop every mapping, report to the next one."""
        self.in_ns = 0
        self.life += 1
        self.known_in = self.world.epoch
        self.inbox.clear()
        self.told_to_stop.clear()
        self.current = None
        self.hanging = False

    # What it does

    def begin(self) -> None:
        world = self.world
        if not self.alive or self.current is not None or not self.inbox:
            return
        run = self.current = self.inbox.popleft()
        self.life += 1
        now = world.now_ns
        if run.run in self.told_to_stop:
            self.end(run, TERMINATED, now, self.life)
        elif now > run.not_after_ns:
            self.end(run, SKIPPED, now, self.life)
        elif world.chance("hang"):
            self.hanging = True
        else:
            took = self.draw_run_ns(run)
            deadly = any((member.session, member.slot) in world.poisonous for member in run.members)
            if deadly or world.chance("die_in_run"):
                world.after(world.rng.randint(0, took), self.die_in, self.life)
            world.after(took, self.end, run, RAN, now, self.life)

    def draw_run_ns(self, run: ev.Dispatch) -> int:
        model, rng = self.world.scenario.models[self.model], self.world.rng
        rows = sum(member.rows or 1 for member in run.members)
        took = (model.base_ns + model.row_ns * rows) * rng.lognormvariate(0.0, 0.25)
        if self.world.chance("outlier"):
            took *= rng.choice((3, 30))
        return int(took)

    def die_in(self, life: int) -> None:
        if life == self.life and self.alive:
            self.die()

    def end(self, run: ev.Dispatch, status: int, started_ns: int, life: int) -> None:
        world = self.world
        if life != self.life or not self.alive or self.current is not run:
            return
        self.current = None
        self.told_to_stop.discard(run.run)
        world.truth.writing_ended(run.run)
        members: list[MemberDone] = []
        if status == RAN:
            members = [self.draw_member() for _ in run.members]
            if all(not member.reason and not member.overflow_bytes for member in members):
                members = []
        number = run.run
        if world.chance("nonsense"):
            number += 1_000_000
        elif status == RAN and world.chance("nonsense"):
            members = [MemberDone()] * (len(run.members) + 1)
        self.say(ev.RunFinished(self.number, number, status, started_ns, world.now_ns, members, _COPIES))
        if (self.stopping and not self.inbox) or world.chance("die_idle"):
            self.die()
        else:
            self.begin()

    def draw_member(self) -> MemberDone:
        if self.world.chance("member_fails"):
            reason = self.world.rng.choice((Reason.MODEL_ERROR, Reason.GUARD, Reason.STRING, Reason.OUTPUT_TOO_LARGE))
            return MemberDone(reason, message="so it goes")
        if self.world.chance("overflow"):
            return MemberDone(overflow_bytes=100_000)
        return MemberDone()

    # Its end

    def die(self) -> None:
        """It executes nothing more. Its socket ends soon, its process a while later; between them it may write on."""
        if not self.alive:
            return
        self.alive = False
        self.life += 1
        world, rng = self.world, self.world.rng
        if rng.random() < 0.8:
            self.say(ev.WorkerLost(self.number))
        linger = rng.choice((0, 100_000, 20 * MS, 2000 * MS))
        self.out_ns = max(self.out_ns, world.now_ns) + linger + 1
        world.at(self.out_ns, self.bury)

    def bury(self) -> None:
        self.gone = True
        self.world.truth.worker_gone(self.number)
        self.world.worker_buried(self)
