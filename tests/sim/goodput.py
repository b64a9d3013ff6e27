"""Goodput under overload, simulated: the real machine, an open loop that does not slow down, workers that batch.

`python -m tests.sim.goodput` prints the tables of docs/ADMISSION.md: every policy at 0.5 to 5 times capacity, with one
deadline and with two, and what clients of one priority get when one asks ten times as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random

from router import events as ev
from router.admission import Admission
from router.config import ModelConfig, RouterConfig
from router.machine import RouterMachine
from shm.client import Request
from shm.endings import Ending
from shm.layout import Signature, TensorSpec
from shm.worker import RAN, Copies, RunCost
from tests.sim.policies import POLICIES, Compared, Gradient

MS = 1_000_000
START_NS = 1_000_000 * MS
SIGNATURE = Signature((TensorSpec("x", 1, ("N", 4)),), (TensorSpec("y", 1, ("N",)),), True)
MAX_BATCH = 16
BASE_NS = 2 * MS
ROW_NS = MS // 8
"""A full batch takes 4 ms and one row 2.1: batching is worth a factor of eight, and long queues look cheap."""
WORKERS = 2
WAY_NS = 60_000
CAPACITY = WORKERS * MAX_BATCH / ((BASE_NS + ROW_NS * MAX_BATCH + 2 * WAY_NS) / 1e9)
"""Rows a second when every batch is full."""
SLOTS = 4096


@dataclass
class Client:
    """Open loop: it asks `rate` times a second, whatever comes back."""

    session: int
    rate: float
    deadlines_ms: Sequence[float]
    priority: int = 0
    asked: int = 0
    good: int = 0
    late: int = 0
    """Admitted, and then not answered by the model in time."""
    refused: int = 0
    """Told at arrival."""
    free: list[int] = field(default_factory=lambda: list(range(SLOTS)))
    open: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    """Request id to slot, deadline and arrival."""


class Overload:
    """One machine, its clients and workers. Counts begin after a tenth of the time."""

    def __init__(self, admission: type[Admission], clients: list[Client], seed: int, spread: float) -> None:
        config = RouterConfig(models=[ModelConfig(name="m", max_batch=MAX_BATCH, queue_requests=1024)])
        self.machine: RouterMachine = Compared(config, admission)
        self.rng = Random(seed)
        self.spread = spread
        self.clients = {client.session: client for client in clients}
        self.now_ns = START_NS
        self.busy: dict[int, int] = {}
        self._heap: list[tuple[int, int, ev.Event | int]] = []
        self._sequence = 0
        self._number = 0
        self._counting = False
        births: list[ev.Event] = [ev.ClientAttached(client.session, SLOTS, 64) for client in clients]
        for number in range(1, WORKERS + 1):
            costs = [RunCost(rows, BASE_NS + ROW_NS * rows) for rows in (1, MAX_BATCH)]
            births += [ev.WorkerBorn(number, 0), ev.WorkerReady(number, SIGNATURE, costs)]
        self._turn(births)

    def run(self, seconds: float) -> None:
        for client in self.clients.values():
            self._push(self.now_ns + self._gap_ns(client), client.session)
        count_ns = self.now_ns + int(seconds * 1e8)
        end_ns = self.now_ns + int(seconds * 1e9)
        while self.now_ns < end_ns:
            due_ns = self.machine.next_due_ns()
            if due_ns is not None and due_ns <= self._heap[0][0]:
                self.now_ns = max(due_ns, self.now_ns)
                self._turn([ev.TimePassed()])
                continue
            self.now_ns, _, what = heappop(self._heap)
            if isinstance(what, int):
                self._ask(self.clients[what])
            else:
                self._turn([what])
            if not self._counting and self.now_ns >= count_ns:
                self._counting = True
                for client in self.clients.values():
                    client.asked = client.good = client.late = client.refused = 0
        self.machine.check_invariants()

    def _gap_ns(self, client: Client) -> int:
        return int(self.rng.expovariate(client.rate) * 1e9)

    def _push(self, at_ns: int, what: ev.Event | int) -> None:
        self._sequence += 1
        heappush(self._heap, (at_ns, self._sequence, what))

    def _ask(self, client: Client) -> None:
        self._push(self.now_ns + self._gap_ns(client), client.session)
        client.asked += 1
        if not client.free:
            client.refused += 1
            return
        self._number += 1
        slot = client.free.pop()
        deadline_ns = self.now_ns + int(self.rng.choice(client.deadlines_ms) * MS)
        client.open[self._number] = (slot, deadline_ns, self.now_ns)
        request = Request(self._number, 0, deadline_ns, slot, 1, 1, client.priority)
        self._turn([ev.RequestsArrived(client.session, [request])])

    def _turn(self, events: list[ev.Event]) -> None:
        for action in self.machine.handle(events, self.now_ns):
            match action:
                case ev.Dispatch(worker, run, _, members):
                    begin_ns = max(self.now_ns + WAY_NS, self.busy.get(worker, 0))
                    took_ns = int((BASE_NS + ROW_NS * len(members)) * self.rng.lognormvariate(0, self.spread))
                    end_ns = self.busy[worker] = begin_ns + took_ns
                    self._push(end_ns + WAY_NS, ev.RunFinished(worker, run, RAN, begin_ns, end_ns, [], Copies()))
                case ev.SendReplies(session, replies):
                    for reply in replies:
                        self._hear(self.clients[session], reply.id, reply.ending, held=reply.held)
                case ev.SendRelease(session, ids):
                    for number in ids:
                        self.clients[session].free.append(self.clients[session].open.pop(number)[0])

    def _hear(self, client: Client, number: int, ending: int, *, held: bool) -> None:
        slot, deadline_ns, arrived_ns = client.open[number]
        if not held:
            del client.open[number]
            client.free.append(slot)
        if ending == Ending.MODEL:
            admission = self.machine._admission
            if isinstance(admission, Gradient):
                admission.answered(self.now_ns - arrived_ns)
        if ending == Ending.MODEL and self.now_ns <= deadline_ns:
            client.good += 1
        elif self.now_ns == arrived_ns:
            client.refused += 1
        else:
            client.late += 1


@dataclass(frozen=True)
class Measured:
    goodput: float
    """Answers by the model in time, as a share of what the workers can do."""
    late: float
    """Of those admitted, the share that did not get one."""


def measure(
    policy: str, load: float, deadlines_ms: Sequence[float], *, seconds: float = 3.0, seed: int = 1, spread: float = 0.1
) -> Measured:
    """One policy at `load` times capacity, four clients."""
    clients = [Client(session, load * CAPACITY / 4, deadlines_ms) for session in range(1, 5)]
    world = Overload(POLICIES[policy], clients, seed, spread)
    world.run(seconds)
    good, late = sum(c.good for c in clients), sum(c.late for c in clients)
    return Measured(good / (CAPACITY * seconds * 0.9), late / max(1, good + late))


def shares(admission: type[Admission], *, seconds: float = 3.0, seed: int = 1) -> list[float]:
    """What ten clients get at twice the capacity when the first asks ten times as often as each other: for each, its
    answers in time as a share of a tenth of the capacity."""
    rate = 2 * CAPACITY / 19
    clients = [Client(session, rate * (10 if session == 1 else 1), (40.0,)) for session in range(1, 11)]
    Overload(admission, clients, seed, 0.1).run(seconds)
    return [client.good / (CAPACITY * seconds * 0.9 / 10) for client in clients]


LOADS = (0.5, 1.0, 2.0, 3.0, 5.0)


def main() -> None:
    for deadlines_ms, spread in (((40.0,), 0.1), ((8.0, 60.0), 0.1), ((8.0, 60.0), 0.4)):
        told = " and ".join(f"{ms:g}" for ms in deadlines_ms)
        print(f"\nDeadlines of {told} ms, run times spread by {spread:g}\n")
        print("| policy | " + " | ".join(f"{load:g}x" for load in LOADS) + " |")
        print("| --- |" + " --- |" * len(LOADS))
        for policy in POLICIES:
            found = [measure(policy, load, deadlines_ms, spread=spread) for load in LOADS]
            print(f"| {policy} | " + " | ".join(f"{m.goodput:.2f} ({m.late:.0%} late)" for m in found) + " |")
    print("\nTen clients at twice the capacity, the first asks ten times as often: share of a tenth\n")
    print(" ".join(f"{share:.2f}" for share in shares(Admission)))


if __name__ == "__main__":
    main()
