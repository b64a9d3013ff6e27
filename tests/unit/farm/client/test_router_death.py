"""The router dies, refuses, or speaks another protocol."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import farm.errors as errors
from shm.client import AttachRefused, Rejected
from shm.endings import Ending, Reason
from tests.fakemodels import DOUBLE, MODELS, model, spec
from tests.fakerouter import FakeRouter

X = np.arange(4, dtype=np.float32).reshape(1, 4)


@pytest.fixture
def routers(runtime_dir):
    """Makes routers, one after the other; the last is closed at the end."""
    made = []

    def successor(**options):
        if made:
            made[-1].close()
        made.append(FakeRouter(runtime_dir, epoch=len(made) + 1, **options))
        return made[-1]

    yield successor
    made[-1].close()


def test_open_requests_are_sent_again_under_the_same_id(make, routers):
    client = make()
    first = routers(mode="silent")
    tickets = [client.submit("double", X * i, deadline_ms=10_000, priority=2, key=str(i)) for i in range(5)]
    client.until(lambda: [r for s in first.submits for r in s.requests][4:])
    before = [r for s in first.submits for r in s.requests]
    second = routers()
    ended = []
    while len(ended) < 5:
        ended += client.completions(5)
    assert [t.result().outputs["y"].tolist() for t in tickets] == [(X * 2 * i).tolist() for i in range(5)]
    again = second.requests
    assert [(r.id, r.deadline_ns, r.priority, r.key) for r in again] == [
        (r.id, r.deadline_ns, r.priority, r.key) for r in before
    ]
    assert client.free_slots() == 256


def test_waiting_infer_is_answered_by_the_next_router(make, routers):
    client = make()
    first = routers(mode="hold")
    replacing = threading.Thread(target=lambda: (first.until(lambda: first.kept), routers()))
    replacing.start()
    try:
        reply = client.infer("double", X, deadline_ms=10_000)
    finally:
        replacing.join()
    np.testing.assert_array_equal(reply.outputs["y"], X * 2)


def test_idle_client_finds_the_next_router(make, routers):
    client = make()
    routers()
    for _ in range(3):
        assert client.infer("double", X, deadline_ms=10_000).source == "model"
        routers()


def test_readiness_is_not_read_off_a_dead_session(make, routers):
    client = make()
    routers(models=[DOUBLE])
    client.wait_ready()
    routers(models=[model(0, "double", [], [], ready=False)])
    with pytest.raises(errors.Unavailable, match="not ready"):
        client.wait_ready(0.1)


def test_request_out_of_time_ends_by_the_clients_timer(make, routers):
    client = make()
    first = routers()
    client.infer("double", X)
    first.mode = "silent"
    sent = len(first.frames)
    client.submit("double", X, deadline_ms=60)
    client.submit("double", X, deadline_ms=60, fallback={"y": [5]})
    client.until(lambda: len(first.frames) > sent)
    first.close()
    ended = []
    while len(ended) < 2:
        ended += client.completions(5)
    outcomes = {type(t.outcome()).__name__: t.outcome() for t in ended}
    assert "the router is gone" in str(outcomes["Unavailable"]) or "no farm answers" in str(outcomes["Unavailable"])
    assert (outcomes["Reply"].source, outcomes["Reply"].reason) == ("client", "unavailable")


def test_warm_router_without_ready_workers_is_waited_for(make, routers):
    client = make()
    first = routers(models=[DOUBLE], mode="silent")
    ticket = client.submit("double", X, deadline_ms=10_000)
    client.until(lambda: first.submits)
    second = routers(models=[model(3, "double", [], [], ready=False)])
    client.until(lambda: second.asked)
    io = [spec("x", "float32", "N", 4)], [spec("y", "float32", "N", 4)]
    second.until(lambda: second.clients)
    second.tell(model(3, "double", *io))
    assert client.completions(10) == [ticket]
    np.testing.assert_array_equal(ticket.result().outputs["y"], X * 2)
    assert second.requests[0].model == 3, "the model's place in the new router's list"


@pytest.mark.parametrize(
    ("models", "raised", "words"),
    [
        ([model(0, "double", [spec("x", "float32", "N", 5)], [])], errors.Unavailable, "another signature"),
        (MODELS[1:], errors.ModelNotFound, "no model 'double' here"),
    ],
)
def test_model_that_is_no_longer_the_same_ends_the_request(make, routers, models, raised, words):
    client = make()
    first = routers(mode="silent")
    client.submit("double", X, deadline_ms=10_000)
    client.until(lambda: first.submits)
    routers(models=models)
    (ended,) = client.completions(5)
    with pytest.raises(raised, match=words):
        ended.result()


def test_ended_session_is_attached_anew(client, router):
    client.infer("double", X)
    router.mode = "silent"
    sent = len(router.frames)
    ticket = client.submit("double", X, deadline_ms=10_000)
    client.until(lambda: len(router.frames) > sent)
    router.mode = "answer"
    router.end_sessions()
    assert client.completions(5) == [ticket]
    assert ticket.result().source == "model"
    assert len(router.asked) == 2


@pytest.mark.parametrize("how", ["reply", "frame"])
def test_stale_epoch_is_taken_for_another_router(client, router, how):
    router.mode = "hold"
    ticket = client.submit("double", X, deadline_ms=10_000)
    client.until(lambda: router.kept)
    router.mode = "answer"
    if how == "reply":
        router.reply(ticket.request_id, ending=Ending.INVALID, reason=Reason.STALE_EPOCH)
    else:
        router.send(Rejected(Reason.STALE_EPOCH, "another life"))
    assert client.completions(5) == [ticket]
    assert ticket.result().source == "model"
    assert len(router.asked) == 2


def test_refused_attach_has_the_figures(make, runtime_dir):
    refused = AttachRefused(Reason.BUDGET, "arenas take 1020 of 1024 MiB", 500)
    with FakeRouter(runtime_dir, refuse=refused):
        client = make()
        with pytest.raises(errors.AttachRefused, match="1020 of 1024 MiB") as caught:
            client.infer("double", X, deadline_ms=5000)
        assert (caught.value.reason, caught.value.retry_after_ms) == ("budget", 500)
        with pytest.raises(errors.AttachRefused):
            client.models()
        client.submit("double", X)
        with pytest.raises(errors.AttachRefused):
            client.completions(5)[0].result()


def test_other_protocol_is_named(make, runtime_dir):
    words = "protocol 99; this client speaks protocol 1"
    with FakeRouter(runtime_dir, protocol=99), pytest.raises(errors.ProtocolMismatch, match=words):
        make().infer("double", X, deadline_ms=5000)


def test_router_that_dies_while_a_memory_file_is_awaited(make, routers):
    client = make()
    routers()
    for count in (200_000, 100):
        reply = client.infer("many", np.int64(count), deadline_ms=10_000)
        assert reply.outputs["y"].shape == (count,)
        routers()


def test_closed_client_refuses_and_ends_what_was_open(client, router):
    router.mode = "silent"
    ticket = client.submit("double", X)
    client.close()
    with pytest.raises(errors.Unavailable, match="closed"):
        ticket.result()
    if client.kind == "sync":
        with pytest.raises(errors.Unavailable, match="this client is closed"):
            client.infer("double", X)
    client.close()
