"""Everything the router decides, and nothing it does: events and the time in, actions out.

No socket, clock, random number or environment is used here, so that the promises are tested by simulation. A turn is
`handle(events, now_ns)`: all events of the turn, then whatever is due, then dispatch, so that what came together runs
together; its actions come out as one list, with one SendReplies per client.

A request's way: admission (checks, then ledger and queue) → `_dispatch` → RunFinished → reply. Time can end it
at any point on that way: `_expire` answers what is due, from the queue or over a run that is still going; the latter
keeps its slots (HELD) until the run's end or the kernel's word that the worker is gone. Nothing else frees a slot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from router import events as ev
from router.admission import Admission
from router.closing import Closing
from router.config import RouterConfig
from router.counters import Counters
from router.ledger import Entry, Ledger, State
from router.models import ModelState
from router.outbox import Outbox
from router.reserve import Reserve
from router.roster import Roster, RunInHand, Worker, WorkerState
from shm.endings import Ending, Reason
from shm.worker import RAN, SKIPPED, Member, MemberDone

PREFETCH_NS = 1_000_000
"""A worker gets a second run in hand only while a run takes less: the way to the router and back (0.1 ms) is then
more than a tenth of it. With longer runs it is better to wait and see which worker is free first."""

_DONE = MemberDone()


class RouterMachine:
    """The router's state and decisions. `counters` may be read at any time."""

    def __init__(self, config: RouterConfig) -> None:
        self.config = config
        self.counters = Counters()
        self.ledger = Ledger()
        self.models = [ModelState(index, model) for index, model in enumerate(config.models)]
        self.roster = Roster(len(self.models))
        self.reserve = Reserve()
        self._outbox = Outbox()
        self._closing = Closing(self.ledger, self.models, self.roster, self.counters, self._outbox)
        self._admission = Admission(
            self.ledger, self.models, self.roster, self.reserve, self._closing, self.counters, self._outbox
        )
        self._run_number = 0
        self._runs: dict[int, RunInHand] = {}
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
        for event in events:
            self._handlers[type(event)](event, now_ns)
        # What came in this turn is not due yet, or would not have been queued.
        if self._due_ns is not None and now_ns >= self._due_ns:
            self._expire(now_ns)
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
        for run in self._runs.values():
            if run.due_ns is not None and (due is None or run.due_ns < due):
                due = run.due_ns
            if run.kill_ns and (due is None or run.kill_ns < due):
                due = run.kill_ns
        if self._drain_until_ns is not None and (due is None or self._drain_until_ns < due):
            due = self._drain_until_ns
        return due

    # Clients

    def _on_client_attached(self, event: ev.ClientAttached, now_ns: int) -> None:
        self.ledger.attach(event.session, event.slot_count, event.slot_bytes)
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
            self._member_left(run, now_ns)
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
                self._member_left(entry.run, now_ns)

    def _on_requests_arrived(self, event: ev.RequestsArrived, now_ns: int) -> None:
        session = self.ledger.sessions.get(event.session)
        self.counters.requests += len(event.requests)
        if session is None or session.lost:
            self.counters.orphaned += len(event.requests)
            return
        take = self._admission.take
        for request in event.requests:
            take(session, request, now_ns)

    # Workers

    def _on_worker_born(self, event: ev.WorkerBorn, now_ns: int) -> None:
        self.roster.add(event.worker, event.model)

    def _on_worker_ready(self, event: ev.WorkerReady, now_ns: int) -> None:
        worker = self.roster.workers[event.worker]
        model = self.models[worker.model]
        if worker.state is WorkerState.LOADING:
            worker.state = WorkerState.READY
        model.costs.seed((cost.rows, cost.run_ns) for cost in event.costs)
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
        # Only the first run had begun: a worker ends one before it begins the next, and its word of that came first.
        for position, run in enumerate(worker.runs):
            del self._runs[run.number]
            for entry in run.entries:
                self._survive(entry, now_ns, began=position == 0)
        worker.runs.clear()
        self.roster.remove(worker)

    def _survive(self, entry: Entry, now_ns: int, *, began: bool) -> None:
        """The worker that had this entry is gone: nobody writes to its slots, and it may run once more, alone."""
        if entry.state is State.HELD:
            self._closing.release(entry)
            return
        entry.deaths += began
        entry.alone = entry.alone or began
        if entry.cancelled:
            self._closing.end(entry, Ending.CANCELLED, Reason.CANCELLED, now_ns, run_over=True)
        elif entry.deaths >= 2:
            self.counters.poison += 1
            message = "two workers died while they ran this request; it is not tried again"
            self._closing.end(entry, Ending.FAILED, Reason.POISON, now_ns, run_over=True, message=message)
        elif now_ns >= entry.due_ns:
            self._closing.answer_late(entry, Reason.WORKER_DIED, now_ns, run_over=True)
        else:
            entry.state = State.QUEUED
            entry.run = None
            self.counters.rerun += began
            self.models[entry.model].queue.push(entry, now_ns)

    def _on_run_finished(self, event: ev.RunFinished, now_ns: int) -> None:
        run = self._runs.get(event.run)
        worker = self.roster.workers.get(event.worker)
        if run is None or worker is None or not worker.runs or worker.runs[0] is not run:
            if worker is not None:
                self._kill(worker, f"it ended run {event.run}, which it does not have")
            return
        if event.status == RAN and len(event.members) not in (0, len(run.entries)):
            # Whose outputs are whose cannot be told. Its requests run again once it is gone.
            self._kill(worker, f"it answered {len(event.members)} of {len(run.entries)} members of run {event.run}")
            return
        worker.runs.popleft()
        del self._runs[event.run]
        worker.run_count += 1
        self.counters.count_copies(event.copies)
        members: Sequence[MemberDone] = event.members or [_DONE] * len(run.entries)
        if event.status == RAN:
            self.models[worker.model].costs.observe(run.rows, event.finished_ns - event.started_ns)
            row = position = 0
            for entry, member in zip(run.entries, members, strict=True):
                answered = self._closing.finish(entry, event, member, row, run.rows, now_ns)
                row += entry.request.rows or 1
                if member.overflow_bytes:
                    self.counters.overflows += 1
                    if answered is not None:
                        overflow = ev.SendOverflow(answered.number, entry.request.id, position, member.overflow_bytes)
                        self._outbox.act(overflow)
                    position += 1
        else:
            self.counters.runs_skipped += event.status == SKIPPED
            for entry in run.entries:
                self._closing.end_unanswered(entry, now_ns)
        if worker.state is WorkerState.DRAINING:
            self._stop_if_idle(worker)

    # Time

    def _expire(self, now_ns: int) -> None:
        """Answer everything that is due, kill what was told to stop and did not."""
        for model in self.models:
            if not model.queue.count:
                continue
            for entry in model.queue.take_due(now_ns):
                self.reserve.observe(now_ns - entry.due_ns)
                reason = Reason.TIMEOUT if self.roster.ready_count(model.index) else Reason.NO_WORKER
                self._closing.answer_late(entry, reason, now_ns)
        for run in list(self._runs.values()):
            if run.due_ns is not None and run.due_ns <= now_ns:
                for entry in run.entries:
                    if entry.state is State.RUNNING and not entry.cancelled and entry.due_ns <= now_ns:
                        self.reserve.observe(now_ns - entry.due_ns)
                        self._closing.answer_late(entry, Reason.TIMEOUT, now_ns)
                self._member_left(run, now_ns)
            if run.kill_ns and run.kill_ns <= now_ns:
                run.kill_ns = 0
                self.counters.workers_killed += 1
                self._kill(run.worker, f"run {run.number} did not stop when told to")

    def _member_left(self, run: RunInHand, now_ns: int) -> None:
        """A member of a run that is still going was answered, cancelled or orphaned."""
        run.refresh_due()
        if run.due_ns is None and not run.kill_ns and run.worker.state is not WorkerState.LOST:
            self.counters.runs_terminated += 1
            model = self.models[run.worker.model]
            # One that may take its time and cannot be stopped within a kernel is not hung before that has passed.
            run.kill_ns = max(now_ns, run.dispatched_ns + model.costs.estimate(run.rows)) + model.hang_ns
            self._outbox.act(ev.TerminateRun(run.worker.number, run.number))

    def instead_ended(self, ending: int) -> None:
        """The service tells how an AnswerInstead came out."""
        self._closing.count(Ending(ending))

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
                worker = self.roster.pick(model.index, 1)
                if worker is None and model.costs.estimate(model.max_batch) < PREFETCH_NS:
                    worker = self.roster.pick(model.index, self.config.prefetch_runs)
                if worker is None:
                    break
                batch = queue.take_batch(model.max_batch, model.members_max)
                if not batch:
                    break
                queue.waiting_since_ns = now_ns
                self._start(worker, batch, now_ns)

    def _start(self, worker: Worker, batch: list[Entry], now_ns: int) -> None:
        self._run_number += 1
        run = RunInHand(self._run_number, worker, batch, now_ns)
        self._runs[run.number] = run
        worker.runs.append(run)
        members = []
        not_after_ns = 0
        for entry in batch:
            session, request = entry.session.number, entry.request
            assert entry.state is State.QUEUED
            assert request.deadline_ns > now_ns, "an expired request never starts"
            entry.state = State.RUNNING
            entry.run = run
            entry.dispatched_ns = now_ns
            if request.deadline_ns > not_after_ns:
                not_after_ns = request.deadline_ns
            members.append(Member(session, request.slot, request.slot_count, request.rows, request.tensors))
        self.counters.runs += 1
        self.counters.rows += run.rows
        self._outbox.act(ev.Dispatch(worker.number, run.number, not_after_ns, members))

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
            for run in list(self._runs.values()):
                for entry in run.entries:
                    if entry.state is State.RUNNING and not entry.cancelled:
                        self._refused_by_drain += 1
                        self._closing.end(entry, Ending.SHED, Reason.DRAINING, now_ns)
                self._member_left(run, now_ns)
        elif self.ledger.open_count:
            return
        self._drain_until_ns = None
        self._outbox.act(ev.TellDrained(self._refused_by_drain))

    def check_invariants(self) -> None:
        """What must hold between turns. Tests call it after every event."""
        self.ledger.check_invariants()
        for model in self.models:
            model.queue.check_invariants()
        running = self.roster.check_invariants(self._runs)
        queued = sum(model.queue.count for model in self.models)
        assert running + queued == self.ledger.open_count, "an open entry is neither queued nor in a run"
        assert self._outbox.is_empty()
