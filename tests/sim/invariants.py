"""The promises as code: `Truth` judges what the router wants after each turn by the world's own account.

`before` gets the events of a turn, `after` its actions; each asserts.
"""

from __future__ import annotations

from heapq import heappop

from router import events as ev
from router.config import ModelConfig
from router.reserve import CEILING_NS, FLOOR_NS
from shm.client import Reply
from shm.endings import Ending, Reason
from tests.sim.account import Account, Asked, SeenSession, SentRun, slots_of


def instead_of(config: ModelConfig, reason: int) -> tuple[str, ...]:
    """What is tried for a reason, said again from the configuration and its documented defaults."""
    shed = {Reason.QUEUE_FULL, Reason.BYTES_FULL, Reason.IN_FLIGHT_FULL, Reason.RATE, Reason.EVICTED, Reason.DRAINING}
    failure = "shed" if reason in shed else Reason(reason).name.lower().replace("output_too_large", "model_error")
    told = getattr(config.on, failure)
    if told is None:
        told = ["rules"] if config.rules is not None and failure not in ("shed", "model_error") else []
    return tuple(step for step in told if step not in ("retry", "reject"))


class Truth(Account):
    """One router's life and whether it keeps its promises."""

    def after(self, actions: list[ev.Action], now_ns: int, *, on_time: bool) -> None:
        # Replies are gathered behind what else a turn wants; a run is stopped because of them.
        for action in actions:
            match action:
                case ev.SendReplies(session, replies):
                    assert not self.sessions[session].lost, "a closed session is sent nothing"
                    for reply in replies:
                        self._reply(session, reply, now_ns, on_time)
                case ev.AnswerInstead(session, model, request, reply, steps):
                    if session not in self.lost_now:
                        assert not self.sessions[session].lost, "a closed session is sent nothing"
                        assert steps == instead_of(self.scenario.models[model].config, reply.reason)
                        assert request.id == reply.id
                        self._reply(session, reply, now_ns, on_time)
                case ev.Quarantine(session, _, request, workers):
                    assert len(workers) == 2
                    assert self.sessions[session].requests[request.id].deaths == 2
        for action in actions:
            match action:
                case ev.SendRelease(session, ids):
                    self._release(session, ids)
                case ev.Dispatch():
                    self._dispatch(action, now_ns)
                case ev.TerminateRun(worker, run):
                    self._terminate(worker, run, now_ns)
                case ev.KillWorker(worker):
                    if worker in self.workers:
                        self.workers[worker].killed = True
                case ev.StopWorker(worker):
                    assert self.workers[worker].retired
                    assert not self.workers[worker].lost
                    assert not self.workers[worker].runs
                    assert not self.workers[worker].stopped
                    self.workers[worker].stopped = True
                case ev.CloseArena(session):
                    self._close(session)
                case ev.SendRejected(session, reason):
                    assert self.expected_lie is not None
                    assert self.expected_lie[2] == reason
                    self.endings += 1
                    self.expected_lie = None
                case ev.SendOverflow(session):
                    assert not self.sessions[session].lost or session in self.lost_now
                case ev.TellDrained():
                    assert self.draining
                    self.drained = True
        self._end_of_turn(now_ns)

    def _reply(self, session: int, reply: Reply, now_ns: int, on_time: bool) -> None:
        seen = self.sessions[session]
        if self.expected_lie is not None and (session, reply.id) == (self.expected_lie[0], self.expected_lie[1].id):
            self._check_lie(reply)
            return
        asked = seen.requests.get(reply.id)
        assert asked is not None, f"reply to request {reply.id}, which is not open"
        assert asked.arrived
        assert not asked.answered, f"request {reply.id} is answered twice"
        asked.answered = True
        self.endings += 1
        self._check_ending(asked, reply, now_ns)
        if on_time and not asked.cancelled and reply.reason != Reason.EXPIRED_ON_ARRIVAL:
            late_ns = now_ns - asked.request.deadline_ns
            assert late_ns < 0, f"request {reply.id} is answered {late_ns} ns late in a turn that is on time"
        if reply.held:
            assert asked.run is not None, "slots are held for a run that has ended"
            asked.held = True
            if not asked.cancelled:
                self._left(asked)
        else:
            if not asked.cancelled:
                self._left(asked)
            self._give_back(seen, asked)

    def _check_lie(self, reply: Reply) -> None:
        assert self.expected_lie is not None
        _, lie, reason = self.expected_lie
        self.endings += 1
        self.expected_lie = None
        assert not reply.held
        if reason in (Reason.DTYPE, Reason.DIMENSION, Reason.BYTE_LENGTH) and lie.model not in self.known_models:
            assert reply.ending in (Ending.SHED, Ending.EXPIRED), "its tensors cannot be judged yet"
            return
        assert (reply.ending, reply.reason) == (Ending.INVALID, reason), (reply, reason)

    def _check_ending(self, asked: Asked, reply: Reply, now_ns: int) -> None:
        deadline_ns = asked.request.deadline_ns
        match reply.ending:
            case Ending.MODEL:
                finished = self.finished_now.get(reply.run)
                assert finished is not None, "a model's answer without a run that ended"
                assert not asked.cancelled or id(asked) in self.cancelled_now
                assert reply.row + (asked.request.rows or 1) <= reply.run_rows
            case Ending.EXPIRED if reply.reason == Reason.EXPIRED_ON_ARRIVAL:
                assert deadline_ns <= now_ns
            case Ending.EXPIRED if reply.reason == Reason.TIMEOUT and not self.finished_now:
                assert now_ns >= deadline_ns - CEILING_NS - FLOOR_NS, "it was given up too early"
            case Ending.CANCELLED:
                assert asked.cancelled
            case Ending.FAILED if reply.reason == Reason.POISON:
                assert asked.deaths == 2 or asked.known_poison
            case Ending.FAILED if reply.reason == Reason.WORKER_DIED:
                assert asked.deaths <= 1
            case Ending.INVALID:
                assert reply.reason == Reason.STRING, f"an honest request was called invalid: {reply}"
            case Ending.SHED:
                self._check_shed(asked, reply, now_ns)

    def _check_shed(self, asked: Asked, reply: Reply, now_ns: int) -> None:
        config = self.scenario.models[asked.request.model].config
        match reply.reason:
            case Reason.DRAINING:
                assert self.draining
            case Reason.RATE:
                assert self.scenario.router.client_rate
            case Reason.IN_FLIGHT_FULL:
                assert config.in_flight_max
            case Reason.EVICTED | Reason.PREDICTED_LATE:
                assert asked.run is None, "who gives way has not begun"
                assert now_ns < asked.request.deadline_ns, "who gives way is told before its deadline"

    def _release(self, session: int, ids: list[int]) -> None:
        seen = self.sessions[session]
        assert not seen.lost, "a closed session is sent nothing"
        for number in ids:
            asked = seen.requests.get(number)
            assert asked is not None and asked.held, f"slots of {number} are released that were not held"
            self._give_back(seen, asked)

    def _give_back(self, seen: SeenSession, asked: Asked) -> None:
        for slot in slots_of(asked.request):
            assert slot not in seen.by_slot, f"slot {slot} is given back while run {seen.by_slot[slot].number} writes"
        assert asked.run is None, "slots are given back before the end of the run is known"
        del seen.requests[asked.request.id]

    def _dispatch(self, action: ev.Dispatch, now_ns: int) -> None:
        worker = self.workers[action.worker]
        assert worker.ready, "a run for a worker that is not ready"
        assert not worker.lost, "a lost worker is sent nothing"
        assert not worker.retired, "a retired worker gets no more runs"
        assert not worker.killed, "a killed worker is sent nothing"
        model = self.scenario.models[worker.model]
        members = []
        rows = 0
        run = SentRun(action.run, action.worker, [], now_ns)
        for member in action.members:
            seen = self.sessions[member.session]
            assert not seen.lost, "an orphaned request never starts"
            asked = next(a for a in seen.requests.values() if a.request.slot == member.slot and not a.held)
            request = asked.request
            assert request.model == worker.model
            assert (request.slot_count, request.rows) == (member.slot_count, member.rows)
            assert request.tensors is member.tensors
            assert not asked.answered, "an answered request never starts"
            assert not asked.cancelled, "a cancelled request never starts"
            assert not asked.known_poison, "what is known to kill workers never starts"
            assert request.deadline_ns > now_ns, "an expired request never starts"
            assert asked.deaths < 2, "poison is not run a third time"
            assert not (asked.deaths or asked.failures) or len(action.members) == 1, "a second run is alone"
            assert asked.failures < 2, "what failed is tried again once"
            assert not asked.failures or "retry" in [
                *(model.config.on.model_error or ()),
                *(model.config.on.guard or ()),
            ]
            assert asked.run is None, "a request is in two runs"
            for slot in slots_of(request):
                assert slot not in seen.by_slot, "a slot is written by two"
                seen.by_slot[slot] = run
            asked.run = run
            rows += request.rows or 1
            members.append((member.session, asked))
        if len(members) > 1:
            assert model.signature.independent_rows
            assert rows <= model.config.max_batch
            shapes = {tuple(t.dims[1:] for t in a.request.tensors or ()) for _, a in members}
            assert len(shapes) == 1, "rows of different shapes in one batch"
        assert action.not_after_ns == max(a.request.deadline_ns for _, a in members)
        run.members = members
        run.waiting = len(members)
        worker.runs[action.run] = run
        self.runs[action.run] = run
        assert len(worker.runs) <= self.scenario.router.prefetch_runs

    def _terminate(self, number: int, run_number: int, now_ns: int) -> None:
        if run_number in self.over_now:
            return
        worker = self.workers[number]
        run = worker.runs[run_number]
        assert not worker.lost or number in self.workers_lost_now, "a lost worker is sent nothing"
        assert not run.terminated, "a run is told to stop twice"
        run.terminated = True
        model = self.scenario.models[worker.model]
        if run.waiting:
            assert now_ns - run.sent_ns >= model.config.hang_ms * 1e6, "a run is stopped that somebody waits for"
            run.hung = True
            self.doomed[run_number] = run
        # The router waits for what it predicts, too; no estimate is a hundred times what runs take here.
        rows = sum(asked.request.rows or 1 for _, asked in run.members)
        patience_ns = 100 * (model.base_ns + model.row_ns * rows)
        run.kill_by_ns = now_ns + int(model.config.hang_ms * 1e6) + patience_ns

    def _close(self, session: int) -> None:
        seen = self.sessions[session]
        assert seen.lost, "a living client's memory was closed"
        assert not seen.closed, "an arena is closed twice"
        assert not seen.by_slot, "an arena is closed that a worker writes to"
        seen.closed = True

    def _end_of_turn(self, now_ns: int) -> None:
        while self.unwritten and self.unwritten[0][0] <= now_ns:
            asked = heappop(self.unwritten)[2]
            assert asked.answered or asked.cancelled, f"request {asked.request.id} has no answer by its deadline"
        for run in self.doomed.values():
            worker = self.workers[run.worker]
            if worker.lost or worker.killed:
                continue
            assert run.terminated, f"nobody waits for run {run.number}, and it was not told to stop"
            if now_ns >= run.kill_by_ns:
                raise AssertionError(f"run {run.number} did not come back and its worker was not killed")
        assert self.expected_lie is None, "a lie got no answer in its turn"

    def idle_worker(self, model: int) -> bool:
        return any(
            w.model == model and w.ready and not (w.lost or w.retired or w.killed or w.runs)
            for w in self.workers.values()
        )

    def at_rest(self) -> None:
        """The world is quiet and every frame has arrived."""
        for number, seen in self.sessions.items():
            left = [a.request.id for a in seen.requests.values() if not seen.lost]
            assert not left, f"requests {left} of session {number} never ended, or their slots were never given back"
            assert seen.closed == seen.lost, f"session {number}: its arena was not closed"
        assert not self.runs, "a run is still in somebody's hands"
