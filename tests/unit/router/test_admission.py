"""Admission: each refusal by its reason, in the order in which they are looked for, and what it leaves behind."""

from __future__ import annotations

import re

import pytest

from router import events as ev
from router.costs import UNKNOWN_NS
from router.reserve import CEILING_NS
from shm.endings import Ending, Reason
from shm.layout import Tensor
from shm.limits import DEADLINE_NS_MAX
from tests.unit.router.build import ALWAYS, FIXED, FREE, MS, NOW, SINGLE, Bench, request

F32, F64 = 1, 11


def described(*dims: int, dtype: int = F32, offset: int = 0, payload: int | None = None, index: int = 0) -> tuple:
    count = 1
    for dim in dims:
        count *= dim
    return (Tensor(index, dtype, dims, offset, count * 4 if payload is None else payload),)


WRONG = [
    pytest.param({"model": 7}, Reason.UNKNOWN_MODEL, "index 7", id="unknown_model"),
    pytest.param({"slot": 64}, Reason.SLOT_RANGE, "slots 64..64 .* has 64", id="slot_past_the_end"),
    pytest.param({"slot": 63, "slot_count": 2}, Reason.SLOT_RANGE, "slots 63..64", id="run_past_the_end"),
    pytest.param({"rows": 17}, Reason.BYTE_LENGTH, "17 rows of model m take 272 bytes, its slots have 256", id="room"),
    pytest.param({"rows": 2**31}, Reason.BYTE_LENGTH, "slots have 256", id="rows_without_end"),
    pytest.param(
        {"tensors": described(1, 4, dtype=F64)}, Reason.DTYPE, "'x': expected float32, got float64", id="dtype"
    ),
    pytest.param({"tensors": described(4)}, Reason.RANK, "'x': expected rank 2", id="rank"),
    pytest.param({"tensors": described(1, 5)}, Reason.DIMENSION, "dimension 1 to be 4, got 5", id="dimension"),
    pytest.param({"tensors": described(1, 4, payload=20)}, Reason.BYTE_LENGTH, "takes 16 bytes, got 20", id="bytes"),
    pytest.param({"tensors": described(1, 4, offset=8)}, Reason.BYTE_LENGTH, "multiple of 64", id="alignment"),
    pytest.param(
        {"tensors": described(1, 4, offset=256)}, Reason.BYTE_LENGTH, "pass the 256 bytes", id="past_its_slots"
    ),
    pytest.param({"tensors": described(1, 4, index=3)}, Reason.EXTRA_INPUT, "input 3 was given", id="unknown_input"),
    pytest.param({"tensors": described(1, 4) * 2}, Reason.EXTRA_INPUT, "'x' was given twice", id="twice"),
    pytest.param({"tensors": ()}, Reason.MISSING_INPUT, "'x' is missing", id="missing"),
    pytest.param({"tensors": described(3, 4), "rows": 0}, Reason.DIMENSION, r"names 0 rows.*\[3\]", id="rows_not_told"),
    pytest.param({"tensors": described(3, 4), "rows": 5}, Reason.DIMENSION, r"names 5 rows.*\[3\]", id="other_rows"),
    pytest.param({"in_ms": 2 * 24 * 3600e3}, Reason.DEADLINE_RANGE, r"2\.0 days away; at most one", id="far_deadline"),
]


@pytest.mark.parametrize(("fields", "reason", "message"), WRONG)
def test_a_wrong_request_is_refused_by_name_and_leaves_nothing(fields, reason, message):
    bench = Bench()
    bench.ask(request(1, **fields))
    assert (bench.reply.ending, bench.reply.reason, bench.reply.held) == (Ending.INVALID, reason, False)
    assert re.search(message, bench.reply.message or "")
    assert bench.machine.ledger.open_count == 0
    assert bench.machine.counters.invalid == 1
    bench.ask(request(1, slot=1))
    assert bench.dispatched == [[1]]


def test_a_model_of_free_shapes_must_be_told_where_tensors_lie():
    bench = Bench(signature=FREE)
    bench.ask(request(1))
    assert bench.reply.reason == Reason.MISSING_INPUT


def test_a_model_of_fixed_shapes_has_no_rows_to_name():
    bench = Bench(signature=FIXED)
    bench.ask(request(1, rows=2**31))
    assert (bench.reply.ending, bench.reply.reason) == (Ending.INVALID, Reason.DIMENSION)
    bench.ask(request(2, rows=0))
    assert bench.dispatched == [[2]]


def test_a_slot_in_flight_is_refused_and_its_owner_notices_nothing():
    bench = Bench()
    bench.ask(
        request(1, slot=4, slot_count=2), request(2, slot=5), request(3, slot=3, slot_count=2), request(4, slot=6)
    )
    assert {n: r.reason for n, r in bench.replies.items()} == {2: Reason.SLOT_BUSY, 3: Reason.SLOT_BUSY}
    assert bench.dispatched == [[4, 6]]


def test_slots_of_a_held_reply_are_in_flight_still():
    bench = Bench()
    bench.ask(request(1))
    bench.pass_time(100)
    assert bench.reply.held
    bench.ask(request(2, slot=1))
    assert bench.reply.reason == Reason.SLOT_BUSY


def test_the_same_slot_of_another_client_is_another_slot():
    bench = Bench(workers=2)
    bench.ask(request(1))
    bench.ask(request(1), session=2)
    assert bench.dispatched == [[1]]


def test_an_id_in_flight_is_rejected_without_a_reply_that_could_be_taken_for_the_others():
    bench = Bench()
    bench.ask(request(1))
    bench.ask(request(1, slot=2))
    assert bench.actions == [ev.SendRejected(1, Reason.DUPLICATE_ID, "request id 1 is in flight already")]


@pytest.mark.parametrize("in_ms", [0.0, -5.0])
def test_an_expired_request_is_answered_at_once_and_never_runs(in_ms):
    bench = Bench(rules=ALWAYS)
    bench.ask(request(1, in_ms=in_ms))
    assert (bench.reply.ending, bench.reply.reason) == (Ending.EXPIRED, Reason.EXPIRED_ON_ARRIVAL)
    assert not bench.dispatched


def test_a_deadline_of_one_day_is_allowed():
    bench = Bench()
    bench.ask(request(1, in_ms=DEADLINE_NS_MAX / MS))
    assert bench.dispatched == [[1]]


def test_a_model_that_no_worker_has_loaded_sheds():
    bench = Bench()
    bench.ask(request(1, model=1))
    assert (bench.reply.ending, bench.reply.reason) == (Ending.SHED, Reason.NO_WORKER)


def test_a_full_queue_sheds_and_says_when_to_come_back():
    bench = Bench(queue_requests=2, run_ns=20 * MS, max_batch=1)
    bench.ask(request(1))
    bench.ask(request(2), request(3), request(4))
    assert (bench.reply.id, bench.reply.ending, bench.reply.reason) == (4, Ending.SHED, Reason.QUEUE_FULL)
    assert bench.reply.retry_after_ms == 60


def test_no_queue_makes_a_retry_after_that_the_wire_cannot_carry():
    bench = Bench(queue_requests=1, run_ns=10**13, max_batch=1)
    bench.ask(request(1, in_ms=24 * 3600e3))
    bench.ask(request(2, in_ms=24 * 3600e3), request(3, in_ms=24 * 3600e3))
    assert bench.reply.retry_after_ms == 60_000


def test_a_queue_full_of_bytes_sheds():
    bench = Bench(queue_mib=1, signature=SINGLE, run_ns=MS)
    bench.turn(ev.ClientAttached(3, 64, 2**20))
    rows = 2**19 // 16
    bench.ask(request(9, rows=1))
    bench.ask(*(request(n, rows=rows, in_ms=1e6) for n in (1, 2, 3)), session=3)
    assert (bench.reply.id, bench.reply.reason) == (3, Reason.BYTES_FULL)


def test_draining_sheds_what_comes():
    bench = Bench()
    bench.ask(request(1))
    bench.turn(ev.DrainStarted(1000 * MS))
    bench.ask(request(2))
    assert (bench.reply.ending, bench.reply.reason) == (Ending.SHED, Reason.DRAINING)


def test_a_request_that_would_be_late_is_shed_at_arrival():
    bench = Bench(run_ns=10 * MS)
    bench.ask(request(1, in_ms=8))
    assert (bench.reply.ending, bench.reply.reason) == (Ending.SHED, Reason.PREDICTED_LATE)
    assert not bench.dispatched


def test_a_request_that_would_be_late_is_answered_by_rule_where_there_is_one():
    bench = Bench(run_ns=10 * MS, rules=ALWAYS)
    bench.ask(request(1, in_ms=8))
    (asked,) = bench.of(ev.AnswerInstead)
    assert (asked.reply.ending, asked.reply.reason, asked.reply.held) == (Ending.SHED, Reason.PREDICTED_LATE, False)
    assert asked.steps == ("rules",)


def test_a_request_that_is_just_in_time_runs():
    bench = Bench(run_ns=10 * MS)
    before_ms = bench.machine.reserve.before_ns / MS
    bench.ask(request(1, in_ms=10 + before_ms))
    assert bench.dispatched == [[1]]


def test_before_any_cost_is_known_a_guess_decides():
    bench = Bench(workers=0)
    bench.turn(ev.WorkerBorn(1, 0))
    bench.turn(ev.WorkerReady(1, SINGLE, []))
    bench.ask(request(1, in_ms=(UNKNOWN_NS + bench.machine.reserve.before_ns) / MS + 1))
    assert bench.dispatched == [[1]]


def test_a_stall_does_not_refuse_short_deadlines_for_ever():
    """After it the reserve is longer than they are, so none of them is ever due in the queue."""
    bench = Bench()
    bench.ask(request(1, in_ms=50))
    bench.pass_time(10_000)
    assert bench.machine.reserve.before_ns == CEILING_NS
    bench.finish()
    for number in range(2, 200):
        bench.ask(request(number, slot=1, in_ms=10, now=bench.now))
        if bench.dispatched:
            return
    pytest.fail("the farm never answers a request of 10 ms again")


def test_a_bad_time_does_not_refuse_for_ever_while_a_worker_is_idle():
    """Runs were slow for a while; the estimate passed the deadline, so no run corrects it."""
    bench = Bench(run_ns=20 * MS)
    for number in range(2, 5_000):
        bench.ask(request(number, slot=1, in_ms=10, now=bench.now))
        if bench.dispatched:
            return
    pytest.fail("the farm never tries again")


def test_refusals_while_every_worker_is_busy_do_not_weaken_the_estimate():
    bench = Bench(run_ns=20 * MS)
    bench.ask(request(1, slot=1, in_ms=1e6))
    before = bench.machine.models[0].costs.estimate(1)
    for number in range(2, 50):
        bench.ask(request(number, slot=2, in_ms=10))
    assert bench.machine.models[0].costs.estimate(1) == before


def test_requests_of_a_session_that_is_not_there_are_dropped_and_counted():
    bench = Bench()
    assert bench.ask(request(1), request(2), session=99) == []
    assert (bench.machine.counters.requests, bench.machine.counters.orphaned) == (2, 2)
    assert bench.now == NOW
