"""What a farm costs that nobody asks anything, by the kernel's account."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest

import farm
from tests.farmprocess import wait_until

pytestmark = pytest.mark.slow

IDLE_S = 3.0
CORE_SHARE_MAX = 0.005
CLIENTS = 4


def spent_s(pids):
    """Seconds on a CPU, of all threads of these processes."""
    ns = 0
    for pid in pids:
        for task in os.listdir(f"/proc/{pid}/task"):
            ns += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0])
    return ns / 1e9


@pytest.mark.parametrize("lane", ["direct", "zeromq"])
def test_an_idle_farm_uses_less_than_half_a_percent_of_a_core(lane):
    """Clients are attached, and the supervisor looks at the router's beat, all that time."""
    with farm.Farm() as running, contextlib.ExitStack() as stack:
        for _ in range(CLIENTS):
            stack.enter_context(running.client(lane=lane)).wait_ready()
        # A status costs a hundred times what the farm does by itself in that time: none is asked for meanwhile.
        pids = [row["pid"] for row in running.status()["processes"]]
        before, started = spent_s(pids), time.monotonic()
        wait_until(lambda: time.monotonic() - started >= IDLE_S, "some idle time has passed")
        spent, passed = spent_s(pids) - before, time.monotonic() - started
        print(f"{1e3 * spent:.2f} ms in {passed:.2f} s")
        assert spent < CORE_SHARE_MAX * passed


def test_status_tells_the_memory_of_each_process():
    with farm.Farm(workers=1) as running:
        rows = {row["role"]: row for row in running.status()["processes"]}
        assert set(rows) == {"supervisor", "router", "worker"}
        for row in rows.values():
            rollup = Path(f"/proc/{row['pid']}/smaps_rollup").read_text()
            pss_kib = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
            assert row["pss_kib"] == pytest.approx(pss_kib, rel=0.3)
            assert 0 < row["uss_kib"] <= row["pss_kib"] <= row["rss_kib"]
