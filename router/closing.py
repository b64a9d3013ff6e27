"""The ends of requests: each is answered once, and its slots are given back once nobody may write to them.

`end` and `finish` are the only places that answer an opened request; `release` is the only one that gives slots back
after the answer. Both moments coincide unless a run is still going (state HELD between them).
"""

from __future__ import annotations

from router import events as ev
from router.counters import Counters
from router.ledger import Entry, Ledger, Session, State
from router.models import ModelState
from router.outbox import Outbox
from router.roster import Roster
from shm.client import Reply, Stages
from shm.endings import Ending, Reason
from shm.worker import MemberDone

AWAY_MS = 1_000
"""When to come back to a farm that drains or has no worker: nobody knows, and once a second disturbs nobody."""
RETRY_AFTER_MS_MAX = 60_000
"""Beyond that an estimate says nothing; and the wire's field has a limit, which rows of no bytes would pass."""


class Closing:
    """Answers and closes entries of one machine, into its outbox."""

    __slots__ = ("_counters", "_ledger", "_models", "_outbox", "_roster", "reasons")

    def __init__(
        self, ledger: Ledger, models: list[ModelState], roster: Roster, counters: Counters, outbox: Outbox
    ) -> None:
        self._ledger = ledger
        self._models = models
        self._roster = roster
        self._counters = counters
        self._outbox = outbox
        self.reasons: dict[int, int] = {}
        """How often each reason was given."""

    def finish(
        self, entry: Entry, event: ev.RunFinished, member: MemberDone, row: int, run_rows: int, now_ns: int
    ) -> Session | None:
        """A run of the entry is over and well; end it with what the run says of this member.

        Returns the session when the entry got its model's answer, None when it ended otherwise.
        """
        if entry.state is State.HELD or entry.cancelled:
            self.end_unanswered(entry, now_ns)
            return None
        if member.reason:
            ending = Ending.INVALID if member.reason == Reason.STRING else Ending.FAILED
            self.end(entry, ending, Reason(member.reason), now_ns, run_over=True, message=member.message)
            return None
        request, session = entry.request, entry.session
        self._counters.answers_model += 1
        stages = Stages(
            entry.arrived_ns,
            entry.dispatched_ns - entry.arrived_ns,
            event.started_ns - entry.dispatched_ns,
            event.finished_ns - event.started_ns,
            now_ns - event.finished_ns,
        )
        # Positional, in the order of Reply's fields: this runs for every request.
        reply = Reply(
            request.id, 0, 0, False, request.rows, stages, event.run, row, run_rows,
            member.outputs, member.inline, member.overflow_bytes > 0,
        )  # fmt: skip
        model = self._models[entry.model]
        if not reply.overflow:
            # The model's answer may be wanted again, or the rules' opinion of it.
            if model.keeps_answers and request.key is not None:
                self._outbox.act(ev.KeepAnswer(session.number, model.index, request, reply))
            if model.sample_every:
                model.to_sample -= 1
                if not model.to_sample:
                    model.to_sample = model.sample_every
                    self._outbox.act(ev.CompareRules(session.number, model.index, request, reply))
        self._ledger.close(entry)
        self._outbox.reply(session.number, reply)
        return session

    def end_unanswered(self, entry: Entry, now_ns: int) -> None:
        """The entry's run is over and has no answer for it."""
        if entry.state is State.HELD:
            self.release(entry)
        elif entry.cancelled:
            self.end(entry, Ending.CANCELLED, Reason.CANCELLED, now_ns, run_over=True)
        else:
            self.answer_late(entry, Reason.TIMEOUT, now_ns, run_over=True)

    def answer_late(self, entry: Entry, reason: Reason, now_ns: int, *, run_over: bool = False) -> None:
        """No model answer will be there in time."""
        if reason is Reason.PREDICTED_LATE:
            self.end(entry, Ending.SHED, reason, now_ns, run_over=run_over)
        elif reason is Reason.WORKER_DIED:
            message = "the worker died, and no time was left to run it again"
            self.end(entry, Ending.FAILED, reason, now_ns, run_over=run_over, message=message)
        else:
            self.end(entry, Ending.EXPIRED, reason, now_ns, run_over=run_over)

    def end(
        self,
        entry: Entry,
        ending: Ending,
        reason: Reason,
        now_ns: int,
        *,
        run_over: bool = False,
        message: str | None = None,
        retry_after_ms: int = 0,
    ) -> None:
        """Answer an entry that the model does not answer: by what its model's table has for the reason, else so.

        ending: what is said when nothing else can answer.
        run_over: no worker has it any more; else the slots of a running entry stay held.
        retry_after_ms: for who is shed; 0: when what is queued and in hand now will be done.
        """
        session, request = entry.session, entry.request
        held = entry.state is State.RUNNING and not run_over
        reply = Reply(
            request.id,
            ending,
            reason,
            held,
            request.rows,
            Stages(entry.arrived_ns, (entry.dispatched_ns or now_ns) - entry.arrived_ns),
            message=message,
            retry_after_ms=(retry_after_ms or self._retry_after_ms(entry.model, reason, now_ns))
            if ending is Ending.SHED
            else 0,
        )
        if held:
            self._counters.held += 1
            entry.state = State.HELD
        else:
            self._ledger.close(entry)
        if session.lost:
            self.close_if_over(session)
            return
        steps = self._models[entry.model].instead.get(reason)
        if steps is not None:
            self._outbox.act(ev.AnswerInstead(session.number, entry.model, request, reply, steps))
        else:
            self.count(ending, reason)
            self._outbox.reply(session.number, reply)

    def release(self, entry: Entry) -> None:
        """The slots of an entry that was answered before are free at last."""
        session = entry.session
        self._ledger.close(entry)
        if session.lost:
            self.close_if_over(session)
        else:
            self._counters.released += 1
            self._outbox.release(session.number, entry.request.id)

    def close_if_over(self, session: Session) -> None:
        """Once a lost client's last run has ended, its memory can go."""
        if session.lost and not session.entries:
            self._ledger.forget(session)
            self._outbox.act(ev.CloseArena(session.number))

    def count(self, ending: Ending, reason: int) -> None:
        """How a request ended that its model did not answer, and why."""
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        counters = self._counters
        match ending:
            case Ending.RULES:
                counters.answers_rules += 1
            case Ending.LAST_GOOD:
                counters.answers_last_good += 1
            case Ending.CONSTANT:
                counters.answers_constant += 1
            case Ending.SHED:
                counters.shed += 1
            case Ending.EXPIRED:
                counters.expired += 1
            case Ending.FAILED:
                counters.failed += 1
            case Ending.CANCELLED:
                counters.cancelled += 1
            case Ending.INVALID:
                counters.invalid += 1
            case _:
                raise AssertionError(f"{ending!r} is counted elsewhere")

    def _retry_after_ms(self, model_index: int, reason: Reason, now_ns: int) -> int:
        """When what is queued and in hand now will be done: whoever comes then finds the workers free."""
        if reason in (Reason.NO_WORKER, Reason.DRAINING):
            return AWAY_MS
        model = self._models[model_index]
        forecast = model.forecast
        forecast.look(self._roster.of_model(model_index), model.max_batch, now_ns)
        wait_ms = (forecast.finish_ns(max(1, model.queue.rows)) - now_ns) // 1_000_000
        return min(max(1, wait_ms), RETRY_AFTER_MS_MAX)
