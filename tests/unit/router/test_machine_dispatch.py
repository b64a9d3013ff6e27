"""The machine's dispatch: who runs, with whom, and when it is better not to; and when the next turn is needed."""

from __future__ import annotations

from typing import Any

import pytest

from router import events as ev
from router import machine
from shm.endings import Ending, Reason
from shm.worker import RunCost
from tests.unit.router.build import ALWAYS, MS, NOW, ROWS, Bench, request, two_models


def behind(*waiting: Any, **fields: Any) -> Bench:
    """One worker that is at a run of request 99, which takes a ms, and others that wait."""
    bench = Bench(**({"run_ns": MS, "row_ns": MS} | fields))
    bench.ask(request(99, slot=63, in_ms=60_000))
    assert bench.dispatched == [[63]]
    for each in waiting:
        bench.ask(each)
        assert bench.actions == []
    return bench


def refused(bench: Bench) -> list[int]:
    """Who was told in the last turn that it cannot be in time."""
    return sorted(n for n, reply in bench.replies.items() if reply.reason == Reason.PREDICTED_LATE)


def reserve_ms(bench: Bench) -> float:
    return bench.machine.reserve.before_ns / MS


@pytest.fixture
def whole_batches(monkeypatch):
    """Nobody is left for the next batch because smaller ones would do as well."""
    monkeypatch.setattr(machine, "HALF_PAYS", 0)


# The last look before a run


@pytest.mark.parametrize("rules", [None, ALWAYS])
def test_who_cannot_be_in_time_any_more_is_not_started_and_told_so(rules):
    bench = behind(request(1, in_ms=30, rows=10), request(2, in_ms=500), rules=rules)
    bench.machine.models[0].costs.seed([(10, 10 * MS)])
    bench.end_run(after_ms=25)
    assert refused(bench) == [1]
    assert (bench.replies[1].ending, bench.replies[1].held) == (Ending.SHED, False)
    assert len(bench.of(ev.AnswerInstead)) == (rules is not None)
    assert bench.dispatched == [[2]]
    assert bench.machine.counters.dropped == 1
    assert bench.machine.models[0].costs.estimate(10) < 10 * MS, "what is refused teaches nothing, so it must weaken"


@pytest.mark.parametrize(("spare_ns", "runs"), [(0, True), (-1, False)])
def test_who_is_just_in_time_is_started(spare_ns, runs):
    bench = behind(request(1, in_ms=30, rows=10))
    (entry,) = [e for e in bench.machine.ledger.sessions[1].entries.values() if e.request.id == 1]
    bench.machine.models[0].costs.seed([(10, 10 * MS)])
    bench.now = entry.due_ns - 10 * MS - spare_ns
    bench.end_run()
    assert bool(bench.dispatched) is runs
    assert bench.machine.counters.dropped == (not runs)


def test_at_dispatch_the_lower_quantile_decides():
    bench = behind(request(1, in_ms=30, rows=10))
    costs = bench.machine.models[0].costs
    costs.seed([(10, 10 * MS)])
    costs._at[10] = 12.0 * MS
    bench.now = request(1, in_ms=30).deadline_ns - bench.machine.reserve.before_ns - 11 * MS
    bench.end_run()
    assert bench.dispatched == [[1]]


def test_one_after_the_other_is_dropped_until_one_can_be_in_time():
    bench = behind(*(request(n, in_ms=30 + n, rows=10) for n in (1, 2, 3)), request(4, in_ms=400))
    bench.end_run(after_ms=28)
    assert refused(bench) == [1, 2, 3]
    assert bench.dispatched == [[4]]


# How many run together


@pytest.mark.usefixtures("whole_batches")
def test_a_batch_is_cut_so_that_its_first_is_in_time():
    bench = behind(request(1, in_ms=30), *(request(n, in_ms=300) for n in range(2, 12)))
    bench.end_run(after_ms=30 - reserve_ms(bench) - 4.5)
    assert bench.dispatched == [[1, 2, 3, 4]]
    bench.end_run(2)
    assert bench.dispatched == [[5, 6, 7, 8, 9, 10, 11]]
    assert bench.machine.counters.dropped == 0


def test_a_first_with_many_rows_is_not_cut():
    bench = behind(request(1, in_ms=30, rows=6), *(request(n, in_ms=300) for n in range(2, 6)))
    bench.end_run(after_ms=30 - reserve_ms(bench) - 7.5)
    assert bench.dispatched == [[1, 2]]


@pytest.mark.usefixtures("whole_batches")
def test_a_batch_is_as_large_as_there_is_time_for_and_no_larger_than_allowed():
    bench = behind(*(request(n, in_ms=300) for n in range(1, 11)), max_batch=4)
    bench.end_run()
    assert bench.dispatched == [[1, 2, 3, 4]]


def test_a_first_with_more_rows_than_a_batch_is_judged_by_all_of_them():
    bench = behind(request(1, in_ms=30, rows=10), max_batch=4)
    bench.end_run(after_ms=25)
    assert refused(bench) == [1]


@pytest.mark.usefixtures("whole_batches")
def test_nobody_of_another_priority_joins_a_batch_that_ends_too_late_for_it():
    bench = behind(
        *(request(n, in_ms=500, priority=5) for n in range(1, 11)), request(20, in_ms=14), request(21, in_ms=90)
    )
    bench.end_run(after_ms=1)
    # Twelve rows take 12 ms, until 13 ms, and its answer is due at 12.7.
    assert bench.dispatched == [[*range(1, 11), 21]]
    bench.end_run(2)
    assert bench.dispatched == [[20]]


def test_one_that_runs_alone_is_judged_alone():
    """A batch of all that waits would be too late for it."""
    bench = Bench(run_ns=MS, row_ns=MS, workers=2)
    bench.ask(request(1, in_ms=30))
    bench.ask(request(2, slot=2, in_ms=60_000))
    for number in range(3, 13):
        bench.ask(request(number, in_ms=500))
    bench.turn(ev.WorkerGone(1))
    bench.end_run(2, worker=2, after_ms=30 - reserve_ms(bench) - 2)
    assert bench.dispatched == [[1]]


def test_where_batching_does_not_pay_a_part_of_the_queue_is_left_for_the_next_worker():
    bench = behind(*(request(n, in_ms=500) for n in range(1, 9)))
    bench.end_run()
    assert bench.dispatched == [[1]]


def test_where_batching_does_not_pay_what_comes_together_is_spread_over_idle_workers():
    bench = Bench(run_ns=MS, row_ns=MS, workers=2)
    bench.ask(request(1), request(2))
    assert bench.dispatched == [[1], [2]]


def test_where_batching_pays_the_whole_queue_runs_together():
    bench = behind(*(request(n, in_ms=500) for n in range(1, 9)), run_ns=10 * MS, row_ns=MS)
    bench.end_run()
    assert bench.dispatched == [[*range(1, 9)]]


def test_what_a_batch_costs_that_never_ran_is_no_reason_not_to_run_it():
    bench = Bench(run_ns=2 * MS)
    costs = bench.machine.models[0].costs
    costs._known = [1]
    costs._at, costs._likely, costs._median = ({1: 2.0 * MS} for _ in range(3))
    bench.ask(*(request(n, in_ms=500) for n in range(1, 9)))
    assert bench.dispatched == [[*range(1, 9)]]


def test_short_runs_are_not_halved():
    bench = behind(*(request(n, in_ms=500) for n in range(1, 9)), run_ns=MS // 10, row_ns=MS // 10)
    bench.end_run()
    assert bench.dispatched == [[*range(1, 9)]]


# A second run in hand


def test_nobody_is_dropped_for_want_of_a_second_place_in_a_workers_hands():
    """It would be late behind the run that is going; another worker may be free sooner, and then it is not."""
    bench = behind(prefetch=2, workers=2, run_ns=MS // 2, row_ns=0, max_batch=1)
    bench.ask(request(98, slot=62, in_ms=60_000))
    assert bench.dispatched == [[62]]
    bench.machine.models[0].costs._likely[1] = bench.machine.models[0].costs._at[1]
    (first, second) = (bench.machine.roster.workers[n] for n in (1, 2))
    first.free_ns = second.free_ns = bench.now + MS - 1
    bench.machine.models[0].busy_until_ns = bench.now + 1
    bench.ask(request(1, in_ms=reserve_ms(bench) + 1.2))
    assert bench.actions == []
    assert bench.machine.counters.dropped == 0
    bench.end_run(2, worker=2)
    assert bench.dispatched == [[1]]


@pytest.mark.usefixtures("whole_batches")
def test_a_second_run_begins_when_the_first_is_done():
    bench = behind(prefetch=2, run_ns=MS // 2, row_ns=MS // 2)
    bench.turn(
        ev.RequestsArrived(1, [request(n, in_ms=reserve_ms(bench) + (2.1 if n == 1 else 100)) for n in range(1, 11)])
    )
    # Half a ms is left of the first run, so of 2.1 ms three rows have time.
    assert bench.dispatched == [[1, 2, 3]]


def test_prefetching_can_be_turned_off():
    bench = behind(request(1, in_ms=500), run_ns=MS // 10, row_ns=0, prefetch=1)
    bench.end_run()
    assert bench.dispatched == [[1]]


# Waiting for company


def test_who_is_left_by_a_full_batch_waits_for_company_of_its_own():
    bench = Bench(max_delay_ms=5, max_batch=2, workers=2)
    bench.ask(request(1))
    bench.turn(ev.RequestsArrived(1, [request(2), request(3)]), after_ms=3)
    assert bench.dispatched == [[1, 2]]
    assert bench.machine.next_due_ns() == bench.now + 5 * MS
    bench.pass_until_due()
    assert bench.dispatched == [[3]]


def test_company_is_waited_for_until_the_very_moment():
    bench = Bench(max_delay_ms=5, max_batch=4)
    bench.ask(request(1))
    bench.turn(ev.TimePassed(), after_ms=4.999999)
    assert not bench.dispatched
    bench.turn(ev.TimePassed(), after_ms=0.000001)
    assert bench.dispatched == [[1]]


def test_who_waits_for_company_is_run_while_there_is_time_for_all_that_wait():
    bench = Bench(max_delay_ms=50, run_ns=MS, row_ns=MS)
    bench.ask(request(1, in_ms=40), request(2, in_ms=400), request(3, in_ms=400))
    due = NOW + 40 * MS - bench.machine.reserve.before_ns
    assert bench.machine.next_due_ns() == due - 3 * MS
    bench.pass_until_due()
    assert bench.dispatched == [[1, 2, 3]]


def test_of_several_models_the_one_whose_company_comes_first_wakes_the_router():
    bench = two_models(max_delay_ms=(5, 3))
    bench.ask(request(1))
    bench.ask(request(2, model=1))
    assert bench.machine.next_due_ns() == bench.now + 3 * MS
    bench.pass_until_due()
    assert [run.worker for run in bench.of(ev.Dispatch)] == [2]
    assert bench.machine.next_due_ns() == NOW + 5 * MS
    bench.pass_until_due()
    assert [run.worker for run in bench.of(ev.Dispatch)] == [1]


def test_each_model_has_workers_of_its_own():
    bench = two_models()
    bench.ask(request(1, model=1))
    bench.ask(request(2, model=1))
    assert not bench.dispatched
    bench.ask(request(3))
    assert [(run.worker, [m.slot for m in run.members]) for run in bench.of(ev.Dispatch)] == [(1, [3])]


# When the next turn is needed


def test_nothing_is_due_where_nothing_is_open():
    assert Bench().machine.next_due_ns() is None


@pytest.mark.parametrize("order", [(1, 0), (0, 1)])
def test_the_first_due_of_all_models_is_next(order):
    bench = two_models()
    for model in order:
        bench.ask(request(10 + model, model=model, in_ms=60_000))
    for model in order:
        bench.ask(request(20 + model, model=model, in_ms=(300, 200)[model]))
    assert bench.machine.next_due_ns() == NOW + 200 * MS - bench.machine.reserve.before_ns


def test_who_runs_is_due_as_who_waits_is():
    bench = behind()
    bench.ask(request(1, in_ms=900))
    assert bench.machine.next_due_ns() == NOW + 900 * MS - bench.machine.reserve.before_ns
    other = Bench(run_ns=MS)
    other.ask(request(1, in_ms=300))
    other.ask(request(2, in_ms=900))
    assert other.machine.next_due_ns() == NOW + 300 * MS - other.machine.reserve.before_ns


def test_the_end_of_a_drain_is_due_too():
    bench = Bench()
    bench.ask(request(1, in_ms=500))
    bench.turn(ev.DrainStarted(200 * MS))
    assert bench.machine.next_due_ns() == bench.now + 200 * MS
    later = Bench()
    later.ask(request(1, in_ms=100))
    later.turn(ev.DrainStarted(200 * MS))
    assert later.machine.next_due_ns() == NOW + 100 * MS - later.machine.reserve.before_ns


def test_a_turn_that_comes_late_makes_the_next_answers_come_sooner():
    for running in (True, False):
        bench = Bench(run_ns=MS, workers=int(running))
        if not running:
            bench.add_worker(1)
            bench.turn(ev.WorkerLost(1))
        bench.ask(request(1, in_ms=50))
        before = bench.machine.reserve.before_ns
        due = bench.machine.next_due_ns()
        assert due is not None
        bench.now = due + 7 * MS
        bench.turn(ev.TimePassed())
        assert bench.reply.ending == Ending.EXPIRED
        assert bench.machine.reserve.before_ns == 7 * MS + 300_000 > before


def test_a_forecast_is_made_anew_after_a_run_was_sent_at_the_same_moment():
    bench = Bench(run_ns=10 * MS, max_batch=1)
    # Not calm, so the forecast is asked; then its worker is not idle any more.
    bench.machine.models[0].busy_until_ns = bench.now + 100 * MS
    bench.ask(request(1, in_ms=15))
    assert bench.dispatched == [[1]]
    bench.ask(request(2, in_ms=15))
    assert bench.reply.reason == Reason.PREDICTED_LATE


def test_a_worker_that_is_ready_teaches_its_model_what_runs_cost_with_the_way():
    bench = Bench(workers=0)
    bench.turn(ev.WorkerBorn(1, 1))
    bench.turn(ev.WorkerReady(1, ROWS, [RunCost(1, 5 * MS), RunCost(8, 9 * MS)]))
    costs = bench.machine.models[1].costs
    assert (costs.estimate(1), costs.estimate(8)) == (5 * MS + 150_000, 9 * MS + 150_000)
    assert not bench.machine.models[0].costs._known
