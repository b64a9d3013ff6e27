"""`python -m tests.attack liars`: attached clients that lie, against a real farm, while honest services are compared.

Each lie of `tests.attack.lies` over both lanes, a queue without end, and inputs that change while the model runs, under
both isolations. After each: the same processes (but for workers where a death is expected), the router no larger than
it may be, and every honest answer right, bit for bit where it ran alone, and in time.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from tests.attack.changing import change_inputs
from tests.attack.lies import LIES, queues_without_end
from tests.attack.stand import LANES, MAKERS, Stand, Told, stand

EXAMPLE = """example: python -m tests.attack liars --seconds 60 --json liars.json
         python -m tests.attack liars --only gather --isolation same-uid --seconds 10"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m tests.attack liars",
        description=__doc__.partition("\n\n")[2],
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--seconds", type=float, default=60.0, help="how long each model's inputs change (60)")
    made.add_argument("--requests", type=int, default=1_000_000, help="of the queue without end, per lane (1000000)")
    made.add_argument("--isolation", choices=["same-uid", "group"], help="one only; both by default")
    made.add_argument("--only", help="lies with this in their name")
    made.add_argument("--seed", type=int, default=0, help="of the order of the lies (0: as they are listed)")
    made.add_argument("--json", type=Path, help="write what was seen here")
    return made


def lie_all(at: Stand, only: str, requests: int, seed: int) -> None:
    told = [(lie.__name__, lie) for lie in LIES]
    told.append(("queues_without_end", partial(queues_without_end, requests=requests)))
    chosen = [(name, lie, lane) for name, lie in told if only in name for lane in LANES]
    if seed:
        random.Random(seed).shuffle(chosen)
    for number, (name, lie, lane) in enumerate(chosen, 1):
        say(at.judge(name, lane, lie), f"{number} of {len(chosen)}")


def change_all(at: Stand, names: list[str], seconds: float) -> None:
    for number, name in enumerate(names):
        lane = LANES[number % 2]
        print(
            f"  {name} over {lane} changes for {seconds:g} s; {seconds * (len(names) - number):.0f} s left", flush=True
        )
        told = at.judge(
            f"{name}_changes_{at.isolation}",
            lane,
            partial(change_inputs, name=name, seconds=seconds),
            may_die=at.isolation == "same-uid",
        )
        assert at.isolation == "same-uid" or not told.deaths, told
        say(told, f"{told.deaths} workers died")


def say(told: Told, more: str) -> None:
    got = ", ".join(f"{count} {reason}" for reason, count in sorted(told.got.items()))
    print(
        f"{told.lie} over {told.lane}: {got}; {told.seconds:.1f} s, router {told.router_kib:+} KiB; {more}", flush=True
    )


def main(arguments: list[str]) -> int:
    asked = parser().parse_args(arguments)
    seen: list[Told] = []
    began = time.monotonic()
    only = asked.only or ""
    names = [name for name in MAKERS if only in name] if only in ("", *MAKERS) else []
    ended = "all that was asked"
    try:
        for isolation in [asked.isolation] if asked.isolation else ["group", "same-uid"]:
            with tempfile.TemporaryDirectory() as folder, stand(Path(folder), isolation, names) as at:
                at.told = seen
                if isolation == "same-uid" or asked.isolation:
                    lie_all(at, only, asked.requests, asked.seed)
                change_all(at, names, asked.seconds)
    except KeyboardInterrupt:
        ended = "interrupted"
    moved = sum(told.deaths for told in seen)
    print(f"{ended}: {len(seen)} lies in {time.monotonic() - began:.0f} s, {moved} workers died of them")
    if asked.json:
        asked.json.write_text(json.dumps({"ended": ended, "seen": [told._asdict() for told in seen]}, indent=1))
    return 0 if ended != "interrupted" else 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
