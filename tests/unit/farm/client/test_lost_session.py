"""A session that takes no frames, or has ended: deadlines hold all the same, and its memory goes with it."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import farm.errors as errors
from shm import paths
from tests.fakerouter import FakeRouter

X = np.arange(4, dtype=np.float32).reshape(1, 4)


@pytest.mark.slow
@pytest.mark.parametrize("dies", [False, True])
def test_requests_that_the_lane_did_not_take_end_at_their_deadline(make, router, runtime_dir, dies):
    lane = f"ipc://{paths.lane_path(runtime_dir, router.epoch)}"
    router.do(lambda: (router._lane.unbind(lane), setattr(router, "mode", "silent")))
    client = make()
    client.models()
    entered = time.monotonic()
    ticket = client.submit("double", X, deadline_ms=200)
    if dies:
        client.completions(0.02)
        router.close()
    assert client.completions(5) == [ticket]
    assert 0.15 < time.monotonic() - entered < 1
    with pytest.raises((errors.Unavailable, errors.DeadlineExceeded)):
        ticket.result()


def mappings() -> int:
    return sum("/memfd:" in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_memory_of_an_ended_session_goes_without_the_garbage_collector(make, runtime_dir):
    gc.collect()
    client = make()
    before = mappings()
    gc.disable()
    try:
        for epoch in range(1, 4):
            with FakeRouter(runtime_dir, epoch=epoch) as router:
                assert client.infer("double", X, deadline_ms=10_000).source == "model"
                client.until(lambda router=router: len(router.clients) == 1)
            with pytest.raises(errors.Unavailable):
                client.infer("double", X, deadline_ms=20)
            assert mappings() == before
    finally:
        gc.enable()


def test_a_lease_that_failed_between_two_routers_keeps_no_memory(make, runtime_dir):
    gc.collect()
    client = make()
    before = mappings()
    gc.disable()
    try:
        with FakeRouter(runtime_dir, mode="silent") as router, client.lease("double", {"x": ((1, 4), "f4")}) as lease:
            lease.inputs["x"][...] = X
            threading.Thread(target=lambda: (router.until(lambda: router.submits), router.close())).start()
            with pytest.raises(errors.Unavailable):
                lease.infer(deadline_ms=200)
        with pytest.raises(errors.Unavailable):
            client.infer("double", X, deadline_ms=20)
        assert mappings() == before
    finally:
        gc.enable()


def test_a_lease_that_was_asked_after_its_router_died_keeps_no_memory(make, runtime_dir):
    gc.collect()
    client = make()
    before = mappings()
    gc.disable()
    try:
        with FakeRouter(runtime_dir) as router, client.lease("double", {"x": ((1, 4), "f4")}) as lease:
            router.close()
            with pytest.raises(errors.Unavailable):
                client.infer("double", X, deadline_ms=20)  # so that the client has noticed
            with pytest.raises(errors.Unavailable):
                lease.infer(deadline_ms=20)
        with FakeRouter(runtime_dir, epoch=2) as router:
            client.infer("double", X, deadline_ms=10_000)
        with pytest.raises(errors.Unavailable):
            client.infer("double", X, deadline_ms=20)
        assert mappings() == before
    finally:
        gc.enable()
