"""Leases: arrays in the slots, views of the answers, and when a slot is free again."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

import farm.errors as errors
from shm.endings import Ending, Reason
from shm.tensors import address
from tests.fakerouter import FakeRouter

SHAPES = {"x": ((2, 4), "float32")}


def free(client, count):
    """The number of free slots comes to be this."""
    client.until(lambda: client.free_slots() == count)


def test_inputs_lie_in_the_slot_and_outputs_are_views(client, router):
    with client.lease("double", SHAPES) as lease:
        x = lease.inputs["x"]
        x[...] = np.arange(8).reshape(2, 4)
        where = address(x)
        reply = lease.infer(deadline_ms=5000)
        request = router.requests[0]
        session = client.client._engine.session
        base = address(np.frombuffer(session.inbound, np.uint8))
        assert where == base + request.slot * session.slot_bytes
        y = reply.outputs["y"]
        assert address(y) == address(np.frombuffer(session.out, np.uint8)) + request.slot * session.slot_bytes
        np.testing.assert_array_equal(y, np.arange(8).reshape(2, 4) * 2)
        assert not y.flags.writeable and not x.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            x[0, 0] = 1
        del x, y, reply, session
    free(client, 256)


def test_slot_stays_with_a_view_that_outlives_the_block(client):
    with client.lease("double", SHAPES) as lease:
        lease.inputs["x"][...] = 1
        row = lease.infer().outputs["y"][1, 2:]
    gc.collect()
    assert client.free_slots() == 255
    client.infer("double", np.zeros((2, 4), np.float32))
    assert row.tolist() == [2, 2], "nobody else wrote there"
    del row
    free(client, 256)


def test_slot_stays_with_an_input_that_outlives_the_block(client):
    with client.lease("double", SHAPES) as lease:
        kept = lease.inputs["x"]
    gc.collect()
    assert client.free_slots() == 255
    del kept
    free(client, 256)


def test_slot_stays_while_the_farm_has_it(client, router):
    client.models()
    router.mode = "silent"
    with client.lease("double", SHAPES) as lease, pytest.raises(errors.DeadlineExceeded):
        lease.infer(deadline_ms=20)
    gc.collect()
    assert client.free_slots() == 255


@pytest.mark.parametrize("ending", [Ending.RULES, Ending.LAST_GOOD, Ending.CONSTANT])
def test_slot_of_a_held_reply_comes_back_with_its_release(make, router, ending):
    client = make()
    router.mode = "hold"
    with client.lease("double", SHAPES) as lease:

        def answer():
            router.until(lambda: router.kept)
            router.answer_kept(held=True, inline=True, ending=ending, reason=Reason.TIMEOUT)

        answering = threading.Thread(target=answer)
        answering.start()
        reply = lease.infer(deadline_ms=5000)
        answering.join()
        assert reply.source == ending.name.lower()
        assert not reply.outputs["y"].flags.writeable
        request_id = reply.request_id
    del reply
    gc.collect()
    assert client.free_slots() == 255
    router.release(request_id)
    free(client, 256)


def test_unused_lease_gives_its_slot_back(client):
    with client.lease("double", SHAPES):
        assert client.free_slots() == 255
    free(client, 256)


@pytest.mark.parametrize("count", [3, 100_000], ids=["inline", "overflow"])
def test_outputs_that_do_not_fit_are_views_of_what_came(client, count):
    with client.lease("many", {"n": ((), "int64")}) as lease:
        lease.inputs["n"][...] = count
        y = lease.infer().outputs["y"]
    np.testing.assert_array_equal(y, np.arange(count, dtype=np.float32))
    assert not y.flags.writeable
    free(client, 256)


def test_several_inputs_and_a_left_out_optional_one(client):
    with client.lease("sum", {"a b": ((3, 2), "float64"), "k": ((3,), "int64")}) as lease:
        lease.inputs["a b"][...] = 1
        lease.inputs["k"][...] = [1, 2, 3]
        assert lease.infer().outputs["s"].tolist() == [3, 4, 5]


def test_lease_is_good_for_one_infer_in_its_block(client):
    with client.lease("double", SHAPES) as lease:
        lease.inputs["x"][...] = 0
        lease.infer()
        with pytest.raises(errors.InvalidRequest, match="one infer per lease"):
            lease.infer()
    with pytest.raises(errors.InvalidRequest, match="not open"):
        lease.infer()


@pytest.mark.parametrize(
    ("name", "shapes", "words"),
    [
        ("double", {"x": ((2, 5), "float32")}, "dimension 1 to be 4"),
        ("double", {"x": ((2, 4), "float64")}, "expected float32"),
        ("double", {"z": ((2, 4), "float32")}, "'z' is unknown"),
        ("double", {}, "'x' is missing"),
        ("shout", {"t": ((2,), "float32")}, "use infer for strings"),
        ("double", {"x": "float32"}, r"expected \(shape, dtype\)"),
        ("double", [1], "takes a dict"),
    ],
)
def test_lease_of_a_wrong_shape_is_refused_by_name(client, name, shapes, words):
    with pytest.raises(errors.InvalidRequest, match=words), client.lease(name, shapes):
        pass
    assert client.free_slots() in (-1, 256)


def test_lease_outlives_the_router(make, runtime_dir):
    client = make()
    first = FakeRouter(runtime_dir)
    with client.lease("double", SHAPES) as lease:
        lease.inputs["x"][...] = 3
        first.close()
        second = FakeRouter(runtime_dir, epoch=2)
        y = lease.infer(deadline_ms=10_000).outputs["y"]
        assert lease.inputs["x"].tolist() == [[3] * 4] * 2, "views of the old arena stay readable"
        assert y.tolist() == [[6] * 4] * 2
    del y, lease
    free(client, 256)
    second.close()


def test_views_stay_readable_after_close(make, router):
    client = make()
    with client.lease("double", SHAPES) as lease:
        lease.inputs["x"][...] = 3
        y = lease.infer().outputs["y"]
    client.close()
    assert y.tolist() == [[6] * 4] * 2


def test_view_let_go_wakes_who_waits_for_a_slot(make, router):
    client = make(slot_count=1)
    with client.lease("double", SHAPES) as lease:
        lease.inputs["x"][...] = 1
        held = [lease.infer().outputs["y"]]
    letting_go = threading.Timer(0.05, held.clear)
    letting_go.start()
    try:
        assert client.infer("double", np.ones((1, 4), np.float32), deadline_ms=5000).source == "model"
    finally:
        letting_go.join()


def test_a_lease_of_no_rows_is_written_and_answered(client, router):
    with client.lease("double", {"x": ((0, 4), np.float32)}) as lease:
        lease.inputs["x"][...] = np.zeros((0, 4), np.float32)
        assert lease.infer(deadline_ms=5000).outputs["y"].shape == (0, 4)
