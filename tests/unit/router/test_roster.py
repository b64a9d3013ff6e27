"""The roster: who takes the next run, who counts as there, and since when nobody is."""

from __future__ import annotations

import pytest

from router.ledger import State
from router.roster import Roster, RunInHand, Worker, WorkerState
from tests.unit.router.build import MS, NOW, entry


def roster(*states: WorkerState, models: int = 1) -> Roster:
    """Workers 1, 2, ... of the first model in these states."""
    made = Roster(models)
    for number, state in enumerate(states, 1):
        made.add(number, 0).state = state
    return made


def give(worker: Worker, *, free_in: int = 0, number: int = 0) -> RunInHand:
    run = RunInHand(number or worker.number, worker, [entry(worker.number)])
    worker.runs.append(run)
    worker.free_ns = NOW + free_in
    return run


READY = WorkerState.READY
OTHERS = [state for state in WorkerState if state is not READY]


def test_a_new_worker_loads_and_has_nothing():
    made = Roster(2).add(7, 1)
    assert (made.number, made.model, made.state, len(made.runs)) == (7, 1, WorkerState.LOADING, 0)
    assert (made.run_count, made.free_ns, made.stopping, made.suspect) == (0, 0, False, False)


def test_nobody_is_added_twice():
    made = roster(READY)
    with pytest.raises(AssertionError):
        made.add(1, 0)


# Who is next


def test_of_idle_workers_the_first_is_next_for_it_is_warmest():
    made = roster(READY, READY, READY)
    assert made.idle(0) is made.workers[1]
    give(made.workers[1])
    assert made.idle(0) is made.workers[2]


@pytest.mark.parametrize("state", OTHERS)
def test_only_a_ready_worker_is_idle(state):
    assert roster(state).idle(0) is None
    made = roster(state, READY)
    assert made.idle(0) is made.workers[2]


def test_a_worker_serves_its_own_model_only():
    made = roster(READY, models=2)
    give(made.workers[1])
    made.add(5, 1).state = READY
    assert made.idle(0) is None
    assert made.idle(1) is made.workers[5]
    assert made.soonest(1, NOW - MS, NOW + MS) is None


def test_a_second_run_goes_to_whoever_is_done_first():
    made = roster(READY, READY, READY)
    for number, free_in in ((1, 700), (2, 300), (3, 500)):
        give(made.workers[number], free_in=free_in)
    assert made.soonest(0, NOW - MS, NOW + MS) is made.workers[2]


@pytest.mark.parametrize(("free_in", "next_one"), [(-MS, False), (-MS + 1, True), (MS - 1, True), (MS, False)])
def test_a_second_run_goes_to_nobody_who_is_free_too_late_or_far_over_its_time(free_in, next_one):
    made = roster(READY)
    give(made.workers[1], free_in=free_in)
    assert (made.soonest(0, NOW - MS, NOW + MS) is not None) is next_one


def test_of_those_who_are_done_at_the_same_time_the_first_gets_the_second_run():
    made = roster(READY, READY)
    for worker in made.workers.values():
        give(worker, free_in=5)
    assert made.soonest(0, NOW - MS, NOW + MS) is made.workers[1]


@pytest.mark.parametrize("runs", [0, 2])
def test_a_second_run_goes_only_to_who_has_exactly_one(runs):
    made = roster(READY)
    for number in range(runs):
        give(made.workers[1], number=number + 1)
    assert made.soonest(0, NOW - MS, NOW + MS) is None


@pytest.mark.parametrize("state", OTHERS)
def test_a_second_run_goes_to_ready_workers_only(state):
    made = roster(state)
    give(made.workers[1])
    assert made.soonest(0, NOW - MS, NOW + MS) is None


def test_a_second_run_goes_to_no_suspect():
    made = roster(READY)
    give(made.workers[1])
    made.workers[1].suspect = True
    assert made.soonest(0, NOW - MS, NOW + MS) is None


# Who is there


def test_ready_workers_are_counted_by_model():
    made = roster(*WorkerState, READY, models=2)
    made.add(9, 1).state = READY
    assert (made.ready_count(0), made.ready_count(1)) == (2, 1)


def test_a_model_is_workerless_since_its_last_worker_was_removed():
    made = roster(READY, READY)
    made.remove(made.workers[1], NOW)
    assert not made.is_workerless(0, NOW + MS)
    made.remove(made.workers[2], NOW + 5)
    assert not made.is_workerless(0, NOW + 4)
    assert made.is_workerless(0, NOW + 5)
    assert made.workers == {} and made.of_model(0) == []


def test_a_model_that_never_had_a_worker_is_workerless():
    assert Roster(1).is_workerless(0, 0)


@pytest.mark.parametrize("state", WorkerState)
def test_with_any_worker_even_a_lost_one_a_model_is_not_workerless(state):
    assert not roster(state).is_workerless(0, NOW)


def test_each_model_is_workerless_by_itself():
    made = roster(READY, models=2)
    made.remove(made.workers[1], NOW + 5)
    assert made.is_workerless(1, NOW)
    assert not made.is_workerless(0, NOW)


# Runs in hand


def test_a_run_knows_its_rows_and_when_the_first_answer_is_due():
    worker = Worker(1, 0)
    entries = [entry(1, in_ms=50, rows=2), entry(2, in_ms=30, rows=0), entry(3, in_ms=40, rows=5)]
    run = RunInHand(4, worker, entries)
    assert (run.number, run.rows, run.due_ns) == (4, 8, entries[1].due_ns)
    assert (run.began_ns, run.limit_ns, run.kill_ns, run.hung) == (0, 0, 0, False)


def test_a_run_is_due_for_those_that_still_wait_only():
    entries = [entry(n, in_ms=10 * n) for n in (1, 2, 3)]
    for each in entries:
        each.state = State.RUNNING
    run = RunInHand(1, Worker(1, 0), entries)
    entries[0].state = State.HELD
    run.refresh_due()
    assert run.due_ns == entries[1].due_ns
    entries[1].cancelled = True
    run.refresh_due()
    assert run.due_ns == entries[2].due_ns
    entries[2].state = State.HELD
    run.refresh_due()
    assert run.due_ns is None
