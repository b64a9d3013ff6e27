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

from typing import Any, Final

from farm import exits
from farm.cpus import CpuPool
from farm.supervisor import events as ev
from farm.supervisor.seats import ModelState, Phase, Plan, RouterLife, Seat, SeatState
from farm.supervisor.staff import END_NS, KILL, MS, TERM, Staff

DEATHS_UNREADY_MAX: Final = 3
"""A process that died so often before it was ever ready will not get there: one death may be bad luck (memory, a
signal), a third one is its own fault."""

DRAIN_GRACE_NS: Final = 1_000 * MS
"""The router ends its drain by itself at the limit; this is for saying so."""

OVERSLEPT_NS: Final = 250 * MS
"""A turn this much later than it was due: the whole host stood still (paused, swapping), not the router alone."""


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
        self._limit_ns: int | None = None
        self._expected_ns: int | None = None
        self._actions: list[ev.Action] = []
        self.staff = Staff(plan, cpus, self._actions)

    # What others may ask.

    def start(self, now_ns: int) -> list[ev.Action]:
        """Spawn everything at once: the router listens while the workers load."""
        self._do(ev.PrepareRouter(self.router.epoch))
        self._spawn_router(now_ns)
        # One worker of each model in turn, so that every model is served as early as it can be.
        for number in range(max((model.workers for model in self.plan.models), default=0)):
            for index, model in enumerate(self.plan.models):
                if number < model.workers:
                    self.staff.add(index, self.router.epoch, now_ns)
        self._announce_when_ready()
        return self._taken(now_ns)

    def handle(self, event: ev.Event, now_ns: int) -> list[ev.Action]:
        """One event.

        Raises:
            ev.ScaleRefused: ev.ScaleAsked or ev.DrainAsked cannot be followed; nothing has changed.
        """
        if self.phase is Phase.ENDED:
            return []
        match event:
            case ev.BeatCame():
                self.router.beat_ns = now_ns
            case ev.TimePassed():
                self._look_at_time(now_ns)
            case ev.RouterListened(epoch):
                self._router_listened(epoch, now_ns)
            case ev.WorkerReported(worker):
                self._worker_reported(worker, now_ns)
            case ev.LoadRefused(worker, message):
                self._load_refused(worker, message)
            case ev.RouterDied():
                self._router_died(event, now_ns)
            case ev.WorkerDied(worker, how):
                self._worker_died(worker, how, now_ns)
            case ev.DrainEnded(refused):
                self._drain_ended(refused, now_ns)
            case ev.DrainAsked():
                self._drain_asked(now_ns)
            case ev.StopAsked(now, why):
                self._stop_asked(now, why, now_ns)
            case ev.ScaleAsked(model, workers):
                self._scale_asked(model, workers, now_ns)
        return self._taken(now_ns)

    def due_ns(self) -> int | None:
        """When TimePassed is wanted at the latest; None: nothing is timed."""
        if self.phase is Phase.ENDED:
            return None
        times = [seat.limit_ns for seat in self.staff.seats if seat.limit_ns is not None]
        router = self.router
        if self.phase is Phase.SERVING:
            times += [seat.due_ns for seat in self.staff.seats if seat.state is SeatState.EMPTY and not self.draining]
            if not router.alive:
                times.append(router.due_ns)
            elif not router.doomed:
                times.append(router.patience_end_ns(self.plan))
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
            and self.staff.complete
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
        return len(self.staff.of_model(model))

    # The router.

    def _spawn_router(self, now_ns: int) -> None:
        self.router.spawned(now_ns)
        self._do(ev.SpawnRouter(self.router.epoch))

    def _router_listened(self, epoch: int, now_ns: int) -> None:
        if epoch != self.router.epoch or not self.router.alive:
            return
        self.router.listening_ns = self.router.beat_ns = now_ns
        self.router_ever_listened = True
        self.staff.expect_reports(now_ns)
        if self.draining and self.phase is Phase.SERVING:
            self._do(ev.StartDrain(self.plan.drain_timeout_ns // MS))
        self._announce_when_ready()

    def _router_died(self, event: ev.RouterDied, now_ns: int) -> None:
        router = self.router
        was_listening_ns, router.listening_ns = router.listening_ns, None
        router.alive, router.limit_ns, router.last_end = False, None, event.how
        if self.phase is not Phase.SERVING:
            self._record("router_ended", how=event.how)
            self._end_workers(now_ns, at_once=True)
            return
        if not self.announced:
            self.router_deaths_unready += not self.router_ever_listened
            if event.status == exits.USAGE or self.router_deaths_unready >= DEATHS_UNREADY_MAX:
                self._give_up(f"the router ended before the farm was ready ({event.how}); the lines above say why")
                return
        delay_ns = router.backoff.next_ns(now_ns, was_listening_ns)
        router.epoch = max(router.epoch + 1, now_ns // MS)
        router.due_ns = now_ns + delay_ns
        self._record("router_died", how=event.how, next_epoch=router.epoch, replaced_in_ms=delay_ns // MS)
        self._do(ev.PrepareRouter(router.epoch))
        self.staff.introduce_all(router.epoch, now_ns)
        if delay_ns == 0:
            self._spawn_router(now_ns)

    # Workers.

    def _worker_reported(self, worker: int, now_ns: int) -> None:
        seat = self.staff.reported(worker, now_ns)
        if seat is not None:
            self.models[seat.model].ever_ready = True
            self._announce_when_ready()

    def _load_refused(self, worker: int, message: str) -> None:
        seat = self.staff.by_worker(worker)
        if seat is None or self.phase is not Phase.SERVING:
            return
        model, state = self.plan.models[seat.model], self.models[seat.model]
        if state.ever_ready or self.announced:
            self._record("load_failed", worker=worker, model=model.name, file=model.path, reason=message)
        else:
            reason = message.removeprefix(f"{model.path}: ")
            self._give_up(f"model {model.name} cannot be served from {model.path}: {reason}")

    def _worker_died(self, worker: int, how: str, now_ns: int) -> None:
        seat = self.staff.by_worker(worker)
        if seat is None:
            return
        model = self.plan.models[seat.model]
        ready_ns, seat.worker, seat.limit_ns, seat.last_end = seat.ready_ns, None, None, how
        if seat.state is SeatState.RETIRING or self.phase is not Phase.SERVING:
            self.staff.remove(seat)
            self._record("worker_ended", worker=worker, model=model.name, how=how)
            self._announce_when_ready()
            if self.phase is Phase.ENDING:
                self._end_router(now_ns)
            return
        seat.state = SeatState.EMPTY
        state = self.models[seat.model]
        if not (state.ever_ready or self.announced):
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
            self.staff.fill(seat, self.router.epoch, now_ns)

    # What operators want.

    def _scale_asked(self, name: str, workers: int, now_ns: int) -> None:
        names = [model.name for model in self.plan.models]
        if self.phase is not Phase.SERVING or self.draining:
            raise ev.ScaleRefused(f"this farm is {self.state}; it can be scaled while it serves")
        if name not in names:
            raise ev.ScaleRefused(f"no model {name!r} here; there are: {', '.join(names)}")
        model = names.index(name)
        have = self.staff.of_model(model)
        self._record("scaled", model=name, workers=workers, before=len(have))
        for _ in range(workers - len(have)):
            self.staff.add(model, self.router.epoch, now_ns)
        for seat in self.staff.dispensable(model)[: max(0, len(have) - workers)]:
            self._retire(seat, now_ns, self.plan.drain_timeout_ns + DRAIN_GRACE_NS)
        self._announce_when_ready()

    def _drain_asked(self, now_ns: int) -> None:
        if self.phase is not Phase.SERVING:
            raise ev.ScaleRefused("this farm is stopping already")
        if self.draining:
            return
        self.draining = True
        self._record("drain_started", timeout_ms=self.plan.drain_timeout_ns // MS)
        if self.router.listening_ns is not None:
            self._do(ev.StartDrain(self.plan.drain_timeout_ns // MS))

    def _drain_ended(self, refused: int, now_ns: int) -> None:
        self._record("drained", refused=refused)
        self.drained = True
        if self.phase is Phase.DRAINING:
            self._end_workers(now_ns, at_once=False)

    def _stop_asked(self, now: bool, why: str, now_ns: int) -> None:
        if now or self.phase is not Phase.SERVING:
            self._record("stopping_now", why=why)
            self._kill_all(now_ns)
            return
        self._record("stopping", why=why, drain_timeout_ms=self.plan.drain_timeout_ns // MS)
        self.phase = Phase.DRAINING
        if self.router.listening_ns is None or self.drained:
            self._end_workers(now_ns, at_once=False)
            return
        self._limit_ns = now_ns + self.plan.drain_timeout_ns + DRAIN_GRACE_NS
        if not self.draining:
            self._do(ev.StartDrain(self.plan.drain_timeout_ns // MS))

    # The end.

    def _end_workers(self, now_ns: int, *, at_once: bool) -> None:
        """All workers are to end: by the router's Stop, or by signal when no router is there to say it."""
        self.phase, self._limit_ns = Phase.ENDING, None
        for seat in list(self.staff.seats):
            if seat.worker is None:
                self.staff.remove(seat)
            elif at_once:
                self.staff.end(seat, now_ns)
            elif seat.state is not SeatState.RETIRING:
                self._retire(seat, now_ns, self.plan.stop_timeout_ns)
        self._end_router(now_ns)

    def _retire(self, seat: Seat, now_ns: int, patience_ns: int) -> None:
        self.staff.retire(seat, now_ns, patience_ns, router_listens=self.router.listening_ns is not None)

    def _end_router(self, now_ns: int) -> None:
        """Last of all: it may still have to tell workers to stop, and clients that the farm is gone."""
        if self.staff.alive:
            return
        if not self.router.alive:
            self._end(ev.End(exits.OK))
        elif self.router.limit_ns is None and not self.router.doomed:
            self._do(ev.SignalRouter(TERM))
            self.router.signals = [KILL]
            self.router.limit_ns = now_ns + END_NS

    def _kill_all(self, now_ns: int) -> None:
        self._end_workers(now_ns, at_once=True)
        for seat in self.staff.seats:
            self.staff.kill(seat)
        if self.router.alive:
            self._do(ev.SignalRouter(KILL))
            self.router.signals, self.router.limit_ns, self.router.doomed = [], None, True
        if self.phase is not Phase.ENDED:
            # What even SIGKILL does not end is stuck in the kernel; nobody gains by waiting for it.
            self._limit_ns = now_ns + 5 * END_NS

    def _give_up(self, message: str) -> None:
        self._end(ev.End(exits.GAVE_UP, message))

    def _end(self, end: ev.End) -> None:
        if self.phase is not Phase.ENDED:
            self.phase = Phase.ENDED
            self._do(end)

    # Time.

    def _look_at_time(self, now_ns: int) -> None:
        router = self.router
        if self._expected_ns is not None and now_ns - self._expected_ns > OVERSLEPT_NS:
            # Its beats may wait in a socket that we have not read, or it stood still with us.
            router.beat_ns = now_ns
        if self._limit_ns is not None and now_ns >= self._limit_ns:
            if self.phase is Phase.DRAINING:
                self._record("drain_timed_out")
                self._end_workers(now_ns, at_once=False)
            else:
                self._end(ev.End(exits.OK))
        if router.limit_ns is not None and now_ns >= router.limit_ns:
            router.limit_ns = None
            for signum in router.signals:
                self._do(ev.SignalRouter(signum))
        if self.phase is Phase.SERVING:
            self._look_at_router(now_ns)
        for seat in list(self.staff.seats):
            self._look_at_seat(seat, now_ns)

    def _look_at_router(self, now_ns: int) -> None:
        router = self.router
        if not router.alive:
            if now_ns >= router.due_ns:
                self._spawn_router(now_ns)
        elif not router.doomed and now_ns >= router.patience_end_ns(self.plan):
            silent_ms = (now_ns - (router.beat_ns if router.listening_ns is not None else router.since_ns)) // MS
            self._record("router_silent", silent_ms=silent_ms)
            router.doomed = True
            self._do(ev.SignalRouter(KILL))

    def _look_at_seat(self, seat: Seat, now_ns: int) -> None:
        if self.phase is Phase.ENDED:
            return
        if seat.state is SeatState.EMPTY:
            if now_ns >= seat.due_ns and not self.draining and self.phase is Phase.SERVING:
                self.staff.fill(seat, self.router.epoch, now_ns)
            return
        if seat.limit_ns is None or now_ns < seat.limit_ns or seat.worker is None:
            return
        if seat.state is SeatState.RETIRING:
            self.staff.next_signal(seat, now_ns)
            return
        model = self.plan.models[seat.model]
        waited_s = (now_ns - seat.since_ns) / 1e9
        if not (self.models[seat.model].ever_ready or self.announced):
            self._give_up(
                f"model {model.name} ({model.path}): no worker became ready within {waited_s:.3g} s; "
                "raise [farm] start_timeout_s if it needs longer to load"
            )
            return
        self._record("worker_silent", worker=seat.worker, model=model.name, waited_s=round(waited_s, 3))
        self.staff.kill(seat)

    def _announce_when_ready(self) -> None:
        if self.ready and not self.announced:
            self.announced = True
            self._do(ev.AnnounceReady())

    def _record(self, event: str, **fields: Any) -> None:
        self._do(ev.Record(event, fields))

    def _do(self, action: ev.Action) -> None:
        self._actions.append(action)

    def _taken(self, now_ns: int) -> list[ev.Action]:
        actions = self._actions.copy()
        self._actions.clear()
        self._expected_ns = self.due_ns()
        return actions
