"""Admission's two checks of time: the cheap one that answers for most requests, and the whole one with the forecast."""

from __future__ import annotations

from random import Random

import pytest

from router import events as ev
from router.admission import Admission
from router.costs import RunCosts
from router.ledger import Entry
from router.models import ModelState
from router.roster import Worker
from shm.endings import Reason
from tests.unit.router.build import MS, Bench, request


@pytest.mark.parametrize("seed", range(12))
def test_whenever_the_cheap_check_lets_one_in_the_forecast_does_too(monkeypatch, seed):
    """The cheap one answers for most requests, so it may say yes only where the whole one would, and evict nobody.

    Runs end when they are predicted to, and cost more the more rows they have."""
    rng = Random(seed)
    cheap, whole = Admission._is_calm, Admission._has_time
    agreed: list[bool] = []

    def both(self: Admission, entry: Entry, model: ModelState, now_ns: int) -> bool:
        if not cheap(self, entry, model, now_ns):
            return False
        count = model.queue.count
        agreed.append(whole(self, entry, model, now_ns) and model.queue.count == count)
        return True

    monkeypatch.setattr(Admission, "_is_calm", both)
    for method in ("observe", "doubt"):
        monkeypatch.setattr(RunCosts, method, lambda *told: None)
    for _ in range(10):
        bench = Bench(
            workers=rng.randint(1, 3),
            run_ns=rng.choice((MS // 5, MS, 4 * MS)),
            row_ns=rng.choice((0, MS // 10, MS)),
            prefetch=rng.choice((1, 2)),
            max_batch=rng.choice((1, 4, 16)),
            max_delay_ms=rng.choice((0, 0, 3.0)),
        )
        for number in range(80):
            asked = request(
                number,
                slot=number % 64,
                in_ms=rng.choice((5, 12, 40, 200)) * rng.uniform(0.5, 1.5),
                now=bench.now,
                rows=rng.choice((0, 1, 1, 1, 3, 16)),
                priority=rng.choice((0, 0, 0, 3, 7)),
            )
            bench.ask(asked, session=rng.randint(1, 2))
            pass_predicted(bench, rng.uniform(0, 2 * bench.run_ns))
    assert len(agreed) > 100
    assert all(agreed)


def pass_predicted(bench: Bench, for_ns: float) -> None:
    """Let time pass; each run ends at the moment that its worker was predicted to be done with it."""
    until = bench.now + int(for_ns)
    while True:
        ends = {w.runs[0].began_ns + estimate(bench, w.runs[0].rows): w for w in workers(bench) if w.runs}
        at = min(ends, default=until)
        if at >= until:
            break
        bench.now = max(bench.now, at)
        bench.end_run(ends[at].runs[0].number, worker=ends[at].number)
    bench.now = until
    bench.turn(ev.TimePassed())


def workers(bench: Bench) -> list[Worker]:
    return list(bench.machine.roster.workers.values())


def estimate(bench: Bench, rows: int) -> int:
    return bench.machine.models[0].costs.estimate(rows)


def test_a_run_that_is_over_its_time_is_not_taken_for_ended():
    """It may take as long again, and its worker may hang."""
    bench = Bench(run_ns=10 * MS, max_batch=1)
    bench.ask(request(1, in_ms=500))
    bench.pass_time(11)
    bench.ask(request(2, in_ms=15, now=bench.now))
    assert bench.reply.reason == Reason.PREDICTED_LATE


def scattered(*runs_ns: int) -> Bench:
    """One idle worker whose runs of one row took such times, again and again."""
    bench = Bench(run_ns=runs_ns[0])
    for _ in range(300):
        for run_ns in runs_ns:
            bench.machine.models[0].costs.observe(1, run_ns)
    return bench


def test_where_a_worker_is_idle_who_is_in_time_more_likely_than_not_may_try():
    """One run in five is disturbed: no p95 below 20 ms, and no answer at all if that decided."""
    bench = scattered(2 * MS, 2 * MS, 2 * MS, 2 * MS, 40 * MS)
    assert bench.machine.models[0].costs.estimate(1) > 20 * MS
    bench.ask(request(1, in_ms=15))
    assert bench.dispatched == [[1]]
    bench.ask(request(2, in_ms=15))
    assert bench.reply.reason == Reason.PREDICTED_LATE, "it would have to wait, and nobody can promise it anything"


def test_where_a_worker_is_idle_who_is_late_more_likely_than_not_is_told():
    bench = scattered(40 * MS, 40 * MS, 2 * MS)
    bench.ask(request(1, in_ms=15))
    assert bench.reply.reason == Reason.PREDICTED_LATE
