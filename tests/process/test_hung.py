"""A worker that hangs is found by a limit of its run, not by anybody's deadline; and nobody waits for it."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from farm import DeadlineExceeded, Farm
from tests import models
from tests.farmprocess import gone, wait_until

pytestmark = pytest.mark.slow

HANG_MS = 300.0
ROW = np.ones((1, 3), np.float32)


@pytest.fixture
def farm(tmp_path):
    path = models.identity(tmp_path / "m.onnx", "float32")
    table = {"path": str(path), "workers": 2, "hang_ms": HANG_MS, "max_batch": 1}
    with Farm({"m": table}) as running, running.client() as client:
        client.wait_ready(10)
        yield running, client


def workers(farm):
    return {worker["worker"]: worker for worker in farm.status()["router"]["workers"]}


def ends(client, *tickets):
    """Their replies, once all have ended."""
    left = set(tickets)
    wait_until(lambda: left.difference_update(client.completions(0.1)) or not left, "all have ended", 30)
    return [ticket.result() for ticket in tickets]


def test_a_frozen_worker_is_killed_and_its_request_answered_by_another_long_before_its_deadline(farm):
    running, client = farm
    client.infer("m", ROW)
    before = workers(running)
    for worker in before.values():
        os.kill(worker["pid"], signal.SIGSTOP)
    tickets = [client.submit("m", ROW * n, deadline_ms=60_000) for n in range(6)]
    # Both have a run in hand that never ends; both are replaced.
    for n, reply in enumerate(ends(client, *tickets)):
        assert reply.source == "model"
        assert np.array_equal(next(iter(reply.outputs.values())), ROW * n)
        assert reply.stages["total"] < 30e9
    counters = running.status()["router"]["counters"]
    assert counters["runs_hung"] == counters["workers_killed"] == 2
    wait_until(lambda: gone(worker["pid"] for worker in before.values()), "the frozen ones are gone")
    wait_until(lambda: len(workers(running)) == 2 and not workers(running).keys() & before.keys(), "both are replaced")


def test_a_frozen_worker_gets_nothing_new_while_another_works(farm):
    running, client = farm
    client.infer("m", ROW)
    frozen, well = sorted(workers(running).values(), key=lambda worker: worker["worker"])
    os.kill(frozen["pid"], signal.SIGSTOP)
    stuck = client.submit("m", ROW, deadline_ms=60_000)
    wait_until(lambda: workers(running)[frozen["worker"]]["in_hand"] == 1, "the frozen one has a run")
    for _ in range(200):
        assert client.infer("m", ROW, deadline_ms=2_000).source == "model"
    assert ends(client, stuck)[0].source == "model"
    assert well["worker"] in workers(running)
    assert frozen["worker"] not in workers(running)


def test_the_status_names_a_worker_that_was_told_to_stop_until_it_has(tmp_path):
    path = models.identity(tmp_path / "m.onnx", "float32")
    with Farm({"m": {"path": str(path), "hang_ms": 60_000}}, workers=1) as running, running.client() as client:
        client.infer("m", ROW)
        ((number, frozen),) = workers(running).items()
        assert frozen["told_to_stop"] is False
        os.kill(frozen["pid"], signal.SIGSTOP)
        try:
            with pytest.raises(DeadlineExceeded):
                client.infer("m", ROW, deadline_ms=50)
            wait_until(lambda: workers(running)[number]["told_to_stop"], "it was told to")
        finally:
            os.kill(frozen["pid"], signal.SIGCONT)
        wait_until(lambda: not workers(running)[number]["told_to_stop"], "it has")
