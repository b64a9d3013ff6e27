"""One model's state: its configuration in the units of the machine, and what its requests may bring."""

from __future__ import annotations

from typing import Any

import pytest

from router.config import ModelConfig, OnConfig
from router.models import NO_LIMIT, ModelState
from shm.endings import Reason
from shm.errors import TensorRefused
from shm.layout import Signature, Tensor, TensorSpec
from shm.limits import MEMBERS_MAX
from tests.unit.router.build import ALWAYS, FIXED, FREE, ROWS, SINGLE, request

TWO = Signature((TensorSpec("x", 1, ("N", 4)), TensorSpec("z", 1, ("N",))), (TensorSpec("y", 1, ("N",)),), True)


def state(signature: Signature | None = None, **model: Any) -> ModelState:
    made = ModelState(3, ModelConfig(name="m", **model))
    if signature is not None:
        made.adopt(signature)
    return made


def x(*dims: int, index: int = 0) -> Tensor:
    count = 1
    for dim in dims:
        count *= dim
    return Tensor(index, 1, dims, 0, 4 * count)


def test_times_are_told_in_ms_and_kept_in_ns():
    made = state(deadline_ms=12.5, max_delay_ms=0.25, hang_ms=1.5)
    assert (made.deadline_ns, made.max_delay_ns, made.hang_ns) == (12_500_000, 250_000, 1_500_000)


def test_a_queue_is_told_in_mib_and_kept_in_bytes():
    assert state(queue_mib=3).queue_bytes_max == 3 * 2**20


@pytest.mark.parametrize(("places", "half"), [(1, 1), (2, 1), (7, 4), (1024, 512)])
def test_below_half_of_its_places_rounded_up_nobody_need_be_asked(places, half):
    made = state(queue_requests=places)
    assert (made.queue_requests, made.half_requests) == (places, half)


def test_no_limit_on_requests_in_flight_is_one_that_nobody_reaches():
    assert state().in_flight_max == NO_LIMIT
    assert state(in_flight_max=5).in_flight_max == 5


def test_a_model_begins_with_nothing():
    made = state()
    assert (made.index, made.ready, made.signature, made.input_plan) == (3, False, None, None)
    assert (made.busy_until_ns, made.suspects, made.max_batch, made.members_max) == (0, 0, 1, 1)


def test_a_model_knows_whether_its_rules_are_to_be_asked_and_how_often():
    assert (state().has_rules, state().sample_every, state().keeps_answers) == (False, 0, False)
    ruled = state(rules=ALWAYS, on=OnConfig(guard=["last_good"]))
    assert (ruled.has_rules, ruled.sample_every, ruled.to_sample, ruled.keeps_answers) == (True, 100, 100, True)


# The signature


def test_only_models_whose_rows_are_independent_batch():
    assert state(ROWS, max_batch=16).max_batch == 16
    assert (state(SINGLE, max_batch=16).max_batch, state(SINGLE, max_batch=16).members_max) == (1, 1)


def test_a_run_has_no_more_members_than_a_batch_has_rows():
    assert state(ROWS, max_batch=16).members_max == 16


def test_a_run_has_no_more_members_than_the_kernel_passes_descriptors_for():
    assert state(ROWS, max_batch=MEMBERS_MAX).members_max == MEMBERS_MAX


def test_a_run_has_no_more_members_than_fit_a_frame():
    """Of free shape, so each member describes its tensors: sixty of eight dimensions take 6 kB a member."""
    wide = Signature(
        tuple(TensorSpec(f"x{n}", 1, ("N", "M", "K", "L", "O", "P", "Q", "R")) for n in range(60)),
        (TensorSpec("y", 1, ("N",)),),
        True,
    )
    assert state(wide, max_batch=100).members_max == 65_536 // (64 + 60 * (32 + 8 * 9))


def test_what_was_known_of_an_old_signature_is_forgotten():
    made = state(ROWS)
    assert made.payload_bytes(request(1, rows=3), 256) == 48
    made.adopt(TWO)
    assert made.payload_bytes(request(1, rows=3), 512) > 48


# What requests bring


def test_the_bytes_of_rows_follow_from_the_signature():
    made = state(ROWS)
    for _ in range(2):
        assert [made.payload_bytes(request(1, rows=rows), 256) for rows in (0, 1, 16)] == [0, 16, 256]


@pytest.mark.parametrize("again", [False, True])
def test_rows_that_do_not_fit_are_refused_each_time(again):
    made = state(ROWS)
    if again:
        made.payload_bytes(request(1, rows=17), 1024)
    with pytest.raises(TensorRefused, match="17 rows of model m take 272 bytes, its slots have 271") as refused:
        made.payload_bytes(request(1, rows=17), 271)
    assert refused.value.reason == Reason.BYTE_LENGTH


def test_sizes_that_clients_make_up_do_not_fill_the_memory():
    made = state(ROWS)
    for rows in range(3000):
        assert made.payload_bytes(request(1, rows=rows), 2**30) == 16 * rows
    assert len(made._payload_of_rows) == 1024


def test_a_model_of_free_shape_wants_to_be_told_where_tensors_lie():
    with pytest.raises(TensorRefused, match="model m has inputs of free shape: each request must say where") as refused:
        state(FREE).payload_bytes(request(1), 256)
    assert refused.value.reason == Reason.MISSING_INPUT


def test_a_model_without_rows_wants_none_named():
    made = state(FIXED)
    assert made.payload_bytes(request(1, rows=0), 256) == 48
    with pytest.raises(TensorRefused, match="names 2 rows; inputs of model m have no rows, name 0") as refused:
        made.payload_bytes(request(1, rows=2), 256)
    assert refused.value.reason == Reason.DIMENSION


def test_the_bytes_of_described_tensors_are_added_up():
    made = state(TWO)
    tensors = (x(3, 4), Tensor(1, 1, (3,), 64, 12))
    assert made.payload_bytes(request(1, rows=3, tensors=tensors), 256) == 60


def test_rows_must_be_what_all_described_tensors_begin_with():
    made = state(TWO)
    unequal = (x(3, 4), Tensor(1, 1, (2,), 64, 8))
    with pytest.raises(TensorRefused):
        made.payload_bytes(request(1, rows=3, tensors=unequal), 256)


@pytest.mark.parametrize("signature", [ROWS, FREE, FIXED])
def test_a_request_that_describes_nothing_may_run_with_any_other(signature):
    assert state(signature).shape_of(request(1)) is None


def test_described_requests_run_together_where_all_but_their_rows_agree():
    made = state(FREE, max_batch=8)
    shapes = [made.shape_of(request(1, rows=dims[0], tensors=(x(*dims),))) for dims in ((3, 5), (2, 5), (3, 6))]
    assert shapes[0] == shapes[1] != shapes[2]
    assert made.shape_of(request(1, tensors=(x(3, 5, index=1),))) != shapes[0]


def test_where_nothing_is_batched_shapes_do_not_matter():
    assert state(FREE, max_batch=1).shape_of(request(1, tensors=(x(3, 5),))) is None
