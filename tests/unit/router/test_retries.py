"""The budget for second runs: what it begins with, earns, and can save up."""

from __future__ import annotations

from router.retries import AT_FIRST, MOST, SHARE, RetryBudget


def spend_all(budget: RetryBudget) -> int:
    spent = 0
    while budget.spend():
        spent += 1
        assert spent < 10 * MOST, "it never ends"
    return spent


def test_a_farm_that_has_just_started_may_run_two_full_batches_again():
    assert spend_all(RetryBudget()) == AT_FIRST == 64


def test_what_is_spent_is_spent():
    budget = RetryBudget()
    spend_all(budget)
    assert not any(budget.spend() for _ in range(100))


def test_ten_requests_earn_one_second_run():
    budget = RetryBudget()
    spend_all(budget)
    for _ in range(10):
        assert not budget.spend()
        budget.earn()
    # A tenth has no exact place in binary: the tenth of them may fall short by a bit.
    budget.earn()
    assert spend_all(budget) == 1


def test_in_the_long_run_a_tenth_is_run_again():
    budget = RetryBudget()
    spend_all(budget)
    spent = 0
    for _ in range(10_000):
        budget.earn()
        spent += budget.spend()
    assert abs(spent - 10_000 * SHARE) <= 1


def test_a_long_quiet_time_saves_up_no_more_than_so_much():
    budget = RetryBudget()
    for _ in range(100_000):
        budget.earn()
    assert spend_all(budget) == MOST == 256


def test_a_whole_run_must_be_there_to_be_spent():
    budget = RetryBudget()
    budget._left = 1.0
    assert budget.spend()
    budget._left = 0.99
    assert not budget.spend()
    assert budget._left == 0.99
