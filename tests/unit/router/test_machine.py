"""The machine, turn by turn: a request's way from arrival to its one end, as far as no worker dies."""

from __future__ import annotations

import pytest

from router import events as ev
from shm.endings import Ending, Reason
from shm.worker import SKIPPED, TERMINATED, MemberDone
from tests.unit.router.build import ALWAYS, MS, SINGLE, Bench, request

# The model's answer


def test_an_idle_worker_gets_what_has_come_at_once_as_one_batch():
    bench = Bench()
    bench.ask(request(1), request(2, rows=3), request(3, in_ms=200))
    (run,) = bench.of(ev.Dispatch)
    assert bench.dispatched == [[1, 2, 3]]
    assert run.not_after_ns == request(3, in_ms=200).deadline_ns


def test_the_models_answer_says_where_in_which_run_it_was_and_how_long_it_took():
    bench = Bench()
    bench.ask(request(1, rows=2, in_ms=50), request(2, rows=3))
    bench.now += 2 * MS
    bench.finish()
    reply = bench.replies[2]
    assert (reply.ending, reply.held, reply.run, reply.row, reply.run_rows, reply.rows) == (0, False, 1, 2, 5, 3)
    assert reply.stages is not None
    stages = reply.stages
    assert (stages.queue_ns, stages.to_worker_ns, stages.run_ns, stages.from_worker_ns) == (0, 2 * MS, bench.run_ns, 0)


def test_replies_of_one_turn_go_out_as_one_frame_a_client():
    bench = Bench()
    bench.ask(request(1), request(2))
    bench.finish()
    (sent,) = bench.of(ev.SendReplies)
    assert [reply.id for reply in sent.replies] == [1, 2]


def test_a_bad_member_fails_alone():
    bench = Bench()
    bench.ask(request(1), request(2), request(3))
    wrong = MemberDone(Reason.MODEL_ERROR, message="Gather: index out of range")
    bench.finish(members=[MemberDone(), wrong, MemberDone(Reason.STRING, message="not UTF-8")])
    assert [bench.replies[n].ending for n in (1, 2, 3)] == [Ending.MODEL, Ending.FAILED, Ending.INVALID]
    assert bench.replies[2].message == "Gather: index out of range"


def test_an_overflow_goes_to_its_request_by_its_place_among_the_files():
    bench = Bench()
    bench.ask(request(1, in_ms=10), request(2, in_ms=50), request(3, in_ms=60))
    bench.pass_time(9.9)
    assert bench.replies[1].held
    bench.finish(members=[MemberDone(overflow_bytes=111), MemberDone(), MemberDone(overflow_bytes=333)])
    assert bench.of(ev.SendOverflow) == [ev.SendOverflow(1, 3, 1, 333)]
    assert bench.replies[3].overflow and not bench.replies[2].overflow


def test_models_that_batch_no_rows_run_one_request_at_a_time():
    bench = Bench(signature=SINGLE)
    bench.ask(request(1), request(2))
    assert bench.dispatched == [[1]]
    bench.finish()
    assert bench.dispatched == [[2]]


def test_short_runs_are_prefetched_and_long_ones_are_not():
    short, long = Bench(prefetch=2, max_batch=1), Bench(prefetch=2, max_batch=1, run_ns=2 * MS)
    for bench, runs in ((short, [[1], [2]]), (long, [[1]])):
        bench.ask(request(1), request(2), request(3))
        assert bench.dispatched == runs


def test_the_worker_with_the_fewest_runs_in_hand_is_next():
    bench = Bench(workers=2, prefetch=2, max_batch=1)
    bench.ask(request(1), request(2), request(3))
    assert [run.worker for run in bench.of(ev.Dispatch)] == [1, 2, 1]


# Waiting for company


def test_a_request_waits_for_company_no_longer_than_told():
    bench = Bench(max_delay_ms=5, max_batch=4)
    bench.ask(request(1))
    assert not bench.dispatched
    assert bench.machine.next_due_ns() == bench.now + 5 * MS
    bench.turn(ev.RequestsArrived(1, [request(2)]), after_ms=3)
    assert not bench.dispatched
    bench.pass_until_due()
    assert bench.dispatched == [[1, 2]]


def test_a_full_batch_waits_for_nobody():
    bench = Bench(max_delay_ms=5, max_batch=2)
    bench.ask(request(1), request(2))
    assert bench.dispatched == [[1, 2]]


def test_nobody_waits_for_company_until_it_is_too_late():
    bench = Bench(max_delay_ms=500, rules=ALWAYS)
    bench.ask(request(1, in_ms=20))
    bench.pass_until_due()
    assert bench.dispatched == [[1]]
    bench.finish()
    assert bench.reply.ending == Ending.MODEL


# Time


def test_a_queued_request_is_answered_before_its_deadline_and_never_runs():
    bench = Bench(max_batch=1, run_ns=50 * MS)
    bench.ask(request(1, in_ms=900))
    bench.ask(request(2, in_ms=150))
    bench.pass_until_due()
    assert bench.now < request(2, in_ms=150).deadline_ns
    assert (bench.reply.id, bench.reply.ending, bench.reply.reason) == (2, Ending.EXPIRED, Reason.TIMEOUT)
    assert not bench.reply.held
    bench.finish()
    assert not bench.dispatched


def test_a_request_without_any_worker_left_expires_for_that_reason():
    bench = Bench()
    bench.turn(ev.WorkerLost(1))
    bench.ask(request(1))
    bench.pass_until_due()
    assert (bench.reply.ending, bench.reply.reason) == (Ending.EXPIRED, Reason.NO_WORKER)


@pytest.mark.parametrize("rules", [None, ALWAYS])
def test_a_running_request_is_answered_before_its_deadline_and_its_slots_are_held(rules):
    bench = Bench(rules=rules)
    bench.ask(request(1, in_ms=50))
    bench.pass_until_due()
    assert bench.now < request(1, in_ms=50).deadline_ns
    assert (bench.reply.ending, bench.reply.reason, bench.reply.held) == (Ending.EXPIRED, Reason.TIMEOUT, True)
    assert len(bench.of(ev.AnswerInstead)) == (rules is not None)
    assert bench.machine.ledger.open_count == 1


@pytest.mark.parametrize("status", [0, SKIPPED, TERMINATED])
def test_held_slots_are_released_once_by_the_end_of_the_run_and_not_answered_again(status):
    bench = Bench()
    bench.ask(request(1, in_ms=50))
    bench.pass_until_due()
    bench.finish(status=status)
    assert (bench.released, bench.replies) == ([1], {})
    assert bench.machine.ledger.open_count == 0


def test_a_run_with_a_living_member_is_not_told_to_stop():
    bench = Bench()
    bench.ask(request(1, in_ms=20), request(2, in_ms=80))
    bench.pass_time(19.9)
    assert bench.replies[1].held
    assert not bench.of(ev.TerminateRun)
    bench.finish()
    assert (bench.released, bench.reply.id, bench.reply.ending) == ([1], 2, Ending.MODEL)


def test_a_run_past_its_last_member_is_told_to_stop_then_its_worker_is_killed_once():
    bench = Bench(hang_ms=30)
    bench.ask(request(1, in_ms=20), request(2, in_ms=25))
    bench.pass_time(24.9)
    assert bench.of(ev.TerminateRun) == [ev.TerminateRun(1, 1)]
    assert bench.machine.next_due_ns() == bench.now + 30 * MS
    bench.pass_time(29)
    assert bench.actions == []
    bench.pass_until_due()
    assert [kill.worker for kill in bench.of(ev.KillWorker)] == [1]
    bench.pass_time(1000)
    assert bench.actions == []


def test_a_run_that_is_predicted_to_take_long_is_not_hung_before_that():
    bench = Bench(hang_ms=30, run_ns=500 * MS)
    bench.ask(request(1, in_ms=900))
    bench.turn(ev.RequestsCancelled(1, [1]))
    assert bench.of(ev.TerminateRun)
    assert bench.machine.next_due_ns() == bench.now + 530 * MS


def test_a_run_that_comes_back_in_time_does_not_cost_its_worker():
    bench = Bench(hang_ms=30)
    bench.ask(request(1, in_ms=20))
    bench.pass_time(19.9)
    bench.finish(status=TERMINATED)
    bench.pass_time(100)
    assert not bench.of(ev.KillWorker)
    bench.ask(request(2, now=bench.now))
    assert bench.dispatched == [[2]]


def test_a_run_that_its_worker_skipped_ends_in_a_named_refusal():
    bench = Bench()
    bench.ask(request(1, in_ms=5))
    bench.now += 10 * MS
    bench.finish(status=SKIPPED)
    assert (bench.reply.ending, bench.reply.held) == (Ending.EXPIRED, False)
    assert bench.machine.counters.runs_skipped == 1


def test_how_a_instead_ended_is_counted_when_the_service_tells():
    bench = Bench(rules=ALWAYS, run_ns=10 * MS)
    bench.ask(request(1, in_ms=5))
    counters = bench.machine.counters
    assert (counters.answers_rules, counters.expired) == (0, 0)
    bench.machine.instead_ended(Ending.RULES, Reason.TIMEOUT)
    assert counters.answers_rules == 1


# Cancel


def test_a_cancelled_request_in_the_queue_ends_at_once_and_never_runs():
    bench = Bench(max_batch=1)
    bench.ask(request(1), request(2), request(3))
    bench.turn(ev.RequestsCancelled(1, [2]))
    assert (bench.reply.id, bench.reply.ending, bench.reply.held) == (2, Ending.CANCELLED, False)
    bench.finish()
    assert bench.dispatched == [[3]]


def test_a_cancelled_request_in_a_run_is_answered_by_its_end_and_the_run_is_told_to_stop():
    bench = Bench()
    bench.ask(request(1))
    bench.turn(ev.RequestsCancelled(1, [1]))
    assert bench.actions == [ev.TerminateRun(1, 1)]
    bench.turn(ev.RequestsCancelled(1, [1]))
    assert bench.actions == []
    bench.finish(status=TERMINATED)
    assert (bench.reply.ending, bench.reply.held, bench.released) == (Ending.CANCELLED, False, [])


def test_a_cancelled_request_gets_no_second_answer_at_its_deadline():
    bench = Bench()
    bench.ask(request(1, in_ms=20), request(2, in_ms=90))
    bench.turn(ev.RequestsCancelled(1, [1]))
    bench.pass_time(50)
    assert bench.actions == []
    bench.finish()
    assert [bench.replies[n].ending for n in (1, 2)] == [Ending.CANCELLED, Ending.MODEL]


@pytest.mark.parametrize(("session", "number"), [(1, 9), (2, 1), (99, 1)])
def test_cancelling_what_is_not_there_does_nothing(session, number):
    bench = Bench()
    bench.ask(request(1))
    assert bench.turn(ev.RequestsCancelled(session, [number])) == []


def test_cancelling_what_is_held_does_nothing():
    bench = Bench()
    bench.ask(request(1, in_ms=10))
    bench.pass_time(9.9)
    assert bench.turn(ev.RequestsCancelled(1, [1])) == []


# Client loss


def test_the_memory_of_an_idle_client_goes_with_it():
    bench = Bench()
    assert bench.turn(ev.ClientLost(1)) == [ev.CloseArena(1)]
    assert bench.turn(ev.ClientLost(1)) == []
    assert bench.turn(ev.ClientLost(99)) == []


def test_queued_requests_of_a_lost_client_never_run():
    bench = Bench(max_batch=1)
    bench.ask(request(1), session=2)
    bench.ask(request(1), request(2))
    assert bench.turn(ev.ClientLost(1)) == [ev.CloseArena(1)]
    bench.finish()
    assert not bench.dispatched
    assert bench.machine.counters.orphaned == 2


def test_the_memory_of_a_lost_client_stays_until_its_last_run_has_ended():
    bench = Bench()
    bench.ask(request(1))
    assert bench.turn(ev.ClientLost(1)) == [ev.TerminateRun(1, 1)]
    assert bench.finish() == [ev.CloseArena(1)]
    assert bench.machine.counters.orphaned == 1


def test_the_memory_of_a_lost_client_stays_until_its_worker_is_gone():
    bench = Bench()
    bench.ask(request(1))
    bench.turn(ev.ClientLost(1))
    bench.turn(ev.WorkerLost(1))
    assert not bench.of(ev.CloseArena)
    assert bench.turn(ev.WorkerGone(1)) == [ev.CloseArena(1)]


def test_a_run_shared_with_a_lost_client_goes_on_for_the_others():
    bench = Bench()
    bench.turn(ev.RequestsArrived(1, [request(1)]), ev.RequestsArrived(2, [request(1)]))
    assert bench.turn(ev.ClientLost(1)) == []
    bench.finish()
    assert bench.of(ev.CloseArena) == [ev.CloseArena(1)]
    assert [sent.session for sent in bench.of(ev.SendReplies)] == [2]


def test_nothing_is_sent_to_a_client_lost_in_the_same_turn():
    bench = Bench()
    bench.ask(request(1), request(2, in_ms=-1))
    bench.turn(ev.RequestsArrived(1, [request(3, in_ms=-1)]), ev.ClientLost(1))
    assert not bench.of(ev.SendReplies)


# Drain


def test_a_drain_with_nothing_open_is_told_at_once():
    assert Bench().turn(ev.DrainStarted(1000 * MS)) == [ev.TellDrained(0)]


def test_a_drain_lets_what_is_open_end_and_then_tells():
    bench = Bench(max_batch=1)
    bench.ask(request(1), request(2))
    assert bench.turn(ev.DrainStarted(1000 * MS)) == []
    bench.finish(run=1)
    assert bench.dispatched == [[2]]
    bench.finish(run=2)
    assert bench.of(ev.TellDrained) == [ev.TellDrained(0)]
    assert bench.reply.ending == Ending.MODEL


def test_what_is_left_when_a_drains_time_is_up_is_refused_and_its_runs_are_told_to_stop():
    bench = Bench(max_batch=1)
    bench.ask(request(1, in_ms=5000), request(2, in_ms=5000))
    bench.turn(ev.DrainStarted(100 * MS))
    bench.pass_until_due()
    assert {n: (r.reason, r.held) for n, r in bench.replies.items()} == {
        1: (Reason.DRAINING, True),
        2: (Reason.DRAINING, False),
    }
    assert bench.of(ev.TellDrained) == [ev.TellDrained(2)]
    assert bench.of(ev.TerminateRun) == [ev.TerminateRun(1, 1)]
    bench.finish(status=TERMINATED)
    assert bench.released == [1]


def test_a_drain_without_time_starts_nothing():
    bench = Bench()
    bench.turn(ev.RequestsArrived(1, [request(1)]), ev.DrainStarted(0))
    assert not bench.dispatched
    assert bench.reply.reason == Reason.DRAINING
