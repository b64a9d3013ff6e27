"""Deadlines and the client's own timer: silence, held slots, slots running out, a model that is not ready."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

import farm.errors as errors
from shm.client import Rejected
from shm.endings import Ending, Reason
from tests.fakemodels import LATE
from tests.fakerouter import FakeRouter

X = np.ones((1, 4), np.float32)


def elapsed_ms(since: float) -> float:
    return (time.perf_counter() - since) * 1e3


def test_silent_router_ends_in_deadline_exceeded_on_time(client, router):
    client.infer("double", X)
    router.mode = "silent"
    start = time.perf_counter()
    with pytest.raises(errors.DeadlineExceeded, match="gave no answer within 40 ms") as caught:
        client.infer("double", X, deadline_ms=40)
    assert 40 <= elapsed_ms(start) < 1040
    assert caught.value.reason == "timeout"
    assert isinstance(caught.value, TimeoutError)
    client.until(lambda: router.cancelled == [caught.value.request_id])
    assert client.free_slots() == 255, "only the router gives a slot back"


def test_deadline_below_a_millisecond_is_kept(client, router):
    client.infer("double", X)
    router.mode = "silent"
    start = time.perf_counter()
    with pytest.raises(errors.DeadlineExceeded):
        client.infer("double", X, deadline_ms=0.3)
    assert elapsed_ms(start) < 500


def test_models_default_deadline_holds(client, router):
    client.infer("double", X)
    router.mode = "silent"
    with pytest.raises(errors.DeadlineExceeded, match="within 30 ms"):
        client.infer("brief", X)


def test_fallback_answers_when_the_router_is_silent(client, router):
    client.infer("double", X)
    router.mode = "silent"
    fallback = {"y": np.zeros(4)}
    ticket = client.submit("double", X, deadline_ms=300, fallback=fallback, key="k")
    fallback["y"][...] = 9
    (ended,) = client.completions(5)
    assert ended is ticket
    reply = ended.result()
    assert (reply.source, reply.reason, reply.key) == ("client", "timeout", "k")
    assert reply.outputs["y"].tolist() == [0, 0, 0, 0], "the fallback was copied"


def test_fallback_answers_when_there_is_no_farm(make):
    client = make()
    reply = client.infer("double", X, deadline_ms=300, fallback={"y": [1]})
    assert (reply.source, reply.reason) == ("client", "unavailable")


def test_fallback_also_answers_for_a_router_that_gives_up_at_the_deadline(client, router):
    router.mode = "hold"
    client.submit("double", X, fallback={"y": [1]})
    client.until(lambda: router.kept)
    router.reply(router.kept[0][1].id, ending=Ending.EXPIRED, reason=Reason.TIMEOUT)
    assert client.completions(5)[0].result().source == "client"


def test_no_farm_is_unavailable_and_lists_the_paths(make, runtime_dir):
    start = time.perf_counter()
    with pytest.raises(errors.Unavailable, match="tried") as caught:
        make().infer("double", X, deadline_ms=50)
    assert elapsed_ms(start) < 150
    assert f"{runtime_dir}/service/attach.sock" in str(caught.value)
    assert isinstance(caught.value, ConnectionError)
    assert caught.value.retryable


def test_farm_that_starts_within_the_deadline_answers(make, runtime_dir):
    client = make()
    routers = []
    starting = threading.Timer(0.05, lambda: routers.append(FakeRouter(runtime_dir)))
    starting.start()
    try:
        assert client.infer("double", X, deadline_ms=5000).outputs["y"].tolist() == [[2, 2, 2, 2]]
    finally:
        starting.join()
        routers[0].close()


def test_router_that_does_not_answer_attach_is_unavailable_on_time(make, runtime_dir):
    with FakeRouter(runtime_dir, mute=True):
        client = make()
        for _ in range(2):
            with pytest.raises(errors.Unavailable, match="has not answered the attach"):
                client.infer("double", X, deadline_ms=30)
        client.close()


def test_late_reply_gives_the_slot_back(client, router):
    router.mode = "hold"
    client.submit("double", X, deadline_ms=300)
    (ended,) = client.completions(5)
    with pytest.raises(errors.DeadlineExceeded):
        ended.result()
    assert client.free_slots() in (255, 256)
    client.until(lambda: client.free_slots() == 256)
    assert router.cancelled == [ended.request_id]
    assert client.completions(0) == []


def test_held_reply_answers_at_once_and_release_gives_the_slot_back(client, router):
    router.mode = "hold"
    ticket = client.submit("double", X)
    client.until(lambda: router.kept)
    router.answer_kept(held=True, inline=True, ending=Ending.RULES, reason=Reason.TIMEOUT)
    (ended,) = client.completions(5)
    assert ended.result().source == "rules"
    assert client.free_slots() == 255
    router.release(ticket.request_id)
    client.until(lambda: client.free_slots() == 256)


def test_request_waits_for_a_model_that_becomes_ready(client, router):
    with pytest.raises(errors.Unavailable, match=r"not ready within 0\.05 s: late \(version 1\)") as caught:
        client.wait_ready(0.05)
    assert caught.value.reason == "no_worker"
    with pytest.raises(errors.Overloaded, match="no worker of late was ready within 30 ms") as refused:
        client.infer("late", X, deadline_ms=30)
    assert refused.value.reason == "no_worker"
    ticket = client.submit("late", X, deadline_ms=5000)
    router.tell(LATE)
    assert client.completions(5) == [ticket]
    assert ticket.result().outputs["y"].tolist() == [[2, 2, 2, 2]]
    client.wait_ready()


def test_submitted_inputs_that_wait_are_a_copy(client, router):
    x = X.copy()
    ticket = client.submit("late", x, deadline_ms=5000)
    x[...] = 100
    router.tell(LATE)
    client.completions(5)
    assert ticket.result().outputs["y"].tolist() == [[2, 2, 2, 2]]


def test_infer_without_a_free_slot_waits_and_then_says_so(make, router):
    client = make(slot_count=2)
    router.mode = "hold"
    for _ in range(2):
        client.submit("double", X)
    with pytest.raises(errors.NoFreeSlot, match="all 2 slots") as caught:
        client.infer("double", X, deadline_ms=300)
    assert caught.value.reason == "no_free_slot"
    with pytest.raises(errors.NoFreeSlot, match="take completions first"):
        client.submit("double", X)
    client.until(lambda: len(router.kept) == 2)
    router.mode = "answer"
    router.answer_kept()
    assert client.infer("double", X, deadline_ms=5000).source == "model"
    assert len(client.completions(5)) == 2
    assert client.free_slots() == 2


def test_more_callers_than_slots_all_get_their_answer(make, router):
    client = make(slot_count=3)
    replies = client.inferring(20, "double", X, deadline_ms=5000)
    assert [type(r).__name__ for r in replies] == ["Reply"] * 20
    assert client.free_slots() == 3


def test_long_run_is_not_starved_by_short_ones(make, router):
    client = make(slot_count=4)
    router.mode = "hold"
    for _ in range(4):
        client.submit("double", X)
    client.until(lambda: len(router.kept) == 4)
    router.mode = "answer"
    many = [np.ones((4000, 4), np.float32), *[X] * 20]
    client.turn()
    router.answer_kept()
    outcomes = client.infer_many("double", many, deadline_ms=5000)
    assert [o.source for o in outcomes] == ["model"] * 21


def test_rejected_frame_is_logged(client, router, caplog):
    client.infer("double", X)
    router.send(Rejected(Reason.FRAME, "no such frame"))
    client.until(lambda: "no such frame" in caplog.text)
    assert client.infer("double", X).source == "model"
