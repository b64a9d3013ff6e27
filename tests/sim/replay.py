"""One seed again, with a readable trace of every turn: `make sim SEED=n`, or `python -m tests.sim.replay n [events]`.

`python -m tests.sim.replay --hours 8 [first seed]` goes through seeds until the time is up or one breaks.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.sim.world import run_seed

EVENTS = 5_000
LONG_EVENTS = 20_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("events", type=int, nargs="?", default=EVENTS)
    parser.add_argument("--hours", type=float, default=0.0)
    parser.add_argument("--quiet", action="store_true", help="no trace")
    told = parser.parse_args()
    if told.hours:
        return go_on(told.seed, told.hours)
    world = run_seed(told.seed, told.events, None if told.quiet else print)
    counted = {name: value for name, value in world.machine.counters.snapshot().items() if value}
    print(f"seed {told.seed}: {world.event_count} events in {world.turn_count} turns; the last router: {counted}")
    return 0


def go_on(seed: int, hours: float) -> int:
    end = time.monotonic() + hours * 3600
    events = 0
    while time.monotonic() < end:
        events += run_seed(seed, LONG_EVENTS).event_count
        seed += 1
        if seed % 100 == 0:
            print(f"seeds up to {seed} hold, {events:,} events", flush=True)
    print(f"seeds up to {seed} hold, {events:,} events")
    return 0


if __name__ == "__main__":
    sys.exit(main())
