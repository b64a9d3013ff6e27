"""The median, which decides where a worker has nothing else to do: kept and learned as the other quantiles are."""

from __future__ import annotations

from random import Random

import pytest

from router.costs import FLOOR_NS, TREND_RUNS, UNKNOWN_NS, WHEN_IDLE, RunCosts


def learned(*runs: int, seed_ns: int = 10_000, rows: int = 1) -> RunCosts:
    costs = RunCosts()
    costs.seed([(rows, seed_ns)])
    for run_ns in runs:
        costs.observe(rows, run_ns)
    return costs


def test_half_of_the_runs_are_below_it():
    rng = Random(3)
    draw = [int(100_000 * rng.lognormvariate(0, 0.3)) for _ in range(8_000)]
    costs = learned(*draw[:4_000], seed_ns=100_000)
    below = 0
    for cost_ns in draw[4_000:]:
        assert costs.median(1) < costs.likely(1)
        below += cost_ns <= costs.median(1)
        costs.observe(1, cost_ns)
    assert below / 4_000 == pytest.approx(WHEN_IDLE, abs=0.03)


def test_a_run_moves_it_by_half_a_step_up_or_down():
    assert learned(20_000)._median[1] == pytest.approx(10_100)
    assert learned(5_000)._median[1] == pytest.approx(9_900)
    assert learned(10_000)._median[1] == pytest.approx(9_900)


def test_doubt_moves_it_as_a_fast_run_does():
    costs = learned()
    costs.doubt(1)
    assert costs._median[1] == pytest.approx(9_900)
    assert costs.median(1) in (9_899, 9_900)


def test_it_stays_at_its_floor():
    costs = learned(0, seed_ns=FLOOR_NS)
    costs.doubt(1)
    assert costs.median(1) == FLOOR_NS


def test_it_follows_the_trend_and_not_below_the_floor():
    costs = RunCosts()
    costs.seed([(1, 100_000), (2, FLOOR_NS), (8, 400_000)])
    for _ in range(TREND_RUNS):
        costs.observe(1, 0)
    assert costs.median(8) == costs.estimate(8) < 400_000
    assert costs.median(2) == FLOOR_NS


def test_between_sizes_and_beyond_them_it_is_read_as_the_others_are():
    costs = RunCosts()
    assert costs.median(3) == UNKNOWN_NS
    costs.seed([(1, 10_000), (5, 30_000)])
    assert [costs.median(rows) for rows in (1, 3, 5, 10)] == [10_000, 20_000, 30_000, 60_000]
