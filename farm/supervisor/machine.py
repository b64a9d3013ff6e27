"""Decides when processes are spawned, killed, replaced and given up. Pure: events and `now_ns` in, actions out.

The forms of its life:

    SERVING ──StopAsked──▶ DRAINING ──DrainEnded or limit──▶ ENDING ──all gone──▶ End
       │                      │                                ▲
       │                      └──StopAsked, or the router died─┘
       └── a model or the router never became ready ──────────────────────────▶ End(GAVE_UP)

Workers die one by one and are replaced one by one. The router's death resets only the router: every living worker is
introduced to the next one and keeps its warm session. A child that dies while the farm ends is not replaced, and a
worker that dies in an operator's drain is not either; the router is even then, since somebody must answer `draining`.
"""

from __future__ import annotations

import signal
from enum import Enum
from typing import Any

from farm import exits
from farm.cpus import CpuPool
from farm.supervisor.events import (
    Action,
    AnnounceReady,
    BeatCame,
    DrainAsked,
    DrainEnded,
    End,
    Event,
    IntroduceWorker,
    LoadRefused,
    PrepareRouter,
    Record,
    RetireWorker,
    RouterDied,
    RouterListened,
    ScaleAsked,
    ScaleRefused,
    SignalRouter,
    SignalWorker,
    SpawnRouter,
    SpawnWorker,
    StartDrain,
    StopAsked,
    TimePassed,
    WorkerDied,
    WorkerReported,
)
from farm.supervisor.seats import ModelState, Plan, RouterLife, Seat, SeatState

MS = 1_000_000
DEATHS_UNREADY_MAX = 3
"""A process that died so often before it was ever ready will not get there: one death may be bad luck (memory, a
signal), a third one is its own fault."""

REPORT_NS = 5_000 * MS
"""A warm worker reports to a new router in milliseconds, or when its run has ended; `hang_ms` comes on top."""

DRAIN_GRACE_NS = 1_000 * MS
"""The router ends its drain by itself at the limit; this is for saying so."""

END_NS = 1_000 * MS
"""From SIGTERM to SIGKILL."""

OVERSLEPT_NS = 250 * MS
"""A turn this much later than it was due: the whole host stood still (paused, swapping), not the router alone."""

TERM_KILL = (int(signal.SIGTERM), int(signal.SIGKILL))


class Phase(Enum):
    SERVING = "serving"
    DRAINING = "stopping"
    ENDING = "ending"
    ENDED = "ended"


class Machine:
    """The supervisor's mind.

    Args:
        epoch: of the first router. Each life of a router has a higher one.
    """

    def __init__(self, plan: Plan, cpus: CpuPool, epoch: int) -> None:
        self.plan = plan
        self.phase = Phase.SERVING
        self.draining = False
        self.drained = False
        self.announced = False
        self.router = RouterLife(epoch, plan.backoff())
        self.router_deaths_unready = 0
        self.router_ever_listened = False
        self.models = [ModelState() for _ in plan.models]
        self.seats: list[Seat] = []
        self._cpus = cpus
        self._workers_made = 0
        self._limit_ns: int | None = None
        self._expected_ns: int | None = None
        self._actions: list[Action] = []

    # What others may ask.

    def start(self, now_ns: int) -> list[Action]:
        """Spawn everything at once: the router listens while the workers load."""
        self._do(PrepareRouter(self.router.epoch))
        self._spawn_router(now_ns)
        # One worker of each model in turn, so that every model is served as early as it can be.
        for number in range(max((model.workers for model in self.plan.models), default=0)):
            for index, model in enumerate(self.plan.models):
                if number < model.workers:
                    self._add_seat(index, now_ns)
        self._announce_when_ready()
        return self._taken(now_ns)

    def handle(self, event: Event, now_ns: int) -> list[Action]:
        """One event.

        Raises:
            ScaleRefused: ScaleAsked or DrainAsked cannot be followed; nothing has changed.
        """
        if self.phase is Phase.ENDED:
            return []
        match event:
            case BeatCame():
                self.router.beat_ns = now_ns
            case TimePassed():
                self._look_at_time(now_ns)
            case RouterListened(epoch):
                self._router_listened(epoch, now_ns)
            case WorkerReported(worker):
                self._worker_reported(worker, now_ns)
            case LoadRefused(worker, message):
                self._load_refused(worker, message)
            case RouterDied():
                self._router_died(event, now_ns)
            case WorkerDied(worker, how):
                self._worker_died(worker, how, now_ns)
            case DrainEnded(refused):
                self._drain_ended(refused, now_ns)
            case DrainAsked():
                self._drain_asked(now_ns)
            case StopAsked(now, why):
                self._stop_asked(now, why, now_ns)
            case ScaleAsked(model, workers):
                self._scale_asked(model, workers, now_ns)
        return self._taken(now_ns)

    def due_ns(self) -> int | None:
        """When TimePassed is wanted at the latest; None: nothing is timed."""
        times = [seat.limit_ns for seat in self.seats if seat.limit_ns is not None]
        router = self.router
        if self.phase is Phase.SERVING:
            times += [seat.due_ns for seat in self.seats if seat.state is SeatState.EMPTY and not self.draining]
            if not router.alive:
                times.append(router.due_ns)
            elif not router.doomed:
                times.append(self._router_limit_ns())
        if self._limit_ns is not None:
            times.append(self._limit_ns)
        if router.limit_ns is not None:
            times.append(router.limit_ns)
        return min(times, default=None)

    @property
    def ready(self) -> bool:
        """Every worker that should be there is, and the router takes requests."""
        return (
            self.phase is Phase.SERVING
            and not self.draining
            and self.router.listening_ns is not None
            and all(seat.state is not SeatState.EMPTY and seat.state is not SeatState.LOADING for seat in self.seats)
        )

    @property
    def state(self) -> str:
        """One word for `farm status`."""
        if self.phase is not Phase.SERVING:
            return "stopping"
        if self.draining:
            return "drained" if self.drained else "draining"
        return "ready" if self.ready else "degraded" if self.announced else "starting"

    def wanted(self, model: int) -> int:
        """How many workers a model should have now."""
        return len(self._seats_of(model))

    def seat_of(self, worker: int) -> Seat | None:
        return next((seat for seat in self.seats if seat.worker == worker), None)

    # The router.

    def _spawn_router(self, now_ns: int) -> None:
        router = self.router
        router.alive, router.doomed, router.since_ns, router.listening_ns = True, False, now_ns, None
        router.restarts += 1
        self._do(SpawnRouter(router.epoch))

    def _router_listened(self, epoch: int, now_ns: int) -> None:
        if epoch != self.router.epoch or not self.router.alive:
            return
        self.router.listening_ns = self.router.beat_ns = now_ns
        self.router_ever_listened = True
        for seat in self.seats:
            if seat.state is SeatState.LOADING and seat.loaded:
                seat.limit_ns = now_ns + self._report_ns(seat)
        if self.draining and self.phase is Phase.SERVING:
            self._do(StartDrain(self.plan.drain_timeout_ns // MS))
        self._announce_when_ready()

    def _router_limit_ns(self) -> int:
        """When a router that says nothing is taken for hung: generous until it listens, then by its beat."""
        router = self.router
        if router.listening_ns is None:
            return router.since_ns + self.plan.start_timeout_ns
        return router.beat_ns + self.plan.beat_timeout_ns

    def _router_died(self, event: RouterDied, now_ns: int) -> None:
        router = self.router
        was_listening_ns, router.listening_ns = router.listening_ns, None
        router.alive, router.limit_ns, router.last_end = False, None, event.how
        if self.phase is not Phase.SERVING:
            self._record("router_ended", how=event.how)
            self._end_workers(now_ns, at_once=True)
            return
        if not self.router_ever_listened:
            self.router_deaths_unready += 1
            if event.status == exits.USAGE or self.router_deaths_unready >= DEATHS_UNREADY_MAX:
                self._give_up(
                    f"the router ended before it could listen ({event.how}); its reason is in the lines above, "
                    "and `farm config check FILE` looks at the configuration"
                )
                return
        delay_ns = router.backoff.next_ns(now_ns, was_listening_ns)
        router.epoch = max(router.epoch + 1, now_ns // MS)
        router.due_ns = now_ns + delay_ns
        self._record("router_died", how=event.how, next_epoch=router.epoch, replaced_in_ms=delay_ns // MS)
        self._do(PrepareRouter(router.epoch))
        for seat in self.seats:
            if seat.worker is None:
                continue
            if seat.state is SeatState.RETIRING:
                self._end_seat(seat, now_ns)
            else:
                seat.state, seat.since_ns = SeatState.LOADING, now_ns
                # A warm one reports to a router that listens; until then its time does not run.
                seat.limit_ns = None if seat.loaded else now_ns + self.plan.start_timeout_ns
                self._do(IntroduceWorker(seat.worker, seat.model, seat.cpus, router.epoch))
        if delay_ns == 0:
            self._spawn_router(now_ns)

    # Workers.

    def _add_seat(self, model: int, now_ns: int) -> None:
        taken = {seat.number for seat in self.seats if seat.model == model}
        number = next(n for n in range(len(taken) + 1) if n not in taken)
        seat = Seat(model, number, self.plan.backoff(), self._cpus.take(self.plan.models[model].threads))
        self.seats.append(seat)
        self._spawn_worker(seat, now_ns)

    def _spawn_worker(self, seat: Seat, now_ns: int) -> None:
        seat.worker, seat.state, seat.loaded = self._workers_made, SeatState.LOADING, False
        seat.since_ns, seat.ready_ns, seat.limit_ns = now_ns, None, now_ns + self.plan.start_timeout_ns
        seat.restarts += 1
        self._workers_made += 1
        self._do(SpawnWorker(seat.worker, seat.model, seat.cpus, self.router.epoch))

    def _worker_reported(self, worker: int, now_ns: int) -> None:
        seat = self.seat_of(worker)
        if seat is None or seat.state is not SeatState.LOADING:
            return
        if not seat.loaded:
            self._record("worker_ready", worker=worker, model=self.plan.models[seat.model].name,
                         load_ms=(now_ns - seat.since_ns) // MS)  # fmt: skip
        seat.state, seat.loaded, seat.limit_ns = SeatState.READY, True, None
        seat.ready_ns = seat.ready_ns if seat.ready_ns is not None else now_ns
        self.models[seat.model].ever_ready = True
        self._announce_when_ready()

    def _load_refused(self, worker: int, message: str) -> None:
        seat = self.seat_of(worker)
        if seat is None or self.phase is not Phase.SERVING:
            return
        model, state = self.plan.models[seat.model], self.models[seat.model]
        state.load_error = message
        if state.ever_ready:
            self._record("load_failed", worker=worker, model=model.name, file=model.path, reason=message)
        else:
            self._give_up(f"model {model.name} cannot be served from {model.path}: {message}")

    def _worker_died(self, worker: int, how: str, now_ns: int) -> None:
        seat = self.seat_of(worker)
        if seat is None:
            return
        model = self.plan.models[seat.model]
        ready_ns, seat.worker, seat.limit_ns, seat.last_end = seat.ready_ns, None, None, how
        if seat.state is SeatState.RETIRING or self.phase is not Phase.SERVING:
            self.seats.remove(seat)
            self._cpus.give_back(seat.cpus)
            self._record("worker_ended", worker=worker, model=model.name, how=how)
            self._announce_when_ready()
            if self.phase is Phase.ENDING:
                self._end_router(now_ns)
            return
        seat.state = SeatState.EMPTY
        state = self.models[seat.model]
        if not state.ever_ready:
            state.deaths_unready += 1
            if state.deaths_unready >= DEATHS_UNREADY_MAX:
                self._give_up(
                    f"model {model.name} ({model.path}): {state.deaths_unready} workers died before one was ready, "
                    f"the last by {how}; its own words, if any, are in the lines above"
                )
                return
        delay_ns = seat.backoff.next_ns(now_ns, ready_ns)
        seat.due_ns = now_ns + delay_ns
        if self.draining:
            self._record("worker_died", worker=worker, model=model.name, how=how)
            return
        self._record("worker_died", worker=worker, model=model.name, how=how, replaced_in_ms=delay_ns // MS)
        if delay_ns == 0:
            self._spawn_worker(seat, now_ns)

    def _report_ns(self, seat: Seat) -> int:
        return REPORT_NS + int(self.plan.models[seat.model].hang_ms * MS)

    # What operators want.

    def _scale_asked(self, name: str, workers: int, now_ns: int) -> None:
        names = [model.name for model in self.plan.models]
        if self.phase is not Phase.SERVING or self.draining:
            raise ScaleRefused(f"this farm is {self.state}; it can be scaled while it serves")
        if name not in names:
            raise ScaleRefused(f"no model {name!r} here; there are: {', '.join(names)}")
        model = names.index(name)
        have = self._seats_of(model)
        self._record("scaled", model=name, workers=workers, before=len(have))
        for _ in range(workers - len(have)):
            self._add_seat(model, now_ns)
        # Those that serve nobody yet go first, then the youngest seats.
        have.sort(key=lambda seat: (seat.state is SeatState.READY, -seat.number))
        for seat in have[: max(0, len(have) - workers)]:
            self._retire_seat(seat, now_ns, self.plan.drain_timeout_ns + DRAIN_GRACE_NS)
        self._announce_when_ready()

    def _drain_asked(self, now_ns: int) -> None:
        if self.phase is not Phase.SERVING:
            raise ScaleRefused("this farm is stopping already")
        if self.draining:
            return
        self.draining = True
        self._record("drain_started", timeout_ms=self.plan.drain_timeout_ns // MS)
        if self.router.listening_ns is not None:
            self._do(StartDrain(self.plan.drain_timeout_ns // MS))

    def _drain_ended(self, refused: int, now_ns: int) -> None:
        self._record("drained", refused=refused)
        self.drained = True
        if self.phase is Phase.DRAINING:
            self._start_ending(now_ns)

    def _stop_asked(self, now: bool, why: str, now_ns: int) -> None:
        if now or self.phase is not Phase.SERVING:
            self._record("stopping_now", why=why)
            self._kill_all(now_ns)
            return
        self._record("stopping", why=why, drain_timeout_ms=self.plan.drain_timeout_ns // MS)
        self.phase = Phase.DRAINING
        if self.router.listening_ns is None or self.drained:
            self._start_ending(now_ns)
            return
        self._limit_ns = now_ns + self.plan.drain_timeout_ns + DRAIN_GRACE_NS
        if not self.draining:
            self._do(StartDrain(self.plan.drain_timeout_ns // MS))

    # The end.

    def _start_ending(self, now_ns: int) -> None:
        self.phase, self._limit_ns = Phase.ENDING, None
        self._end_workers(now_ns, at_once=False)

    def _end_workers(self, now_ns: int, *, at_once: bool) -> None:
        """All workers are to end: by the router's Stop, or by signal when no router is there to say it."""
        self.phase, self._limit_ns = Phase.ENDING, None
        for seat in [seat for seat in self.seats if seat.worker is None]:
            self.seats.remove(seat)
        for seat in self.seats:
            if at_once:
                self._end_seat(seat, now_ns)
            elif seat.state is not SeatState.RETIRING:
                self._retire_seat(seat, now_ns, self.plan.stop_timeout_ns)
        self._end_router(now_ns)

    def _retire_seat(self, seat: Seat, now_ns: int, patience_ns: int) -> None:
        """Ready workers finish what they have; one that still loads would only do so after that, so it is ended."""
        if seat.worker is None:
            self.seats.remove(seat)
            self._cpus.give_back(seat.cpus)
        elif seat.state is SeatState.READY and self.router.listening_ns is not None:
            seat.state, seat.limit_ns, seat.signals = SeatState.RETIRING, now_ns + patience_ns, list(TERM_KILL)
            self._do(RetireWorker(seat.worker))
        else:
            self._do(RetireWorker(seat.worker))
            self._end_seat(seat, now_ns)

    def _end_seat(self, seat: Seat, now_ns: int) -> None:
        seat.state, seat.signals = SeatState.RETIRING, list(TERM_KILL)
        self._next_signal(seat, now_ns)

    def _next_signal(self, seat: Seat, now_ns: int) -> None:
        if seat.worker is not None and seat.signals:
            self._do(SignalWorker(seat.worker, seat.signals.pop(0)))
        seat.limit_ns = now_ns + END_NS if seat.signals else None

    def _end_router(self, now_ns: int) -> None:
        """Last of all: it may still have to tell workers to stop, and clients that the farm is gone."""
        if any(seat.alive for seat in self.seats):
            return
        if not self.router.alive:
            self._end(End(exits.OK))
        elif self.router.limit_ns is None and not self.router.doomed:
            self._do(SignalRouter(TERM_KILL[0]))
            self.router.signals = [TERM_KILL[1]]
            self.router.limit_ns = now_ns + END_NS

    def _kill_all(self, now_ns: int) -> None:
        self._end_workers(now_ns, at_once=True)
        for seat in self.seats:
            if seat.worker is not None:
                self._do(SignalWorker(seat.worker, TERM_KILL[1]))
                seat.signals, seat.limit_ns = [], None
        if self.router.alive:
            self._do(SignalRouter(TERM_KILL[1]))
            self.router.signals, self.router.limit_ns, self.router.doomed = [], None, True
        if self.phase is not Phase.ENDED:
            # What even SIGKILL does not end is stuck in the kernel; nobody gains by waiting for it.
            self._limit_ns = now_ns + 5 * END_NS

    def _give_up(self, message: str) -> None:
        self._end(End(exits.GAVE_UP, message))

    def _end(self, end: End) -> None:
        if self.phase is not Phase.ENDED:
            self.phase = Phase.ENDED
            self._do(end)

    # Time.

    def _look_at_time(self, now_ns: int) -> None:
        router = self.router
        overslept = self._expected_ns is not None and now_ns - self._expected_ns > OVERSLEPT_NS
        if overslept:
            # Its beats may wait in a socket that we have not read, or it stood still with us.
            router.beat_ns = now_ns
        if self._limit_ns is not None and now_ns >= self._limit_ns:
            if self.phase is Phase.DRAINING:
                self._record("drain_timed_out")
                self._start_ending(now_ns)
            else:
                self._end(End(exits.OK))
        if router.limit_ns is not None and now_ns >= router.limit_ns:
            router.limit_ns = None
            for signum in router.signals:
                self._do(SignalRouter(signum))
        if self.phase is Phase.SERVING:
            self._look_at_router(now_ns)
        for seat in list(self.seats):
            self._look_at_seat(seat, now_ns)

    def _look_at_router(self, now_ns: int) -> None:
        router = self.router
        if not router.alive:
            if now_ns >= router.due_ns:
                self._spawn_router(now_ns)
        elif not router.doomed and now_ns >= self._router_limit_ns():
            silent_ms = (now_ns - (router.beat_ns if router.listening_ns is not None else router.since_ns)) // MS
            self._record("router_silent", silent_ms=silent_ms)
            router.doomed = True
            self._do(SignalRouter(TERM_KILL[1]))

    def _look_at_seat(self, seat: Seat, now_ns: int) -> None:
        if self.phase is Phase.ENDED:
            return
        if seat.state is SeatState.EMPTY:
            if now_ns >= seat.due_ns and not self.draining and self.phase is Phase.SERVING:
                self._spawn_worker(seat, now_ns)
            return
        if seat.limit_ns is None or now_ns < seat.limit_ns or seat.worker is None:
            return
        if seat.state is SeatState.RETIRING:
            self._next_signal(seat, now_ns)
            return
        model = self.plan.models[seat.model]
        waited_s = (now_ns - seat.since_ns) / 1e9
        if not self.models[seat.model].ever_ready:
            self._give_up(
                f"model {model.name} ({model.path}): no worker became ready within {waited_s:.3g} s; "
                "raise [farm] start_timeout_s if it needs longer to load"
            )
            return
        self._record("worker_silent", worker=seat.worker, model=model.name, waited_s=round(waited_s, 3))
        seat.limit_ns = None
        self._do(SignalWorker(seat.worker, TERM_KILL[1]))

    # Small things.

    def _seats_of(self, model: int) -> list[Seat]:
        return [seat for seat in self.seats if seat.model == model and seat.state is not SeatState.RETIRING]

    def _announce_when_ready(self) -> None:
        if self.ready and not self.announced:
            self.announced = True
            self._do(AnnounceReady())

    def _record(self, event: str, **fields: Any) -> None:
        self._do(Record(event, fields))

    def _do(self, action: Action) -> None:
        self._actions.append(action)

    def _taken(self, now_ns: int) -> list[Action]:
        actions, self._actions = self._actions, []
        self._expected_ns = self.due_ns() if self.phase is not Phase.ENDED else None
        return actions
