"""The reserve before a deadline: measured, bounded, forgotten."""

from __future__ import annotations

import pytest

from router.reserve import CEILING_NS, FLOOR_NS, Reserve


def test_the_reserve_begins_with_a_guess_within_its_bounds():
    assert FLOOR_NS < Reserve().before_ns < CEILING_NS


def test_the_reserve_covers_the_worst_lateness_of_late():
    reserve = Reserve()
    for lateness_ns in (100_000, 2_000_000, 50_000):
        reserve.observe(lateness_ns)
    assert reserve.before_ns >= FLOOR_NS + 1_900_000


@pytest.mark.parametrize("lateness_ns", [CEILING_NS, 10**10, 2**62])
def test_no_stall_takes_the_reserve_past_its_ceiling(lateness_ns):
    reserve = Reserve()
    reserve.observe(lateness_ns)
    assert reserve.before_ns == CEILING_NS


@pytest.mark.parametrize("lateness_ns", [5_000_000, 10**12])
def test_a_stall_of_any_length_is_forgotten_within_a_hundred_answers(lateness_ns):
    reserve = Reserve()
    reserve.observe(lateness_ns)
    for _ in range(100):
        reserve.observe(0)
    assert FLOOR_NS <= reserve.before_ns < 2 * FLOOR_NS
