"""Run costs: they settle on the quantile, follow changes, and no single run or quiet time spoils them."""

from __future__ import annotations

from random import Random

import pytest

from router.costs import AT_ARRIVAL, AT_DISPATCH, FLOOR_NS, TREND_RUNS, UNKNOWN_NS, RunCosts

# Recorded on two shared cores: a 64-128-64-1 MLP of one row, run_ns of forty runs in a row, one of them descheduled.
RECORDED = (
    6_912, 6_433, 6_341, 6_298, 6_350, 6_287, 6_402, 6_311, 7_020, 6_295, 6_288, 6_340, 6_377, 6_301, 6_299, 9_114,
    6_322, 6_318, 6_290, 6_344, 412_907, 7_911, 6_540, 6_401, 6_333, 6_310, 6_352, 6_296, 6_287, 6_305, 6_348, 6_312,
    6_299, 6_630, 6_322, 6_304, 6_291, 6_377, 6_310, 6_301,
)  # fmt: skip


def learned(*runs: int, seed_ns: int = 10_000, rows: int = 1) -> RunCosts:
    costs = RunCosts()
    costs.seed([(rows, seed_ns)])
    for run_ns in runs:
        costs.observe(rows, run_ns)
    return costs


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("start_ns", [20_000, 1_000_000])
def test_the_estimate_settles_where_the_quantile_says(seed, start_ns):
    rng = Random(seed)
    draw = [int(100_000 * rng.lognormvariate(0, 0.3)) for _ in range(8_000)]
    costs = learned(*draw[:4_000], seed_ns=start_ns)
    below = 0
    for run_ns in draw[4_000:]:
        below += run_ns <= costs.estimate(1)
        costs.observe(1, run_ns)
    assert below / 4_000 == pytest.approx(AT_ARRIVAL, abs=0.02)


def test_a_recorded_series_is_estimated_near_its_slow_runs():
    estimate = learned(*RECORDED * 10).estimate(1)
    assert sorted(RECORDED)[len(RECORDED) // 2] < estimate < 12_000


@pytest.mark.parametrize("outlier_ns", [50_000, 10**9, 10**13])
def test_an_outlier_of_any_size_moves_the_estimate_by_one_step(outlier_ns):
    costs = learned(*[10_000] * 100)
    before = costs.estimate(1)
    costs.observe(1, outlier_ns)
    assert costs.estimate(1) <= before * 1.02


def test_the_first_run_of_a_size_is_believed_within_reason_only():
    costs = RunCosts()
    costs.seed([(1, 10_000), (32, 40_000)])
    line = costs.estimate(7)
    costs.observe(7, 10**10)
    assert costs.estimate(7) == 2 * line


def test_a_lasting_change_of_twofold_is_followed_within_seventy_runs():
    costs = learned(*[10_000] * 100)
    for _ in range(70):
        costs.observe(1, 20_000)
    assert costs.estimate(1) >= 0.95 * 20_000


def test_between_known_sizes_the_estimate_is_a_straight_line():
    costs = RunCosts()
    costs.seed([(1, 10_000), (5, 30_000), (9, 90_000)])
    assert [costs.estimate(rows) for rows in (1, 3, 5, 7, 9)] == [10_000, 20_000, 30_000, 60_000, 90_000]


def test_beyond_known_sizes_the_estimate_is_in_proportion():
    costs = RunCosts()
    costs.seed([(1, 10_000), (10, 50_000)])
    assert costs.estimate(20) == 100_000


def test_below_known_sizes_the_smallest_counts():
    costs = RunCosts()
    costs.seed([(4, 10_000), (8, 50_000)])
    assert costs.estimate(1) == 10_000


def test_before_anything_is_known_a_guess_is_told_and_the_first_run_replaces_it():
    costs = RunCosts()
    assert costs.estimate(3) == UNKNOWN_NS
    costs.observe(3, 70_000)
    assert costs.estimate(3) == 70_000


def test_what_runs_have_taught_is_kept_when_another_worker_warms_up():
    costs = learned(*[20_000] * 200)
    before = costs.estimate(1)
    costs.seed([(1, 10_000), (8, 80_000)])
    assert costs.estimate(1) == before
    assert costs.estimate(8) == 80_000


@pytest.mark.parametrize("run_ns", [0, -5])
def test_the_estimate_never_falls_below_its_floor_by_much(run_ns):
    assert learned(*[run_ns] * 10_000, seed_ns=2_000).estimate(1) >= FLOOR_NS * 0.99


def test_sizes_that_clients_make_up_do_not_fill_the_memory():
    costs = RunCosts()
    for rows in range(1, 6_000):
        costs.observe(rows, 10_000)
        costs.doubt(rows + 10_000)
    assert len(costs._known) <= 4_096


def test_doubt_lowers_an_estimate_until_it_lets_one_in():
    costs = learned(seed_ns=100_000)
    refused = 0
    while costs.estimate(1) > 50_000:
        costs.doubt(1)
        refused += 1
    assert refused < 1_000


def test_doubt_about_a_size_never_seen_does_not_touch_its_neighbours():
    costs = RunCosts()
    costs.seed([(1, 10_000), (3, 30_000)])
    costs.doubt(2)
    assert (costs.estimate(1), costs.estimate(3)) == (10_000, 30_000)
    assert costs.estimate(2) < 20_000


def test_where_the_estimate_is_right_one_refusal_in_twenty_is_let_in():
    costs, let_in = learned(seed_ns=100_000), 0
    for _ in range(4_000):
        if costs.estimate(1) > 99_000:
            costs.doubt(1)
        else:
            let_in += 1
            costs.observe(1, 100_000)
    assert 0.03 < let_in / 4_000 < 0.07


def test_the_quantile_that_decides_at_dispatch_is_the_lower_one():
    rng = Random(1)
    draw = [int(100_000 * rng.lognormvariate(0, 0.3)) for _ in range(8_000)]
    costs = learned(*draw[:4_000], seed_ns=100_000)
    below = 0
    for cost_ns in draw[4_000:]:
        assert costs.likely(1) < costs.estimate(1)
        below += cost_ns <= costs.likely(1)
        costs.observe(1, cost_ns)
    assert below / 4_000 == pytest.approx(AT_DISPATCH, abs=0.02)


def test_the_most_rows_that_fit_a_time_are_found():
    costs = RunCosts()
    costs.seed([(1, 10_000), (11, 110_000)])
    assert [costs.rows_within(ns, 32) for ns in (9_999, 10_000, 55_000, 10**9)] == [0, 1, 5, 32]


def test_sizes_that_do_not_occur_follow_those_that_do():
    """In a bad time all sizes were slow; then only small ones ran. Large ones must not be feared for ever."""
    costs = RunCosts()
    costs.seed([(1, 100_000), (2, 110_000), (32, 400_000)])
    for _ in range(4_000):
        costs.observe(1, 50_000)
        costs.observe(2, 55_000)
    assert costs.estimate(1) < 53_000
    assert costs.estimate(32) == pytest.approx(200_000, rel=0.1)
    assert costs.likely(32) == pytest.approx(200_000, rel=0.1)


def test_a_size_without_rows_lies_below_all_others():
    costs = RunCosts()
    costs.seed([(0, 5_000)])
    assert [costs.estimate(rows) for rows in (0, 1, 3)] == [5_000, 5_000, 15_000]


def test_beyond_a_single_row_the_cost_is_in_proportion():
    assert [learned(seed_ns=10_000).estimate(rows) for rows in (1, 2, 7)] == [10_000, 20_000, 70_000]


def test_a_cost_below_the_floor_is_not_believed():
    costs = RunCosts()
    costs.seed([(1, 0), (2, 999)])
    costs.observe(5, -7)
    assert [costs.estimate(rows) for rows in (1, 2, 5)] == [FLOOR_NS] * 3


def test_one_slow_run_and_one_fast_run_move_each_quantile_by_its_step():
    slow, fast = learned(20_000), learned(5_000)
    assert (slow._at[1], slow._likely[1]) == pytest.approx((10_190, 10_180))
    assert (fast._at[1], fast._likely[1]) == pytest.approx((9_990, 9_980))


def test_a_run_that_took_what_was_predicted_counts_as_fast():
    assert (learned(10_000).estimate(1), learned(10_000).likely(1)) == (9_990, 9_980)


def test_a_doubt_is_worth_a_fast_run():
    doubted = learned()
    doubted.doubt(1)
    assert (doubted.estimate(1), doubted.likely(1)) == (9_990, 9_980)


def test_doubt_never_goes_below_the_floor_by_much_and_knows_nothing_where_nothing_is_known():
    costs = learned(seed_ns=1_001)
    for _ in range(100):
        costs.doubt(1)
    assert FLOOR_NS * 0.99 <= costs.estimate(1) <= FLOOR_NS
    empty = RunCosts()
    empty.doubt(3)
    assert empty.estimate(3) == UNKNOWN_NS
    assert not empty._known


def test_a_first_run_that_is_fast_is_believed_at_once():
    costs = learned(seed_ns=10_000)
    costs.observe(4, 12_000)
    assert costs.estimate(4) == costs.likely(4) == 12_000


def test_what_was_not_seen_moves_as_the_mean_of_what_was_seen():
    costs = RunCosts()
    costs.seed([(1, 100_000), (2, 100_000), (8, 400_000)])
    for _ in range(TREND_RUNS // 2):
        costs.observe(1, 0)
        costs.observe(2, 10**9)
    moved = (costs.estimate(1) + costs.estimate(2)) / 200_000
    assert costs.estimate(8) == pytest.approx(400_000 * moved, rel=1e-4)
    assert costs.likely(8) == pytest.approx(400_000 * moved, rel=1e-4)


def test_the_trend_is_looked_at_every_so_many_runs_and_begins_anew_each_time():
    costs = RunCosts()
    costs.seed([(1, 100_000), (8, 400_000)])
    for _ in range(TREND_RUNS - 1):
        costs.observe(1, 0)
    assert costs.estimate(8) == 400_000
    costs.observe(1, 0)
    once = costs.estimate(8)
    assert once == pytest.approx(400_000 * (1 - 0.02 * 0.05) ** TREND_RUNS, rel=1e-4)
    for _ in range(TREND_RUNS):
        costs.observe(1, 0)
    assert costs.estimate(8) == pytest.approx(400_000 * (1 - 0.02 * 0.05) ** (2 * TREND_RUNS), rel=1e-4)


def test_a_trend_takes_nothing_below_the_floor():
    costs = RunCosts()
    costs.seed([(1, 100_000), (8, FLOOR_NS)])
    for _ in range(TREND_RUNS):
        costs.observe(1, 0)
    assert (costs.estimate(8), costs.likely(8)) == (FLOOR_NS, FLOOR_NS)


def test_a_size_that_runs_teach_is_a_size_that_was_seen():
    """The first run of a size is no move of it, so it does not count for the trend."""
    costs = RunCosts()
    costs.seed([(1, 100_000)])
    costs.observe(8, 50_000)
    assert 8 not in costs._began
    costs.observe(8, 50_000)
    assert set(costs._began) == {8}


def test_at_most_so_many_rows_fit_however_much_time_there_is():
    costs = learned(seed_ns=10_000)
    assert costs.rows_within(10**9, 5) == 5
    assert costs.rows_within(0, 5) == 0


def test_the_very_first_run_is_believed_whatever_it_took():
    costs = RunCosts()
    costs.observe(3, 50 * UNKNOWN_NS)
    assert costs.estimate(3) == 50 * UNKNOWN_NS


def test_an_estimate_at_its_floor_stays_there():
    costs = learned(seed_ns=FLOOR_NS)
    costs.observe(1, 0)
    costs.doubt(1)
    assert (costs._at[1], costs._likely[1]) == (FLOOR_NS, FLOOR_NS)
