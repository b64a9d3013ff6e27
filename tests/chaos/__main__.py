"""`python -m tests.chaos kills` and `python -m tests.chaos soak`."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path

from tests.chaos.kills import Loop, Plan
from tests.chaos.soak import Soak, State, plot
from tests.killing import LATE_MS

TOLD_EVERY_S = 10.0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description="A real farm under load whose processes die."
    )
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser(
        "kills",
        help="kill, stop and crash its processes one after another, and judge each time what the living see",
        description="Ctrl-C ends it and prints what is there.",
        epilog="Example: python -m tests.chaos kills --workers 100 --clients 20 --routers 5 --seed 7",
    )
    for kind in ("worker", "client", "router", "supervisor"):
        verb.add_argument(f"--{kind}s", type=int, default=0, metavar="N", help=f"so many {kind}s are hit")
    verb.add_argument("--seed", type=int, default=1, help="of victims, moments and signals")
    verb.add_argument("--stops", type=float, default=0.2, help="the part that is stopped for a while")
    verb.add_argument("--crashes", type=float, default=0.2, help="the part that gets SIGSEGV; the rest: SIGKILL")
    verb.add_argument("--arena-mib", type=int, default=8, help="each of the three survivors' arenas")
    verb.add_argument(
        "--late-ms",
        type=float,
        default=LATE_MS,
        help="how late after its deadline a call may end, beside what its process was kept from a CPU",
    )
    verb.add_argument("--json", metavar="FILE", help="write all that was measured here too")
    verb.set_defaults(run=kills)
    verb = verbs.add_parser(
        "soak",
        help="mixed models and deaths at a modest load, in slices that go on where the last one stopped",
        description="Says whether memory and descriptors grow with the number of requests.",
        epilog="Example: python -m tests.chaos soak --hours 1 --state soak.json --plot soak.png",
    )
    verb.add_argument("--hours", type=float, default=1.0, help="how long this slice is")
    verb.add_argument(
        "--state", default="soak.json", metavar="FILE", help="what earlier slices saw; made when not there"
    )
    verb.add_argument("--seed", type=int, default=1, help="of a new state file")
    verb.add_argument("--kill-every-s", type=float, default=60.0, metavar="S", help="how often somebody is hit")
    verb.add_argument("--sample-every", type=int, default=5000, metavar="N", help="requests from sample to sample")
    verb.add_argument("--load", type=float, default=0.7, help="part of what the same services ask without a pause")
    verb.add_argument("--plot", metavar="FILE", help="a PNG or SVG of all slices")
    verb.set_defaults(run=soak)
    told = parser.parse_args()
    # A process that gets SIGSEGV is to leave no file.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    return told.run(told)


def kills(told: argparse.Namespace) -> int:
    deaths = {kind: getattr(told, f"{kind}s") for kind in ("worker", "client", "router", "supervisor")}
    plan = Plan(deaths, told.seed, told.stops, told.crashes, told.arena_mib, late_ms=told.late_ms)
    loop = Loop(plan, [sys.executable, "-m", "farm"])
    wanted = sum(deaths.values())
    began = last = time.monotonic()
    try:
        for done in loop.run():
            now = time.monotonic()
            if now - last >= TOLD_EVERY_S:
                last = now
                left_s = (now - began) / done * (wanted - done)
                faults = len(loop.figures.faults)
                print(f"{done} of {wanted}, about {left_s / 60:.1f} min left, {faults} faults", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    took_s = time.monotonic() - began
    print(f"seed {told.seed}: {dict(loop.done)} in {took_s:.0f} s, survivors' arenas {3 * told.arena_mib} MiB")
    print(loop.figures.table())
    if told.json:
        facts = {"seed": told.seed, "deaths": dict(loop.done), "took_s": took_s, **loop.figures.facts()}
        Path(told.json).write_text(json.dumps(facts))
    return 1 if loop.figures.faults else 0


def soak(told: argparse.Namespace) -> int:
    state = State(Path(told.state), told.seed)
    one = Soak(state, [sys.executable, "-m", "farm"], told.kill_every_s, told.sample_every, told.load)
    try:
        one.run(told.hours * 3600)
    except KeyboardInterrupt:
        print("stopped; the next slice goes on from here", file=sys.stderr)
    print(state.table())
    if told.plot and state.samples:
        plot(state, Path(told.plot))
    return 0 if not state.faults and all(slope.is_zero for slope in state.slopes().values()) else 1


if __name__ == "__main__":
    sys.exit(main())
