"""Hostile peers on the farm's sockets, and what they cost: `python -m tests.attack sockets --connections 20000`.

Each attack is made by a process of its own on a real farm. A good client asks without pause before, during and after
it, and its answers are looked at. What is told: how long until the offender was cut, what it had sent by then, by how
much the router grew, and the good client's p99 afterwards as a share of that before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

import farm
from farm.embedded import MODEL_PATH
from tests.attack.peer import KINDS

PEER = Path(__file__).with_name("peer.py")
DEADLINE_MS = 5000
MIB = 1024 * 1024
COUNTS = {"flood": 20_000}
COUNT = 300
"""Connections of the attacks that make many, but for the flood."""


@dataclass
class Asked:
    """What the good client saw in one stretch."""

    wrong: int = 0
    lost: int = 0
    ms: list[float] = field(default_factory=list)

    def p99_ms(self) -> float:
        return float(np.percentile(self.ms, 99)) if self.ms else 0.0


@dataclass
class Outcome:
    kind: str
    cut_seconds: float | None
    sent_mib: float
    grown_mib: float
    left_mib: float
    connections: int
    answers: int
    wrong: int
    lost: int
    p99_before_ms: float
    p99_during_ms: float
    p99_after_ms: float
    router_lives: bool
    told: dict[str, Any]


class Stand:
    """A farm of one worker, and a good client on each lane."""

    def __init__(self, workers: int = 1, **options: Any) -> None:
        self._stack = ExitStack()
        self.farm = self._stack.enter_context(farm.Farm({"cells": str(MODEL_PATH)}, workers=workers, **options))
        self._clients = [self._stack.enter_context(self.farm.client(lane=lane)) for lane in ("zeromq", "direct")]
        rows = np.random.default_rng(5).standard_normal((32, 1, 30)).astype(np.float32)
        for client in self._clients:
            client.wait_ready(timeout=30)
        self._rows = rows
        self._right = [self._clients[1].infer("cells", {"features": row}, deadline_ms=30_000).outputs for row in rows]
        self._asked = 0
        self.router_pid = self._router_pid()

    def __enter__(self) -> Stand:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, value, trace)

    def _router_pid(self) -> int:
        return next(row["pid"] for row in self.farm.status()["processes"] if row["role"] == "router")

    def router_mib(self) -> float:
        for line in Path(f"/proc/{self.router_pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) / 1024
        raise ProcessLookupError

    def ask(self, asked: Asked) -> None:
        """One request of a good client, the lanes by turns."""
        self._asked += 1
        which = self._asked % len(self._rows)
        began = time.monotonic()
        try:
            reply = self._clients[self._asked % 2].infer(
                "cells", {"features": self._rows[which]}, deadline_ms=DEADLINE_MS
            )
        except farm.FarmError:
            asked.lost += 1
            return
        asked.ms.append(1e3 * (time.monotonic() - began))
        right = self._right[which]
        asked.wrong += any(not np.array_equal(reply.outputs[name], right[name]) for name in right)

    def ask_for(self, seconds: float) -> Asked:
        asked, end = Asked(), time.monotonic() + seconds
        while time.monotonic() < end:
            self.ask(asked)
        return asked

    def attack(self, kind: str, count: int, seed: int, calm_s: float) -> Outcome:
        before, at_rest = self.ask_for(calm_s), self.router_mib()
        during, most = Asked(), at_rest
        offender = subprocess.Popen(
            [sys.executable, str(PEER), kind, self.farm.endpoint, str(count), str(seed)],
            stdout=subprocess.PIPE,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        try:
            while offender.poll() is None:
                self.ask(during)
                most = max(most, self.router_mib())
            assert offender.stdout is not None
            told = json.loads(offender.stdout.read() or b"{}")
        finally:
            offender.kill()
            offender.wait()
            assert offender.stdout is not None
            offender.stdout.close()
        after = self.ask_for(calm_s)
        end = time.monotonic() + 2
        while self.router_mib() > at_rest + 8 and time.monotonic() < end:
            self.ask(after)
        return Outcome(
            kind,
            told.get("seconds"),
            told.get("mib", 0.0),
            most - at_rest,
            self.router_mib() - at_rest,
            told.get("connections", 1),
            len(during.ms) + len(after.ms),
            during.wrong + after.wrong,
            during.lost + after.lost,
            before.p99_ms(),
            during.p99_ms(),
            after.p99_ms(),
            self._router_pid() == self.router_pid,
            told,
        )

    def counters(self) -> dict[str, int]:
        return dict(self.farm.status()["router"]["counters"])


def line(out: Outcome) -> str:
    ratio = out.p99_after_ms / (out.p99_before_ms or 1.0)
    cut = "never" if out.cut_seconds is None else f"{out.cut_seconds:.2f} s"
    return (
        f"{out.kind:16} {out.connections:8} cut {cut:>7}  sent {out.sent_mib:7.1f} MiB  grew {out.grown_mib:6.1f} MiB, "
        f"kept {out.left_mib:5.1f}  good: {out.answers} answers, {out.lost} lost, {out.wrong} wrong, "
        f"p99 before {out.p99_before_ms:.2f} during {out.p99_during_ms:.2f} after {out.p99_after_ms:.2f} ms, "
        f"after/before {ratio:.2f}  router {'same' if out.router_lives else 'REPLACED'}"
    )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.attack sockets",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m tests.attack sockets --kinds endless flood --connections 1000000 --json out.json",
    )
    parser.add_argument("--connections", type=int, default=COUNTS["flood"], help="of the flood (default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="which attacks (all)")
    parser.add_argument("--repeat", type=int, default=1, help="each attack so often (default: %(default)s)")
    parser.add_argument("--calm-s", type=float, default=2.0, help="asked before and after (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write all outcomes there, also after Ctrl-C")
    options = parser.parse_args(arguments)
    outcomes: list[Outcome] = []
    with Stand() as stand:
        try:
            for number in range(options.repeat):
                for kind in options.kinds:
                    count = options.connections if kind == "flood" else COUNT
                    outcomes.append(stand.attack(kind, count, options.seed + number, options.calm_s))
                    print(line(outcomes[-1]), flush=True)
        except KeyboardInterrupt:
            print("stopped; what is there is kept")
        counters = stand.counters()
    told = {name: counters[name] for name in ("strangers_cut", "lane_memory_cut", "clients_cut", "frames_unknown")}
    connections = sum(out.connections for out in outcomes)
    never = [out.kind for out in outcomes if out.cut_seconds is None]
    print(
        f"{len(outcomes)} attacks, {connections} connections; not cut: {', '.join(never) or 'none'}; "
        f"lost {sum(out.lost for out in outcomes)}, wrong {sum(out.wrong for out in outcomes)}, "
        f"most the router grew {max((out.grown_mib for out in outcomes), default=0):.0f} MiB; {told}"
    )
    if options.json:
        options.json.write_text(json.dumps({"outcomes": [asdict(out) for out in outcomes], "counters": counters}))
    good = all(out.router_lives and not out.wrong and not out.lost for out in outcomes)
    return 0 if good and not never else 1
