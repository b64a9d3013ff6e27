"""Clients that come, ask and go, thousands of them: what a farm holds afterwards must be what it held before."""

from __future__ import annotations

import random
import sys
import time
from typing import NamedTuple

import numpy as np

import farm
from tests.killing import USS_KIB_MAX, levels

WARM = 40
"""Clients before the first look: what a process needs at first use is no growth."""
SETTLE_S = 20.0
PROGRESS_EVERY = 500


class Attached(NamedTuple):
    """`above`: what is above its level at the end; empty when nothing is."""

    attached: int
    asked: int
    refused: int
    seconds: float
    above: str
    uss_kib_grown: dict[str, int]
    open_fds_grown: dict[str, int]


def attach_and_detach(running: farm.Farm, count: int, seed: int) -> Attached:
    """One client after another: by either lane, some ask, some only come; of several sizes. Ctrl-C ends it early."""
    chosen = random.Random(seed)
    x = np.zeros((1, 64), np.float32)
    asked = refused = done = 0

    def one() -> None:
        nonlocal asked, refused
        lane = chosen.choice(("direct", "zeromq"))
        with running.client(lane=lane, slot_count=chosen.choice((1, 16, 256)), slot_bytes=4096) as client:
            try:
                client.wait_ready(timeout=20)
                if chosen.random() < 0.7:
                    assert client.infer("m", {"x": x}, deadline_ms=20_000).source == "model"
                    asked += 1
            except farm.FarmError:
                refused += 1

    for _ in range(WARM):
        one()
    before = _settled(running, {})
    asked = refused = 0
    started = time.monotonic()
    try:
        while done < count:
            one()
            done += 1
            if done % PROGRESS_EVERY == 0:
                each_s = (time.monotonic() - started) / done
                print(f"attached {done} of {count}, {each_s * (count - done):.0f} s left", file=sys.stderr)
    except KeyboardInterrupt:
        pass
    seconds = time.monotonic() - started
    after = _settled(running, before)
    return Attached(
        done,
        asked,
        refused,
        round(seconds, 1),
        _above(before, after),
        {role: after[role][1] - before[role][1] for role in before},
        {role: after[role][0] - before[role][0] for role in before},
    )


def _settled(running: farm.Farm, before: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """By role: most open descriptors and own memory of one process, once no session is left."""
    end = time.monotonic() + SETTLE_S
    while True:
        router = running.status()["router"]
        found = levels(running.endpoint)
        late = time.monotonic() > end
        if found is not None and router is not None and not router["session_count"] and not router["arena_mib"]:
            now = {role: (max(h.open_fds for h in held), max(h.uss_kib for h in held)) for role, held in found.items()}
            if late or not _above(before, now):
                return now
        assert not late, f"sessions or arenas are left: {router}"
        time.sleep(0.05)


def _above(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> str:
    for role, (open_fds, uss_kib) in before.items():
        if after[role][0] > open_fds or after[role][1] > uss_kib + USS_KIB_MAX:
            return f"{role}: {after[role]} descriptors and KiB, before {before[role]}"
    return ""
