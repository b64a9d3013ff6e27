"""Clocks that differ, processors taken away, signals without end, services that do not read, reused process ids."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import farm
from shm.errors import PeerGone
from tests import models
from tests.crowd import in_process
from tests.farmprocess import alive, wait_until
from tests.killing import QUICK, whole
from tests.resources.attaching import attach_and_detach
from tests.resources.interrupting import interrupt
from tests.routerharness import RouterHarness

pytestmark = pytest.mark.slow

X = np.random.default_rng(5).standard_normal((1, 64)).astype(np.float32)

ASK = """
import sys, time, numpy as np, farm
started = time.monotonic()
try:
    with farm.Client(sys.argv[1]) as client:
        client.wait_ready(timeout=10)
        reply = client.infer("m", np.zeros((1, 64), np.float32), deadline_ms=1000)
    print("answer", reply.source)
except farm.FarmError as error:
    print(type(error).__name__, error.reason)
print("within", time.monotonic() - started)
"""


@pytest.fixture
def running(tmp_path):
    with farm.Farm({"m": models.mlp(tmp_path / "m.onnx")}, workers=2, **QUICK) as running:
        yield running


@pytest.fixture
def right(tmp_path, running):
    expected = in_process(tmp_path / "m.onnx").run(None, {"x": X})[0]

    def ask(client, count=20):
        for _ in range(count):
            reply = client.infer("m", {"x": X}, deadline_ms=20_000)
            assert reply.source == "model"
            np.testing.assert_array_equal(next(iter(reply.outputs.values())), expected)

    return ask


@pytest.mark.parametrize("offset_s", [1_000, 1_000_000, -1])
def test_a_client_whose_clock_is_another_ends_by_name_within_its_deadline(running, right, offset_s):
    """In a time namespace of its own; a negative offset puts it as far back as the host has been up, nearly."""
    if offset_s < 0:
        offset_s = -int(time.monotonic()) + 10
    unshare = ["unshare", "-T", "--monotonic", str(offset_s)]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no time namespace can be made here")
    with running.client() as client:
        right(client)
        told = subprocess.run(
            [*unshare, sys.executable, "-c", ASK, running.endpoint],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        how, within = told.splitlines()
        assert re.fullmatch(r"answer model|DeadlineExceeded \w+|InvalidRequest \w+|Overloaded \w+", how), told
        assert float(within.split()[1]) < 15
        right(client)
        assert whole(running)


def test_processors_may_be_taken_from_a_farm_that_works(running, right):
    cpus = sorted(os.sched_getaffinity(0))
    pids = [row["pid"] for row in running.status()["processes"]]
    with running.client() as client:
        for cpu in (cpus[0], cpus[-1]):
            for pid in pids:
                os.sched_setaffinity(pid, {cpu})
            right(client)
        for pid in pids:
            os.sched_setaffinity(pid, cpus)
        right(client)
    assert whole(running)


def test_signals_without_end_change_no_answer(running, right):
    """Sent to router and supervisor, which have handlers, and stopped and continued threads of workers."""
    rows = running.status()["processes"]
    stop = threading.Event()
    with running.client() as client:
        storm = threading.Thread(target=interrupt, args=(rows, stop))
        storm.start()
        try:
            right(client, 200)
        finally:
            stop.set()
            storm.join()
        right(client)
    assert {row["pid"] for row in rows} == {row["pid"] for row in running.status()["processes"]}


def test_a_farm_is_at_its_level_after_many_attaches_and_detaches(running, right):
    told = attach_and_detach(running, 300, seed=1)
    assert told.above == ""
    assert told.refused == 0


def test_a_service_that_never_reads_is_dropped_by_name_and_costs_a_bounded_number_of_megabytes(tmp_path, capfd):
    router = RouterHarness(tmp_path, lane="direct")
    try:
        worker, client, silent = router.worker(), router.client(), router.client()
        resident = _resident_mib(router.process.pid)
        number = 0
        while router.counter("clients_cut") == 0:
            # Each is answered at once, `invalid`, since there is no such model.
            for _ in range(500):
                number += 1
                try:
                    silent.submit(silent.request(number, model=65_000))
                except (AssertionError, PeerGone):
                    break  # it reads no more from us than we do from it
            assert number < 2_000_000
            assert _resident_mib(router.process.pid) < resident + 64
        client.submit(client.request(1))
        worker.done(worker.next_run())
        assert client.reply(1).ending == 0
        assert [session["session"] for session in router.status()["sessions"]] == [client.attached.session]
        wait_until(lambda: _resident_mib(router.process.pid) < resident + 64, "memory is bounded")
        assert f"client_cut session={silent.attached.session}" in capfd.readouterr().err
    finally:
        router.close()


def _resident_mib(pid: int) -> float:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


def test_a_process_id_that_is_used_again_is_nobody_s_death(running, right):
    """The kernel is told which number comes next: a dead worker's becomes a stranger's, which must live."""
    try:
        last = open("/proc/sys/kernel/ns_last_pid", "r+")  # noqa: SIM115
    except OSError as error:
        pytest.skip(f"process ids cannot be chosen here: {error}")
    with last, running.client() as client:
        victim = next(row["pid"] for row in running.status()["processes"] if row["role"] == "worker")
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: not os.path.exists(f"/proc/{victim}"), "it was collected")
        for _ in range(100):
            last.seek(0)
            last.write(str(victim - 1))
            last.flush()
            stranger = subprocess.Popen(["sleep", "100"])
            if stranger.pid == victim:
                break
            stranger.kill()
            stranger.wait()
        try:
            if stranger.pid != victim:
                pytest.skip("others took that process id")
            wait_until(lambda: whole(running), "the dead was replaced")
            right(client)
            assert alive(stranger.pid)
        finally:
            stranger.kill()
            stranger.wait()
