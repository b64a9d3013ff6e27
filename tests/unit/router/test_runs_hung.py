"""Runs that take far too long: told to stop at a limit, their worker suspect, then killed, and its members tried again.

A run is predicted to take 10 ms here and `hang_ms` is 30, so its limit is 4 x 10 + 30 ms after it could begin.
"""

from __future__ import annotations

from typing import Any

import pytest

from router import events as ev
from router.config import OnConfig
from router.runs import HUNG_FACTOR
from shm.endings import Ending, Reason
from shm.worker import RAN, SKIPPED, TERMINATED
from tests.unit.router.build import ALWAYS, MS, Bench, request

HANG, RUN = 30, 10
LIMIT = HUNG_FACTOR * RUN + HANG
LONG = 5_000


def hung(**fields: Any) -> Bench:
    """One run in hand, whose members are due long after its limit."""
    bench = Bench(**({"hang_ms": HANG, "run_ns": RUN * MS, "max_batch": 2} | fields))
    bench.ask(request(1, in_ms=LONG), request(2, in_ms=LONG + 1))
    assert bench.dispatched == [[1, 2]]
    return bench


def pass_limit(bench: Bench) -> None:
    bench.pass_time(LIMIT)
    assert bench.of(ev.TerminateRun) == [ev.TerminateRun(1, 1)]


# The limit


def test_a_run_is_told_to_stop_at_its_limit_and_not_before():
    bench = hung()
    assert bench.machine.next_due_ns() == bench.now + LIMIT * MS
    bench.turn(ev.TimePassed(), after_ms=LIMIT - 0.000001)
    assert bench.actions == []
    bench.pass_until_due()
    assert bench.actions == [ev.TerminateRun(1, 1)]
    assert (bench.machine.counters.runs_hung, bench.machine.counters.runs_terminated) == (1, 0)


def test_a_hung_runs_worker_is_killed_when_it_does_not_come_back_and_nobody_is_answered_for_that():
    bench = hung()
    pass_limit(bench)
    assert bench.machine.next_due_ns() == bench.now + HANG * MS
    bench.turn(ev.TimePassed(), after_ms=HANG - 0.000001)
    assert bench.actions == []
    bench.pass_until_due()
    assert bench.of(ev.KillWorker) == [ev.KillWorker(1, "run 1 did not stop when told to")]
    assert not bench.replies
    assert bench.machine.counters.workers_killed == 1
    bench.pass_time(1000)
    assert bench.actions == []
    assert (bench.machine.counters.workers_killed, bench.machine.counters.runs_hung) == (1, 1)


def test_members_of_a_run_whose_worker_was_killed_run_once_more_and_alone():
    bench = hung()
    pass_limit(bench)
    bench.pass_until_due()
    bench.turn(ev.WorkerGone(1))
    bench.add_worker(2)
    assert bench.dispatched == [[1]]
    bench.finish(worker=2, run=2)
    assert bench.dispatched == [[2]]
    assert bench.machine.counters.rerun == 2


@pytest.mark.parametrize("status", [TERMINATED, SKIPPED])
def test_members_of_a_hung_run_that_came_back_run_once_more_and_alone(status):
    bench = hung()
    pass_limit(bench)
    bench.finish(status=status)
    assert not bench.replies
    assert bench.dispatched == [[1]]
    bench.finish(run=2)
    assert (bench.reply.id, bench.reply.ending) == (1, Ending.MODEL)
    assert bench.dispatched == [[2]]
    assert bench.machine.counters.rerun == 2


def test_a_hung_run_that_ends_well_after_all_answers():
    bench = hung()
    pass_limit(bench)
    bench.finish(status=RAN)
    assert {reply.ending for reply in bench.replies.values()} == {Ending.MODEL}
    assert bench.machine.counters.rerun == 0


def test_a_member_of_a_hung_run_that_was_cancelled_or_answered_is_not_tried_again():
    bench = Bench(hang_ms=HANG, run_ns=RUN * MS, max_batch=3)
    bench.ask(request(1, in_ms=LIMIT - 1), request(2, in_ms=LONG), request(3, in_ms=LONG + 1))
    bench.turn(ev.RequestsCancelled(1, [2]))
    bench.pass_time(LIMIT)
    assert bench.reply.held
    assert bench.of(ev.TerminateRun)
    bench.finish(status=TERMINATED)
    assert (bench.released, bench.reply.id, bench.reply.ending) == ([1], 2, Ending.CANCELLED)
    assert bench.dispatched == [[3]]


def test_a_run_that_everybody_has_left_is_not_hung():
    """It is told to stop for that reason; its members are not to blame, and there is nobody to try again for."""
    bench = Bench(hang_ms=HANG, run_ns=RUN * MS)
    bench.ask(request(1, in_ms=20))
    bench.pass_time(20)
    assert bench.of(ev.TerminateRun)
    counters = bench.machine.counters
    assert (counters.runs_terminated, counters.runs_hung) == (1, 0)
    bench.pass_time(1000)
    assert bench.of(ev.KillWorker) and not bench.of(ev.TerminateRun)
    assert counters.runs_hung == 0


def test_a_hung_run_whose_last_member_leaves_is_not_told_to_stop_twice():
    bench = hung()
    pass_limit(bench)
    bench.turn(ev.RequestsCancelled(1, [1, 2]))
    assert bench.actions == []
    assert bench.machine.counters.runs_terminated == 0


def test_who_is_due_in_a_hung_run_is_answered_in_time():
    bench = Bench(hang_ms=HANG, run_ns=RUN * MS)
    bench.ask(request(1, in_ms=LIMIT + 20))
    pass_limit(bench)
    bench.pass_until_due()
    assert (bench.reply.ending, bench.reply.reason, bench.reply.held) == (Ending.EXPIRED, Reason.TIMEOUT, True)
    bench.pass_until_due()
    assert bench.of(ev.KillWorker)


def test_before_what_is_predicted_has_passed_nothing_is_killed():
    """A run that is told to stop at once may not be able to for as long as it takes."""
    bench = Bench(hang_ms=HANG, run_ns=RUN * MS)
    bench.ask(request(1, in_ms=LONG))
    bench.turn(ev.RequestsCancelled(1, [1]), after_ms=4)
    assert bench.machine.next_due_ns() == bench.now + (RUN - 4 + HANG) * MS
    late = Bench(hang_ms=HANG, run_ns=RUN * MS)
    late.ask(request(1, in_ms=LONG))
    late.turn(ev.RequestsCancelled(1, [1]), after_ms=14)
    assert late.machine.next_due_ns() == late.now + HANG * MS


# Suspects


def test_a_suspect_worker_gets_nothing_until_it_answers():
    bench = hung(prefetch=2)
    pass_limit(bench)
    bench.ask(request(3, in_ms=LONG))
    assert not bench.dispatched
    bench.finish(status=TERMINATED)
    assert bench.dispatched


def test_another_worker_goes_on_while_one_is_suspect():
    bench = hung(workers=2)
    pass_limit(bench)
    for number in (3, 4):
        bench.ask(request(number, in_ms=LONG))
    assert not bench.dispatched
    bench.finish(worker=2, run=2)
    assert [(run.worker, len(run.members)) for run in bench.of(ev.Dispatch)] == [(2, 1)]


def test_a_worker_that_came_back_is_not_killed_and_not_suspect():
    bench = hung()
    pass_limit(bench)
    bench.finish(status=TERMINATED)
    assert not bench.machine.roster.workers[1].suspect
    assert bench.machine.models[0].suspects == 0
    bench.turn(ev.RequestsCancelled(1, [1, 2]))
    bench.finish(run=2, status=TERMINATED)
    bench.pass_time(1000)
    assert not bench.of(ev.KillWorker)


def test_a_suspect_that_has_died_is_no_longer_one():
    bench = hung(workers=2)
    pass_limit(bench)
    assert bench.machine.models[0].suspects == 1
    bench.turn(ev.WorkerGone(1))
    assert bench.machine.models[0].suspects == 0
    assert bench.dispatched == [[1]]


def test_admission_counts_no_suspect_among_who_does_the_work():
    """The calm path does not know when a suspect is free; the forecast knows when it is killed."""
    bench = hung()
    pass_limit(bench)
    bench.ask(request(3, in_ms=HANG + 5, now=bench.now))
    assert bench.reply.reason == Reason.PREDICTED_LATE
    bench.ask(request(4, in_ms=HANG + RUN + 5, now=bench.now))
    assert not bench.replies


# A second run in hand


def prefetched(**fields: Any) -> Bench:
    """Two runs in the hands of one worker, half a ms each, so that a limit is 2 + 30 ms."""
    bench = Bench(**({"hang_ms": HANG, "run_ns": MS // 2, "max_batch": 1, "prefetch": 2} | fields))
    bench.ask(request(1, in_ms=LONG), request(2, in_ms=LONG))
    assert bench.dispatched == [[1], [2]]
    return bench


def test_a_second_run_in_hand_gets_its_limit_when_it_can_begin():
    bench = prefetched()
    assert bench.machine.next_due_ns() == bench.now + (2 + HANG) * MS
    bench.now += 9 * MS
    bench.finish(run=1)
    assert bench.machine.next_due_ns() == bench.now + (2 + HANG) * MS
    bench.pass_until_due()
    assert bench.of(ev.TerminateRun) == [ev.TerminateRun(1, 2)]


def test_a_second_run_in_hand_begins_when_the_first_has_come_back():
    bench = prefetched()
    bench.pass_until_due()
    assert bench.of(ev.TerminateRun) == [ev.TerminateRun(1, 1)]
    bench.finish(run=1, status=TERMINATED)
    assert not bench.machine.roster.workers[1].suspect
    bench.finish(run=2)
    assert bench.reply.id == 2


def test_a_second_run_that_nobody_waits_for_makes_nobody_suspect_before_its_turn():
    bench = prefetched()
    bench.turn(ev.RequestsCancelled(1, [2]))
    assert bench.actions == [ev.TerminateRun(1, 2)]
    worker, model = bench.machine.roster.workers[1], bench.machine.models[0]
    assert (worker.suspect, model.suspects) == (False, 0)
    # It may take its time once it begins, and that is when its worker is predicted to be free of both.
    assert bench.machine._runs.in_hand[2].kill_ns == worker.free_ns + MS // 2 + HANG * MS
    bench.finish(run=1)
    assert (worker.suspect, model.suspects) == (True, 1)
    bench.ask(request(3, in_ms=LONG))
    assert not bench.dispatched
    bench.finish(run=2, status=TERMINATED)
    assert (worker.suspect, model.suspects) == (False, 0)
    assert bench.dispatched == [[3]]


def test_a_worker_that_is_suspect_for_both_runs_counts_once():
    bench = prefetched()
    bench.turn(ev.RequestsCancelled(1, [1, 2]))
    model = bench.machine.models[0]
    assert model.suspects == 1
    bench.finish(run=1, status=TERMINATED)
    assert (bench.machine.roster.workers[1].suspect, model.suspects) == (True, 1)
    bench.finish(run=2, status=TERMINATED)
    assert model.suspects == 0


def test_a_worker_that_comes_back_from_neither_run_is_killed_once():
    bench = prefetched()
    bench.turn(ev.RequestsCancelled(1, [1, 2]))
    bench.pass_time(1_000)
    assert len(bench.of(ev.KillWorker)) == bench.machine.counters.workers_killed == 1
    bench.pass_time(1_000)
    assert not bench.of(ev.KillWorker)
    assert bench.machine.counters.workers_killed == 1


# Poison


def test_what_was_in_two_hung_runs_of_one_worker_is_poison():
    bench = Bench(hang_ms=HANG, run_ns=RUN * MS)
    asked = request(1, in_ms=LONG)
    bench.ask(asked)
    pass_limit(bench)
    bench.finish(status=TERMINATED)
    assert bench.dispatched == [[1]]
    bench.pass_until_due()
    assert bench.of(ev.TerminateRun) == [ev.TerminateRun(1, 2)]
    bench.finish(run=2, status=TERMINATED)
    assert bench.of(ev.Quarantine) == [ev.Quarantine(1, 0, asked, (1, 1))]
    assert (bench.reply.ending, bench.reply.reason) == (Ending.FAILED, Reason.POISON)
    assert bench.machine.counters.poison == 1
    assert not bench.dispatched


def test_a_hung_run_and_a_death_are_two():
    bench = Bench(hang_ms=HANG, run_ns=RUN * MS)
    asked = request(1, in_ms=LONG)
    bench.ask(asked)
    pass_limit(bench)
    bench.finish(status=TERMINATED)
    bench.turn(ev.WorkerGone(1))
    assert bench.of(ev.Quarantine) == [ev.Quarantine(1, 0, asked, (1, 1))]


@pytest.mark.parametrize("steps", [["rules"], ["reject"]])
def test_where_there_is_to_be_no_second_run_a_hang_ends_by_the_models_table(steps):
    bench = Bench(hang_ms=HANG, run_ns=RUN * MS, rules=ALWAYS, on=OnConfig(worker_died=steps))
    bench.ask(request(1, in_ms=LONG))
    pass_limit(bench)
    bench.finish(status=TERMINATED)
    assert (bench.reply.ending, bench.reply.reason, bench.reply.held) == (Ending.FAILED, Reason.WORKER_DIED, False)
    assert len(bench.of(ev.AnswerInstead)) == (steps == ["rules"])


# Its worker is lost already


def test_a_run_of_a_lost_worker_has_no_limit_any_more():
    bench = hung()
    bench.turn(ev.WorkerLost(1))
    bench.pass_time(LIMIT)
    assert not bench.of(ev.TerminateRun)
    bench.pass_time(1000)
    assert not bench.of(ev.KillWorker)
    assert bench.machine.counters.workers_killed == 0


def test_a_run_that_is_left_after_its_worker_was_lost_makes_it_no_suspect():
    bench = hung()
    bench.turn(ev.WorkerLost(1))
    bench.turn(ev.RequestsCancelled(1, [1, 2]))
    assert bench.actions == []
    assert bench.machine.next_due_ns() is None
    assert bench.machine.models[0].suspects == 0
