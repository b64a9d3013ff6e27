"""The machine at its edges: halved batches, several models, and what is easily passed on wrong."""

from __future__ import annotations

from typing import Any

import pytest

from router import events as ev
from router.config import OnConfig
from router.ledger import Entry
from shm.endings import Ending, Reason
from shm.layout import Tensor
from shm.worker import RAN, TERMINATED, Copies, MemberDone
from tests.unit.router.build import FREE, MS, NOW, Bench, request, two_models

DAY = 24 * 3600e3


def behind(count: int, *costs: tuple[int, float], **fields: Any) -> Bench:
    """So many single rows wait behind a run that is about to end; costs are known as (rows, ms)."""
    bench = Bench(**({"run_ns": 2 * MS, "row_ns": MS, "max_batch": 32} | fields))
    bench.machine.models[0].costs.seed((rows, int(ms * MS)) for rows, ms in costs)
    bench.ask(request(99, slot=63, in_ms=60_000))
    bench.ask(*(request(n, in_ms=5_000) for n in range(1, count + 1)))
    assert not bench.dispatched
    bench.end_run(after_ms=2)
    return bench


def first_batch(bench: Bench) -> int:
    return len(bench.dispatched[0])


# Halves


def test_a_batch_is_halved_until_a_half_takes_more_than_half_the_time():
    bench = behind(20, (20, 20), (10, 10), (5, 9))
    assert first_batch(bench) == 10


def test_a_batch_that_takes_less_than_two_halves_is_not_halved():
    assert first_batch(behind(20, (20, 15), (10, 10), (5, 2))) == 20


@pytest.mark.parametrize(("half_ms", "rows"), [(10.99, 10), (11.01, 20)])
def test_a_half_may_cost_a_tenth_more_a_row(half_ms, rows):
    assert first_batch(behind(20, (20, 20), (10, half_ms), (5, 100))) == rows


@pytest.mark.parametrize(("half_ms", "rows"), [(4.9, 5), (5.1, 11)])
def test_the_half_of_an_odd_number_is_the_smaller_one(half_ms, rows):
    assert first_batch(behind(11, (11, 10), (6, 90), (5, half_ms), (2, 90))) == rows


@pytest.mark.parametrize(("whole_ms", "rows"), [(1.0, 8), (1.001, 4)])
def test_a_batch_is_halved_only_where_it_takes_longer_than_a_way_is_worth(whole_ms, rows):
    assert first_batch(behind(8, (8, whole_ms), (4, 0.5), (2, 9))) == rows


def test_where_requests_wait_for_company_batches_are_not_halved():
    bench = Bench(run_ns=2 * MS, row_ns=MS, max_delay_ms=1)
    bench.machine.models[0].costs.seed([(20, 20 * MS), (10, 10 * MS)])
    bench.ask(*(request(n, in_ms=5_000) for n in range(1, 21)))
    bench.pass_until_due()
    assert first_batch(bench) == 20


# The last look


def test_a_first_that_is_just_in_time_alone_runs_alone():
    bench = Bench(run_ns=MS, row_ns=MS)
    bench.machine.models[0].costs.seed([(6, 6 * MS)])
    bench.ask(request(99, slot=63, in_ms=60_000))
    bench.ask(request(1, in_ms=50, rows=6), *(request(n, in_ms=900) for n in range(2, 6)))
    (entry,) = [e for e in bench.machine.ledger.sessions[1].entries.values() if e.request.id == 1]
    bench.now = entry.due_ns - 6 * MS
    bench.end_run()
    assert bench.dispatched == [[1]]


def test_a_first_without_rows_is_judged_as_one():
    bench = Bench(run_ns=MS, row_ns=20 * MS)
    bench.ask(request(99, slot=63, in_ms=60_000))
    bench.ask(request(1, in_ms=50, rows=0), request(2, in_ms=900))
    bench.end_run(after_ms=40)
    assert bench.dispatched[0] == [1]
    assert bench.machine.counters.dropped == 0


@pytest.mark.parametrize(("spare_ns", "runs"), [(0, True), (-1, False)])
def test_who_waits_alone_may_try_where_the_median_is_in_time(spare_ns, runs):
    bench = Bench(run_ns=MS, row_ns=MS)
    costs = bench.machine.models[0].costs
    costs.seed([(6, 6 * MS)])
    bench.ask(request(99, slot=63, in_ms=60_000))
    bench.ask(request(1, in_ms=50, rows=6))
    costs._likely[6] = 100.0 * MS
    (entry,) = [e for e in bench.machine.ledger.sessions[1].entries.values() if e.request.id == 1]
    bench.now = entry.due_ns - 6 * MS - spare_ns
    bench.end_run()
    assert bool(bench.dispatched) is runs


def test_everybody_who_is_dropped_is_counted():
    bench = Bench(run_ns=MS, row_ns=MS)
    bench.ask(request(99, slot=63, in_ms=60_000))
    bench.ask(*(request(n, in_ms=50, rows=9) for n in (1, 2, 3)))
    bench.end_run(after_ms=47)
    assert bench.machine.counters.dropped == 3


# Several models


@pytest.mark.parametrize("delays", [(5, 3), (3, 5)])
def test_the_router_wakes_for_whichever_models_company_comes_first(delays):
    bench = two_models(prefetch=2, max_delay_ms=delays)
    bench.ask(request(1), request(2, model=1))
    assert bench.machine.next_due_ns() == NOW + 3 * MS


def test_a_model_that_had_better_wait_does_not_hold_up_another():
    bench = two_models(prefetch=2, max_batch=(1, 1))
    costs = bench.machine.models[0].costs
    bench.ask(request(1, in_ms=900))
    worker = bench.machine.roster.workers[1]
    worker.free_ns = bench.now + MS - 1
    due_ms = bench.machine.reserve.before_ns / MS + costs.likely(1) / MS + 0.5
    bench.machine.models[0].queue.push(_entry(bench, 2, due_ms), bench.now)
    bench.ask(request(3, model=1))
    assert [(run.worker, [m.slot for m in run.members]) for run in bench.of(ev.Dispatch)] == [(2, [3])]
    assert bench.machine.counters.dropped == 0


def _entry(bench: Bench, number: int, in_ms: float) -> Entry:
    """An open request that admission was not asked about."""
    ledger = bench.machine.ledger
    asked = request(number, in_ms=in_ms, now=bench.now)
    made = Entry(ledger.sessions[1], asked, bench.now, asked.deadline_ns - bench.machine.reserve.before_ns, 16, None)
    ledger.open(made)
    return made


# When a turn is needed


def test_a_drain_is_due_where_nothing_else_is():
    """All that is left are slots that a lost worker may still write to."""
    bench = Bench()
    bench.ask(request(1, in_ms=50))
    bench.turn(ev.WorkerLost(1))
    bench.pass_until_due()
    assert bench.reply.held
    assert bench.machine.next_due_ns() is None
    bench.turn(ev.DrainStarted(100 * MS))
    assert bench.machine.next_due_ns() == bench.now + 100 * MS


# Passed on


def described(number: int, width: int, *, rows: int = 1) -> Any:
    return request(number, rows=rows, tensors=(Tensor(0, 1, (rows, width), 0, 4 * rows * width),))


def test_a_worker_is_told_where_described_tensors_lie():
    bench = Bench(signature=FREE)
    asked = described(1, 5, rows=2)
    bench.ask(asked)
    (run,) = bench.of(ev.Dispatch)
    assert run.members[0].tensors == asked.tensors


def test_requests_of_different_shape_do_not_run_together():
    bench = Bench(signature=FREE)
    bench.ask(described(1, 5), described(2, 6), described(3, 5))
    assert bench.dispatched == [[1, 3]]


def test_a_worker_that_has_nothing_cannot_end_what_another_has():
    bench = Bench(workers=2)
    bench.ask(request(1))
    bench.finish(worker=2, run=1)
    assert [kill.worker for kill in bench.of(ev.KillWorker)] == [2]
    assert not bench.replies
    bench.finish(worker=1, run=1)
    assert bench.reply.ending == Ending.MODEL


def test_what_failed_with_a_file_and_is_tried_again_gets_no_file():
    bench = Bench(on=OnConfig(guard=["retry"]))
    bench.ask(request(1))
    bench.finish(members=[MemberDone(Reason.GUARD, overflow_bytes=77)])
    assert not bench.of(ev.SendOverflow)
    assert bench.dispatched == [[1]]
    bench.finish(run=2, members=[MemberDone(overflow_bytes=1)])
    assert bench.of(ev.SendOverflow) == [ev.SendOverflow(1, 1, 0, 1)]
    assert bench.reply.overflow


def test_what_failed_and_is_tried_again_waits_for_company_as_others_do():
    bench = Bench(on=OnConfig(guard=["retry"]), max_delay_ms=5, max_batch=4)
    bench.ask(request(1, in_ms=500))
    bench.pass_until_due()
    bench.finish(members=[MemberDone(Reason.GUARD)])
    assert bench.machine.next_due_ns() == bench.now + 5 * MS


@pytest.mark.parametrize(("after_ms", "saved_us", "moved"), [(10, 0, False), (3.9999, 6000, False), (10.001, 0, True)])
def test_a_stopped_run_either_saves_time_or_teaches(after_ms, saved_us, moved):
    bench = Bench(run_ns=10 * MS)
    bench.ask(request(1, in_ms=500))
    bench.turn(ev.RequestsCancelled(1, [1]))
    bench.turn(ev.RunFinished(1, 1, TERMINATED, bench.now, bench.now, [], Copies()), after_ms=after_ms)
    saved = bench.machine.counters.worker_us_saved
    assert (saved, type(saved)) == (saved_us, int)
    assert (bench.machine.models[0].costs.estimate(1) != 10 * MS) is moved


def test_an_answer_without_an_error_says_so_and_when_it_was_asked():
    bench = Bench()
    bench.ask(request(1))
    bench.turn(ev.RunFinished(1, 1, RAN, bench.now, bench.now + MS, [], Copies()), after_ms=3)
    reply = bench.reply
    assert (reply.reason, type(reply.reason)) == (0, int)
    assert reply.stages is not None
    assert (reply.stages.arrived_ns, reply.stages.from_worker_ns) == (NOW, 2 * MS)


# Refused by name


def test_ids_in_flight_and_slots_in_flight_are_counted_and_named():
    bench = Bench()
    bench.ask(request(1), request(2))
    for _ in range(3):
        bench.ask(request(1, slot=9))
        assert bench.of(ev.SendRejected)
    assert bench.machine.counters.invalid == 3
    bench.ask(request(4, slot=1))
    assert bench.reply.message == "slot 1 (or one after it) belongs to a request in flight"
    assert bench.machine.counters.invalid == 4


def test_a_deadline_too_far_is_named_in_days_from_now():
    bench = Bench()
    bench.now = NOW + int(0.2 * DAY) * MS
    bench.ask(request(1, in_ms=1.5 * DAY, now=bench.now))
    assert (bench.reply.message or "").startswith("the deadline is 1.5 days away")


def test_a_refusal_of_one_without_rows_weakens_the_cost_of_one_row():
    bench = Bench(run_ns=20 * MS, row_ns=MS)
    costs = bench.machine.models[0].costs
    two = costs.estimate(2)
    bench.ask(request(1, rows=0, in_ms=10))
    assert bench.reply.reason == Reason.PREDICTED_LATE
    assert (set(costs._known), costs.estimate(1) < 20 * MS) == ({1, 32}, True)
    assert costs.estimate(2) < two


def test_when_to_come_back_is_told_in_whole_ms():
    bench = Bench(run_ns=2 * MS + MS // 2, row_ns=MS, max_batch=1, queue_requests=1)
    bench.ask(request(1, in_ms=900))
    bench.ask(request(2, in_ms=900), request(3, in_ms=900))
    assert bench.reply.reason == Reason.QUEUE_FULL
    assert (bench.reply.retry_after_ms, type(bench.reply.retry_after_ms)) == (5, int)
