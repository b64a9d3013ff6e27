"""The machine and its workers: readiness, retirement, loss, death, second runs and poison."""

from __future__ import annotations

import pytest

from router import events as ev
from router.costs import WAY_NS
from router.roster import WorkerState
from shm.endings import Ending, Reason
from shm.worker import Copies, MemberDone, RunCost
from tests.unit.router.build import ALWAYS, FREE, MS, ROWS, Bench, request


def die(bench: Bench, worker: int = 1) -> list[ev.Action]:
    """Lost, then gone. The actions of both turns."""
    return [*bench.turn(ev.WorkerLost(worker)), *bench.turn(ev.WorkerGone(worker))]


# Readiness


def test_a_worker_gets_nothing_before_it_is_ready():
    bench = Bench()
    bench.turn(ev.WorkerBorn(2, 0))
    bench.ask(request(1))
    bench.ask(request(2))
    assert not bench.dispatched


def test_the_first_ready_worker_makes_its_model_known():
    bench = Bench(workers=0)
    assert bench.turn(ev.WorkerBorn(1, 0)) == []
    assert bench.turn(ev.WorkerReady(1, ROWS, [RunCost(1, 5_000)])) == [ev.PublishModel(0)]
    assert bench.machine.models[0].costs.estimate(1) == 5_000 + WAY_NS


def test_another_worker_of_a_ready_model_is_no_news():
    bench = Bench()
    bench.turn(ev.WorkerBorn(2, 0))
    assert bench.turn(ev.WorkerReady(2, ROWS, [])) == []


def test_a_signature_that_has_changed_is_published():
    bench = Bench()
    bench.turn(ev.WorkerBorn(2, 0))
    assert bench.turn(ev.WorkerReady(2, FREE, [])) == [ev.PublishModel(0)]


def test_a_model_without_a_ready_worker_is_published_as_such():
    bench = Bench()
    assert ev.PublishModel(0) in bench.turn(ev.WorkerLost(1))
    assert not bench.machine.models[0].ready


# Retirement


def test_a_retired_idle_worker_is_stopped_at_once_and_once():
    bench = Bench()
    assert bench.turn(ev.WorkerRetired(1)) == [ev.PublishModel(0), ev.StopWorker(1)]
    assert bench.turn(ev.WorkerRetired(1)) == []


def test_a_retired_worker_finishes_what_it_has_and_gets_no_more():
    bench = Bench(max_batch=1)
    bench.ask(request(1), request(2))
    bench.turn(ev.WorkerRetired(1))
    assert not bench.of(ev.StopWorker)
    bench.finish()
    assert bench.reply.ending == Ending.MODEL
    assert bench.of(ev.StopWorker) == [ev.StopWorker(1)]
    assert not bench.dispatched


def test_the_end_of_a_stopped_worker_is_no_loss():
    bench = Bench()
    bench.turn(ev.WorkerRetired(1))
    assert die(bench) == []
    assert bench.machine.counters.workers_lost == 0


def test_a_worker_retired_while_it_loads_never_becomes_ready():
    bench = Bench(workers=0)
    bench.turn(ev.WorkerBorn(1, 0))
    assert bench.turn(ev.WorkerRetired(1)) == [ev.StopWorker(1)]
    bench.turn(ev.WorkerReady(1, ROWS, []))
    bench.ask(request(1))
    assert not bench.dispatched


@pytest.mark.parametrize("event", [ev.WorkerRetired(9), ev.WorkerLost(9), ev.WorkerGone(9)])
def test_news_of_an_unknown_worker_is_ignored(event):
    assert Bench().turn(event) == []


# Loss and death


def test_a_lost_worker_is_killed_but_gives_nothing_back_before_it_is_gone():
    bench = Bench()
    bench.ask(request(1, in_ms=50))
    bench.turn(ev.WorkerLost(1))
    assert [kill.worker for kill in bench.of(ev.KillWorker)] == [1]
    bench.pass_time(49.9)
    assert bench.reply.held
    assert bench.turn(ev.WorkerLost(1)) == []
    bench.turn(ev.WorkerGone(1))
    assert (bench.released, bench.replies) == ([1], {})


def test_a_lost_worker_is_not_told_to_stop_its_run():
    bench = Bench()
    bench.ask(request(1, in_ms=50))
    bench.turn(ev.WorkerLost(1))
    bench.pass_time(49.9)
    assert not bench.of(ev.TerminateRun)
    assert bench.machine.next_due_ns() is None


def test_a_request_whose_worker_died_runs_once_more_and_alone():
    bench = Bench()
    bench.ask(request(1), request(2))
    die(bench)
    bench.ask(request(3))
    bench.add_worker(2)
    assert bench.dispatched == [[1]]
    bench.finish(worker=2, run=2)
    assert bench.reply.ending == Ending.MODEL
    assert bench.dispatched == [[2]]
    bench.finish(worker=2, run=3)
    assert bench.dispatched == [[3]]
    assert bench.machine.counters.rerun == 2


def test_a_run_that_had_not_begun_when_its_worker_died_is_not_blamed():
    bench = Bench(prefetch=2, max_batch=2)
    bench.ask(request(1), request(2), request(3), request(4))
    assert bench.dispatched == [[1, 2], [3, 4]]
    die(bench)
    assert bench.machine.counters.rerun == 2
    bench.turn(ev.RequestsCancelled(1, [1, 2]))
    bench.add_worker(2)
    assert bench.dispatched == [[3, 4]]


def test_a_request_that_was_there_at_two_deaths_is_poison_and_never_runs_again():
    bench = Bench()
    bench.ask(request(1))
    die(bench)
    bench.add_worker(2)
    die(bench, 2)
    assert (bench.reply.ending, bench.reply.reason, bench.reply.held) == (Ending.FAILED, Reason.POISON, False)
    bench.add_worker(3)
    assert not bench.dispatched
    assert bench.machine.counters.poison == 1


@pytest.mark.parametrize("rules", [None, ALWAYS])
def test_a_request_whose_worker_died_too_late_for_a_second_run_ends_by_that_name(rules):
    bench = Bench(rules=rules)
    bench.ask(request(1, in_ms=50))
    bench.turn(ev.WorkerGone(1), after_ms=49.9)
    assert (bench.reply.ending, bench.reply.reason, bench.reply.held) == (Ending.FAILED, Reason.WORKER_DIED, False)
    assert len(bench.of(ev.AnswerInstead)) == (rules is not None)


def test_a_cancelled_request_whose_worker_died_ends_and_does_not_run_again():
    bench = Bench(workers=2)
    bench.ask(request(1))
    bench.turn(ev.RequestsCancelled(1, [1]))
    die(bench)
    assert (bench.reply.ending, bench.reply.held) == (Ending.CANCELLED, False)


def test_gone_without_being_lost_before_is_both():
    bench = Bench(workers=2)
    bench.ask(request(1))
    bench.turn(ev.WorkerGone(1))
    assert [run.worker for run in bench.of(ev.Dispatch)] == [2]
    assert bench.machine.counters.workers_lost == 1


def test_what_a_worker_said_before_it_was_lost_counts():
    """Its socket is read to the end first, so its word comes before its loss."""
    bench = Bench()
    bench.ask(request(1))
    bench.turn(ev.RunFinished(1, 1, 0, bench.now, bench.now, [], Copies()), ev.WorkerLost(1), ev.WorkerGone(1))
    assert bench.reply.ending == Ending.MODEL


# Words that cannot be true


@pytest.mark.parametrize("run", [2, 99])
def test_a_worker_that_ends_a_run_which_it_does_not_have_is_killed(run):
    bench = Bench(workers=2, max_batch=1)
    bench.ask(request(1), request(2))
    bench.finish(worker=1, run=run)
    assert [kill.worker for kill in bench.of(ev.KillWorker)] == [1]
    assert not bench.replies


def test_a_worker_that_ends_its_runs_out_of_order_is_killed():
    bench = Bench(prefetch=2, max_batch=1)
    bench.ask(request(1), request(2))
    bench.finish(run=2)
    assert bench.of(ev.KillWorker)
    assert not bench.replies


@pytest.mark.parametrize("count", [1, 3])
def test_a_worker_that_answers_other_members_than_there_are_is_killed_and_they_run_again(count):
    bench = Bench()
    bench.ask(request(1), request(2))
    bench.finish(members=[MemberDone()] * count)
    assert bench.of(ev.KillWorker)
    assert not bench.replies
    bench.turn(ev.WorkerGone(1))
    bench.add_worker(2)
    assert bench.dispatched == [[1]]


def test_an_unknown_workers_word_is_ignored():
    assert Bench().finish(worker=9) == []


# Killed and not yet gone


def test_a_worker_that_is_being_killed_gets_nothing_even_if_its_run_ends_after_all():
    bench = Bench(hang_ms=10, max_batch=1)
    bench.ask(request(1, in_ms=20))
    bench.pass_time(19.9)
    bench.pass_until_due()
    assert bench.of(ev.KillWorker)
    assert bench.machine.roster.workers[1].state is WorkerState.LOST
    bench.finish()
    assert bench.released == [1]
    bench.ask(request(2, now=bench.now))
    assert not bench.dispatched
    die(bench)
    bench.add_worker(2)
    assert bench.dispatched == [[2]]


def test_a_prefetched_run_of_a_hung_worker_is_served_by_another():
    bench = Bench(workers=1, prefetch=2, hang_ms=10, max_batch=1)
    bench.ask(request(1, in_ms=20), request(2, in_ms=500))
    bench.pass_time(19.9)
    bench.pass_time(10)
    assert bench.of(ev.KillWorker)
    bench.add_worker(2)
    die(bench)
    assert bench.dispatched == [[2]]
    bench.now += MS
    bench.finish(worker=2, run=3)
    assert bench.reply.ending == Ending.MODEL


# What is said of them


def test_a_worker_is_killed_with_the_reason():
    bench = Bench()
    bench.turn(ev.WorkerLost(1))
    assert bench.of(ev.KillWorker) == [ev.KillWorker(1, "its socket ended")]
    assert bench.machine.roster.workers[1].state is WorkerState.LOST


def test_a_stopped_worker_whose_socket_ends_is_lost_and_not_killed():
    bench = Bench(workers=2)
    bench.turn(ev.WorkerRetired(1))
    bench.turn(ev.WorkerLost(1))
    assert bench.actions == []
    assert bench.machine.roster.workers[1].state is WorkerState.LOST
    assert bench.turn(ev.WorkerLost(1)) == []
    bench.turn(ev.WorkerGone(1))
    assert 1 not in bench.machine.roster.workers


def test_a_retired_worker_that_is_lost_is_a_loss():
    """It had not been told to stop: it was at a run still."""
    bench = Bench()
    bench.ask(request(1))
    bench.turn(ev.WorkerRetired(1))
    bench.turn(ev.WorkerLost(1))
    assert bench.of(ev.KillWorker)
    assert bench.machine.counters.workers_lost == 1


def test_a_lost_worker_is_not_retired():
    bench = Bench()
    bench.turn(ev.WorkerLost(1))
    assert bench.turn(ev.WorkerRetired(1)) == []
    assert bench.machine.roster.workers[1].state is WorkerState.LOST


def test_a_lost_workers_word_does_not_make_it_stop():
    bench = Bench(max_batch=1)
    bench.ask(request(1))
    bench.turn(ev.WorkerLost(1))
    bench.finish()
    assert bench.reply.ending == Ending.MODEL
    assert not bench.of(ev.StopWorker)


def test_a_retired_worker_is_stopped_when_its_last_run_has_ended():
    bench = Bench(prefetch=2, max_batch=1)
    bench.ask(request(1), request(2))
    bench.turn(ev.WorkerRetired(1))
    assert bench.of(ev.StopWorker) == []
    bench.finish(run=1)
    assert bench.of(ev.StopWorker) == []
    bench.finish(run=2)
    assert bench.of(ev.StopWorker) == [ev.StopWorker(1)]


def test_since_when_a_model_has_no_worker_is_when_the_last_one_was_gone():
    bench = Bench()
    bench.turn(ev.WorkerGone(1), after_ms=7)
    assert bench.machine.roster.is_workerless(0, bench.now)
    assert not bench.machine.roster.is_workerless(0, bench.now - 1)


def test_models_are_published_by_their_own_index_and_when_their_readiness_changes():
    bench = Bench()
    bench.turn(ev.WorkerBorn(5, 1))
    bench.turn(ev.WorkerReady(5, ROWS, []))
    assert bench.of(ev.PublishModel) == [ev.PublishModel(1)]
    bench.turn(ev.WorkerBorn(6, 1))
    bench.turn(ev.WorkerReady(6, ROWS, []))
    assert bench.of(ev.PublishModel) == []
    bench.turn(ev.WorkerRetired(5))
    assert bench.of(ev.PublishModel) == []
    bench.turn(ev.WorkerLost(6))
    assert bench.of(ev.PublishModel) == [ev.PublishModel(1)]


def test_a_queued_request_without_a_ready_worker_of_its_model_expires_for_that():
    """Workers of other models are none."""
    bench = Bench()
    bench.add_worker(2, 1)
    bench.turn(ev.WorkerRetired(1))
    bench.ask(request(1, in_ms=50))
    bench.pass_until_due()
    assert bench.reply.reason == Reason.NO_WORKER


def test_who_died_when_its_answer_was_due_is_not_tried_again():
    for early, reruns in ((0, 0), (1, 1)):
        bench = Bench(workers=2, max_batch=1)
        bench.ask(request(1))
        (entry,) = bench.machine.ledger.sessions[1].entries.values()
        bench.now = entry.due_ns - early
        bench.turn(ev.WorkerGone(1))
        assert bench.machine.counters.rerun == reruns


def test_a_second_run_waits_for_company_no_longer_than_a_first():
    bench = Bench(max_delay_ms=5, max_batch=4)
    bench.ask(request(1, in_ms=500))
    bench.pass_until_due()
    bench.turn(ev.WorkerGone(1), after_ms=3)
    bench.add_worker(2)
    assert not bench.dispatched
    assert bench.machine.next_due_ns() == bench.now + 5 * MS
