"""The seats, and what can be ordered of them: fill one, retire its worker, end it. Pure, like the machine that uses it.

It does not know why: that the farm ends, drains or scales is the machine's business.
"""

from __future__ import annotations

import signal
from typing import Any, Final

from farm.cpus import CpuPool
from farm.supervisor.events import Action, IntroduceWorker, Record, RetireWorker, SignalWorker, SpawnWorker
from farm.supervisor.seats import Plan, Seat, SeatState

MS: Final = 1_000_000

REPORT_NS: Final = 5_000 * MS
"""A warm worker reports to a new router in milliseconds, or when its run has ended; `hang_ms` comes on top."""

END_NS: Final = 1_000 * MS
"""From SIGTERM to SIGKILL."""

TERM: Final = int(signal.SIGTERM)
KILL: Final = int(signal.SIGKILL)


class Staff:
    """All seats of all models.

    Args:
        orders: where actions go; the machine's own list, so that everything keeps one order.
    """

    def __init__(self, plan: Plan, cpus: CpuPool, orders: list[Action]) -> None:
        self.plan = plan
        self.seats: list[Seat] = []
        self._cpus = cpus
        self._orders = orders
        self._workers_made = 0

    def of_model(self, model: int) -> list[Seat]:
        """Seats that should be filled: those that retire are not among them."""
        return [seat for seat in self.seats if seat.model == model and seat.state is not SeatState.RETIRING]

    def dispensable(self, model: int) -> list[Seat]:
        """A model's seats, the first to go first: those that serve nobody yet, then the youngest."""
        return sorted(self.of_model(model), key=lambda seat: (seat.state is SeatState.READY, -seat.number))

    def by_worker(self, worker: int) -> Seat | None:
        return next((seat for seat in self.seats if seat.worker == worker), None)

    @property
    def complete(self) -> bool:
        """Every worker that should be there is there and warm."""
        return not any(seat.state in (SeatState.EMPTY, SeatState.LOADING) for seat in self.seats)

    @property
    def alive(self) -> bool:
        return any(seat.alive for seat in self.seats)

    def add(self, model: int, epoch: int, now_ns: int) -> None:
        """One seat more, filled at once."""
        taken = {seat.number for seat in self.seats if seat.model == model}
        number = next(n for n in range(len(taken) + 1) if n not in taken)
        seat = Seat(model, number, self.plan.backoff(), self._cpus.take(self.plan.models[model].threads))
        self.seats.append(seat)
        self.fill(seat, epoch, now_ns)

    def remove(self, seat: Seat) -> None:
        self.seats.remove(seat)
        self._cpus.give_back(seat.cpus)

    def fill(self, seat: Seat, epoch: int, now_ns: int) -> None:
        """A new worker for an empty seat."""
        seat.worker, seat.state, seat.loaded = self._workers_made, SeatState.LOADING, False
        seat.since_ns, seat.ready_ns, seat.limit_ns = now_ns, None, now_ns + self.plan.start_timeout_ns
        seat.restarts += 1
        self._workers_made += 1
        self._orders.append(SpawnWorker(seat.worker, seat.model, seat.cpus, epoch))

    def reported(self, worker: int, now_ns: int) -> Seat | None:
        """It is loaded and warm, and the router has it. None when nobody waited for that."""
        seat = self.by_worker(worker)
        if seat is None or seat.state is not SeatState.LOADING:
            return None
        if not seat.loaded:
            load_ms = (now_ns - seat.since_ns) // MS
            self._record("worker_ready", worker=worker, model=self.plan.models[seat.model].name, load_ms=load_ms)
        seat.state, seat.loaded, seat.limit_ns = SeatState.READY, True, None
        seat.ready_ns = seat.ready_ns if seat.ready_ns is not None else now_ns
        return seat

    def introduce_all(self, epoch: int, now_ns: int) -> None:
        """The router died: every living worker is to report to the next one."""
        for seat in self.seats:
            if seat.worker is None:
                continue
            if seat.state is SeatState.RETIRING:
                self.end(seat, now_ns)
                continue
            seat.state, seat.since_ns = SeatState.LOADING, now_ns
            # A warm one can only report to a router that listens; until then its time does not run.
            seat.limit_ns = None if seat.loaded else now_ns + self.plan.start_timeout_ns
            self._orders.append(IntroduceWorker(seat.worker, seat.model, seat.cpus, epoch))

    def expect_reports(self, now_ns: int) -> None:
        """The next router listens: warm workers have so long to report to it."""
        for seat in self.seats:
            if seat.state is SeatState.LOADING and seat.loaded:
                seat.limit_ns = now_ns + REPORT_NS + int(self.plan.models[seat.model].hang_ms * MS)

    def retire(self, seat: Seat, now_ns: int, patience_ns: int, *, router_listens: bool) -> None:
        """Its worker finishes what it has and ends. One that still loads could only do so after that: it is ended."""
        if seat.worker is None:
            self.remove(seat)
            return
        self._orders.append(RetireWorker(seat.worker))
        if seat.state is SeatState.READY and router_listens:
            seat.state, seat.limit_ns, seat.signals = SeatState.RETIRING, now_ns + patience_ns, [TERM, KILL]
        else:
            self.end(seat, now_ns)

    def end(self, seat: Seat, now_ns: int) -> None:
        """SIGTERM, and SIGKILL when that does not help."""
        seat.state, seat.signals = SeatState.RETIRING, [TERM, KILL]
        self.next_signal(seat, now_ns)

    def kill(self, seat: Seat) -> None:
        """SIGKILL, and what becomes of the seat is decided when the worker is gone."""
        seat.signals, seat.limit_ns = [], None
        if seat.worker is not None:
            self._orders.append(SignalWorker(seat.worker, KILL))

    def next_signal(self, seat: Seat, now_ns: int) -> None:
        if seat.worker is not None and seat.signals:
            self._orders.append(SignalWorker(seat.worker, seat.signals.pop(0)))
        seat.limit_ns = now_ns + END_NS if seat.signals else None

    def _record(self, event: str, **fields: Any) -> None:
        self._orders.append(Record(event, fields))
