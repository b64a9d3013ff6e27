"""The promises of the router, over seeded worlds: some 5,000 events each, every turn judged. `make sim SEED=n` shows
one again, turn by turn; `make sim-long` goes through seeds for hours."""

from __future__ import annotations

import os

import pytest

from tests.sim.world import run_seed

SEEDS = int(os.environ.get("SIM_SEEDS", "200"))
EVENTS = 5_000
CHUNK = 10


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_every_promise_holds_in_a_seeded_world(first):
    for seed in range(first, min(first + CHUNK, SEEDS)):
        world = run_seed(seed, EVENTS)
        assert world.event_count >= EVENTS or not world.clients, f"seed {seed} stood still"


@pytest.mark.slow
def test_one_seed_is_one_history():
    told: list[list[str]] = [[], []]
    for lines in told:
        run_seed(3, 1_000, lines.append)
    assert told[0] == told[1]
    assert len(told[0]) > 1_000


@pytest.mark.slow
def test_seeds_reach_every_kind_of_ending():
    """A world that never kills, cancels or overflows would prove nothing."""
    counted: dict[str, int] = {}
    for seed in range(200, 240):
        for name, value in run_seed(seed, 1_500).machine.counters.snapshot().items():
            counted[name] = counted.get(name, 0) + value
    service = {"frames_in", "frames_rejected", "frames_unknown", "replies_out", "frames_out"}
    service |= {name for name in counted if name.startswith(("input", "output", "quarantine"))}
    service |= {
        "clients_refused",
        "clients_cut",
        "strangers_cut",
        "lane_memory_cut",
        "rules_agreed",
        "rules_compared",
        "rerun_refused",
    }
    never = sorted(name for name, value in counted.items() if not value and name not in service)
    assert not never, f"these never happened: {never}"
