"""Admission's limits: rates, places, bytes, requests in flight, workers that are gone, and inputs that kill."""

from __future__ import annotations

import pytest

from router import events as ev
from router.admission import EVICTED_MAX, RATE_BURST_S, WORKERLESS_NS
from router.config import OnConfig
from router.reserve import FLOOR_NS
from shm.client import Request, Submit, request_codec
from shm.endings import Ending, Reason
from shm.errors import FrameRefused
from shm.limits import PRIORITY_MAX
from shm.worker import Copies
from tests.unit.router.build import ALWAYS, MS, NOW, SINGLE, Bench, request

DAY = 24 * 3600e3


def full(*waiting: Request, **fields: object) -> Bench:
    """One run in hand that never ends, and others that wait behind it."""
    bench = Bench(**({"max_batch": 1, "run_ns": MS} | fields))  # type: ignore[arg-type]
    bench.ask(request(99, slot=63, in_ms=60_000))
    assert bench.dispatched == [[63]]
    for each in waiting:
        bench.ask(each)
        assert bench.actions == []
    return bench


def reasons(bench: Bench) -> dict[int, Reason]:
    return {number: Reason(reply.reason) for number, reply in bench.replies.items()}


# The rate of a client


def ask_many(bench: Bench, count: int, *, session: int = 1) -> int:
    """How many of so many requests were let in at this moment; each ends before the next."""
    let_in = 0
    for _ in range(count):
        bench.ask(request(bench.machine.counters.requests, slot=1, in_ms=1e4, now=bench.now), session=session)
        if bench.replies:
            assert (bench.reply.ending, bench.reply.reason) == (Ending.SHED, Reason.RATE)
            continue
        let_in += 1
        (run,) = bench.of(ev.Dispatch)
        bench.turn(ev.RunFinished(1, run.run, 0, bench.now, bench.now, [], Copies()))
    return let_in


def test_a_client_may_send_a_tenth_of_a_second_of_its_rate_at_once():
    assert ask_many(Bench(client_rate=200), 50) == 200 * RATE_BURST_S


@pytest.mark.parametrize(("after_ms", "more"), [(5, 1), (4.9, 0), (52, 10), (100, 20), (60_000, 20)])
def test_after_that_it_may_send_as_many_as_its_rate_says_and_saves_up_no_more_than_that(after_ms, more):
    bench = Bench(client_rate=200)
    ask_many(bench, 50)
    bench.pass_time(after_ms)
    assert ask_many(bench, 50) == more


def test_what_is_left_over_is_not_lost():
    bench = Bench(client_rate=200)
    ask_many(bench, 50)
    let_in = 0
    for _ in range(10):
        bench.pass_time(2.5)
        let_in += ask_many(bench, 1)
    assert let_in == 5


def test_a_client_within_its_rate_is_never_refused_for_it():
    bench = Bench(client_rate=1000)
    for _ in range(300):
        bench.pass_time(1)
        assert ask_many(bench, 1) == 1


def test_a_slow_rate_lets_one_in_at_a_time():
    """A tenth of a second's worth of it would be less than one."""
    bench = Bench(client_rate=2)
    assert ask_many(bench, 3) == 1
    bench.pass_time(499)
    assert ask_many(bench, 3) == 0
    bench.pass_time(1.1)
    assert ask_many(bench, 3) == 1


def test_each_client_has_its_own_rate():
    bench = Bench(client_rate=200)
    assert [ask_many(bench, 30), ask_many(bench, 30, session=2)] == [20, 20]


def test_no_rate_is_no_limit():
    assert ask_many(Bench(), 500) == 500


# Places in the queue


def test_a_queue_holds_as_many_as_it_may_and_one_more_is_told_so():
    bench = full(*(request(n, in_ms=5000) for n in (1, 2, 3)), queue_requests=3)
    bench.ask(request(4, in_ms=5000))
    assert reasons(bench) == {4: Reason.QUEUE_FULL}
    bench.finish()
    bench.ask(request(5, in_ms=5000))
    assert not bench.replies


def test_in_a_full_queue_the_last_of_the_lowest_priority_gives_way_to_a_higher_one():
    bench = full(
        request(1, in_ms=800), request(2, in_ms=900), request(3, in_ms=950, priority=2), queue_requests=3, rules=ALWAYS
    )
    bench.ask(request(4, in_ms=700, priority=1))
    assert (reasons(bench), bench.reply.ending, bench.reply.held) == ({2: Reason.EVICTED}, Ending.SHED, False)
    assert bench.machine.counters.evicted == 1
    bench.ask(request(5, in_ms=700))
    assert reasons(bench) == {5: Reason.QUEUE_FULL}
    bench.ask(request(6, in_ms=700, priority=7), request(7, in_ms=700, priority=7), request(8, in_ms=700, priority=7))
    assert reasons(bench) == {1: Reason.EVICTED, 4: Reason.EVICTED, 3: Reason.EVICTED}
    bench.ask(request(9, in_ms=700, priority=7))
    assert reasons(bench) == {9: Reason.QUEUE_FULL}
    assert bench.machine.counters.evicted == 4


def test_who_gave_way_before_its_time_is_answered_by_what_its_model_has_for_shed():
    bench = full(request(1, in_ms=800), queue_requests=1, rules=ALWAYS, on=OnConfig(shed=["rules"]))
    bench.ask(request(2, in_ms=800, priority=1))
    (asked,) = bench.of(ev.AnswerInstead)
    assert (asked.reply.id, asked.reply.reason, asked.steps) == (1, Reason.EVICTED, ("rules",))


def test_a_client_with_more_than_its_part_finds_the_queue_full_before_the_others():
    bench = full(*(request(n, in_ms=60_000) for n in range(1, 5)), queue_requests=8)
    bench.ask(request(1, in_ms=60_000), session=2)
    # Of five that wait four are its own, the mean is 2.5: so 0.3 of the places are not for it, 2.4 of eight.
    bench.ask(request(5, in_ms=60_000))
    assert not bench.replies
    bench.ask(request(6, in_ms=60_000))
    assert reasons(bench) == {6: Reason.QUEUE_FULL}
    bench.ask(request(2, in_ms=60_000), session=2)
    assert not bench.replies


@pytest.mark.parametrize("places", [7, 8])
def test_below_half_of_its_places_a_queue_is_full_for_nobody(places):
    bench = full(queue_requests=places)
    bench.turn(ev.RequestsArrived(2, [request(1, in_ms=60_000)]))
    for number in range(1, 4):
        bench.ask(request(number, in_ms=60_000))
        assert not bench.replies


# Bytes


def test_a_queue_holds_as_many_bytes_as_it_may():
    bench = Bench(queue_mib=1, signature=SINGLE, run_ns=MS)
    bench.turn(ev.ClientAttached(3, 64, 2**20))
    bench.ask(request(9, in_ms=1e6))
    half = 2**19 // 16
    bench.ask(request(1, rows=half, in_ms=1e6), request(2, rows=half, in_ms=1e6), session=3)
    assert not bench.replies
    bench.ask(request(3, rows=1, in_ms=1e6), session=3)
    assert reasons(bench) == {3: Reason.BYTES_FULL}


def test_no_more_than_so_many_give_way_for_the_bytes_of_one():
    bench = Bench(queue_mib=1, signature=SINGLE, run_ns=MS)
    bench.turn(ev.ClientAttached(3, 64, 2**20))
    bench.ask(request(9, in_ms=1e6))
    bench.ask(*(request(n, rows=2**16 // 16, in_ms=1e6) for n in range(1, 17)), session=3)
    assert not bench.replies
    bench.ask(request(20, rows=2**19 // 16, in_ms=1e6, priority=1), session=3)
    assert reasons(bench) == dict.fromkeys(range(9, 17), Reason.EVICTED)
    assert len(bench.replies) == EVICTED_MAX


def test_who_needs_more_room_than_so_many_could_give_is_refused_and_they_are_gone_for_nothing():
    bench = Bench(queue_mib=1, signature=SINGLE, run_ns=MS)
    bench.turn(ev.ClientAttached(3, 64, 2**20))
    bench.ask(request(9, in_ms=1e6))
    bench.ask(*(request(n, rows=2**15 // 16, in_ms=1e6) for n in range(1, 33)), session=3)
    bench.ask(request(40, rows=2**19 // 16, in_ms=1e6, priority=1), session=3)
    assert reasons(bench) == {**dict.fromkeys(range(25, 33), Reason.EVICTED), 40: Reason.BYTES_FULL}


# In flight


def test_no_more_than_so_many_are_in_flight_whether_they_wait_or_run():
    bench = full(request(1, in_ms=500), in_flight_max=3)
    bench.ask(request(2, in_ms=500))
    assert not bench.replies
    bench.ask(request(3, in_ms=500))
    assert reasons(bench) == {3: Reason.IN_FLIGHT_FULL}
    bench.finish()
    bench.ask(request(4, in_ms=500))
    assert not bench.replies


def test_a_held_reply_is_in_flight_still():
    bench = Bench(in_flight_max=1)
    bench.ask(request(1, in_ms=10))
    bench.pass_time(9.9)
    assert bench.reply.held
    bench.ask(request(2))
    assert reasons(bench) == {2: Reason.IN_FLIGHT_FULL}


def test_a_lower_priority_that_waits_gives_way_where_too_many_are_in_flight():
    bench = full(request(1, in_ms=500), in_flight_max=2)
    bench.ask(request(2, in_ms=500, priority=3))
    assert reasons(bench) == {1: Reason.EVICTED}


def test_what_other_models_have_in_flight_does_not_count():
    bench = Bench(in_flight_max=1)
    bench.turn(ev.WorkerBorn(7, 1))
    bench.turn(ev.WorkerReady(7, bench.signature, []))
    bench.ask(request(1, model=1), request(2, model=1), request(3))
    assert not bench.replies


# Workers


def test_while_a_worker_is_being_replaced_requests_wait():
    bench = Bench()
    bench.turn(ev.WorkerGone(1))
    bench.turn(ev.RequestsArrived(1, [request(1, in_ms=60_000)]), after_ms=WORKERLESS_NS / MS - 0.001)
    assert not bench.replies
    bench.add_worker(2)
    assert bench.dispatched == [[1]]


def test_without_any_worker_for_a_second_whoever_comes_is_told_at_once():
    bench = Bench()
    bench.turn(ev.WorkerGone(1))
    bench.turn(ev.RequestsArrived(1, [request(1, in_ms=60_000)]), after_ms=WORKERLESS_NS / MS)
    assert (bench.reply.ending, bench.reply.reason) == (Ending.SHED, Reason.NO_WORKER)


def test_while_one_loads_requests_wait():
    bench = Bench()
    bench.turn(ev.WorkerGone(1))
    bench.turn(ev.WorkerBorn(2, 0))
    bench.turn(ev.RequestsArrived(1, [request(1, in_ms=60_000)]), after_ms=5000)
    assert not bench.replies


def test_a_worker_of_another_model_is_no_help():
    bench = Bench()
    bench.turn(ev.WorkerGone(1))
    bench.add_worker(2, 1)
    bench.turn(ev.RequestsArrived(1, [request(1, in_ms=60_000)]), after_ms=5000)
    assert reasons(bench) == {1: Reason.NO_WORKER}


def test_a_full_queue_of_one_client_gives_a_place_to_another_that_has_next_to_none():
    bench = Bench(queue_requests=8, max_batch=1)
    bench.ask(request(99, slot=63, in_ms=5000))
    bench.ask(*(request(n, slot=n, in_ms=5000 + n) for n in range(8)))
    bench.ask(request(1, slot=11, in_ms=6000), session=2)
    assert reasons(bench) == {7: Reason.EVICTED}
    bench.ask(request(2, slot=12, in_ms=6000), session=2)
    assert reasons(bench) == {6: Reason.EVICTED}
    bench.ask(request(3, slot=13, in_ms=6000), session=2)
    assert reasons(bench) == {3: Reason.QUEUE_FULL}, "two against six are no longer next to nothing"


def test_clients_with_equal_parts_of_a_full_queue_take_none_from_each_other():
    bench = Bench(queue_requests=8, max_batch=1)
    bench.ask(request(99, slot=63, in_ms=5000))
    for session in (1, 2):
        bench.ask(*(request(n, slot=n, in_ms=5000) for n in range(4)), session=session)
    bench.ask(request(50, slot=50, in_ms=5000), session=2)
    assert reasons(bench) == {50: Reason.QUEUE_FULL}


# Inputs that kill


def test_an_input_that_is_known_to_kill_workers_is_refused_and_never_runs():
    bench = Bench(rules=ALWAYS)
    bench.turn(ev.RequestsArrived(1, [request(1), request(2), request(3)], frozenset({2})))
    assert bench.dispatched == [[1, 3]]
    assert (bench.reply.id, bench.reply.ending, bench.reply.reason) == (2, Ending.FAILED, Reason.POISON)
    assert bench.reply.message == "two workers died of this input or hung in it; it is refused for a while"
    assert not bench.reply.held
    assert bench.machine.counters.poison == 1
    bench.ask(request(2))
    assert not bench.replies
    bench.turn(ev.RequestsArrived(1, [request(4)], frozenset({4})))
    assert bench.machine.counters.poison == 2


def test_a_wrong_request_is_called_wrong_even_if_its_input_kills():
    bench = Bench()
    bench.turn(ev.RequestsArrived(1, [request(1, model=9)], frozenset({1})))
    assert reasons(bench) == {1: Reason.UNKNOWN_MODEL}
    assert bench.machine.counters.poison == 0


# What cannot be, where it is read


@pytest.mark.parametrize("priority", [-1, PRIORITY_MAX + 1])
def test_a_priority_out_of_range_is_refused_where_it_is_read(priority):
    frame = request_codec.encode(Submit(1, [request(1, priority=priority)]))
    with pytest.raises(FrameRefused, match=r"Expected `int` (>= 0|<= 7)"):
        request_codec.decode(frame)


def test_a_deadline_before_the_beginning_of_time_is_refused_where_it_is_read():
    frame = request_codec.encode(Submit(1, [Request(1, 0, -5, 1, 1, 1)]))
    with pytest.raises(FrameRefused, match=r"Expected `int` >= 0"):
        request_codec.decode(frame)


@pytest.mark.parametrize(
    ("in_ms", "ending", "reason", "message"),
    [
        (0, Ending.EXPIRED, Reason.EXPIRED_ON_ARRIVAL, None),
        (-5, Ending.EXPIRED, Reason.EXPIRED_ON_ARRIVAL, None),
        (-NOW / MS, Ending.EXPIRED, Reason.EXPIRED_ON_ARRIVAL, None),
        (
            DAY + 1,
            Ending.INVALID,
            Reason.DEADLINE_RANGE,
            "the deadline is 1.0 days away; at most one day is allowed (CLOCK_MONOTONIC ns)",
        ),
        (
            36_525 * DAY,
            Ending.INVALID,
            Reason.DEADLINE_RANGE,
            "the deadline is 36525.0 days away; at most one day is allowed (CLOCK_MONOTONIC ns)",
        ),
    ],
)
def test_a_deadline_that_cannot_be_meant_is_named(in_ms, ending, reason, message):
    bench = Bench(rules=ALWAYS)
    bench.ask(request(1, in_ms=in_ms))
    assert (bench.reply.ending, bench.reply.reason, bench.reply.message) == (ending, reason, message)
    assert not bench.of(ev.AnswerInstead)
    assert not bench.dispatched


# Doubt


def test_a_refusal_for_the_reserve_alone_weakens_the_reserve():
    bench = Bench(run_ns=MS)
    for _ in range(3):
        bench.machine.reserve.observe(20 * MS)
    before, cost = bench.machine.reserve.before_ns, bench.machine.models[0].costs.estimate(1)
    bench.ask(request(1, in_ms=(MS + FLOOR_NS) / MS))
    assert bench.reply.reason == Reason.PREDICTED_LATE
    assert bench.machine.reserve.before_ns < before
    assert bench.machine.models[0].costs.estimate(1) == cost


def test_a_refusal_that_no_reserve_could_help_weakens_the_cost():
    bench = Bench(run_ns=MS, row_ns=MS)
    for _ in range(3):
        bench.machine.reserve.observe(20 * MS)
    before, costs = bench.machine.reserve.before_ns, bench.machine.models[0].costs
    bench.ask(request(1, rows=3, in_ms=(3 * MS + FLOOR_NS - 1) / MS))
    assert bench.reply.reason == Reason.PREDICTED_LATE
    assert bench.machine.reserve.before_ns == before
    assert costs.estimate(3) < 3 * MS
    assert costs.estimate(1) == MS


def test_a_refusal_while_others_wait_weakens_nothing():
    """They wait for company; that a worker is idle proves nothing then."""
    bench = Bench(run_ns=20 * MS, max_delay_ms=1000)
    bench.ask(request(1, in_ms=900))
    assert not bench.dispatched
    before = bench.machine.reserve.before_ns, bench.machine.models[0].costs.estimate(1)
    bench.ask(request(2, in_ms=10))
    assert bench.reply.reason == Reason.PREDICTED_LATE
    assert (bench.machine.reserve.before_ns, bench.machine.models[0].costs.estimate(1)) == before
