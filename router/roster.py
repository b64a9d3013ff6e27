"""The workers: who is there, in which state, and what each has in hand.

    LOADING → READY → DRAINING → (gone)
        any state → LOST → (gone)

READY takes runs; DRAINING finishes what it has and is then told to stop; LOST has lost its socket, is sent nothing and
may still write to slots until the kernel says that its process has ended. Only then does it leave the roster.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum

from router.ledger import Entry, State


class WorkerState(IntEnum):
    LOADING = 0
    READY = 1
    DRAINING = 2
    LOST = 3


class RunInHand:
    """One run that a worker has.

    due_ns: the earliest answer still owed, None when nobody waits any more. began_ns: since when the worker can be at
    it, 0 while another is before it. limit_ns: when it is taken for hung, counted from then. kill_ns: when the worker
    is killed for it, 0 until it was told to stop. hung: it was told so although somebody waits.
    """

    __slots__ = (
        "began_ns", "due_ns", "entries", "hung", "kill_ns", "limit_ns", "number", "rows", "worker",
    )  # fmt: skip

    def __init__(self, number: int, worker: Worker, entries: list[Entry]) -> None:
        self.number = number
        self.worker = worker
        self.entries = entries
        self.rows = 0
        self.began_ns = self.limit_ns = self.kill_ns = 0
        self.hung = False
        self.due_ns: int | None = entries[0].due_ns
        for entry in entries:
            self.rows += entry.request.rows or 1
            if entry.due_ns < self.due_ns:
                self.due_ns = entry.due_ns

    def refresh_due(self) -> None:
        """After a member was answered."""
        self.due_ns = min(
            (entry.due_ns for entry in self.entries if entry.state is State.RUNNING and not entry.cancelled),
            default=None,
        )


class Worker:
    """`free_ns`: when it is predicted to have done what it has in hand. `suspect`: it was told to stop a run and has
    not yet said that it has; it may hang, so it is given nothing."""

    __slots__ = ("free_ns", "model", "number", "run_count", "runs", "state", "stopping", "suspect")

    def __init__(self, number: int, model: int) -> None:
        self.number = number
        self.model = model
        self.state = WorkerState.LOADING
        self.runs: deque[RunInHand] = deque()
        self.run_count = 0
        self.stopping = False
        self.free_ns = 0
        self.suspect = False


class Roster:
    """All workers by number, and by model for picking."""

    __slots__ = ("_by_model", "_empty_since_ns", "workers")

    def __init__(self, model_count: int) -> None:
        self.workers: dict[int, Worker] = {}
        self._by_model: list[list[Worker]] = [[] for _ in range(model_count)]
        self._empty_since_ns = [0] * model_count

    def add(self, number: int, model: int) -> Worker:
        assert number not in self.workers
        worker = Worker(number, model)
        self.workers[number] = worker
        self._by_model[model].append(worker)
        return worker

    def remove(self, worker: Worker, now_ns: int) -> None:
        del self.workers[worker.number]
        self._by_model[worker.model].remove(worker)
        self._empty_since_ns[worker.model] = now_ns

    def idle(self, model: int) -> Worker | None:
        """A ready worker with nothing in hand; the first of equals: it is warmest."""
        for worker in self._by_model[model]:
            if not worker.runs and worker.state is WorkerState.READY:
                return worker
        return None

    def soonest(self, model: int, after_ns: int, before_ns: int) -> Worker | None:
        """The ready worker with one run in hand that is predicted to be done with it first, between those times."""
        best = None
        for worker in self._by_model[model]:
            if (
                len(worker.runs) == 1
                and after_ns < worker.free_ns < before_ns
                and worker.state is WorkerState.READY
                and not worker.suspect
            ):
                best, before_ns = worker, worker.free_ns
        return best

    def ready_count(self, model: int) -> int:
        return sum(worker.state is WorkerState.READY for worker in self._by_model[model])

    def is_workerless(self, model: int, since_ns: int) -> bool:
        """Whether there has been no worker at all, not even one that loads, since that time."""
        return not self._by_model[model] and self._empty_since_ns[model] <= since_ns

    def of_model(self, model: int) -> list[Worker]:
        return self._by_model[model]

    def check_invariants(self, runs: dict[int, RunInHand]) -> int:
        """Every run is in one worker's hands, every entry of it knows so. Returns how many entries are in runs."""
        in_hand = {run.number: run for worker in self.workers.values() for run in worker.runs}
        assert in_hand == runs, "the roster and the table of runs disagree"
        for run in runs.values():
            for entry in run.entries:
                assert entry.run is run
                assert entry.state in (State.RUNNING, State.HELD)
        return sum(len(run.entries) for run in runs.values())
