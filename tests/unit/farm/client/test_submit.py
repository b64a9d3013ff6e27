"""Lists: submit and completions, gathering, infer_many, and what goes out as one frame."""

from __future__ import annotations

import time

import numpy as np
import pytest

import farm.errors as errors
from farm.client.reply import Reply
from shm.client import Stages
from shm.endings import Ending

X = np.ones((1, 4), np.float32)


def test_submit_gives_tickets_back_as_they_end(client):
    tickets = [client.submit("double", X * i, key=str(i)) for i in range(50)]
    ended = []
    while len(ended) < 50:
        ended += client.completions(5)
    assert sorted(t.request_id for t in ended) == [t.request_id for t in tickets]
    for i, ticket in enumerate(tickets):
        assert ticket.done and ticket.key == str(i)
        assert ticket.result().outputs["y"].tolist() == [[2.0 * i] * 4]
    assert client.completions() == [], "nothing is open, so nothing is waited for"
    assert client.free_slots() == 256


def test_result_of_an_open_ticket_is_refused(client, router):
    router.mode = "hold"
    ticket = client.submit("double", X)
    assert not ticket.done
    with pytest.raises(errors.InvalidRequest, match="has not ended yet"):
        ticket.result()


def test_completions_wait_no_longer_than_asked(client, router):
    router.mode = "hold"
    client.submit("double", X)
    start = time.perf_counter()
    assert client.completions(0) == []
    assert client.completions(0.03) == []
    assert 0.03 <= time.perf_counter() - start < 0.2


def test_completions_end_what_is_past_its_deadline(client, router):
    client.infer("double", X)
    router.mode = "silent"
    client.submit("double", X, deadline_ms=250)
    client.submit("double", X, deadline_ms=400)
    first = client.completions()
    second = client.completions()
    assert len(first) == len(second) == 1
    with pytest.raises(errors.DeadlineExceeded):
        first[0].result()


def test_polling_completions_find_deadlines_and_a_dead_router(client, router):
    client.infer("double", X)
    router.mode = "silent"
    client.submit("double", X, deadline_ms=300)
    ended = client.until(lambda: client.completions(0))
    with pytest.raises(errors.DeadlineExceeded):
        ended[0].result()


def test_gathered_requests_go_out_as_one_frame(client, router):
    client.infer("double", X)
    client.turn()
    for _ in range(10):
        client.submit("double", X, flush=False)
    client.flush()
    ended = []
    while len(ended) < 10:
        ended += client.completions(5)
    if client.kind == "sync":
        assert [len(frame.requests) for frame in router.submits] == [1, 10]


def test_gathering_ends_at_its_limit(client, router):
    if client.kind != "sync":
        pytest.skip("a loop sends what is gathered whenever it has something to do")
    client.infer("double", X)
    for _ in range(64):
        client.submit("double", X, flush=False)
    router.until(lambda: len(router.requests) == 65)
    assert [len(frame.requests) for frame in router.submits] == [1, 64]


def test_infer_many_keeps_order_and_puts_errors_in_their_place(client, router):
    client.infer("double", X)
    inputs = [X, X.astype(np.float64), X * 3, {"z": X}]
    outcomes = client.infer_many("double", inputs, deadline_ms=5000)
    assert [type(o) for o in outcomes] == [Reply, errors.InvalidRequest, Reply, errors.InvalidRequest]
    assert outcomes[2].outputs["y"].tolist() == [[6, 6, 6, 6]]
    assert [len(frame.requests) for frame in router.submits] == [1, 2]


def test_infer_many_goes_on_as_slots_come_back(make, router):
    client = make(slot_count=8)
    outcomes = client.infer_many("double", [X * i for i in range(1000)], deadline_ms=20_000)
    assert [o.outputs["y"][0, 0] for o in outcomes] == [2.0 * i for i in range(1000)]
    assert client.free_slots() == 8


def test_infer_many_ends_the_rest_at_the_deadline(make, router):
    client = make(slot_count=2)
    router.mode = "silent"
    outcomes = client.infer_many("double", [X] * 5, deadline_ms=300)
    kinds = [type(o) for o in outcomes]
    assert kinds == [errors.DeadlineExceeded] * 2 + [errors.NoFreeSlot] * 3
    assert client.infer_many("double", []) == []


def test_infer_many_before_the_farm_is_there_ends_in_errors_or_fallbacks(make):
    client = make()
    outcomes = client.infer_many("double", [X] * 3, deadline_ms=20)
    assert [type(o) for o in outcomes] == [errors.Unavailable] * 3
    outcomes = client.infer_many("double", [X] * 3, deadline_ms=20, fallback={"y": [0]})
    assert [o.source for o in outcomes] == ["client"] * 3


def test_thousand_requests_with_keys_fit_the_frames(make, router):
    client = make(slot_count=2048, slot_bytes=64)
    ids = ["ü" * 128] * 1000
    tickets = [client.submit("double", X, key=key, trace=key, flush=False) for key in ids]
    ended = []
    while len(ended) < len(tickets):
        ended += client.completions(5)
    assert all(t.result().key == ids[0] for t in ended)


def test_calls_of_one_turn_of_the_loop_are_one_frame(client, router):
    if client.kind == "sync":
        pytest.skip("a matter of loops")
    client.infer("double", X)
    replies = client.inferring(40, "double", X)
    assert len(replies) == 40
    assert [len(frame.requests) for frame in router.submits] == [1, 40]


def test_models_tell_names_versions_and_signatures(client):
    models = client.models()
    assert [(m.name, m.version, m.ready) for m in models][:2] == [("double", 1, True), ("shout", 1, True)]
    assert str(models[0].signature.inputs[0]) == "x: float32[N, 4]"
    assert models[6].signature is None


def test_lane_and_transport_are_named(client, kind):
    client.models()
    assert (client.client.lane, client.client.transport) == (kind.split()[1], "shm")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lane": "carrier pigeon"}, "lane is 'carrier pigeon'; it must be one of auto, zeromq, direct"),
        ({"slot_count": 0}, "slot_count is 0; it must be a whole number from 1 to 65536"),
        ({"slot_bytes": 100}, "slot_bytes is 100; it must be a multiple of 64"),
    ],
)
def test_clients_own_options_are_checked(make, options, words):
    with pytest.raises(errors.InvalidRequest) as caught:
        make(**options)
    assert words in str(caught.value)


@pytest.mark.slow
def test_answers_that_came_in_time_count_however_many_frames_lie_unread(client, router):
    router.mode = "hold"
    tickets = [client.submit("double", X * i, deadline_ms=150) for i in range(12)]
    client.until(lambda: len(router.kept) == 12)
    for ticket in tickets:
        router.reply(ticket.request_id, ending=Ending.MODEL, rows=1, stages=Stages(time.monotonic_ns(), 0))
    due = time.monotonic() + 0.2
    router.until(lambda: time.monotonic() > due)
    assert [ticket.result().source for ticket in client.completions(0)] == ["model"] * 12
