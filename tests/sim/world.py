"""A virtual world around the real RouterMachine: a clock, clients, workers, and every mishap that a seed calls for.

The world does what the router's service would do with each action, after delays of its own, and has `Truth` judge each
turn. Nothing here is real but the machine; a seed decides everything, so the same seed is the same history.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from math import inf
from random import Random
from typing import Any

import msgspec

from router import events as ev
from router.machine import RouterMachine
from shm.client import Reply
from shm.endings import Ending, Reason
from tests.sim.clients import SimClient
from tests.sim.invariants import Truth
from tests.sim.scenario import MS, START_NS, Scenario, draw
from tests.sim.trace import tell
from tests.sim.workers import SimWorker

AUDIT_EVERY = 50
"""Turns between two full audits of the machine's state, which take as long as ten turns."""
QUIET_NS = 60_000 * MS
"""How long after the last request everything must have ended: the longest deadline, then the longest hang, then the
longest burial, several times over."""

Trace = Callable[[str], None]


class World:
    """One seed's history. `run` raises AssertionError where a promise breaks."""

    def __init__(self, seed: int, trace: Trace | None = None) -> None:
        self.seed = seed
        self.rng = Random(seed * 7919 + 1)
        self.scenario: Scenario = draw(seed)
        self.trace = trace
        self.now_ns = START_NS
        self.epoch = 0
        self.event_count = 0
        self.turn_count = 0
        self.inbox: list[ev.Event] = []
        self.clients: dict[int, SimClient] = {}
        self.workers: dict[int, SimWorker] = {}
        self.poisonous: set[tuple[int, int]] = set()
        """(session, slot) of inputs that kill every worker that runs them."""
        self.quiet = False
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = 0
        self._sessions = 0
        self._late_ns = 0
        self._start_router()

    # Time

    def at(self, at_ns: int, call: Callable[..., None], *args: Any) -> None:
        self._sequence += 1
        heappush(self._heap, (at_ns, self._sequence, call, args))

    def after(self, delay_ns: int, call: Callable[..., None], *args: Any) -> None:
        self.at(self.now_ns + delay_ns, call, *args)

    def chance(self, fault: str) -> bool:
        share = self.scenario.faults[fault]
        return share > 0 and not self.quiet and self.rng.random() < share

    def deliver(self, event: ev.Event, epoch: int) -> None:
        """Something is readable for the router, if it is still the one that it was meant for."""
        if epoch == self.epoch:
            self.inbox.append(event)

    # The story

    def run(self, events: int) -> None:
        for model in self.scenario.workers:
            self.add_worker(model)
        for _ in range(self.scenario.clients):
            self.add_client()
        if self.scenario.router_life_ns:
            self.after(int(self.rng.expovariate(1.0) * self.scenario.router_life_ns), self.kill_router)
        while self.event_count < events and self._heap:
            self.step()
        self.rest()

    def rest(self) -> None:
        """No more requests and no more mishaps: then everything that was taken ends."""
        self.quiet = True
        for client in self.clients.values():
            client.asking = False
        if self.scenario.drain:
            self.inbox.append(ev.DrainStarted(self.rng.choice((0, 5 * MS, QUIET_NS // 2))))
            self.turn()
        end_ns = self.now_ns + QUIET_NS
        while self._next_ns() <= end_ns:
            self.step()
        self.check_rest()

    def check_rest(self) -> None:
        machine, counters = self.machine, self.machine.counters
        machine.check_invariants()
        self.truth.at_rest()
        assert machine.ledger.open_count == 0
        assert all(model.queue.count == 0 for model in machine.models)
        assert machine.next_due_ns() is None
        assert set(machine.ledger.sessions) == {c.session for c in self.clients.values() if c.alive}
        for client in self.clients.values():
            if client.alive:
                assert client.pool.free_count == client.pool.slot_count, "a client misses slots"
        endings = (
            counters.answers_model, counters.answers_rules, counters.answers_last_good, counters.answers_constant,
            counters.shed, counters.expired, counters.invalid, counters.failed, counters.cancelled,
        )  # fmt: skip
        assert counters.requests == self.truth.taken == sum(endings) + counters.orphaned
        # An answer and its client's end in one turn count as either.
        assert self.truth.endings + self.truth.orphaned == self.truth.taken
        assert sum(endings) >= self.truth.endings
        if self.scenario.drain:
            assert self.truth.drained

    def _next_ns(self) -> float:
        due_ns = self.machine.next_due_ns()
        return min(self._heap[0][0] if self._heap else inf, inf if due_ns is None else due_ns)

    def step(self) -> None:
        """To the next thing that happens, and the router's turn about it."""
        due_ns = self.machine.next_due_ns()
        if due_ns is not None:
            due_ns = max(due_ns, self.now_ns)
        self._late_ns = self._draw_lateness()
        if not self.inbox and self._heap and (due_ns is None or self._heap[0][0] <= due_ns):
            self._happen()
        elif not self.inbox and due_ns is not None:
            self.now_ns = due_ns
            self.inbox.append(ev.TimePassed())
        if self.inbox:
            # What becomes readable while the router is still busy comes in the same turn.
            turn_ns = self.now_ns + self._late_ns
            while self._heap and self._heap[0][0] <= turn_ns:
                self._happen()
            self.now_ns = max(self.now_ns, turn_ns)
            self.turn()

    def _happen(self) -> None:
        at_ns, _, call, args = heappop(self._heap)
        self.now_ns = max(self.now_ns, at_ns)
        call(*args)

    def _draw_lateness(self) -> int:
        scenario = self.scenario
        if not scenario.turn_late_ns:
            return 0
        if scenario.stall and self.rng.random() < scenario.stall:
            return self.rng.randint(100 * MS, 5000 * MS)
        return self.rng.randint(0, scenario.turn_late_ns)

    def turn(self) -> None:
        """One turn of the router, and what comes of it."""
        if not self.inbox:
            return
        events, self.inbox = self.inbox, []
        self.event_count += len(events)
        self.turn_count += 1
        if self.trace:
            self.trace(f"{(self.now_ns - START_NS) / MS:11.4f} ms")
            for event in events:
                self.trace(f"    <- {tell(event)}")
        self.truth.before(events, self.now_ns)
        actions = self.machine.handle(events, self.now_ns)
        if self.trace:
            for action in actions:
                self.trace(f"    -> {tell(action)}")
        self.truth.after(actions, self.now_ns, on_time=not self.scenario.turn_late_ns)
        due_ns = self.machine.next_due_ns()
        assert due_ns is None or due_ns > self.now_ns, "what is due was not done, so the timer fires again and again"
        if self.turn_count % AUDIT_EVERY == 0:
            self.machine.check_invariants()
            self._check_bounds()
        for action in actions:
            self._perform(action)

    def _check_bounds(self) -> None:
        for model in self.machine.models:
            in_hand = len(self.workers) * self.scenario.router.prefetch_runs * model.config.max_batch
            # What a dead worker had in hand comes back on top.
            assert model.queue.count <= model.config.queue_requests + in_hand
            assert model.queue.payload_bytes <= model.queue_bytes_max + in_hand * 64 * 256
            open_max = model.config.in_flight_max
            assert not open_max or self.machine.ledger.open_of[model.index] <= open_max
            if not model.max_delay_ns and model.queue.count:
                assert not self.truth.idle_worker(model.index), "requests wait and a worker has nothing to do"

    # What the service would do

    def _perform(self, action: ev.Action) -> None:
        match action:
            case ev.Dispatch(number):
                worker = self.workers[number]
                delay_ns = (
                    self.rng.randint(50 * MS, 500 * MS) if self.chance("late") else self.rng.randint(10_000, 60_000)
                )
                worker.in_ns = max(worker.in_ns + 1, self.now_ns + delay_ns)
                self.at(worker.in_ns, self._hand_over, action, number, self.epoch)
            case ev.SendReplies(session, replies):
                self._tell_client(session, SimClient.hear_replies, replies)
            case ev.AnswerInstead(session, _, _, reply, steps):
                self._tell_client(session, SimClient.hear_replies, [self._answer_instead(reply, steps)])
            case ev.SendRelease(session, ids):
                self._tell_client(session, SimClient.hear_release, ids)
            case ev.TerminateRun(number, run):
                # A watcher thread may have to wait for the interpreter; meanwhile the worker gets to the run by itself.
                self.after(self.rng.choice((30_000, 30_000, 10 * MS)), self.workers[number].terminate, run)
            case ev.KillWorker(number):
                worker = self.workers.get(number)
                if worker is not None:
                    worker.die()
            case ev.StopWorker(number):
                self.after(self.rng.randint(10_000, 60_000), self.workers[number].stop)

    def _hand_over(self, run: ev.Dispatch, number: int, epoch: int) -> None:
        worker = self.workers.get(number)
        if worker is not None and epoch == self.epoch:
            worker.receive(run)

    def _tell_client(self, session: int, hear: Callable[..., None], what: object) -> None:
        client = self.clients.get(session)
        if client is not None and client.alive:
            way_ns = self.rng.randint(20 * MS, 500 * MS) if client.slow else self.rng.randint(20_000, 100_000)
            client.heard_ns = max(client.heard_ns + 1, self.now_ns + way_ns)
            self.at(client.heard_ns, hear, client, session, what)

    def _answer_instead(self, reply: Reply, steps: Sequence[str]) -> Reply:
        luck = self.rng.random()
        if luck < 0.9:
            endings = {"rules": Ending.RULES, "last_good": Ending.LAST_GOOD, "constant": Ending.CONSTANT}
            reply = msgspec.structs.replace(reply, ending=endings[self.rng.choice(steps)])
        elif luck < 0.95:
            reply = msgspec.structs.replace(reply, reason=Reason.RULE_ERROR)
        else:
            reply = msgspec.structs.replace(reply, ending=Ending.SHED, reason=Reason.RULES_BUSY)
        self.machine.instead_ended(reply.ending, reply.reason)
        return reply

    # Births and deaths

    def next_session(self) -> int:
        self._sessions += 1
        return self._sessions

    def add_client(self) -> None:
        if not self.quiet:
            SimClient(self)

    def add_worker(self, model: int) -> None:
        """The supervisor has started one."""
        number = len(self.workers) + 1
        worker = self.workers[number] = SimWorker(self, number, model)
        worker.say(ev.WorkerBorn(number, model))
        # In the rhythm of the world, so that fast and slow ones see the same mishaps.
        self.after(self.rng.randint(0, 20 * self.scenario.frame_interval_ns), worker.load)
        if self.scenario.faults["retire"]:
            self.after(int(self.rng.expovariate(1.0) * 400 * self.scenario.frame_interval_ns), self.retire, worker)

    def retire(self, worker: SimWorker) -> None:
        if worker.alive and not self.quiet and worker.known_in == self.epoch:
            worker.say(ev.WorkerRetired(worker.number))

    def worker_buried(self, worker: SimWorker) -> None:
        """The kernel says so, and the supervisor replaces it."""
        if worker.known_in == self.epoch:
            self.deliver(ev.WorkerGone(worker.number), self.epoch)
        if not self.quiet:
            self.after(self.rng.randint(0, 50 * MS), self.add_worker, worker.model)

    def _start_router(self) -> None:
        self.epoch += 1
        self.machine = RouterMachine(self.scenario.router)
        self.truth = Truth(self.scenario)
        self.inbox.clear()

    def kill_router(self) -> None:
        """Every session ends, every living worker stops what it does and reports to the next router."""
        if self.quiet:
            return
        if self.trace:
            self.trace(f"{(self.now_ns - START_NS) / MS:11.4f} ms  the router dies")
        self._start_router()
        for worker in list(self.workers.values()):
            if worker.alive:
                worker.reset()
                worker.say(ev.WorkerBorn(worker.number, worker.model))
                if worker.loaded:
                    worker.greet()
        clients, self.clients = list(self.clients.values()), {}
        for client in clients:
            if client.alive:
                client.attach_anew()
        self.after(int(self.rng.expovariate(1.0) * self.scenario.router_life_ns), self.kill_router)


def run_seed(seed: int, events: int, trace: Trace | None = None) -> World:
    """One seed's history, from its start to rest. Returns the world at its end.

    Raises:
        AssertionError: a promise broke, or the machine did; the message begins with how to see it again.
    """
    world = World(seed, trace)
    try:
        world.run(events)
    except (AssertionError, LookupError, TypeError, ValueError, AttributeError) as error:
        where = f"make sim SEED={seed}  (turn {world.turn_count}, event {world.event_count})"
        raise AssertionError(f"{where}: {error!r}") from error
    return world
