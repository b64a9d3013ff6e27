"""The forecast: when the last of so many queued rows is done, from what the workers have in hand and what runs cost."""

from __future__ import annotations

from random import Random

import pytest

from router.costs import RunCosts
from router.forecast import Forecast
from router.roster import RunInHand, Worker, WorkerState
from tests.unit.router.build import MS, NOW, entry

MAX_BATCH = 4
ONE, FULL = MS, 4 * MS
"""What a run of one row costs here, and a full one: a row a millisecond."""

NUMBERS = iter(range(1, 10**9))


def worker(
    *, free_in: int = 0, rows: int = 1, state: WorkerState = WorkerState.READY, runs: int = 0, kill_in: int = 0
) -> Worker:
    """A worker with `runs` in hand, predicted to be free `free_in` ns from now; suspect where it is to be killed."""
    made = Worker(next(NUMBERS), 0)
    made.state = state
    made.free_ns = NOW + free_in
    for number in range(runs):
        run = RunInHand(number + 1, made, [entry(rows=rows)])
        run.kill_ns = NOW + kill_in if kill_in else 0
        made.runs.append(run)
    made.suspect = kill_in != 0
    return made


def busy(left: int, *, rows: int = 1) -> Worker:
    return worker(free_in=left, runs=1, rows=rows)


def forecast(*workers: Worker, max_batch: int = MAX_BATCH) -> Forecast:
    costs = RunCosts()
    costs.seed([(1, ONE), (MAX_BATCH, FULL)])
    made = Forecast(costs)
    made.look(workers, max_batch, NOW)
    return made


def done_in(told: Forecast, *rows: int) -> list[int]:
    """When each number of rows is done, in ns from now."""
    found = [told.finish_ns(number) - NOW for number in rows]
    assert all(type(each) is int for each in found), "times are whole ns"
    return found


def test_with_an_idle_worker_a_first_batch_takes_what_a_run_of_its_size_takes():
    assert done_in(forecast(worker()), 1, 2, 4) == [ONE, 2 * MS, FULL]


def test_every_batch_after_the_first_is_charged_as_a_full_one():
    assert done_in(forecast(worker()), 4, 5, 8, 9, 12, 13) == [FULL, 2 * FULL, 2 * FULL, 3 * FULL, 3 * FULL, 4 * FULL]


def test_where_rows_do_not_batch_each_is_a_run():
    assert done_in(forecast(worker(), max_batch=1), 1, 2, 5) == [ONE, 2 * ONE, 5 * ONE]


def test_what_is_left_of_a_run_in_hand_comes_first():
    assert done_in(forecast(busy(3 * MS)), 1, 4, 5) == [3 * MS + ONE, 3 * MS + FULL, 3 * MS + 2 * FULL]


def test_a_worker_that_was_free_long_ago_is_free_now():
    assert done_in(forecast(worker(free_in=-50 * MS)), 1) == [ONE]


def test_the_prediction_of_an_idle_worker_is_not_asked():
    """What it was predicted for a run that has ended since."""
    assert done_in(forecast(worker(free_in=50 * MS)), 1) == [ONE]


@pytest.mark.parametrize("over", [0, 1, 10 * MS])
def test_a_run_that_is_over_its_time_may_be_so_for_as_long_again(over):
    assert done_in(forecast(busy(-over, rows=3)), 1) == [max(3 * MS, over) + ONE]


def test_a_run_that_has_a_moment_left_has_a_moment_left():
    assert done_in(forecast(busy(1, rows=3)), 1) == [1 + ONE]


def test_of_several_runs_in_hand_the_one_that_is_going_is_over_its_time():
    late = worker(free_in=-1, runs=1, rows=2)
    late.runs.append(RunInHand(9, late, [entry(rows=4)]))
    assert done_in(forecast(late), 1) == [2 * MS + ONE]


def test_whoever_is_free_soonest_takes_the_first_batch():
    assert done_in(forecast(busy(9 * MS), busy(2 * MS), busy(5 * MS)), 1, 4) == [2 * MS + ONE, 2 * MS + FULL]


def test_idle_workers_share_the_batches():
    """Each begins when its predecessors' work, shared by all, is done; never before."""
    assert done_in(forecast(worker(), worker()), 4, 5, 9, 13) == [
        FULL,
        FULL // 2 + FULL,
        FULL + FULL,
        3 * FULL // 2 + FULL,
    ]


def test_a_worker_that_is_busy_for_long_does_not_hold_up_what_the_others_can_do():
    assert done_in(forecast(worker(), busy(1000 * MS)), 5, 9) == [2 * FULL, 3 * FULL]


def test_a_worker_that_is_free_soon_enough_takes_its_part():
    assert done_in(forecast(worker(), busy(2 * MS)), 5) == [(2 * MS + FULL) // 2 + FULL]


@pytest.mark.parametrize("state", [WorkerState.LOADING, WorkerState.DRAINING, WorkerState.LOST])
def test_a_worker_that_is_not_ready_does_no_work(state):
    other = worker(state=state)
    assert done_in(forecast(busy(7 * MS), other), 1) == [7 * MS + ONE]


def test_a_suspect_worker_does_no_work_while_there_is_another():
    assert done_in(forecast(busy(7 * MS), worker(runs=1, kill_in=2 * MS)), 1, 5) == [7 * MS + ONE, 7 * MS + 2 * FULL]


def test_with_suspects_alone_the_first_of_them_is_free_when_it_is_killed():
    suspects = [worker(runs=1, kill_in=kill_in) for kill_in in (9 * MS, 5 * MS)]
    assert done_in(forecast(*suspects), 1, 5) == [5 * MS + ONE, (5 * MS + 9 * MS + FULL) // 2 + FULL]


def test_a_suspect_that_is_killed_already_counts_as_free():
    """Its replacement is on the way, and nobody knows for how long."""
    suspect = worker(runs=1, kill_in=-2 * MS)
    assert done_in(forecast(suspect), 1) == [ONE]


def test_a_suspect_without_a_run_has_no_time_at_which_it_is_killed():
    suspect = worker()
    suspect.suspect = True
    assert done_in(forecast(suspect), 1) == [ONE]


def test_who_has_runs_and_is_not_suspect_is_not_killed():
    """Not ready, and none of its runs was told to stop."""
    assert done_in(forecast(worker(state=WorkerState.LOST, runs=1, free_in=9 * MS)), 1) == [ONE]


def test_without_any_worker_it_is_as_if_one_came_now():
    assert done_in(forecast(), 1, 4, 5) == [ONE, FULL, 2 * FULL]


def test_a_forecast_is_as_of_the_moment_it_was_made():
    told = forecast(worker())
    assert told.now_ns == NOW
    told.look([worker()], MAX_BATCH, NOW + 7)
    assert (told.now_ns, told.finish_ns(1)) == (NOW + 7, NOW + 7 + ONE)


def test_nothing_is_left_of_an_earlier_look():
    told = forecast(busy(9 * MS), busy(8 * MS))
    told.look([busy(MS)], 2, NOW)
    assert done_in(told, 1) == [8 * MS + ONE], "at one time one look is enough"
    told.forget()
    told.look([busy(MS)], 2, NOW)
    assert done_in(told, 1, 3) == [MS + ONE, MS + 2 * 2 * MS]


@pytest.mark.parametrize("seed", range(20))
def test_no_batch_is_promised_sooner_than_a_list_schedule_has_it_nor_much_later(seed):
    """Each batch goes to whoever is free first. R. L. Graham's bound is never sooner than that, and later by less than
    a batch and the spread between the workers now."""
    rng = Random(seed)
    left = sorted(rng.randint(0, 3) * rng.randint(0, 9 * MS) for _ in range(rng.randint(1, 5)))
    told = forecast(*(busy(each) if each else worker() for each in left))
    free = list(left)
    for batch in range(1, 41):
        free.sort()
        free[0] += FULL
        scheduled = free[0]
        (found,) = done_in(told, batch * MAX_BATCH)
        assert scheduled - 1 <= found < scheduled + FULL + left[-1] - left[0]
        if len(left) == 1:
            assert found == scheduled
