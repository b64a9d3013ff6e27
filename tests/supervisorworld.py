"""A supervisor's machine with a clock of its own, for tests: its orders are followed, and checked after each event."""

from __future__ import annotations

import signal

from farm.cpus import CpuPool
from farm.supervisor import events as ev
from farm.supervisor.machine import Machine
from farm.supervisor.seats import ModelPlan, Phase, Plan, SeatState

MS = 1_000_000
S = 1000 * MS
TERM, KILL = int(signal.SIGTERM), int(signal.SIGKILL)


class World:
    """A machine with its clock; keeps what it ordered, and what lives because of that."""

    def __init__(self, workers=(2,), cpus=8):
        models = tuple(ModelPlan(f"m{n}", 1, f"/m{n}.onnx", count, 1, 1000.0) for n, count in enumerate(workers))
        plan = Plan(models, 60 * S, 2 * S, 5 * S, 2 * S, S // 10, 30 * S, 60 * S)
        self.now = 1000 * S
        self.router = False
        self.prepared = 0
        self.workers: dict[int, int] = {}
        self.introduced: dict[int, int] = {}
        self.ends: list[ev.End] = []
        self.machine = Machine(plan, CpuPool(range(cpus), None, [1] * sum(workers), pin=True), epoch=5)
        self.last = self._follow(self.machine.start(self.now))

    def do(self, event, after=0):
        self.now += after
        self.last = self._follow(self.machine.handle(event, self.now))
        return self.last

    def passes(self, duration):
        """Time passes; the machine is woken whenever it asked to be."""
        end = self.now + duration
        orders = []
        for _ in range(10_000):
            due = self.machine.due_ns()
            if due is None or due > end:
                break
            self.now = max(self.now, due)
            orders += self.do(ev.TimePassed())
        else:
            raise AssertionError("the machine asks to be woken again and again")
        self.now = end
        return orders

    def beats(self, duration):
        """Time passes with a router that beats."""
        orders = []
        for _ in range(duration // (250 * MS)):
            self.do(ev.BeatCame())
            orders += self.passes(250 * MS)
        return orders

    def up(self):
        self.do(ev.RouterListened(self.machine.router.epoch))
        for worker in list(self.workers):
            self.do(ev.WorkerReported(worker))
        return self

    def router_dies(self, how="signal SIGKILL", status=-9):
        self.router = False
        return self.do(ev.RouterDied(status, how))

    def worker_dies(self, worker, how="signal SIGSEGV"):
        del self.workers[worker]
        return self.do(ev.WorkerDied(worker, how))

    def dies_as_told(self, orders):
        """Whoever was sent a signal ends by it."""
        for order in orders:
            if isinstance(order, ev.SignalWorker) and order.worker in self.workers:
                self.worker_dies(order.worker)
            elif isinstance(order, ev.SignalRouter) and self.router:
                self.router_dies()

    def _follow(self, orders):
        for order in orders:
            match order:
                case ev.PrepareRouter(epoch):
                    assert epoch > self.prepared
                    assert not self.router
                    self.prepared = epoch
                case ev.SpawnRouter(epoch):
                    assert not self.router
                    assert epoch == self.prepared
                    self.router = True
                case ev.SpawnWorker(worker, model, _, epoch):
                    assert worker not in self.introduced, "a worker's number was used twice"
                    assert epoch == self.prepared
                    self.workers[worker] = model
                    self.introduced[worker] = epoch
                case ev.IntroduceWorker(worker, _, _, epoch):
                    assert worker in self.workers
                    assert epoch == self.prepared > self.introduced[worker]
                    self.introduced[worker] = epoch
                case ev.SignalRouter():
                    assert self.router
                case ev.SignalWorker(worker, _) | ev.RetireWorker(worker):
                    assert worker in self.workers
                case ev.End():
                    self.ends.append(order)
        self.check_invariants()
        return orders

    def check_invariants(self):
        machine = self.machine
        assert machine.router.alive == self.router or machine.phase is Phase.ENDED
        filled = {seat.worker for seat in machine.staff.seats if seat.worker is not None}
        assert filled == set(self.workers) or machine.phase is Phase.ENDED
        for seat in machine.staff.seats:
            assert seat.alive == (seat.state is not SeatState.EMPTY)
        pinned = [cpu for seat in machine.staff.seats for cpu in seat.cpus]
        assert len(pinned) == len(set(pinned)), "two workers hold a CPU"
        assert len(self.ends) <= 1


def kinds(orders, *wanted):
    return [order for order in orders if isinstance(order, wanted)]
