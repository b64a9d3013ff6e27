"""Arrivals: as many as asked, as spread as asked, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from bench import schedule
from bench.target import Load, Stream, TargetFailed

KINDS = {
    "constant": lambda seed: schedule.constant(1000, 10),
    "poisson": lambda seed: schedule.poisson(1000, 10, seed),
    "bursts": lambda seed: schedule.bursts(1000, 10, seed, 0.1, 0.3),
    "ramp": lambda seed: schedule.ramp(500, 1500, 10, seed),
    "periodic": lambda seed: schedule.periodic(1000, 10, seed, 16),
}


@pytest.mark.parametrize("kind", KINDS)
def test_moments_rise_within_the_time_and_are_as_many_as_the_rate_says(kind):
    due = KINDS[kind](3)
    assert due.dtype == np.int64
    assert (np.diff(due) >= 0).all()
    assert due[0] >= 0 and due[-1] < 10e9
    assert len(due) == pytest.approx(10_000, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_gives_the_same_moments(kind):
    assert np.array_equal(KINDS[kind](3), KINDS[kind](3))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "constant"])
def test_another_seed_gives_others(kind):
    assert not np.array_equal(KINDS[kind](3), KINDS[kind](4))


def test_gaps_of_poisson_arrivals_vary_as_much_as_they_last():
    gaps = np.diff(schedule.poisson(1000, 60, 1))
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)


def test_bursts_leave_the_pauses_empty():
    phase_s = schedule.bursts(1000, 10, 1, 0.1, 0.3) / 1e9 % 0.4
    assert phase_s.max() <= 0.1 + 1e-6


def test_ramp_ends_at_three_times_the_rate_it_began_with():
    due_s = schedule.ramp(1000, 3000, 20, 1) / 1e9
    first, last = (due_s < 2).sum(), (due_s >= 18).sum()
    assert last / first == pytest.approx(2900 / 1100, rel=0.1)


def test_each_periodic_source_keeps_its_distance():
    due = schedule.periodic(62.5, 2, 1, 1)
    assert np.diff(due) == pytest.approx(16e6, abs=2)


def test_trace_is_taken_as_recorded_and_cut_at_the_end(tmp_path):
    path = tmp_path / "arrivals.txt"
    path.write_text("0.0\n0.25\n0.25\n1.5\n")
    assert schedule.trace(str(path), 1.0).tolist() == [0, 250_000_000, 250_000_000]


@pytest.mark.parametrize("text", ["", "0.5\n0.1\n", "-1\n", "soon\n"])
def test_trace_that_does_not_rise_is_refused(tmp_path, text):
    path = tmp_path / "arrivals.txt"
    path.write_text(text)
    with pytest.raises(TargetFailed, match=r"arrivals\.txt"):
        schedule.trace(str(path), 1.0)


def test_generators_share_a_schedule_without_loss():
    due = schedule.poisson(1000, 1, 1)
    parts = schedule.shares(due, 3)
    assert np.array_equal(np.sort(np.concatenate(parts)), due)


def test_streams_come_by_their_shares():
    streams = schedule.streams_of(20_000, [3.0, 1.0], 1)
    assert (streams == 0).mean() == pytest.approx(0.75, abs=0.02)


def test_generators_together_follow_the_schedule_that_every_target_sees():
    from bench.generator import due_of

    load = Load(label="x", streams=(Stream(model="m"),), seconds=2.0, warm_s=0.5, rate=500.0)
    measured = schedule.of(load, 500.0, 2.0, load.seed)
    due = sorted(moment for part in range(3) for moment in due_of(load, part, 3)[0])
    assert [moment for moment in due if moment >= 0] == measured.tolist()
    assert min(due) >= -0.5e9
