"""Clients of the fake: slots, leases, submit, records of calls, threads, forks, loops, and time."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time

import numpy as np
import pytest

import farm
from farm.testing import FakeFarm, StillClock, WallClock

SIGNATURE = {"inputs": {"x": ("float32", ["N", 4])}, "outputs": {"y": ("float32", ["N", 4])}}
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)
SHAPES = {"x": ((2, 4), "float32")}


def double(inputs):
    return inputs["x"] * 2


@pytest.fixture
def fake():
    with FakeFarm({"m": (double, SIGNATURE)}) as fake:
        yield fake


@pytest.fixture
def client(fake):
    with fake.client(slot_count=4, slot_bytes=64) as client:
        yield client


def test_call_records_what_was_asked_and_keeps_it(fake, client):
    mine = ROWS.copy()
    client.infer("m", mine, deadline_ms=40, priority=3, version=1, key="k", trace="t", fallback={"y": [1.0]})
    mine[...] = -1
    (call,) = fake.calls
    assert call._replace(inputs={}, fallback={}) == ("m", {}, 40, 3, 1, "k", "t", {})
    assert call.inputs["x"].tolist() == ROWS.tolist()
    assert call.fallback["y"].tolist() == [1.0]


def test_call_without_options_records_none_of_them(fake, client):
    client.infer("m", ROWS)
    assert fake.calls[0]._replace(inputs={}) == ("m", {}, None, 0, None, None, None, None)


def test_reply_is_the_callers_own(client):
    one, two = (client.infer("m", ROWS) for _ in range(2))
    one.outputs["y"][...] = 0
    assert two.outputs["y"].tolist() == (ROWS * 2).tolist()
    assert (one.request_id, two.request_id) == (1, 2)


# leases


def test_lease_is_writable_before_infer_and_read_only_after(fake, client):
    with client.lease("m", SHAPES) as lease:
        inside = lease.inputs["x"]
        inside[...] = ROWS
        reply = lease.infer(deadline_ms=40, key="k")
        with pytest.raises(ValueError, match="read-only"):
            inside[...] = 0
        with pytest.raises(ValueError, match="read-only"):
            reply.outputs["y"][...] = 0
        with pytest.raises(farm.InvalidRequest, match="one infer per lease"):
            lease.infer()
    assert reply.outputs["y"].tolist() == (ROWS * 2).tolist()
    assert (fake.calls[0].key, fake.calls[0].deadline_ms) == ("k", 40)


def test_lease_checks_shapes_against_the_signature(client):
    for shapes, says in (({"x": ((2, 3), "f4")}, "dimension 1 to be 4"), ({"z": ((2, 4), "f4")}, "'z' is unknown")):
        with pytest.raises(farm.InvalidRequest, match=says), client.lease("m", shapes):
            pass


def test_lease_meets_scripted_endings(fake, client):
    fake.script("m", fake.rules({"y": 1.0}, decision="refer"), fake.shed(), fake.silence())
    with client.lease("m", SHAPES) as lease:
        assert lease.infer().decision == "refer"
    with client.lease("m", SHAPES) as lease, pytest.raises(farm.Overloaded):
        lease.infer()
    with client.lease("m", SHAPES) as lease:
        assert lease.infer(fallback={"y": 1.0}).source == "client"


def test_slots_of_a_lease_return_with_the_last_view(client):
    views = []
    for _ in range(4):
        with client.lease("m", SHAPES) as lease:
            lease.inputs["x"][...] = ROWS
            views.append(lease.infer().outputs["y"][:1])
    del lease
    with pytest.raises(farm.NoFreeSlot, match="all 4 slots"):
        client.infer("m", ROWS)
    views.pop()
    gc.collect()
    assert client.infer("m", ROWS).source == "model"
    assert [view.tolist() for view in views] == [(ROWS[:1] * 2).tolist()] * 3


def test_lease_of_a_model_without_signature_takes_what_is_asked(fake, client):
    fake.add("loose", lambda inputs: {"sum": inputs["a"].sum()})
    with client.lease("loose", {"a": ((3,), "int32")}) as lease:
        lease.inputs["a"][...] = (1, 2, 3)
        assert lease.infer().outputs["sum"] == 6


def test_unused_lease_and_left_lease_give_their_slots_back(client):
    for _ in range(6):
        with client.lease("m", SHAPES):
            pass
    with pytest.raises(RuntimeError), client.lease("m", SHAPES):
        raise RuntimeError
    assert len(client.infer_many("m", [ROWS] * 9)) == 9


# many and submit


def test_infer_many_gives_each_its_outcome_in_order(fake, client):
    fake.script("m", fake.answer(), fake.shed(), fake.silence())
    told = client.infer_many("m", [ROWS, ROWS, ROWS, ROWS[:, :1], ROWS])
    assert [type(each) for each in told] == [
        farm.Reply, farm.Overloaded, farm.DeadlineExceeded, farm.InvalidRequest, farm.Reply,
    ]  # fmt: skip


def test_more_requests_than_slots_wait_for_slots(fake, client):
    fake.always("m", fake.answer(after_ms=10))
    told = client.infer_many("m", [ROWS] * 10, deadline_ms=100)
    assert [round(reply.stages["total"] / 1e6) for reply in told] == [10] * 4 + [20] * 4 + [30] * 2
    told = client.infer_many("m", [ROWS] * 9, deadline_ms=15)
    assert [type(each) for each in told] == [farm.Reply] * 4 + [farm.DeadlineExceeded] * 4 + [farm.NoFreeSlot]


def test_submit_gives_tickets_back_as_they_end(fake, client):
    fake.script("m", fake.answer(after_ms=20), fake.answer(after_ms=5), fake.failed())
    tickets = [client.submit("m", ROWS, key=key) for key in "abc"]
    assert [ticket.key for ticket in client.completions()] == ["c"]
    with pytest.raises(farm.RunFailed):
        tickets[2].result()
    with pytest.raises(farm.InvalidRequest, match="has not ended"):
        tickets[0].result()
    assert client.completions(timeout=0) == []
    assert client.completions(timeout=0.001) == []
    assert [ticket.key for ticket in client.completions()] == ["b"]
    fake.clock.advance_ms(20)
    assert [ticket.key for ticket in client.completions(timeout=0)] == ["a"]
    assert tickets[0].result().outputs["y"].tolist() == (ROWS * 2).tolist()
    assert client.completions() == []


def test_submit_does_not_wait_for_slots(fake, client):
    fake.always("m", fake.silence())
    for _ in range(4):
        client.submit("m", ROWS, flush=False)
    with pytest.raises(farm.NoFreeSlot, match="take completions first"):
        client.submit("m", ROWS)
    client.flush()
    ended = client.completions()
    assert len(ended) == 4
    fake.always("m", None)
    client.submit("m", ROWS)
    assert [ticket.result().source for ticket in client.completions()] == ["model"]


def test_fault_of_the_tests_function_ends_requests_that_waited_for_slots_too(fake, client):
    def broken_later(inputs):
        if len(fake.calls) > 4:
            raise KeyError("z")
        return inputs["x"]

    fake.add("m", broken_later, signature=SIGNATURE)
    with pytest.raises(KeyError):
        client.infer_many("m", [ROWS] * 6)
    client.completions()
    assert len(fake.calls) >= 5
    fake.add("m", double, signature=SIGNATURE)
    assert len(client.infer_many("m", [ROWS] * 6)) == 6


# the end of a client


def test_closed_client_is_unavailable(client):
    ticket = client.submit("m", ROWS)
    client.close()
    client.close()
    assert client.completions() == [ticket]
    with pytest.raises(farm.Unavailable, match="closed"):
        client.infer("m", ROWS)
    with pytest.raises(farm.Unavailable, match="closed"):
        client.models()


def test_farm_closes_its_clients():
    with FakeFarm({"m": SIGNATURE}) as fake:
        client = fake.client()
        client.infer("m", ROWS)
    with pytest.raises(farm.Unavailable, match="closed"):
        client.infer("m", ROWS)


# time


def test_silence_takes_no_time_and_says_how_long_it_was(fake, client):
    fake.always("m", fake.silence())
    began = time.monotonic()
    with pytest.raises(farm.DeadlineExceeded, match="within 600000 ms"):
        client.infer("m", ROWS, deadline_ms=600_000)
    reply = client.infer("m", ROWS, deadline_ms=10_000, fallback={"y": 1.0})
    assert reply.stages["total"] == 10_000 * 10**6
    assert time.monotonic() - began < 5


def test_time_that_the_farm_takes_is_in_the_stages(fake, client):
    fake.script("m", fake.answer(after_ms=7), fake.rules({"y": 0.0}, after_ms=9))
    by_model, by_rule = (client.infer("m", ROWS, deadline_ms=10) for _ in range(2))
    assert by_model.stages["run"] == by_model.stages["total"] == 7_000_000
    assert by_rule.stages["queue"] == by_rule.stages["total"] == 9_000_000
    assert "run" not in by_rule.stages


def test_answer_after_the_deadline_is_none(fake, client):
    fake.script("m", fake.answer(after_ms=11), fake.shed(after_ms=11))
    for _ in range(2):
        with pytest.raises(farm.DeadlineExceeded):
            client.infer("m", ROWS, deadline_ms=10)


def test_models_default_deadline_holds_where_none_is_named(fake, client):
    fake.add("quick", double, signature=SIGNATURE, deadline_ms=5)
    fake.always("quick", fake.silence())
    with pytest.raises(farm.DeadlineExceeded, match="within 5 ms"):
        client.infer("quick", ROWS)


def test_clock_is_the_tests_own():
    clock = StillClock(start_ns=77)
    with FakeFarm({"m": SIGNATURE}, clock=clock) as fake, fake.client() as client:
        fake.script("m", fake.answer(after_ms=3))
        client.infer("m", ROWS)
        assert clock.now_ns() == 77 + 3_000_000


@pytest.mark.slow
def test_wall_clock_waits():
    with FakeFarm({"m": SIGNATURE}, clock=WallClock()) as fake, fake.client() as client:
        fake.always("m", fake.silence())
        began = time.monotonic()
        with pytest.raises(farm.DeadlineExceeded):
            client.infer("m", ROWS, deadline_ms=30)
        assert time.monotonic() - began >= 0.03


# threads and forks


@pytest.mark.slow
def test_forty_threads_get_their_own_answers(fake):
    wrong = []

    def ask(client, number):
        for turn in range(20):
            value = np.full((1, 4), number * 100 + turn, np.float32)
            if client.infer("m", value).outputs["y"].tolist() != (value * 2).tolist():
                wrong.append((number, turn))

    with fake.client(slot_count=64) as client:
        threads = [threading.Thread(target=ask, args=(client, number)) for number in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)
    assert not wrong
    assert len(fake.calls) == 800


def test_forked_child_goes_on_with_the_fake(client):
    client.infer("m", ROWS)
    pid = os.fork()
    if pid == 0:
        try:
            told = client.infer("m", ROWS).outputs["y"].tolist() == (ROWS * 2).tolist()
        finally:
            os._exit(0 if told else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert client.infer("m", ROWS).source == "model"


# asyncio


async def test_async_client_does_all_that_the_other_does(fake):
    fake.script("m", fake.rules({"y": 0.5}), fake.shed())
    async with fake.async_client() as client:
        await client.wait_ready()
        assert [model.name for model in await client.models()] == ["m"]
        assert (await client.infer("m", ROWS)).source == "rules"
        told = await client.infer_many("m", [ROWS, ROWS])
        assert [type(each) for each in told] == [farm.Overloaded, farm.Reply]
        async with client.lease("m", SHAPES) as lease:
            lease.inputs["x"][...] = ROWS
            reply = await lease.infer()
            assert not lease.inputs["x"].flags.writeable
            assert not reply.outputs["y"].flags.writeable
        ticket = client.submit("m", ROWS)
        client.flush()
        assert await client.completions() == [ticket]
        assert ticket.result().outputs["y"].tolist() == (ROWS * 2).tolist()
    with pytest.raises(farm.Unavailable, match="closed"):
        await client.infer("m", ROWS)


async def test_requests_of_many_tasks_end_in_their_own_time(fake):
    fake.script("m", fake.silence(), fake.answer(after_ms=30), fake.answer())
    async with fake.async_client() as client:
        asked = [client.infer("m", ROWS, deadline_ms=50) for _ in range(3)]
        silent, slow, quick = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(silent, farm.DeadlineExceeded)
        assert slow.stages["total"] == 30_000_000
        assert quick.stages["total"] <= 30_000_000


async def test_other_tasks_run_before_an_answer_comes(fake):
    ran = []
    async with fake.async_client() as client:
        asyncio.get_running_loop().call_soon(ran.append, 1)
        await client.infer("m", ROWS)
    assert ran == [1]


async def test_time_out_around_a_silent_farm_parks_nothing():
    with FakeFarm({"m": SIGNATURE}, clock=WallClock()) as fake:
        fake.always("m", fake.silence())
        async with fake.async_client(slot_count=1) as client:
            for _ in range(2):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(client.infer("m", ROWS, deadline_ms=60_000), 0.01)
            fake.always("m", None)
            assert (await client.infer("m", ROWS)).source == "model"


def test_async_client_refuses_a_second_loop(fake):
    client = fake.async_client()
    asyncio.run(client.wait_ready())
    with pytest.raises(farm.InvalidRequest, match="another event loop"):
        asyncio.run(client.wait_ready())


async def test_fault_of_the_tests_function_reaches_the_awaiting_task(fake):
    def broken(inputs):
        raise KeyError("z")

    fake.add("m", broken, signature=SIGNATURE)
    async with fake.async_client(slot_count=1) as client:
        for _ in range(2):
            with pytest.raises(KeyError):
                await client.infer("m", ROWS)
