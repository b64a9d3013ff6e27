"""Small parts for tests of the router: signatures, requests, and a machine with a clock of its own."""

from __future__ import annotations

from typing import Any

from router import events as ev
from router.config import ModelConfig, RouterConfig, RuleConfig, RulesConfig
from router.costs import WAY_NS
from router.ledger import Entry, Session
from router.machine import RouterMachine
from shm.client import Reply, Request
from shm.layout import Signature, TensorSpec
from shm.worker import RAN, Copies, MemberDone, RunCost

MS = 1_000_000
NOW = 1_000_000 * MS

ROWS = Signature((TensorSpec("x", 1, ("N", 4)),), (TensorSpec("y", 1, ("N",)),), True)
SINGLE = Signature(ROWS.inputs, ROWS.outputs, False)
FREE = Signature((TensorSpec("x", 1, ("N", "M")),), (TensorSpec("y", 1, ("N",)),), True)
FIXED = Signature((TensorSpec("x", 1, (3, 4)),), (TensorSpec("y", 1, (3,)),), False)

ALWAYS = RulesConfig(rules=[RuleConfig(name="always", answer={"y": 0.0})])


def request(
    number: int = 1, *, slot: int | None = None, in_ms: float = 100.0, now: int = NOW, **fields: Any
) -> Request:
    """A request of one row in a slot of its own, due `in_ms` after `now`."""
    told: dict[str, Any] = {"model": 0, "slot_count": 1, "rows": 1} | fields
    slot = number if slot is None else slot
    return Request(id=number, slot=slot, deadline_ns=now + int(in_ms * MS), **told)


def entry(
    number: int = 1, *, shape: object = None, alone: bool = False, payload_bytes: int = 16, **fields: Any
) -> Entry:
    """A queued entry outside of any ledger."""
    asked = request(number, **fields)
    made = Entry(Session(1, 64, 256), asked, NOW, asked.deadline_ns - 300_000, payload_bytes, shape)
    made.alone = alone
    return made


class Bench:
    """A machine with sessions 1 and 2 attached and `workers` ready, a clock, and what each turn wanted."""

    def __init__(
        self,
        *,
        workers: int = 1,
        signature: Signature = ROWS,
        run_ns: int = 100_000,
        row_ns: int = 0,
        prefetch: int = 1,
        client_rate: float = 0.0,
        **model: Any,
    ) -> None:
        configs = [ModelConfig(name="m", **model), ModelConfig(name="other")]
        config = RouterConfig(models=configs, prefetch_runs=prefetch, client_rate=client_rate)
        self.machine = RouterMachine(config)
        self.now = NOW
        self.signature = signature
        self.run_ns = run_ns
        self.row_ns = row_ns
        self.actions: list[ev.Action] = []
        for session in (1, 2):
            self.turn(ev.ClientAttached(session, 64, 256))
        for number in range(1, workers + 1):
            self.add_worker(number)

    def add_worker(self, number: int, model: int = 0) -> None:
        self.turn(ev.WorkerBorn(number, model))
        # So that the router takes a run to cost `run_ns`, the way included, and `row_ns` more for each row but one.
        costs = [RunCost(rows, max(1, self.run_ns + self.row_ns * (rows - 1) - WAY_NS)) for rows in (1, 32)]
        self.turn(ev.WorkerReady(number, self.signature, costs))

    def turn(self, *events: ev.Event, after_ms: float = 0.0) -> list[ev.Action]:
        """One turn, audited."""
        self.now += int(after_ms * MS)
        self.actions = self.machine.handle(list(events), self.now)
        self.machine.check_invariants()
        return self.actions

    def ask(self, *requests: Request, session: int = 1) -> list[ev.Action]:
        return self.turn(ev.RequestsArrived(session, list(requests)))

    def pass_time(self, after_ms: float) -> list[ev.Action]:
        return self.turn(ev.TimePassed(), after_ms=after_ms)

    def pass_until_due(self) -> list[ev.Action]:
        due = self.machine.next_due_ns()
        assert due is not None, "nothing is due"
        self.now = max(self.now, due)
        return self.turn(ev.TimePassed())

    def finish(
        self, worker: int = 1, run: int = 1, status: int = RAN, members: list[MemberDone] | None = None
    ) -> list[ev.Action]:
        copies = Copies()
        done = ev.RunFinished(worker, run, status, self.now, self.now + self.run_ns, members or [], copies)
        self.now += self.run_ns
        return self.turn(done)

    def end_run(self, run: int = 1, *, worker: int = 1, after_ms: float = 0.0, status: int = RAN) -> list[ev.Action]:
        """The same as `finish`, at a moment of the test's choice."""
        return self.turn(ev.RunFinished(worker, run, status, self.now, self.now, [], Copies()), after_ms=after_ms)

    # What the last turn wanted

    def of(self, kind: type[Any]) -> list[Any]:
        return [action for action in self.actions if type(action) is kind]

    @property
    def replies(self) -> dict[int, Reply]:
        """By request id, those that a rule is to answer included."""
        found = {reply.id: reply for sent in self.of(ev.SendReplies) for reply in sent.replies}
        return found | {asked.reply.id: asked.reply for asked in self.of(ev.AnswerInstead)}

    @property
    def reply(self) -> Reply:
        (reply,) = self.replies.values()
        return reply

    @property
    def dispatched(self) -> list[list[int]]:
        """Slots of each dispatched run's members."""
        return [[member.slot for member in run.members] for run in self.of(ev.Dispatch)]

    @property
    def released(self) -> list[int]:
        return [number for sent in self.of(ev.SendRelease) for number in sent.ids]


def two_models(*, prefetch: int = 1, **each: tuple[Any, Any]) -> Bench:
    """A model and another, with a worker each."""
    bench = Bench(workers=0)
    first, second = ({name: values[n] for name, values in each.items()} for n in (0, 1))
    models = [ModelConfig(name="m", **first), ModelConfig(name="other", **second)]
    bench.machine = RouterMachine(RouterConfig(models=models, prefetch_runs=prefetch))
    bench.turn(ev.ClientAttached(1, 64, 256))
    for number in (1, 2):
        bench.add_worker(number, number - 1)
    return bench
