"""Runs: what ends them, whose members run once more, and what a run teaches about costs."""

from __future__ import annotations

import pytest

from router import events as ev
from router.config import OnConfig
from router.retries import AT_FIRST
from shm.endings import Ending, Reason
from shm.worker import RAN, SKIPPED, TERMINATED, Copies, MemberDone
from tests.unit.router.build import ALWAYS, MS, Bench, request

FAILED = MemberDone(Reason.MODEL_ERROR, message="Gather: index out of range")
GUARDED = MemberDone(Reason.GUARD, message="y[0] is not finite")
AGAIN = OnConfig(model_error=["retry"], guard=["retry"])


def estimate(bench: Bench, rows: int = 1) -> int:
    return bench.machine.models[0].costs.estimate(rows)


# What is sent


def test_a_run_says_what_its_worker_needs_to_know():
    bench = Bench()
    bench.ask(request(1, slot=7, slot_count=2, rows=3, in_ms=50), request(2, in_ms=40))
    (run,) = bench.of(ev.Dispatch)
    assert (run.worker, run.run, run.not_after_ns) == (1, 1, request(1, in_ms=50).deadline_ns)
    assert [(m.session, m.slot, m.slot_count, m.rows, m.tensors) for m in run.members] == [
        (1, 2, 1, 1, None),
        (1, 7, 2, 3, None),
    ]
    assert (bench.machine.counters.runs, bench.machine.counters.rows) == (1, 4)


def test_runs_are_numbered_over_all_workers():
    bench = Bench(workers=2, max_batch=1)
    bench.ask(request(1), request(2), request(3))
    bench.finish(worker=2, run=2)
    assert [(run.worker, run.run) for run in bench.of(ev.Dispatch)] == [(2, 3)]


def test_what_a_worker_has_in_hand_adds_up_to_when_it_is_free():
    bench = Bench(prefetch=2, max_batch=1, run_ns=MS // 2)
    worker, model = bench.machine.roster.workers[1], bench.machine.models[0]
    bench.ask(request(1))
    assert worker.free_ns == bench.now + MS // 2
    bench.ask(request(2))
    assert worker.free_ns == bench.now + MS == model.busy_until_ns


def test_behind_a_run_that_is_over_its_time_a_second_begins_now_at_the_earliest():
    bench = Bench(prefetch=2, max_batch=1, run_ns=MS // 2)
    bench.ask(request(1))
    bench.now += MS
    bench.ask(request(2))
    assert bench.dispatched == [[2]]
    assert bench.machine.roster.workers[1].free_ns == bench.now + MS // 2


def test_a_model_is_busy_until_the_last_of_its_workers_is_free():
    bench = Bench(workers=2, run_ns=10 * MS)
    bench.turn(ev.RequestsArrived(1, [request(1)]), after_ms=0)
    until = bench.machine.models[0].busy_until_ns
    assert until == bench.now + 10 * MS
    bench.machine.models[0].costs.doubt(1)
    bench.ask(request(2))
    assert bench.dispatched == [[2]]
    assert bench.machine.models[0].busy_until_ns == until


# What comes back


def test_the_answer_of_each_member_lies_behind_the_rows_of_those_before_it():
    bench = Bench()
    bench.ask(request(1, rows=2, in_ms=10), request(2, rows=0, in_ms=20), request(3, rows=4, in_ms=30))
    bench.finish()
    assert {n: (r.row, r.run_rows) for n, r in bench.replies.items()} == {1: (0, 7), 2: (2, 7), 3: (3, 7)}


def test_a_member_that_did_not_get_its_answer_keeps_its_rows_in_the_run():
    bench = Bench()
    bench.ask(request(1, rows=2, in_ms=10), request(2, rows=3, in_ms=20), request(3, in_ms=30))
    bench.finish(members=[MemberDone(), FAILED, MemberDone()])
    assert bench.replies[3].row == 5


def test_files_of_members_that_get_nothing_count_among_the_files():
    bench = Bench()
    bench.ask(request(1, in_ms=10), request(2, in_ms=20), request(3, in_ms=30), request(4, in_ms=40))
    bench.turn(ev.RequestsCancelled(1, [2]))
    bench.finish(members=[MemberDone(overflow_bytes=n) for n in (11, 22, 0, 44)])
    assert bench.of(ev.SendOverflow) == [ev.SendOverflow(1, 1, 0, 11), ev.SendOverflow(1, 4, 2, 44)]
    assert bench.machine.counters.overflows == 3


def test_what_was_copied_is_counted_once():
    bench = Bench()
    for number in (1, 2):
        bench.ask(request(number, slot=1, now=bench.now))
        bench.turn(ev.RunFinished(1, number, RAN, bench.now, bench.now, [], Copies(1, 2, 3, 4, 5, 6)))
    counters = bench.machine.counters
    assert (counters.inputs_in_place, counters.input_copies, counters.input_copy_bytes) == (2, 4, 6)
    assert (counters.outputs_in_place, counters.output_copies, counters.output_copy_bytes) == (8, 10, 12)


def test_a_worker_counts_the_runs_that_it_has_ended():
    bench = Bench()
    for number in (1, 2):
        bench.ask(request(number, slot=1, now=bench.now))
        assert bench.machine.roster.workers[1].run_count == number - 1
        bench.finish(run=number)
    assert bench.machine.roster.workers[1].run_count == 2


def test_a_run_that_did_not_run_need_not_say_what_became_of_each_member():
    bench = Bench()
    bench.ask(request(1), request(2))
    bench.finish(status=TERMINATED, members=[MemberDone()])
    assert not bench.of(ev.KillWorker)
    assert {(reply.ending, reply.reason) for reply in bench.replies.values()} == {(Ending.EXPIRED, Reason.TIMEOUT)}


def test_a_wrong_word_says_what_is_wrong_with_it():
    bench = Bench(workers=2)
    bench.ask(request(1), request(2))
    bench.finish(run=7)
    assert bench.of(ev.KillWorker) == [ev.KillWorker(1, "it ended run 7, which it does not have")]
    bench.turn(ev.WorkerGone(1))
    assert bench.dispatched == [[1]]
    bench.finish(worker=2, run=2, members=[MemberDone()] * 3)
    assert bench.of(ev.KillWorker) == [ev.KillWorker(2, "it answered 3 of 1 members of run 2")]


# What it teaches


def test_a_run_teaches_what_it_cost_from_when_its_worker_could_begin():
    """A prefetched run waits in the worker's hands first: that is none of its cost."""
    bench = Bench(prefetch=2, max_batch=1, run_ns=MS // 2)
    bench.ask(request(1), request(2))
    bench.now += 5 * MS
    bench.finish(run=1)
    after_slow = estimate(bench)
    assert after_slow > MS // 2
    bench.finish(run=2)
    assert estimate(bench) < after_slow


def test_a_run_is_learned_by_its_number_of_rows():
    bench = Bench()
    bench.ask(request(1, rows=2), request(2, rows=3))
    bench.finish()
    assert 5 in bench.machine.models[0].costs._at


@pytest.mark.parametrize("status", [SKIPPED, TERMINATED])
def test_a_run_that_gave_up_early_teaches_nothing(status):
    bench = Bench(run_ns=10 * MS)
    bench.ask(request(1))
    before = estimate(bench)
    bench.turn(ev.RunFinished(1, 1, status, bench.now, bench.now, [], Copies()), after_ms=2)
    assert estimate(bench) == before


def test_a_stopped_run_that_took_longer_than_predicted_teaches_that_it_takes_so_long():
    """Else a model that has become slow, all of whose runs are stopped, would be predicted by what it was."""
    bench = Bench(run_ns=10 * MS)
    bench.ask(request(1, in_ms=500))
    before = estimate(bench)
    bench.turn(ev.RequestsCancelled(1, [1]))
    bench.turn(ev.RunFinished(1, 1, TERMINATED, bench.now, bench.now, [], Copies()), after_ms=11)
    assert estimate(bench) > before
    assert bench.machine.counters.worker_us_saved == 0


def test_the_time_that_a_stopped_run_would_still_have_taken_is_counted():
    bench = Bench(run_ns=10 * MS)
    bench.ask(request(1, in_ms=500))
    bench.turn(ev.RequestsCancelled(1, [1]))
    bench.turn(ev.RunFinished(1, 1, TERMINATED, bench.now, bench.now, [], Copies()), after_ms=4)
    assert bench.machine.counters.worker_us_saved == 6_000
    bench.ask(request(2, in_ms=500, now=bench.now))
    bench.turn(ev.RequestsCancelled(1, [2]))
    bench.turn(ev.RunFinished(1, 2, TERMINATED, bench.now, bench.now, [], Copies()), after_ms=9)
    assert bench.machine.counters.worker_us_saved == 7_000


def test_a_skipped_run_saves_nothing_and_is_counted_as_such():
    bench = Bench(run_ns=10 * MS)
    bench.ask(request(1))
    bench.finish(status=SKIPPED)
    assert (bench.machine.counters.worker_us_saved, bench.machine.counters.runs_skipped) == (0, 1)
    bench.ask(request(2, now=bench.now))
    bench.finish(run=2, status=TERMINATED)
    assert bench.machine.counters.runs_skipped == 1


# Runs that failed


@pytest.mark.parametrize("wrong", [FAILED, GUARDED], ids=["model_error", "guard"])
def test_what_failed_runs_once_more_and_alone_where_its_model_says_so(wrong):
    bench = Bench(on=AGAIN)
    bench.ask(request(1, in_ms=70), request(2, in_ms=80), request(3, in_ms=90))
    bench.finish(members=[wrong, MemberDone(), wrong])
    assert set(bench.replies) == {2}
    assert bench.dispatched == [[1]]
    bench.finish(run=2)
    assert bench.reply.ending == Ending.MODEL
    assert bench.dispatched == [[3]]
    bench.finish(run=3, members=[wrong])
    assert (bench.reply.ending, bench.reply.reason, bench.reply.message) == (
        Ending.FAILED,
        wrong.reason,
        wrong.message,
    )
    assert not bench.dispatched
    assert (bench.machine.counters.rerun, bench.machine.counters.rerun_refused) == (2, 0)


def test_what_failed_ends_so_where_its_model_says_nothing_of_trying_again():
    bench = Bench(on=OnConfig(guard=["retry"]))
    bench.ask(request(1))
    bench.finish(members=[FAILED])
    assert (bench.reply.ending, bench.reply.reason) == (Ending.FAILED, Reason.MODEL_ERROR)


def test_what_failed_twice_is_answered_by_what_comes_after_the_second_run_in_its_models_table():
    bench = Bench(on=OnConfig(model_error=["retry", "rules"]), rules=ALWAYS)
    bench.ask(request(1))
    bench.finish(members=[FAILED])
    bench.finish(run=2, members=[FAILED])
    (asked,) = bench.of(ev.AnswerInstead)
    assert (asked.steps, asked.reply.reason) == (("rules",), Reason.MODEL_ERROR)


def test_what_failed_in_itself_is_not_tried_again():
    bench = Bench(on=AGAIN)
    bench.ask(request(1))
    bench.finish(members=[MemberDone(Reason.STRING, message="not UTF-8")])
    assert (bench.reply.ending, bench.reply.reason) == (Ending.INVALID, Reason.STRING)


def test_what_failed_and_was_cancelled_is_not_tried_again():
    bench = Bench(on=AGAIN)
    bench.ask(request(1), request(2))
    bench.turn(ev.RequestsCancelled(1, [1]))
    bench.finish(members=[FAILED, MemberDone()])
    assert bench.replies[1].ending == Ending.CANCELLED
    assert not bench.dispatched


def test_what_failed_and_was_answered_before_is_not_tried_again():
    bench = Bench(on=AGAIN)
    bench.ask(request(1, in_ms=10), request(2))
    bench.pass_time(9.9)
    assert bench.reply.held
    bench.finish(members=[FAILED, MemberDone()])
    assert (bench.released, set(bench.replies)) == ([1], {2})
    assert not bench.dispatched


def test_what_failed_when_its_answer_was_due_is_not_tried_again():
    bench = Bench(on=AGAIN)
    bench.ask(request(1))
    (entry,) = bench.machine.ledger.sessions[1].entries.values()
    bench.now = entry.due_ns
    bench.turn(ev.RunFinished(1, 1, RAN, bench.now, bench.now, [FAILED], Copies()))
    assert bench.reply.reason == Reason.MODEL_ERROR


def test_what_failed_a_moment_before_its_answer_was_due_is_tried_again():
    bench = Bench(on=AGAIN)
    bench.ask(request(1))
    (entry,) = bench.machine.ledger.sessions[1].entries.values()
    bench.now = entry.due_ns - 1
    bench.turn(ev.RunFinished(1, 1, RAN, bench.now, bench.now, [FAILED], Copies()))
    assert bench.machine.counters.rerun == 1


# The budget for second runs


def test_the_budget_for_second_runs_ends_and_then_what_failed_ends():
    bench = Bench(on=AGAIN, max_batch=1, queue_requests=2000)
    spent = refused = 0
    for number in range(200):
        bench.ask(request(number, slot=number % 64, in_ms=60_000, now=bench.now))
        bench.finish(run=bench.of(ev.Dispatch)[0].run, members=[FAILED])
        spent += bool(bench.dispatched)
        refused += not bench.dispatched
        if bench.dispatched:
            bench.finish(run=bench.of(ev.Dispatch)[0].run)
    # A tenth of what came, and what there was at first.
    assert spent == AT_FIRST + 200 * 0.1
    counters = bench.machine.counters
    assert (counters.rerun, counters.rerun_refused) == (spent, refused)


# Deaths


def test_what_was_there_at_two_deaths_is_kept_with_the_names_of_both_workers():
    bench = Bench()
    asked = request(1)
    bench.ask(asked)
    bench.turn(ev.WorkerGone(1))
    assert not bench.of(ev.Quarantine)
    bench.add_worker(5)
    bench.turn(ev.WorkerGone(5))
    assert bench.of(ev.Quarantine) == [ev.Quarantine(1, 0, asked, (1, 5))]
    assert bench.actions.index(bench.of(ev.Quarantine)[0]) < bench.actions.index(bench.of(ev.SendReplies)[0])
    assert (bench.reply.ending, bench.reply.reason) == (Ending.FAILED, Reason.POISON)
    assert bench.reply.message == "two workers died of this request or hung in it; it is not tried again"


def test_poison_is_answered_by_no_rule():
    bench = Bench(rules=ALWAYS)
    bench.ask(request(1))
    bench.turn(ev.WorkerGone(1))
    bench.add_worker(2)
    bench.turn(ev.WorkerGone(2))
    assert not bench.of(ev.AnswerInstead)
    assert bench.reply.reason == Reason.POISON


def test_a_death_before_its_run_had_begun_is_not_held_against_a_request():
    bench = Bench(prefetch=2, max_batch=1)
    bench.ask(request(1), request(2))
    assert bench.dispatched == [[1], [2]]
    bench.turn(ev.WorkerGone(1))
    assert bench.machine.counters.rerun == 1
    bench.turn(ev.RequestsCancelled(1, [1]))
    bench.add_worker(2)
    assert bench.dispatched == [[2]]
    bench.turn(ev.WorkerGone(2))
    assert not bench.of(ev.Quarantine)
    assert bench.machine.counters.poison == 0


@pytest.mark.parametrize("steps", [["rules"], ["reject"]])
def test_where_a_death_is_not_to_be_tried_again_the_models_table_answers(steps):
    bench = Bench(on=OnConfig(worker_died=steps), rules=ALWAYS)
    bench.ask(request(1))
    bench.turn(ev.WorkerGone(1))
    assert (bench.reply.ending, bench.reply.reason, bench.reply.held) == (Ending.FAILED, Reason.WORKER_DIED, False)
    assert bench.reply.message == "the worker died of this request or hung in it, and it is not run again"
    assert [asked.steps for asked in bench.of(ev.AnswerInstead)] == ([("rules",)] if steps == ["rules"] else [])
    assert (bench.machine.counters.rerun, bench.machine.counters.rerun_refused) == (0, 0)


def test_where_a_death_is_not_to_be_tried_again_who_had_not_begun_runs_all_the_same():
    bench = Bench(prefetch=2, max_batch=1, on=OnConfig(worker_died=["reject"]))
    bench.ask(request(1), request(2))
    bench.turn(ev.WorkerGone(1))
    assert (bench.reply.id, bench.reply.reason) == (1, Reason.WORKER_DIED)
    bench.add_worker(2)
    assert bench.dispatched == [[2]]


def test_a_storm_of_deaths_spends_the_budget_and_then_the_models_table_answers():
    bench = Bench(workers=4, rules=ALWAYS, on=OnConfig(worker_died=["retry", "rules"]))
    for session in (1, 2):
        bench.ask(*(request(n, in_ms=60_000) for n in range(64)), session=session)
    instead = []
    for worker in (1, 2, 3, 4):
        bench.turn(ev.WorkerGone(worker))
        instead += bench.of(ev.AnswerInstead)
    may = int(AT_FIRST + 128 * 0.1)
    assert len(instead) == 128 - may
    assert {(asked.steps, asked.reply.reason) for asked in instead} == {(("rules",), Reason.WORKER_DIED)}
    counters = bench.machine.counters
    assert (counters.rerun, counters.rerun_refused) == (may, 128 - may)


def test_a_lost_clients_members_are_let_go_when_their_worker_is_gone():
    bench = Bench()
    bench.ask(request(1))
    bench.ask(request(2), session=2)
    bench.turn(ev.ClientLost(1))
    bench.turn(ev.WorkerGone(1))
    assert bench.of(ev.CloseArena) == [ev.CloseArena(1)]
    assert bench.machine.counters.rerun == 0
