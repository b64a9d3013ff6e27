"""Delays before a dead process is replaced."""

from __future__ import annotations

from farm.supervisor.backoff import Backoff

S = 1_000_000_000


def fresh():
    return Backoff(S // 10, 30 * S, 60 * S)


def test_the_first_replacement_is_at_once_then_delays_double_to_the_maximum():
    backoff = fresh()
    delays = [backoff.next_ns(n * S, None) / S for n in range(12)]
    assert delays == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30]


def test_a_minute_of_health_forgets_the_past():
    backoff = fresh()
    for _ in range(5):
        backoff.next_ns(0, None)
    assert backoff.next_ns(100 * S, 41 * S) == 1.6 * S
    assert backoff.next_ns(200 * S, 140 * S) == 0
    assert backoff.next_ns(201 * S, None) == S // 10


def test_a_process_that_dies_for_years_still_has_a_delay():
    backoff = fresh()
    backoff.failures = 10**9
    assert backoff.next_ns(0, None) == 30 * S
