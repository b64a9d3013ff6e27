"""A short form of the kill loop, and that its judgement can fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.chaos.figures import Figures, percentile
from tests.chaos.kills import Loop, Plan, rounds
from tests.chaos.slope import slope
from tests.chaos.soak import Soak, State

ROOT = Path(__file__).resolve().parents[2]
DEATHS = {"client": 104, "worker": 64, "router": 26, "supervisor": 6}
SEED = 5


def test_a_seed_gives_the_same_deaths_and_all_that_are_wanted():
    plan = Plan(DEATHS, SEED)
    deaths = [death for each in rounds(plan) for death in each]
    assert deaths == [death for each in rounds(plan) for death in each]
    assert {kind: sum(death.kind == kind for death in deaths) for kind in DEATHS} == DEATHS
    assert {death.signum for death in deaths if death.kind == "worker"} == {9, 11, 19}
    assert deaths != [death for each in rounds(Plan(DEATHS, SEED + 1)) for death in each]


def test_percentiles_are_values_that_were_seen():
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, percent) for percent in (1, 50, 99, 100)] == [1, 50, 99, 100]
    assert percentile([7.0], 50) == 7.0


def test_the_table_names_faults():
    figures = Figures()
    figures.add("worker SIGKILL", first=3.0)
    figures.faults.append("it was late")
    assert "worker SIGKILL" in figures.table() and "  it was late" in figures.table()
    assert figures.facts()["times_ms"] == {"worker SIGKILL": {"first": [3.0]}}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_hundred_deaths_of_anyone_cost_survivors_no_request(farm_command):
    loop = Loop(Plan(DEATHS, SEED), farm_command)
    for _ in loop.run():
        pass
    print(loop.figures.table())
    assert not loop.figures.faults, "\n".join(loop.figures.faults)
    assert loop.done == DEATHS


@pytest.mark.slow
def test_a_call_that_ends_too_late_is_a_fault_of_the_loop(farm_command):
    loop = Loop(Plan({"client": 1}, SEED, late_ms=-1e9), farm_command)
    assert list(loop.run()) == []
    (fault,) = loop.figures.faults
    assert f"seed {SEED}" in fault and "late_ms_max" in fault


@pytest.mark.parametrize(("leak", "zero"), [(0.0, True), (40.0, False)])
def test_a_leak_is_told_from_noise_though_slices_begin_at_different_heights(leak, zero):
    chance = np.random.default_rng(4)
    x = np.linspace(0.0, 1.0, 60)
    slices = [list(zip(x + at, 100 * at + leak * x + chance.normal(0, 4, 60), strict=True)) for at in range(3)]
    found = slope(slices)
    assert found is not None and found.is_zero is zero
    assert abs(found.value - leak) <= found.noise


def test_too_few_samples_have_no_slope():
    assert slope([[(0.0, 1.0), (1.0, 1.0)]]) is None


@pytest.mark.slow
def test_a_soak_goes_on_where_it_stopped(tmp_path, farm_command):
    for number in (1, 2):
        state = State(tmp_path / "soak.json", seed=3)
        Soak(state, farm_command, kill_every_s=1.0, sample_every=50, load=0.7).run(3.0)
        assert not state.faults
        kept = State(tmp_path / "soak.json", seed=9)
        assert (kept.seed, kept.slices) == (3, number)
        assert kept.deaths.total() >= number and kept.requests > 0
    assert {sample[0] for sample in kept.samples} == {1, 2}
    assert {"supervisor", "router", "worker", "service"} <= {sample[2] for sample in kept.samples}
    assert all(later[1] >= sooner[1] for sooner, later in zip(kept.samples, kept.samples[1:], strict=False))
    # In a process of its own: matplotlib keeps its fonts' files open.
    code = (
        "import sys; from pathlib import Path; sys.path.append(sys.argv[1]); from tests.chaos.soak import State, plot;"
        "folder = Path(sys.argv[2]); plot(State(folder / 'soak.json', 0), folder / 'soak.png')"
    )
    subprocess.run([sys.executable, "-c", code, str(ROOT), str(tmp_path)], check=True, timeout=60)
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")
