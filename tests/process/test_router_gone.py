"""A router that dies or stands still while it has requests, as one client sees it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time

import numpy as np
import pytest

import farm
from tests import models
from tests.crowd import in_process
from tests.farmprocess import wait_until
from tests.killing import QUICK, whole

pytestmark = pytest.mark.slow

ROWS = 1500
"""So many make a run of some 0.35 s, in which the router can be killed."""
LATE_S_MAX = 0.2
"""How much later than its deadline a client's own timer may end a call, on CPUs that others use too."""

LANES = pytest.mark.parametrize("lane", ["direct", "zeromq"])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return models.slow(tmp_path_factory.mktemp("models") / "slow.onnx")


@pytest.fixture(scope="module")
def inputs():
    return {"x": np.random.default_rng(5).standard_normal((ROWS, 256)).astype(np.float32)}


@pytest.fixture(scope="module")
def expected(model, inputs):
    return in_process(model).run(["y"], inputs)[0]


@pytest.fixture
def mortal(model):
    """A farm whose router may be killed: the next one listens at a socket of its own, which is left until the end."""
    with farm.Farm({"slow": model}, workers=1, **QUICK) as running:
        yield running


@pytest.fixture(scope="module")
def patient(model):
    """A farm whose router may be stopped: nobody looks at its beat."""
    with farm.Farm({"slow": model}, workers=1, beat_timeout_ms=600_000, **QUICK) as running:
        yield running


def router_pid(running):
    wait_until(lambda: whole(running), "it is whole")
    return next(row["pid"] for row in running.status()["processes"] if row["role"] == "router")


def kill_while_it_runs(running, pid):
    def runs():
        router = running.status()["router"]
        return router is not None and router["models"][0]["running"] == 1

    wait_until(runs, "the request runs")
    os.kill(pid, signal.SIGKILL)


def check_sent_again(running, reply, expected):
    assert reply.source == "model"
    np.testing.assert_array_equal(reply.outputs["y"], expected)
    # All that this router knows is the second sending.
    counters = running.status()["router"]["counters"]
    assert (counters["requests"], counters["answers_model"]) == (1, 1)


@LANES
def test_a_submitted_request_is_sent_again_under_its_id_and_answered(mortal, inputs, expected, lane):
    pid = router_pid(mortal)
    with mortal.client(lane=lane) as client:
        for _ in range(3):  # so that the id is not that of any first request
            client.infer("slow", {"x": inputs["x"][:1]})
        ticket = client.submit("slow", inputs, deadline_ms=20_000, key="mine")
        kill_while_it_runs(mortal, pid)
        assert client.completions(20) == [ticket]
        reply = ticket.result()
        assert (reply.request_id, reply.key) == (ticket.request_id, "mine")
        check_sent_again(mortal, reply, expected)


def test_a_thread_that_waits_is_answered_by_the_next_router(mortal, inputs, expected):
    pid = router_pid(mortal)
    with mortal.client() as client:
        client.wait_ready()
        killer = threading.Thread(target=kill_while_it_runs, args=(mortal, pid))
        killer.start()
        try:
            reply = client.infer("slow", inputs, deadline_ms=20_000)
        finally:
            killer.join()
        check_sent_again(mortal, reply, expected)


async def test_an_awaited_lease_is_answered_by_the_next_router(mortal, inputs, expected):
    pid = router_pid(mortal)
    shapes = {"x": ((ROWS, 256), "float32")}
    async with mortal.async_client(lane="zeromq") as client, client.lease("slow", shapes) as lease:
        lease.inputs["x"][...] = inputs["x"]
        killing = asyncio.create_task(asyncio.to_thread(kill_while_it_runs, mortal, pid))
        reply = await lease.infer(deadline_ms=20_000)
        await killing
        check_sent_again(mortal, reply, expected)


@contextlib.contextmanager
def stopped(pid):
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def ends_after(deadline_ms):
    entered = time.monotonic()
    yield
    assert deadline_ms / 1000 - 0.001 <= time.monotonic() - entered < deadline_ms / 1000 + LATE_S_MAX


@LANES
def test_a_stopped_router_makes_no_caller_wait_past_its_deadline(patient, inputs, lane):
    pid = router_pid(patient)
    small = {"x": inputs["x"][:1]}
    mine = {"y": np.zeros((1, 256), np.float32)}
    with patient.client(lane=lane, slot_count=8) as client:
        client.infer("slow", small)
        with stopped(pid):
            with ends_after(80), pytest.raises(farm.DeadlineExceeded) as caught:
                client.infer("slow", small, deadline_ms=80)
            assert caught.value.reason == "timeout"
            with ends_after(50):
                reply = client.infer("slow", small, deadline_ms=50, fallback=mine)
            assert (reply.source, reply.reason) == ("client", "timeout")
            np.testing.assert_array_equal(reply.outputs["y"], mine["y"])
            ticket = client.submit("slow", small, deadline_ms=60, fallback=mine)
            with ends_after(60):
                assert client.completions(5) == [ticket]
            assert ticket.result().source == "client"
            # One that comes only now finds a socket that takes its connection and says nothing.
            with patient.client(lane=lane) as late, ends_after(70):
                assert late.infer("slow", small, deadline_ms=70, fallback=mine).reason == "unavailable"
        # The slots of those three were the farm's until now, and all come back.
        with contextlib.ExitStack() as leases:
            for _ in range(8):
                leases.enter_context(client.lease("slow", {"x": ((1, 256), "float32")}))
        assert client.infer("slow", small).source == "model"


@LANES
async def test_a_stopped_router_makes_no_await_wait_past_its_deadline(patient, inputs, lane):
    pid = router_pid(patient)
    small = {"x": inputs["x"][:1]}
    mine = {"y": np.zeros((1, 256), np.float32)}
    async with patient.async_client(lane=lane) as client:
        await client.infer("slow", small)
        with stopped(pid):
            with ends_after(60):
                ends = await asyncio.gather(
                    client.infer("slow", small, deadline_ms=60),
                    client.infer("slow", small, deadline_ms=60, fallback=mine),
                    return_exceptions=True,
                )
            assert isinstance(ends[0], farm.DeadlineExceeded)
            assert (ends[1].source, ends[1].reason) == ("client", "timeout")
        assert (await client.infer("slow", small)).source == "model"
