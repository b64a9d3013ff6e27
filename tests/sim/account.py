"""The world's own account of what was asked, cancelled, sent to workers and written, kept from what happens and never
from the router's state. What "may still write" means is physical: a run that was sent to a worker writes until the
worker has ended it or its process is gone.
"""

from __future__ import annotations

from heapq import heappush

from router import events as ev
from shm.client import Request
from shm.endings import Reason
from shm.worker import RAN
from tests.sim.scenario import Scenario


class Asked:
    """One request as the client sees it, and how far it has come."""

    __slots__ = (
        "answered",
        "arrived",
        "cancelled",
        "deaths",
        "failures",
        "held",
        "known_poison",
        "released",
        "request",
        "run",
    )

    def __init__(self, request: Request) -> None:
        self.request = request
        self.arrived = self.answered = self.cancelled = self.held = self.released = False
        self.known_poison = False
        self.deaths = 0
        self.failures = 0
        """Runs that ended well but not for it."""
        self.run: SentRun | None = None
        """The run that the router knows it to be in."""


class SentRun:
    """One dispatched run. `writing`: its worker may; `waiting`: members that somebody still waits for."""

    __slots__ = ("hung", "kill_by_ns", "members", "number", "sent_ns", "terminated", "waiting", "worker", "writing")

    def __init__(self, number: int, worker: int, members: list[tuple[int, Asked]], sent_ns: int) -> None:
        self.number = number
        self.worker = worker
        self.members = members
        self.sent_ns = sent_ns
        self.hung = False
        """It was stopped although somebody waits for it."""
        self.writing = True
        self.terminated = False
        self.kill_by_ns = 0
        self.waiting = len(members)


class SeenSession:
    __slots__ = ("attached", "by_slot", "closed", "lost", "requests")

    def __init__(self) -> None:
        self.attached = self.lost = self.closed = False
        self.requests: dict[int, Asked] = {}
        """Open or held, by id."""
        self.by_slot: dict[int, SentRun] = {}
        """Which run may write to a slot."""


class SeenWorker:
    __slots__ = ("killed", "lost", "model", "ready", "retired", "runs", "stopped")

    def __init__(self, model: int) -> None:
        self.model = model
        self.ready = self.lost = self.retired = self.killed = self.stopped = False
        self.runs: dict[int, SentRun] = {}
        """In hand as far as the router knows, in order."""


class Account:
    """One router's life, as the world sees it."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.sessions: dict[int, SeenSession] = {}
        self.workers: dict[int, SeenWorker] = {}
        self.runs: dict[int, SentRun] = {}
        self.unwritten: list[tuple[int, int, Asked]] = []
        """(deadline, number, request): what must be answered by when."""
        self.taken = 0
        self.endings = 0
        self.orphaned = 0
        self.draining = False
        self.drained = False
        self.expected_lie: tuple[int, Request, Reason] | None = None
        self.lost_now: set[int] = set()
        """Sessions that were lost in this turn: what was decided before that in it may still name them."""
        self.cancelled_now: set[int] = set()
        self.over_now: set[int] = set()
        """Runs that ended in this turn, by word or by death, and workers that were lost in it: as above."""
        self.workers_lost_now: set[int] = set()
        self.finished_now: dict[int, ev.RunFinished] = {}
        self.known_models: set[int] = set()
        self.doomed: dict[int, SentRun] = {}
        """Runs whose members have all left: told to stop, then killed."""
        self._sequence = 0

    # What the world does

    def asked(self, session: int, request: Request) -> None:
        seen = self.sessions.setdefault(session, SeenSession())
        assert request.id not in seen.requests
        seen.requests[request.id] = Asked(request)

    def lied(self, session: int, lie: Request, reason: Reason) -> None:
        self.expected_lie = (session, lie, reason)

    def in_flight(self, session: int) -> Request | None:
        """A request of which the router has not given the slots back."""
        seen = self.sessions.get(session)
        if seen is None:
            return None
        return next((asked.request for asked in seen.requests.values() if asked.arrived), None)

    def is_attached(self, session: int) -> bool:
        seen = self.sessions.get(session)
        return seen is not None and seen.attached and not seen.lost

    def writing_ended(self, number: int) -> None:
        run = self.runs.get(number)
        if run is not None:
            self._stop_writing(run)

    def worker_gone(self, number: int) -> None:
        worker = self.workers.get(number)
        for run in worker.runs.values() if worker else ():
            self._stop_writing(run)

    def _stop_writing(self, run: SentRun) -> None:
        run.writing = False
        for session, asked in run.members:
            by_slot = self.sessions[session].by_slot
            for slot in slots_of(asked.request):
                if by_slot.get(slot) is run:
                    del by_slot[slot]

    # What the router hears

    def before(self, events: list[ev.Event], now_ns: int) -> None:
        self.lost_now.clear()
        self.finished_now.clear()
        self.cancelled_now.clear()
        self.over_now.clear()
        self.workers_lost_now.clear()
        for event in events:
            match event:
                case ev.RequestsArrived(session, requests):
                    self._arrived(session, requests)
                case ev.RequestsCancelled(session, ids):
                    self._cancelled(session, ids)
                case ev.RunFinished():
                    self._run_finished(event)
                case ev.ClientAttached(session):
                    self.sessions.setdefault(session, SeenSession()).attached = True
                case ev.ClientLost(session):
                    self._client_lost(session)
                case ev.WorkerBorn(number, model):
                    self.workers[number] = SeenWorker(model)
                case ev.WorkerReady(number):
                    self.workers[number].ready = True
                    self.known_models.add(self.workers[number].model)
                case ev.WorkerRetired(number):
                    if number in self.workers:
                        self.workers[number].retired = True
                case ev.WorkerLost(number):
                    self.workers[number].lost = True
                    self.workers_lost_now.add(number)
                case ev.WorkerGone(number):
                    self._gone(number)
                case ev.DrainStarted():
                    self.draining = True

    def _arrived(self, session: int, requests: list[Request]) -> None:
        seen = self.sessions[session]
        self.taken += len(requests)
        if seen.lost:
            self.orphaned += len(requests)
            return
        for request in requests:
            if self.expected_lie is not None and request is self.expected_lie[1]:
                continue
            asked = seen.requests[request.id]
            asked.arrived = True
            self._sequence += 1
            heappush(self.unwritten, (request.deadline_ns, self._sequence, asked))

    def _cancelled(self, session: int, ids: list[int]) -> None:
        seen = self.sessions[session]
        if seen.lost:
            return
        for number in ids:
            asked = seen.requests.get(number)
            if asked is not None and asked.arrived and not asked.answered and not asked.cancelled:
                asked.cancelled = True
                self.cancelled_now.add(id(asked))
                self._left(asked)

    def _client_lost(self, session: int) -> None:
        seen = self.sessions.setdefault(session, SeenSession())
        if seen.lost:
            return
        seen.lost = True
        self.lost_now.add(session)
        for asked in seen.requests.values():
            if asked.arrived and not asked.answered:
                self.orphaned += 1
                if not asked.cancelled:
                    self._left(asked)
                asked.answered = True

    def _run_finished(self, event: ev.RunFinished) -> None:
        worker = self.workers.get(event.worker)
        if worker is None or event.run != next(iter(worker.runs), None):
            # Not the first of what it has: no such word is believed, nor one that answers more or fewer than there are.
            return
        if event.status == RAN and len(event.members) not in (0, len(worker.runs[event.run].members)):
            return
        run = worker.runs.pop(event.run)
        self.finished_now[event.run] = event
        for position, (_, asked) in enumerate(run.members):
            if event.status == RAN and event.members:
                asked.failures += event.members[position].reason != 0
            elif event.status != RAN and run.hung:
                asked.deaths += not (asked.answered or asked.cancelled)
        self._over(run)

    def _gone(self, number: int) -> None:
        worker = self.workers.pop(number, None)
        if worker is None:
            return
        for position, run in enumerate(worker.runs.values()):
            assert not run.writing, "the world buried a worker that writes"
            if position == 0:
                for _, asked in run.members:
                    asked.deaths += not asked.answered
            self._over(run)

    def _over(self, run: SentRun) -> None:
        self.over_now.add(run.number)
        self.doomed.pop(run.number, None)
        del self.runs[run.number]
        for _, asked in run.members:
            asked.run = None

    def _left(self, asked: Asked) -> None:
        """Nobody waits for it any more. A run without anybody waiting is to be told so in this turn."""
        if asked.run is not None:
            asked.run.waiting -= 1
            if not asked.run.waiting:
                self.doomed[asked.run.number] = asked.run


def slots_of(request: Request) -> range:
    return range(request.slot, request.slot + request.slot_count)
