"""Many threads on one blocking client: no wake-up is lost, no slot, no answer goes to another."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
import time

import numpy as np
import pytest

import farm.errors as errors
from farm.client import Client
from tests.fakerouter import FakeRouter

LANES = ("direct", "zeromq")


@pytest.fixture(params=LANES)
def client(request, runtime_dir, router):
    with Client(runtime_dir, lane=request.param) as client:
        yield client


def crowd(client, threads, each, **options):
    """Each thread asks `each` times for its own numbers; the longest wait in seconds."""

    def ask(number):
        longest = 0.0
        for i in range(each):
            value = number * 1000 + i
            start = time.perf_counter()
            reply = client.infer("double", np.full((1, 4), value, np.float32), deadline_ms=20_000, **options)
            longest = max(longest, time.perf_counter() - start)
            assert reply.outputs["y"][0, 0] == 2 * value
        return longest

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return max(pool.map(ask, range(threads)))


@pytest.mark.slow
def test_forty_threads_get_their_own_answers(client):
    assert crowd(client, 40, 50) < 5
    assert client._engine.session.free_count() == 256


@pytest.mark.slow
def test_forty_threads_with_a_busy_neighbour(client):
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            sum(range(1000))

    neighbour = threading.Thread(target=busy)
    neighbour.start()
    try:
        crowd(client, 40, 5)
    finally:
        stop.set()
        neighbour.join()


@pytest.mark.slow
@pytest.mark.parametrize("lane", LANES)
def test_more_threads_than_slots(runtime_dir, router, lane):
    with Client(runtime_dir, lane=lane, slot_count=3) as client:
        crowd(client, 20, 20)
        assert client._engine.session.free_count() == 3


@pytest.mark.slow
@pytest.mark.parametrize("lane", LANES)
def test_threads_outlive_routers(runtime_dir, lane):
    routers = [FakeRouter(runtime_dir)]
    stop = threading.Event()

    def replace():
        while not stop.wait(0.05):
            routers[-1].close()
            routers.append(FakeRouter(runtime_dir, epoch=len(routers) + 1))

    with Client(runtime_dir, lane=lane) as client:
        replacing = threading.Thread(target=replace)
        replacing.start()
        try:
            crowd(client, 10, 100)
        finally:
            stop.set()
            replacing.join()
            routers[-1].close()


@pytest.mark.slow
def test_followers_meet_their_own_deadlines(client, router):
    client.infer("double", np.zeros((1, 4), np.float32))
    router.mode = "silent"

    def ask(number):
        start = time.perf_counter()
        with pytest.raises(errors.DeadlineExceeded):
            client.infer("double", np.zeros((1, 4), np.float32), deadline_ms=20 + 10 * number)
        return (time.perf_counter() - start) * 1e3 - (20 + 10 * number)

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        late = list(pool.map(ask, range(20)))
    assert max(late) < 1000, "a loaded machine's patience; a lost wake-up would take for ever"
    assert min(late) >= 0


def test_leadership_is_handed_on_when_the_leader_is_answered(client, router):
    router.mode = "hold"
    x = np.zeros((1, 4), np.float32)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(client.infer, "double", x, deadline_ms=10_000, key=str(i)) for i in range(4)]
        router.until(lambda: len(router.kept) == 4)
        for _, request in list(router.kept):
            router.do(lambda r=request: router._to(*_one(router, r)))
            futures[int(request.key)].result(5)


def _one(router, request):
    client = next(c for c, r in router.kept if r is request)
    from shm.client import Replies

    return client, Replies([router._reply(client, request)])


def test_close_ends_what_other_threads_wait_for(client, router):
    router.mode = "silent"
    x = np.zeros((1, 4), np.float32)
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        futures = [pool.submit(client.infer, "double", x, deadline_ms=20_000) for _ in range(5)]
        router.until(lambda: sum(len(s.requests) for s in router.submits) == 5)
        client.close()
        for future in futures:
            with pytest.raises(errors.Unavailable, match="closed"):
                future.result(5)


def test_completions_of_one_thread_while_others_infer(client):
    x = np.ones((1, 4), np.float32)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        inferring = [pool.submit(crowd, client, 2, 30) for _ in range(2)]
        ended = 0
        for _ in range(30):
            for _ in range(5):
                client.submit("double", x, flush=False)
            ended += len(client.completions(5))
        while ended < 150:
            ended += len(client.completions(5))
        for future in inferring:
            future.result()


def test_interrupted_wait_parks_its_slot(client, router, monkeypatch):
    x = np.zeros((1, 4), np.float32)
    client.infer("double", x)
    router.mode = "hold"
    polled = client._turns._poll

    def interrupt(wait_ns):
        monkeypatch.setattr(client._turns, "_poll", polled)
        raise KeyboardInterrupt

    monkeypatch.setattr(client._turns, "_poll", interrupt)
    with pytest.raises(KeyboardInterrupt):
        client.infer("double", x, deadline_ms=10_000)
    router.until(lambda: router.cancelled)
    router.mode = "answer"
    for _ in range(100):
        client.infer("double", x)
        if client._engine.session.free_count() == 256:
            break
    assert client._engine.session.free_count() == 256


def test_client_asks_nothing_of_its_process():
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("farm").handlers)
