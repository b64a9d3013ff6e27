"""Everything the router decides, and nothing it does: events and the time in, actions out.

No socket, clock, random number or environment is used here, so that the promises are tested by simulation. A turn is
`handle(events, now_ns)`: all events of the turn, then whatever is due, then dispatch, so that what came together runs
together; its actions come out as one list, with one SendReplies per client.

A request's way: admission (checks, then ledger and queue) → `_dispatch` → RunFinished → reply. Time can end it
at any point on that way: what is due is answered, from the queue or over a run that is still going; the latter keeps
its slots (HELD) until the run's end or the kernel's word that the worker is gone. Nothing else frees a slot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from router import events as ev
from router.admission import Admission
from router.closing import Closing
from router.config import RouterConfig
from router.costs import WAY_NS
from router.counters import Counters
from router.ledger import Entry, Ledger, State
from router.models import ModelState
from router.outbox import Outbox
from router.reserve import Reserve
from router.roster import Roster, Worker, WorkerState
from router.runs import Runs
from shm.endings import Ending, Reason

PREFETCH_NS = 1_000_000
"""A worker gets a second run in hand when it is predicted to have done the first within this: it then begins at once,
and the way to the router and back (0.1 to 0.3 ms) is no loss. Sooner, it is better to wait and see who comes, and which
worker is free first. One that is over its time by as much may hang, and gets none."""

HALF_PAYS = 1.1
"""By how much a row may cost more in a smaller batch: less than what a worker loses that finds nothing queued while all
that is in flight runs elsewhere (a 4 x 1024 MLP with 40 in flight: a fifth of its rows a second)."""


class RouterMachine:
    """The router's state and decisions. `counters` may be read at any time.

    admission: what decides who is let in; tests compare others with it.
    """

    def __init__(self, config: RouterConfig, admission: type[Admission] = Admission) -> None:
        self.config = config
        self.counters = Counters()
        self.ledger = Ledger(len(config.models))
        self.models = [ModelState(index, model) for index, model in enumerate(config.models)]
        self.roster = Roster(len(self.models))
        self.reserve = Reserve()
        self._outbox = Outbox()
        self._closing = Closing(self.ledger, self.models, self.roster, self.counters, self._outbox)
        self._admission = admission(
            config, self.ledger, self.models, self.roster, self.reserve, self._closing, self.counters, self._outbox
        )
        self._runs = Runs(self.models, self.roster, self.reserve, self._closing, self.counters, self._outbox)
        self._drain_until_ns: int | None = None
        self._refused_by_drain = 0
        self._wake_ns: int | None = None
        self._due_ns: int | None = None
        self._handlers: dict[type[Any], Callable[[Any, int], None]] = {
            ev.RequestsArrived: self._on_requests_arrived,
            ev.RunFinished: self._on_run_finished,
            ev.RequestsCancelled: self._on_requests_cancelled,
            ev.ClientAttached: self._on_client_attached,
            ev.ClientLost: self._on_client_lost,
            ev.WorkerBorn: self._on_worker_born,
            ev.WorkerReady: self._on_worker_ready,
            ev.WorkerRetired: self._on_worker_retired,
            ev.WorkerLost: self._on_worker_lost,
            ev.WorkerGone: self._on_worker_gone,
            ev.DrainStarted: self._on_drain_started,
            ev.TimePassed: lambda event, now_ns: None,
        }

    def handle(self, events: Sequence[ev.Event], now_ns: int) -> list[ev.Action]:
        """One turn."""
        due = self._due_ns is not None and now_ns >= self._due_ns
        if due:
            # Before anybody comes for whose sake they would be asked to give way.
            self._expire_queued(now_ns)
        for event in events:
            self._handlers[type(event)](event, now_ns)
        if due:
            # After the events, among which is an answer that came at the last moment. What came in this turn is not
            # due yet, or would not have been queued.
            for worker, why in self._runs.expire(now_ns):
                self._kill(worker, why)
        if self._admission.draining:
            self._finish_drain(now_ns)
        self._dispatch(now_ns)
        self._due_ns = self._earliest_ns()
        return self._outbox.collect()

    def next_due_ns(self) -> int | None:
        """When the next turn is needed if nothing happens before."""
        return self._due_ns

    def _earliest_ns(self) -> int | None:
        due = self._wake_ns
        for model in self.models:
            if model.queue.count:
                head = model.queue.due_ns()
                if head is not None and (due is None or head < due):
                    due = head
        run_due = self._runs.due_ns()
        if run_due is not None and (due is None or run_due < due):
            due = run_due
        if self._drain_until_ns is not None and (due is None or self._drain_until_ns < due):
            due = self._drain_until_ns
        return due

    # Clients

    def _on_client_attached(self, event: ev.ClientAttached, now_ns: int) -> None:
        self.ledger.attach(event.session, event.slot_count, event.slot_bytes, event.denied)
        self.counters.clients_attached += 1

    def _on_client_lost(self, event: ev.ClientLost, now_ns: int) -> None:
        session = self.ledger.sessions.get(event.session)
        if session is None or session.lost:
            return
        session.lost = True
        self.counters.clients_lost += 1
        self._outbox.forget(session.number)
        runs = []
        for entry in list(session.entries.values()):
            self.counters.orphaned += entry.state is not State.HELD
            if entry.state is State.QUEUED:
                self.models[entry.model].queue.forget(entry)
                self.ledger.close(entry)
            elif entry.state is State.RUNNING:
                assert entry.run is not None
                entry.state = State.HELD
                runs.append(entry.run)
        for run in runs:
            self._runs.member_left(run, now_ns)
        self._closing.close_if_over(session)

    def _on_requests_cancelled(self, event: ev.RequestsCancelled, now_ns: int) -> None:
        session = self.ledger.sessions.get(event.session)
        if session is None or session.lost:
            return
        for number in event.ids:
            entry = session.entries.get(number)
            if entry is None or entry.cancelled:
                continue
            if entry.state is State.QUEUED:
                self.models[entry.model].queue.forget(entry)
                self._closing.end(entry, Ending.CANCELLED, Reason.CANCELLED, now_ns)
            elif entry.state is State.RUNNING:
                # Its reply waits for the run, since that is what gives the slots back.
                assert entry.run is not None
                entry.cancelled = True
                self._runs.member_left(entry.run, now_ns)

    def _on_requests_arrived(self, event: ev.RequestsArrived, now_ns: int) -> None:
        session = self.ledger.sessions.get(event.session)
        self.counters.requests += len(event.requests)
        if session is None or session.lost:
            self.counters.orphaned += len(event.requests)
            return
        take = self._admission.take
        poison = event.poison
        for request in event.requests:
            take(session, request, now_ns, poison=request.id in poison if poison else False)

    # Workers

    def _on_worker_born(self, event: ev.WorkerBorn, now_ns: int) -> None:
        self.roster.add(event.worker, event.model)

    def _on_worker_ready(self, event: ev.WorkerReady, now_ns: int) -> None:
        worker = self.roster.workers[event.worker]
        model = self.models[worker.model]
        if worker.state is WorkerState.LOADING:
            worker.state = WorkerState.READY
        rate = model.config.worker_rows_per_second
        if rate:
            # Measured under load, which a warm-up is not.
            model.costs.seed([(model.config.max_batch, int(model.config.max_batch / rate * 1e9))])
        model.costs.seed((cost.rows, cost.run_ns + WAY_NS) for cost in event.costs)
        if model.signature != event.signature:
            model.adopt(event.signature)
            model.ready = False
        self._publish(model)

    def _on_worker_retired(self, event: ev.WorkerRetired, now_ns: int) -> None:
        worker = self.roster.workers.get(event.worker)
        if worker is None or worker.state is WorkerState.LOST:
            return
        worker.state = WorkerState.DRAINING
        self._publish(self.models[worker.model])
        self._stop_if_idle(worker)

    def _stop_if_idle(self, worker: Worker) -> None:
        if worker.state is WorkerState.DRAINING and not worker.runs and not worker.stopping:
            worker.stopping = True
            self._outbox.act(ev.StopWorker(worker.number))

    def _on_worker_lost(self, event: ev.WorkerLost, now_ns: int) -> None:
        worker = self.roster.workers.get(event.worker)
        if worker is None or worker.state is WorkerState.LOST:
            return
        if worker.stopping:
            worker.state = WorkerState.LOST
            self._publish(self.models[worker.model])
            return
        self.counters.workers_lost += 1
        # Most likely it is dead already; if it is not, it must not write any more.
        self._kill(worker, "its socket ended")

    def _kill(self, worker: Worker, why: str) -> None:
        """It is lost from this moment: a run sent to it now would die with it, and be blamed for that. What it had
        said before may still come in, and counts."""
        worker.state = WorkerState.LOST
        self._publish(self.models[worker.model])
        self._outbox.act(ev.KillWorker(worker.number, why))

    def _on_worker_gone(self, event: ev.WorkerGone, now_ns: int) -> None:
        worker = self.roster.workers.get(event.worker)
        if worker is None:
            return
        self._on_worker_lost(ev.WorkerLost(event.worker), now_ns)
        self._runs.lost_with(worker, now_ns)
        self.roster.remove(worker, now_ns)

    def _on_run_finished(self, event: ev.RunFinished, now_ns: int) -> None:
        wrong = self._runs.finished(event, now_ns)
        worker = self.roster.workers.get(event.worker)
        if worker is None:
            return
        if wrong is not None:
            self._kill(worker, wrong)
        elif worker.state is WorkerState.DRAINING:
            self._stop_if_idle(worker)

    # Time

    def _expire_queued(self, now_ns: int) -> None:
        """Answer everything that is due and has not begun."""
        for model in self.models:
            if not model.queue.count:
                continue
            for entry in model.queue.take_due(now_ns):
                self.reserve.observe(now_ns - entry.due_ns)
                reason = Reason.TIMEOUT if self.roster.ready_count(model.index) else Reason.NO_WORKER
                self._closing.answer_late(entry, reason, now_ns)

    def instead_ended(self, ending: int, reason: int) -> None:
        """The service tells how an AnswerInstead came out."""
        self._closing.count(Ending(ending), reason)

    def reasons(self) -> dict[str, int]:
        """Why requests ended without their model's answer, and how many."""
        return {Reason(reason).code: count for reason, count in sorted(self._closing.reasons.items())}

    # Dispatch

    def _dispatch(self, now_ns: int) -> None:
        """Hand what is queued to whoever is free: an idle worker takes what there is, at once."""
        self._wake_ns = None
        for model in self.models:
            queue = model.queue
            while queue.count:
                if model.max_delay_ns and queue.rows < model.max_batch:
                    wake_ns = queue.waiting_since_ns + model.max_delay_ns
                    due_ns = queue.due_ns()
                    if due_ns is not None:
                        # Who waits for company must still be answered by the model.
                        wake_ns = min(wake_ns, due_ns - model.costs.estimate(queue.rows))
                    if now_ns < wake_ns:
                        self._wake_ns = wake_ns if self._wake_ns is None else min(self._wake_ns, wake_ns)
                        break
                worker = self.roster.idle(model.index)
                if worker is None and self.config.prefetch_runs > 1:
                    worker = self.roster.soonest(model.index, now_ns - PREFETCH_NS, now_ns + PREFETCH_NS)
                if worker is None:
                    break
                batch = self._next_batch(model, worker, now_ns)
                if batch is None:
                    break
                if batch:
                    queue.waiting_since_ns = now_ns
                    self._runs.start(worker, batch, now_ns)

    def _next_batch(self, model: ModelState, worker: Worker, now_ns: int) -> list[Entry] | None:
        """The next batch for this worker, no larger than lets the first of it be in time. Empty when the first cannot
        be in time at all, and was told so; None when it had better wait for a worker that is free sooner."""
        queue, costs = model.queue, model.costs
        begin_ns = max(now_ns, worker.free_ns) if worker.runs else now_ns
        first = queue.first()
        rows = first.request.rows or 1
        left_ns = first.due_ns - begin_ns
        most = rows if first.alone else max(rows, min(model.max_batch, queue.rows))
        done_ns = costs.likely(most)
        halves = done_ns > PREFETCH_NS and not model.max_delay_ns and costs.knows(most)
        while halves and done_ns > PREFETCH_NS and most // 2 >= rows:
            # Where a batch of half the rows takes little more than half the time, the other half need not wait for it,
            # and is there when the next worker is free.
            half_ns = costs.likely(most // 2)
            if half_ns * most > HALF_PAYS * done_ns * (most // 2):
                break
            most //= 2
            done_ns = half_ns
        if done_ns > left_ns:
            if costs.likely(rows) > left_ns:
                if worker.runs:
                    return None
                if queue.count == 1 and costs.median(rows) <= left_ns:
                    # Nobody else wants this worker's time.
                    return queue.take_batch(rows, 1)
                queue.forget(first)
                costs.doubt(rows)
                self.counters.dropped += 1
                self._closing.answer_late(first, Reason.PREDICTED_LATE, now_ns)
                return []
            most = max(rows, costs.rows_within(left_ns, most))
            done_ns = costs.likely(most)
        return queue.take_batch(most, model.members_max, begin_ns + done_ns)

    def _publish(self, model: ModelState) -> None:
        ready = self.roster.ready_count(model.index) > 0
        if ready != model.ready:
            model.ready = ready
            self._outbox.act(ev.PublishModel(model.index))

    def _on_drain_started(self, event: ev.DrainStarted, now_ns: int) -> None:
        self._admission.draining = True
        self._drain_until_ns = now_ns + event.timeout_ns

    def _finish_drain(self, now_ns: int) -> None:
        if self._drain_until_ns is None:
            return
        if now_ns >= self._drain_until_ns:
            for model in self.models:
                for entry in model.queue.take_all():
                    self._refused_by_drain += 1
                    self._closing.end(entry, Ending.SHED, Reason.DRAINING, now_ns)
            for run in list(self._runs.in_hand.values()):
                for entry in run.entries:
                    if entry.state is State.RUNNING and not entry.cancelled:
                        self._refused_by_drain += 1
                        self._closing.end(entry, Ending.SHED, Reason.DRAINING, now_ns)
                self._runs.member_left(run, now_ns)
        elif self.ledger.open_count:
            return
        self._drain_until_ns = None
        self._outbox.act(ev.TellDrained(self._refused_by_drain))

    def check_invariants(self) -> None:
        """What must hold between turns. Tests call it after every event."""
        self.ledger.check_invariants()
        for model in self.models:
            model.queue.check_invariants()
        running = self._runs.check_invariants()
        queued = sum(model.queue.count for model in self.models)
        assert running + queued == self.ledger.open_count, "an open entry is neither queued nor in a run"
        assert self._outbox.is_empty()
