"""Costs of processes, what a fault did, and how long is left: small arithmetic that a result rests on."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from bench import host
from bench.account import Account, count_of, per_request, pss_mib
from bench.faults import recovery_of
from bench.progress import Progress, clock
from bench.target import Mark, Slice


def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        np.sqrt(np.arange(1000.0))


def test_cpu_time_and_memory_of_a_process_are_what_the_kernel_counts():
    before, began = count_of(os.getpid()), time.process_time_ns()
    burn(0.02)
    spent = time.process_time_ns() - began
    assert count_of(os.getpid()).cpu_ns - before.cpu_ns == pytest.approx(spent, rel=0.2)
    assert pss_mib(os.getpid()) > 1


def test_process_that_is_gone_costs_nothing_and_breaks_nothing():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait(30)
    assert count_of(child.pid) is None
    assert pss_mib(child.pid) is None


def test_account_takes_the_time_between_begin_and_end_alone():
    begun = []
    account = Account(lambda: {os.getpid(): "server"}, begun.append)
    burn(0.05)
    at_ns = time.monotonic_ns()
    account.begin(at_ns)
    end_s = time.monotonic() + 10
    while not begun and time.monotonic() < end_s:
        os.sched_yield()
    burn(0.02)
    account.end()
    (process,) = per_request(account.processes, 10)
    assert begun == [at_ns]
    assert 0.015 < process.cpu_s < 0.05
    assert process.cpu_us_per_request == pytest.approx(process.cpu_s / 10 * 1e6, abs=0.01)
    assert process.role == "server"


def test_account_of_a_load_that_never_began_leaves_no_thread():
    begun = []
    account = Account(dict, begun.append)
    account.begin(time.monotonic_ns() + 60 * 10**9)
    account.cancel()
    assert not begun


def pieces(good):
    return [
        Slice(at_s=n * 0.1, asked=10, answered=count, good=count, p50=None, p99=None) for n, count in enumerate(good)
    ]


def test_recovery_is_the_longest_time_below_nine_tenths_after_the_fault():
    timeline = pieces([0, 10, 10, 2, 0, 10, 5, 10])
    told = recovery_of(timeline, [Mark(at_s=0.2, what="worker killed")])
    assert told == {"below_90_percent_s": 0.2, "not_in_time_after_fault": 23.0}
    assert recovery_of(timeline, []) == {}


def test_host_tells_what_figures_depend_on():
    facts = host.facts()
    assert facts["cpus"] >= 1 and facts["memory_mib"] > 0 and facts["kernel"] and facts["versions"]["numpy"]
    other = {**facts, "kernel": "another"}
    assert host.same_host(facts, facts) == []
    assert host.same_host(facts, other) == [f"kernel: {facts['kernel']} and another"]


def test_progress_corrects_its_guess_by_what_was_done():
    told = io.StringIO()
    progress = Progress(stream=told)
    progress.plan(100.0)
    progress._began_s -= 20.0
    progress.step("first", 10.0)
    assert progress.left_s() == pytest.approx(180, rel=0.01)
    assert told.getvalue() == "[ 10 %, about 3:00 left] first\n"
    assert clock(61.4) == "1:01"
