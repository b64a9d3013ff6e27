"""Runs in workers' hands: sent, ended well or badly, stopped when nobody waits or when they hang, lost with a worker.

A run is told to stop for one of two reasons: its last member that anybody waits for has left, or it takes far longer
than predicted (no heartbeat finds a worker that hangs in native code: threads of its own would answer for it). A worker
that does not come back from that in time is killed, its slots held until the kernel says that it is gone. A worker that
was told to stop is suspect and gets nothing new until it answers.

Whoever was in a run that died or hung may run once more, alone, so that the one who is to blame is found: time, the
model's table (`retry`) and the budget for second runs permitting. At the second time it is poison.
"""

from __future__ import annotations

from collections.abc import Sequence

from router import events as ev
from router.closing import Closing
from router.counters import Counters
from router.ledger import Entry, State
from router.models import ModelState
from router.outbox import Outbox
from router.reserve import Reserve
from router.roster import Roster, RunInHand, Worker, WorkerState
from shm.endings import Ending, Reason
from shm.worker import RAN, SKIPPED, TERMINATED, Member, MemberDone

HUNG_FACTOR = 4
"""Times the predicted p95, on top of `hang_ms`: one run in ten thousand takes longer where times scatter widely, and a
worker that is killed for it costs its warm-up."""
DEATHS_MAX = 2

_DONE = MemberDone()


class Runs:
    """The table of runs, and what becomes of their members."""

    __slots__ = ("_closing", "_counters", "_models", "_number", "_outbox", "_reserve", "_roster", "in_hand")

    def __init__(
        self,
        models: list[ModelState],
        roster: Roster,
        reserve: Reserve,
        closing: Closing,
        counters: Counters,
        outbox: Outbox,
    ) -> None:
        self._models = models
        self._roster = roster
        self._reserve = reserve
        self._closing = closing
        self._counters = counters
        self._outbox = outbox
        self._number = 0
        self.in_hand: dict[int, RunInHand] = {}

    def due_ns(self) -> int | None:
        """When the first of them needs a turn: an answer is due, or a worker's time is over."""
        due: int | None = None
        for run in self.in_hand.values():
            time_ns = run.due_ns
            if time_ns is not None and (due is None or time_ns < due):
                due = time_ns
            time_ns = run.kill_ns or run.limit_ns
            if time_ns and (due is None or time_ns < due):
                due = time_ns
        return due

    def start(self, worker: Worker, batch: list[Entry], now_ns: int) -> None:
        """Send a batch to a ready worker."""
        self._number += 1
        run = RunInHand(self._number, worker, batch)
        self.in_hand[run.number] = run
        worker.runs.append(run)
        self._models[worker.model].in_hand += 1
        model = self._models[worker.model]
        model.forecast.forget()
        cost_ns = model.costs.estimate(run.rows)
        begin_ns = now_ns
        if len(worker.runs) == 1:
            self._begin(run, cost_ns, now_ns)
        elif worker.free_ns > now_ns:
            begin_ns = worker.free_ns
        worker.free_ns = begin_ns + cost_ns
        if worker.free_ns > model.busy_until_ns:
            model.busy_until_ns = worker.free_ns
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
        self._counters.runs += 1
        self._counters.rows += run.rows
        self._outbox.act(ev.Dispatch(worker.number, run.number, not_after_ns, members))

    def _begin(self, run: RunInHand, cost_ns: int, now_ns: int) -> None:
        """Its worker can be at it from now on."""
        run.began_ns = now_ns
        run.limit_ns = now_ns + HUNG_FACTOR * cost_ns + self._models[run.worker.model].hang_ns

    # Ends

    def finished(self, event: ev.RunFinished, now_ns: int) -> str | None:
        """A worker says that a run has ended. Returns what is wrong with that, for which it is to be killed; who is in
        its hands runs again once it is gone."""
        run = self.in_hand.get(event.run)
        worker = self._roster.workers.get(event.worker)
        if worker is None:
            return None
        if run is None or not worker.runs or worker.runs[0] is not run:
            return f"it ended run {event.run}, which it does not have"
        if event.status == RAN and len(event.members) not in (0, len(run.entries)):
            # Whose outputs are whose cannot be told.
            return f"it answered {len(event.members)} of {len(run.entries)} members of run {event.run}"
        worker.runs.popleft()
        del self.in_hand[event.run]
        worker.run_count += 1
        model = self._models[worker.model]
        if worker.suspect:
            worker.suspect = False
            model.suspects -= 1
        model.in_hand -= 1
        model.forecast.forget()
        took_ns = now_ns - run.began_ns
        self._counters.count_copies(event.copies)
        if worker.runs:
            following = worker.runs[0]
            self._begin(following, model.costs.estimate(following.rows), now_ns)
            if following.kill_ns:
                self._suspect(worker)
        if event.status == RAN:
            model.costs.observe(run.rows, took_ns)
            self._ran(run, event, now_ns)
        else:
            if event.status == TERMINATED:
                self._stopped(run, model, took_ns)
            self._counters.runs_skipped += event.status == SKIPPED
            for entry in run.entries:
                if run.hung and entry.state is State.RUNNING and not entry.cancelled:
                    self._try_again(entry, now_ns, began=True)
                else:
                    self._closing.end_unanswered(entry, now_ns)
        return None

    def _ran(self, run: RunInHand, event: ev.RunFinished, now_ns: int) -> None:
        members: Sequence[MemberDone] = event.members or [_DONE] * len(run.entries)
        row = position = 0
        closing = self._closing
        for entry, member in zip(run.entries, members, strict=True):
            if member.reason and self._runs_again(entry, member.reason, now_ns):
                entry.retried = entry.alone = True
                self._counters.rerun += 1
                self._queue_again(entry, now_ns)
                answered = None
            else:
                answered = closing.finish(entry, event, member, row, run.rows, now_ns)
            row += entry.request.rows or 1
            if member.overflow_bytes:
                self._counters.overflows += 1
                if answered is not None:
                    overflow = ev.SendOverflow(answered.number, entry.request.id, position, member.overflow_bytes)
                    self._outbox.act(overflow)
                position += 1

    def _runs_again(self, entry: Entry, reason: int, now_ns: int) -> bool:
        model = self._models[entry.model]
        return (
            reason in model.retried
            and entry.state is State.RUNNING
            and not entry.cancelled
            and not entry.retried
            and now_ns < entry.due_ns
            and self._may_run_again(model)
        )

    def _may_run_again(self, model: ModelState) -> bool:
        if model.retries.spend():
            return True
        self._counters.rerun_refused += 1
        return False

    def _stopped(self, run: RunInHand, model: ModelState, took_ns: int) -> None:
        """It would have taken at least so long: else a model that has become slow, all of whose runs are stopped, would
        be predicted by what it was."""
        predicted_ns = model.costs.estimate(run.rows)
        if took_ns > predicted_ns:
            model.costs.observe(run.rows, took_ns)
        else:
            self._counters.worker_us_saved += (predicted_ns - took_ns) // 1000

    def lost_with(self, worker: Worker, now_ns: int) -> None:
        """The worker is gone: nobody writes to the slots of its members. Only its first run had begun: a worker ends
        one before it begins the next, and its word of that came first."""
        for position, run in enumerate(worker.runs):
            del self.in_hand[run.number]
            for entry in run.entries:
                self._try_again(entry, now_ns, began=position == 0)
        self._models[worker.model].in_hand -= len(worker.runs)
        worker.runs.clear()
        if worker.suspect:
            self._models[worker.model].suspects -= 1

    def _try_again(self, entry: Entry, now_ns: int, *, began: bool) -> None:
        """No worker has this entry any more. It may be to blame if its run had begun."""
        if entry.state is State.HELD:
            self._closing.release(entry)
            return
        model = self._models[entry.model]
        if began:
            assert entry.run is not None
            entry.killers = (*entry.killers, entry.run.worker.number)
            entry.alone = True
        if entry.cancelled:
            self._closing.end(entry, Ending.CANCELLED, Reason.CANCELLED, now_ns, run_over=True)
        elif len(entry.killers) >= DEATHS_MAX:
            self._counters.poison += 1
            session, request = entry.session.number, entry.request
            self._outbox.act(ev.Quarantine(session, entry.model, request, entry.killers))
            message = "two workers died of this request or hung in it; it is not tried again"
            self._closing.end(entry, Ending.FAILED, Reason.POISON, now_ns, run_over=True, message=message)
        elif now_ns >= entry.due_ns:
            self._closing.answer_late(entry, Reason.WORKER_DIED, now_ns, run_over=True)
        elif began and (Reason.WORKER_DIED not in model.retried or not self._may_run_again(model)):
            message = "the worker died of this request or hung in it, and it is not run again"
            self._closing.end(entry, Ending.FAILED, Reason.WORKER_DIED, now_ns, run_over=True, message=message)
        else:
            self._counters.rerun += began
            self._queue_again(entry, now_ns)

    def _queue_again(self, entry: Entry, now_ns: int) -> None:
        entry.state = State.QUEUED
        entry.run = None
        self._models[entry.model].queue.push(entry, now_ns)

    # Time

    def expire(self, now_ns: int) -> list[tuple[Worker, str]]:
        """Answer what is due, stop what hangs. Returns the workers to kill, each with why."""
        to_kill: dict[Worker, str] = {}
        for run in list(self.in_hand.values()):
            if run.due_ns is not None and run.due_ns <= now_ns:
                for entry in run.entries:
                    if entry.state is State.RUNNING and not entry.cancelled and entry.due_ns <= now_ns:
                        self._reserve.observe(now_ns - entry.due_ns)
                        self._closing.answer_late(entry, Reason.TIMEOUT, now_ns)
                self.member_left(run, now_ns)
            if run.kill_ns:
                if run.kill_ns <= now_ns:
                    run.kill_ns = run.limit_ns = 0
                    if run.worker.state is not WorkerState.LOST and run.worker not in to_kill:
                        self._counters.workers_killed += 1
                        to_kill[run.worker] = f"run {run.number} did not stop when told to"
            elif run.limit_ns and run.limit_ns <= now_ns:
                run.hung = True
                self._counters.runs_hung += 1
                self._stop(run, now_ns)
        return list(to_kill.items())

    def member_left(self, run: RunInHand, now_ns: int) -> None:
        """A member of a run that is still going was answered, cancelled or orphaned."""
        run.refresh_due()
        if run.due_ns is None and not run.kill_ns:
            self._counters.runs_terminated += 1
            self._stop(run, now_ns)

    def _stop(self, run: RunInHand, now_ns: int) -> None:
        worker = run.worker
        if worker.state is WorkerState.LOST:
            run.limit_ns = 0
            return
        if worker.runs[0] is run:
            self._suspect(worker)
        model = self._models[worker.model]
        # One that may take its time and cannot be stopped within a kernel is not hung before that has passed.
        begin_ns = run.began_ns or worker.free_ns
        run.kill_ns = max(now_ns, begin_ns + model.costs.estimate(run.rows)) + model.hang_ns
        self._outbox.act(ev.TerminateRun(worker.number, run.number))

    def _suspect(self, worker: Worker) -> None:
        if not worker.suspect:
            worker.suspect = True
            self._models[worker.model].suspects += 1

    def check_invariants(self) -> int:
        """Returns how many entries are in runs."""
        for run in self.in_hand.values():
            first = run.worker.runs[0] is run
            assert bool(run.began_ns) == first, "only the first of a worker's runs can have begun"
            if run.worker.state is WorkerState.READY:
                assert not first or run.limit_ns or run.kill_ns, "a run has no limit"
                assert run.worker.suspect == (run.worker.runs[0].kill_ns > 0)
        for model in self._models:
            assert model.in_hand == sum(len(worker.runs) for worker in self._roster.of_model(model.index))
            assert model.suspects == sum(worker.suspect for worker in self._roster.of_model(model.index))
        return self._roster.check_invariants(self.in_hand)
