"""Figures from moments: latency from due, goodput by each stream's deadline, void where the load was not kept."""

from __future__ import annotations

import numpy as np
import pytest

from bench import recorder
from bench.target import Load, Stream

MS = 1_000_000
NAMES = ["lost", "model", "rules/timeout"]


def load(**more):
    return Load(
        **{"label": "x", "streams": (Stream(model="m", deadline_ms=10.0),), "seconds": 1.0, "rate": 100.0, **more}
    )


def measured(load, due_ms, sent_ms, done_ms, code=None, stream=None):
    count = len(due_ms)
    return recorder.measured(
        target="t",
        load=load,
        begin_ns=0,
        due=np.array(due_ms, np.int64) * MS,
        sent=np.array(sent_ms, np.int64) * MS,
        done=np.array(done_ms, np.int64) * MS,
        code=np.array(code if code is not None else [1] * count, np.int16),
        names=NAMES,
        stream=np.array(stream if stream is not None else [0] * count, np.int8),
    )


def test_latency_counts_from_the_due_moment_and_the_uncorrected_from_the_send():
    run = measured(load(), [0, 0], [8, 8], [9, 9])
    assert run.latency.p50 == pytest.approx(9, rel=0.002)
    assert run.uncorrected.p50 == pytest.approx(1, rel=0.002)
    assert run.lateness.p50 == pytest.approx(8, rel=0.002)


def test_goodput_counts_model_answers_within_the_deadline_from_due():
    run = measured(load(), [0, 0, 0], [0, 9, 0], [5, 11, 5], [1, 1, 2])
    assert (run.asked, run.answered, run.good) == (3, 2, 1)
    assert run.goodput == 1.0
    assert run.outcomes == {"model": 2, "rules/timeout": 1}


def test_each_stream_is_judged_by_its_own_deadline():
    streams = (Stream(model="a", deadline_ms=8.0), Stream(model="a", deadline_ms=60.0))
    run = measured(load(streams=streams), [0, 0, 0], [0, 0, 0], [20, 20, 5], stream=[0, 1, 0])
    assert run.good == 2
    assert run.good_by_stream == {"0 a": 1.0, "1 a": 1.0}


def test_warm_up_counts_for_nothing():
    run = measured(load(), [-5, 0], [-5, 0], [500, 1])
    assert run.asked == 1
    assert run.latency.max == pytest.approx(1, rel=0.002)


def test_what_a_closed_loop_has_open_at_the_end_counts_for_nothing():
    run = measured(load(rate=None), [0, 999], [0, 999], [1, 1001])
    assert run.asked == 1
    assert run.lateness is None and run.void is None


def test_generator_behind_its_schedule_makes_the_run_void_and_says_how_far():
    run = measured(load(late_ms_max=5.0), range(100), [moment + 6 for moment in range(100)], range(7, 107))
    assert "6.0 ms behind its schedule" in run.void
    assert measured(load(late_ms_max=7.0), range(9), [m + 6 for m in range(9)], range(7, 16)).void is None


def test_percentiles_are_within_the_histograms_precision():
    values = np.random.default_rng(1).exponential(3 * MS, 50_000).astype(np.int64) + 20_000
    latency = recorder.latency_of(values)
    for name, percentile in (("p50", 50), ("p90", 90), ("p99", 99), ("p999", 99.9)):
        assert getattr(latency, name) == pytest.approx(np.percentile(values, percentile) / MS, rel=0.01)
    assert latency.count == 50_000
    assert latency.max == pytest.approx(values.max() / MS, abs=1e-3)


def test_histogram_survives_its_encoding_and_merges():
    one, other = recorder.latency_of(np.full(900, 1 * MS)), recorder.latency_of(np.full(100, 50 * MS))
    merged = recorder.merged([one, other])
    assert merged.count == 1000
    assert merged.p50 == pytest.approx(1, rel=0.002)
    assert merged.p99 == pytest.approx(50, rel=0.002)
    assert merged.max == pytest.approx(50)


def test_nothing_has_no_latency():
    assert recorder.latency_of(np.zeros(0, np.int64)) is None
    assert recorder.merged([]) is None


def test_timeline_tells_when_answers_failed():
    due = list(range(0, 1000, 10))
    code = [0 if 400 <= moment < 600 else 1 for moment in due]
    run = measured(load(), due, due, [moment + 1 for moment in due], code)
    assert sum(piece.asked for piece in run.timeline) == 100
    dark = [piece.at_s for piece in run.timeline if not piece.good]
    assert dark == pytest.approx([0.4, 0.45, 0.5, 0.55])


def test_pause_is_a_time_in_which_something_was_open_and_nothing_ended():
    idle_between = recorder.pauses_of(np.array([0, 100]) * MS, np.array([1, 101]) * MS)
    assert idle_between == {"pauses": 0.0, "pause_ms_max": 0.0}
    held_up = recorder.pauses_of(np.array([0, 1, 2, 3]) * MS, np.array([1, 9, 10, 10]) * MS)
    assert held_up == {"pauses": 2.0, "pause_ms_max": 8.0}
