"""Who gives way: one worker, one row a run, a millisecond each, so that `n` rows are done in `n` ms and no sooner."""

from __future__ import annotations

from random import Random

import pytest

from router.batching import SHARE_EVERY, ModelQueue
from router.costs import RunCosts
from router.forecast import Forecast
from router.ledger import Entry, Session
from router.shedding import lowest_below, make_room, surplus
from tests.unit.router.build import MS, NOW, request


def place(number: int = 1, *, due: float, client: int = 1, rows: int = 1, priority: int = 0) -> Entry:
    """A request whose answer is due so many ms from now."""
    asked = request(number, in_ms=due, rows=rows, priority=priority)
    return Entry(Session(client, 64, 256), asked, NOW, asked.deadline_ns, 16, None)


def queue_of(*entries: Entry) -> ModelQueue:
    queue = ModelQueue()
    for queued in entries:
        queue.push(queued, NOW)
    return queue


def crowd(count: int, *, due: float, first: int = 100, **fields: int) -> list[Entry]:
    return [place(first + number, due=due, **fields) for number in range(count)]


@pytest.fixture
def forecast() -> Forecast:
    costs = RunCosts()
    costs.seed([(1, MS)])
    made = Forecast(costs)
    made.look([], 1, NOW)
    return made


def evicted(queue: ModelQueue, forecast: Forecast, entry: Entry) -> list[int] | None:
    """Ids of those who give way for the newcomer; None where it is refused."""
    count = queue.count
    late = make_room(queue, forecast, entry)
    queue.check_invariants()
    assert queue.count == count, "who gives way is named and not yet taken out"
    return None if late is None else [other.request.id for other in late]


# The newcomer's own time


@pytest.mark.parametrize(("due", "room"), [(1, []), (0.999999, None)])
def test_a_newcomer_to_an_empty_queue_needs_the_time_of_its_own_run(forecast, due, room):
    assert evicted(ModelQueue(), forecast, place(due=due)) == room


@pytest.mark.parametrize(("due", "room"), [(7, []), (6.999999, None)])
def test_a_newcomer_with_many_rows_needs_the_time_of_all_of_them(forecast, due, room):
    assert evicted(ModelQueue(), forecast, place(due=due, rows=7)) == room


def test_a_newcomer_without_rows_counts_as_one(forecast):
    assert evicted(ModelQueue(), forecast, place(due=1, rows=0)) == []
    assert evicted(ModelQueue(), forecast, place(due=0.9, rows=0)) is None


@pytest.mark.parametrize(("due", "room"), [(6, []), (5.999999, None)])
def test_who_is_due_before_a_newcomer_runs_before_it(forecast, due, room):
    queue = queue_of(place(1, due=2, rows=2), place(2, due=5, rows=3))
    assert evicted(queue, forecast, place(9, due=due)) == room


@pytest.mark.parametrize(("due", "room"), [(6, []), (5.999999, None)])
def test_higher_priorities_run_before_a_newcomer_whenever_they_are_due(forecast, due, room):
    queue = queue_of(place(1, due=900, rows=2, priority=7), place(2, due=800, rows=3, priority=3))
    assert evicted(queue, forecast, place(9, due=due, priority=2)) == room


def test_who_is_due_at_the_same_time_and_came_before_runs_before(forecast):
    queue = queue_of(*crowd(3, due=3.5))
    assert evicted(queue, forecast, place(9, due=3.5)) is None


def test_where_everything_that_waits_is_done_before_anybody_is_due_there_is_room(forecast):
    """Also for a client that has more than its part: nobody is short of time."""
    queue = queue_of(*crowd(5, due=7), place(1, due=900, client=2))
    assert surplus(queue, place(9, due=7)) > 0
    assert evicted(queue, forecast, place(9, due=7)) == []


# Who is overtaken


@pytest.mark.parametrize(("due", "room"), [(4, []), (3.999999, None)])
def test_nobody_of_the_same_priority_is_pushed_over_its_time(forecast, due, room):
    queue = queue_of(place(1, due=due, rows=2))
    assert evicted(queue, forecast, place(9, due=2.5, rows=2)) == room


def test_who_runs_before_the_newcomer_is_not_asked(forecast):
    """It is late already, or nearly; the newcomer takes nothing from it."""
    queue = queue_of(place(1, due=0.5), place(2, due=50))
    assert evicted(queue, forecast, place(9, due=10)) == []


@pytest.mark.parametrize("tight", range(6))
def test_each_that_is_overtaken_is_asked_wherever_it_stands(forecast, tight):
    """Five with time to spare and one with just enough, or a moment less."""
    for moment, room in ((0.0, []), (0.000001, None)):
        queue = queue_of(
            *(place(n, due=100 + n) for n in range(tight)),
            place(tight, due=200 - moment, rows=200 - tight - 2),
            *(place(n, due=1000 + n) for n in range(tight + 1, 6)),
        )
        assert evicted(queue, forecast, place(9, due=2, rows=2)) == room


@pytest.mark.parametrize("seed", range(40))
def test_a_newcomer_is_let_in_exactly_where_it_and_everyone_it_overtakes_are_in_time(forecast, seed):
    """The rule itself, asked of each place in turn, against the search by halves."""
    rng = Random(seed)
    outcomes = set()
    for _ in range(60):
        many = rng.random() < 0.5
        entries = [
            place(n, due=rng.uniform(1, 60), rows=rng.randint(0, 5) if many else 1, client=n)
            for n in range(rng.randint(0, 12))
        ]
        entries += [place(50 + n, due=rng.uniform(1, 90), priority=7, client=n) for n in range(rng.randint(0, 4))]
        newcomer = place(99, due=rng.uniform(1, 60), rows=rng.randint(1, 4), client=99)
        queue = queue_of(*entries)
        line = sorted([*(e for e in entries if e.request.priority == 0), newcomer], key=lambda e: e.due_ns)
        at = line.index(newcomer)
        done = sum(e.request.priority == 7 for e in entries)
        in_time = True
        for number, each in enumerate(line):
            done += each.request.rows or 1
            in_time = in_time and (number < at or NOW + done * MS <= each.due_ns)
        in_time = in_time or NOW + queue.rows * MS + (newcomer.request.rows * MS) <= min(
            [newcomer.due_ns, *(e.due_ns for e in entries)]
        )
        by_share = queue.priorities[:1] == [7]
        if by_share:
            waiting = sum(e.request.rows or 1 for e in entries if e.request.priority == 0)
            by_share = (waiting + newcomer.request.rows) * SHARE_EVERY * MS + NOW <= newcomer.due_ns
        if by_share:
            continue
        outcomes.add(in_time)
        assert (make_room(queue, forecast, newcomer) is not None) is in_time
    assert outcomes == {True, False}


# Lower priorities give way


def test_who_of_a_lower_priority_would_be_late_gives_way_and_nobody_else(forecast):
    queue = queue_of(place(1, due=3), place(2, due=5.5), place(3, due=6), place(4, due=7), place(5, due=60))
    # Before: done at 1, 2, 3, 4, 5 ms. The newcomer takes 4: the first two cannot be, and their going saves the others.
    assert evicted(queue, forecast, place(9, due=8, rows=4, priority=1)) == [1]
    assert evicted(queue, forecast, place(9, due=8, rows=5, priority=1)) == [1, 2]
    assert evicted(queue, forecast, place(9, due=8, rows=6, priority=1)) == [1, 2, 3]


def test_of_several_lower_priorities_the_lowest_give_way_first(forecast):
    queue = queue_of(place(1, due=4, priority=2), place(2, due=4, priority=1), place(3, due=4))
    assert evicted(queue, forecast, place(9, due=9, priority=3)) == []
    assert evicted(queue, forecast, place(9, due=9, rows=2, priority=3)) == [3]
    assert evicted(queue, forecast, place(9, due=9, rows=3, priority=3)) == [2, 3]
    assert evicted(queue, forecast, place(9, due=9, rows=4, priority=3)) == [1, 2, 3]


def test_a_lower_priority_with_many_rows_gives_way_as_a_whole(forecast):
    queue = queue_of(place(1, due=5, rows=4), place(2, due=5, rows=3))
    assert evicted(queue, forecast, place(9, due=9, rows=2, priority=1)) == [1]


def test_those_before_a_lower_priority_are_all_of_the_higher_ones(forecast):
    """The newcomer's own line too, also what is due after it."""
    queue = queue_of(place(1, due=3, priority=5), place(2, due=90, priority=4), place(3, due=6))
    assert evicted(queue, forecast, place(9, due=50, rows=3, priority=4)) == []
    assert evicted(queue, forecast, place(9, due=50, rows=4, priority=4)) == [3]


def test_nobody_gives_way_for_a_newcomer_that_would_be_late_all_the_same(forecast):
    queue = queue_of(place(1, due=3), place(2, due=9, rows=8, priority=2))
    assert evicted(queue, forecast, place(9, due=8.5, priority=1)) is None


def test_a_higher_priority_never_gives_way(forecast):
    queue = queue_of(place(1, due=2.5, rows=2, priority=2))
    assert evicted(queue, forecast, place(9, due=2.5, priority=1)) is None


def test_who_of_a_lower_priority_is_in_time_is_before_those_after_it(forecast):
    queue = queue_of(place(1, due=6), place(2, due=8, rows=3), place(3, due=9))
    # Done at 6, 9 and, once the second has gone, 7 ms.
    assert evicted(queue, forecast, place(9, due=50, rows=5, priority=1)) == [2]


def test_a_lower_priority_without_rows_counts_as_one(forecast):
    queue = queue_of(place(1, due=6, rows=0), place(2, due=6.5, rows=3), place(3, due=7, rows=0))
    assert evicted(queue, forecast, place(9, due=50, rows=5, priority=1)) == [2]


# The share of the lower priorities


@pytest.mark.parametrize(("due", "room"), [(3 * SHARE_EVERY, []), (3 * SHARE_EVERY - 0.000001, None)])
def test_a_low_priority_is_let_in_where_its_share_is_enough(forecast, due, room):
    """However much waits above: one batch in so many is for those below."""
    queue = queue_of(*crowd(200, due=1000, priority=7), place(1, due=20))
    assert evicted(queue, forecast, place(9, due=due, rows=2)) == room


def test_the_share_is_for_all_below_the_highest_together(forecast):
    queue = queue_of(*crowd(200, due=1000, priority=7), place(1, due=900, priority=5), place(2, due=900, priority=1))
    assert evicted(queue, forecast, place(9, due=3 * SHARE_EVERY, priority=1)) == []
    assert evicted(queue, forecast, place(9, due=3 * SHARE_EVERY - 1, priority=1)) is None
    assert evicted(queue, forecast, place(9, due=3 * SHARE_EVERY, priority=5, rows=1)) == []


@pytest.mark.parametrize("priority", [6, 7])
def test_there_is_no_share_for_the_highest_priority(forecast, priority):
    """Nor for one that would be: it is served in its turn or not at all."""
    queue = queue_of(*crowd(200, due=90, priority=6))
    newcomer = place(9, due=150, priority=priority, rows=1 if priority == 6 else 151)
    assert evicted(queue, forecast, newcomer) is None


def test_who_is_in_time_by_the_share_of_its_priority_does_not_give_way(forecast):
    """Late in its turn, behind fifty others, and in time by the batches that go to those below."""
    below = [place(1, due=SHARE_EVERY), place(2, due=2 * SHARE_EVERY), place(3, due=3 * SHARE_EVERY - 0.5)]
    queue = queue_of(*crowd(55, due=1000, priority=7, client=2), *below)
    assert evicted(queue, forecast, place(9, due=900, priority=7)) == [3]
    queue = queue_of(*crowd(55, due=1000, priority=7, client=2), *below[:2], place(3, due=3 * SHARE_EVERY))
    assert evicted(queue, forecast, place(9, due=900, priority=7)) == []


def test_rows_of_a_line_that_is_in_time_use_up_the_share_of_those_below_it(forecast):
    def queue(due: float) -> ModelQueue:
        return queue_of(*crowd(50, due=1000, priority=7), place(1, due=99, priority=3, rows=2), place(2, due=due))

    assert evicted(queue(3 * SHARE_EVERY), forecast, place(9, due=900, priority=7)) == []
    assert evicted(queue(3 * SHARE_EVERY - 0.5), forecast, place(9, due=900, priority=7)) == [2]


def test_rows_of_all_lines_that_are_in_time_use_up_the_share(forecast):
    def queue(due: float) -> ModelQueue:
        in_time = [place(1, due=2000, priority=5, rows=2), place(2, due=2000, priority=4, rows=3)]
        return queue_of(*crowd(200, due=1000, priority=7), *in_time, place(3, due=due))

    assert evicted(queue(6 * SHARE_EVERY), forecast, place(9, due=900, priority=7)) == []
    assert evicted(queue(6 * SHARE_EVERY - 0.5), forecast, place(9, due=900, priority=7)) == [3]


def test_who_gave_way_uses_up_nobodys_share(forecast):
    def queue(due: float) -> ModelQueue:
        return queue_of(*crowd(50, due=1000, priority=7), place(1, due=10, priority=3, rows=9), place(2, due=due))

    assert evicted(queue(SHARE_EVERY), forecast, place(9, due=900, priority=7)) == [1]
    assert evicted(queue(SHARE_EVERY - 0.5), forecast, place(9, due=900, priority=7)) == [1, 2]


# Clients of one priority


@pytest.mark.parametrize(
    ("mine", "others", "part"),
    [
        (0, [4], 0.0),
        (3, [3], 0.0),
        (2, [4, 4], 0.0),
        (5, [4, 3], 0.125),
        (3, [1], 0.25),
        (9, [3, 0], 0.25),
        (6, [1, 2], 0.5),
        (30, [3] * 9, 0.5),
        (900, [1] * 9, 0.5),
        (7, [], 0.0),
    ],
)
def test_who_has_more_than_the_mean_may_use_less_half_at_the_most(mine, others, part):
    theirs = [each for n, count in enumerate(others) for each in crowd(count, due=50, client=2 + n)]
    queue = queue_of(*crowd(mine, due=50), *theirs)
    assert surplus(queue, place(due=50)) == pytest.approx(part)


def test_a_client_that_has_nothing_queued_has_all_of_its_time():
    assert surplus(ModelQueue(), place(due=50)) == 0.0
    assert surplus(queue_of(*crowd(20, due=50, client=2)), place(due=50)) == 0.0


def test_only_clients_of_the_same_priority_are_compared():
    queue = queue_of(*crowd(50, due=50, priority=1), *crowd(3, due=50, client=2), *crowd(3, due=50))
    assert surplus(queue, place(due=50)) == 0.0
    assert surplus(queue, place(due=50, client=2)) == 0.0


@pytest.mark.parametrize(("mine", "others", "part"), [(1, [1], 1.0), (3, [1], 0.75), (6, [1, 2], 0.5)])
def test_a_client_with_more_than_its_part_is_let_in_where_less_of_its_time_is_enough(forecast, mine, others, part):
    queue = queue_of(
        place(500, due=900, rows=10, priority=7),
        *crowd(mine, due=1),
        *(e for n, count in enumerate(others) for e in crowd(count, due=1, client=2 + n)),
    )
    needed = (queue.rows + 1) / part
    assert evicted(queue, forecast, place(999, due=needed)) == []
    assert evicted(queue, forecast, place(999, due=needed - 0.001)) is None


# Room in a full queue


def test_the_last_of_the_lowest_priority_gives_its_place():
    queue = queue_of(place(1, due=5), place(2, due=9), place(3, due=1, priority=2), place(4, due=99, priority=7))
    other = lowest_below(queue, 3)
    assert other is not None and other.request.id == 2


@pytest.mark.parametrize("priority", [0, 1, 2])
def test_nobody_gives_its_place_to_its_equal_or_to_one_below(priority):
    assert lowest_below(queue_of(place(1, due=5, priority=2)), priority) is None


def test_in_an_empty_queue_nobody_gives_its_place():
    assert lowest_below(ModelQueue(), 7) is None
