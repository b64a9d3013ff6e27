"""The machine's counters, and the ends of requests where two reasons meet: cancelled, drained, due, lost."""

from __future__ import annotations

from router import events as ev
from shm.endings import Ending, Reason
from shm.worker import TERMINATED
from tests.unit.router.build import MS, Bench, request

# Counted


def test_what_happens_twice_is_counted_twice():
    """Runs, rows, clients, workers, drops, hangs, kills, poison: no counter forgets what it had."""
    bench = Bench(workers=0, max_batch=2, hang_ms=10, run_ns=MS)
    for round_ in (1, 2):
        first = 10 * round_
        bench.turn(ev.ClientAttached(first, 64, 256))
        bench.add_worker(first)
        bench.ask(request(1, now=bench.now, in_ms=9_000), request(2, now=bench.now, in_ms=9_000), session=first)
        bench.turn(ev.WorkerGone(first))
        bench.add_worker(first + 1)
        bench.turn(ev.WorkerGone(first + 1))
        bench.add_worker(first + 2)
        bench.turn(ev.WorkerGone(first + 2))
        bench.add_worker(first + 3)
        bench.ask(request(4, now=bench.now, in_ms=9_000), session=first)
        bench.pass_until_due()
        assert bench.of(ev.TerminateRun)
        bench.pass_until_due()
        assert bench.of(ev.KillWorker)
        bench.turn(ev.ClientLost(first))
        bench.turn(ev.WorkerGone(first + 3))
        counters = bench.machine.counters
        assert {
            "clients_attached": counters.clients_attached - 2,
            "clients_lost": counters.clients_lost,
            "workers_lost": counters.workers_lost,
            "workers_killed": counters.workers_killed,
            "runs_hung": counters.runs_hung,
            "poison": counters.poison,
            "orphaned": counters.orphaned,
            "requests": counters.requests,
            "runs": counters.runs,
            "rows": counters.rows,
        } == {
            "clients_attached": round_,
            "clients_lost": round_,
            "workers_lost": 3 * round_,
            "workers_killed": round_,
            "runs_hung": round_,
            "poison": 2 * round_,
            "orphaned": round_,
            "requests": 3 * round_,
            "runs": 4 * round_,
            "rows": 5 * round_,
        }


def test_runs_that_everybody_left_are_counted():
    bench = Bench()
    for number in (1, 2, 3):
        bench.ask(request(number, slot=1, now=bench.now))
        bench.turn(ev.RequestsCancelled(1, [number]))
        bench.finish(run=number, status=TERMINATED)
    assert bench.machine.counters.runs_terminated == 3
    assert bench.machine.counters.cancelled == 3


def test_requests_of_a_client_that_is_gone_are_orphans_and_those_it_never_had_too():
    bench = Bench(max_batch=1)
    bench.ask(request(1), request(2))
    bench.turn(ev.ClientLost(1))
    assert bench.machine.counters.orphaned == 2
    bench.ask(request(3), request(4), request(5))
    assert (bench.machine.counters.orphaned, bench.machine.counters.requests) == (5, 5)
    assert bench.actions == []


def test_what_was_answered_before_its_client_was_lost_is_no_orphan():
    bench = Bench()
    bench.ask(request(1, in_ms=10), request(2, in_ms=500))
    bench.pass_time(9.9)
    assert bench.reply.held
    bench.turn(ev.ClientLost(1))
    assert bench.machine.counters.orphaned == 1


# More of the ends


def test_one_that_is_not_there_does_not_keep_others_from_being_cancelled():
    bench = Bench(max_batch=1)
    bench.ask(request(1), request(2), request(3))
    bench.turn(ev.RequestsCancelled(1, [2]))
    bench.turn(ev.RequestsCancelled(1, [9, 2, 3]))
    assert (bench.reply.id, bench.reply.reason) == (3, Reason.CANCELLED)


def test_a_cancelled_request_is_answered_by_that_reason_wherever_it_was():
    bench = Bench(max_batch=1, workers=2)
    bench.ask(request(1), request(2), request(3))
    bench.turn(ev.RequestsCancelled(1, [1, 2, 3]))
    assert bench.replies[3].reason == Reason.CANCELLED
    bench.finish(run=1, status=TERMINATED)
    assert bench.reply.reason == Reason.CANCELLED
    bench.turn(ev.WorkerGone(2))
    assert bench.reply.reason == Reason.CANCELLED


def test_a_cancelled_request_whose_run_ended_well_is_cancelled_still():
    bench = Bench()
    bench.ask(request(1), request(2))
    bench.turn(ev.RequestsCancelled(1, [1]))
    bench.finish()
    assert (bench.replies[1].ending, bench.replies[1].reason) == (Ending.CANCELLED, Reason.CANCELLED)


def test_a_drain_counts_everybody_whom_it_refuses():
    bench = Bench(max_batch=2)
    bench.ask(*(request(n, in_ms=5000 + n) for n in range(1, 8)))
    bench.turn(ev.RequestsCancelled(1, [2]))
    bench.turn(ev.DrainStarted(100 * MS))
    bench.pass_until_due()
    assert {n: r.held for n, r in bench.replies.items()} == {1: True, **dict.fromkeys(range(3, 8), False)}
    assert bench.of(ev.TellDrained) == [ev.TellDrained(6)]
    assert bench.machine.counters.shed == 6
    bench.finish(status=TERMINATED)
    assert (bench.reply.id, bench.reply.ending, bench.released) == (2, Ending.CANCELLED, [1])
    bench.pass_time(1000)
    assert not bench.of(ev.TellDrained)


def test_who_was_answered_before_a_drain_is_not_refused_by_it():
    bench = Bench()
    bench.ask(request(1, in_ms=50), request(2, in_ms=5000))
    bench.pass_time(49.9)
    assert bench.reply.held
    bench.turn(ev.DrainStarted(10 * MS))
    bench.pass_until_due()
    assert (bench.reply.id, bench.of(ev.TellDrained)) == (2, [ev.TellDrained(1)])


def test_a_drain_waits_until_held_slots_are_given_back():
    bench = Bench()
    bench.ask(request(1, in_ms=50))
    bench.pass_time(49.9)
    bench.turn(ev.DrainStarted(1000 * MS))
    assert not bench.of(ev.TellDrained)
    bench.finish(status=TERMINATED)
    assert bench.of(ev.TellDrained) == [ev.TellDrained(0)]


def test_a_drain_is_over_at_the_moment_its_time_is_up():
    bench = Bench()
    bench.ask(request(1, in_ms=5000))
    bench.turn(ev.DrainStarted(100 * MS))
    bench.turn(ev.TimePassed(), after_ms=99.999999)
    assert not bench.of(ev.TellDrained)
    bench.turn(ev.TimePassed(), after_ms=0.000001)
    assert bench.of(ev.TellDrained)


def test_what_is_due_gives_way_before_others_come_for_whose_sake_it_would_be_asked_to():
    bench = Bench(max_batch=1, run_ns=MS, queue_requests=1)
    bench.ask(request(99, slot=63, in_ms=60_000))
    bench.ask(request(1, in_ms=50))
    bench.turn(ev.RequestsArrived(1, [request(2, in_ms=500, priority=7)]), after_ms=49.9)
    assert {n: r.reason for n, r in bench.replies.items()} == {1: Reason.TIMEOUT}


def test_an_answer_that_comes_at_the_last_moment_is_the_models():
    bench = Bench()
    bench.ask(request(1, in_ms=50))
    bench.end_run(after_ms=49.9)
    assert bench.reply.ending == Ending.MODEL
