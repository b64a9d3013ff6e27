"""The queue: who is next, who runs with whom, and what it counts."""

from __future__ import annotations

from random import Random

from router.batching import FAR_NS, LOOK_MAX, SHARE_EVERY, ModelQueue
from router.ledger import Entry, State
from tests.unit.router.build import MS, NOW, entry


def queue_of(*entries: Entry) -> ModelQueue:
    queue = ModelQueue()
    for queued in entries:
        queue.push(queued, NOW)
    return queue


def take(queue: ModelQueue, rows_max: int = 8, members_max: int = 100) -> list[int]:
    first = queue.first()
    batch = queue.take_batch(rows_max, members_max)
    assert batch[0] is first
    for taken in batch:
        taken.state = State.RUNNING
    queue.check_invariants()
    return [taken.request.id for taken in batch]


def test_the_earliest_deadline_is_first_within_a_priority():
    queue = queue_of(entry(1, in_ms=30), entry(2, in_ms=10), entry(3, in_ms=20))
    assert take(queue) == [2, 3, 1]


def test_equal_deadlines_keep_the_order_of_arrival():
    assert take(queue_of(*(entry(number) for number in (5, 3, 9)))) == [5, 3, 9]


def test_the_highest_priority_is_first_whatever_the_deadline():
    queue = queue_of(entry(1, in_ms=10), entry(2, in_ms=90, priority=7), entry(3, in_ms=50, priority=3))
    assert [take(queue, 1) for _ in range(3)] == [[2], [3], [1]]


def test_lower_priorities_fill_a_batch_that_has_room():
    queue = queue_of(entry(1, in_ms=10), entry(2, in_ms=90, priority=7), entry(3, in_ms=50, priority=3))
    assert take(queue, 2) == [2, 3]


def test_among_shapes_of_a_priority_the_earliest_deadline_leads():
    queue = queue_of(entry(1, shape="a", in_ms=20), entry(2, shape="b", in_ms=10), entry(3, shape="a", in_ms=30))
    assert take(queue) == [2]
    assert take(queue) == [1, 3]


def test_only_equal_shapes_run_together():
    queue = queue_of(*(entry(number, shape=number % 2, in_ms=number) for number in range(1, 7)))
    assert take(queue) == [1, 3, 5]
    assert take(queue) == [2, 4, 6]


def test_a_batch_has_no_more_rows_than_allowed():
    queue = queue_of(entry(1, rows=3, in_ms=1), entry(2, rows=4, in_ms=2), entry(3, rows=2, in_ms=3))
    assert take(queue, 8) == [1, 2]
    assert take(queue, 8) == [3]


def test_a_batch_has_no_more_members_than_fit_a_frame():
    queue = queue_of(*(entry(number) for number in range(1, 6)))
    assert [take(queue, 32, 2) for _ in range(3)] == [[1, 2], [3, 4], [5]]


def test_a_request_with_more_rows_than_a_batch_runs_by_itself():
    assert take(queue_of(entry(1, rows=50, in_ms=1), entry(2, in_ms=2))) == [1]


def test_one_without_rows_counts_as_one():
    queue = queue_of(*(entry(number, rows=0) for number in range(1, 5)))
    assert queue.rows == 4
    assert take(queue, 3) == [1, 2, 3]


def test_one_that_must_run_alone_leads_no_batch():
    assert take(queue_of(entry(1, alone=True, in_ms=1), entry(2, in_ms=2))) == [1]


def test_one_that_must_run_alone_joins_no_batch():
    queue = queue_of(entry(1, in_ms=1), entry(2, alone=True, in_ms=2), entry(3, in_ms=3))
    assert take(queue) == [1, 3]
    assert take(queue) == [2]


def test_of_those_that_are_passed_over_nobody_loses_its_place():
    queue = queue_of(*(entry(n, in_ms=n, shape="b" if n in (2, 3) else "a", alone=n == 5) for n in range(1, 8)))
    assert take(queue) == [1, 4, 6, 7]
    assert [e.request.id for e in queue.entries()] == [2, 3, 5]


def test_nobody_joins_a_run_that_ends_too_late_for_it():
    queue = queue_of(entry(1, in_ms=50, priority=7), entry(2, in_ms=10), entry(3, in_ms=30))
    assert [e.request.id for e in queue.take_batch(8, 100, NOW + 20 * MS)] == [1, 3]


def test_one_batch_in_so_many_is_led_by_a_lower_priority():
    """The bound on starvation."""
    queue = queue_of(entry(1, in_ms=90, priority=2), entry(2, in_ms=80))
    for number in range(3, 3 + 3 * SHARE_EVERY):
        queue.push(entry(number, in_ms=1, priority=7), NOW)
    led = [take(queue, 1) for _ in range(2 * SHARE_EVERY)]
    assert [led.index([2]), led.index([1])] == [SHARE_EVERY - 1, 2 * SHARE_EVERY - 1]


def test_the_share_is_counted_only_while_a_lower_priority_waits():
    queue = queue_of(*(entry(number, priority=7) for number in range(100)))
    for _ in range(50):
        take(queue, 1)
    queue.push(entry(200), NOW)
    assert [200] not in [take(queue, 1) for _ in range(SHARE_EVERY - 1)]
    assert take(queue, 1) == [200]


def test_what_is_due_is_taken_from_every_priority_and_shape():
    entries = [
        entry(n, in_ms=ms, priority=p, shape=s) for n, ms, p, s in ((1, 5, 0, "a"), (2, 3, 7, "b"), (3, 50, 3, "a"))
    ]
    queue = queue_of(*entries)
    assert queue.due_ns() == entries[1].due_ns
    due = queue.take_due(NOW + 10 * MS)
    assert sorted(taken.request.id for taken in due) == [1, 2]
    for taken in due:
        taken.state = State.CLOSED
    queue.check_invariants()
    assert queue.due_ns() == entries[2].due_ns


def test_nothing_is_due_a_moment_too_early():
    only = entry(1)
    queue = queue_of(only)
    assert queue.take_due(only.due_ns - 1) == []
    assert queue.take_due(only.due_ns) == [only]


def test_forgotten_entries_are_neither_due_nor_dispatched():
    gone, kept = entry(1, in_ms=1), entry(2, in_ms=9)
    queue = queue_of(gone, kept)
    queue.forget(gone)
    gone.state = State.CLOSED
    assert queue.count == 1
    assert queue.due_ns() == kept.due_ns
    assert take(queue) == [2]


def test_asking_and_cancelling_does_not_fill_the_memory():
    queue = queue_of(entry(0, in_ms=1))
    for number in range(1, 5_000):
        cancelled = entry(number, in_ms=1000 + number, shape=number, priority=number % 8)
        queue.push(cancelled, NOW)
        queue.forget(cancelled)
        cancelled.state = State.CLOSED
    assert sum(map(len, queue._lines)) == 1
    queue.check_invariants()
    assert take(queue) == [0]


def test_everything_comes_out_once_and_the_counts_return_to_zero():
    rng = Random(1)
    entries = [
        entry(n, in_ms=rng.uniform(1, 99), priority=rng.randint(0, 7), rows=rng.randint(0, 9), shape=rng.randint(0, 2))
        for n in range(300)
    ]
    queue = queue_of(*entries)
    forgotten = rng.sample(entries, 100)
    for gone in forgotten:
        queue.forget(gone)
        gone.state = State.CLOSED
    taken: list[int] = []
    while queue.count:
        taken += take(queue)
    assert sorted(taken) == sorted({e.request.id for e in entries} - {e.request.id for e in forgotten})
    assert (queue.count, queue.rows, queue.payload_bytes) == (0, 0, 0)


def test_taking_all_empties_the_queue():
    gone = entry(1)
    queue = queue_of(gone, entry(2, priority=3), entry(3, shape="a"))
    queue.forget(gone)
    gone.state = State.CLOSED
    assert sorted(taken.request.id for taken in queue.take_all()) == [2, 3]
    assert (queue.count, queue.rows, queue.payload_bytes, queue.due_ns()) == (0, 0, 0, None)
    queue.check_invariants()


def test_what_is_due_is_not_hidden_behind_an_earlier_deadline_with_less_reserve():
    """The reserve grew between the two: the later deadline is due first."""
    early, late = entry(1, in_ms=50), entry(2, in_ms=51)
    late.due_ns -= 20 * MS
    queue = queue_of(early, late)
    assert queue.due_ns() == late.due_ns
    assert queue.take_due(late.due_ns) == [late]


def test_places_are_counted_by_client():
    queue = queue_of(entry(1), entry(2))
    assert queue.clients(0) == {1: 2}
    take(queue)
    assert queue.clients(0) == {}


def test_rows_before_a_newcomer_are_those_of_higher_priorities_and_of_earlier_or_equal_deadlines():
    queue = queue_of(entry(1, in_ms=10, rows=3), entry(2, in_ms=20), entry(3, in_ms=30), entry(4, priority=5, rows=7))
    due_ns = next(e.due_ns for e in queue.entries() if e.request.id == 2)
    assert queue.before(0, due_ns) == (7, 4, 2)
    assert queue.before(0, due_ns - 1) == (7, 3, 1)
    assert queue.before(0, due_ns + 10**9) == (7, 5, 3)
    assert queue.before(5, due_ns) == (0, 0, 0)
    assert queue.before(7, due_ns) == (0, 0, 0)
    assert list(queue.rows_up_to(0)) == [3, 4, 5]


def test_of_several_lower_priorities_whoever_is_due_soonest_leads_the_share():
    queue = queue_of(
        *(entry(100 + n, in_ms=900, priority=7) for n in range(2 * SHARE_EVERY)),
        entry(1, in_ms=80, priority=5),
        entry(2, in_ms=50, priority=3),
        entry(3, in_ms=60),
    )
    led = [take(queue, 1) for _ in range(3 * SHARE_EVERY - 20)]
    assert led.index([2]) == SHARE_EVERY - 1


def test_who_is_due_at_the_very_end_of_a_run_may_join_it():
    queue = queue_of(entry(1, in_ms=50), entry(2, in_ms=60))
    done_ns = next(e.due_ns for e in queue.entries() if e.request.id == 2)
    assert [e.request.id for e in queue.take_batch(8, 100, done_ns)] == [1, 2]


def test_company_is_looked_for_among_so_many_only():
    crowd = [entry(n, in_ms=n, shape="b") for n in range(2, LOOK_MAX + 2)]
    queue = queue_of(entry(1, in_ms=1), *crowd, entry(999, in_ms=5000))
    assert take(queue) == [1]
    near = queue_of(entry(1, in_ms=1), *crowd[:-1], entry(999, in_ms=5000))
    assert take(near) == [1, 999]


def test_a_request_that_is_too_large_for_the_rest_of_a_batch_ends_it():
    """Nobody is overtaken by smaller ones for its size."""
    queue = queue_of(entry(1, rows=3, in_ms=1), entry(2, rows=6, in_ms=2), entry(3, in_ms=3))
    assert take(queue) == [1]
    assert take(queue) == [2, 3]


def test_who_comes_first_to_an_empty_queue_begins_the_waiting():
    queue = ModelQueue()
    queue.push(entry(1), NOW)
    queue.push(entry(2), NOW + 5)
    assert queue.waiting_since_ns == NOW
    take(queue)
    queue.push(entry(3), NOW + 9)
    assert queue.waiting_since_ns == NOW + 9


def test_nobody_is_due_before_the_time_that_the_queue_tells():
    """It may be too early, never too late; it is exact once it was asked for."""
    rng, queue, here = Random(5), ModelQueue(), list[Entry]()
    for number in range(600):
        if here and rng.random() < 0.45:
            match rng.randint(0, 2):
                case 0:
                    gone = [here[rng.randrange(len(here))]]
                    queue.forget(gone[0])
                case 1:
                    gone = queue.take_batch(rng.randint(1, 4), 100)
                case _:
                    gone = queue.take_due(min(e.due_ns for e in here))
            for each in gone:
                each.state = State.CLOSED
                here.remove(each)
        else:
            here.append(entry(number, in_ms=rng.uniform(1, 99), priority=rng.randint(0, 3), rows=rng.randint(0, 2)))
            queue.push(here[-1], NOW)
        queue.check_invariants()
        first = min((e.due_ns for e in here), default=None)
        assert queue.not_before_ns <= (FAR_NS if first is None else first)
        if rng.random() < 0.3:
            assert queue.due_ns() == first
            assert queue.not_before_ns == (FAR_NS if first is None else first)


def test_the_order_of_a_line_does_not_depend_on_the_order_of_arrival():
    rng = Random(6)
    entries = [entry(n, in_ms=n, rows=1) for n in range(1, 40)]
    rng.shuffle(entries)
    queue = queue_of(*entries)
    assert [e.request.id for e in queue.entries()] == list(range(1, 40))
    assert list(queue.rows_up_to(0)) == list(range(1, 40))


def test_rows_of_each_priority_are_counted_apart():
    queue = queue_of(entry(1, rows=3), entry(2, rows=0), entry(3, rows=5, priority=4))
    assert [queue.line_rows(p) for p in (0, 4, 7)] == [4, 5, 0]
    assert queue.priorities == [4, 0]
    assert [len(queue.line(p)) for p in (0, 4, 7)] == [2, 1, 0]
    assert queue.payload_bytes == 48
