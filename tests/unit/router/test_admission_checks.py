"""Admission's checks of time one by one, to the ns: the cheap one, and the one for a worker with nothing else to do."""

from __future__ import annotations

from typing import Any

import pytest

from router.ledger import Entry, Session
from tests.unit.router.build import MS, NOW, Bench, request


def newcomer(due_ns: int, **fields: Any) -> Entry:
    return Entry(Session(9, 64, 256), request(1000, **fields), NOW, NOW + due_ns, 16, None)


def bench_of(*queued_rows: int, due: float = 900.0, **fields: Any) -> Bench:
    """A row takes a ms, four run together, and these wait for nobody knows what."""
    bench = Bench(**({"run_ns": MS, "row_ns": MS, "max_batch": 4} | fields))
    for number, rows in enumerate(queued_rows):
        asked = request(number, rows=rows)
        waiting = Entry(Session(1, 64, 256), asked, NOW, NOW + int(due * MS), 16, None)
        bench.machine.models[0].queue.push(waiting, NOW)
    return bench


def is_calm(bench: Bench, due_ns: int, **fields: Any) -> bool:
    return bench.machine._admission._is_calm(newcomer(due_ns, **fields), bench.machine.models[0], NOW)


def calm_from(bench: Bench, **fields: Any) -> int:
    """The first due time, in ns from now, at which it is calm; asserts that it is not a ns before."""
    low, high = 0, 10_000 * MS
    while low < high:
        middle = (low + high) // 2
        if is_calm(bench, middle, **fields):
            high = middle
        else:
            low = middle + 1
    return low


@pytest.mark.parametrize(
    ("queued", "rows", "takes_ms"),
    [
        ([], 1, 1),
        ([], 0, 1),
        ([], 3, 3),
        ([1], 1, 2),
        ([0], 0, 2),
        ([2, 1], 1, 4),
        ([4], 1, 8),
        ([4, 3], 1, 8),
        ([4, 4], 1, 12),
        ([4, 4], 5, 16),
        ([], 9, 12),
    ],
)
def test_it_is_calm_where_one_worker_does_all_that_waits_in_full_batches_in_time(queued, rows, takes_ms):
    assert calm_from(bench_of(*queued), rows=rows) == takes_ms * MS


def test_it_begins_when_the_last_worker_is_predicted_to_be_free():
    bench = bench_of()
    bench.machine.models[0].busy_until_ns = NOW + 7 * MS
    assert calm_from(bench) == 8 * MS
    bench.machine.models[0].in_hand = 1
    assert calm_from(bench) == 8 * MS


@pytest.mark.parametrize("over_ns", [0, 1, 50 * MS])
def test_nothing_is_calm_while_a_run_is_over_its_time(over_ns):
    bench = bench_of()
    bench.machine.models[0].busy_until_ns = NOW - over_ns
    assert is_calm(bench, 10 * MS)
    bench.machine.models[0].in_hand = 1
    assert not is_calm(bench, 10 * MS)


def test_nothing_is_calm_while_a_worker_is_suspect():
    bench = bench_of()
    bench.machine.models[0].suspects = 1
    assert not is_calm(bench, 900 * MS)


def test_it_is_calm_only_where_everybody_who_waits_is_in_time():
    bench = bench_of(1, due=2.0)
    assert is_calm(bench, 900 * MS)
    assert not is_calm(bench, 900 * MS, rows=2)
    assert calm_from(bench) == 2 * MS


# Where a worker has nothing else to do


def may_try(bench: Bench, due_ns: int, **fields: Any) -> bool:
    return bench.machine._admission._is_nobody_elses(newcomer(due_ns, **fields), bench.machine.models[0], NOW)


@pytest.mark.parametrize(("rows", "takes"), [(1, MS), (0, MS), (3, 3 * MS)])
def test_an_idle_worker_tries_what_the_median_has_in_time(rows, takes):
    bench = bench_of()
    costs = bench.machine.models[0].costs
    costs._at = {size: 100 * cost for size, cost in costs._at.items()}
    assert may_try(bench, takes, rows=rows)
    assert not may_try(bench, takes - 1, rows=rows)


def test_nobody_tries_while_others_wait_or_no_worker_is_idle():
    assert not may_try(bench_of(1), 900 * MS)
    assert not may_try(bench_of(workers=0), 900 * MS)
