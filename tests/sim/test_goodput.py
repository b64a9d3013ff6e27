"""Under overload the workers do as much good as at capacity, nobody who is let in comes late, and clients share."""

from __future__ import annotations

import pytest

from router.admission import Admission
from tests.sim.goodput import CAPACITY, Client, Overload, measure, shares

MIXES = {"constant": (40.0,), "mixed": (8.0, 60.0)}


@pytest.mark.slow
@pytest.mark.parametrize("deadlines_ms", MIXES.values(), ids=MIXES)
def test_overload_costs_no_goodput_and_makes_nobody_late(deadlines_ms):
    at_capacity = measure("prediction", 1.0, deadlines_ms, seconds=1.5)
    for load in (2.0, 3.0, 5.0):
        over = measure("prediction", load, deadlines_ms, seconds=1.5)
        assert over.goodput >= 0.95 * at_capacity.goodput, load
        assert over.late < 0.02, load


@pytest.mark.slow
def test_below_capacity_everybody_is_answered_by_the_model():
    under = measure("prediction", 0.5, MIXES["mixed"], seconds=1.5)
    assert under.goodput == pytest.approx(0.5, abs=0.03)
    assert under.late < 0.01


@pytest.mark.slow
def test_to_ask_for_the_newcomer_only_makes_those_late_whom_it_overtakes():
    """What the check of everybody overtaken is there for; without this contrast the test above would prove little."""
    assert measure("prediction, newcomer only", 2.0, MIXES["mixed"], seconds=1.5).late > 0.5


@pytest.mark.slow
def test_a_client_that_asks_ten_times_as_often_does_not_crowd_out_nine_others():
    heavy, *others = shares(Admission, seconds=2.0)
    assert heavy < 1.5
    assert min(others) > 0.85


@pytest.mark.slow
def test_under_pressure_the_lowest_priority_sheds_first_and_still_has_its_share():
    """Three priorities, each asking for the whole capacity."""
    seconds = 2.0
    clients = [Client(p, CAPACITY, (40.0,), priority=p) for p in (1, 4, 7)]
    Overload(Admission, clients, seed=1, spread=0.1).run(seconds)
    low, middle, high = (client.good / (CAPACITY * seconds * 0.9) for client in clients)
    assert high > 0.85
    assert 0.02 < low + middle < 0.15, "one batch in sixteen is for those below"
    assert high + middle + low > 0.95
